//! A session: the byte stream to the daemon, and the client's services on the other end of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use thunk::proto::auth::auth_server::AuthServer;
use thunk::proto::content::content_server::ContentServer;
use thunk::proto::control::BytesMessage;
use thunk::proto::filesync::file_send_server::FileSendServer;
use thunk::proto::health::health_server::HealthServer;
use thunk::session::Opening;
use thunk::session::SessionId;
use thunk::session::Sessions;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::DuplexStream;
use tokio::io::ReadHalf;
use tokio::io::WriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::Streaming;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;

use super::Client;
use super::auth::AuthService;
use super::auth::Login;
use super::callback::Call;
use super::callback::Callback;
use super::callback::CallbackHold;
use super::callback::Calls;
use super::content::ContentService;
use super::content::ContentStore;
use super::file_send::FileSendService;
use super::file_send::Files;
use super::file_send::Received;
use super::health::HealthService;
use crate::harness::gate::PATIENCE;

/// Bytes in either direction of the tunnel before somebody waits.
const PIPE: usize = 1 << 20;

/// What a client offers in its session. Without anything it still answers health checks.
#[derive(Clone, Default)]
pub struct Attachables {
    pub logins: Vec<Login>,
    /// Whether it offers credentials at all.
    pub auth: bool,
    /// Tokens are fetched by the client, and secrets are not handed out first.
    pub fetches_tokens: bool,
    /// By id: `oci:<name>`, `export`.
    pub stores: BTreeMap<String, ContentStore>,
    /// Whether it takes archives.
    pub files: bool,
    /// Counts the bytes of archives and keeps none.
    pub discard_files: bool,
    pub shared_key: String,
}

impl Attachables {
    /// Credentials for a host; without a user the secret is an identity token.
    pub fn login(mut self, host: &str, user: &str, secret: &str) -> Self {
        let login = Login { host: host.to_owned(), user: user.to_owned(), secret: secret.to_owned() };
        self.logins.push(login);
        self.auth = true;
        self
    }

    /// It fetches tokens itself, for hosts that it has no login for as well.
    pub fn fetching_tokens(mut self) -> Self {
        self.fetches_tokens = true;
        self.auth = true;
        self
    }

    /// The store of `oci-layout://…` sources with that name.
    pub fn oci_store(mut self, name: &str, store: &ContentStore) -> Self {
        self.stores.insert(format!("oci:{name}"), store.clone());
        self
    }

    /// The store that `tar=false` exports are written to.
    pub fn export_store(mut self, store: &ContentStore) -> Self {
        self.stores.insert("export".to_owned(), store.clone());
        self
    }

    /// It takes archives, and keeps them.
    pub fn files(mut self) -> Self {
        self.files = true;
        self
    }

    /// It takes archives, and forgets them.
    pub fn discarding_files(mut self) -> Self {
        self.files = true;
        self.discard_files = true;
        self
    }

    fn methods(&self) -> Vec<&'static str> {
        let mut methods = vec!["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];
        if self.auth {
            methods.extend([
                "/moby.filesync.v1.Auth/Credentials",
                "/moby.filesync.v1.Auth/FetchToken",
                "/moby.filesync.v1.Auth/GetTokenAuthority",
                "/moby.filesync.v1.Auth/VerifyTokenAuthority",
            ]);
        }
        if !self.stores.is_empty() {
            methods.extend([
                "/containerd.services.content.v1.Content/Info",
                "/containerd.services.content.v1.Content/Read",
                "/containerd.services.content.v1.Content/Write",
                "/containerd.services.content.v1.Content/Status",
                "/containerd.services.content.v1.Content/ListStatuses",
                "/containerd.services.content.v1.Content/Abort",
                "/containerd.services.content.v1.Content/Update",
                "/containerd.services.content.v1.Content/List",
                "/containerd.services.content.v1.Content/Delete",
            ]);
        }
        if self.files {
            methods.push("/moby.filesync.v1.FileSend/DiffCopy");
        }
        methods
    }
}

