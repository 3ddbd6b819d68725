//! [`SessionError`]: why a client could not be asked, or what it answered.

use std::time::Duration;

use tonic::Code;

use crate::session::SessionId;

/// A call to a client failed. Clonable, so that one answer can reach all that wait for it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// The group has no session at all.
    #[error("no active sessions")]
    NoActiveSessions,
    /// Nobody opened this session within the wait.
    #[error("no active session for {session} after {waited:?}: the client left, or never opened it")]
    NotFound { session: SessionId, waited: Duration },
    /// The session ended before the call did.
    #[error("session {session} was lost during {method}: {reason}")]
    Lost { session: SessionId, method: &'static str, reason: String },
    /// The client answered with an error of its own.
    #[error("{message}")]
    Refused { session: SessionId, method: &'static str, code: Code, message: String },
    /// The client does not offer this call.
    #[error("method {method} not supported by the client")]
    Unsupported { session: SessionId, method: &'static str },
    /// The client did not answer in time.
    #[error("session {session} did not answer {method} within {waited:?}")]
    TimedOut { session: SessionId, method: &'static str, waited: Duration },
    /// The client's answer makes no sense.
    #[error("session {session} answered {method} with {problem}")]
    Protocol { session: SessionId, method: &'static str, problem: String },
    /// What the client was to be asked can't be expressed as a call.
    #[error("{method} can't carry {problem}")]
    Unsendable { method: &'static str, problem: String },
}

impl SessionError {
    /// The code of the client's own answer, if it answered.
    pub fn refusal(&self) -> Option<Code> {
        match self {
            SessionError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True if the client does not offer the service, as it said at first or says now.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, SessionError::Unsupported { .. }) || self.refusal() == Some(Code::Unimplemented)
    }
}
