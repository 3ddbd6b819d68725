//! [`Snapshots`]: the directories behind records, and which of them are in use.
//!
//! A snapshot is named by what is in it: `layer-<diff ID>` for a layer's own files, `part-<digest>` for some of them,
//! `chain-<digest>` for a whole tree (where the snapshotter can't put layers on top of each other, or a layer can't be
//! unpacked alone), `made-<record>` for a change set that was made here.
//!
//! # Invariants
//!
//! - A row names every committed snapshot, and every one that is kept to be written to. One without a row was left
//!   by a crash, or by a row that could not be written or was lost when the database failed: it goes after the next
//!   start, soon after the failure (tried until it works: space may have to come back first), or when something else
//!   comes in its place.
//! - A row is believed if its snapshot was synced, or in the boot in which it was made (`durable.rs`).
//! - A layer's, a part's or a chain's snapshot can be made again and may go when nobody uses it. A made one goes with its
//!   record only.
//! - A snapshot is *held* or *doomed*, never both: see `live.rs`, which does the same for records. What a state stands on
//!   is held as one list; who dooms something, which is rare, looks at all of these.
//! - Of what is held nothing goes but by a failure of the database, which is told by another [`Generation`].
//!
//! # Locking
//!
//! One mutex, for look-ups and counts only.
//!
//! # Cancellation
//!
//! Making, mounting and committing snapshots are tasks that go on to their end: who leaves in the middle drops what
//! came of it, and that is then removed.
//!
//! # Crash consistency
//!
//! Making: first the snapshot, then its row; one that is kept the other way round, as its row says that it is to stay.
//! Removing: first the row, then the snapshot. None of this waits for the disk: see `durable.rs`.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use redb::ReadOnlyTable;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use super::CacheError;
use super::durable::Writing;
use super::record::ChangeSet;
use super::record::Layer;
use super::record::Part;
use super::record::RecordId;
use crate::db;
use crate::db::Db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::oci::Algorithm;
use crate::oci::ChainId;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::BootId;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;
use crate::snapshot::SnapshotUsage;
use crate::snapshot::Snapshotter;
use crate::task::Backoff;
use crate::task::Tasks;

/// [`Stored`] as JSON by snapshot.
pub(super) const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_snapshots");

/// What the names of snapshots begin with that have some of a layer's files.
const PART: &str = "part-";

/// What is known of a snapshot that stays.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Bytes on disk. Of one that is kept nobody knows but who looks: see [`Snapshots::kept_sizes`].
    pub(super) bytes: u64,
    pub(super) of: Content,
    /// The boot in which it was made, or written to, until it is synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unsynced: Option<BootId>,
}

impl Stored {
    /// True if all that was written of it is there.
    pub(super) fn is_whole(&self, boot: &BootId) -> bool {
        self.unsynced.as_ref().is_none_or(|unsynced| unsynced == boot)
    }
}

/// Whose files a snapshot has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Content {
    Layer(DiffId),
    /// Some of a layer's files, for looks at them. Nobody needs it but who has it.
    Part(DiffId),
    /// Of the state of this record, or of one that it stands on.
    Chain(RecordId),
    Made(RecordId),
    /// Written to time and again.
    Kept(RecordId),
}

impl Content {
    /// The record that goes if the files are lost: nothing can make them again.
    pub(super) fn only_copy_of(&self) -> Option<RecordId> {
        match self {
            Content::Made(record) | Content::Kept(record) => Some(*record),
            Content::Layer(_) | Content::Part(_) | Content::Chain(_) => None,
        }
    }
}

/// Bytes on disk, by whose files they are.
#[derive(Default, Debug)]
pub(super) struct Sizes {
    /// Of a layer's files, and of parts of it.
    pub(super) layers: HashMap<DiffId, u64>,
    /// Of what was made, and of states that were unpacked as a whole.
    pub(super) records: HashMap<RecordId, u64>,
}

