//! A state becomes files: [`ImmutableRef::extract`] and [`ImmutableRef::mount`].
//!
//! ```text
//! a snapshotter that stacks            one that doesn't
//!
//! parts   a    b    c                  parts   a -> b -> c
//!         |    |    |                          |    |    |
//! layer-a layer-b made-c               chain-a <- chain-ab <- made-c or chain-abc
//!    all unpacked at the same time        one on top of the other
//! ```
//!
//! # Invariants
//!
//! - A snapshot is committed only after the digest of its blob and its diff ID held.
//! - One unpacking per snapshot, whatever asks. Each asker fetches with its own rights first: the blob
//!   is shared by the content store, the unpacking here.
//! - A local snapshot never demands its blob. Who may not have the blob does not get the files either.
//!
//! # Cancellation
//!
//! Every method may be dropped. An unpacking ends when nobody waits for it; what it wrote is removed,
//! the blob stays.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;

use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::adopt::UnpackedAlone;
use super::footing::Footing;
use super::footing::Seen;
use super::indexes::Of;
use super::record::ChangeSet;
use super::record::Layer;
use super::record::Part;
use super::record::RecordId;
use super::snapshots::Content;
use super::snapshots::Passing;
use super::snapshots::SnapshotHold;
use super::snapshots::chain_key;
use super::snapshots::layer_key;
use super::stack::Stack;
use super::unpack::Below;
use super::unpack::Source;
use crate::content::BlobReader;
use crate::content::DescHandler;
use crate::content::DescHandlers;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::oci::ChainId;
use crate::progress::TransferProgress;
use crate::snapshot::Mounted;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotKey;
use crate::task::Flights;

/// Layers of one state that are fetched and unpacked at the same time.
pub(super) const CONCURRENT: usize = 16;

/// Bytes of parts of layers that are in memory at most, whatever number of them is asked for.
pub(super) const MAX_PARTS: usize = 32 << 20;

/// A layer's snapshot, or what was unpacked of one that needs those below it.
type Unpacked = Result<Arc<SnapshotHold>, Option<Arc<UnpackedAlone>>>;

/// What is shared by those who make states into files.
pub(super) struct Materializer {
    pub(super) unpacking: Flights<SnapshotKey, (), Result<(), CacheError>>,
    mounting: Flights<RecordId, (), Result<Arc<Tree>, CacheError>>,
    /// States that are mounted to be read.
    trees: Mutex<HashMap<RecordId, Weak<Tree>>>,
    /// Kilobytes of parts of layers that may be in memory.
    pub(super) parts: Semaphore,
    /// How often layers were surveyed, for tests of linearity.
    pub(super) surveys: AtomicU64,
}

impl Default for Materializer {
    fn default() -> Materializer {
        Materializer {
            unpacking: Flights::default(),
            mounting: Flights::default(),
            trees: Mutex::default(),
            parts: Semaphore::new(MAX_PARTS >> 10),
            surveys: AtomicU64::new(0),
        }
    }
}

/// The files of a state, or of one that is being made, below a directory. Unmounted when dropped.
pub struct Tree {
    /// `None` only while it is dropped.
    mounted: Option<Mounted>,
    /// Goes with the last that has it, once nothing is mounted.
    _snapshot: Arc<Passing>,
    /// Keeps what is below.
    _below: Footing,
}

impl Tree {
    pub(super) fn new(mounted: Mounted, snapshot: Arc<Passing>, below: Footing) -> Tree {
        Tree { mounted: Some(mounted), _snapshot: snapshot, _below: below }
    }

    /// The root of the files.
    pub fn path(&self) -> &Path {
        self.mounted.as_ref().map_or(Path::new(""), Mounted::path)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Unmounted before the snapshot goes.
        drop(self.mounted.take());
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.path().display())
    }
}

impl ImmutableRef {
    /// Makes the files of the state, with the rights of `ctx`. They stay until they are pruned.
    ///
    /// Cancellation safe: what was fetched, and what was unpacked whole, is kept.
    pub async fn extract(&self, ctx: &Ctx) -> Result<(), CacheError> {
        self.cache().stand_on(ctx, self.stack(), self.handlers()).await?;
        Ok(())
    }

