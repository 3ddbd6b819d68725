//! Listeners and connections, on threads of their own.

use std::net::SocketAddr;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::mpsc;

use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Tls;
use super::connection::Connection;
use super::connection::CountedStream;
use super::journal::Listener;
use super::serve::Shared;
use super::serve::serve;

/// The listeners of one registry. Dropping it ends all connections.
pub(super) struct Server {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    tls: Option<Arc<Tls>>,
    bound: Vec<(Listener, SocketAddr, Option<StdListener>)>,
    running: CancellationToken,
    /// Closed when the last task that holds the sender has ended.
    ended: Option<mpsc::Receiver<()>>,
}

impl Server {
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name("registry").enable_all().build();
        let runtime = Some(runtime.expect("a runtime"));
        Self { runtime, tls, bound: Vec::new(), running: CancellationToken::new(), ended: None }
    }

    /// Takes an address. Connections are accepted from `listen` on.
    pub fn bind(&mut self, kind: Listener, address: &str) -> SocketAddr {
        let listener = StdListener::bind(address).expect("a loopback address");
        let address = listener.local_addr().expect("a bound address");
        self.bound.push((kind, address, Some(listener)));
        address
    }

    pub fn listen(&mut self, shared: &Arc<Shared>) {
        self.stop();
        self.running = CancellationToken::new();
        let (alive, ended) = mpsc::channel();
        self.ended = Some(ended);
        let runtime = self.runtime.as_ref().expect("a runtime");
        for (kind, address, listener) in &mut self.bound {
            let kind = *kind;
            let listener =
                listener.take().unwrap_or_else(|| StdListener::bind(*address).expect("the same address"));
            listener.set_nonblocking(true).expect("a socket");
            let (shared, tls, running, alive) =
                (shared.clone(), self.tls.clone(), self.running.clone(), alive.clone());
            runtime.spawn(async move {
                accept(kind, listener, shared, tls, running).await;
                drop(alive);
            });
        }
    }

    /// Ends the listeners and all connections, and waits for that.
    pub fn stop(&mut self) {
        self.running.cancel();
        if let Some(ended) = self.ended.take() {
            // Nothing is ever sent, so this fails when all senders are gone.
            let _ = ended.recv();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.cancel();
        if let Some(runtime) = self.runtime.take() {
            // Tests drop registries inside their own runtimes, where blocking is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// Serves connections until `running` is cancelled; then none of them is left.
async fn accept(
    kind: Listener,
    listener: StdListener,
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    running: CancellationToken,
) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    let mut conversations = JoinSet::new();
    while let Some(accepted) = running.run_until_cancelled(listener.accept()).await {
        // Those that have ended.
        while conversations.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else { continue };
        let Ok(connection) = Connection::new(&stream, kind, shared.journal.clone()) else { continue };
        conversations.spawn(converse(stream, connection, shared.clone(), tls.clone()));
    }
    conversations.shutdown().await;
}

async fn converse(
    stream: TcpStream,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
) {
    // Counted exchanges should not wait for Nagle; failure only costs time.
    let _ = stream.set_nodelay(true);
    let stream = CountedStream { stream, connection: connection.clone() };
    match tls {
        None => speak(stream, connection, shared).await,
        Some(tls) => {
            // A client that doesn't trust us ends here.
            if let Ok(stream) = tls.acceptor.accept(stream).await {
                speak(stream, connection, shared).await;
            }
        }
    }
}

async fn speak<S>(stream: S, connection: Arc<Connection>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| serve(shared.clone(), connection.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    // How a connection ends is in the journal, or the client's affair.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}