#[derive(Clone)]
pub(super) struct Snapshots(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) db: Db,
    pub(super) tasks: Tasks,
    pub(super) boot: BootId,
    /// In every temporary name of this process, and of no other.
    pub(super) run: String,
    next: AtomicU64,
    state: Mutex<State>,
    /// Some snapshot is no longer doomed, or gone.
    absolved: Notify,
    /// Something is there to be synced.
    pub(super) unsynced: Notify,
    /// Something may be there without a row.
    pub(super) littered: Notify,
    pub(super) checkpointing: Semaphore,
    /// One clears away what nobody needs at a time: two would leave to each other what neither removes.
    pub(super) clearing: Semaphore,
    pub(super) syncs: AtomicU64,
    /// Rows that were looked up by what is to be stood on, for tests of linearity.
    looked: AtomicU64,
    /// Of the database.
    failures: watch::Receiver<u64>,
}

/// Rows of snapshots that nobody held may have gone when this is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Generation {
    /// Times that something was doomed.
    removals: u64,
    /// Times that the database failed: rows that were not on the disk yet are lost.
    failures: u64,
}

impl Generation {
    /// This one, for snapshots that have been held since `seen`.
    pub(super) fn since(self, seen: Generation) -> Generation {
        Generation { failures: seen.failures, ..self }
    }
}

#[derive(Default)]
pub(super) struct State {
    held: HashMap<SnapshotKey, usize>,
    /// What is held as a whole.
    lists: HashMap<u64, Parents>,
    doomed: HashSet<SnapshotKey>,
    removals: u64,
    /// Of this boot, and not synced since. Those that are being written to are not among them.
    pub(super) unsynced: HashSet<SnapshotKey>,
    /// Those of a checkpoint under way.
    pub(super) syncing: HashSet<SnapshotKey>,
    pub(super) kept: HashMap<SnapshotKey, Kept>,
    /// Views and active ones whose removal is under way.
    discarding: HashSet<SnapshotKey>,
}

/// What this process knows of a snapshot that is kept.
#[derive(Default)]
pub(super) struct Kept {
    /// Those who may be writing to it.
    pub(super) writers: usize,
    /// How often somebody could.
    pub(super) turns: u64,
    /// Its size, after as many turns.
    pub(super) measured: Option<(u64, u64)>,
}

