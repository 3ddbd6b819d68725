//! Chooses the snapshotter.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::SnapshotterKind;
use super::services::OpenError;
use crate::snapshot::NativeSnapshotter;
use crate::snapshot::OverlaySnapshotter;
use crate::snapshot::SnapshotError;
use crate::snapshot::Snapshotter;
use crate::task::Tasks;

/// What `auto` stands for on the file system of `root`.
pub(super) fn settle(root: &Path, kind: SnapshotterKind) -> SnapshotterKind {
    if kind != SnapshotterKind::Auto {
        return kind;
    }
    match OverlaySnapshotter::supported(&directory(root, SnapshotterKind::Overlay)) {
        Ok(()) => SnapshotterKind::Overlay,
        // A full disk says nothing of overlays: what was chosen while there was space stays.
        Err(SnapshotError::NoSpace) if !directory(root, SnapshotterKind::Native).exists() => {
            SnapshotterKind::Overlay
        }
        Err(error) => {
            tracing::warn!(%error, "no overlay can be mounted here: layers are copied");
            SnapshotterKind::Native
        }
    }
}

/// Opens the snapshots of a settled `kind` below the daemon's `root`.
pub(super) fn open(
    root: &Path,
    kind: SnapshotterKind,
    tasks: &Tasks,
) -> Result<Arc<dyn Snapshotter>, OpenError> {
    let path = directory(root, kind);
    let opened = match kind {
        SnapshotterKind::Native => {
            NativeSnapshotter::open(&path, tasks.clone()).map(|s| Arc::new(s) as Arc<dyn Snapshotter>)
        }
        SnapshotterKind::Auto | SnapshotterKind::Overlay => {
            OverlaySnapshotter::open(&path, tasks.clone()).map(|s| Arc::new(s) as Arc<dyn Snapshotter>)
        }
    };
    opened.map_err(|source| OpenError::Snapshots { path, source })
}

/// Each kind has a directory of its own.
fn directory(root: &Path, kind: SnapshotterKind) -> PathBuf {
    root.join("snapshots").join(kind.name())
}
