//! [`SessionGroup`]: the sessions that a request may ask, in order.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::session::Session;
use crate::session::SessionError;
use crate::session::SessionId;
use crate::session::Sessions;

/// The sessions that a request may ask, in order.
///
/// Clones share the set: work that several builds share holds one group, which grows when a build
/// joins and shrinks when one leaves, while the work runs. The empty group answers every call with
/// [`SessionError::NoActiveSessions`].
///
/// # Locking
///
/// The set's lock is held for one look or one change, never across a call.
#[derive(Clone, Default)]
pub struct SessionGroup {
    sessions: Option<Sessions>,
    ids: Arc<Mutex<Vec<SessionId>>>,
}

impl SessionGroup {
    /// A group of some of `sessions`.
    pub fn new(sessions: &Sessions, ids: impl IntoIterator<Item = SessionId>) -> SessionGroup {
        let group = SessionGroup { sessions: Some(sessions.clone()), ids: Arc::default() };
        for id in ids {
            group.add(id);
        }
        group
    }

    /// A group that asks nobody.
    pub fn empty() -> SessionGroup {
        SessionGroup::default()
    }

    /// The IDs at this moment, in order.
    pub fn ids(&self) -> Vec<SessionId> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those of the sessions that are open now.
    pub fn open(&self) -> Vec<Session> {
        let Some(sessions) = &self.sessions else { return Vec::new() };
        self.ids().iter().filter_map(|id| sessions.get(id)).collect()
    }

    /// A group of its own for each of the sessions that are in this one now.
    pub fn singly(&self) -> Vec<(SessionId, SessionGroup)> {
        let alone = |id: &SessionId| SessionGroup {
            sessions: self.sessions.clone(),
            ids: Arc::new(Mutex::new(vec![id.clone()])),
        };
        self.ids().into_iter().map(|id| (id.clone(), alone(&id))).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Adds a session at the end, if it is not there.
    pub fn add(&self, id: SessionId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }

    /// Takes a session out. Calls that are under way go on.
    pub fn remove(&self, id: &SessionId) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).retain(|there| there != id);
    }

    /// The open session of this ID, whether or not it is one of the group.
    ///
    /// Waits up to five seconds for it. Cancellation safe.
    pub async fn find(&self, id: &SessionId) -> Result<Session, SessionError> {
        match &self.sessions {
            Some(sessions) => sessions.find(id).await,
            None => Err(SessionError::NoActiveSessions),
        }
    }

    /// Makes `call` on one session after another until one succeeds. Waits up to five seconds for
    /// each to be there; any error goes on to the next, the last error is the answer.
    ///
    /// Sessions that are added meanwhile are tried as well. Cancellation safe if `call` is.
    pub async fn any<T, E, F, Fut>(&self, mut call: F) -> Result<T, E>
    where
        F: FnMut(Session) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<SessionError>,
    {
        let mut tried: Vec<SessionId> = Vec::new();
        let mut last = None;
        while let Some(id) = self.ids().into_iter().find(|id| !tried.contains(id)) {
            tried.push(id.clone());
            let Some(sessions) = &self.sessions else { break };
            let answer = match sessions.find(&id).await {
                Ok(session) => call(session).await,
                Err(error) => Err(error.into()),
            };
            match answer {
                Ok(value) => return Ok(value),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| SessionError::NoActiveSessions.into()))
    }
}

impl std::fmt::Debug for SessionGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SessionGroup").field(&self.ids()).finish()
    }
}
