//! Which snapshots there are, what they were made on, and who works on them: the table of a [`Store`](super::store), in
//! memory. Nothing here does I/O.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::Parents;
use super::SnapshotError;
use super::SnapshotInfo;
use super::SnapshotKey;
use super::slot::Slot;

#[derive(Default, Debug)]
pub(super) struct Table {
    pub(super) entries: HashMap<SnapshotKey, Entry>,
    /// Those of which a snapshot is the topmost parent.
    dependents: HashMap<SnapshotKey, BTreeSet<SnapshotKey>>,
    /// Those with further parents.
    deep: BTreeSet<SnapshotKey>,
    /// All parents of those, once somebody has asked.
    below: Option<HashSet<SnapshotKey>>,
    /// Another one for each removal of a committed snapshot. No two stores have the same.
    generation: u64,
}

/// The last generation of any store.
static GENERATION: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) info: SnapshotInfo,
    pub(super) phase: Phase,
    /// Holders of mounts.
    pub(super) mounts: usize,
    pub(super) slot: Arc<Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not there yet: its key is taken.
    Making,
    Idle,
    /// Being committed or removed.
    Leaving,
}

impl Entry {
    pub(super) fn new(info: SnapshotInfo) -> Entry {
        Entry { info, phase: Phase::Idle, mounts: 0, slot: Arc::default() }
    }
}

impl Table {
    pub(super) fn new() -> Table {
        Table { generation: generation(), ..Table::default() }
    }

    /// A committed snapshot goes.
    pub(super) fn next_generation(&mut self) {
        self.generation = generation();
    }

    /// It changes whenever a committed snapshot goes.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn get(&self, key: &SnapshotKey) -> Result<&Entry, SnapshotError> {
        self.entries.get(key).ok_or_else(|| SnapshotError::NotFound { key: key.clone() })
    }

    pub(super) fn get_mut(&mut self, key: &SnapshotKey) -> Result<&mut Entry, SnapshotError> {
        self.entries.get_mut(key).ok_or_else(|| SnapshotError::NotFound { key: key.clone() })
    }

    /// One that nobody works on or has mounted.
    pub(super) fn idle(&mut self, key: &SnapshotKey) -> Result<&mut Entry, SnapshotError> {
        let entry = self.get_mut(key)?;
        if entry.phase != Phase::Idle || entry.mounts > 0 {
            return Err(SnapshotError::Busy { key: key.clone() });
        }
        Ok(entry)
    }

    pub(super) fn depend(&mut self, info: &SnapshotInfo) {
        let Some(top) = info.parents.top() else { return };
        self.dependents.entry(top.clone()).or_default().insert(info.key.clone());
        if info.parents.count() > 1 {
            self.deep.insert(info.key.clone());
            self.below = None;
        }
    }

    pub(super) fn free(&mut self, info: &SnapshotInfo) {
        let Some(top) = info.parents.top() else { return };
        if let Some(all) = self.dependents.get_mut(top) {
            all.remove(&info.key);
            if all.is_empty() {
                self.dependents.remove(top);
            }
        }
        if self.deep.remove(&info.key) {
            self.below = None;
        }
    }

    /// One that stands on a snapshot.
    pub(super) fn standing_on(&mut self, key: &SnapshotKey) -> Option<SnapshotKey> {
        if let Some(all) = self.dependents.get(key) {
            return all.first().cloned();
        }
        let (entries, deep) = (&self.entries, &self.deep);
        let parents = |by: &SnapshotKey| entries.get(by).map(|entry| &entry.info.parents);
        let below = self.below.get_or_insert_with(|| {
            Parents::union(deep.iter().filter_map(parents)).into_iter().cloned().collect()
        });
        let stands =
            |by: &&SnapshotKey| parents(by).is_some_and(|parents| parents.iter().any(|one| one == key));
        if below.contains(key) { deep.iter().find(stands).cloned() } else { None }
    }
}

/// A generation that no store has had.
fn generation() -> u64 {
    GENERATION.fetch_add(1, Ordering::Relaxed) + 1
}
