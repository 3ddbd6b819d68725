//! Snapshots that this process uses at the moment, and those that it is about to remove.
//!
//! # Invariants
//!
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
//! Who waits for a snapshot that is being removed may leave: nothing was taken.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::Notify;
use tokio::sync::watch;

use super::Snapshots;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotKey;

/// Which snapshots are held, and which doomed.
pub(super) struct Holds {
    state: Mutex<State>,
    /// Some snapshot is no longer doomed.
    absolved: Notify,
    /// Of the database.
    failures: watch::Receiver<u64>,
}

#[derive(Default)]
struct State {
    held: HashMap<SnapshotKey, usize>,
    /// What is held as a whole.
    lists: HashMap<u64, Parents>,
    /// Of the next list.
    next: u64,
    doomed: HashSet<SnapshotKey>,
    removals: u64,
}

impl Holds {
    pub(super) fn new(failures: watch::Receiver<u64>) -> Holds {
        Holds { state: Mutex::default(), absolved: Notify::new(), failures }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows of snapshots that nobody held may have gone when this is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cache) struct Generation {
    /// Times that something was doomed.
    removals: u64,
    /// Times that the database failed: rows that were not on the disk yet are lost.
    failures: u64,
}

impl Generation {
    /// This one, for snapshots that have been held since `seen`.
    pub(in crate::cache) fn since(self, seen: Generation) -> Generation {
        Generation { failures: seen.failures, ..self }
    }
}

impl Snapshots {
    /// Holds a snapshot, whether it is here or not. Waits while it is being removed.
    ///
    /// Cancellation safe.
    pub(in crate::cache) async fn hold(&self, key: SnapshotKey) -> SnapshotHold {
        loop {
            let absolved = self.0.holds.absolved.notified();
            tokio::pin!(absolved);
            absolved.as_mut().enable();
            {
                let mut state = self.0.holds.state();
                if !state.doomed.contains(&key) {
                    *state.held.entry(key.clone()).or_insert(0) += 1;
                    return SnapshotHold { key, snapshots: self.clone() };
                }
            }
            absolved.await;
        }
    }

    /// Holds all of a list, as [`Snapshots::hold`].
    pub(in crate::cache) async fn hold_all(&self, parents: Parents) -> ListHold {
        loop {
            let absolved = self.0.holds.absolved.notified();
            tokio::pin!(absolved);
            absolved.as_mut().enable();
            {
                let mut state = self.0.holds.state();
                if state.doomed.is_empty() || !parents.iter().any(|key| state.doomed.contains(key)) {
                    let number = state.next;
                    state.next += 1;
                    state.lists.insert(number, parents.clone());
                    return ListHold { parents, number, snapshots: self.clone() };
                }
            }
            absolved.await;
        }
    }

    /// Of this moment.
    pub(in crate::cache) fn generation(&self) -> Generation {
        let failures = *self.0.holds.failures.borrow();
        Generation { removals: self.0.holds.state().removals, failures }
    }

    /// Dooms those of `keys` that nobody holds or removes.
    pub(in crate::cache) fn doom(&self, keys: impl IntoIterator<Item = SnapshotKey>) -> Doomed {
        let mut state = self.0.holds.state();
        let listed = Parents::union(state.lists.values());
        let is_held = |key: &SnapshotKey| state.held.contains_key(key) || listed.contains(key);
        let free = |key: &SnapshotKey| !state.doomed.contains(key) && !is_held(key);
        let keys: Vec<SnapshotKey> = keys.into_iter().filter(free).collect();
        state.doomed.extend(keys.iter().cloned());
        state.removals += u64::from(!keys.is_empty());
        Doomed { keys, snapshots: self.clone() }
    }
}

/// Keeps a snapshot from being removed.
pub(in crate::cache) struct SnapshotHold {
    key: SnapshotKey,
    snapshots: Snapshots,
}

impl SnapshotHold {
    pub(in crate::cache) fn key(&self) -> &SnapshotKey {
        &self.key
    }
}

impl Drop for SnapshotHold {
    fn drop(&mut self) {
        let mut state = self.snapshots.0.holds.state();
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
pub(in crate::cache) struct ListHold {
    parents: Parents,
    number: u64,
    snapshots: Snapshots,
}

impl ListHold {
    pub(in crate::cache) fn parents(&self) -> &Parents {
        &self.parents
    }
}

impl Drop for ListHold {
    fn drop(&mut self) {
        let list = self.snapshots.0.holds.state().lists.remove(&self.number);
        // It may be the last that has it, which takes as long as it is.
        drop(list);
    }
}

/// Snapshots whose removal is under way.
pub(in crate::cache) struct Doomed {
    pub(in crate::cache) keys: Vec<SnapshotKey>,
    snapshots: Snapshots,
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let mut state = self.snapshots.0.holds.state();
        for key in &self.keys {
            state.doomed.remove(key);
        }
        drop(state);
        self.snapshots.0.holds.absolved.notify_waiters();
    }
}
