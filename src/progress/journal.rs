//! [`Journal`]: the progress of one build, readable from its start by any number of readers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch;

use super::Sink;
use super::Update;
use crate::oci::Digest;

/// Updates in order, with the outdated values of items left out. A vertex and the builds that wait for it share them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By number; `None` where the value of an item is outdated.
    by_number: Vec<(u64, Option<Arc<Update>>)>,
    items: HashMap<(Digest, String), u64>,
    next: u64,
    outdated: usize,
}

impl Entries {
    pub(super) fn push(&mut self, update: Arc<Update>) {
        let number = self.next;
        self.next += 1;
        if let Update::Item(item) = &*update
            && let Some(outdated) = self.items.insert((item.vertex, item.id.clone()), number)
        {
            self.forget(outdated);
        }
        self.by_number.push((number, Some(update)));
    }

    fn forget(&mut self, number: u64) {
        let at = self.from(number);
        if let Some((_, update)) = self.by_number.get_mut(at) {
            *update = None;
            self.outdated += 1;
        }
        // As many were added since the last time, so that each is moved a bounded number of times.
        if self.outdated > self.by_number.len() / 2 {
            self.by_number.retain(|(_, update)| update.is_some());
            self.outdated = 0;
        }
    }

    /// Where the first update is whose number is `number` or higher.
    fn from(&self, number: u64) -> usize {
        self.by_number.partition_point(|(n, _)| *n < number)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Update>> {
        self.since(0)
    }

    /// Those whose number is `number` or higher.
    fn since(&self, number: u64) -> impl Iterator<Item = &Arc<Update>> {
        self.by_number[self.from(number)..].iter().filter_map(|(_, update)| update.as_ref())
    }
}

/// The progress of one build. Clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: Mutex<Entries>,
    /// Number of the next update, and whether there will be one.
    tail: watch::Sender<Tail>,
    /// There will be none: for who does not want to be woken by each update.
    ended: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Tail {
    next: u64,
    closed: bool,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal::new()
    }
}

impl Journal {
    pub fn new() -> Journal {
        Journal(Arc::new(Inner {
            entries: Mutex::default(),
            tail: watch::Sender::default(),
            ended: Notify::new(),
        }))
    }

    /// A reader that starts at the first update.
    pub fn reader(&self) -> Reader {
        Reader { journal: self.clone(), tail: self.0.tail.subscribe(), next: 0 }
    }

    /// Ends every reader once it has read what is there. Later updates are ignored.
    pub fn close(&self) {
        self.0.tail.send_modify(|tail| tail.closed = true);
        self.0.ended.notify_waiters();
    }

    pub fn is_closed(&self) -> bool {
        self.0.tail.borrow().closed
    }

    /// True if both are one journal.
    pub fn same(&self, other: &Journal) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// As [`Sink::send`], of an update that others have as well.
    pub(super) fn share(&self, update: Arc<Update>) {
        let mut entries = self.entries();
        if self.is_closed() {
            return;
        }
        entries.push(update);
        let next = entries.next;
        drop(entries);
        self.0.tail.send_modify(|tail| tail.next = tail.next.max(next));
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Journal {
    fn send(&self, update: Update) {
        self.share(Arc::new(update));
    }
}

/// One reader's place in a journal.
#[derive(Debug)]
pub struct Reader {
    journal: Journal,
    tail: watch::Receiver<Tail>,
    next: u64,
}

impl Reader {
    /// Waits until the journal is closed, but no longer than `pause`: so that what comes meanwhile comes together.
    ///
    /// Cancellation safe.
    pub async fn gather(&self, pause: Duration) {
        let mut ended = std::pin::pin!(self.journal.0.ended.notified());
        ended.as_mut().enable();
        if !self.journal.is_closed() {
            let _ = tokio::time::timeout(pause, ended).await;
        }
    }

    /// Everything new, in order; waits while there is nothing. `None` after the end.
    ///
    /// Cancellation safe: nothing is taken before the future is ready.
    pub async fn next(&mut self) -> Option<Vec<Arc<Update>>> {
        loop {
            let from = self.next;
            // The journal is held by `self`, so the sender lives.
            let tail = *self.tail.wait_for(|tail| tail.closed || tail.next > from).await.ok()?;
            let entries = self.journal.entries();
            let batch: Vec<Arc<Update>> = entries.since(from).cloned().collect();
            self.next = entries.next;
            if !batch.is_empty() {
                return Some(batch);
            }
            if tail.closed {
                return None;
            }
        }
    }
}