impl Snapshots {
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>, db: Db, tasks: Tasks, boot: BootId) -> Snapshots {
        Snapshots(Arc::new(Inner {
            snapshotter,
            failures: db.failures(),
            db,
            tasks,
            boot,
            run: format!("{:08x}", rand::random::<u32>()),
            next: AtomicU64::new(0),
            state: Mutex::default(),
            absolved: Notify::new(),
            unsynced: Notify::new(),
            littered: Notify::new(),
            checkpointing: Semaphore::new(1),
            clearing: Semaphore::new(1),
            syncs: AtomicU64::new(0),
            looked: AtomicU64::new(0),
        }))
    }

    /// Removes snapshots; what stands on another one may come later in the list. Returns what is left.
    pub(super) async fn remove_in_rounds(&self, mut keys: Vec<SnapshotKey>) -> Vec<SnapshotKey> {
        while !keys.is_empty() {
            let refused = match self.0.snapshotter.remove_all(keys.clone()).await {
                Ok(refused) => refused,
                Err(error) => {
                    tracing::warn!(count = keys.len(), %error, "snapshots were not removed");
                    return keys;
                }
            };
            let mut left = Vec::new();
            for (key, error) in refused {
                if !matches!(error, SnapshotError::NotFound { .. }) {
                    tracing::debug!(snapshot = %key, %error, "not removed");
                    left.push(key);
                }
            }
            let stay: HashSet<&SnapshotKey> = left.iter().collect();
            let mut state = self.state();
            for key in keys.iter().filter(|key| !stay.contains(key)) {
                state.unsynced.remove(key);
            }
            drop(state);
            if left.len() == keys.len() {
                return left;
            }
            keys = left;
        }
        keys
    }

    pub(super) fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        &self.0.snapshotter
    }

    /// True if layers are unpacked alone and stand on each other when they are mounted.
    pub(super) fn stacks(&self) -> bool {
        self.0.snapshotter.stacks()
    }

    pub(super) fn boot(&self) -> &BootId {
        &self.0.boot
    }

    /// A snapshot that is not made yet, with a name that no other one has.
    pub(super) fn passing(&self, kind: &str) -> Passing {
        let n = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.passing_as(name(format!("{kind}-{}-{n}", self.0.run)))
    }

    pub(super) fn passing_as(&self, key: SnapshotKey) -> Passing {
        Passing { key, settled: AtomicBool::new(false), snapshots: self.clone(), _writing: None }
    }

    /// Makes an active snapshot. Who leaves in the middle leaves nothing behind.
    pub(super) async fn prepare(&self, passing: Passing, parents: Parents) -> Result<Passing, CacheError> {
        let snapshotter = Arc::clone(&self.0.snapshotter);
        let work = self.0.tasks.spawn("prepare snapshot", async move {
            snapshotter.prepare(passing.key(), &parents).await?;
            Ok(passing)
        });
        work.await?
    }

    /// True if there is a whole snapshot of this name.
    pub(super) fn is_present(&self, key: &SnapshotKey) -> Result<bool, DbError> {
        self.0.db.read(|tx| self.among(tx)?.has(key))
    }

    /// The snapshots as `tx` sees them.
    pub(super) fn among(&self, tx: &ReadTx) -> Result<Among, DbError> {
        Ok(Among { table: tx.table(SNAPSHOTS)?, boot: self.0.boot.clone() })
    }

    /// The first made change set among `parts` whose files are gone.
    pub(super) fn first_missing<'p>(
        &self,
        parts: impl IntoIterator<Item = &'p Part>,
    ) -> Result<Option<&'p Part>, DbError> {
        self.0.db.read(|tx| {
            let here = self.among(tx)?;
            for part in parts {
                if let ChangeSet::Made(made) = &part.set {
                    self.0.looked.fetch_add(1, Ordering::Relaxed);
                    if !here.has(&made.snapshot)? {
                        return Ok(Some(part));
                    }
                }
            }
            Ok(None)
        })
    }

    /// Rows of made change sets that were looked up so far, to stand on them.
    #[cfg(test)]
    pub(super) fn looked(&self) -> u64 {
        self.0.looked.load(Ordering::Relaxed)
    }

    /// The layers whose own files are not here.
    pub(super) fn without_files<'l>(
        &self,
        layers: impl Iterator<Item = &'l Layer>,
    ) -> Result<Vec<&'l Layer>, DbError> {
        let mut layers = layers.peekable();
        if layers.peek().is_none() {
            return Ok(Vec::new());
        }
        self.0.db.read(|tx| {
            let here = self.among(tx)?;
            let mut without = Vec::new();
            for layer in layers {
                if !here.has(&layer_key(layer.diff_id))? {
                    without.push(layer);
                }
            }
            Ok(without)
        })
    }

    /// Bytes of all committed snapshots.
    pub(super) fn sizes(&self, tx: &ReadTx) -> Result<Sizes, DbError> {
        let mut sizes = Sizes::default();
        for (_, stored) in all(tx)?.into_iter().filter(|(_, stored)| stored.is_whole(&self.0.boot)) {
            let bytes = match stored.of {
                Content::Layer(diff_id) | Content::Part(diff_id) => sizes.layers.entry(diff_id).or_default(),
                Content::Chain(record) | Content::Made(record) => sizes.records.entry(record).or_default(),
                // What its row says is not its size.
                Content::Kept(_) => continue,
            };
            *bytes += stored.bytes;
        }
        Ok(sizes)
    }

    /// Holds a snapshot, whether it is here or not. Waits while it is being removed.
    ///
    /// Cancellation safe.
    pub(super) async fn hold(&self, key: SnapshotKey) -> SnapshotHold {
        loop {
            let absolved = self.0.absolved.notified();
            tokio::pin!(absolved);
            absolved.as_mut().enable();
            {
                let mut state = self.state();
                if !state.doomed.contains(&key) {
                    *state.held.entry(key.clone()).or_insert(0) += 1;
                    return SnapshotHold { key, snapshots: self.clone() };
                }
            }
            absolved.await;
        }
    }

    /// Holds all of a list, as [`Snapshots::hold`].
    pub(super) async fn hold_all(&self, parents: Parents) -> ListHold {
        loop {
            let absolved = self.0.absolved.notified();
            tokio::pin!(absolved);
            absolved.as_mut().enable();
            {
                let mut state = self.state();
                if state.doomed.is_empty() || !parents.iter().any(|key| state.doomed.contains(key)) {
                    let number = self.0.next.fetch_add(1, Ordering::Relaxed);
                    state.lists.insert(number, parents.clone());
                    return ListHold { parents, number, snapshots: self.clone() };
                }
            }
            absolved.await;
        }
    }

    /// Of this moment.
    pub(super) fn generation(&self) -> Generation {
        let failures = *self.0.failures.borrow();
        Generation { removals: self.state().removals, failures }
    }

    /// Makes an active snapshot a committed one, and notes it. `more` is written in the same transaction.
    /// Visible when this returns; see `durable.rs` for what outlasts what.
    ///
    /// Goes on to its end if it is dropped.
    pub(super) async fn commit(
        &self,
        key: &SnapshotKey,
        active: &SnapshotKey,
        of: Content,
        more: impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static,
    ) -> Result<SnapshotUsage, CacheError> {
        let (snapshots, key, active) = (self.clone(), key.clone(), active.clone());
        let work = self.0.tasks.spawn("commit snapshot", async move {
            let noted = snapshots.note(&key, &active, of, more).await;
            if noted.is_err() {
                // It may be committed all the same, and its row may be there: whoever clears up looks.
                snapshots.litter();
            }
            noted
        });
        work.await?
    }

    async fn note(
        &self,
        key: &SnapshotKey,
        active: &SnapshotKey,
        of: Content,
        more: impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static,
    ) -> Result<SnapshotUsage, CacheError> {
        // Held, so that it is not taken for something that a crash left.
        let _hold = self.hold(key.clone()).await;
        let usage = self.0.snapshotter.usage(active).await?;
        match self.0.snapshotter.commit(key, active).await {
            Err(SnapshotError::Exists { .. }) if !self.is_present(key)? => {
                self.clear(key).await?;
                self.0.snapshotter.commit(key, active).await?;
            }
            committed => committed?,
        }
        let stored = Stored { bytes: usage.bytes, of, unsynced: Some(self.0.boot.clone()) };
        let (row, was) = (key.to_string(), active.to_string());
        let written = self.0.db.write_visible(move |tx| {
            let mut table = tx.table(SNAPSHOTS)?;
            table.insert(row.as_str(), db::encode(&stored)?.as_slice())?;
            // Of one that was kept.
            table.remove(was.as_str())?;
            drop(table);
            more(tx)
        });
        written.await?;
        self.unsynced(key.clone());
        failpoint::hit(Failpoint::SnapshotNoted).map_err(SnapshotError::from)?;
        Ok(usage)
    }

    /// Removes what has no row and is in the way, and what stands on it: nobody uses it.
    async fn clear(&self, key: &SnapshotKey) -> Result<(), CacheError> {
        let mut stack = vec![key.clone()];
        while let Some(top) = stack.last().cloned() {
            match self.0.snapshotter.remove(&top).await {
                Ok(()) | Err(SnapshotError::NotFound { .. }) => drop(stack.pop()),
                Err(SnapshotError::InUse { by, .. }) if !self.is_present(&by)? && !stack.contains(&by) => {
                    stack.push(by);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes an active snapshot or a view, some time soon. Its mounts must be gone.
    fn discard(&self, key: SnapshotKey) {
        let inner = Arc::clone(&self.0);
        self.state().discarding.insert(key.clone());
        let discarding = Discarding { key: key.clone(), snapshots: self.clone() };
        drop(self.0.tasks.spawn("discard snapshot", async move {
            // Nobody waits for more than the first try.
            let mut waited_for = Some(discarding);
            let mut pauses = Backoff::new();
            loop {
                match inner.snapshotter.remove(&key).await {
                    Ok(()) | Err(SnapshotError::NotFound { .. }) => return,
                    Err(error) => tracing::warn!(snapshot = %key, %error, "a snapshot was not removed"),
                }
                drop(waited_for.take());
                if inner.tasks.token().run_until_cancelled(pauses.pause()).await.is_none() {
                    return;
                }
            }
        }));
    }

    /// Something may have been left without a row.
    pub(super) fn litter(&self) {
        self.0.littered.notify_one();
    }

    /// Waits until the views and active snapshots are gone that were dropped before.
    async fn discarded(&self) {
        let mut pending = self.state().discarding.clone();
        loop {
            let absolved = self.0.absolved.notified();
            tokio::pin!(absolved);
            absolved.as_mut().enable();
            {
                let state = self.state();
                pending.retain(|key| state.discarding.contains(key));
            }
            if pending.is_empty() {
                return;
            }
            absolved.await;
        }
    }

    /// Takes the row of a made snapshot out, in the transaction that removes its record.
    pub(super) fn forget_row(tx: &WriteTx, key: &SnapshotKey) -> Result<(), DbError> {
        tx.table(SNAPSHOTS)?.remove(key.as_str())?;
        Ok(())
    }

    /// Removes snapshots whose rows are gone.
    pub(super) async fn remove(&self, keys: Vec<SnapshotKey>) {
        let refused = self.remove_in_rounds(keys).await;
        if !refused.is_empty() {
            tracing::warn!(count = refused.len(), "snapshots were not removed");
            self.litter();
        }
    }

    /// Removes the snapshots of layers and chains that nobody uses and for which `needed` is false. Returns
    /// the bytes that this freed.
    pub(super) async fn collect(&self, needed: impl Fn(&Content) -> bool) -> Result<u64, CacheError> {
        // What nobody looks at any more would keep what it stands on.
        self.discarded().await;
        // The semaphore is never closed.
        let _one = self.0.clearing.acquire().await.ok();
        let mut unneeded: HashMap<SnapshotKey, Stored> = self.0.db.read(all)?.into_iter().collect();
        unneeded.retain(|_, stored| stored.of.only_copy_of().is_none() && !needed(&stored.of));
        let doomed = self.doom(unneeded.keys().cloned());
        if doomed.keys.is_empty() {
            return Ok(0);
        }
        let keys = doomed.keys.clone();
        let rows = self.0.db.write(move |tx| keys.iter().try_for_each(|key| Snapshots::forget_row(tx, key)));
        rows.await?;
        if let Err(injected) = failpoint::hit(Failpoint::SnapshotsForgotten) {
            self.litter();
            return Err(SnapshotError::from(injected).into());
        }
        let refused = self.remove_in_rounds(doomed.keys.clone()).await;
        let stay: HashSet<&SnapshotKey> = refused.iter().collect();
        let freed = doomed.keys.iter().filter(|key| !stay.contains(key));
        let freed = freed.filter_map(|key| unneeded.get(key)).map(|stored| stored.bytes).sum();
        if !refused.is_empty() {
            // Something that is needed stands on them: they stay, with their rows.
            let rows: Vec<(SnapshotKey, Stored)> =
                refused.into_iter().filter_map(|key| unneeded.remove_entry(&key)).collect();
            let rows = self.0.db.write(move |tx| {
                let mut table = tx.table(SNAPSHOTS)?;
                for (key, stored) in &rows {
                    table.insert(key.as_str(), db::encode(stored)?.as_slice())?;
                }
                Ok(())
            });
            // Without their rows they go when what stands on them does.
            rows.await.inspect_err(|_| self.litter())?;
        }
        Ok(freed)
    }

    /// Dooms those of `keys` that nobody holds or removes.
    pub(super) fn doom(&self, keys: impl IntoIterator<Item = SnapshotKey>) -> Doomed {
        let mut state = self.state();
        let listed = Parents::union(state.lists.values());
        let is_held = |key: &SnapshotKey| state.held.contains_key(key) || listed.contains(key);
        let free = |key: &SnapshotKey| !state.doomed.contains(key) && !is_held(key);
        let keys: Vec<SnapshotKey> = keys.into_iter().filter(free).collect();
        state.doomed.extend(keys.iter().cloned());
        state.removals += u64::from(!keys.is_empty());
        Doomed { keys, snapshots: self.clone() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshots({})", self.0.snapshotter.name())
    }
}

/// Keeps a snapshot from being removed.
pub(super) struct SnapshotHold {
    key: SnapshotKey,
    snapshots: Snapshots,
}

impl SnapshotHold {
    pub(super) fn key(&self) -> &SnapshotKey {
        &self.key
    }
}

impl Drop for SnapshotHold {
    fn drop(&mut self) {
        let mut state = self.snapshots.state();
        if let Some(count) = state.held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.key);
            }
        }
    }
}

impl fmt::Debug for SnapshotHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotHold({})", self.key)
    }
}