    /// The files of the state, to be read. Who mounts the same state at the same time shares the mount.
    ///
    /// Cancellation safe.
    pub async fn mount(&self, ctx: &Ctx) -> Result<Arc<Tree>, CacheError> {
        let cache = self.cache();
        let footing = cache.stand_on(ctx, self.stack(), self.handlers()).await?;
        if let Some(tree) = cache.0.files.mounted(&self.id()) {
            return Ok(tree);
        }
        let (id, work) = (self.id(), cache.clone());
        let start = |_: CancellationToken| {
            let mount = async move {
                // Somebody may have been faster.
                if let Some(tree) = work.0.files.mounted(&id) {
                    return Ok(tree);
                }
                let tree = Arc::new(work.view(footing).await?);
                work.0.files.remember(id, &tree);
                Ok(tree)
            };
            (Arc::new(()), mount)
        };
        let run = cache.0.files.mounting.join(&cache.0.tasks, id, start, |()| ());
        ctx.run(run).await.map_err(|_| CacheError::Cancelled)??
    }
}

impl Materializer {
    fn mounted(&self, id: &RecordId) -> Option<Arc<Tree>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner).get(id)?.upgrade()
    }

    fn remember(&self, id: RecordId, tree: &Arc<Tree>) {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.retain(|_, tree| tree.strong_count() > 0);
        trees.insert(id, Arc::downgrade(tree));
    }
}

impl Cache {
    /// Mounts a view of the snapshots. Goes on to its end if it is dropped, and then unmounts it.
    pub(super) async fn view(&self, footing: impl Into<Footing>) -> Result<Tree, CacheError> {
        let (snapshots, footing) = (self.0.snapshots.clone(), footing.into());
        let work = self.0.tasks.spawn("view files", async move {
            let snapshot = Arc::new(snapshots.passing("view"));
            let snapshotter = snapshots.snapshotter();
            snapshotter.view(snapshot.key(), footing.parents()).await?;
            let mounted = snapshotter.mount(snapshot.key(), true).await?;
            Ok(Tree::new(mounted, snapshot, footing))
        });
        work.await?
    }

    /// The snapshots that a snapshot must have as parents to have the files of `stack`, made where they
    /// are missing.
    pub(super) async fn stand_on(
        &self,
        ctx: &Ctx,
        stack: &Stack,
        handlers: &DescHandlers,
    ) -> Result<Footing, CacheError> {
        if !self.0.snapshots.stacks() {
            let parts: Vec<Part> = stack.iter().cloned().collect();
            return Ok(self.chain(ctx, &parts, handlers).await?.into_iter().collect());
        }
        let snapshots = &self.0.snapshots;
        let (now, known, below) = loop {
            let now = snapshots.generation();
            let known = stack.known(now);
            let list = snapshots.hold_all(known.parents).await;
            // Held too late, if something was removed meanwhile.
            if snapshots.generation() == now {
                break (now, known.count, list);
            }
        };
        let below = Footing::whole(below, now);
        let above: Vec<&Part> = stack.above(known).collect();
        let blobs = |parts: &[&Part]| parts.iter().filter(|part| part.blob().is_some()).count();
        // Files are for those who may have the blobs.
        let seen = stack.blobs().take(stack.blob_count() - blobs(&above));
        let admitted: Vec<_> = seen.map(|layer| self.admit(ctx, layer, handlers).boxed()).collect();
        let mut admitted = stream::iter(admitted).buffered(CONCURRENT);
        while admitted.try_next().await?.is_some() {}
        drop(admitted);
        if above.is_empty() {
            return Ok(below);
        }
        let chains = match above.iter().rposition(|part| part.blob().is_some()) {
            Some(highest) => chains(stack.iter().take(known + highest + 1)).split_off(known),
            None => Vec::new(),
        };
        let holds = self.stack(ctx, &below, &above, &chains, handlers).await?;
        let parents = holds.iter().fold(below.parents().clone(), |on, hold| on.with(hold.key().clone()));
        let list = snapshots.hold_all(parents.clone()).await;
        // All of these are held since they were seen.
        let when = snapshots.generation().since(now);
        stack.note(Seen { parents, when });
        Ok(Footing::whole(list, when))
    }

