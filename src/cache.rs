//! Filesystem states and their lifetime.
//!
//! A record is a layer on top of another record, a change set that was made here on top of one, or a merge
//! or slice of several; with its ancestors it is a state of a filesystem. Naming or getting a record reads
//! and writes rows only: no request is sent and no bytes are read. [`ImmutableRef`] is a record in use. What
//! needs its files calls [`ImmutableRef::mount`], or [`ImmutableRef::mount_paths`] if it looks at some of them
//! only; what needs its blobs [`ImmutableRef::layers`] or [`ImmutableRef::unlazy`]. A [`MutableRef`] is written
//! to and becomes a record when it is committed.
//!
//! ```text
//! get_by_layers([a, b, c])        merge([x, y])
//!
//!    a <- b <- c                    a <- x
//!    one record each,                      > m     one record that lists its parents
//!    one transaction                b <- y
//! ```
//!
//! # Invariants
//!
//! - A record's row, its lease rows and the rows of what it stands on are written and removed in one
//!   transaction. So is what a [`RecordListener`] keeps about it.
//! - A record that somebody uses, or that another one stands on, is not removed.
//! - A record holds the blob of its own layer, and whatever else it was told to hold, whether they are
//!   resident or not. A lazy record therefore survives a restart and every collection of blobs.
//! - Lookups write nothing that anybody waits for.
//!
//! # Locking
//!
//! See [`live`](self): one mutex over the records in use, held for counts only. All writes are
//! transactions of the one writer.
//!
//! # Crash consistency
//!
//! Removing a record is one transaction; the blobs that it leaves without a lease are the collector's,
//! which finds them after a crash as well. A state whose files may have gone with the power is not given to anybody:
//! `snapshots/durable.rs`.

mod adopt;
mod alone;
mod collect;
mod diff;
mod filter;
mod footing;
mod images;
mod indexes;
mod layers;
mod live;
mod materialize;
mod mutable;
mod paths;
mod plan;
mod prune;
mod record;
mod reference;
mod remote;
mod settle;
mod snapshots;
mod stack;
mod unpack;
mod usage;

#[cfg(test)]
pub(crate) mod tests;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Semaphore;

use crate::content;
use crate::content::ContentError;
use crate::content::ContentStore;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::content::Origin;
use crate::content::Residency;
use crate::db::Db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::fs::FsError;
use crate::oci::Descriptor;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::BootId;
use crate::snapshot::SnapshotError;
use crate::snapshot::Snapshotter;
use crate::task::TaskFailed;
use crate::task::Tasks;

pub use adopt::UnpackedAlone;
pub use filter::Filter;
pub use filter::InvalidFilter;
pub use images::ImageList;
pub use images::NamedImage;
pub use layers::LayerOptions;
pub use layers::OnPacking;
pub use materialize::Tree;
pub use mutable::MutableOptions;
pub use mutable::MutableRef;
pub use paths::Look;
pub use paths::Pattern;
pub use paths::Strange;
pub use paths::Want;
pub use prune::PruneOptions;
pub use record::BlobChainId;
pub use record::InvalidRecordId;
pub use record::Layer;
pub use record::MissingDiffId;
pub use record::Part;
pub use record::RecordId;
pub use record::RecordType;
pub use reference::ImmutableRef;
pub use remote::Remote;
pub use usage::Usage;
pub use usage::UsageOptions;

use indexes::Indexes;
use layers::Packing;
use live::Live;
use materialize::Materializer;
use mutable::InUse;
use plan::Plan;
use record::Kind;
use record::Records;
use record::Row;
use record::Uses;
use snapshots::Snapshots;
use stack::Stack;

/// Layers of one state at most, merges included. Manifests stop far below.
pub const MAX_LAYERS: usize = 16_384;

/// Blobs at most that a record holds besides its layer's: those of the last manifests and configs that
/// named it.
const MAX_COMPANIONS: usize = 32;

/// Is told of every record that is removed, in the transaction that removes it.
pub trait RecordListener: Send + Sync {
    /// Removes what is kept about the record. May run more than once for one removal and must have no
    /// effect but the one on `tx`.
    fn removed(&self, tx: &WriteTx, id: &RecordId) -> Result<(), DbError>;
}

/// The records of this node. Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    db: Db,
    content: ContentStore,
    tasks: Tasks,
    /// A path on the file system whose free space counts.
    root: PathBuf,
    live: Live,
    snapshots: Snapshots,
    files: Materializer,
    indexes: Indexes,
    in_use: InUse,
    packing: Packing,
    listener: OnceLock<Arc<dyn RecordListener>>,
    /// One prune at a time: two would compete for the same records.
    pruning: Semaphore,
}

