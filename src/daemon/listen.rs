//! The sockets that the daemon listens on, and the connections that come in on all of them.
//!
//! A TLS handshake runs in a task of its own with a limit, so that a client that says nothing keeps nobody
//! waiting. A unix socket that no process answers on is replaced; one that is answered is refused.

use std::io;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::address::Address;
use super::config::SocketOwner;
use crate::task::Tasks;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long to rest when no connection can be taken, which is mostly for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Listening failed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("could not listen on {address}")]
    Bind { address: String, source: io::Error },
    #[error("could not listen on unix://{path:?}: another process answers there")]
    InUse { path: PathBuf },
    #[error("could not listen on unix://{path:?}: a file that is not a socket is in the way")]
    NotASocket { path: PathBuf },
    #[error("the socket {path:?} can't be given to its owner")]
    Owner { path: PathBuf, source: io::Error },
    #[error(
        "fd:// is set, but the service manager handed over no socket, or only one (LISTEN_PID, LISTEN_FDS)"
    )]
    NotActivated,
    #[error("the socket that the service manager handed over is neither unix nor TCP")]
    Activated { source: io::Error },
}

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listener {
    address: String,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix { listener: UnixListener, _file: Option<SocketFile> },
    Tcp(TcpListener),
}

/// A socket in the file system, removed at the end if it is still the one that was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on `address`.
pub(super) async fn listen(address: &Address, owner: SocketOwner) -> Result<Listener, ListenError> {
    let socket = match address {
        Address::Unix(path) => unix(path, owner)?,
        Address::Tcp(host) => Socket::Tcp(tcp(host).await?),
        Address::Activated => activated(activated_fd().ok_or(ListenError::NotActivated)?)?,
    };
    let address = match &socket {
        // The port may have been left to the kernel.
        Socket::Tcp(listener) => {
            listener.local_addr().map_or_else(|_| address.to_string(), |a| format!("tcp://{a}"))
        }
        Socket::Unix { .. } => address.to_string(),
    };
    Ok(Listener { address, socket })
}

impl Listener {
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.socket, Socket::Tcp(_))
    }
}

async fn tcp(host: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(host)
        .await
        .map_err(|source| ListenError::Bind { address: format!("tcp://{host}"), source })
}

fn unix(path: &Path, owner: SocketOwner) -> Result<Socket, ListenError> {
    let bind = |source| ListenError::Bind { address: format!("unix://{}", path.display()), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(bind)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(bind)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(ListenError::InUse { path: path.to_owned() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(bind(e)),
    }
    // Nobody may connect before the socket is its owner's.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(bind)?;
    let own = |source| ListenError::Owner { path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(own)?;
    let file = SocketFile { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) };
    std::os::unix::fs::chown(path, owner.uid, owner.gid).map_err(own)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(own)?;
    Ok(Socket::Unix { listener, _file: Some(file) })
}

/// The first socket that the service manager handed to this process (sd_listen_fds(3)).
fn activated_fd() -> Option<OwnedFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let (pid, count) = (number("LISTEN_PID")?, number("LISTEN_FDS")?);
    if pid != std::process::id() || count == 0 {
        return None;
    }
    const FIRST: i32 = 3;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: by the protocol descriptor 3 is open and this process's own, and nothing here opened it. It is taken
    // once: `TAKEN` is set only here and never reset.
    #[expect(unsafe_code, reason = "a descriptor that is inherited by number has no other way in")]
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

fn activated(fd: OwnedFd) -> Result<Socket, ListenError> {
    let failed = |source| ListenError::Activated { source };
    let domain = rustix::net::sockopt::socket_domain(&fd).map_err(|e| failed(e.into()))?;
    if domain == rustix::net::AddressFamily::UNIX {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(failed)?;
        // The file belongs to the service manager.
        return Ok(Socket::Unix { listener: UnixListener::from_std(listener).map_err(failed)?, _file: None });
    }
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Socket::Tcp(TcpListener::from_std(listener).map_err(failed)?))
}

/// What a client is connected by.
#[derive(Debug)]
pub enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Takes connections from every listener until the token of `tasks` is cancelled.
///
/// TCP is wrapped in TLS if `tls` is there; unix sockets never are. Connections made by other means can be sent
/// in beside them.
pub(super) fn accept(
    listeners: Vec<Listener>,
    tls: Option<TlsAcceptor>,
    tasks: &Tasks,
) -> (mpsc::Sender<io::Result<Connection>>, ReceiverStream<io::Result<Connection>>) {
    let (send, receive) = mpsc::channel(16);
    for listener in listeners {
        let send = send.clone();
        let tls = tls.clone();
        let owner = tasks.clone();
        tasks.spawn("listener", async move {
            let stop = owner.token().clone();
            stop.run_until_cancelled(accept_from(listener, tls, send, &owner)).await;
        });
    }
    (send, ReceiverStream::new(receive))
}

async fn accept_from(
    listener: Listener,
    tls: Option<TlsAcceptor>,
    send: mpsc::Sender<io::Result<Connection>>,
    tasks: &Tasks,
) {
    loop {
        let accepted = match &listener.socket {
            Socket::Unix { listener, .. } => listener.accept().await.map(|(s, _)| Connection::Unix(s)),
            Socket::Tcp(listener) => listener.accept().await.map(|(s, _)| Connection::Tcp(s)),
        };
        match (accepted, &tls) {
            (Ok(Connection::Tcp(stream)), Some(tls)) => {
                let handshake = handshake(stream, tls.clone(), send.clone());
                let stop = tasks.token().clone();
                tasks.spawn("TLS handshake", async move {
                    stop.run_until_cancelled(handshake).await;
                });
            }
            (Ok(connection), _) => {
                if let Connection::Tcp(stream) = &connection {
                    let _ = stream.set_nodelay(true);
                }
                if send.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            (Err(error), _) => {
                tracing::warn!(address = listener.address, %error, "could not take a connection");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn handshake(stream: TcpStream, tls: TlsAcceptor, send: mpsc::Sender<io::Result<Connection>>) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            // The server is gone if this fails; so is the need for the connection.
            let _ = send.send(Ok(Connection::Tls(Box::new(stream)))).await;
        }
        Ok(Err(error)) => tracing::warn!(peer, %error, "TLS handshake failed"),
        Err(_) => tracing::warn!(peer, "TLS handshake took too long"),
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Connection::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Connection::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Unix(stream) => stream.is_write_vectored(),
            Connection::Tcp(stream) => stream.is_write_vectored(),
            Connection::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_flush(context),
            Connection::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Connection::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
