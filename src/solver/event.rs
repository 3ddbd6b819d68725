//! What the scheduler is told ([`Event`]) and what it asks for ([`Effect`]).

use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::Cause;
use super::error::VertexError;
use super::index::Answer;
use super::index::Query;
use super::index::Stored;
use super::scheduler::Shell;
use crate::oci::Digest;
use crate::ops::CacheMap;
use crate::ops::CacheOptGetter;
use crate::ops::ContentDigest;
use crate::ops::Edge;
use crate::ops::Graph;
use crate::ops::LoadError;
use crate::ops::ResultId;
use crate::progress::Journal;
use crate::session::SessionId;

/// A job, as the scheduler knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobNumber(pub u64);

/// A caller that waits for a result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaiterNumber(pub u64);

/// An effect that runs until an event ends it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TaskNumber(pub u64);

/// What a job brings to the vertices that it loads.
#[derive(Clone, Debug)]
pub struct Interest {
    pub job: JobNumber,
    pub sessions: Vec<SessionId>,
    pub journal: Journal,
}

/// Answers a waiter. `Err(None)` says that the job is over.
pub type Reply<R> = oneshot::Sender<Result<Option<R>, Option<Arc<VertexError>>>>;

/// Whether a result consists of what can't be had.
pub type IsGone<R> = Arc<dyn Fn(&R) -> bool + Send + Sync>;

/// Something happened.
pub enum Event<R> {
    /// A job has a graph.
    Load { interest: Arc<Interest>, graph: Graph },
    /// A caller waits for an output of a vertex that its job has loaded.
    Want { job: JobNumber, waiter: WaiterNumber, edge: Edge, reply: Reply<R> },
    /// A caller has stopped waiting.
    Unwant { waiter: WaiterNumber },
    /// Bytes of a result can't be had. The answer says whether it can come from elsewhere.
    Lost { job: JobNumber, edge: Edge, is_gone: IsGone<R>, reply: oneshot::Sender<bool> },
    /// A job is over.
    Leave { job: JobNumber },
    /// A task has ended.
    Ended { task: TaskNumber, ending: Ending<R> },
}

/// What a task ended with.
pub enum Ending<R> {
    Mapped(Result<CacheMap<R>, Cause>),
    Looked(Answer),
    Hashed(Result<Digest, Cause>),
    Loaded(Result<Option<R>, LoadError>),
    Ran(Result<RunOutputs<R>, Cause>),
}

/// What a run gave, by output: the result, and its durable name if it has one.
pub type RunOutputs<R> = Vec<(Option<R>, Option<ResultId>)>;

/// Something to do. Those with a task number end with an [`Event::Ended`] of that number, cancelled or
/// not.
pub enum Effect<R> {
    Map {
        task: TaskNumber,
        shell: Arc<Shell>,
        index: usize,
    },
    Look {
        task: TaskNumber,
        query: Query,
    },
    Hash {
        task: TaskNumber,
        shell: Arc<Shell>,
        hash: ContentDigest<R>,
        input: Option<R>,
    },
    Load {
        task: TaskNumber,
        shell: Arc<Shell>,
        id: ResultId,
        opts: Arc<CacheOptGetter>,
    },
    Run {
        task: TaskNumber,
        shell: Arc<Shell>,
        inputs: Vec<Option<R>>,
    },
    /// Cancels a task. It still ends with its event.
    Cancel {
        task: TaskNumber,
    },
    /// Adds to the key index.
    Store(Stored),
    Reply {
        reply: Reply<R>,
        answer: Result<Option<R>, Option<Arc<VertexError>>>,
    },
    /// Answers whether something was given up.
    Told {
        reply: oneshot::Sender<bool>,
        given_up: bool,
    },
    /// Reports a vertex that is never run, since what needs it is known.
    Skipped(Arc<Shell>),
    /// Reports a vertex whose result comes from the run of another: that it waits, and how it ended.
    Joined {
        shell: Arc<Shell>,
        ended: Option<Result<(), Arc<VertexError>>>,
    },
}

#[cfg(test)]
impl<R> Effect<R> {
    /// The number under which it ends.
    pub fn task(&self) -> Option<TaskNumber> {
        match self {
            Effect::Map { task, .. }
            | Effect::Look { task, .. }
            | Effect::Hash { task, .. }
            | Effect::Load { task, .. }
            | Effect::Run { task, .. } => Some(*task),
            Effect::Cancel { .. }
            | Effect::Store(_)
            | Effect::Reply { .. }
            | Effect::Told { .. }
            | Effect::Skipped(_)
            | Effect::Joined { .. } => None,
        }
    }
}
