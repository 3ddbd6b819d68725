//! A small disk: a file system in a file, mounted by a loop device. The unit tests of the crate have this file as well.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const PREFIX: &str = "thunk-loopback-";

/// Unmounted and deleted when it is dropped, also by a panic; if its process is killed, by the next that makes one.
/// What uses it must be dropped before.
pub struct Loopback {
    directory: TempDir,
}

impl Loopback {
    /// An ext4, with nothing reserved for root. As [`Loopback::of`].
    pub fn ext4(mebibytes: u64) -> Option<Self> {
        Self::of(mebibytes, "mkfs.ext4", &["-q", "-F", "-m", "0"])
    }

    /// What `tool` makes with `options` of a file of so many mebibytes. `None`, with a word, if this machine can't; in CI
    /// it has to.
    pub fn of(mebibytes: u64, tool: &str, options: &[&str]) -> Option<Self> {
        match Self::make(mebibytes * MIB, tool, options) {
            Ok(disk) => Some(disk),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no disk for the tests: {error}");
                eprintln!("SKIPPED, NOT CHECKED: {error}");
                None
            }
        }
    }

    fn make(size: u64, tool: &str, options: &[&str]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can mount".to_owned());
        }
        remove_those_of_killed_processes();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = TempDir::with_prefix(prefix).map_err(|e| e.to_string())?;
        let disk = Self { directory };
        let image = disk.directory.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).map_err(|e| e.to_string())?;
        run(Command::new(tool).args(options).arg(&image))?;
        std::fs::create_dir(disk.path()).map_err(|e| e.to_string())?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// A directory on it for the root of a daemon.
    pub fn root(&self) -> PathBuf {
        let root = self.path().join("root");
        std::fs::create_dir_all(&root).expect("a directory on the disk");
        root
    }

    /// Bytes that can be written still.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("a mounted disk");
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all space but about `leave` bytes; with 0 all that there is.
    pub fn fill(&self, leave: u64) {
        let file = File::create(self.filler()).expect("a file on the disk");
        // The file system needs some for the file's map.
        let taken = self.free().saturating_sub(leave.max(MIB));
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken.max(1)).expect("space");
        drop(file);
        if leave == 0 {
            self.fill_more();
        }
    }

    /// Takes what became free since the disk was filled.
    pub fn fill_more(&self) {
        let mut file = File::options().append(true).open(self.filler()).expect("it was filled");
        while file.write_all(&[0; 4096]).and_then(|()| file.sync_data()).is_ok() {}
    }

    /// Gives back what [`Loopback::fill`] took.
    pub fn drain(&self) {
        // A process that another test starts has all open files for a moment, and a file that is removed takes room while
        // anybody has it.
        let emptied = File::options().write(true).open(self.filler()).and_then(|file| file.set_len(0));
        emptied.expect("it was filled");
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        unmount_below(self.directory.path());
    }
}

/// What a failed test left mounted goes as well, and the loop device with the last mount.
pub(super) fn unmount_below(directory: &Path) {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let below: Vec<&Path> = points.filter(|point| point.starts_with(directory)).collect();
    for point in below.iter().rev() {
        let _ = rustix::mount::unmount(*point, UnmountFlags::DETACH);
    }
}

fn remove_those_of_killed_processes() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            unmount_below(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