/// How a record is described when it is made or named again.
#[derive(Clone, Debug, Default)]
pub struct RefOptions {
    /// For people; the first one stays.
    pub description: String,
    /// Replaces [`RecordType::Regular`] only.
    pub record_type: RecordType,
    /// Blobs to hold together with the topmost layer: manifests and the config.
    pub companions: Vec<Digest>,
}

/// A record can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cache record {id} does not exist")]
    NotFound { id: RecordId },
    #[error("nobody provides the bytes of {}", list(digests))]
    NeedsRemoteProvider { digests: Vec<Digest> },
    #[error("a state of {count} layers is over the limit of {MAX_LAYERS}")]
    TooManyLayers { count: usize },
    #[error("a state without layers has no record")]
    Empty,
    #[error("cache record {id} is in use by somebody else")]
    Locked { id: RecordId },
    #[error("the files of {id} are still mounted")]
    Busy { id: RecordId },
    /// The layer has no entries for some directories; if it was not unpacked at all, it links to files of the layers
    /// below it.
    #[error("layer {digest} can't be unpacked without what is below it")]
    NeedsLower { digest: Digest, unpacked: Option<Arc<UnpackedAlone>> },
    #[error("layer {digest} unpacks to {actual} instead of {expected}")]
    WrongDiffId { digest: Digest, expected: DiffId, actual: DiffId },
    #[error("layer {digest} can't be unpacked: {source}")]
    Unpack { digest: Digest, source: Arc<dyn Error + Send + Sync> },
    #[error("a layer's files can't be looked at: {0}")]
    Look(#[from] FsError),
    #[error("a layer can't be made: {source}")]
    Pack { source: Arc<dyn Error + Send + Sync> },
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(", ")
}

/// How much of a record's bytes is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Layers, those below included.
    pub layers: usize,
    /// Layers whose blob or files are here.
    pub resident: usize,
}

impl Cache {
    /// `root` is where the bytes are kept: its file system's free space counts for pruning. What an earlier run left is
    /// cleared up by [`Cache::start_upkeep`].
    pub fn new(
        db: Db,
        content: ContentStore,
        snapshotter: Arc<dyn Snapshotter>,
        tasks: Tasks,
        root: impl Into<PathBuf>,
    ) -> Cache {
        Cache::in_boot(BootId::current(), db, content, snapshotter, tasks, root)
    }

    fn in_boot(
        boot: BootId,
        db: Db,
        content: ContentStore,
        snapshotter: Arc<dyn Snapshotter>,
        tasks: Tasks,
        root: impl Into<PathBuf>,
    ) -> Cache {
        let root: PathBuf = root.into();
        Cache(Arc::new(Inner {
            indexes: Indexes::new(root.join("indexes"), db.clone(), tasks.clone()),
            live: Live::new(db.clone()),
            snapshots: Snapshots::new(snapshotter, db.clone(), tasks.clone(), boot),
            files: Materializer::default(),
            in_use: InUse::default(),
            packing: Packing::default(),
            listener: OnceLock::new(),
            pruning: Semaphore::new(1),
            root,
            db,
            content,
            tasks,
        }))
    }

    /// Sets who is told of removed records. The first call counts.
    pub fn set_listener(&self, listener: Arc<dyn RecordListener>) {
        let _ = self.0.listener.set(listener);
    }

    pub fn content(&self) -> &ContentStore {
        &self.0.content
    }

    /// The record of `layer` on top of `parent`. As [`Cache::get_by_layers`] with one layer.
    pub async fn get_by_blob(
        &self,
        layer: Layer,
        parent: Option<&ImmutableRef>,
        handlers: &DescHandlers,
        options: RefOptions,
    ) -> Result<ImmutableRef, CacheError> {
        self.get_by_layers(vec![layer], parent, handlers, options).await
    }

    /// The record of `layers`, bottom first, on top of `parent`: found, or made with those below it in
    /// one transaction.
    ///
    /// Cancellation safe: a record that was made and not taken is found the next time, or pruned.
    pub async fn get_by_layers(
        &self,
        layers: Vec<Layer>,
        parent: Option<&ImmutableRef>,
        handlers: &DescHandlers,
        options: RefOptions,
    ) -> Result<ImmutableRef, CacheError> {
        let below = parent.map(|parent| parent.stack().clone()).unwrap_or_default();
        check_count(below.count() + layers.len())?;
        let blobs: Vec<Descriptor> = layers.iter().map(|l| l.blob.clone()).collect();
        let plan = Plan::of_layers(layers, parent, options).ok_or(CacheError::Empty)?;
        let stack = below.with(plan.parts());
        let mut all = parent.map(|p| p.handlers().clone()).unwrap_or_default();
        all.extend(handlers);
        self.make(plan, blobs, stack, all).await
    }

