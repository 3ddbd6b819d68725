//! A build client: it speaks BuildKit's Control API, and is the HTTP/2 server inside its session's
//! tunnel. Every callback of the daemon is counted, and can be held or refused.
//!
//! ```ignore
//! let client = Client::connect(&daemon).await;
//! let attach = Attachables::default().login(&registry.host(), "alice", "open sesame");
//! let build = Build::of(&llb::image(registry.reference("app", "v1")));
//! let running = client.start(build.export("image", &[("name", "…"), ("push", "true")]).attach(attach)).await;
//! let outcome = running.finish().await.success();
//! assert_eq!(outcome.session.count(Callback::Credentials), 1);
//! ```

mod auth;
mod build;
mod callback;
mod content;
mod file_send;
mod health;
mod session;
mod store;

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use thunk::proto::control::control_client::ControlClient;
use thunk::proto::gateway::llb_bridge_client::LlbBridgeClient;
use tokio::net::UnixStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

pub use self::auth::Login;
pub use self::build::Build;
pub use self::build::Outcome;
pub use self::build::Running;
pub use self::callback::Call;
pub use self::callback::Callback;
pub use self::callback::CallbackHold;
pub use self::content::ContentStore;
pub use self::file_send::Received;
pub use self::session::Attachables;
pub use self::session::Session;

use super::daemon::Daemon;

/// What both sides of BuildKit's API take at most.
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// What Go clients take.
const HEADER_LIMIT: u32 = 16 << 20;

/// A connection to a daemon. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    pub async fn connect(daemon: &Daemon) -> Self {
        Self::at(daemon.socket()).await
    }

    /// A client of whatever listens on a unix socket.
    pub async fn at(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://thunkd")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_max_header_list_size(HEADER_LIMIT);
        let channel = endpoint.connect_with_connector(connector).await.expect("connect to the daemon");
        Self { channel }
    }

    pub fn control(&self) -> ControlClient<Channel> {
        let client = ControlClient::new(self.channel.clone());
        client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// The gateway of a running build.
    pub fn bridge(&self, build: &str) -> LlbBridgeClient<InterceptedService<Channel, BuildId>> {
        let id = BuildId(build.parse().expect("a build's id is a header value"));
        let client = LlbBridgeClient::with_interceptor(self.channel.clone(), id);
        client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Opens a session, and returns once the daemon has accepted it.
    pub async fn session(&self, attach: Attachables) -> Session {
        Session::open(self, attach).await.expect("open a session")
    }

    /// Opens a session for `build` and starts to solve and to read its status, all at once.
    pub async fn start(&self, build: Build) -> Running {
        build.start(self).await.expect("open a session")
    }

    /// The same with a daemon that may die meanwhile.
    pub async fn try_start(&self, build: Build) -> Result<Running, tonic::Status> {
        build.start(self).await
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Tells the daemon which build a call of the gateway belongs to.
#[derive(Clone)]
pub struct BuildId(AsciiMetadataValue);

impl Interceptor for BuildId {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("buildkit-controlapi-buildid", self.0.clone());
        Ok(request)
    }
}
