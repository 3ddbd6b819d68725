//! Where laziness lives: the [`Residency`] of a blob, and the one table that changes it.
//!
//! # States
//!
//! ```text
//!                 Begin                     Arrive
//!   ┌────────┐ ───────────▶ ┌──────────┐ ───────────▶ ┌──────────┐
//!   │ Remote │              │ Fetching │              │ Resident │
//!   └────────┘ ◀─────────── └──────────┘        ┌───▶ └──────────┘
//!     │    ▲       Abandon                      │       │      ▲
//!     │    │            Arrive (written here)   │       │      │
//!     └────┼────────────────────────────────────┘       │ Evict│ Keep
//!          │       Gone                                 ▼      │
//!          └────────────────────────────────────────── ┌──────────┐
//!                                                      │ Evicting │
//!                                                      └──────────┘
//! ```
//!
//! `Arrive` and `Gone` happen after the durable step that they speak of: the file is renamed and its
//! directory synced; the file is deleted and the deletion's record cleared. Both therefore survive a
//! crash, and a blob that nothing happens to needs no entry: its residency is read off the disk, where
//! a file of the right size under its final name is a resident blob.
//!
//! # Invariants
//!
//! - A blob is evicted only if nobody holds it. [`BlobTable::begin_eviction`] looks at the leases under
//!   the table's lock, and whoever wants a blob holds it first and looks it up second. So either the
//!   eviction sees the hold, or the one who looks sees the eviction and waits for its end.
//! - Of one blob there is at most one fetch or one eviction at a time, and never both.
//!
//! # Locking
//!
//! One mutex over the table, held for memory operations only. A fetch's own lock is never taken
//! under it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio_util::sync::CancellationToken;

use crate::lease::Leases;
use crate::oci::Digest;

/// Where the bytes of a blob are. `F` is the running fetch.
#[derive(Debug)]
pub(super) enum Residency<F> {
    /// Elsewhere, or nowhere.
    Remote,
    /// On their way, by this fetch.
    Fetching(Arc<F>),
    /// In a file, whole and verified.
    Resident { size: u64 },
    /// On their way out; the token is cancelled at the end.
    Evicting { size: u64, ended: CancellationToken },
}

// Derived, it would ask for `F: Clone`.
impl<F> Clone for Residency<F> {
    fn clone(&self) -> Self {
        match self {
            Residency::Remote => Residency::Remote,
            Residency::Fetching(fetch) => Residency::Fetching(Arc::clone(fetch)),
            Residency::Resident { size } => Residency::Resident { size: *size },
            Residency::Evicting { size, ended } => Residency::Evicting { size: *size, ended: ended.clone() },
        }
    }
}

/// What can happen to a blob.
#[derive(Debug)]
pub(super) enum Event<F> {
    /// A fetch begins.
    Begin(Arc<F>),
    /// The fetch ended without the bytes.
    Abandon,
    /// The bytes are here, verified and durable: fetched, or written here.
    Arrive { size: u64 },
    /// The collector found that nobody needs them.
    Evict { ended: CancellationToken },
    /// Somebody needs them after all.
    Keep,
    /// They are deleted.
    Gone,
}

/// An event that can't happen in a state: a bug of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a blob that is {state} can't {event}")]
pub(super) struct Impossible {
    state: &'static str,
    event: &'static str,
}

impl<F> Residency<F> {
    /// The state after `event`. The only place where residency changes.
    pub(super) fn apply(&self, event: Event<F>) -> Result<Residency<F>, Impossible> {
        Ok(match (self, event) {
            (Residency::Remote, Event::Begin(fetch)) => Residency::Fetching(fetch),
            (Residency::Fetching(_), Event::Abandon) => Residency::Remote,
            (Residency::Remote | Residency::Fetching(_), Event::Arrive { size }) => {
                Residency::Resident { size }
            }
            (Residency::Resident { size }, Event::Evict { ended }) => {
                Residency::Evicting { size: *size, ended }
            }
            (Residency::Evicting { size, .. }, Event::Keep) => Residency::Resident { size: *size },
            (Residency::Evicting { .. }, Event::Gone) => Residency::Remote,
            (state, event) => return Err(Impossible { state: state.name(), event: event.name() }),
        })
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Residency::Remote => "remote",
            Residency::Fetching(_) => "fetching",
            Residency::Resident { .. } => "resident",
            Residency::Evicting { .. } => "evicting",
        }
    }
}

