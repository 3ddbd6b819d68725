//! What is happening, in plain types: vertices, their items, logs and warnings.
//!
//! A [`Journal`] belongs to one build and gives each reader everything from the start. A
//! [`VertexProgress`] is the writing end for one vertex; since a vertex may serve several builds, it
//! writes to a [`Fanout`], which replays the past to a journal that is attached late.
//!
//! # Invariants
//!
//! An item, log or warning follows the first mention of its vertex, in every reader's order.
//! Only items are thinned out: of one (vertex, item) a reader gets the newest value that it has not
//! seen. Vertex updates, logs and warnings are never dropped.
//!
//! # Locking
//!
//! One mutex per journal, fan-out and vertex, held for memory operations only, taken in the order
//! vertex, fan-out, journal.

mod fanout;
mod journal;
mod usage;
mod vertex;

use std::sync::Arc;
use std::time::SystemTime;

pub use fanout::Fanout;
pub use journal::Journal;
pub use journal::Reader;
pub use usage::CpuUsage;
pub use usage::IoUsage;
pub use usage::MemoryUsage;
pub use usage::Sample;
pub use vertex::Busy;
pub use vertex::ItemProgress;
pub use vertex::TransferProgress;
pub use vertex::VertexProgress;

use crate::oci::Digest;

/// Takes updates. Never blocks and never fails: progress must not hold up work.
pub trait Sink: Send + Sync {
    fn send(&self, update: Update);
}

#[derive(Clone, PartialEq, Debug)]
pub enum Update {
    Vertex(Vertex),
    Item(Item),
    Log(Log),
    Warning(Warning),
}

impl Update {
    /// The vertex that the update is about.
    pub fn vertex(&self) -> &Digest {
        match self {
            Update::Vertex(v) => &v.digest,
            Update::Item(i) => &i.vertex,
            Update::Log(l) => &l.vertex,
            Update::Warning(w) => &w.vertex,
        }
    }
}

/// A step of a build and how far it has come. Each of its states is sent, so that a clone is to cost little.
#[derive(Clone, PartialEq, Debug)]
pub struct Vertex {
    pub digest: Digest,
    pub inputs: Arc<[Digest]>,
    pub name: Arc<str>,
    pub cached: bool,
    pub started: Option<SystemTime>,
    pub completed: Option<SystemTime>,
    pub error: Option<String>,
    pub group: Option<ProgressGroup>,
    /// What its process used, from its start to its end, in few samples; none if it had no process. No message of
    /// BuildKit's API has it but provenance.
    pub usage: Option<Arc<[Sample]>>,
}

impl Vertex {
    /// A vertex that has not started.
    pub fn new(digest: Digest, name: impl Into<Arc<str>>) -> Vertex {
        Vertex {
            digest,
            inputs: Arc::default(),
            name: name.into(),
            cached: false,
            started: None,
            completed: None,
            error: None,
            group: None,
            usage: None,
        }
    }
}

/// Folds vertices into one row of a display.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgressGroup {
    pub id: String,
    pub name: String,
    /// Hidden while only weak members have started.
    pub weak: bool,
}

/// A part of a vertex's work, such as one layer. `id` is unique within the vertex.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    pub vertex: Digest,
    pub id: String,
    pub name: String,
    /// In bytes where the item is a transfer.
    pub current: u64,
    /// 0 if unknown.
    pub total: u64,
    pub timestamp: SystemTime,
    pub started: Option<SystemTime>,
    pub completed: Option<SystemTime>,
}

/// Output of a step.
#[derive(Clone, PartialEq, Debug)]
pub struct Log {
    pub vertex: Digest,
    pub timestamp: SystemTime,
    pub stream: LogStream,
    pub data: bytes::Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Advice to the author of a build.
#[derive(Clone, PartialEq, Debug)]
pub struct Warning {
    pub vertex: Digest,
    pub level: i64,
    pub short: bytes::Bytes,
    pub detail: Vec<bytes::Bytes>,
    pub url: String,
    pub source: Option<SourceFile>,
    pub ranges: Vec<SourceRange>,
}

/// A file that a build was described in.
#[derive(Clone, PartialEq, Debug)]
pub struct SourceFile {
    pub filename: String,
    pub language: String,
    pub data: bytes::Bytes,
    /// The definition that the file was part of, as it was sent.
    pub definition: Option<bytes::Bytes>,
}

/// Lines and characters, both ends included, as the client counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceRange {
    pub start: SourcePosition,
    pub end: SourcePosition,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourcePosition {
    pub line: i32,
    pub character: i32,
}

#[cfg(test)]
mod tests;
