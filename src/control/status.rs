//! The progress of a build as its followers get it.
//!
//! A journal gives batches of updates. Within a batch vertices stand in the order in which they
//! started, those that have not started first, and everything else in the order of time; the batch
//! then becomes as many messages as its size calls for. An update never comes in a message before the
//! first one of its vertex.

mod convert;

use std::collections::HashMap;
use std::time::SystemTime;

use super::history::Steps;
use crate::oci::Digest;
use crate::progress::Update;

pub use convert::Frames;
pub use convert::InvalidFrame;
pub use convert::Response;
pub use convert::frame;
pub use convert::responses;

/// Puts a batch into the order in which it is told.
pub fn sort(batch: &mut [Update]) {
    // A stable sort keeps the states of a vertex in order, whose times may be equal.
    batch.sort_by_key(|update| match update {
        Update::Vertex(vertex) => (0, vertex.started.unwrap_or(SystemTime::UNIX_EPOCH)),
        Update::Item(item) => (1, item.timestamp),
        Update::Log(log) => (2, log.timestamp),
        Update::Warning(_) => (3, SystemTime::UNIX_EPOCH),
    });
}

/// Counts the steps of a build from its updates.
#[derive(Clone, Debug, Default)]
pub struct StepCount {
    vertices: HashMap<Digest, (bool, bool)>,
    warnings: u32,
}

impl StepCount {
    pub fn see(&mut self, update: &Update) {
        match update {
            Update::Vertex(vertex) => {
                let (cached, completed) = self.vertices.entry(vertex.digest).or_default();
                *cached |= vertex.cached;
                *completed |= vertex.completed.is_some();
            }
            Update::Warning(_) => self.warnings += 1,
            Update::Item(_) | Update::Log(_) => {}
        }
    }

    pub fn steps(&self) -> Steps {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Steps {
            total: count(self.vertices.len()),
            cached: count(self.vertices.values().filter(|(cached, _)| *cached).count()),
            completed: count(self.vertices.values().filter(|(_, completed)| *completed).count()),
            warnings: self.warnings,
        }
    }
}

#[cfg(test)]
mod tests;
