//! Records that this process uses at the moment, and those that it is about to delete.
//!
//! # Invariants
//!
//! A record is *held* or *doomed*, never both. Whoever wants a record holds its ID first and looks for
//! its row second; whoever deletes records dooms them first, checks in the deleting transaction that
//! they are still not held (a record that is made again takes its hold before its write), and absolves
//! them when the transaction is over, whatever came of it.
//!
//! # Locking
//!
//! One mutex, for look-ups and counts only.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use jiff::Timestamp;
use redb::ReadableTable;

use super::record::RecordId;
use super::record::USES;
use super::record::Uses;
use crate::db::Db;

#[derive(Clone)]
pub(super) struct Live {
    db: Db,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    held: HashMap<RecordId, usize>,
    doomed: HashSet<RecordId>,
    /// Newer than the rows, which are written behind.
    uses: HashMap<RecordId, Uses>,
}

impl Live {
    pub(super) fn new(db: Db) -> Live {
        Live { db, state: Arc::default() }
    }

    /// Holds a record that may not exist yet. `None` while it is being deleted.
    pub(super) fn hold(&self, id: RecordId) -> Option<Hold> {
        let mut state = self.state();
        if state.doomed.contains(&id) {
            return None;
        }
        *state.held.entry(id).or_insert(0) += 1;
        Some(Hold { id, live: self.clone(), used: false })
    }

    /// Holds a record that the caller is going to make, if a deletion under way takes it. The caller's
    /// write comes after the deletion's, or the deletion sees the hold.
    pub(super) fn hold_to_make(&self, id: RecordId) -> Hold {
        *self.state().held.entry(id).or_insert(0) += 1;
        Hold { id, live: self.clone(), used: false }
    }

    pub(super) fn is_held(&self, id: &RecordId) -> bool {
        self.state().held.contains_key(id)
    }

    /// Dooms those of `ids` that nobody holds or deletes, and says which.
    pub(super) fn doom(&self, ids: impl IntoIterator<Item = RecordId>) -> Doomed {
        let mut state = self.state();
        let free = |state: &State, id: &RecordId| !state.held.contains_key(id) && !state.doomed.contains(id);
        let ids: Vec<RecordId> = ids.into_iter().filter(|id| free(&state, id)).collect();
        state.doomed.extend(ids.iter().copied());
        Doomed { ids, live: self.clone() }
    }

    /// The newest uses of `id`: those of this process, else `row`'s.
    pub(super) fn uses(&self, id: &RecordId, row: Option<Uses>) -> Option<Uses> {
        self.state().uses.get(id).copied().or(row)
    }

    /// Notes `row` as what is known of a record's uses before this process added to it.
    fn note_base(&self, id: RecordId, row: Option<Uses>) {
        if let Some(row) = row {
            self.state().uses.entry(id).or_insert(row);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds one record. Dropping it changes memory and queues a write that nobody waits for.
pub(super) struct Hold {
    id: RecordId,
    live: Live,
    /// True if the end of this hold counts as a use.
    used: bool,
}

impl Hold {
    pub(super) fn id(&self) -> RecordId {
        self.id
    }

    /// Makes the end of this hold count as a use. `row` is what the table says.
    pub(super) fn count_use(&mut self, row: Option<Uses>) {
        self.live.note_base(self.id, row);
        self.used = true;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.live.state();
        if let Some(count) = state.held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.id);
            }
        }
        if !self.used {
            return;
        }
        let before = state.uses.get(&self.id).map_or(0, |u| u.count);
        let uses = Uses { last: Timestamp::now(), count: before + 1 };
        state.uses.insert(self.id, uses);
        drop(state);
        let id = self.id;
        self.live.db.write_behind(move |tx| {
            let key = id.to_string();
            // A record that was collected meanwhile has no uses.
            if tx.table(super::record::RECORDS)?.get(key.as_str())?.is_some() {
                tx.table(USES)?.insert(key.as_str(), uses.to_row())?;
            }
            Ok(())
        });
    }
}

/// Records whose deletion is under way.
pub(super) struct Doomed {
    ids: Vec<RecordId>,
    live: Live,
}

impl Doomed {
    pub(super) fn ids(&self) -> &[RecordId] {
        &self.ids
    }

    /// Forgets what is kept in memory of records that are deleted.
    pub(super) fn forget(&self, deleted: &[RecordId]) {
        let mut state = self.live.state();
        for id in deleted {
            // One that was made again meanwhile starts anew as well.
            state.uses.remove(id);
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let mut state = self.live.state();
        for id in &self.ids {
            state.doomed.remove(id);
        }
    }
}
