//! What went wrong, doing what, to which guest path.

use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

/// An operation beneath a [`Root`](super::Root) failed. Paths are guest paths: relative to the root.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FsError {
    #[error("can't {operation} {}: there is no such file or directory", path.display())]
    NotFound { operation: &'static str, path: PathBuf },
    #[error("can't {operation} {}: it exists", path.display())]
    Exists { operation: &'static str, path: PathBuf },
    #[error("can't {operation} {}: it is not {expected}", path.display())]
    WrongKind { operation: &'static str, path: PathBuf, expected: &'static str },
    /// The path can't name what the operation needs, whatever the file system holds.
    #[error("can't {operation} {}: {reason}", path.display())]
    InvalidPath { operation: &'static str, path: PathBuf, reason: &'static str },
    #[error("can't {operation} {}: no space left: free some and try again", path.display())]
    NoSpace { operation: &'static str, path: PathBuf },
    /// The file system, or the rights of this process, don't allow it.
    #[error("can't {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: Errno },
}

impl FsError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, FsError::NotFound { .. })
    }

    pub fn is_exists(&self) -> bool {
        matches!(self, FsError::Exists { .. })
    }

    /// The guest path.
    pub fn path(&self) -> &Path {
        match self {
            FsError::NotFound { path, .. }
            | FsError::Exists { path, .. }
            | FsError::WrongKind { path, .. }
            | FsError::InvalidPath { path, .. }
            | FsError::NoSpace { path, .. }
            | FsError::Io { path, .. } => path,
        }
    }

    /// For `map_err`: names what was tried on what.
    pub(super) fn on(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> FsError {
        let path = path.to_path_buf();
        move |errno| match errno {
            Errno::NOENT => FsError::NotFound { operation, path },
            Errno::EXIST => FsError::Exists { operation, path },
            Errno::NOTDIR => FsError::WrongKind { operation, path, expected: "a directory" },
            Errno::ISDIR => FsError::WrongKind { operation, path, expected: "other than a directory" },
            Errno::NOSPC | Errno::DQUOT => FsError::NoSpace { operation, path },
            Errno::NAMETOOLONG => {
                FsError::InvalidPath { operation, path, reason: "the path or a name in it is too long" }
            }
            Errno::LOOP => {
                FsError::InvalidPath { operation, path, reason: "too many levels of symbolic links" }
            }
            source => FsError::Io { operation, path, source },
        }
    }
}
