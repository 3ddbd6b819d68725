//! [`MutableRef`]: a file system that is written to, until it is committed or dropped.
//!
//! Most live for one step of a build: they have no row, and what a crash leaves of them is removed at
//! start. One that is *kept* (a cache mount) has a row from its first moment, is found by its keys, and
//! is had by one user at a time.
//!
//! # Locking
//!
//! The kept ones that are in use are a set behind a mutex, held for look-ups only.
//!
//! # Crash consistency
//!
//! A commit first settles what was written (`settle.rs`), which ends with a crash as the rest of the step, then makes the
//! snapshot final and writes its record, both rows in one transaction: a crash in between leaves a snapshot without a row, which the next start removes. The record is visible
//! when the commit returns and durable with the next durable commit, as is everything that refers to it. What a power
//! cut takes is in `snapshots/durable.rs`.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use jiff::Timestamp;
use redb::ReadableMultimapTable as _;
use tokio::sync::OnceCell;

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::Look;
use super::Strange;
use super::footing::Footing;
use super::footing::Seen;
use super::live::Hold;
use super::materialize::Tree;
use super::record::BY_KEY;
use super::record::BlobChainId;
use super::record::ChangeSet;
use super::record::Kind;
use super::record::Made;
use super::record::Part;
use super::record::RecordId;
use super::record::RecordType;
use super::record::Row;
use super::settle::Base;
use super::snapshots::Content;
use super::snapshots::Passing;
use super::snapshots::Snapshots;
use super::snapshots::Stored;
use super::snapshots::kept_key;
use super::snapshots::made_key;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::oci::ChainId;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::MountPoint;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;

/// How a file system that is written to is described.
#[derive(Clone, Debug, Default)]
pub struct MutableOptions {
    /// For people.
    pub description: String,
    pub record_type: RecordType,
    /// What it is found by: [`Cache::find_by_key`]. Those of one that is not kept are its commit's.
    pub keys: Vec<String>,
    /// It stays when it is dropped, and can be had again.
    pub keep: bool,
    /// The paths of the parent that the changes look at, or are made at; `None` is all of them. Others may not
    /// show, and layers that say nothing of these paths are not made files. Ignored where the snapshotter can't
    /// put layers on top of each other.
    pub looks: Option<Vec<Look>>,
    /// What to do about layers that decide what is at these paths, and that nobody here knows.
    pub strange: Strange,
}

/// Kept file systems that somebody has.
pub(super) type InUse = Arc<Mutex<HashSet<RecordId>>>;

/// A file system that is written to. One owner; see the module for what dropping it does.
pub struct MutableRef {
    /// `None` once committed.
    inner: Option<Box<Inner>>,
}

struct Inner {
    about: About,
    snapshot: Arc<Passing>,
    tree: OnceCell<Arc<Tree>>,
    footing: Footing,
    base: Base,
    /// Keeps the record of a kept one.
    hold: Option<Hold>,
    _in_use: Option<Use>,
}

/// What its record says.
struct About {
    cache: Cache,
    id: RecordId,
    parent: Option<ImmutableRef>,
    options: MutableOptions,
    created_at: Timestamp,
}

/// The right to use a kept file system.
struct Use {
    id: RecordId,
    in_use: InUse,
}

impl Use {
    fn begin(id: RecordId, in_use: &InUse) -> Option<Use> {
        lock(in_use).insert(id).then(|| Use { id, in_use: Arc::clone(in_use) })
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        lock(&self.in_use).remove(&self.id);
    }
}