    /// One snapshot per part, all made at the same time, on top of `lower`. A part that may have to be unpacked has its
    /// chain, which is that of all below it.
    async fn stack(
        &self,
        ctx: &Ctx,
        lower: &Footing,
        parts: &[&Part],
        chains: &[ChainId],
        handlers: &DescHandlers,
    ) -> Result<Vec<Arc<SnapshotHold>>, CacheError> {
        let mut holds = self.made_snapshots(parts).await?;
        let making = parts.iter().zip(chains).enumerate().filter(|(_, (part, _))| part.blob().is_some());
        let making: Vec<_> = making
            .map(|(n, (part, chain))| {
                let made = self.part_snapshot(ctx, part, *chain, handlers);
                let made = made.map(move |made| match made {
                    Err(CacheError::NeedsLower { unpacked, .. }) => Ok((n, Err(unpacked))),
                    made => made.map(|hold| (n, Ok(hold))),
                });
                made.boxed()
            })
            .collect();
        let mut making = stream::iter(making).buffered(CONCURRENT);
        while let Some((n, hold)) = making.try_next().await? {
            holds[n] = Some(hold);
        }
        drop(making);
        // Some layer may need what is below it, and comes to lie on that once it is there.
        let mut below: Vec<Arc<SnapshotHold>> = Vec::with_capacity(parts.len());
        for (n, (part, hold)) in parts.iter().zip(holds).enumerate() {
            let hold = match (hold, &part.set) {
                (Some(Ok(hold)), _) => hold,
                (Some(Err(unpacked)), ChangeSet::Blob(layer)) => {
                    let here = chains[n];
                    let target = Target {
                        key: chain_key(here),
                        of: Content::Chain(part.record),
                        parents: Parents::default(),
                        lower: lower.with(below.clone()),
                        alone: false,
                        index: Some(Of::Chain(here)),
                    };
                    self.lay_over(ctx, layer, handlers, target, unpacked).await?
                }
                _ => return Err(CacheError::NotFound { id: part.record }),
            };
            below.push(hold);
        }
        Ok(below)
    }

    /// Those of the parts that were made here, of which nothing but a look at all of them is to be done.
    async fn made_snapshots(&self, parts: &[&Part]) -> Result<Vec<Option<Unpacked>>, CacheError> {
        let mut holds = Vec::with_capacity(parts.len());
        for part in parts {
            holds.push(match &part.set {
                ChangeSet::Made(made) => {
                    Some(Ok(Arc::new(self.0.snapshots.hold(made.snapshot.clone()).await)))
                }
                ChangeSet::Blob(_) => None,
            });
        }
        match self.0.snapshots.first_missing(parts.iter().copied())? {
            Some(part) => Err(CacheError::NotFound { id: part.record }),
            None => Ok(holds),
        }
    }

    /// The snapshot of a part's own files. `chain` is that of the part and those below it; a layer that can't be
    /// unpacked without them and was not yet is [`CacheError::NeedsLower`].
    pub(super) async fn part_snapshot(
        &self,
        ctx: &Ctx,
        part: &Part,
        chain: ChainId,
        handlers: &DescHandlers,
    ) -> Result<Arc<SnapshotHold>, CacheError> {
        let layer = match &part.set {
            ChangeSet::Made(made) => {
                let hold = Arc::new(self.0.snapshots.hold(made.snapshot.clone()).await);
                let here = self.0.snapshots.is_present(hold.key())?;
                return if here { Ok(hold) } else { Err(CacheError::NotFound { id: part.record }) };
            }
            ChangeSet::Blob(layer) => layer,
        };
        let over = Arc::new(self.0.snapshots.hold(chain_key(chain)).await);
        if self.0.snapshots.is_present(over.key())? {
            // Files are for those who may have the blob.
            self.admit(ctx, layer, handlers).await?;
            return Ok(over);
        }
        let target = Target {
            key: layer_key(layer.diff_id),
            of: Content::Layer(layer.diff_id),
            parents: Parents::default(),
            lower: Footing::default(),
            alone: true,
            index: Some(Of::Layer(layer.diff_id)),
        };
        self.unpack_into(ctx, layer, handlers, target).await
    }

