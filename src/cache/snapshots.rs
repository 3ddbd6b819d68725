//! [`Snapshots`]: the directories behind records, and which of them are in use.
//!
//! A snapshot is named by what is in it: `layer-<diff ID>` for a layer's own files, `chain-<digest>` for
//! a whole tree (where the snapshotter can't put layers on top of each other, or a layer can't be
//! unpacked alone), `made-<record>` for a change set that was made here.
//!
//! # Invariants
//!
//! - A row names every committed snapshot. One without a row was left by a crash and goes after the next
//!   start.
//! - A layer's or a chain's snapshot can be made again and may go when nobody uses it. A made one goes with its
//!   record only.
//! - A snapshot is *held* or *doomed*, never both: see `live.rs`, which does the same for records.
//!
//! # Locking
//!
//! One mutex, for look-ups and counts only.
//!
//! # Crash consistency
//!
//! Making: first the snapshot, then its row. Removing: first the row, then the snapshot.

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

use super::CacheError;
use super::record::ChangeSet;
use super::record::Part;
use super::record::RecordId;
use super::record::Row;
use crate::db;
use crate::db::Db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::oci::Algorithm;
use crate::oci::ChainId;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;
use crate::snapshot::SnapshotUsage;
use crate::snapshot::Snapshotter;
use crate::task::Tasks;

/// [`Stored`] as JSON by snapshot.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_snapshots");

/// What names of kept file systems begin with.
const KEPT: &str = "kept-";

/// What is known of a committed snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Bytes on disk.
    pub(super) bytes: u64,
    pub(super) of: Content,
}

/// Whose files a snapshot has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Content {
    Layer(DiffId),
    /// Of the state of this record, or of one that it stands on.
    Chain(RecordId),
    Made(RecordId),
}

#[derive(Clone)]
pub(super) struct Snapshots(Arc<Inner>);

struct Inner {
    snapshotter: Arc<dyn Snapshotter>,
    db: Db,
    tasks: Tasks,
    /// In every temporary name of this process, and of no other.
    run: String,
    next: AtomicU64,
    state: Mutex<State>,
    /// Some snapshot is no longer doomed.
    absolved: Notify,
}

#[derive(Default)]
struct State {
    held: HashMap<SnapshotKey, usize>,
    doomed: HashSet<SnapshotKey>,
}

