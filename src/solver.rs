//! Runs build graphs once for many jobs; finds, keeps and falls back from cache hits.
//!
//! A [`Job`] is a build. It solves definitions into [`LazyResult`]s, which are computed when somebody
//! evaluates them. Vertices are shared by all jobs that have them; a vertex runs at most once per cache
//! key, and its work ends when nobody wants it any more.
//!
//! # For one output, in this order
//!
//! 1. *fast*: ask the op for its cache map; get the keys of the input edges, not their results; look
//!    up.
//! 2. *slow*: for inputs whose content counts, get the result and hash it; look up again.
//! 3. *load or run*: load the best record (the nearest bytes, then the newest). If none loads, get all
//!    inputs and run the op.
//!
//! A lookup goes by links: key K of input i, through an op and a selector, leads to key P. The keys
//! that are reached from every input are keys of the vertex, so that alternatives add up and do not
//! multiply.
//!
//! # The loop
//!
//! One task owns the state of all vertices. It takes an `Event`, changes the state
//! without waiting for anything, and starts the `Effect`s that follow: owned tasks,
//! each of which ends with an event. Invariant: no I/O and no `.await` within the change, so that
//! nothing slow in one build delays another.
//!
//! Invariant: the solver knows nothing of registries, blobs or images; it knows ops by
//! [`crate::ops::Operate`].

mod advance;
mod bridge;
mod brief;
mod code;
pub mod convert;
mod endings;
mod error;
mod event;
mod executions;
mod frontend;
mod index;
mod job;
mod jobs;
mod join;
mod key;
mod look;
mod runner;
mod scheduler;
mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use bridge::Bridge;
pub use bridge::Outcome;
pub use bridge::Ref;
pub use bridge::RefId;
pub use bridge::Refs;
pub use bridge::SolveReply;
pub use bridge::SolveRequest;
pub use brief::MAX_WORDS;
pub use brief::brief;
pub use code::code_of;
pub use code::words_of;
pub use error::Cause;
pub use error::FailedOp;
pub use error::FrontendAsked;
pub use error::Phase;
pub use error::Rejected;
pub use error::SolveError;
pub use error::SourceLocation;
pub use error::VertexError;
pub use frontend::Frontend;
pub use frontend::FrontendRequest;
pub use frontend::Frontends;
pub use index::KeyIndex;
pub use index::forget_rows;
pub use job::Job;
pub use job::JobId;
pub use job::JobSpec;
pub use job::LazyResult;
pub use job::RunningJob;
pub use jobs::JobExists;
pub use jobs::Jobs;
pub use jobs::NoSuchJob;

use crate::ops::Edge;
use crate::ops::Graph;
use crate::ops::Operate;
use crate::session::Sessions;
use crate::task::Tasks;
use event::Event;
use event::Interest;
use event::IsGone;
use event::JobNumber;
use event::WaiterNumber;
use runner::Events;
use runner::Runner;
use scheduler::Scheduler;

/// The solver of the daemon. Clones are handles of the same one.
pub struct Solver<O: Operate>(Arc<Inner<O>>);

struct Inner<O: Operate> {
    events: mpsc::UnboundedSender<Events<O::Output>>,
    operate: Arc<O>,
    tasks: Tasks,
    next: AtomicU64,
}

impl<O: Operate> Clone for Solver<O> {
    fn clone(&self) -> Self {
        Solver(Arc::clone(&self.0))
    }
}

impl<O: Operate> fmt::Debug for Solver<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Solver({} tasks)", self.0.tasks.running())
    }
}

impl<O: Operate> Solver<O> {
    /// Starts the loop, which `tasks` owns as it owns every effect.
    pub fn new(operate: Arc<O>, index: KeyIndex, sessions: Sessions, tasks: Tasks) -> Solver<O> {
        let (events, receiver) = mpsc::unbounded_channel();
        let weak = events.downgrade();
        let endower = Arc::clone(&operate);
        let scheduler = Scheduler::new(sessions, Arc::new(move |result, opts| endower.endow(result, opts)));
        let runner = Runner::new(scheduler, receiver, weak, Arc::clone(&operate), index, tasks.clone());
        drop(tasks.spawn("solver", runner.run()));
        Solver(Arc::new(Inner { events, operate, tasks, next: AtomicU64::new(1) }))
    }

    fn number(&self) -> JobNumber {
        JobNumber(self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    fn child_token(&self) -> CancellationToken {
        self.0.tasks.token().child_token()
    }

    fn operate(&self) -> &O {
        &self.0.operate
    }

    fn load(&self, interest: Interest, graph: Graph) {
        self.send(Event::Load { interest: Arc::new(interest), graph });
    }

    fn leave(&self, job: JobNumber) {
        self.send(Event::Leave { job });
    }

    async fn lost(&self, job: JobNumber, edge: Edge, is_gone: IsGone<O::Output>) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Lost { job, edge, is_gone, reply });
        answer.await.unwrap_or(false)
    }

    /// Waits for an output. `Err(None)`: the job or the solver has ended.
    ///
    /// Cancellation safe: dropping it withdraws the want.
    async fn want(&self, job: JobNumber, edge: Edge) -> Result<Option<O::Output>, Option<Arc<VertexError>>> {
        let waiter = WaiterNumber(self.0.next.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        self.send(Event::Want { job, waiter, edge, reply });
        let _withdraw = Withdraw { solver: self, waiter };
        answer.await.unwrap_or(Err(None))
    }

    fn send(&self, event: Event<O::Output>) {
        // Fails only when the loop has ended, and then nobody is left to be told.
        let _ = self.0.events.send(vec![event]);
    }
}

/// Withdraws a want. One that was answered is no longer known, and then this changes nothing.
struct Withdraw<'a, O: Operate> {
    solver: &'a Solver<O>,
    waiter: WaiterNumber,
}

impl<O: Operate> Drop for Withdraw<'_, O> {
    fn drop(&mut self) {
        self.solver.send(Event::Unwant { waiter: self.waiter });
    }
}

#[cfg(test)]
mod tests;
