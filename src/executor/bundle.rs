//! [`Bundle`]: the directory of one running process.
//!
//! It lies in a file system in memory that all bundles share, below the executor's directory: the description of the
//! sandbox, the runtime's state, secrets, and mount points for what is shown of other directories. To mount one for each
//! process takes longer than all that is written to it.
//!
//! # Locking
//!
//! One mutex, held while the file system is mounted: when the first process runs.
//!
//! # Crash consistency
//!
//! After a kill the mounts are still there, and processes may still run. [`clear_leftovers`] kills those and unmounts
//! all bundles at once. What is mounted in a bundle belongs to somebody else: nothing is removed before that is unmounted.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use data_encoding::HEXLOWER;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Uid;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;

use super::ExecError;
use super::MountError;
use super::cgroup::Cgroups;

/// Directory of the bundles below the executor's.
const BUNDLES: &str = "bundles";
/// How long a killed process of an earlier daemon is waited for.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Where bundles are. Dropping it unmounts them all.
#[derive(Debug)]
pub struct Bundles {
    path: PathBuf,
    is_mounted: Mutex<bool>,
}

/// The directory of one process. Dropping it unmounts what is mounted in it, and removes it.
#[derive(Debug)]
pub struct Bundle {
    id: String,
    path: PathBuf,
    /// Files and directories that were made for mounts.
    made: usize,
    shown: Vec<PathBuf>,
}

impl Bundles {
    /// Below an executor's directory, in which [`clear_leftovers`] has cleared up.
    pub fn new(directory: &Path) -> Bundles {
        Bundles { path: directory.join(BUNDLES), is_mounted: Mutex::default() }
    }

    pub fn create(&self) -> Result<Bundle, ExecError> {
        self.mount()?;
        let id = HEXLOWER.encode(&rand::random::<[u8; 16]>());
        let path = self.path.join(&id);
        fs::create_dir(&path).map_err(ExecError::io("create", &path))?;
        Ok(Bundle { id, path, made: 0, shown: Vec::new() })
    }

    fn mount(&self) -> Result<(), ExecError> {
        let mut is_mounted = self.is_mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_mounted {
            return Ok(());
        }
        let path = &self.path;
        fs::create_dir_all(path).map_err(ExecError::io("create", path))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(c"mode=0700"))
            .map_err(|errno| ExecError::io("mount a tmpfs at", path)(errno.into()))?;
        *is_mounted = true;
        Ok(())
    }
}

impl Drop for Bundles {
    fn drop(&mut self) {
        if *self.is_mounted.get_mut().unwrap_or_else(PoisonError::into_inner)
            && let Err(errno) = clear(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %errno, "bundles can't be unmounted");
        }
    }
}

impl Bundle {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The runtime's own directory.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log.json")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path.join(PID_FILE)
    }

    /// What the runtime wrote once the process ran.
    pub fn pid(&self) -> Option<Pid> {
        read_pid(&self.path)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<PathBuf, ExecError> {
        let path = self.path.join(name);
        fs::write(&path, data).map_err(ExecError::io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(ExecError::io("write", &path))?;
        Ok(path)
    }

    /// A file with exactly these owners and bits. Nobody else can get at it by its path.
    pub fn secret(&mut self, data: &[u8], uid: u32, gid: u32, mode: u32) -> Result<PathBuf, ExecError> {
        let path = self.next("secret");
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600))?;
            file.write_all(data)?;
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))?)
        };
        write().map_err(ExecError::io("write", &path))?;
        Ok(path)
    }

    /// Whether it shows something of somebody else's.
    pub fn shows(&self) -> bool {
        !self.shown.is_empty()
    }

    /// Shows what `selector` names, resolved as if `directory` were `/`, at a path of the bundle: the very file that
    /// was resolved, whoever changes the directory meanwhile.
    pub fn show(&mut self, directory: &Path, selector: &str) -> Result<PathBuf, MountError> {
        let failed = |operation| move |source| MountError::System { operation, source };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(failed("open its directory"))?;
        let found = resolve(&root, selector)
            .map_err(|source| MountError::Selector { selector: selector.to_owned(), source })?;
        let meta = rustix::fs::fstat(&found).map_err(failed("look at its selector"))?;
        let target = self.next("mount");
        let made = match FileType::from_raw_mode(meta.st_mode) {
            FileType::Directory => fs::create_dir(&target),
            _ => File::create_new(&target).map(drop),
        };
        made.map_err(|error| failed("make a mount point")(errno(&error)))?;
        let tree = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&found, c"", tree).map_err(failed("clone its mount"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, c"", CWD, &target, flags).map_err(failed("mount it"))?;
        self.shown.push(target.clone());
        Ok(target)
    }

    fn next(&mut self, kind: &str) -> PathBuf {
        self.made += 1;
        self.path.join(format!("{kind}{}", self.made))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for shown in &self.shown {
            if let Err(error) = rustix::mount::unmount(shown, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                tracing::warn!(path = %shown.display(), %error, "a bundle stays, as it can't be unmounted");
                return;
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a bundle stays");
        }
    }
}

