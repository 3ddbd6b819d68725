//! Snapshots that are whole trees of their own, on any file system.

use std::path::Path;

use super::SnapshotError;
use crate::task::Tasks;

#[derive(Clone, Debug)]
pub struct NativeSnapshotter {}

impl NativeSnapshotter {
    /// Opens the snapshots below `root`, which is made if missing, and cleans what a crash left there.
    pub fn open(root: &Path, tasks: Tasks) -> Result<NativeSnapshotter, SnapshotError> {
        todo!()
    }
}
