//! Why a blob could not be had, and why the store could not do something.

use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::Cause;
use super::Origin;
use super::ProvideError;
use crate::db::DbError;
use crate::failpoint::Injected;
use crate::oci::Digest;
use crate::task::TaskFailed;

/// The bytes of a blob could not be had. Cloned to each of those who wait for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Every origin said that it doesn't have the blob, or there is none.
    #[error("blob {digest} is gone: {}", list(tried))]
    Gone { digest: Digest, tried: Vec<Refusal> },
    #[error("not authorized to get blob {digest} from {}: {cause}", place(origin))]
    Unauthorized { digest: Digest, origin: Option<Origin>, cause: Cause },
    #[error("can't get blob {digest} from {}: {cause}", place(origin))]
    Unreachable { digest: Digest, origin: Option<Origin>, cause: Cause },
    /// The bytes are not those of the digest, and no other origin has them.
    #[error("blob {digest} from {} is corrupt: {cause}", place(origin))]
    Corrupt { digest: Digest, origin: Option<Origin>, cause: Cause },
    /// The descriptor that was asked for has a wrong size.
    #[error("blob {digest} has {actual} bytes, its descriptor says {expected}")]
    WrongSize { digest: Digest, expected: u64, actual: u64 },
    #[error("blob {digest} has {size} bytes, more than the {limit} that are allowed here")]
    TooLarge { digest: Digest, size: u64, limit: u64 },
    #[error("no space left for blob {digest}: free some and try again")]
    NoSpace { digest: Digest },
    #[error("the content store failed on blob {digest}: {source}")]
    Store { digest: Digest, source: ContentError },
    #[error("the fetch of blob {digest} was cancelled")]
    Cancelled { digest: Digest },
}

impl FetchError {
    /// True if the bytes can't be had from anywhere, so that making them anew may help. False for
    /// faults of this node and for cancellation.
    pub fn cannot_be_had(&self) -> bool {
        match self {
            FetchError::Gone { .. }
            | FetchError::Unauthorized { .. }
            | FetchError::Unreachable { .. }
            | FetchError::Corrupt { .. }
            | FetchError::WrongSize { .. } => true,
            FetchError::TooLarge { .. }
            | FetchError::NoSpace { .. }
            | FetchError::Store { .. }
            | FetchError::Cancelled { .. } => false,
        }
    }

    /// The blob that could not be had.
    pub fn digest(&self) -> Digest {
        match self {
            FetchError::Gone { digest, .. }
            | FetchError::Unauthorized { digest, .. }
            | FetchError::Unreachable { digest, .. }
            | FetchError::Corrupt { digest, .. }
            | FetchError::WrongSize { digest, .. }
            | FetchError::TooLarge { digest, .. }
            | FetchError::NoSpace { digest }
            | FetchError::Store { digest, .. }
            | FetchError::Cancelled { digest } => *digest,
        }
    }

    pub(super) fn store(digest: Digest, source: ContentError) -> FetchError {
        match source {
            ContentError::NoSpace => FetchError::NoSpace { digest },
            ContentError::Db { source: DbError::NoSpace } => FetchError::NoSpace { digest },
            source => FetchError::Store { digest, source },
        }
    }

    /// What to tell someone all of whose candidates refused: the first refusal that says more than
    /// that the blob is not there. Of places that it did not bring itself only if there is none that it
    /// did, and without their names: whose they are is not for everybody.
    pub(super) fn refused(digest: Digest, refusals: Vec<Refusal>) -> FetchError {
        let (own, others): (Vec<_>, Vec<_>) = refusals.into_iter().partition(|refusal| refusal.own);
        let tried =
            if own.is_empty() { others.into_iter().map(Refusal::without_names).collect() } else { own };
        let telling = tried.iter().find(|r| !matches!(r.error, ProvideError::Gone { .. }));
        let Some(Refusal { origin, error, .. }) = telling.cloned() else {
            return FetchError::Gone { digest, tried };
        };
        match error {
            ProvideError::Unauthorized { cause } => FetchError::Unauthorized { digest, origin, cause },
            ProvideError::Corrupt { cause } => FetchError::Corrupt { digest, origin, cause },
            ProvideError::Gone { cause } | ProvideError::Unreachable { cause } => {
                FetchError::Unreachable { digest, origin, cause }
            }
            ProvideError::Cancelled => FetchError::Cancelled { digest },
        }
    }
}

/// One candidate's answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub origin: Option<Origin>,
    /// Whoever asked brought the place itself.
    pub own: bool,
    pub error: ProvideError,
}

impl Refusal {
    /// The kind of the answer, without what it says.
    fn without_names(self) -> Refusal {
        let cause = "it was asked for where this node knows it from";
        let error = match self.error {
            ProvideError::Gone { .. } => ProvideError::gone(cause),
            ProvideError::Unauthorized { .. } => ProvideError::unauthorized(cause),
            ProvideError::Unreachable { .. } => ProvideError::unreachable(cause),
            ProvideError::Corrupt { .. } => ProvideError::corrupt(cause),
            ProvideError::Cancelled => ProvideError::Cancelled,
        };
        Refusal { origin: None, own: false, error }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", place(&self.origin), self.error)
    }
}

fn place(origin: &Option<Origin>) -> String {
    origin.as_ref().map_or_else(|| "its provider".to_owned(), Origin::to_string)
}

fn list(tried: &[Refusal]) -> String {
    if tried.is_empty() {
        return "no origin of it is known".to_owned();
    }
    tried.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; ")
}

/// The store itself could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ContentError {
    #[error("no space left in the content store: free some and try again")]
    NoSpace,
    #[error("can't {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error(transparent)]
    Db {
        #[from]
        source: DbError,
    },
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl ContentError {
    /// For `map_err`: names what was tried on what.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContentError {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ContentError::NoSpace,
            _ => ContentError::Io { action, path, source: Arc::new(source) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(repository: &str, own: bool, error: ProvideError) -> Refusal {
        Refusal { origin: Some(Origin::registry("r.example", repository)), own, error }
    }

    #[test]
    fn a_place_that_others_brought_is_never_told() {
        let digest = Digest::sha256("b");
        let theirs = || refusal("theirs", false, ProvideError::unauthorized("r.example/theirs is private"));
        let told =
            FetchError::refused(digest, vec![theirs(), refusal("ours", true, ProvideError::gone("no"))]);
        assert!(
            matches!(told, FetchError::Gone { .. }),
            "what was brought says that it is not there: {told}"
        );
        assert!(told.to_string().contains("r.example/ours"), "{told}");
        let alone = FetchError::refused(digest, vec![theirs()]);
        assert!(matches!(alone, FetchError::Unauthorized { origin: None, .. }), "{alone}");
        for error in [told, alone] {
            assert!(!format!("{error} {error:?}").contains("theirs"), "{error:?}");
        }
    }
}
