//! [`Snapshots`]: the directories behind records, from when they are made until they are removed.
//!
//! What a snapshot is called, and what is known of one that stays, is in `rows.rs`; which of them are in use in
//! `holds.rs`; which are there for their owner only in `passing.rs`; what a power cut leaves of them in `durable.rs`.
//!
//! # Invariants
//!
//! - A row names every committed snapshot, and every one that is kept to be written to. One without a row was left
//!   by a crash, or by a row that could not be written or was lost when the database failed: it goes after the next
//!   start, soon after the failure (tried until it works: space may have to come back first), or when something else
//!   comes in its place.
//! - A layer's, a part's or a chain's snapshot can be made again and may go when nobody uses it. A made one goes with its
//!   record only.
//!
//! # Locking
//!
//! One mutex, for look-ups and counts only. That of the holds is another one; neither is taken while the other is held.
//!
//! # Cancellation
//!
//! Making, mounting and committing snapshots are tasks that go on to their end: who leaves in the middle drops what
//! came of it, and that is then removed (`passing.rs`).
//!
//! # Crash consistency
//!
//! Making: first the snapshot, then its row; one that is kept the other way round, as its row says that it is to stay.
//! Removing: first the row, then the snapshot. None of this waits for the disk: see `durable.rs`.

mod durable;
mod holds;
mod passing;
mod rows;

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use tokio::sync::Notify;
use tokio::sync::Semaphore;

use super::CacheError;
use crate::db::Db;
use crate::db::DbError;
use crate::db::WriteTx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::snapshot::BootId;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;
use crate::snapshot::SnapshotUsage;
use crate::snapshot::Snapshotter;
use crate::task::Tasks;

pub(super) use holds::Generation;
pub(super) use holds::ListHold;
pub(super) use holds::SnapshotHold;
pub(super) use passing::Passing;
pub(super) use rows::Content;
pub(super) use rows::Stored;
pub(super) use rows::chain_key;
pub(super) use rows::is_part;
pub(super) use rows::kept_key;
pub(super) use rows::layer_key;
pub(super) use rows::made_key;
pub(super) use rows::part_key;

use holds::Holds;
use rows::all;

#[derive(Clone)]
pub(super) struct Snapshots(Arc<Inner>);

struct Inner {
    snapshotter: Arc<dyn Snapshotter>,
    db: Db,
    tasks: Tasks,
    boot: BootId,
    /// In every temporary name of this process, and of no other.
    run: String,
    next: AtomicU64,
    state: Mutex<State>,
    holds: Holds,
    /// The removal of a view or an active snapshot is over.
    discarded: Notify,
    /// Something is there to be synced.
    unsynced: Notify,
    /// Something may be there without a row.
    littered: Notify,
    checkpointing: Semaphore,
    /// One clears away what nobody needs at a time: two would leave to each other what neither removes.
    clearing: Semaphore,
    syncs: AtomicU64,
    /// Rows that were looked up by what is to be stood on, for tests of linearity.
    looked: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Of this boot, and not synced since. Those that are being written to are not among them.
    unsynced: HashSet<SnapshotKey>,
    /// Those of a checkpoint under way.
    syncing: HashSet<SnapshotKey>,
    kept: HashMap<SnapshotKey, Kept>,
    /// Views and active ones whose removal is under way.
    discarding: HashSet<SnapshotKey>,
}

/// What this process knows of a snapshot that is kept.
#[derive(Default)]
struct Kept {
    /// Those who may be writing to it.
    writers: usize,
    /// How often somebody could.
    turns: u64,
    /// Its size, after as many turns.
    measured: Option<(u64, u64)>,
}

impl Snapshots {
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>, db: Db, tasks: Tasks, boot: BootId) -> Snapshots {
        let failures = db.failures();
        Snapshots(Arc::new(Inner {
            snapshotter,
            db,
            tasks,
            boot,
            run: format!("{:08x}", rand::random::<u32>()),
            next: AtomicU64::new(0),
            state: Mutex::default(),
            holds: Holds::new(failures),
            discarded: Notify::new(),
            unsynced: Notify::new(),
            littered: Notify::new(),
            checkpointing: Semaphore::new(1),
            clearing: Semaphore::new(1),
            syncs: AtomicU64::new(0),
            looked: AtomicU64::new(0),
        }))
    }

    /// Removes snapshots; what stands on another one may come later in the list. Returns what is left.
    async fn remove_in_rounds(&self, mut keys: Vec<SnapshotKey>) -> Vec<SnapshotKey> {
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
        let (row, was) = (key.clone(), active.clone());
        let written = self.0.db.write_visible(move |tx| {
            stored.write(tx, &row)?;
            // Of one that was kept.
            Snapshots::forget_row(tx, &was)?;
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

    /// Something may have been left without a row.
    pub(super) fn litter(&self) {
        self.0.littered.notify_one();
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
            let rows =
                self.0.db.write(move |tx| rows.iter().try_for_each(|(key, stored)| stored.write(tx, key)));
            // Without their rows they go when what stands on them does.
            rows.await.inspect_err(|_| self.litter())?;
        }
        Ok(freed)
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