    /// The record of `parents` on top of each other, lowest first. One parent is its own merge.
    ///
    /// Cancellation safe, as [`Cache::get_by_layers`].
    pub async fn merge(
        &self,
        parents: &[ImmutableRef],
        options: RefOptions,
    ) -> Result<ImmutableRef, CacheError> {
        check_count(parents.iter().map(ImmutableRef::depth).sum())?;
        match parents {
            [] => Err(CacheError::Empty),
            [only] => Ok(only.clone()),
            [lowest, others @ ..] => {
                let stack = lowest.stack().with(others.iter().flat_map(ImmutableRef::parts));
                let mut handlers = DescHandlers::new();
                parents.iter().for_each(|p| handlers.extend(p.handlers()));
                let plan = Plan::of_merge(parents, options).ok_or(CacheError::Empty)?;
                self.make(plan, Vec::new(), stack, handlers).await
            }
        }
    }

    /// The record of this ID.
    pub fn get(&self, id: &RecordId, handlers: &DescHandlers) -> Result<ImmutableRef, CacheError> {
        let missing = || CacheError::NotFound { id: *id };
        let mut hold = self.0.live.hold(*id).ok_or_else(missing)?;
        let (Walked { row, parts, uses }, here) = self.walk_to_files(id)?.ok_or_else(missing)?;
        if matches!(row.kind, Kind::Mutable { .. }) || !has_all_made(&parts, &here) {
            return Err(missing());
        }
        let lacking = parts.iter().zip(here).filter(|(_, here)| !here).filter_map(|(part, _)| part.blob());
        self.0.check_providers(lacking.map(|l| &l.blob), handlers)?;
        hold.count_use(uses);
        let stack = Stack::default().with(parts);
        Ok(ImmutableRef::new(self.clone(), hold, &row, stack, handlers.clone()))
    }

    /// The blobs of a record's state, bottom first; `None` if there is no such record.
    pub fn blobs(&self, id: &RecordId) -> Result<Option<Vec<Layer>>, CacheError> {
        let walked = self.0.db.read(|tx| walk(tx, id))?;
        Ok(walked.map(|walked| walked.parts.iter().filter_map(Part::blob).cloned().collect()))
    }

    /// For each of `ids` whether there is such a record, whatever became of those that it stands on. One
    /// snapshot, and a row or two of each.
    pub fn have(&self, ids: &[RecordId]) -> Result<Vec<bool>, CacheError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.0.db.read(|tx| {
            let (records, files) = (Records::of(tx)?, self.0.snapshots.among(tx)?);
            let has = |id| match records.kind(id)? {
                None | Some(Kind::Mutable { .. }) => Ok(false),
                Some(Kind::Made { snapshot, .. }) => files.has(&snapshot),
                Some(Kind::Layer { .. } | Kind::Merge { .. } | Kind::Slice { .. }) => Ok(true),
            };
            ids.iter().map(has).collect()
        })?)
    }

    /// How much of a record is here; `None` if there is no such record. Looks at each layer.
    pub fn presence(&self, id: &RecordId) -> Result<Option<Presence>, CacheError> {
        let Some((Walked { parts, .. }, files)) = self.walk_to_files(id)? else { return Ok(None) };
        if !has_all_made(&parts, &files) {
            return Ok(None);
        }
        let resident = |blob: Option<&Layer>| blob.is_none_or(|l| self.0.content.is_resident(&l.blob));
        let resident =
            parts.iter().zip(files).filter(|(part, files)| *files || resident(part.blob())).count();
        Ok(Some(Presence { layers: parts.len(), resident }))
    }

    /// A record, and for each of its change sets whether the files are here. One snapshot for all of it.
    fn walk_to_files(&self, id: &RecordId) -> Result<Option<(Walked, Vec<bool>)>, DbError> {
        self.0.db.read(|tx| {
            let Some(walked) = walk(tx, id)? else { return Ok(None) };
            let here = self.0.snapshots.among(tx)?.have_files(&walked.parts)?;
            Ok(Some((walked, here)))
        })
    }

    /// Finds the planned record or makes it. `blobs` are the planned layers' own.
    async fn make(
        &self,
        plan: Plan,
        blobs: Vec<Descriptor>,
        stack: Stack,
        handlers: DescHandlers,
    ) -> Result<ImmutableRef, CacheError> {
        self.0.check_providers(&blobs, &handlers)?;
        let mut hold = self.0.live.hold_to_make(plan.top());
        let origins = self.0.unknown_origins(blobs, &handlers)?;
        let found = if origins.is_empty() { self.0.db.read(|tx| plan.existing(tx))? } else { None };
        let row = match found {
            Some(row) => row,
            None => {
                let write = self.0.db.write(move |tx| {
                    for (blob, origins) in &origins {
                        content::register(tx, blob, origins)?;
                    }
                    plan.write(tx)
                });
                write.await?
            }
        };
        let uses = self.0.db.read(|tx| Uses::read(tx, &hold.id()))?;
        hold.count_use(uses);
        Ok(ImmutableRef::new(self.clone(), hold, &row, stack, handlers))
    }
}