const PID_FILE: &str = "pid";

fn resolve(root: &OwnedFd, selector: &str) -> rustix::io::Result<OwnedFd> {
    let selector = selector.trim_start_matches('/');
    let selector = if selector.is_empty() { "." } else { selector };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: somebody renames meanwhile, and the kernel can't tell whether the path stays beneath.
    for _ in 0..64 {
        match rustix::fs::openat2(root, selector, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn read_pid(bundle: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()?)
}

/// Unmounts everything at and below `path`, and removes the mount point.
fn clear(path: &Path) -> rustix::io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not a mount point: it was unmounted before.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    // Empty, or it was not unmounted.
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(errno(&error)),
        _ => Ok(()),
    }
}

/// Ends the processes of an earlier daemon with the same directory, and unmounts their bundles.
pub fn clear_leftovers(directory: &Path, cgroups: &Cgroups) -> Result<(), ExecError> {
    let bundles = directory.join(BUNDLES);
    let entries = match fs::read_dir(&bundles) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ExecError::io("read", bundles)(error)),
    };
    for entry in entries {
        let path = entry.map_err(ExecError::io("read", &bundles))?.path();
        tracing::info!(bundle = %path.display(), "clearing up after a process that was running");
        kill_runtimes(&path);
        if let Some(pid) = read_pid(&path) {
            kill_process(pid, &path);
        }
        if let Some(group) = cgroup_path(&path).map(|p| cgroups.group(Path::new(&p))) {
            group.kill();
            if let Err(error) = group.remove() {
                tracing::warn!(bundle = %path.display(), %error, "a cgroup stays");
            }
        }
    }
    clear(&bundles).map_err(|errno| ExecError::io("unmount", &bundles)(errno.into()))
}

#[derive(serde::Deserialize)]
struct Config {
    linux: LinuxConfig,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct LinuxConfig {
    cgroups_path: Option<String>,
}

fn cgroup_path(bundle: &Path) -> Option<String> {
    let config = fs::read(bundle.join("config.json")).ok()?;
    serde_json::from_slice::<Config>(&config).ok()?.linux.cgroups_path
}

/// A runtime that is still at work would start a process that nobody waits for.
fn kill_runtimes(bundle: &Path) {
    let wanted = bundle.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|b| *b == 0).any(|argument| argument == wanted) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Kills `pid` if it is the process of this bundle still, and waits until it is gone.
fn kill_process(pid: Pid, bundle: &Path) {
    let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The PID may be another's by now. The cgroup has the name of the bundle.
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
    let ours = bundle.file_name().and_then(|n| n.to_str()).is_some_and(|id| cgroup.contains(id));
    if !ours || rustix::process::pidfd_send_signal(&fd, Signal::KILL).is_err() {
        return;
    }
    let mut wait = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let limit = Timespec { tv_sec: KILL_LIMIT.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    let _ = rustix::event::poll(&mut wait, Some(&limit));
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo;
    use super::*;

    #[test]
    fn a_selector_is_resolved_in_its_directory_and_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("a")).expect("a directory");
        fs::write(source.join("a/file"), "in").expect("a file");
        std::os::unix::fs::symlink("/a/file", source.join("link")).expect("a symlink");
        std::os::unix::fs::symlink("../../../../etc", source.join("out")).expect("a symlink");
        let bundles = Bundles::new(dir.path());
        let mut bundle = bundles.create().expect("a bundle");
        let shown = bundle.show(&source, "/link").expect("a mount");
        assert_eq!(fs::read(&shown).expect("a file"), b"in");
        let shown = bundle.show(&source, "a").expect("a mount");
        fs::write(shown.join("new"), "x").expect("a file");
        assert!(source.join("a/new").exists());
        let error = bundle.show(&source, "out/passwd").expect_err("etc of the host is not in it");
        assert_eq!(error.to_string(), "\"out/passwd\": No such file or directory (os error 2)");
        let path = bundle.path().to_path_buf();
        drop(bundle);
        assert!(!path.exists());
        assert!(source.join("a/file").exists(), "what was shown is not touched");
        drop(bundles);
        assert!(!path.parent().expect("the bundles").exists());
    }

    #[test]
    fn what_a_killed_daemon_left_is_unmounted() {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("a directory");
        fs::write(source.join("file"), "kept").expect("a file");
        let bundles = Bundles::new(dir.path());
        let mut bundle = bundles.create().expect("a bundle");
        bundle.show(&source, "/").expect("a mount");
        bundle.secret(b"s", 1, 2, 0o400).expect("a secret");
        let path = bundle.path().to_path_buf();
        std::mem::forget((bundle, bundles));
        clear_leftovers(dir.path(), &Cgroups::default()).expect("cleared");
        assert!(!path.exists());
        assert_eq!(fs::read(source.join("file")).expect("a file"), b"kept");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mountinfo::parse(&mounts).any(|m| m.path.starts_with(dir.path())));
    }
}