    /// The snapshot of the whole tree; `None` for no part.
    async fn chain(
        &self,
        ctx: &Ctx,
        parts: &[Part],
        handlers: &DescHandlers,
    ) -> Result<Option<Arc<SnapshotHold>>, CacheError> {
        // All blobs at once, before they are unpacked one after the other.
        let lacking = self.lacking(parts)?;
        let fetches: Vec<_> =
            lacking.into_iter().map(|layer| self.fetch(ctx, layer, handlers).boxed()).collect();
        let mut fetches = stream::iter(fetches).buffer_unordered(CONCURRENT);
        while fetches.try_next().await?.is_some() {}
        drop(fetches);
        let mut below: Option<Arc<SnapshotHold>> = None;
        let mut chain: Option<ChainId> = None;
        for part in parts {
            let id = part.identity();
            let here = chain.map_or(ChainId::of(id), |below| below.then(id));
            chain = Some(here);
            let parents: Parents = below.iter().map(|hold| hold.key().clone()).collect();
            let target = Target {
                key: chain_key(here),
                of: Content::Chain(part.record),
                parents: parents.clone(),
                lower: below.clone().into_iter().collect(),
                alone: false,
                index: None,
            };
            let hold = match &part.set {
                ChangeSet::Blob(layer) => self.unpack_into(ctx, layer, handlers, target).await?,
                ChangeSet::Made(made) => {
                    let hold = Arc::new(self.0.snapshots.hold(made.snapshot.clone()).await);
                    if !self.0.snapshots.is_present(hold.key())? {
                        return Err(CacheError::NotFound { id: part.record });
                    }
                    let stat = self.0.snapshots.snapshotter().stat(hold.key()).await?;
                    if stat.parents == parents { hold } else { self.replay(ctx, part, hold, target).await? }
                }
            };
            below = Some(hold);
        }
        Ok(below)
    }

