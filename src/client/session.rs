//! The session of a build: what the daemon may call back for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use futures::StreamExt as _;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::sync::mpsc;
use tokio_util::io::CopyToBytes;
use tokio_util::io::SinkWriter;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::PollSender;
use tower::ServiceExt as _;

use super::CallError;
use super::Destination;
use super::Layout;
use super::Lent;
use super::Output;
use super::SecretSource;
use super::broken::watch;
use super::convert::Control;
use super::service;
use super::store::LayoutStore;
use crate::oci::Digest;
use crate::registry::DockerConfig;
use crate::task::Task;
use crate::task::Tasks;

/// Windows inside the tunnel, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// So large for the many small requests of a transfer: see the daemon's side of the tunnel.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Messages under way to the daemon.
const AHEAD: usize = 4;

/// What daemons call the content store that an image is written to.
pub(super) const EXPORT: &str = "export";

/// What a session serves.
#[derive(Debug)]
pub(super) struct Attachments {
    /// By the name of the content store.
    pub(super) stores: BTreeMap<String, Layout>,
    /// Where an image is written to blob by blob.
    pub(super) export: Option<LayoutStore>,
    /// By the number of the output.
    pub(super) destinations: BTreeMap<usize, Destination>,
    /// By the name that a build has for them.
    pub(super) directories: BTreeMap<String, PathBuf>,
    pub(super) secrets: BTreeMap<String, SecretSource>,
    /// Sockets of SSH agents.
    pub(super) agents: BTreeMap<String, PathBuf>,
    pub(super) credentials: DockerConfig,
    pub(super) tasks: Tasks,
}

impl Attachments {
    pub(super) fn new(
        outputs: &[Output],
        layouts: BTreeMap<String, Layout>,
        lent: Lent,
        credentials: DockerConfig,
        tasks: &Tasks,
    ) -> Attachments {
        let Lent { directories, secrets, agents } = lent;
        let export = outputs.iter().find_map(|output| match &output.destination {
            Destination::Layout(path) => Some(LayoutStore::new(path)),
            _ => None,
        });
        let planned = export.iter().map(|export| (EXPORT.to_owned(), Layout::planned(export.root())));
        let layouts = layouts.into_iter().map(|(name, layout)| (format!("oci:{name}"), layout));
        Attachments {
            stores: layouts.chain(planned).collect(),
            export,
            destinations: outputs
                .iter()
                .enumerate()
                .filter(|(_, output)| {
                    !matches!(output.destination, Destination::Daemon | Destination::Layout(_))
                })
                .map(|(n, output)| (n, output.destination.clone()))
                .collect(),
            directories,
            secrets,
            agents,
            credentials,
            tasks: tasks.clone(),
        }
    }

    /// What a daemon finds the files by that this client sent before: the same places on the same machine.
    fn shared_key(&self) -> String {
        if self.directories.is_empty() {
            return String::new();
        }
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let places: Vec<PathBuf> = self
            .directories
            .values()
            .map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
            .collect();
        Digest::sha256(format!("{machine}{places:?}")).hex()
    }
}

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    id: String,
    close: CancellationToken,
    served: Task<()>,
}

impl Session {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Ends the session and waits for the end.
    pub(super) async fn close(self) {
        self.close.cancel();
        let _ = self.served.await;
    }
}

/// Runs the calls of a session where its end sees them.
#[derive(Clone)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        drop(self.0.spawn("session call", work));
    }
}

/// Opens a session and serves it until it is closed or `tasks` is shut down.
pub(super) async fn open(
    control: &Control,
    attachments: Attachments,
    tasks: &Tasks,
) -> Result<Session, CallError> {
    let id = random_id();
    let (send, receive) = mpsc::channel::<Bytes>(AHEAD);
    let inbound =
        control.session(&id, &attachments.shared_key(), &service::methods(&attachments), receive).await?;
    let reader = StreamReader::new(inbound.boxed());
    let writer = SinkWriter::new(CopyToBytes::new(futures::SinkExt::<Bytes>::sink_map_err(
        PollSender::new(send),
        |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe),
    )));
    let io = TokioIo::new(tokio::io::join(reader, writer));
    let routes = service::routes(attachments).map_request(|request: http::Request<hyper::body::Incoming>| {
        watch(request).map(tonic::body::Body::new)
    });
    let close = tasks.token().child_token();
    let stop = close.clone();
    let executor = Executor(tasks.clone());
    let served = tasks.spawn("session", async move {
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(io, TowerToHyperService::new(routes));
        if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
            tracing::debug!(%error, "the session broke");
        }
    });
    Ok(Session { id, close, served })
}

/// 25 random letters and digits, as other clients make them.
pub(super) fn random_id() -> String {
    let letters = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25).map(|_| char::from(letters[rand::random_range(0..letters.len())])).collect()
}
