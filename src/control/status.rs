//! The progress of a build as its followers get it.
//!
//! A journal gives batches of updates. Within a batch vertices stand in the order in which they
//! started, those that have not started first, and everything else in the order of time; the batch
//! then becomes as many messages as its size calls for. An update never comes in a message before the
//! first one of its vertex. Of two states of a vertex in one batch the first is left out if the second says
//! all that it said: a client takes as long for each as the daemon does.

mod convert;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::history::Steps;
use crate::oci::Digest;
use crate::progress::Update;
use crate::progress::Vertex;

pub use convert::Frames;
pub use convert::InvalidFrame;
pub use convert::Response;
pub use convert::frame;
pub use convert::responses;

/// What is told of a batch, in the order in which it is told.
pub fn told(batch: &[Arc<Update>]) -> Vec<&Update> {
    let mut told: Vec<Option<&Update>> = Vec::with_capacity(batch.len());
    let mut last: HashMap<Digest, (usize, &Vertex)> = HashMap::new();
    for update in batch {
        if let Update::Vertex(vertex) = &**update
            && let Some((at, before)) = last.insert(vertex.digest, (told.len(), vertex))
            && contains(vertex, before)
        {
            told[at] = None;
        }
        told.push(Some(update));
    }
    let mut told: Vec<&Update> = told.into_iter().flatten().collect();
    // A stable sort keeps the states of a vertex in order, whose times may be equal.
    told.sort_by_key(|update| match update {
        Update::Vertex(vertex) => (0, vertex.started.unwrap_or(SystemTime::UNIX_EPOCH)),
        Update::Item(item) => (1, item.timestamp),
        Update::Log(log) => (2, log.timestamp),
        Update::Warning(_) => (3, SystemTime::UNIX_EPOCH),
    });
    told
}

/// True if a state of a vertex says all that the one before said: it has not begun anew since.
fn contains(state: &Vertex, before: &Vertex) -> bool {
    let is_further = before.completed.is_none() || state.completed.is_some();
    before.started.is_none() || (before.started == state.started && is_further)
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