fn lock(in_use: &Mutex<HashSet<RecordId>>) -> MutexGuard<'_, HashSet<RecordId>> {
    in_use.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// A file system with the files of `parent`, which are made if they are not here, to be written to.
    ///
    /// Cancellation safe: what was begun is removed.
    pub async fn create(
        &self,
        ctx: &Ctx,
        parent: Option<&ImmutableRef>,
        options: MutableOptions,
    ) -> Result<MutableRef, CacheError> {
        let snapshots = &self.0.snapshots;
        let (footing, base) = match (parent, &options.looks) {
            (Some(parent), Some(looks)) if parent.can_be_partial()? => {
                let (parts, handlers) = (parent.parts(), parent.handlers());
                let holds = self.stand_on_paths(ctx, &parts, handlers, looks, options.strange);
                (Box::pin(holds).await?.into(), Base::Paths { parent: parent.clone(), ctx: ctx.clone() })
            }
            (Some(parent), _) => {
                let footing = Box::pin(self.stand_on(ctx, parent.stack(), parent.handlers())).await?;
                (footing, Base::Whole)
            }
            (None, _) => (Footing::default(), Base::Whole),
        };
        let parents = footing.parents().clone();
        let about = About {
            cache: self.clone(),
            id: RecordId::random(),
            parent: parent.cloned(),
            options,
            created_at: Timestamp::now(),
        };
        let (id, keep) = (about.id, about.options.keep);
        let (hold, in_use) = match keep {
            true => (Some(self.0.live.hold_to_make(id)), Use::begin(id, &self.0.in_use)),
            false => (None, None),
        };
        let snapshot = match keep {
            true => Box::pin(self.keep(&about, parents)).await?,
            false => snapshots.prepare(snapshots.passing("active"), parents).await?,
        };
        let tree = OnceCell::new();
        let snapshot = Arc::new(snapshot);
        let mut inner = Inner { about, snapshot, tree, footing, base, hold, _in_use: in_use };
        if let Some(hold) = &mut inner.hold {
            hold.count_use(None);
        }
        Ok(MutableRef { inner: Some(Box::new(inner)) })
    }

    /// Makes the snapshot of one that is kept. Goes on to its end if it is dropped: what it made is found by its keys.
    async fn keep(&self, about: &About, parents: Parents) -> Result<Passing, CacheError> {
        let (cache, id) = (self.clone(), about.id);
        let row = about.row(Kind::Mutable {
            snapshot: kept_key(&id),
            parent: about.parent.as_ref().map(ImmutableRef::id),
        });
        let work = self.0.tasks.spawn("keep a file system", async move {
            let snapshots = &cache.0.snapshots;
            let passing = snapshots.to_be_kept(kept_key(&id));
            let stored = Stored::of_kept(id, snapshots.boot());
            let (key, written) = (passing.key().clone(), row.clone());
            // The rows come first: a snapshot without one is removed at start.
            let rows = cache.0.db.write_visible(move |tx| {
                stored.write(tx, &key)?;
                written.insert(tx, &id)
            });
            rows.await?;
            let key = passing.key().clone();
            let prepared = match failpoint::hit(Failpoint::KeptNoted) {
                Ok(()) => snapshots.prepare(passing, parents).await,
                Err(injected) => Err(SnapshotError::from(injected).into()),
            };
            match prepared {
                Ok(passing) => {
                    passing.settle();
                    Ok(passing)
                }
                Err(error) => {
                    cache.0.db.write_behind(move |tx| {
                        Snapshots::forget_row(tx, &key)?;
                        row.remove(tx, &id)
                    });
                    Err(error)
                }
            }
        });
        work.await?
    }

    /// The kept file system of this ID; [`CacheError::Locked`] while somebody else has it.
    pub async fn get_mutable(&self, ctx: &Ctx, id: &RecordId) -> Result<MutableRef, CacheError> {
        let missing = || CacheError::NotFound { id: *id };
        let mut hold = self.0.live.hold(*id).ok_or_else(missing)?;
        let in_use = Use::begin(*id, &self.0.in_use).ok_or(CacheError::Locked { id: *id })?;
        let (row, uses) = self.0.db.read(|tx| Ok((Row::read(tx, id)?, super::Uses::read(tx, id)?)))?;
        let row = row.ok_or_else(missing)?;
        let Kind::Mutable { snapshot, parent } = row.kind else { return Err(missing()) };
        if !self.0.snapshots.is_present(&snapshot)? {
            return Err(missing());
        }
        let parent = parent.map(|id| self.get(&id, &DescHandlers::new())).transpose()?;
        let footing = match &parent {
            Some(parent) => self.stand_on(ctx, parent.stack(), parent.handlers()).await?,
            None => Footing::default(),
        };
        if self.0.snapshots.snapshotter().stat(&snapshot).await.is_err() {
            return Err(missing());
        }
        hold.count_use(uses);
        let snapshot = Arc::new(self.0.snapshots.kept(snapshot, *id).await?);
        let options = MutableOptions {
            description: row.description,
            record_type: row.record_type,
            keys: row.keys,
            keep: true,
            looks: None,
            strange: Strange::Open,
        };
        Ok(MutableRef {
            inner: Some(Box::new(Inner {
                about: About { cache: self.clone(), id: *id, parent, options, created_at: row.created_at },
                snapshot,
                tree: OnceCell::new(),
                footing,
                base: Base::Whole,
                hold: Some(hold),
                _in_use: Some(in_use),
            })),
        })
    }

    /// The records that were given this key, the newest first.
    pub fn find_by_key(&self, key: &str) -> Result<Vec<RecordId>, CacheError> {
        let found = self.0.db.read(|tx| {
            let Some(table) = tx.multimap(BY_KEY)? else { return Ok(Vec::new()) };
            let mut found = Vec::new();
            for id in table.get(key)? {
                if let Ok(id) = id?.value().parse::<RecordId>()
                    && let Some(row) = Row::read(tx, &id)?
                {
                    found.push((row.created_at, id));
                }
            }
            Ok(found)
        });
        let mut found = found?;
        found.sort_unstable();
        Ok(found.into_iter().rev().map(|(_, id)| id).collect())
    }
}

