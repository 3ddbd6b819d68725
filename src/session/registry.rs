//! [`Sessions`]: the sessions that are open, and [`Session`]: one of them.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::call;
use super::health;
use super::tunnel;
use super::tunnel::Wire;
use crate::oci::Digest;
use crate::proto::health::HealthCheckRequest;
use crate::proto::health::health_client::HealthClient;
use crate::session::SessionError;
use crate::task::Tasks;

/// How long a lookup waits for a client that has named its session but not opened it yet.
const LOOKUP_WAIT: Duration = Duration::from_secs(5);

/// The name of a session, chosen by the client.
///
/// In a build definition it may stand as `<prefix>:<id>`, where the prefix tells contexts of one
/// session apart; a session ID is without it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Drops a `prefix:`, unless nothing is behind it.
    pub fn new(text: &str) -> SessionId {
        let id = match text.split_once(':') {
            Some((_, id)) if !id.is_empty() => id,
            _ => text,
        };
        SessionId(id.into())
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

/// A session could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("a session needs an ID in x-docker-expose-session-uuid")]
    NoId,
    #[error("session {session} already exists")]
    AlreadyOpen { session: SessionId },
    #[error("session {session} could not start its tunnel: {reason}")]
    Tunnel { session: SessionId, reason: String },
}

/// The sessions that are open. Clones share them.
#[derive(Clone)]
pub struct Sessions(Arc<Registry>);

struct Registry {
    tasks: Tasks,
    /// Different for each run of the daemon, so that nobody can replay a client's token authority.
    salt: [u8; 32],
    open: Mutex<HashMap<SessionId, Session>>,
    opened: Notify,
}

/// One open session. Clones are the same session; one that is kept does not keep it open.
#[derive(Clone)]
pub struct Session(Arc<Live>);

struct Live {
    opening: Opening,
    /// In lower case.
    methods: HashSet<String>,
    wire: Wire,
    salt: [u8; 32],
    /// Blobs all of whose bytes this client was seen to have.
    shown: Mutex<HashSet<Digest>>,
    ended: CancellationToken,
    /// Set before `ended` is cancelled.
    reason: OnceLock<String>,
}

impl Sessions {
    pub fn new(tasks: &Tasks) -> Sessions {
        Sessions(Arc::new(Registry {
            tasks: tasks.clone(),
            salt: rand::random(),
            open: Mutex::default(),
            opened: Notify::new(),
        }))
    }

    /// The session of this ID; waits up to five seconds for it to be opened.
    pub async fn find(&self, id: &SessionId) -> Result<Session, SessionError> {
        let found = async {
            loop {
                let opened = self.0.opened.notified();
                tokio::pin!(opened);
                // Listening begins before the look, so that no opening falls in between.
                opened.as_mut().enable();
                if let Some(session) = self.get(id) {
                    return session;
                }
                opened.await;
            }
        };
        tokio::time::timeout(LOOKUP_WAIT, found)
            .await
            .map_err(|_| SessionError::NotFound { session: id.clone(), waited: LOOKUP_WAIT })
    }

    /// The session of this ID if it is open now.
    pub fn get(&self, id: &SessionId) -> Option<Session> {
        self.open_sessions().get(id).cloned()
    }

    /// Starts the session that a client opened, on the bytes that it sends. The answer is what to
    /// send to it; its end is the end of the session.
    ///
    /// The client answers only after it has the headers of this call's response, so nothing here
    /// waits for it.
    pub async fn open(
        &self,
        opening: Opening,
        inbound: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<BoxStream<'static, Bytes>, OpenError> {
        if opening.id.as_str().is_empty() {
            return Err(OpenError::NoId);
        }
        let id = opening.id.clone();
        let closing = self.0.tasks.token().child_token();
        let tunnel = tunnel::start(&self.0.tasks, inbound, closing.clone())
            .await
            .map_err(|error| OpenError::Tunnel { session: id.clone(), reason: error.to_string() })?;
        let session = Session(Arc::new(Live {
            methods: opening.methods.iter().map(|method| method.to_ascii_lowercase()).collect(),
            opening,
            wire: tunnel.wire,
            salt: self.0.salt,
            shown: Mutex::default(),
            ended: CancellationToken::new(),
            reason: OnceLock::new(),
        }));
        match self.open_sessions().entry(id.clone()) {
            Entry::Occupied(_) => {
                closing.cancel();
                return Err(OpenError::AlreadyOpen { session: id });
            }
            Entry::Vacant(entry) => entry.insert(session.clone()),
        };
        self.0.opened.notify_waiters();
        tracing::debug!(session = %id, name = session.name(), "session opened");

        let ended = session.0.ended.clone();
        let sessions = self.clone();
        let connection = tunnel.connection;
        drop(self.0.tasks.spawn("session", async move {
            let policy = health::Policy::new(session.0.opening.health);
            let reason = tokio::select! {
                biased;
                () = closing.cancelled() => "the client closed the session".to_owned(),
                reason = connection => reason,
                reason = health::watch(policy, || session.check()) => {
                    tracing::warn!(session = %id, reason, "session lost");
                    reason
                }
            };
            tracing::debug!(session = %id, reason, "session ended");
            sessions.open_sessions().remove(&id);
            session.0.reason.get_or_init(|| reason);
            session.0.ended.cancel();
            closing.cancel();
        }));
        Ok(ReceiverStream::new(tunnel.outbound).take_until(ended.cancelled_owned()).boxed())
    }

    fn open_sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    pub fn id(&self) -> &SessionId {
        &self.0.opening.id
    }

    pub fn name(&self) -> &str {
        &self.0.opening.name
    }

    pub fn shared_key(&self) -> &str {
        &self.0.opening.shared_key
    }

    /// True if the client serves this call, `/service/Method`.
    pub fn supports(&self, method: &str) -> bool {
        self.0.methods.contains(&method.to_ascii_lowercase())
    }

    pub fn is_open(&self) -> bool {
        !self.0.ended.is_cancelled()
    }

    /// Remembers, while the session lasts, that this client was seen to have all the bytes of a blob.
    pub fn note_shown(&self, digest: Digest) {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }

    /// True if this client was seen to have all the bytes of a blob.
    pub fn has_shown(&self, digest: &Digest) -> bool {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// Resolves when the session has ended.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    pub(super) fn end_reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    pub(super) fn wire(&self) -> Wire {
        self.0.wire.clone()
    }

    pub(super) fn salt(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.salt)
    }

    async fn check(&self) -> Result<(), tonic::Status> {
        let mut client = HealthClient::with_origin(self.wire(), call::origin());
        client.check(HealthCheckRequest::default()).await.map(drop)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.id())
    }
}
