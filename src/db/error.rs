//! Why the metadata store could not do something.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::failpoint::Injected;

/// An operation on the metadata store failed.
///
/// Cloned to every caller of a commit that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    #[error("can't open the metadata store {}: {source}", path.display())]
    Open { path: PathBuf, source: Arc<redb::Error> },
    /// It can't be made or repaired without space; one that is there and was closed well needs none.
    #[error("no space left to open the metadata store {}: free some on its disk and start again", path.display())]
    NoSpaceToOpen { path: PathBuf },
    #[error("the metadata store {} is used by another process", path.display())]
    InUse { path: PathBuf },
    #[error("no space left for the metadata store: free some, the store goes on by itself")]
    NoSpace,
    #[error("the metadata store failed: {source}")]
    Storage { source: Arc<redb::Error> },
    #[error("row {key:?} of the metadata store can't be used: {reason}")]
    Row { key: String, reason: String },
    #[error("a write to the metadata store panicked and was rolled back")]
    Panicked,
    #[error("the metadata store is closed")]
    Closed,
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl DbError {
    /// What `source` means for whoever opens the store at `path`.
    pub(super) fn open(path: &Path, source: redb::Error) -> DbError {
        match DbError::from(source) {
            DbError::NoSpace => DbError::NoSpaceToOpen { path: path.to_owned() },
            DbError::Storage { source } => DbError::Open { path: path.to_owned(), source },
            other => other,
        }
    }

    /// True if the file failed, as opposed to the caller or the rows.
    pub(super) fn is_storage(&self) -> bool {
        matches!(self, DbError::NoSpace | DbError::Storage { .. })
    }
}

macro_rules! from_redb {
    ($($source:ty),*) => {$(
        impl From<$source> for DbError {
            fn from(error: $source) -> DbError {
                match redb::Error::from(error) {
                    redb::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => DbError::NoSpace,
                    redb::Error::Io(e) if e.kind() == io::ErrorKind::QuotaExceeded => DbError::NoSpace,
                    other => DbError::Storage { source: Arc::new(other) },
                }
            }
        }
    )*};
}

from_redb!(
    redb::Error,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError
);
