//! How one call to a client is made, and what its failure means.

use std::time::Duration;

use futures::Stream;
use futures::stream;
use http::Uri;
use tonic::Code;
use tonic::Status;
use tonic::Streaming;

use crate::session::Session;
use crate::session::SessionError;

/// Messages of a client may be as large as those to a daemon.
pub(super) const DECODE_LIMIT: usize = 16 << 20;

/// Where a client's services seem to be.
pub(super) fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

impl Session {
    /// Makes one call; it ends with the session, and after `limit` if there is one.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        limit: Option<Duration>,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, SessionError> {
        let timed = async {
            match limit {
                Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| limit),
                None => Ok(call.await),
            }
        };
        tokio::select! {
            biased;
            () = self.ended() => Err(self.lost(method)),
            answer = timed => match answer {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(self.failure(method, &status)),
                Err(waited) => Err(SessionError::TimedOut { session: self.id().clone(), method, waited }),
            },
        }
    }

    /// The messages of a client's answer. The stream ends after its first error.
    pub(super) fn messages<T: Send + 'static>(
        &self,
        method: &'static str,
        messages: Streaming<T>,
    ) -> impl Stream<Item = Result<T, SessionError>> + Send + use<T> {
        stream::try_unfold((self.clone(), messages), move |(session, mut messages)| async move {
            match session.message(method, &mut messages).await? {
                Some(message) => Ok(Some((message, (session, messages)))),
                None => Ok(None),
            }
        })
    }

    /// The next message of a client's answer; none at its end.
    pub(super) async fn message<T>(
        &self,
        method: &'static str,
        messages: &mut Streaming<T>,
    ) -> Result<Option<T>, SessionError> {
        tokio::select! {
            biased;
            () = self.ended() => Err(self.lost(method)),
            message = messages.message() => message.map_err(|status| self.failure(method, &status)),
        }
    }

    fn lost(&self, method: &'static str) -> SessionError {
        let reason = self.end_reason().unwrap_or("it was closed").to_owned();
        SessionError::Lost { session: self.id().clone(), method, reason }
    }

    /// Tells the client's own answer from a failure of the tunnel. A status of the tunnel has a cause
    /// in this process; one that came in trailers has none.
    pub(super) fn failure(&self, method: &'static str, status: &Status) -> SessionError {
        let transport = std::error::Error::source(status).is_some();
        if !self.is_open() {
            return self.lost(method);
        }
        let session = self.id().clone();
        if transport && status.code() != Code::Cancelled {
            return SessionError::Lost { session, method, reason: status.message().to_owned() };
        }
        SessionError::Refused { session, method, code: status.code(), message: status.message().to_owned() }
    }

    pub(super) fn nonsense(&self, method: &'static str, problem: impl Into<String>) -> SessionError {
        SessionError::Protocol { session: self.id().clone(), method, problem: problem.into() }
    }
}
