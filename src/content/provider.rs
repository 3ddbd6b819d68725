//! [`Provider`]: how to get the bytes of a blob; [`DescHandler`]: a provider as a vertex hands it on.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;

use super::Origin;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::progress::TransferProgress;

/// A way to the bytes of blobs.
///
/// Guarantees: `open` and `probe` use the rights of `ctx` and of nobody else; they end soon after
/// `ctx` is cancelled; the stream may outlive the sessions of `ctx`. Bytes need not be verified.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Opens the blob at `offset`. A provider that can't start there starts earlier and says where.
    async fn open(&self, ctx: &Ctx, descriptor: &Descriptor, offset: u64) -> Result<Opened, ProvideError>;

    /// The bytes of a part of the blob, all of them and unverified; `None` if this provider has no way to give a
    /// part without the rest. The caller has room for them.
    async fn read_range(
        &self,
        _ctx: &Ctx,
        _descriptor: &Descriptor,
        _range: &Range<u64>,
    ) -> Result<Option<Bytes>, ProvideError> {
        Ok(None)
    }

    /// Finds out whether `ctx` may have the blob, without its bytes. A yes counts only where the blob was
    /// seen before.
    async fn probe(&self, ctx: &Ctx, descriptor: &Descriptor) -> Result<(), ProvideError>;

    /// What to note so that the blob can be had again without this provider.
    fn origin(&self) -> Option<Origin>;

    /// True if `ctx` is known to be let in at the origin, so that it needs no probe for what is proven
    /// to be there.
    fn vouches_for(&self, _ctx: &Ctx) -> bool {
        true
    }
}

/// Finds the provider of a durable origin; `None` if this node has no way there.
pub trait Connect: fmt::Debug + Send + Sync {
    fn provider(&self, origin: &Origin) -> Option<Arc<dyn Provider>>;
}

/// A blob's bytes on their way.
pub struct Opened {
    /// Where the body begins, at most the offset that was asked for.
    pub offset: u64,
    pub body: Pin<Box<dyn Body>>,
}

/// The bytes from an offset to the end of a blob, unverified.
pub trait Body: Stream<Item = Result<Bytes, ProvideError>> + Send {
    /// Tells the provider that the bytes did not have the blob's digest, so that it takes another way
    /// next time if it has one.
    fn condemn(&self) {}
}

impl Body for ByteStream {}

pub type ByteStream = BoxStream<'static, Result<Bytes, ProvideError>>;

impl Opened {
    /// Of a provider that has no other way.
    pub fn new(
        offset: u64,
        stream: impl Stream<Item = Result<Bytes, ProvideError>> + Send + 'static,
    ) -> Opened {
        let stream: ByteStream = Box::pin(stream);
        Opened { offset, body: Box::pin(stream) }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opened({})", self.offset)
    }
}

/// What lies behind a refusal, shared by all who are told of it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// A provider could not give a blob.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProvideError {
    /// It is not there.
    #[error("not found: {cause}")]
    Gone { cause: Cause },
    /// It is not for this request's credentials.
    #[error("not authorized: {cause}")]
    Unauthorized { cause: Cause },
    /// The provider can't be used now.
    #[error("unreachable: {cause}")]
    Unreachable { cause: Cause },
    /// The provider breaks its own protocol.
    #[error("corrupt: {cause}")]
    Corrupt { cause: Cause },
    #[error("cancelled")]
    Cancelled,
}

impl ProvideError {
    pub fn gone(cause: impl Into<Box<dyn Error + Send + Sync>>) -> ProvideError {
        ProvideError::Gone { cause: cause.into().into() }
    }

    pub fn unauthorized(cause: impl Into<Box<dyn Error + Send + Sync>>) -> ProvideError {
        ProvideError::Unauthorized { cause: cause.into().into() }
    }

    pub fn unreachable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> ProvideError {
        ProvideError::Unreachable { cause: cause.into().into() }
    }

    pub fn corrupt(cause: impl Into<Box<dyn Error + Send + Sync>>) -> ProvideError {
        ProvideError::Corrupt { cause: cause.into().into() }
    }
}

/// A vertex's way to one blob: the provider, and where to report when its bytes move.
#[derive(Clone, Debug)]
pub struct DescHandler {
    pub provider: Arc<dyn Provider>,
    /// Reported to whoever moves the bytes, under the vertex that named the blob.
    pub progress: Option<Arc<dyn TransferProgress>>,
    /// The same for who unpacks them.
    pub extraction: Option<Arc<dyn TransferProgress>>,
    /// Brought by somebody else than who asks with it: its place is not for errors.
    pub by_others: bool,
}

impl DescHandler {
    pub fn new(provider: Arc<dyn Provider>) -> DescHandler {
        DescHandler { provider, progress: None, extraction: None, by_others: false }
    }

    pub fn with_progress(self, progress: Arc<dyn TransferProgress>) -> DescHandler {
        DescHandler { progress: Some(progress), ..self }
    }

    pub fn with_extraction(self, extraction: Arc<dyn TransferProgress>) -> DescHandler {
        DescHandler { extraction: Some(extraction), ..self }
    }
}

/// The handlers of many blobs. A blob has one for each vertex that offers it, in the order to try.
#[derive(Clone, Default, Debug)]
pub struct DescHandlers(HashMap<Digest, Vec<DescHandler>>);

impl DescHandlers {
    pub fn new() -> DescHandlers {
        DescHandlers::default()
    }

    /// Adds a handler behind those that are there; the same provider counts once.
    pub fn add(&mut self, digest: Digest, handler: DescHandler) {
        let handlers = self.0.entry(digest).or_default();
        if !handlers.iter().any(|there| Arc::ptr_eq(&there.provider, &handler.provider)) {
            handlers.push(handler);
        }
    }

    /// Adds all of `other` behind those that are there.
    pub fn extend(&mut self, other: &DescHandlers) {
        for (digest, handlers) in &other.0 {
            for handler in handlers {
                self.add(*digest, handler.clone());
            }
        }
    }

    /// The same handlers for somebody who did not bring them.
    pub fn of_others(mut self) -> DescHandlers {
        self.0.values_mut().flatten().for_each(|handler| handler.by_others = true);
        self
    }

    pub fn get(&self, digest: &Digest) -> &[DescHandler] {
        self.0.get(digest).map_or(&[], Vec::as_slice)
    }

    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }

    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.0.keys()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