/// An open session. Dropping it cuts the connection as a killed client does.
pub struct Session {
    id: String,
    calls: Arc<Calls>,
    files: Files,
    /// Cancelled to half-close the stream.
    closing: CancellationToken,
    /// Cancelled when the daemon has ended its side.
    ended: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Session {
    pub(super) async fn open(client: &Client, attach: Attachables) -> Result<Self, Status> {
        let id = format!("session-{:016x}", rand::random::<u64>());
        let (sender, outbound) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(outbound));
        describe(request.metadata_mut(), &id, &attach);
        let (calls, files) = (Arc::new(Calls::default()), Files::default());
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(theirs, attach, calls.clone(), files.clone()));
        // The daemon answers with headers before it speaks HTTP/2 inside.
        let inbound = client.control().session(request).await?.into_inner();
        let (read, write) = tokio::io::split(ours);
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        tasks.spawn(pump_out(read, sender, closing.clone()));
        tasks.spawn(pump_in(inbound, write, ended.clone().drop_guard()));
        Ok(Self { id, calls, files, closing, ended, _tasks: tasks })
    }

    /// A session of `sessions` in this process, without a daemon around them.
    pub async fn join(sessions: &Sessions, attach: Attachables) -> Self {
        let id = format!("session-{:016x}", rand::random::<u64>());
        let opening = Opening {
            id: SessionId::new(&id),
            name: "thunk-test".to_owned(),
            shared_key: attach.shared_key.clone(),
            methods: attach.methods().into_iter().map(str::to_owned).collect(),
            health: None,
        };
        let (calls, files) = (Arc::new(Calls::default()), Files::default());
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(theirs, attach, calls.clone(), files.clone()));
        let (read, mut write) = tokio::io::split(ours);
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let inbound = ReaderStream::new(read).take_until(closing.clone().cancelled_owned());
        let mut outbound = sessions.open(opening, inbound.boxed()).await.expect("open a session");
        let guard = ended.clone().drop_guard();
        tasks.spawn(async move {
            let _ended = guard;
            while let Some(bytes) = outbound.next().await {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        Self { id, calls, files, closing, ended, _tasks: tasks }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Every callback so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.all()
    }

    pub fn count(&self, callback: Callback) -> usize {
        self.calls().iter().filter(|call| call.callback == callback).count()
    }

    /// Callbacks of one kind wait, after they were counted.
    pub fn hold(&self, callback: Callback) -> CallbackHold {
        self.calls.hold(callback)
    }

    /// The next `times` callbacks of one kind fail with `code`.
    pub fn refuse(&self, callback: Callback, code: Code, times: usize) {
        self.calls.refuse(callback, code, times);
    }

    /// Waits until so many callbacks of one kind have come.
    pub async fn until(&self, callback: Callback, count: usize) {
        self.calls.until(callback, count).await;
    }

    /// The archive of the exporter with that number.
    pub fn received(&self, exporter: usize) -> Option<Received> {
        self.files.lock().expect("files").get(&exporter.to_string()).cloned()
    }

    /// Ends it as a client does at the end of a build, and waits until the daemon has ended it too.
    pub async fn close(&self) {
        self.closing.cancel();
        self.until_ended().await;
    }

    /// Waits until the daemon has ended its side.
    pub async fn until_ended(&self) {
        let timely = tokio::time::timeout(PATIENCE, self.ended.cancelled()).await;
        assert!(timely.is_ok(), "the daemon does not end session {}", self.id);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

/// What the daemon learns about a session before anything else.
fn describe(metadata: &mut MetadataMap, id: &str, attach: &Attachables) {
    let value = |text: &str| text.parse().expect("a header value");
    metadata.insert("x-docker-expose-session-uuid", value(id));
    metadata.insert("x-docker-expose-session-name", value("thunk-test"));
    metadata.insert("x-docker-expose-session-sharedkey", value(&attach.shared_key));
    for method in attach.methods() {
        metadata.append("x-docker-expose-session-grpc-method", value(method));
    }
}

/// The services, on one connection.
async fn serve(io: DuplexStream, attach: Attachables, calls: Arc<Calls>, files: Files) {
    let Attachables { logins, auth, fetches_tokens, stores, files: takes_files, discard_files, .. } = attach;
    let content = (!stores.is_empty()).then(|| ContentService { calls: calls.clone(), stores });
    let auth = auth.then(|| AuthService { calls: calls.clone(), logins, fetches_tokens });
    let send = takes_files.then(|| FileSendService { calls: calls.clone(), files, discard: discard_files });
    // It ends with its session's other tasks; a second connection never comes.
    let incoming = stream::once(async { Ok::<_, io::Error>(io) }).chain(stream::pending());
    let served = Server::builder()
        .add_service(HealthServer::new(HealthService(calls)))
        .add_optional_service(auth.map(AuthServer::new))
        .add_optional_service(content.map(ContentServer::new))
        .add_optional_service(send.map(FileSendServer::new))
        .serve_with_incoming(incoming)
        .await;
    served.expect("serve a session");
}

/// From our services to the daemon, until the session is closed or the daemon takes no more.
async fn pump_out(
    mut read: ReadHalf<DuplexStream>,
    sender: mpsc::Sender<BytesMessage>,
    closing: CancellationToken,
) {
    let pump = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            let data = Bytes::copy_from_slice(&buffer[..count]);
            if sender.send(BytesMessage { data }).await.is_err() {
                return;
            }
        }
    };
    closing.run_until_cancelled(pump).await;
}

/// From the daemon to our services, until it ends its side.
async fn pump_in(
    mut inbound: Streaming<BytesMessage>,
    mut write: WriteHalf<DuplexStream>,
    _ended: DropGuard,
) {
    while let Ok(Some(message)) = inbound.message().await {
        if write.write_all(&message.data).await.is_err() {
            return;
        }
    }
}