impl Cache {
    /// Takes away the keys that begin with `prefix` and of which `is_meant` holds, which gets what follows. Records
    /// that had them are removed if nobody uses them and nothing stands on them; others are pruned later.
    ///
    /// Cancellation safe: the keys go together, or none.
    pub async fn forget_keys(
        &self,
        prefix: &str,
        is_meant: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<(), CacheError> {
        let prefix = prefix.to_owned();
        let forgotten = self.0.db.write_visible(move |tx| {
            let mut meant: Vec<(String, RecordId)> = Vec::new();
            {
                let by_key = tx.multimap(BY_KEY)?;
                for entry in by_key.range(prefix.as_str()..)? {
                    let (key, ids) = entry?;
                    let Some(rest) = key.value().strip_prefix(prefix.as_str()) else { break };
                    if is_meant(rest) {
                        for id in ids {
                            let id = id?.value().parse();
                            meant.extend(id.map(|id| (key.value().to_owned(), id)));
                        }
                    }
                }
            }
            for (key, id) in &meant {
                Row::forget_key(tx, id, key)?;
            }
            Ok(meant.into_iter().map(|(_, id)| id).collect::<Vec<_>>())
        });
        let forgotten = forgotten.await?;
        if !forgotten.is_empty() {
            self.remove(forgotten).await?;
        }
        Ok(())
    }

    /// The keys that a record was given; none if there is no such record.
    pub fn keys(&self, id: &RecordId) -> Result<Vec<String>, CacheError> {
        Ok(self.0.db.read(|tx| Row::read(tx, id))?.map(|row| row.keys).unwrap_or_default())
    }
}

impl MutableRef {
    pub fn id(&self) -> RecordId {
        self.inner().about.id
    }

    /// Adds a key that its commit is found by: [`Cache::find_by_key`].
    pub fn add_key(&mut self, key: impl Into<String>) {
        if let Some(inner) = &mut self.inner {
            inner.about.options.keys.push(key.into());
        }
    }

    /// The state that it was made on.
    pub fn parent(&self) -> Option<&ImmutableRef> {
        self.inner().about.parent.as_ref()
    }

    pub(super) fn snapshot(&self) -> &SnapshotKey {
        self.inner().snapshot.key()
    }

    /// The files, to be read and written. All who ask share one mount, which ends with the commit.
    pub async fn mount(&self) -> Result<Arc<Tree>, CacheError> {
        self.mount_with(Vec::new()).await
    }

    /// The files, with mount points where they are missing, if that can be had: see [`Snapshotter::mount_with`]. They are
    /// not committed. The first who mounts decides.
    ///
    /// [`Snapshotter::mount_with`]: crate::snapshot::Snapshotter::mount_with
    pub async fn mount_with(&self, points: Vec<MountPoint>) -> Result<Arc<Tree>, CacheError> {
        let inner = self.inner();
        let mount = async {
            let (cache, footing) = (inner.about.cache.clone(), inner.footing.clone());
            let (tasks, snapshot) = (cache.0.tasks.clone(), Arc::clone(&inner.snapshot));
            let work = tasks.spawn("mount files", async move {
                let snapshotter = cache.0.snapshots.snapshotter();
                let mounted = snapshotter.mount_with(snapshot.key(), &points).await?;
                Ok::<_, CacheError>(Arc::new(Tree::new(mounted, snapshot, footing)))
            });
            work.await?
        };
        inner.tree.get_or_try_init(|| mount).await.cloned()
    }

