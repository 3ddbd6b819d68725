//! [`BlobBody`]: the bytes of a blob for who reads them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;

use super::RegistryError;
use super::client::Shared;
use crate::oci::Digest;

/// Bytes of a blob from an offset to its end, exactly as many as its descriptor says; fewer or more
/// are an error. Retries, resumption and fall-back happen inside. Unverified.
///
/// Keeps a place in the host's download lane while it is open and not between two tries.
#[must_use]
pub struct BlobBody {
    offset: u64,
    stream: BoxStream<'static, Result<Bytes, RegistryError>>,
    served: Arc<Served>,
}

impl BlobBody {
    pub(super) fn new(
        offset: u64,
        stream: BoxStream<'static, Result<Bytes, RegistryError>>,
        served: Arc<Served>,
    ) -> BlobBody {
        BlobBody { offset, stream, served }
    }

    /// Offset of the first byte, the one that was asked for.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// To be called when the bytes did not have the blob's digest: those who served them are asked
    /// last from now on, so that another endpoint gets a chance.
    pub fn condemn(&self) {
        self.served.condemn();
    }

    /// The same after the stream was taken apart.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBody(from {})", self.offset)
    }
}

/// Who served the bytes of a [`BlobBody`].
pub struct Served {
    shared: Arc<Shared>,
    digest: Digest,
    by: Mutex<Vec<String>>,
}

impl Served {
    pub(super) fn new(shared: Arc<Shared>, digest: Digest) -> Served {
        Served { shared, digest, by: Mutex::default() }
    }

    /// As [`BlobBody::condemn`].
    pub fn condemn(&self) {
        for authority in self.by.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            self.shared.condemn(authority, &self.digest);
        }
    }

    pub(super) fn add(&self, authority: &str) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        if !by.iter().any(|known| known == authority) {
            by.push(authority.to_owned());
        }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({})", self.digest)
    }
}