impl<F> Event<F> {
    fn name(&self) -> &'static str {
        match self {
            Event::Begin(_) => "begin a fetch",
            Event::Abandon => "abandon a fetch",
            Event::Arrive { .. } => "arrive",
            Event::Evict { .. } => "be evicted",
            Event::Keep => "be kept",
            Event::Gone => "be gone",
        }
    }
}

/// The residency of every blob that something happened to.
pub(super) struct BlobTable<F> {
    entries: Mutex<HashMap<Digest, Residency<F>>>,
}

impl<F> Default for BlobTable<F> {
    fn default() -> Self {
        BlobTable { entries: Mutex::default() }
    }
}

impl<F> fmt::Debug for BlobTable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobTable({})", self.entries().len())
    }
}

impl<F> BlobTable<F> {
    /// What is known in memory; `None` means that the disk says it.
    pub(super) fn get(&self, digest: &Digest) -> Option<Residency<F>> {
        self.entries().get(digest).cloned()
    }

    /// All that are on their way.
    pub(super) fn fetches(&self) -> Vec<(Digest, Arc<F>)> {
        let entries = self.entries();
        let fetching = entries.iter().filter_map(|(digest, state)| match state {
            Residency::Fetching(fetch) => Some((*digest, Arc::clone(fetch))),
            _ => None,
        });
        fetching.collect()
    }

    /// As [`BlobTable::get`], where a look at the disk `found` a whole file or none. The caller must
    /// hold the blob since before it looked.
    pub(super) fn get_or_note(&self, digest: &Digest, found: Option<u64>) -> Residency<F> {
        let mut entries = self.entries();
        match found {
            Some(size) => entries.entry(*digest).or_insert(Residency::Resident { size }).clone(),
            None => entries.get(digest).cloned().unwrap_or(Residency::Remote),
        }
    }

    /// Starts a fetch if the blob is remote; otherwise says what it is.
    pub(super) fn begin(&self, digest: &Digest, fetch: Arc<F>) -> Result<(), Residency<F>> {
        let mut entries = self.entries();
        let state = entries.entry(*digest).or_insert(Residency::Remote);
        if !matches!(state, Residency::Remote) {
            return Err(state.clone());
        }
        change(state, Event::Begin(fetch));
        Ok(())
    }

    /// Ends the fetch of a blob: `size` if it arrived.
    pub(super) fn end(&self, digest: &Digest, arrived: Option<u64>) {
        self.apply(
            digest,
            match arrived {
                Some(size) => Event::Arrive { size },
                None => Event::Abandon,
            },
        );
    }

    /// Notes that the blob was written here, by someone who holds it and saw no eviction. A running
    /// fetch of it goes on and replaces the file by the same bytes.
    pub(super) fn written(&self, digest: &Digest, size: u64) {
        let mut entries = self.entries();
        let state = entries.entry(*digest).or_insert(Residency::Remote);
        if matches!(state, Residency::Remote) {
            change(state, Event::Arrive { size });
        }
    }

    /// Runs `quick` if nothing happened to the blob in this process, and keeps it so meanwhile.
    pub(super) fn while_unknown<T>(&self, digest: &Digest, quick: impl FnOnce() -> T) -> Option<T> {
        let entries = self.entries();
        (!entries.contains_key(digest)).then(quick)
    }

    /// Runs `quick` if nothing moves and nobody holds the blob, and keeps it so meanwhile.
    pub(super) fn while_idle<T>(
        &self,
        digest: &Digest,
        leases: &Leases,
        quick: impl FnOnce() -> T,
    ) -> Option<T> {
        let entries = self.entries();
        let moves = matches!(entries.get(digest), Some(Residency::Fetching(_) | Residency::Evicting { .. }));
        (!moves && !leases.is_held(digest)).then(quick)
    }

    /// Starts to evict a blob of `size` bytes that is on disk, unless it is held or moving.
    pub(super) fn begin_eviction(&self, digest: &Digest, size: u64, leases: &Leases) -> bool {
        let mut entries = self.entries();
        let state = entries.entry(*digest).or_insert(Residency::Resident { size });
        if leases.is_held(digest) || !matches!(state, Residency::Resident { .. }) {
            return false;
        }
        change(state, Event::Evict { ended: CancellationToken::new() });
        true
    }