    /// The layers above the highest whole tree that is here.
    fn lacking<'p>(&self, parts: &'p [Part]) -> Result<Vec<&'p Layer>, CacheError> {
        let chains = chains(parts.iter());
        let mut above = chains.len();
        while above > 0 && !self.0.snapshots.is_present(&chain_key(chains[above - 1]))? {
            above -= 1;
        }
        Ok(parts[above..].iter().filter_map(Part::blob).collect())
    }

    /// Fetches a blob with the rights of `ctx`.
    async fn fetch(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
    ) -> Result<BlobReader, CacheError> {
        Ok(self.0.content.reader(ctx, &layer.blob, handlers).await?)
    }

    /// The snapshot that `target` says, with the layer unpacked in it.
    pub(super) async fn unpack_into(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
        target: Target,
    ) -> Result<Arc<SnapshotHold>, CacheError> {
        let index = target.index;
        let hold = Arc::new(self.0.snapshots.hold(target.key.clone()).await);
        if self.0.snapshots.is_present(&target.key)? {
            // Files are for those who may have the blob.
            self.admit(ctx, layer, handlers).await?;
            return Ok(hold);
        }
        let (sender, mut followers) = mpsc::unbounded_channel();
        let mut follow = |follower| drop(sender.send(follower));
        let mut fetch = Box::pin(self.0.content.follow(ctx, &layer.blob, handlers, &mut follow));
        let (follower, held) = tokio::select! {
            biased;
            Some(follower) = followers.recv() => (follower, None),
            held = &mut fetch => match (held?, followers.try_recv()) {
                // It is small, and was there before anybody looked.
                (held, Ok(follower)) => (follower, Some(held)),
                (held, Err(_)) => {
                    let reader = self.0.content.open_held(held)?;
                    self.unpack_from(ctx, layer, handlers, target, Source::File(reader)).await?;
                    self.note_index(index, layer)?;
                    return Ok(hold);
                }
            },
        };
        // Unpacked while it arrives. What comes of that counts only once the digest held and the asker was let
        // in; nobody has to wait until the blob's own file is on the disk.
        let unpacked = {
            let unpack = self.unpack_from(ctx, layer, handlers, target.clone(), Source::Follower(follower));
            let mut unpack = Box::pin(unpack);
            if let Some(_held) = held {
                unpack.await
            } else {
                tokio::select! {
                    held = &mut fetch => {
                        let _held = held?;
                        unpack.await
                    }
                    unpacked = &mut unpack => {
                        fetch.await.map(drop)?;
                        unpacked
                    }
                }
            }
        };
        if matches!(unpacked, Err(CacheError::Unpack { .. } | CacheError::WrongDiffId { .. })) {
            // The bytes may have been wrong ones, which were thrown away since.
            let reader = self.fetch(ctx, layer, handlers).await?;
            self.unpack_from(ctx, layer, handlers, target, Source::File(reader)).await?;
        } else {
            unpacked?;
        }
        self.note_index(index, layer)?;
        Ok(hold)
    }

    /// Notes that there is an index of a layer, for those who may have its blob where it was had.
    pub(super) fn note_index(&self, index: Option<Of>, layer: &Layer) -> Result<(), CacheError> {
        let Some(of) = index else { return Ok(()) };
        let stat = self.0.content.stat(&layer.blob.digest)?;
        let origins = stat.map(|stat| stat.origins).unwrap_or_default();
        let registries = origins
            .into_iter()
            .filter(|known| known.proven && matches!(known.origin, Origin::Registry { .. }))
            .map(|known| known.origin);
        self.0.indexes.note(of, layer.blob.digest, registries);
        Ok(())
    }

    async fn unpack_from(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
        target: Target,
        source: Source,
    ) -> Result<(), CacheError> {
        let _extracting = Extracting::start(handlers.get(&layer.blob.digest));
        let (cache, layer, index) = (self.clone(), layer.clone(), target.index);
        let done = self.make_snapshot(ctx, target, move |key, below, token| async move {
            cache.unpack(&layer, source, &key, below, index, token).await
        });
        done.await
    }

    /// Runs `fill` on a new active snapshot, and commits it; once, whatever asks.
    pub(super) async fn make_snapshot<F, W>(
        &self,
        ctx: &Ctx,
        target: Target,
        fill: F,
    ) -> Result<(), CacheError>
    where
        F: FnOnce(SnapshotKey, Below, CancellationToken) -> W + Send + 'static,
        W: Future<Output = Result<(), CacheError>> + Send + 'static,
    {
        let cache = self.clone();
        let key = target.key.clone();
        let start = |token: CancellationToken| {
            let work = async move {
                let snapshots = &cache.0.snapshots;
                if snapshots.is_present(&target.key)? {
                    return Ok(());
                }
                let below = match (target.alone, target.lower.is_empty()) {
                    (true, _) => Below::Unknown,
                    (false, true) => Below::Nothing,
                    (false, false) => Below::Tree(cache.view(target.lower).await?),
                };
                let active = snapshots.prepare(snapshots.passing("new"), target.parents).await?;
                match fill(active.key().clone(), below, token).await {
                    Err(CacheError::NeedsLower { digest, unpacked: Some(alone) }) => {
                        alone.keep(active);
                        return Err(CacheError::NeedsLower { digest, unpacked: Some(alone) });
                    }
                    filled => filled?,
                }
                snapshots.commit(&target.key, active.key(), target.of, |_| Ok(())).await?;
                active.settle();
                Ok(())
            };
            (Arc::new(()), work)
        };
        let run = self.0.files.unpacking.join(&self.0.tasks, key, start, |()| ());
        ctx.run(run).await.map_err(|_| CacheError::Cancelled)??
    }
}

/// The vertices that named a layer are told that it is unpacked while this lives, whichever step is the cause.
struct Extracting(Vec<Arc<dyn TransferProgress>>);

impl Extracting {
    fn start(handlers: &[DescHandler]) -> Extracting {
        let told: Vec<_> = handlers.iter().filter_map(|handler| handler.extraction.clone()).collect();
        for progress in &told {
            progress.start(0);
        }
        Extracting(told)
    }
}

impl Drop for Extracting {
    fn drop(&mut self) {
        for progress in &self.0 {
            progress.complete();
        }
    }
}

/// The chain of each part with those below it.
pub(super) fn chains<'p>(parts: impl Iterator<Item = &'p Part>) -> Vec<ChainId> {
    let chains = parts.scan(None::<ChainId>, |chain, part| {
        let id = part.identity();
        let here = chain.map_or(ChainId::of(id), |below| below.then(id));
        *chain = Some(here);
        Some(here)
    });
    chains.collect()
}

/// A snapshot that is to be made.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) key: SnapshotKey,
    pub(super) of: Content,
    /// Of a whole tree: the one that it stands on.
    pub(super) parents: Parents,
    /// What lies below its files.
    pub(super) lower: Footing,
    /// It is to lie on anything: what is below doesn't count.
    pub(super) alone: bool,
    /// What the index of its files is of, if one is kept.
    pub(super) index: Option<Of>,
}
