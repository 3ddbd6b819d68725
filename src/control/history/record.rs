//! [`Record`]: what is kept of one build.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::oci::Descriptor;
use crate::oci::Digest;

/// What is kept of one build. A row of the store is its JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The ref that the client gave to the build.
    pub build: String,
    #[serde(default)]
    pub frontend: String,
    #[serde(default)]
    pub frontend_attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub exporters: Vec<RecordedExporter>,
    pub created: Timestamp,
    /// None while the build runs.
    pub completed: Option<Timestamp>,
    #[serde(default)]
    pub error: Option<RecordedError>,
    /// The whole status of the build, as a blob of this node.
    #[serde(default)]
    pub logs: Option<Descriptor>,
    /// The error with all its details, as a blob of this node.
    #[serde(default)]
    pub external_error: Option<Descriptor>,
    #[serde(default)]
    pub exporter_response: BTreeMap<String, String>,
    /// What was exported, by the number of the exporter.
    #[serde(default)]
    pub results: BTreeMap<usize, Descriptor>,
    #[serde(default)]
    pub steps: Steps,
    /// Kept until it is deleted by hand.
    #[serde(default)]
    pub pinned: bool,
    /// Grows by one with each update.
    #[serde(default)]
    pub generation: i32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordedExporter {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

/// An error without its details.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordedError {
    /// A code of gRPC.
    pub code: i32,
    pub message: String,
}

/// How many vertices a build had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Steps {
    pub total: u32,
    pub cached: u32,
    pub completed: u32,
    pub warnings: u32,
}

/// How a build stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Running,
    Completed,
    Error,
    Canceled,
}

impl State {
    /// As filters name it.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Completed => "completed",
            State::Error => "error",
            State::Canceled => "canceled",
        }
    }
}

impl Record {
    /// The record of a build that starts now.
    pub fn new(build: impl Into<String>) -> Record {
        Record {
            build: build.into(),
            frontend: String::new(),
            frontend_attributes: BTreeMap::new(),
            exporters: Vec::new(),
            created: Timestamp::now(),
            completed: None,
            error: None,
            logs: None,
            external_error: None,
            exporter_response: BTreeMap::new(),
            results: BTreeMap::new(),
            steps: Steps::default(),
            pinned: false,
            generation: 0,
        }
    }

    pub fn state(&self) -> State {
        match (&self.completed, &self.error) {
            (None, _) => State::Running,
            (Some(_), None) => State::Completed,
            (Some(_), Some(error)) if error.message.contains("context canceled") => State::Canceled,
            (Some(_), Some(_)) => State::Error,
        }
    }

    /// The repository that the build's source is from, if its client said so.
    pub fn repository(&self) -> Option<&str> {
        if let Some(source) = self.frontend_attributes.get("vcs:source") {
            return Some(source);
        }
        let context = self.frontend_attributes.get("context")?;
        let remote = context.split('#').next().unwrap_or_default();
        let is_git = remote.starts_with("git@")
            || remote.starts_with("git://")
            || remote.starts_with("ssh://")
            || (remote.starts_with("https://") || remote.starts_with("http://")) && remote.ends_with(".git");
        is_git.then_some(remote)
    }

    /// The blobs that go with the record.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let results = self.results.values();
        self.logs.iter().chain(&self.external_error).chain(results).map(|descriptor| descriptor.digest)
    }
}

/// A change of the history.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Started(Arc<Record>),
    /// A build is over, or the record of one that is over has changed.
    Complete(Arc<Record>),
    /// The record of this ref is gone.
    Deleted(String),
}

impl Event {
    /// The ref that the event is about.
    pub fn build(&self) -> &str {
        match self {
            Event::Started(record) | Event::Complete(record) => &record.build,
            Event::Deleted(build) => build,
        }
    }
}