impl Inner {
    /// Fails with the blobs that can neither be had from this node, nor from a durable origin, nor
    /// from a handler.
    fn check_providers<'b>(
        &self,
        blobs: impl IntoIterator<Item = &'b Descriptor>,
        handlers: &DescHandlers,
    ) -> Result<(), CacheError> {
        let mut missing = Vec::new();
        for blob in blobs {
            let digest = blob.digest;
            if !handlers.contains(&digest) && !missing.contains(&digest) && !self.can_be_had(&digest)? {
                missing.push(digest);
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(CacheError::NeedsRemoteProvider { digests: missing }) }
    }

    /// True if the blob is here, or at an origin that anybody can be asked for it. A client's store
    /// needs the handler of a vertex that knows the client.
    fn can_be_had(&self, digest: &Digest) -> Result<bool, CacheError> {
        let Some(stat) = self.content.stat(digest)? else { return Ok(false) };
        let durable = |o: &Origin| !matches!(o, Origin::SessionStore { .. });
        Ok(stat.residency == Residency::Resident || stat.origins.iter().any(|known| durable(&known.origin)))
    }

    /// What the handlers know of the origins of `blobs` and the store does not.
    fn unknown_origins(
        &self,
        blobs: Vec<Descriptor>,
        handlers: &DescHandlers,
    ) -> Result<Vec<(Descriptor, Vec<Origin>)>, CacheError> {
        let mut unknown = Vec::new();
        for blob in blobs {
            let known = self.content.stat(&blob.digest)?;
            let offered = handlers.get(&blob.digest).iter().filter_map(|h| h.provider.origin());
            let new: Vec<Origin> = match &known {
                Some(stat) => offered.filter(|o| !stat.origins.iter().any(|k| k.origin == *o)).collect(),
                None => offered.collect(),
            };
            if known.is_none() || !new.is_empty() {
                unknown.push((blob, new));
            }
        }
        Ok(unknown)
    }
}

fn check_count(count: usize) -> Result<(), CacheError> {
    if count > MAX_LAYERS { Err(CacheError::TooManyLayers { count }) } else { Ok(()) }
}

/// True if the files of everything that was made here are there; those of layers can be had again.
fn has_all_made(parts: &[Part], here: &[bool]) -> bool {
    parts.iter().zip(here).all(|(part, here)| *here || part.blob().is_some())
}

/// A record with what stands beside it and below it.
struct Walked {
    row: Row,
    /// All change sets of the state, bottom first.
    parts: Vec<Part>,
    uses: Option<Uses>,
}

fn walk(tx: &ReadTx, id: &RecordId) -> Result<Option<Walked>, DbError> {
    /// What is left to be looked at, top first.
    enum Step {
        /// A record with all that it stands on.
        State(RecordId),
        /// Its own change set only.
        Own(RecordId),
    }
    let records = Records::of(tx)?;
    let Some(top) = records.row(id)? else { return Ok(None) };
    let mut parts: Vec<Part> = top.part(id).into_iter().collect();
    let mut stack = Vec::new();
    // The highest is the last one, which is the next to be popped.
    let stand_on = |kind: &Kind, stack: &mut Vec<Step>| match kind {
        Kind::Slice { of } => stack.extend(of.iter().copied().map(Step::Own)),
        kind => stack.extend(kind.parents().iter().copied().map(Step::State)),
    };
    stand_on(&top.kind, &mut stack);
    while let Some(step) = stack.pop() {
        let (Step::State(id) | Step::Own(id)) = step;
        let row = records.below(&id)?.ok_or_else(|| DbError::Row {
            key: id.to_string(),
            reason: "it is missing, and another record stands on it".to_owned(),
        })?;
        parts.extend(row.part(&id));
        // What it stands on is not part of a slice.
        if matches!(step, Step::State(_)) {
            stand_on(&row.kind, &mut stack);
        }
    }
    parts.reverse();
    Ok(Some(Walked { row: top, parts, uses: Uses::read(tx, id)? }))
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}