/// Keeps all of a list from being removed.
pub(super) struct ListHold {
    parents: Parents,
    number: u64,
    snapshots: Snapshots,
}

impl ListHold {
    pub(super) fn parents(&self) -> &Parents {
        &self.parents
    }
}

impl Drop for ListHold {
    fn drop(&mut self) {
        let list = self.snapshots.state().lists.remove(&self.number);
        // It may be the last that has it, which takes as long as it is.
        drop(list);
    }
}

/// A view, or an active snapshot: removed when it is dropped, unless it became something else.
#[derive(Debug)]
pub(super) struct Passing {
    key: SnapshotKey,
    settled: AtomicBool,
    snapshots: Snapshots,
    /// Of one that is kept.
    pub(super) _writing: Option<Writing>,
}

impl Passing {
    pub(super) fn key(&self) -> &SnapshotKey {
        &self.key
    }

    /// It stays, or is there under another name.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.snapshots.discard(self.key.clone());
        }
    }
}

/// The removal of a view or an active snapshot.
struct Discarding {
    key: SnapshotKey,
    snapshots: Snapshots,
}

impl Drop for Discarding {
    fn drop(&mut self) {
        self.snapshots.state().discarding.remove(&self.key);
        self.snapshots.0.absolved.notify_waiters();
    }
}

