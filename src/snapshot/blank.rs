//! [`Blank`]: the directory of the next snapshot that is written to, made while nobody waits.
//!
//! To make a directory takes a large part of a millisecond where others change the same disk, and a step waits for two of
//! them before anything can be mounted.
//!
//! # Locking
//!
//! One mutex over its path, never held over I/O.
//!
//! # Crash consistency
//!
//! It does not outlast the process: where it lies is emptied at the start.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::SnapshotError;
use super::spots::SPARE;
use super::store::FS;
use super::store::make_tree;
use super::store::rename;

/// At most one is there.
#[derive(Debug)]
pub(super) struct Blank {
    directory: PathBuf,
    next: AtomicU64,
    ready: Mutex<Option<PathBuf>>,
}

impl Blank {
    pub(super) fn new(root: &Path) -> Blank {
        Blank { directory: root.join(SPARE), next: AtomicU64::new(0), ready: Mutex::default() }
    }

    /// Moves it to `path`. False if there is none, or it can't be had.
    pub(super) fn take(&self, path: &Path) -> bool {
        let Some(ready) = self.ready().take() else { return false };
        let moved = rename(&ready, path);
        if let Err(error) = &moved {
            tracing::debug!(blank = %ready.display(), %error, "a directory that was made ahead is not used");
        }
        moved.is_ok()
    }

    /// Makes one unless there is one. What fails is made by who needs it.
    pub(super) fn refill(&self) {
        if self.ready().is_some() {
            return;
        }
        let name = format!("blank-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.directory.join(name);
        let make = || {
            fs::create_dir(&path).map_err(SnapshotError::io("make", &path))?;
            make_tree(&path)
        };
        let unused = match make() {
            // Another may have been made at the same time.
            Ok(_) => self.ready().replace(path),
            Err(error) => {
                tracing::debug!(%error, "a directory is not made ahead");
                Some(path)
            }
        };
        if let Some(unused) = unused {
            // It may have no tree yet. What can't be removed is at the next start.
            let _ = fs::remove_dir(unused.join(FS));
            let _ = fs::remove_dir(&unused);
        }
    }

    fn ready(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_there_at_most_and_serves_once() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(SPARE)).expect("made");
        let blank = Blank::new(dir.path());
        let taken = dir.path().join("taken");
        assert!(!blank.take(&taken));
        blank.refill();
        blank.refill();
        let count = || fs::read_dir(dir.path().join(SPARE)).expect("listed").count();
        assert_eq!(count(), 1);
        assert!(blank.take(&taken));
        assert!(taken.join("fs").is_dir());
        assert_eq!(count(), 0);
        assert!(!blank.take(&dir.path().join("other")));
        // One that could be made by half.
        fs::create_dir(dir.path().join(SPARE).join("blank-1")).expect("made");
        blank.refill();
        assert!(!blank.take(&dir.path().join("other")));
        assert_eq!(count(), 0);
        // A disk that takes none.
        fs::remove_dir(dir.path().join(SPARE)).expect("removed");
        blank.refill();
        assert!(!blank.take(&dir.path().join("other")));
    }
}
