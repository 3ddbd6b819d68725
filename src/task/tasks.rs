//! [`Tasks`]: the owner of running tasks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From the end of one step's process to the start of the next it takes less.
const LEISURE: Duration = Duration::from_millis(20);

/// Owns the tasks of one part of the daemon. Clones share the ownership.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    spawned: Arc<AtomicU64>,
}

impl Tasks {
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// An owner that is cancelled with `self` and can be shut down before it.
    ///
    /// Shutting down `self` does not wait for tasks of the child: the child's holder does.
    pub fn child(&self) -> Tasks {
        Tasks { token: self.token.child_token(), ..Tasks::default() }
    }

    /// Cancelled at shutdown. Long work selects on it.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Number of tasks that have not ended.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Number of tasks so far.
    pub fn spawned(&self) -> u64 {
        self.spawned.load(Ordering::Relaxed)
    }

    /// Runs `work` beside the caller. `name` appears in the error if it panics.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawned.fetch_add(1, Ordering::Relaxed);
        Task { name, handle: self.tracker.spawn(work) }
    }

    /// Runs `work` on a thread where blocking is allowed.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        self.spawned.fetch_add(1, Ordering::Relaxed);
        Task { name, handle: self.tracker.spawn_blocking(work) }
    }

    /// As [`Tasks::spawn_blocking`], but a little later: for clearing up and for what is made ahead, so that it does not
    /// get in the way of who goes on now.
    pub fn spawn_at_leisure(&self, name: &'static str, work: impl FnOnce() + Send + 'static) -> Task<()> {
        let tasks = self.clone();
        self.spawn(name, async move {
            tasks.token.run_until_cancelled(tokio::time::sleep(LEISURE)).await;
            if let Err(error) = tasks.spawn_blocking(name, work).await {
                tracing::error!(%error, "what had time is not done");
            }
        })
    }

    /// Cancels the token and waits until every task has ended. Idempotent.
    ///
    /// Cancellation safe: tasks go on ending by themselves.
    pub async fn shutdown(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// The result of a task, to be awaited or dropped: dropping does not stop the task.
#[derive(Debug)]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<T>,
}

impl<T> Task<T> {
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// A task ended without a result: it panicked, or the runtime stopped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("task {name} failed: {reason}")]
pub struct TaskFailed {
    pub name: &'static str,
    pub reason: String,
}

impl TaskFailed {
    fn new(name: &'static str, cause: JoinError) -> TaskFailed {
        let reason = match cause.try_into_panic() {
            Ok(panic) => match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => match panic.downcast::<&'static str>() {
                    Ok(text) => (*text).to_owned(),
                    Err(_) => "panic without a message".to_owned(),
                },
            },
            Err(cause) => cause.to_string(),
        };
        TaskFailed { name, reason }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle).poll(context).map_err(|cause| TaskFailed::new(name, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_time_is_done_later_and_at_the_latest_at_the_end() {
        let tasks = Tasks::new();
        let begin = tokio::time::Instant::now();
        tasks.spawn_at_leisure("later", || ()).await.expect("done");
        assert!(begin.elapsed() >= LEISURE);
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        let work = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        drop(tasks.spawn_at_leisure("the last", work));
        let begin = tokio::time::Instant::now();
        tasks.shutdown().await;
        assert_eq!((done.load(Ordering::Relaxed), begin.elapsed()), (1, Duration::ZERO));
    }

    #[tokio::test]
    async fn shutdown_cancels_and_waits_for_every_task() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        let task = tasks.spawn("waiter", async move { token.cancelled().await });
        assert_eq!(tasks.running(), 1);
        tasks.shutdown().await;
        assert!(task.is_finished());
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_that_names_the_task() {
        let failed = Tasks::new().spawn("bad", async { panic!("no {}", "luck") }).await;
        let failed: TaskFailed = failed.unwrap_err();
        assert_eq!(failed.to_string(), "task bad failed: no luck");
    }
}