/// Snapshots whose removal is under way.
pub(super) struct Doomed {
    pub(super) keys: Vec<SnapshotKey>,
    snapshots: Snapshots,
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let mut state = self.snapshots.state();
        for key in &self.keys {
            state.doomed.remove(key);
        }
        drop(state);
        self.snapshots.0.absolved.notify_waiters();
    }
}

/// The snapshots as one read sees them.
pub(super) struct Among {
    table: Option<ReadOnlyTable<&'static str, &'static [u8]>>,
    boot: BootId,
}

impl Among {
    /// True if there is a whole snapshot of this name.
    pub(super) fn has(&self, key: &SnapshotKey) -> Result<bool, DbError> {
        let Some(table) = &self.table else { return Ok(false) };
        let Some(row) = table.get(key.as_str())? else { return Ok(false) };
        Ok(db::decode::<Stored>(key.as_str(), row.value())?.is_whole(&self.boot))
    }

    /// For each of `parts` whether its own files are here, whatever became of its blob.
    pub(super) fn have_files(&self, parts: &[Part]) -> Result<Vec<bool>, DbError> {
        let here = |part: &Part| match &part.set {
            ChangeSet::Made(made) => self.has(&made.snapshot),
            ChangeSet::Blob(layer) => self.has(&layer_key(layer.diff_id)),
        };
        parts.iter().map(here).collect()
    }
}

