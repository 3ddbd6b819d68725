//! [`Operate`]: the seam between the solver and what its vertices do.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::cache_map::CacheMap;
use super::graph::Vertex;
use super::lineage::CacheOptGetter;
use crate::cache::CacheError;
use crate::content::FetchError;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;
use crate::oci::Digest;

/// Runs the ops of vertices and loads results of earlier runs. `Worker` is the real one; the solver's
/// tests have a model.
///
/// # Guarantees asked of an implementation
///
/// Each call honours the cancellation of its context and then fails with [`OpError::Cancelled`] (or
/// succeeds, if it was done). A cancelled call leaves nothing that a repeated call could not use. The
/// sessions of the context may change while a call runs: jobs come and go.
pub trait Operate: Send + Sync + 'static {
    /// A result. A clone holds it as well. The empty file system is `None` everywhere.
    type Output: Clone + Send + Sync + 'static;

    /// Cache map number `index` of the vertex; those before it are known and not complete. Reading no
    /// input and, if it can, no bytes.
    fn cache_map(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        index: usize,
    ) -> impl Future<Output = Result<CacheMap<Self::Output>, OpError>> + Send;

    /// The cache map of a vertex that needs nothing but itself for it, and so has but one; `None` for one
    /// that has to be asked by [`Operate::cache_map`]. Computes only: it is called where nobody may wait.
    fn own_cache_map(&self, vertex: &Vertex) -> Option<CacheMap<Self::Output>> {
        let _ = vertex;
        None
    }

    /// Runs the op on one result per input, in the vertex's order, for one result per output.
    fn run(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        inputs: &[Option<Self::Output>],
    ) -> impl Future<Output = Result<Vec<Option<Self::Output>>, OpError>> + Send;

    /// Gives up what ops keep for vertices like this one beside their results. Asked for each vertex that ignores
    /// the cache, before anything of its graph runs.
    fn forget_kept(&self, vertex: &Vertex) -> impl Future<Output = Result<(), OpError>> + Send;

    /// Loads a result by its name. Metadata only: no request and no bytes.
    ///
    /// Blobs that are neither local nor have a usable origin need a provider: `opts` finds the
    /// handlers that the vertex and its ancestors offer.
    fn load(
        &self,
        ctx: &Ctx,
        id: &ResultId,
        opts: &CacheOptGetter,
    ) -> impl Future<Output = Result<Option<Self::Output>, LoadError>> + Send;

    /// How near the result is. Reads metadata only, and does not block for long.
    fn presence(&self, id: &ResultId) -> Presence;

    /// For each result whether it is still there. What a result stands on need not be looked at: loading it
    /// tells.
    fn have(&self, ids: &[&ResultId]) -> Vec<bool> {
        ids.iter().map(|id| self.presence(id) > Presence::Missing).collect()
    }

    /// A result that another vertex of the same key made, as this vertex would have it: with what the
    /// vertex and its ancestors offer, so that its bytes are asked for with the rights of whoever
    /// wanted this one. Changes memory only.
    fn endow(&self, output: Self::Output, opts: &CacheOptGetter) -> Self::Output;

    /// The durable name of a result; `None` if it has none and can't be found again.
    fn result_id(&self, output: &Option<Self::Output>) -> Option<ResultId>;
}

/// Durable name of a result: the ID of its cache record, or the word for the empty file system.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultId(pub String);

impl fmt::Display for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How near a result is, from the farthest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Presence {
    /// There is no such result any more.
    Missing,
    /// All of its bytes would have to be fetched.
    Remote,
    /// Some of its bytes are here.
    Partial,
    /// Nothing would have to be fetched.
    Local,
}

/// What an op failed with. Cheap to clone: every job that waits gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpError {
    #[error("cancelled")]
    Cancelled,
    /// The op was fine, but bytes of an input are nowhere to be had. The input can be made anew.
    #[error("input {input} has lost its bytes: {source}")]
    InputGone { input: usize, digests: Vec<Digest>, source: Arc<dyn Error + Send + Sync> },
    /// A kind of operation, attribute or content that this daemon can't do.
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("{source}")]
    Failed { source: Arc<dyn Error + Send + Sync> },
}

impl OpError {
    /// Wraps the error of a lower row; callers can downcast it again.
    pub fn failed(source: impl Error + Send + Sync + 'static) -> OpError {
        OpError::Failed { source: Arc::new(source) }
    }

    /// What failed while the files of input `input` were made or read. Bytes that are nowhere to be had
    /// are the input's fault, which can be made anew.
    pub fn of_input(input: usize, error: CacheError) -> OpError {
        let lost = match &error {
            CacheError::Cancelled | CacheError::Fetch(FetchError::Cancelled { .. }) => {
                return OpError::Cancelled;
            }
            CacheError::Fetch(fetch) if fetch.cannot_be_had() => vec![fetch.digest()],
            // Made files that are gone have no digest yet.
            CacheError::NotFound { .. } => Vec::new(),
            _ => return OpError::failed(error),
        };
        OpError::InputGone { input, digests: lost, source: Arc::new(error) }
    }

    pub fn is_cancelled(&self) -> bool {
        matches!(self, OpError::Cancelled)
    }
}

impl From<Cancelled> for OpError {
    fn from(_: Cancelled) -> OpError {
        OpError::Cancelled
    }
}

/// Why a result could not be loaded. Never the end of a build: there is the next record, and the op.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the record is gone")]
    Missing,
    #[error("nobody provides the bytes of {digests:?}")]
    NeedsRemoteProvider { digests: Vec<Digest> },
    #[error(transparent)]
    Failed(#[from] OpError),
}
