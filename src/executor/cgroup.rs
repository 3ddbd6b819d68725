//! Where control groups are mounted, and the group of one process.
//!
//! Version 1 has a hierarchy for each controller, or for some together; version 2 has one for all. A host may have
//! neither: processes then run without limits, and nothing is known of what they use.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use super::mountinfo;
use super::samples;
use crate::progress::Sample;

/// Hierarchies as they are mounted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// All hierarchies are one of version 2.
    unified: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Hierarchy {
    mount: PathBuf,
    /// Empty for version 2.
    controllers: Vec<String>,
}

/// The group of one process: a directory in each hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    cgroups: Cgroups,
    /// Relative to each mount.
    path: PathBuf,
}

impl Cgroups {
    /// As `/proc/self/mountinfo` has it now.
    pub fn detect() -> io::Result<Cgroups> {
        Ok(Cgroups::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    pub fn parse(mountinfo: &str) -> Cgroups {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for mount in mountinfo::parse(mountinfo) {
            match mount.kind {
                "cgroup" => {
                    let known = |o: &&str| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children");
                    let controllers = mount.super_options.split(',').filter(known);
                    let controllers = controllers.map(str::to_owned).collect();
                    first.push(Hierarchy { mount: mount.path, controllers });
                }
                "cgroup2" => second.push(Hierarchy { mount: mount.path, controllers: Vec::new() }),
                _ => {}
            }
        }
        // Beside version 1 the other one holds no controllers: runtimes put nothing there, or only names.
        let unified = first.is_empty();
        if unified {
            second.truncate(1);
            return Cgroups { hierarchies: second, unified };
        }
        first.append(&mut second);
        Cgroups { hierarchies: first, unified }
    }

    pub fn is_none(&self) -> bool {
        self.hierarchies.is_empty()
    }

    pub fn is_unified(&self) -> bool {
        self.unified && !self.is_none()
    }

    /// The group that a runtime makes for a `cgroupsPath`.
    pub fn group(&self, path: &Path) -> Group {
        let path = path.strip_prefix("/").unwrap_or(path).to_path_buf();
        Group { cgroups: self.clone(), path }
    }
}

impl Group {
    /// The directory that has the files of `controller`.
    pub fn directory(&self, controller: &str) -> Option<PathBuf> {
        let found = self.cgroups.hierarchies.iter().find(|h| {
            if self.cgroups.unified { true } else { h.controllers.iter().any(|c| c == controller) }
        })?;
        Some(found.mount.join(&self.path))
    }

    pub fn sample(&self) -> Sample {
        if self.cgroups.unified { samples::unified(self) } else { samples::legacy(self) }
    }

    /// Kills every process that is in it, whatever made it.
    pub fn kill(&self) {
        for pid in self.processes() {
            // What has ended since is nobody's.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    pub fn processes(&self) -> Vec<rustix::process::Pid> {
        let mut found = HashSet::new();
        for directory in self.directories() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)));
        }
        found.into_iter().collect()
    }

    /// Removes the directories, and those that the process made in them.
    pub fn remove(&self) -> io::Result<()> {
        let mut failed = None;
        for directory in self.directories() {
            if let Err(error) = remove_directory(&directory) {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.cgroups.hierarchies.iter().map(|h| h.mount.join(&self.path))
    }
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
        done => return done,
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directory(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGACY: &str = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_controller_of_version_1_is_found_where_it_is_mounted_with_others() {
        let cgroups = Cgroups::parse(LEGACY);
        assert!(!cgroups.is_none() && !cgroups.is_unified());
        let group = cgroups.group(Path::new("/thunk/x"));
        let expected = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/thunk/x");
        assert_eq!(group.directory("cpuacct"), Some(expected.clone()));
        assert_eq!(group.directory("cpu"), Some(expected));
        assert_eq!(group.directory("pids"), None);
        assert_eq!(group.directories().count(), 3);
    }

    #[test]
    fn version_2_has_one_directory_for_all() {
        let cgroups = Cgroups::parse("29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(cgroups.is_unified());
        let group = cgroups.group(Path::new("/a"));
        assert_eq!(group.directory("memory"), Some(PathBuf::from("/sys/fs/cgroup/a")));
    }

    #[test]
    fn a_host_without_cgroups_has_none() {
        let cgroups = Cgroups::parse("29 25 0:26 / / rw - ext4 /dev/vda rw\n");
        assert!(cgroups.is_none() && !cgroups.is_unified());
        assert_eq!(cgroups.group(Path::new("/a")).directory("memory"), None);
        assert!(cgroups.group(Path::new("/a")).remove().is_ok());
    }
}
