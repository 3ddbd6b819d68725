//! [`Passing`]: a snapshot that is there as long as somebody has it.
//!
//! Views are, and what is written to until it is committed. It has a name before it is made, so that who leaves in the
//! middle leaves something that is removed.
//!
//! # Invariants
//!
//! - Its name has that of this run in it, unless it is kept: whatever clears up leaves it alone.
//! - One that is not settled is removed after its last owner, by a task that tries until it works or the daemon stops.
//!   What is left then goes after the next start.
//! - Who collects waits for one try at each that was dropped before: a view would keep what it stands on.
//!
//! # Cancellation
//!
//! Making one is a task that goes on to its end: who leaves in the middle drops what came of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::Snapshots;
use super::durable::Writing;
use super::rows::name;
use crate::cache::CacheError;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotKey;
use crate::task::Backoff;

/// A view, or an active snapshot: removed when it is dropped, unless it became something else.
#[derive(Debug)]
pub(in crate::cache) struct Passing {
    key: SnapshotKey,
    settled: AtomicBool,
    snapshots: Snapshots,
    /// Of one that is kept.
    pub(super) _writing: Option<Writing>,
}

impl Snapshots {
    /// A snapshot that is not made yet, with a name that no other one has.
    pub(in crate::cache) fn passing(&self, kind: &str) -> Passing {
        let n = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.passing_as(name(format!("{kind}-{}-{n}", self.0.run)))
    }

    pub(super) fn passing_as(&self, key: SnapshotKey) -> Passing {
        Passing { key, settled: AtomicBool::new(false), snapshots: self.clone(), _writing: None }
    }

    /// Makes an active snapshot. Who leaves in the middle leaves nothing behind.
    pub(in crate::cache) async fn prepare(
        &self,
        passing: Passing,
        parents: Parents,
    ) -> Result<Passing, CacheError> {
        let snapshotter = Arc::clone(&self.0.snapshotter);
        let work = self.0.tasks.spawn("prepare snapshot", async move {
            snapshotter.prepare(passing.key(), &parents).await?;
            Ok(passing)
        });
        work.await?
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

    /// Waits until the views and active snapshots are gone that were dropped before.
    pub(super) async fn discarded(&self) {
        let mut pending = self.state().discarding.clone();
        loop {
            let discarded = self.0.discarded.notified();
            tokio::pin!(discarded);
            discarded.as_mut().enable();
            {
                let state = self.state();
                pending.retain(|key| state.discarding.contains(key));
            }
            if pending.is_empty() {
                return;
            }
            discarded.await;
        }
    }
}

impl Passing {
    pub(in crate::cache) fn key(&self) -> &SnapshotKey {
        &self.key
    }

    /// It stays, or is there under another name.
    pub(in crate::cache) fn settle(&self) {
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
        self.snapshots.0.discarded.notify_waiters();
    }
}
