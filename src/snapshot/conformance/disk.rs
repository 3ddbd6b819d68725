//! File systems in files, mounted by a loop device.

use std::path::Path;
use std::process::Command;

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use super::super::stale;

const MIB: u64 = 1 << 20;
const PREFIX: &str = "thunk-disk-";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum FileSystem {
    Ext4,
    Btrfs,
    Xfs,
}

/// Unmounted and deleted when it is dropped; if its process is killed, by the next one that makes a disk.
pub(in super::super) struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None`, with a word, if this machine can't; in CI it has to.
    pub(in super::super) fn new(kind: FileSystem) -> Option<Disk> {
        // The smallest that each can be, or less than what a test writes anyway.
        let (size, tool, options): (_, _, &[&str]) = match kind {
            FileSystem::Ext4 => (256 * MIB, "mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1"]),
            FileSystem::Btrfs => (256 * MIB, "mkfs.btrfs", &["-q"]),
            FileSystem::Xfs => (512 * MIB, "mkfs.xfs", &["-q"]),
        };
        Disk::sized(size, tool, options)
    }

    /// An ext4 that is soon full.
    pub(in super::super) fn small() -> Option<Disk> {
        Disk::sized(8 * MIB, "mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"])
    }

    fn sized(size: u64, tool: &str, options: &[&str]) -> Option<Disk> {
        match Disk::make(size, tool, options) {
            Ok(disk) => Some(disk),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no disk for the tests: {error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn make(size: u64, tool: &str, options: &[&str]) -> Result<Disk, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can mount".to_owned());
        }
        remove_those_of_killed_processes();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().map_err(|e| e.to_string())?;
        let disk = Disk { dir };
        let image = disk.dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(size)).map_err(|e| e.to_string())?;
        run(Command::new(tool).args(options).arg(&image))?;
        std::fs::create_dir(disk.path()).map_err(|e| e.to_string())?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    pub(in super::super) fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What a failed test left mounted on it goes as well, and the loop device with the last mount.
        unmount_below(self.dir.path());
    }
}

fn unmount_below(path: &Path) {
    for mount in stale::below(path).unwrap_or_default().iter().rev() {
        let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
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
