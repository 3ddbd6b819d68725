//! What a power cut leaves of snapshots.
//!
//! A command's files are worth as much as the time that it takes to make them again, and syncing them costs the disk
//! more than most commands do. So nothing waits for the disk when a snapshot is made. Its row says instead in which boot
//! that was, and a row of another boot is not believed: the kernel may have lost any part of the files.
//!
//! ```text
//!             made, or taken to be written              checkpoint
//!   (no row) ------------------------------> unsynced ------------> synced
//!       ^                                      |  ^                   |
//!       |            start in another boot     |  |  taken again      |
//!       +--------------------------------------+  +-------------------+
//! ```
//!
//! A *checkpoint* is one `syncfs` for all that was made since the last one, and one transaction that says so. It runs
//! some time after something was made, so that steps share it; whatever was made later may be lost with the power, and
//! is made again then. A daemon that is stopped doesn't make one: `syncfs` waits for all that anybody wrote to
//! the file system, and can't be interrupted. The next daemon does, if the machine is still up.
//!
//! # Invariants
//!
//! - A row that says nothing of a boot is of a snapshot whose files were synced after the last write to them.
//! - What is kept (a cache mount) is unsynced while somebody may write to it. If it was synced, that is undone durably
//!   before he may: at most one fsync for each of them and each checkpoint.
//! - Whatever needs no files is not affected: rows and blobs are synced by whoever makes them.
//!
//! # Crash consistency
//!
//! A crash between the sync and the transaction leaves rows that say less than is true. A start in another boot
//! first removes the records that had nothing but their files, with all that stands on them, then takes out the other
//! rows that are not believed, then removes their snapshots; what is not done is found to do by the next start.
//! Before that is done nobody takes those for present, since each look-up compares the boot.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Content;
use super::Passing;
use super::Snapshots;
use super::Stored;
use super::rows::all;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::record::CHILDREN;
use crate::cache::record::RecordId;
use crate::cache::record::Row;
use crate::db::DbError;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;
use crate::task::Backoff;

/// Records that one transaction removes at most after a power cut.
const BATCH: usize = 256;

impl Cache {
    /// Clears up after an earlier run, and from then on after what failed, and makes a checkpoint `interval` after
    /// something was made. Called once, when it is known who is told of removed records.
    pub fn start_upkeep(&self, interval: Duration) {
        let (cache, stop) = (self.clone(), self.0.tasks.token().clone());
        drop(self.0.tasks.spawn("upkeep of snapshots", async move {
            let upkeep = async { tokio::join!(cache.clear_up(), cache.make_checkpoints(interval)) };
            stop.run_until_cancelled(upkeep).await;
        }));
    }

    /// Clears up once, and again each time that something may have been left: soon, and until nothing is.
    async fn clear_up(&self) {
        let mut failures = self.0.db.failures();
        loop {
            // What fails from here on is seen by the next round.
            failures.mark_unchanged();
            let mut pauses = Backoff::new();
            loop {
                match self.recover().await {
                    Ok(0) => break,
                    Ok(count) => tracing::warn!(count, "snapshots that nobody needs can't be removed yet"),
                    Err(error) => tracing::warn!(%error, "snapshots that nobody needs are not removed yet"),
                }
                pauses.pause().await;
            }
            tokio::select! {
                () = self.0.snapshots.0.littered.notified() => {}
                // The database is closed when this task is over.
                _ = failures.changed() => {}
            }
        }
    }

    async fn make_checkpoints(&self, interval: Duration) {
        let unsynced = &self.0.snapshots.0.unsynced;
        loop {
            unsynced.notified().await;
            tokio::time::sleep(interval).await;
            if let Err(error) = self.checkpoint().await {
                tracing::warn!(%error, "the files of the last steps are not synced yet");
                unsynced.notify_one();
            }
        }
    }

    /// Makes the snapshots of this moment outlast a power cut. Returns how many there were to sync.
    ///
    /// Cancellation safe: what was not noted is synced the next time.
    pub async fn checkpoint(&self) -> Result<usize, CacheError> {
        self.0.snapshots.checkpoint().await
    }

    /// Times that the file system of the snapshots was synced.
    pub fn syncs(&self) -> u64 {
        self.0.snapshots.0.syncs.load(Ordering::Relaxed)
    }

    /// Snapshots that a power cut would take, but for those that are being written to.
    pub fn unsynced(&self) -> usize {
        self.0.snapshots.state().unsynced.len()
    }

