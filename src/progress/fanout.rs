//! [`Fanout`]: the progress of one vertex to every build that waits for it.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::Journal;
use super::Sink;
use super::Update;
use super::journal::Entries;

/// Sends each update to all attached journals, and the past to one that is attached late.
#[derive(Clone, Debug, Default)]
pub struct Fanout(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    past: Entries,
    journals: Vec<Journal>,
}

impl Fanout {
    pub fn new() -> Fanout {
        Fanout::default()
    }

    /// Attaches `journal`, which gets the past first. Twice is once.
    pub fn attach(&self, journal: &Journal) {
        let mut inner = self.inner();
        if inner.journals.iter().any(|j| j.same(journal)) {
            return;
        }
        for update in inner.past.all() {
            journal.share(Arc::clone(update));
        }
        inner.journals.push(journal.clone());
    }

    /// Detaches `journal`, when its build is over or no longer waits for the vertex.
    pub fn detach(&self, journal: &Journal) {
        self.inner().journals.retain(|j| !j.same(journal));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Fanout {
    fn send(&self, update: Update) {
        let update = Arc::new(update);
        let mut inner = self.inner();
        inner.journals.retain(|j| !j.is_closed());
        for journal in &inner.journals {
            journal.share(Arc::clone(&update));
        }
        inner.past.push(update);
    }
}
