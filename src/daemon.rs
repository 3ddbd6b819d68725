//! The daemon: a configuration becomes running services, which end in order.
//!
//! # Start
//!
//! The root is locked, then the sockets listen, then the stores are opened. A client that connects early is told
//! who the daemon is, and is served when everything is there (`gate.rs`). The service manager is told when that
//! is so.
//!
//! # Cancellation
//!
//! [`Daemon::stop`] ends a daemon in this order, within [`STOP_LIMIT`]:
//!
//! 1. the listeners: nobody comes in any more,
//! 2. the builds: each is cancelled and tells its client so,
//! 3. the connections: calls that are still open get [`CALL_GRACE`], then they are cut,
//! 4. the tasks and stores, whose last writes become durable,
//! 5. the sockets' files and the lock.
//!
//! A daemon that is dropped instead leaves what `kill -9` leaves: nothing that the next start can't clean up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::control::Greeting;
use crate::identity::Identity;
use crate::task::Task;
use crate::task::TaskFailed;
use crate::task::Tasks;

mod address;
pub mod config;
mod debug;
mod defaults;
mod execution;
pub mod file;
pub mod flags;
mod gate;
mod gc;
mod listen;
mod lock;
mod log;
mod notify;
mod platforms;
mod run;
mod services;
mod settings;
mod snapshots;
mod tls;
mod toml;
mod units;
mod worker_id;

pub use config::Config;
pub use config::ConfigError;
pub use debug::Counters;
pub use defaults::Defaults;
pub use listen::Connection;
pub use listen::ListenError;
pub use lock::LockError;
pub use log::start as start_log;
pub use run::RunError;
pub use run::command;
pub use run::run;
pub use services::OpenError;
pub use settings::Settings;
pub use tls::TlsError;
pub use toml::Finding;
pub use units::Space;
pub use units::parse_duration;
pub use units::parse_space;

use gate::Gate;
use listen::Listener;
use lock::RootLock;
use services::Services;

/// How long a stop may take in all.
pub const STOP_LIMIT: Duration = Duration::from_secs(4);
/// How long calls may go on after the builds were cancelled.
const CALL_GRACE: Duration = Duration::from_secs(2);
/// Windows of the HTTP/2 connections, in bytes: a stream's and a connection's. Session tunnels carry archives, and
/// the small frames of trees, of which h2 lets more wait in a larger connection (`session/tunnel.rs`).
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// A daemon did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A running daemon.
#[derive(Debug)]
#[must_use = "a daemon that is dropped is not stopped in order"]
pub struct Daemon {
    addresses: Vec<String>,
    debug_address: Option<String>,
    services: Arc<Services>,
    /// Listeners and what hangs on them.
    front: Tasks,
    /// Cut at the end of [`CALL_GRACE`].
    server: Task<Result<(), tonic::transport::Error>>,
    connect: mpsc::Sender<io::Result<Connection>>,
    abandon: CancellationToken,
    _lock: RootLock,
}

/// Opens connections to a daemon in this process.
#[derive(Clone, Debug)]
pub struct Connector(mpsc::Sender<io::Result<Connection>>);

impl Connector {
    /// A connection as good as one through a socket. Fails if the daemon has stopped.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let gone = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the daemon has stopped");
        self.0.send(Ok(Connection::Unix(theirs))).await.map_err(gone)?;
        Ok(ours)
    }
}

impl Daemon {
    /// Starts what `config` says. Without an address to listen on, only [`Daemon::connector`] leads in.
    ///
    /// Not cancellation safe: a daemon that is half started is dropped like one that was killed.
    pub async fn start(mut config: Config) -> Result<Daemon, StartError> {
        let lock = RootLock::take(&config.root)?;
        config.worker.snapshotter = snapshots::settle(&config.root, config.worker.snapshotter);
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let mut listeners = Vec::with_capacity(config.listen.len());
        for address in &config.listen {
            let listener = listen::listen(address, config.socket_owner).await?;
            warn_of_tls(&listener, tls.is_some());
            listeners.push(listener);
        }
        let addresses = listeners.iter().map(|l| l.address().to_owned()).collect();

        let identity = services::identity(&config)?;
        let front = Tasks::new();
        let unless_started = front.token().clone().drop_guard();
        let (opener, gate) = Gate::new(Greeting::new(identity.clone()));
        let (connect, connections) = listen::accept(listeners, tls, &front);
        let abandon = CancellationToken::new();
        let server = serve(gate, connections, &front, abandon.clone());
        let (services, debug_address) = match open(&config, identity, &front).await {
            Ok(opened) => opened,
            Err(error) => {
                // Nobody is left who waits, and the sockets' files are gone, when the failure is known.
                drop((opener, unless_started));
                abandon.cancel();
                front.shutdown().await;
                return Err(error);
            }
        };
        opener.open(services.routes());
        unless_started.disarm();
        Ok(Daemon { addresses, debug_address, services, server, front, connect, abandon, _lock: lock })
    }

