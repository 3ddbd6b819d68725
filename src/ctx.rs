//! What a request carries: for whom it works, where it reports, and when it must stop.
//!
//! A [`Ctx`] is passed down to everything that may wait or ask the client for something. Credentials
//! are never in it: they are asked of its sessions at the moment they are needed, so that work done
//! now uses the rights of whoever needs it now.
//!
//! # Cancellation
//!
//! [`Ctx::run`] is how a wait honours the token. Cancelling a context cancels those derived from it.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::progress::VertexProgress;
use crate::session::SessionGroup;

/// For whom, where to report, until when. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ctx {
    sessions: SessionGroup,
    progress: Option<VertexProgress>,
    cancel: CancellationToken,
}

/// The request was cancelled before the work was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Ctx {
    /// A request for `sessions` that ends with `cancel`.
    pub fn new(sessions: SessionGroup, cancel: CancellationToken) -> Ctx {
        Ctx { sessions, progress: None, cancel }
    }

    /// Work of the daemon itself: no session, no progress, never cancelled.
    pub fn background() -> Ctx {
        Ctx::default()
    }

    /// The same request, reporting under `progress`.
    pub fn with_progress(&self, progress: VertexProgress) -> Ctx {
        Ctx { progress: Some(progress), ..self.clone() }
    }

    /// The same request for other sessions.
    pub fn with_sessions(&self, sessions: SessionGroup) -> Ctx {
        Ctx { sessions, ..self.clone() }
    }

    /// The same request, ended by `cancel` instead.
    pub fn with_cancel(&self, cancel: CancellationToken) -> Ctx {
        Ctx { cancel, ..self.clone() }
    }

    /// A request that is cancelled with this one and can be cancelled before it.
    pub fn child(&self) -> Ctx {
        self.with_cancel(self.cancel.child_token())
    }

    pub fn sessions(&self) -> &SessionGroup {
        &self.sessions
    }

    /// The vertex that the work is reported under; `None` where nobody watches.
    pub fn progress(&self) -> Option<&VertexProgress> {
        self.progress.as_ref()
    }

    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Fails if the request is cancelled.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.cancel.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Runs `work` until it is done or the request is cancelled, which drops it.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Cancelled> {
        self.cancel.run_until_cancelled(work).await.ok_or(Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_its_request_and_with_the_one_above() {
        let above = Ctx::background();
        let below = above.child();
        assert_eq!(below.run(async { 1 }).await, Ok(1));
        let mut wait = Box::pin(below.run(std::future::pending::<()>()));
        assert!(futures::poll!(&mut wait).is_pending());
        above.cancel().cancel();
        assert_eq!(wait.await, Err(Cancelled));
        assert_eq!(below.check(), Err(Cancelled));
    }
}