    /// Removes what an earlier run or a failure left, and the records that a power cut has left without files. Returns
    /// how many snapshots could not be removed.
    pub(in crate::cache) async fn recover(&self) -> Result<usize, CacheError> {
        // The semaphore is never closed.
        let _one = self.0.snapshots.0.checkpointing.acquire().await.ok();
        let lost = self.0.snapshots.lost()?;
        let records: Vec<RecordId> = lost.iter().filter_map(|(_, stored)| stored.of.only_copy_of()).collect();
        if !records.is_empty() {
            let count = records.len();
            tracing::info!(count, "steps were not synced before the machine went down: they run again");
            self.remove_with_descendants(records).await?;
        }
        let kept = self.0.snapshots.forget(lost).await?;
        Ok(kept + self.0.snapshots.sweep().await?)
    }

    /// Removes records and all that stands on them, but for what somebody uses.
    async fn remove_with_descendants(&self, ids: Vec<RecordId>) -> Result<(), CacheError> {
        let mut order = ids;
        let mut seen: HashSet<RecordId> = order.iter().copied().collect();
        let mut next = 0;
        while next < order.len() {
            for child in self.children(&order[next])? {
                if seen.insert(child) {
                    order.push(child);
                }
            }
            next += 1;
        }
        // One that was found early may stand on one that was found late: what is refused comes again.
        let mut left: Vec<RecordId> = order.into_iter().rev().collect();
        loop {
            let before = left.len();
            let mut gone = BTreeSet::new();
            for batch in left.chunks(BATCH) {
                gone.extend(self.remove(batch.to_vec()).await?);
            }
            left.retain(|id| !gone.contains(id));
            if left.is_empty() || left.len() == before {
                return Ok(());
            }
        }
    }

    fn children(&self, id: &RecordId) -> Result<Vec<RecordId>, DbError> {
        self.0.db.read(|tx| {
            let Some(table) = tx.multimap(CHILDREN)? else { return Ok(Vec::new()) };
            let mut children = Vec::new();
            for child in table.get(id.to_string().as_str())? {
                children.extend(child?.value().parse::<RecordId>().ok());
            }
            Ok(children)
        })
    }
}

impl Snapshots {
    /// The rows of another boot that were not synced. Those of this one are noted as unsynced.
    fn lost(&self) -> Result<Vec<(SnapshotKey, Stored)>, CacheError> {
        let (mut lost, mut unsynced) = (Vec::new(), Vec::new());
        for (key, stored) in self.0.db.read(all)? {
            match &stored.unsynced {
                None => {}
                Some(boot) if *boot == self.0.boot => unsynced.push(key),
                Some(_) => lost.push((key, stored)),
            }
        }
        unsynced.into_iter().for_each(|key| self.unsynced(key));
        Ok(lost)
    }

    /// Takes out rows that are lost. Where somebody looked at a record in the moment in which it was to go, both stay,
    /// and go the next time. Returns how many those are.
    async fn forget(&self, lost: Vec<(SnapshotKey, Stored)>) -> Result<usize, CacheError> {
        if lost.is_empty() {
            return Ok(0);
        }
        let boot = self.0.boot.clone();
        let forgotten = self.0.db.write(move |tx| {
            let mut kept = 0;
            for (key, stored) in &lost {
                let record = stored.of.only_copy_of();
                if let Some(record) = record
                    && Row::read_within(tx, &record)?.is_some()
                {
                    kept += 1;
                    continue;
                }
                // It may have been made again since.
                if Stored::read(tx, key)?.is_some_and(|stored| !stored.is_whole(&boot)) {
                    Snapshots::forget_row(tx, key)?;
                }
            }
            Ok(kept)
        });
        let kept = forgotten.await?;
        failpoint::hit(Failpoint::UnsyncedForgotten).map_err(SnapshotError::from)?;
        Ok(kept)
    }