impl Snapshots {
    /// What a crash left is removed behind: a start doesn't wait for it.
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>, db: Db, tasks: Tasks) -> Snapshots {
        let inner = Inner {
            snapshotter,
            db,
            tasks,
            run: format!("{:08x}", rand::random::<u32>()),
            next: AtomicU64::new(0),
            state: Mutex::default(),
            absolved: Notify::new(),
        };
        let snapshots = Snapshots(Arc::new(inner));
        let sweeping = snapshots.clone();
        drop(snapshots.0.tasks.spawn("sweep snapshots", async move {
            if let Err(error) = sweeping.sweep().await {
                tracing::warn!(%error, "what an earlier run left of snapshots was not removed");
            }
        }));
        snapshots
    }

    /// Removes what an earlier run left: what was active or viewed, and what has no row.
    async fn sweep(&self) -> Result<(), CacheError> {
        let mut stale = Vec::new();
        for info in self.0.snapshotter.walk().await? {
            let kept = info.key.as_str().strip_prefix(KEPT).and_then(|id| id.parse().ok());
            let named = match kept {
                Some(id) => self.0.db.read(|tx| Row::read(tx, &id))?.is_some(),
                None => self.is_present(&info.key)?,
            };
            if !named && !info.key.as_str().contains(&self.0.run) {
                stale.push(info.key);
            }
        }
        // Held while they are made: what is not held and has no row is nobody's.
        let doomed = self.doom(stale);
        let mut left = Vec::new();
        for key in &doomed.keys {
            if !self.is_present(key)? {
                left.push(key.clone());
            }
        }
        let refused = self.remove_in_rounds(left).await;
        if !refused.is_empty() {
            tracing::warn!(count = refused.len(), "snapshots of an earlier run can't be removed");
        }
        Ok(())
    }

    /// Removes snapshots; what stands on another one may come later in the list. Returns what is left.
    async fn remove_in_rounds(&self, mut keys: Vec<SnapshotKey>) -> Vec<SnapshotKey> {
        loop {
            let mut refused = Vec::new();
            let before = keys.len();
            for key in keys {
                match self.0.snapshotter.remove(&key).await {
                    Ok(()) | Err(SnapshotError::NotFound { .. }) => {}
                    Err(error) => {
                        tracing::debug!(snapshot = %key, %error, "not removed");
                        refused.push(key);
                    }
                }
            }
            if refused.is_empty() || refused.len() == before {
                return refused;
            }
            keys = refused;
        }
    }

    pub(super) fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        &self.0.snapshotter
    }

    /// True if layers are unpacked alone and stand on each other when they are mounted.
    pub(super) fn stacks(&self) -> bool {
        self.0.snapshotter.stacks()
    }

    /// A snapshot that is not made yet, with a name that no other one has.
    pub(super) fn passing(&self, kind: &str) -> Passing {
        let n = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.passing_as(name(format!("{kind}-{}-{n}", self.0.run)))
    }

    pub(super) fn passing_as(&self, key: SnapshotKey) -> Passing {
        Passing { key, settled: AtomicBool::new(false), snapshots: self.clone() }
    }

    /// True if every made change set among `parts` still has its files.
    pub(super) fn has_all_made(&self, parts: &[Part]) -> Result<bool, DbError> {
        self.0.db.read(|tx| {
            let table = tx.table(SNAPSHOTS)?;
            for part in parts {
                if let ChangeSet::Made(made) = &part.set
                    && !is_in(table.as_ref(), &made.snapshot)?
                {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// For each of `parts` whether its own files are here, whatever became of its blob.
    pub(super) fn have_files(&self, parts: &[Part]) -> Result<Vec<bool>, DbError> {
        self.0.db.read(|tx| {
            let table = tx.table(SNAPSHOTS)?;
            let here = |part: &Part| match &part.set {
                ChangeSet::Made(made) => is_in(table.as_ref(), &made.snapshot),
                ChangeSet::Blob(layer) => is_in(table.as_ref(), &layer_key(layer.diff_id)),
            };
            parts.iter().map(here).collect()
        })
    }

    pub(super) fn is_present(&self, key: &SnapshotKey) -> Result<bool, DbError> {
        self.0.db.read(|tx| is_in(tx.table(SNAPSHOTS)?.as_ref(), key))
    }

    /// Bytes of each committed snapshot.
    pub(super) fn sizes(tx: &ReadTx) -> Result<HashMap<String, u64>, DbError> {
        Ok(all(tx)?.into_iter().map(|(key, stored)| (key.to_string(), stored.bytes)).collect())
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

    /// Makes an active snapshot a committed one, and notes it. `more` is written in the same transaction.
    /// Visible when this returns, durable with the next durable commit.
    pub(super) async fn commit(
        &self,
        key: &SnapshotKey,
        active: &SnapshotKey,
        of: Content,
        more: impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static,
    ) -> Result<SnapshotUsage, CacheError> {
        // Held, so that it is not taken for something that a crash left.
        let _hold = self.hold(key.clone()).await;
        let usage = self.0.snapshotter.usage(active).await?;
        self.0.snapshotter.commit(key, active).await?;

        let stored = Stored { bytes: usage.bytes, of };
        let row = key.to_string();
        let written = self.0.db.write_visible(move |tx| {
            tx.table(SNAPSHOTS)?.insert(row.as_str(), db::encode(&stored)?.as_slice())?;
            more(tx)
        });
        written.await?;
        Ok(usage)
    }

    /// Removes an active snapshot or a view, some time soon. Its mounts must be gone.
    fn discard(&self, key: SnapshotKey) {
        let inner = Arc::clone(&self.0);
        drop(self.0.tasks.spawn("discard snapshot", async move {
            match inner.snapshotter.remove(&key).await {
                Ok(()) | Err(SnapshotError::NotFound { .. }) => {}
                Err(error) => tracing::warn!(snapshot = %key, %error, "a snapshot was not removed"),
            }
        }));
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
            // They have no rows: the next start removes them.
            tracing::warn!(count = refused.len(), "snapshots were not removed");
        }
    }

    /// Removes the snapshots of layers and chains that nobody uses and for which `needed` is false. Returns
    /// the bytes that this freed.
    pub(super) async fn collect(&self, needed: impl Fn(&Content) -> bool) -> Result<u64, CacheError> {
        let mut unneeded: HashMap<SnapshotKey, Stored> = self.0.db.read(all)?.into_iter().collect();
        unneeded.retain(|_, stored| !matches!(stored.of, Content::Made(_)) && !needed(&stored.of));
        let doomed = self.doom(unneeded.keys().cloned());
        if doomed.keys.is_empty() {
            return Ok(0);
        }
        let keys = doomed.keys.clone();
        let rows = self.0.db.write(move |tx| keys.iter().try_for_each(|key| Snapshots::forget_row(tx, key)));
        rows.await?;
        let refused = self.remove_in_rounds(doomed.keys.clone()).await;
        let freed = doomed.keys.iter().filter(|key| !refused.contains(key));
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
            rows.await?;
        }
        Ok(freed)
    }

    /// Dooms those of `keys` that nobody holds or removes.
    fn doom(&self, keys: impl IntoIterator<Item = SnapshotKey>) -> Doomed {
        let mut state = self.state();
        let free = |key: &SnapshotKey| !state.held.contains_key(key) && !state.doomed.contains(key);
        let keys: Vec<SnapshotKey> = keys.into_iter().filter(free).collect();
        state.doomed.extend(keys.iter().cloned());
        Doomed { keys, snapshots: self.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
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

/// A view, or an active snapshot: removed when it is dropped, unless it became something else.
#[derive(Debug)]
pub(super) struct Passing {
    key: SnapshotKey,
    settled: AtomicBool,
    snapshots: Snapshots,
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

/// Snapshots whose removal is under way.
struct Doomed {
    keys: Vec<SnapshotKey>,
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

type SnapshotTable = ReadOnlyTable<&'static str, &'static [u8]>;

fn is_in(table: Option<&SnapshotTable>, key: &SnapshotKey) -> Result<bool, DbError> {
    match table {
        Some(table) => Ok(table.get(key.as_str())?.is_some()),
        None => Ok(false),
    }
}

fn all(tx: &ReadTx) -> Result<Vec<(SnapshotKey, Stored)>, DbError> {
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

pub(super) fn chain_key(chain: ChainId) -> SnapshotKey {
    name(format!("chain-{}", short(chain.0)))
}

/// The snapshot of a file system that is written to time and again.
pub(super) fn kept_key(id: &RecordId) -> SnapshotKey {
    name(format!("{KEPT}{id}"))
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
