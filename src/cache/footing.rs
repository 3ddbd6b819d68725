//! [`Footing`]: the snapshots that another one is to stand on, none of which is removed meanwhile.
//!
//! What was found to be whole of a state is [kept](Seen) with its change sets, for the states on top of it: a step on a
//! chain of a thousand others holds one list, and looks at what the step before it has added.
//!
//! # Invariants
//!
//! A list is held as a whole from before anybody looks whether its snapshots are there. A snapshot that was there when all
//! were held, and in whose generation nothing was removed since, is there.

use std::sync::Arc;

use super::snapshots::Generation;
use super::snapshots::ListHold;
use super::snapshots::SnapshotHold;
use crate::snapshot::Parents;

/// Snapshots on top of each other, held. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Footing {
    parents: Parents,
    held: Option<Arc<Held>>,
    /// When all were seen, if they are all change sets of a state, and not those alone that some paths need.
    whole: Option<Generation>,
}

/// What keeps them.
enum Held {
    Each { _holds: Vec<Arc<SnapshotHold>>, _below: Option<Arc<Held>> },
    All { _list: ListHold },
}

/// All change sets of a state were there as files, in these snapshots.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) parents: Parents,
    pub(super) when: Generation,
}

impl Footing {
    /// All change sets of a state, which were there at that time.
    pub(super) fn whole(list: ListHold, when: Generation) -> Footing {
        let parents = list.parents().clone();
        Footing { parents, held: Some(Arc::new(Held::All { _list: list })), whole: Some(when) }
    }

    /// These and some on top of them.
    pub(super) fn with(&self, holds: Vec<Arc<SnapshotHold>>) -> Footing {
        let parents = holds.iter().fold(self.parents.clone(), |on, hold| on.with(hold.key().clone()));
        let held = Held::Each { _holds: holds, _below: self.held.clone() };
        Footing { parents, held: Some(Arc::new(held)), whole: None }
    }

    pub(super) fn parents(&self) -> &Parents {
        &self.parents
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// What to note of a state that was made on these, if they are the whole state below it. `made` is when it was:
    /// what was removed meanwhile is nothing of these.
    pub(super) fn when(&self, made: Generation) -> Option<Generation> {
        self.whole.map(|seen| made.since(seen))
    }
}

/// Some snapshots, the lowest first.
impl FromIterator<Arc<SnapshotHold>> for Footing {
    fn from_iter<I: IntoIterator<Item = Arc<SnapshotHold>>>(holds: I) -> Footing {
        Footing::default().with(holds.into_iter().collect())
    }
}

impl From<Vec<Arc<SnapshotHold>>> for Footing {
    fn from(holds: Vec<Arc<SnapshotHold>>) -> Footing {
        holds.into_iter().collect()
    }
}
