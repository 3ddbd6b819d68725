//! [`ImmutableRef`]: a record in use.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::Cache;
use super::CacheError;
use super::LayerOptions;
use super::live::Hold;
use super::record::BlobChainId;
use super::record::Layer;
use super::record::Part;
use super::record::RecordId;
use super::record::RecordType;
use super::record::Row;
use super::remote::Remote;
use super::stack::Stack;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::ctx::Ctx;
use crate::oci::ChainId;

/// A filesystem state that is used: while one of these lives, its record and those below stay. Clones
/// share the hold.
///
/// It may be lazy, and nobody can tell but by asking: everything but [`ImmutableRef::unlazy`] and the
/// bytes behind [`ImmutableRef::remote`] is answered from metadata.
#[derive(Clone)]
pub struct ImmutableRef(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    cache: Cache,
    hold: Arc<Hold>,
    blob_chain: BlobChainId,
    chain: ChainId,
    created_at: Timestamp,
    description: String,
    record_type: RecordType,
    stack: Stack,
    handlers: DescHandlers,
}

impl ImmutableRef {
    pub(super) fn new(
        cache: Cache,
        hold: Hold,
        row: &Row,
        stack: Stack,
        handlers: DescHandlers,
    ) -> ImmutableRef {
        ImmutableRef(Arc::new(Inner {
            cache,
            hold: Arc::new(hold),
            blob_chain: row.blob_chain,
            chain: row.chain,
            created_at: row.created_at,
            description: row.description.clone(),
            record_type: row.record_type,
            stack,
            handlers,
        }))
    }

    pub fn id(&self) -> RecordId {
        self.0.hold.id()
    }

    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Identity by content: the same for all compressions of the layers.
    pub fn chain(&self) -> ChainId {
        self.0.chain
    }

    /// Identity by blobs.
    pub fn blob_chain(&self) -> BlobChainId {
        self.0.blob_chain
    }

    /// All change sets of the state, bottom first. A merge lists those of its parents.
    pub fn parts(&self) -> Vec<Part> {
        self.0.stack.iter().cloned().collect()
    }

    /// The number of change sets.
    pub fn depth(&self) -> usize {
        self.0.stack.count()
    }

    /// The change sets, to stand on.
    pub(super) fn stack(&self) -> &Stack {
        &self.0.stack
    }

    /// The layers among the change sets that were given as blobs, bottom first.
    pub fn blobs(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        self.0.stack.blobs()
    }

    pub fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    pub fn description(&self) -> &str {
        &self.0.description
    }

    pub fn record_type(&self) -> RecordType {
        self.0.record_type
    }

    /// Who provides the blobs besides their durable origins.
    pub fn handlers(&self) -> &DescHandlers {
        &self.0.handlers
    }

    /// The same state, with further handlers behind those that it has.
    pub fn with_handlers(&self, more: &DescHandlers) -> ImmutableRef {
        let mut inner = Inner::clone(&self.0);
        inner.handlers.extend(more);
        ImmutableRef(Arc::new(inner))
    }

    /// The same state for who brings `first`: before the handlers that it has, which are others'.
    pub fn preferring(&self, first: &DescHandlers) -> ImmutableRef {
        let mut inner = Inner::clone(&self.0);
        let behind = std::mem::replace(&mut inner.handlers, first.clone());
        inner.handlers.extend(&behind.of_others());
        ImmutableRef(Arc::new(inner))
    }

    /// True if some blob that the state was made of is not here.
    pub fn is_lazy(&self) -> bool {
        let content = self.0.cache.content();
        self.blobs().any(|layer| !content.is_resident(&layer.blob))
    }

    /// True if some layer is here neither as a blob nor as files.
    pub fn is_elsewhere(&self) -> Result<bool, CacheError> {
        let without = self.0.cache.0.snapshots.without_files(self.blobs())?;
        Ok(without.into_iter().any(|layer| !self.0.cache.content().is_resident(&layer.blob)))
    }

    /// Makes the blobs of all layers resident, all at the same time, with the rights of `ctx`. They
    /// stay as long as the record.
    ///
    /// Cancellation safe: what was fetched is kept.
    pub async fn unlazy(&self, ctx: &Ctx) -> Result<(), FetchError> {
        let remote = Remote::without_origins(self);
        remote.unlazy(ctx).await
    }

    /// The layers as descriptors, and a provider of their bytes that fetches a blob when it is read.
    /// Blobs of what was made here are made now, unless they were before.
    pub async fn remote(&self, ctx: &Ctx, options: &LayerOptions) -> Result<Remote, CacheError> {
        let layers = self.layers(ctx, options).await?;
        Ok(Remote::of(self, &layers)?)
    }
}

impl fmt::Debug for ImmutableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImmutableRef({}, {} parts)", self.id(), self.depth())
    }
}
