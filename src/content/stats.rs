//! Counts of what the store did, for tests and for whoever watches the daemon.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// What the store did since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ContentStats {
    /// Bytes that came from providers: to disk, passing through, or as a proof.
    pub fetched_bytes: u64,
    /// Bytes that askers got from a fetch which somebody else had begun.
    pub waited_bytes: u64,
    /// Bytes that askers got since they were resident.
    pub cached_bytes: u64,
    /// Bytes that passed through without touching the disk.
    pub streamed_bytes: u64,
    /// Fetches begun.
    pub fetches: u64,
    /// Askers that joined a fetch which somebody else had begun.
    pub joined: u64,
    /// Times that a provider was asked for bytes.
    pub opens: u64,
    /// Times that a provider was asked whether someone may have a blob.
    pub probes: u64,
    /// Times that a provider had to show a blob that is here.
    pub proofs: u64,
    /// Fsyncs of files and directories; the metadata store counts its own.
    pub fsyncs: u64,
    /// Bytes of blobs that the collector deleted.
    pub collected_bytes: u64,
}

#[derive(Default, Debug)]
pub(super) struct Counters {
    pub fetched_bytes: AtomicU64,
    pub waited_bytes: AtomicU64,
    pub cached_bytes: AtomicU64,
    pub streamed_bytes: AtomicU64,
    pub fetches: AtomicU64,
    pub joined: AtomicU64,
    pub opens: AtomicU64,
    pub probes: AtomicU64,
    pub proofs: AtomicU64,
    fsyncs: AtomicU64,
    pub collected_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn fsync(&self) {
        add(&self.fsyncs, 1);
    }

    pub(super) fn read(&self) -> ContentStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ContentStats {
            fetched_bytes: read(&self.fetched_bytes),
            waited_bytes: read(&self.waited_bytes),
            cached_bytes: read(&self.cached_bytes),
            streamed_bytes: read(&self.streamed_bytes),
            fetches: read(&self.fetches),
            joined: read(&self.joined),
            opens: read(&self.opens),
            probes: read(&self.probes),
            proofs: read(&self.proofs),
            fsyncs: read(&self.fsyncs),
            collected_bytes: read(&self.collected_bytes),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
