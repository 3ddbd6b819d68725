//! [`FailedMounts`]: the file systems of an op that failed.
//!
//! What it wrote stays as it lies, and goes with the last who has the error; only who wants to look at it, or run
//! something on it, makes it a state.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::OnceCell;

use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::MutableRef;

/// For who looks why an op failed. BuildKit's clients find them by their place, which is empty where there is nothing
/// to see.
///
/// | op | `inputs` | `mounts` |
/// |---|---|---|
/// | exec | one per mount | one per mount |
/// | file | one per input of the vertex | one per action: what the failed one changed, and what it copied from if that is another action |
#[derive(Clone, Debug, Default)]
pub struct FailedMounts {
    /// As they were before.
    pub inputs: Vec<Option<ImmutableRef>>,
    /// As the op left them.
    pub mounts: Vec<Option<LeftFiles>>,
}

/// Files after a failure.
#[derive(Clone, Debug)]
pub enum LeftFiles {
    Untouched(ImmutableRef),
    Written(WrittenFiles),
}

/// Files that are removed with the last of these, unless they became a state. Clones are the same.
#[derive(Clone)]
pub struct WrittenFiles(Arc<Inner>);

struct Inner {
    /// Taken by the commit.
    files: Mutex<Option<MutableRef>>,
    state: OnceCell<ImmutableRef>,
}

impl LeftFiles {
    pub(super) fn written(files: MutableRef) -> LeftFiles {
        let (files, state) = (Mutex::new(Some(files)), OnceCell::new());
        LeftFiles::Written(WrittenFiles(Arc::new(Inner { files, state })))
    }

    /// The files as a state, the same for all who ask.
    ///
    /// Not cancellation safe: what was written is lost if it is dropped while it becomes a state.
    pub async fn state(&self) -> Result<ImmutableRef, CacheError> {
        let written = match self {
            LeftFiles::Untouched(state) => return Ok(state.clone()),
            LeftFiles::Written(WrittenFiles(written)) => written,
        };
        let commit = async || {
            let files = written.files.lock().unwrap_or_else(PoisonError::into_inner).take();
            match files {
                Some(files) => files.commit().await,
                None => Err(CacheError::Empty),
            }
        };
        written.state.get_or_try_init(commit).await.cloned()
    }
}

impl fmt::Debug for WrittenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WrittenFiles").field(&self.0.state.get()).finish()
    }
}