    /// Ends an eviction, and wakes those who wait for that.
    pub(super) fn end_eviction(&self, digest: &Digest, kept: bool) {
        let mut entries = self.entries();
        let Some(state) = entries.get_mut(digest) else { return };
        let Residency::Evicting { ended, .. } = state.clone() else { return };
        change(state, if kept { Event::Keep } else { Event::Gone });
        forget_remote(&mut entries, digest);
        drop(entries);
        ended.cancel();
    }

    fn apply(&self, digest: &Digest, event: Event<F>) {
        let mut entries = self.entries();
        change(entries.entry(*digest).or_insert(Residency::Remote), event);
        forget_remote(&mut entries, digest);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Digest, Residency<F>>> {
        // Poisoned by a caller's panic; every entry is whole at every step.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An impossible event changes nothing: the disk is right, and a state that lags behind it is
/// found out by the next one who looks.
fn change<F>(state: &mut Residency<F>, event: Event<F>) {
    match state.apply(event) {
        Ok(next) => *state = next,
        Err(impossible) => {
            debug_assert!(false, "{impossible}");
            tracing::error!(%impossible, "residency");
        }
    }
}

fn forget_remote<F>(entries: &mut HashMap<Digest, Residency<F>>, digest: &Digest) {
    if matches!(entries.get(digest), Some(Residency::Remote)) {
        entries.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> [Residency<()>; 4] {
        [
            Residency::Remote,
            Residency::Fetching(Arc::new(())),
            Residency::Resident { size: 1 },
            Residency::Evicting { size: 1, ended: CancellationToken::new() },
        ]
    }

    fn events() -> [Event<()>; 6] {
        [
            Event::Begin(Arc::new(())),
            Event::Abandon,
            Event::Arrive { size: 1 },
            Event::Evict { ended: CancellationToken::new() },
            Event::Keep,
            Event::Gone,
        ]
    }

    #[test]
    fn the_transitions_are_those_of_the_drawing() {
        // Rows: states. Columns: begin, abandon, arrive, evict, keep, gone.
        const TABLE: [[&str; 6]; 4] = [
            /* remote   */ ["fetching", "-", "resident", "-", "-", "-"],
            /* fetching */ ["-", "remote", "resident", "-", "-", "-"],
            /* resident */ ["-", "-", "-", "evicting", "-", "-"],
            /* evicting */ ["-", "-", "-", "-", "resident", "remote"],
        ];
        for (state, row) in states().iter().zip(TABLE) {
            for (event, expected) in events().into_iter().zip(row) {
                let name = event.name();
                let next = state.apply(event).map_or("-", |s| s.name());
                assert_eq!(next, expected, "{} and {name}", state.name());
            }
        }
    }

    #[test]
    fn a_held_blob_is_not_evicted() {
        let (table, leases, digest) = (BlobTable::<()>::default(), Leases::new(), Digest::sha256("x"));
        let lease = leases.hold(digest);
        assert!(!table.begin_eviction(&digest, 1, &leases));
        drop(lease);
        assert!(table.begin_eviction(&digest, 1, &leases));
        assert!(!table.begin_eviction(&digest, 1, &leases), "one eviction at a time");
    }

    #[test]
    fn who_looks_during_an_eviction_can_wait_for_its_end() {
        let (table, leases, digest) = (BlobTable::<()>::default(), Leases::new(), Digest::sha256("x"));
        assert!(table.begin_eviction(&digest, 1, &leases));
        let _lease = leases.hold(digest);
        let Err(Residency::Evicting { ended, .. }) = table.begin(&digest, Arc::new(())) else {
            panic!("a fetch began during an eviction")
        };
        assert!(!ended.is_cancelled());
        table.end_eviction(&digest, false);
        assert!(ended.is_cancelled());
        assert!(table.begin(&digest, Arc::new(())).is_ok());
    }

    #[test]
    fn a_blob_that_nothing_happens_to_takes_no_memory() {
        let (table, digest) = (BlobTable::<()>::default(), Digest::sha256("x"));
        table.begin(&digest, Arc::new(())).unwrap();
        table.end(&digest, None);
        assert!(table.get(&digest).is_none());
        assert!(table.entries().is_empty());
    }
}