    /// Makes what was written the change set of a new state. Nobody may have its files mounted any more.
    ///
    /// Needs layers of the parent only where a directory was made anew that [`MutableOptions::looks`] were not into.
    ///
    /// Dropped in mid-way it is as if it had not been committed, or as if the result had been dropped.
    pub async fn commit(mut self) -> Result<ImmutableRef, CacheError> {
        let Some(mut inner) = self.inner.take() else { return Err(CacheError::Empty) };
        if let Some(tree) = inner.tree.take() {
            let busy = Arc::strong_count(&tree) > 1;
            drop(tree);
            if busy {
                return Err(CacheError::Busy { id: inner.about.id });
            }
        }
        inner.commit().await
    }

    fn inner(&self) -> &Inner {
        self.inner.as_ref().expect("only a commit takes it, and that takes the ref as well")
    }
}

impl About {
    fn row(&self, kind: Kind) -> Row {
        let below = self.parent.as_ref();
        let own = DiffId(Digest::sha256(format!("made {}", self.id)));
        Row {
            kind,
            blob_chain: BlobChainId::made(&self.id),
            chain: below.map_or(ChainId::of(own), |parent| parent.chain().then(own)),
            created_at: self.created_at,
            description: self.options.description.clone(),
            record_type: self.options.record_type,
            companions: Vec::new(),
            keys: self.options.keys.clone(),
        }
    }
}

impl Inner {
    async fn commit(&mut self) -> Result<ImmutableRef, CacheError> {
        let (cache, id) = (self.about.cache.clone(), self.about.id);
        let snapshot = made_key(&id);
        let row = self.about.row(Kind::Made {
            snapshot: snapshot.clone(),
            parent: self.about.parent.as_ref().map(ImmutableRef::id),
        });
        let mut hold = match self.hold.take() {
            Some(hold) => hold,
            None => cache.0.live.hold_to_make(id),
        };
        let written = row.clone();
        let since = self.about.created_at.into();
        Box::pin(cache.settle_changes(&self.snapshot, since, &self.footing, &self.base)).await?;
        let snapshots = &cache.0.snapshots;
        let now = snapshots.generation();
        snapshots
            .commit(&snapshot, self.snapshot.key(), Content::Made(id), move |tx| written.insert(tx, &id))
            .await?;
        self.snapshot.settle();
        hold.count_use(None);
        let parents = self.footing.parents().with(snapshot.clone());
        let made = Made { snapshot, created_at: row.created_at, description: row.description.clone() };
        let parent = self.about.parent.as_ref();
        let below = parent.map(|p| p.stack().clone()).unwrap_or_default();
        let stack = below.with([Part { record: id, set: ChangeSet::Made(Arc::new(made)) }]);
        // What is below is held still, and so is the record of what was made.
        let when = if parent.is_none() { Some(now) } else { self.footing.when(now) };
        if let Some(when) = when {
            stack.note(Seen { parents, when });
        }
        let handlers = parent.map(|p| p.handlers().clone()).unwrap_or_default();
        Ok(ImmutableRef::new(cache.clone(), hold, &row, stack, handlers))
    }
}

impl fmt::Debug for MutableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner {
            Some(inner) => write!(f, "MutableRef({})", inner.about.id),
            None => f.write_str("MutableRef(committed)"),
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MutableRef({})", self.about.id)
    }
}

/// Where the files of a tree are, for those who only need the path.
impl AsRef<Path> for Tree {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

/// Snapshots of mutable records, which are removed with them.
pub(super) fn own_snapshot(kind: &Kind) -> Option<&SnapshotKey> {
    match kind {
        Kind::Made { snapshot, .. } | Kind::Mutable { snapshot, .. } => Some(snapshot),
        _ => None,
    }
}