    /// Where the daemon listens, with the ports that the kernel chose.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Where the debug page is, if there is one.
    pub fn debug_address(&self) -> Option<&str> {
        self.debug_address.as_deref()
    }

    /// The way in for this process.
    pub fn connector(&self) -> Connector {
        Connector(self.connect.clone())
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.services.counters()
    }

    /// Pending while the server runs. It ends by itself only if it is broken.
    ///
    /// Cancellation safe.
    pub async fn broken(&mut self) -> Broken {
        Broken::from((&mut self.server).await)
    }

    /// Stops in order; see the module.
    ///
    /// Cancellation safe in that the rest then happens as after `kill -9`.
    pub async fn stop(self) -> Stopped {
        let Daemon { services, front, server, connect, abandon, .. } = self;
        drop(connect);
        let orderly = async {
            front.token().cancel();
            services.cancel_builds().await;
            let call_grace = tokio::time::timeout(CALL_GRACE, server).await;
            abandon.cancel();
            front.shutdown().await;
            services.close().await;
            if call_grace.is_err() { Stopped::CallsCut } else { Stopped::InOrder }
        };
        tokio::time::timeout(STOP_LIMIT, orderly).await.unwrap_or(Stopped::Late)
    }
}

/// How a stop went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// Every call had its end.
    InOrder,
    /// Clients held calls open, which were cut.
    CallsCut,
    /// Something did not end in time and was left behind.
    Late,
}

/// The server ended and was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the server broke")]
    Transport(#[source] tonic::transport::Error),
    #[error("the server broke")]
    Task(#[source] TaskFailed),
    #[error("the server ended")]
    Ended,
}

impl From<Result<Result<(), tonic::transport::Error>, TaskFailed>> for Broken {
    fn from(end: Result<Result<(), tonic::transport::Error>, TaskFailed>) -> Broken {
        match end {
            Ok(Ok(())) => Broken::Ended,
            Ok(Err(source)) => Broken::Transport(source),
            Err(source) => Broken::Task(source),
        }
    }
}

/// Opens the services, and the debug page onto their counters.
async fn open(
    config: &Config,
    identity: Identity,
    front: &Tasks,
) -> Result<(Arc<Services>, Option<String>), StartError> {
    let services = Arc::new(Services::open(config, identity).await?);
    let debug_address = match &config.debug_address {
        None => None,
        Some(address) => {
            let services = services.clone();
            let counters = Arc::new(move || services.counters());
            Some(debug::serve(address, front, counters).await?)
        }
    };
    Ok((services, debug_address))
}

fn serve(
    gate: Gate,
    connections: ReceiverStream<io::Result<Connection>>,
    front: &Tasks,
    abandon: CancellationToken,
) -> Task<Result<(), tonic::transport::Error>> {
    let stop = front.token().clone();
    front.spawn("server", async move {
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_with_incoming_shutdown(gate, connections, stop.cancelled_owned());
        abandon.run_until_cancelled(server).await.unwrap_or(Ok(()))
    })
}

fn warn_of_tls(listener: &Listener, tls: bool) {
    let address = listener.address();
    match (listener.is_tcp(), tls) {
        (true, false) => tracing::warn!(
            address,
            "TLS is off for a TCP address: whoever reaches it commands this daemon; set grpc.tls with a client CA"
        ),
        (false, true) => tracing::debug!(address, "TLS is for TCP only"),
        _ => {}
    }
}
