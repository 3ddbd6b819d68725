//! Snapshots that share their parents' files through overlay mounts.

use std::path::Path;

use super::SnapshotError;
use crate::task::Tasks;

#[derive(Clone, Debug)]
pub struct OverlaySnapshotter {}

impl OverlaySnapshotter {
    /// Opens the snapshots below `root`, which is made if missing, and cleans what a crash left there.
    pub fn open(root: &Path, tasks: Tasks) -> Result<OverlaySnapshotter, SnapshotError> {
        todo!()
    }
}
