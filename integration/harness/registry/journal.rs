//! The record of every request and byte, which tests assert on and wait for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use http::Method;
use http::Version;
use tokio::sync::watch;

use super::point::Op;

/// Which of the registry's two addresses a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    Registry,
    /// The host that blob reads are redirected to.
    Cdn,
}

/// One request, as far as it has come.
#[derive(Clone, Debug)]
pub struct Request {
    /// Position in the order of arrival, from 0.
    pub id: usize,
    pub listener: Listener,
    /// Number of the connection that it came on, from 0.
    pub connection: usize,
    pub version: Version,
    pub method: Method,
    pub uri: String,
    pub op: Op,
    pub repository: String,
    /// Digest, tag or upload id; for a completed upload or a mount the blob's digest.
    pub reference: String,
    /// The `from` of a mount.
    pub from: Option<String>,
    /// The header as it came.
    pub authorization: Option<String>,
    /// Who the credential belongs to; `None` without one, or with one that nobody has.
    pub user: Option<String>,
    /// The scopes that a token request asked for.
    pub scopes: Vec<String>,
    pub range: Option<String>,
    pub accept: Vec<String>,
    pub user_agent: Option<String>,
    /// `None` until the reply's head was made, and for ever if the connection was dropped instead.
    pub status: Option<u16>,
    /// Bytes of the request's body that were read.
    pub bytes_in: u64,
    /// Bytes of the reply's body that were handed to the connection.
    pub bytes_out: u64,
    /// What was done to it on purpose.
    pub fault: Option<String>,
    /// The reply's body was sent whole, or dropped with its connection.
    pub ended: bool,
}

impl Request {
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Figures about connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub accepted: usize,
    pub open: usize,
    /// Most that were open at the same time.
    pub peak: usize,
}

#[derive(Default)]
struct Entries {
    /// In order of their ids.
    requests: Vec<Request>,
    next_id: usize,
    connections: Connections,
    /// Requests of one kind in progress now, and the most that were at the same time.
    concurrent: HashMap<Op, (usize, usize)>,
}

/// Shared by all connections of one registry.
///
/// Locking: the mutex is held for the change of one entry only; `changed` wakes waiters after it.
pub(super) struct Journal {
    entries: Mutex<Entries>,
    changed: watch::Sender<()>,
}

impl Journal {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), changed: watch::Sender::new(()) })
    }

    pub fn requests(&self) -> Vec<Request> {
        self.entries().requests.clone()
    }

    pub fn connections(&self) -> Connections {
        self.entries().connections
    }

    pub fn peak_concurrent(&self, op: Op) -> usize {
        self.entries().concurrent.get(&op).map_or(0, |&(_, peak)| peak)
    }

    /// Forgets all requests and peaks, so that a test can count from here.
    pub fn clear(&self) {
        let mut entries = self.entries();
        entries.requests.clear();
        let Connections { accepted, open, .. } = entries.connections;
        entries.connections = Connections { accepted, open, peak: open };
        entries.concurrent.values_mut().for_each(|(now, peak)| *peak = *now);
    }

    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn connection_opened(&self) -> usize {
        let mut entries = self.entries();
        let connections = &mut entries.connections;
        let number = connections.accepted;
        connections.accepted += 1;
        connections.open += 1;
        connections.peak = connections.peak.max(connections.open);
        drop(entries);
        self.wake();
        number
    }

    pub fn connection_closed(&self) {
        self.entries().connections.open -= 1;
        self.wake();
    }

    pub fn begin(self: &Arc<Self>, mut request: Request) -> Entry {
        let mut entries = self.entries();
        request.id = entries.next_id;
        entries.next_id += 1;
        let (now, peak) = entries.concurrent.entry(request.op).or_default();
        *now += 1;
        *peak = (*peak).max(*now);
        let entry = Entry { journal: self.clone(), id: request.id, op: request.op };
        entries.requests.push(request);
        drop(entries);
        self.wake();
        entry
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("journal")
    }

    fn wake(&self) {
        self.changed.send_replace(());
    }
}

/// The pen for one request; dropping it ends the request.
pub(super) struct Entry {
    journal: Arc<Journal>,
    id: usize,
    op: Op,
}

impl Entry {
    pub fn update(&self, change: impl FnOnce(&mut Request)) {
        let mut entries = self.journal.entries();
        // A cleared journal no longer has the request.
        if let Ok(index) = entries.requests.binary_search_by_key(&self.id, |request| request.id) {
            change(&mut entries.requests[index]);
        }
        drop(entries);
        self.journal.wake();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some((now, _)) = self.journal.entries().concurrent.get_mut(&self.op) {
            *now -= 1;
        }
        self.update(|request| request.ended = true);
    }
}
