//! File systems in files, mounted by a loop device.

use std::path::PathBuf;

#[path = "../../../integration/harness/loopback.rs"]
#[allow(dead_code, reason = "the integration tests use the rest of it")]
mod loopback;

use loopback::Loopback;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum FileSystem {
    Ext4,
    Btrfs,
    Xfs,
}

/// Unmounted and deleted when it is dropped.
pub(in super::super) struct Disk(Loopback);

impl Disk {
    /// `None`, with a word, if this machine can't; in CI it has to.
    pub(in super::super) fn new(kind: FileSystem) -> Option<Disk> {
        // The smallest that each can be, or less than what a test writes anyway.
        let (mebibytes, tool, options): (_, _, &[&str]) = match kind {
            FileSystem::Ext4 => (256, "mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1"]),
            FileSystem::Btrfs => (256, "mkfs.btrfs", &["-q"]),
            FileSystem::Xfs => (512, "mkfs.xfs", &["-q"]),
        };
        Loopback::of(mebibytes, tool, options).map(Disk)
    }

    /// An ext4 that is soon full.
    pub(in super::super) fn small() -> Option<Disk> {
        Loopback::of(8, "mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"]).map(Disk)
    }

    pub(in super::super) fn path(&self) -> PathBuf {
        self.0.path()
    }
}
