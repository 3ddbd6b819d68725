//! [`HttpError`]: why a file of a web server can't be had.

use std::io;
use std::sync::Arc;

use crate::cache::CacheError;
use crate::ctx::Cancelled;
use crate::fs::FsError;
use crate::oci::Digest;
use crate::ops::OpError;
use crate::registry::TlsError;
use crate::session::SessionError;
use crate::task::TaskFailed;

/// A file of a web server can't be had. Addresses are shown without what may be a secret in them.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{address:?} is not the address of a file")]
    Address { address: String },
    #[error("{address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("{address}: invalid response status {status}")]
    Status { address: String, status: u16 },
    #[error("{address}: not modified, compared with a file that was not asked about")]
    NotModified { address: String },
    #[error("{address}: it redirects more than {limit} times, or to {to:?}")]
    Redirect { address: String, to: String, limit: usize },
    #[error("digest mismatch for {address}: {actual} (expected: {expected})")]
    Checksum { address: String, actual: Digest, expected: Digest },
    #[error("{address}: more than {limit} bytes")]
    TooLarge { address: String, limit: u64 },
    #[error("{address}: it is not in gzip, as the server says: {reason}")]
    Encoding { address: String, reason: String },
    #[error("failed to retrieve HTTP auth secret {name}: {reason}")]
    Secret { name: String, reason: String },
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    #[error("can't write {name:?}: {source}")]
    Write { name: String, source: Arc<io::Error> },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("{source}")]
    Cache { source: CacheError },
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error("cancelled")]
    Cancelled,
}

impl From<CacheError> for HttpError {
    fn from(source: CacheError) -> HttpError {
        match source {
            CacheError::Cancelled => HttpError::Cancelled,
            source => HttpError::Cache { source },
        }
    }
}

impl From<Cancelled> for HttpError {
    fn from(_: Cancelled) -> HttpError {
        HttpError::Cancelled
    }
}

impl From<HttpError> for OpError {
    fn from(error: HttpError) -> OpError {
        match error {
            HttpError::Cancelled => OpError::Cancelled,
            HttpError::Unsupported { what } => OpError::Unsupported { what: what.to_owned() },
            error => OpError::failed(error),
        }
    }
}
