//! [`Sessions`]: the sessions that are open, and [`Session`]: one of them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::session::SessionError;
use crate::task::Tasks;

/// The name of a session, chosen by the client.
///
/// In a build definition it may stand as `<prefix>:<id>`, where the prefix tells contexts of one
/// session apart; a session ID is without it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(String);

impl SessionId {
    /// Drops a `prefix:`, unless nothing is behind it.
    pub fn new(text: &str) -> SessionId {
        let id = match text.split_once(':') {
            Some((_, id)) if !id.is_empty() => id,
            _ => text,
        };
        SessionId(id.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client says of itself when it opens a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    pub id: SessionId,
    pub name: String,
    /// Names what the client's directories are compared with, across its builds.
    pub shared_key: String,
    /// The calls that it serves, as `/service/Method`; compared without case.
    pub methods: Vec<String>,
    /// How patient its health checks are, if the client asked.
    pub health: Option<Duration>,
}

/// The sessions that are open. Clones share them.
#[derive(Clone)]
pub struct Sessions {
    _shared: Arc<()>,
}

/// One open session. Clones are the same session.
#[derive(Clone)]
pub struct Session {
    _live: Arc<()>,
}

impl Sessions {
    pub fn new(_tasks: &Tasks) -> Sessions {
        todo!()
    }

    /// The session of this ID; waits up to five seconds for it to be opened.
    pub async fn find(&self, _id: &SessionId) -> Result<Session, SessionError> {
        todo!()
    }

    /// The session of this ID if it is open now.
    pub fn get(&self, _id: &SessionId) -> Option<Session> {
        todo!()
    }

    /// Starts the session that a client opened, on the bytes that it sends. The answer is what to
    /// send to it; its end is the end of the session.
    pub async fn open(
        &self,
        _opening: Opening,
        _inbound: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<BoxStream<'static, Bytes>, SessionError> {
        todo!()
    }
}

impl Session {
    pub fn id(&self) -> &SessionId {
        todo!()
    }

    pub fn name(&self) -> &str {
        todo!()
    }

    pub fn shared_key(&self) -> &str {
        todo!()
    }

    /// True if the client serves this call, `/service/Method`.
    pub fn supports(&self, _method: &str) -> bool {
        todo!()
    }

    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Resolves when the session has ended.
    pub async fn ended(&self) {
        todo!()
    }
}