    /// Removes what has no row: what was active or viewed in an earlier run, and what is no longer believed. What this
    /// run is about to make is left to it. Returns how many are left.
    async fn sweep(&self) -> Result<usize, CacheError> {
        // The semaphore is never closed.
        let _one = self.0.clearing.acquire().await.ok();
        let mut stale = Vec::new();
        for info in self.0.snapshotter.walk().await? {
            if !info.key.as_str().contains(&self.0.run) && !self.is_present(&info.key)? {
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
        Ok(self.remove_in_rounds(left).await.len())
    }

    /// Says that a row of this boot is not synced.
    pub(super) fn unsynced(&self, key: SnapshotKey) {
        self.state().unsynced.insert(key);
        self.0.unsynced.notify_one();
    }

    async fn checkpoint(&self) -> Result<usize, CacheError> {
        // The semaphore is never closed.
        let _one = self.0.checkpointing.acquire().await.ok();
        let batch = Batch::take(self);
        if batch.keys.is_empty() {
            return Ok(0);
        }
        self.0.snapshotter.sync().await?;
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        failpoint::hit(Failpoint::SnapshotsSynced).map_err(SnapshotError::from)?;
        let (keys, snapshots) = (batch.keys.clone(), self.clone());
        let noted = self.0.db.write(move |tx| {
            for key in &keys {
                // Who takes it from here on sees that it is in this batch, and writes after this.
                if snapshots.is_written(key) {
                    continue;
                }
                if let Some(mut stored) = Stored::read(tx, key)?
                    && stored.unsynced.as_ref() == Some(&snapshots.0.boot)
                {
                    stored.unsynced = None;
                    stored.write(tx, key)?;
                }
            }
            Ok(())
        });
        noted.await?;
        Ok(batch.done())
    }

    fn is_written(&self, key: &SnapshotKey) -> bool {
        self.state().kept.get(key).is_some_and(|kept| kept.writers > 0)
    }

    /// What is kept, to be written to: its row says so before this returns. It stays when it is dropped.
    pub(in crate::cache) async fn kept(&self, key: SnapshotKey, of: RecordId) -> Result<Passing, CacheError> {
        let (writing, doubtful) = Writing::begin(self, &key);
        if doubtful || self.stored(&key)?.is_none_or(|stored| stored.unsynced.is_none()) {
            let (row, boot) = (key.clone(), self.0.boot.clone());
            self.0.db.write(move |tx| Stored::of_kept(of, &boot).write(tx, &row)).await?;
        }
        let mut passing = self.passing_as(key);
        passing.settle();
        passing._writing = Some(writing);
        Ok(passing)
    }

    /// A snapshot that is to be kept, with its row in `tx`: see [`Stored::of_kept`].
    pub(in crate::cache) fn to_be_kept(&self, key: SnapshotKey) -> Passing {
        let (writing, _) = Writing::begin(self, &key);
        let mut passing = self.passing_as(key);
        passing._writing = Some(writing);
        passing
    }

    /// Bytes of those that are kept, counted anew where somebody has written since the last time.
    pub(in crate::cache) async fn kept_sizes(&self) -> Result<HashMap<SnapshotKey, u64>, CacheError> {
        let kept = self.0.db.read(all)?;
        let kept = kept.into_iter().filter(|(_, stored)| matches!(stored.of, Content::Kept(_)));
        let kept: HashSet<SnapshotKey> = kept.map(|(key, _)| key).collect();
        self.state().kept.retain(|key, state| state.writers > 0 || kept.contains(key));
        let mut sizes = HashMap::new();
        for key in kept {
            let quiet = {
                let mut state = self.state();
                let state = state.kept.entry(key.clone()).or_default();
                match state.measured {
                    Some((turn, bytes)) if turn == state.turns && state.writers == 0 => {
                        sizes.insert(key, bytes);
                        continue;
                    }
                    _ => (state.writers == 0).then_some(state.turns),
                }
            };
            // One that is being written changes under the count, or goes: what can't be told is nothing.
            let Ok(usage) = self.0.snapshotter.usage(&key).await else { continue };
            if let (Some(turn), Some(state)) = (quiet, self.state().kept.get_mut(&key)) {
                state.measured = Some((turn, usage.bytes));
            }
            sizes.insert(key, usage.bytes);
        }
        Ok(sizes)
    }
}

/// Somebody may write to what is kept.
#[derive(Debug)]
pub(super) struct Writing {
    key: SnapshotKey,
    snapshots: Snapshots,
}

impl Writing {
    /// True besides if a checkpoint may be about to say that the snapshot is synced.
    fn begin(snapshots: &Snapshots, key: &SnapshotKey) -> (Writing, bool) {
        let mut state = snapshots.state();
        let kept = state.kept.entry(key.clone()).or_default();
        kept.writers += 1;
        kept.turns += 1;
        state.unsynced.remove(key);
        let doubtful = state.syncing.contains(key);
        drop(state);
        (Writing { key: key.clone(), snapshots: snapshots.clone() }, doubtful)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut state = self.snapshots.state();
        let Some(kept) = state.kept.get_mut(&self.key) else { return };
        kept.writers -= 1;
        if kept.writers == 0 {
            state.unsynced.insert(self.key.clone());
            drop(state);
            self.snapshots.0.unsynced.notify_one();
        }
    }
}

/// The snapshots of one checkpoint. They come again unless it is done.
struct Batch {
    keys: Vec<SnapshotKey>,
    snapshots: Snapshots,
}

impl Batch {
    fn take(snapshots: &Snapshots) -> Batch {
        let mut state = snapshots.state();
        let keys: Vec<SnapshotKey> = state.unsynced.drain().collect();
        state.syncing = keys.iter().cloned().collect();
        drop(state);
        Batch { keys, snapshots: snapshots.clone() }
    }

    fn done(mut self) -> usize {
        std::mem::take(&mut self.keys).len()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut state = self.snapshots.state();
        state.syncing.clear();
        for key in self.keys.drain(..) {
            if state.kept.get(&key).is_none_or(|kept| kept.writers == 0) {
                state.unsynced.insert(key);
            }
        }
    }
}