pub(super) fn all(tx: &ReadTx) -> Result<Vec<(SnapshotKey, Stored)>, DbError> {
    let Some(table) = tx.table(SNAPSHOTS)? else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        rows.push((name(key.value().to_owned()), db::decode(key.value(), value.value())?));
    }
    Ok(rows)
}

pub(super) fn layer_key(diff_id: DiffId) -> SnapshotKey {
    name(format!("layer-{}", short(diff_id.0)))
}

/// The snapshot of some entries of a layer, which `paths` names; `index` is the name of the index that has them.
pub(super) fn part_key<'p>(index: DiffId, paths: impl Iterator<Item = &'p [u8]>) -> SnapshotKey {
    let mut named = index.to_string().into_bytes();
    for path in paths {
        named.push(0);
        named.extend_from_slice(path);
    }
    name(format!("{PART}{}", short(Digest::sha256(named))))
}

/// True if a snapshot has some of a layer's files only.
pub(super) fn is_part(key: &SnapshotKey) -> bool {
    key.as_str().starts_with(PART)
}

pub(super) fn chain_key(chain: ChainId) -> SnapshotKey {
    name(format!("chain-{}", short(chain.0)))
}

/// The snapshot of a file system that is written to time and again.
pub(super) fn kept_key(id: &RecordId) -> SnapshotKey {
    name(format!("kept-{id}"))
}

pub(super) fn made_key(id: &RecordId) -> SnapshotKey {
    name(format!("made-{id}"))
}

/// Names have a limit, which the longer digests would exceed.
fn short(digest: Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => digest.hex(),
        Algorithm::Sha512 => Digest::sha256(digest.to_string()).hex(),
    }
}

/// Names made here are of letters, digits and dashes, and short.
fn name(text: String) -> SnapshotKey {
    text.parse().expect("a valid name of a snapshot")
}
