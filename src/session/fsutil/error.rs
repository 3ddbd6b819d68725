//! [`TransferError`]: why a tree did not get across.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::fs::FsError;
use crate::session::SessionError;
use crate::task::TaskFailed;

/// Bytes of another side's message that are kept.
const MESSAGE: usize = 4 << 10;

/// A transfer failed. Clonable, so that one transfer's end can reach all that wait for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Session(#[from] SessionError),
    /// What the other side says of itself.
    #[error("error from the other side of the transfer: {message}")]
    Peer { message: String },
    #[error("the transfer ended before it was complete")]
    Ended,
    #[error("{path:?} can't be transferred: {reason}")]
    Path { path: String, reason: &'static str },
    #[error("entries out of order: {path:?} after {after:?}")]
    Order { path: String, after: String },
    #[error("invalid link {path:?} to unknown path {target:?}")]
    Link { path: String, target: String },
    #[error("cannot overwrite {path} from {other} with {one} when split option is disabled")]
    Clash { path: String, one: String, other: String },
    #[error("bytes of entry {id}, which was not asked for")]
    NotAsked { id: u32 },
    #[error("packet of type {kind} makes no sense here")]
    Packet { kind: i32 },
    #[error("the transfer has more than {limit} {what}")]
    TooMany { what: &'static str, limit: u64 },
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("can't {operation} {path:?}: {source}")]
    File { operation: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

impl TransferError {
    pub(in crate::session) fn peer(message: &[u8]) -> TransferError {
        let message = String::from_utf8_lossy(&message[..message.len().min(MESSAGE)]).into_owned();
        TransferError::Peer { message }
    }

    pub(super) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> TransferError {
        let path = path.into();
        move |source| TransferError::File { operation, path, source: Arc::new(source) }
    }
}
