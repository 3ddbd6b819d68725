//! Why a snapshotter could not do something.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::InvalidSnapshotKey;
use super::SnapshotKey;
use super::SnapshotKind;
use crate::failpoint::Injected;
use crate::fs::FsError;
use crate::task::TaskFailed;

#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("there is no snapshot {key}")]
    NotFound { key: SnapshotKey },
    #[error("there is a snapshot {key} already")]
    Exists { key: SnapshotKey },
    #[error("snapshot {key} is {actual}, which can't be used to {action}")]
    WrongKind { key: SnapshotKey, actual: SnapshotKind, action: &'static str },
    /// Another snapshot stands on it.
    #[error("snapshot {key} is needed by snapshot {by}")]
    InUse { key: SnapshotKey, by: SnapshotKey },
    /// It is mounted, or somebody else works on it.
    #[error("snapshot {key} is busy: it is mounted, or being made, committed or removed")]
    Busy { key: SnapshotKey },
    #[error("a snapshot of {snapshotter} stands on one parent at most, not on {count}")]
    TooManyParents { snapshotter: &'static str, count: usize },
    #[error(transparent)]
    Key(#[from] InvalidSnapshotKey),
    #[error("no space left for snapshots: free some and try again")]
    NoSpace,
    #[error("can't {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("below {}: {source}", root.display())]
    Fs { root: PathBuf, source: FsError },
    /// A directory of the snapshotter does not hold what it must.
    #[error("snapshot directory {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl SnapshotError {
    /// For `map_err`: names what was tried on what.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> SnapshotError {
        let path = path.to_path_buf();
        move |source| {
            let source = source.into();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SnapshotError::NoSpace,
                _ => SnapshotError::Io { action, path, source: Arc::new(source) },
            }
        }
    }

    /// For `map_err`: names the directory that the guest path of the cause is relative to.
    pub(crate) fn fs(root: &Path) -> impl FnOnce(FsError) -> SnapshotError {
        let root = root.to_path_buf();
        move |source| match source {
            FsError::NoSpace { .. } => SnapshotError::NoSpace,
            source => SnapshotError::Fs { root, source },
        }
    }
}
