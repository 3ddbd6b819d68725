//! One daemon a root.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// The lock on a root. The kernel drops it with the process, however that ends, so the file may stay.
#[derive(Debug)]
#[must_use = "the root is free again when this is dropped"]
pub struct RootLock {
    _file: File,
}

/// A root can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("could not make the root {path:?}")]
    Root { path: PathBuf, source: io::Error },
    #[error("could not open the lock {path:?}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the root {root:?} is in use by another daemon{}: stop that one, or choose another root with --root",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held { root: PathBuf, holder: Option<u32> },
}

impl RootLock {
    /// Makes the root if it is not there and takes it, or fails at once.
    ///
    /// The file is `buildkitd`'s own, so that the two never share a root either.
    pub fn take(root: &Path) -> Result<RootLock, LockError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|source| LockError::Root { path: root.to_owned(), source })?;
        let path = root.join("buildkitd.lock");
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let open = |source| LockError::Open { path: path.clone(), source };
        let mut file = opened.map_err(open)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { root: root.to_owned(), holder });
            }
            Err(e) => return Err(open(e.into())),
        }
        match name_holder(&file) {
            // The lock is taken all the same; only a second daemon is not told who has it.
            Err(e) if is_no_space(&e) => {
                tracing::warn!(path = %path.display(), "no space for the process ID")
            }
            named => named.map_err(open)?,
        }
        Ok(RootLock { _file: file })
    }
}

/// Writes the process ID over an earlier one: a disk that is full has no block for a new one.
fn name_holder(file: &File) -> io::Result<()> {
    let text = format!("{}\n", std::process::id());
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// True if an error says that the disk is full, or as full as it may be.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_taken_once_and_free_again_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/root");
        let lock = RootLock::take(&root).unwrap();
        let refused = RootLock::take(&root).unwrap_err();
        assert!(matches!(refused, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()));
        assert!(refused.to_string().contains("in use by another daemon (process "), "{refused}");
        drop(lock);
        drop(RootLock::take(&root).unwrap());
    }
}
