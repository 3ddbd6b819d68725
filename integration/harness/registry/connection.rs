//! One TCP connection: counted, resettable, and telling when it was flushed.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use http::Version;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::journal::Journal;
use super::journal::Listener;

/// A flush that is due has come by then.
const FLUSH: Duration = Duration::from_secs(2);

/// What request handlers may know of and do to their connection.
pub(super) struct Connection {
    pub number: usize,
    pub listener: Listener,
    /// A second descriptor of the same socket.
    socket: OwnedFd,
    flushes: watch::Sender<u64>,
    journal: Arc<Journal>,
}

impl Connection {
    pub fn new(stream: &TcpStream, listener: Listener, journal: Arc<Journal>) -> io::Result<Arc<Self>> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        let number = journal.connection_opened();
        Ok(Arc::new(Self { number, listener, socket, flushes: watch::Sender::new(0), journal }))
    }

    /// Makes the close that follows a TCP reset. HTTP/2 streams are reset by themselves.
    pub fn reset_on_close(&self, version: Version) {
        if version < Version::HTTP_2 {
            // Fails only on a socket that is closed already.
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }

    /// Waits until all that was written before has been handed to the kernel. A flush that came just before is not seen, and
    /// no other has to follow: then the wait ends by itself.
    pub async fn flushed(&self) {
        let mut flushes = self.flushes.subscribe();
        flushes.mark_unchanged();
        // The sender lives as long as `self`.
        let _ = tokio::time::timeout(FLUSH, flushes.changed()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.journal.connection_closed();
    }
}

/// The stream of a connection, which reports its flushes.
pub(super) struct CountedStream {
    pub stream: TcpStream,
    pub connection: Arc<Connection>,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if polled.is_ready() {
            self.connection.flushes.send_modify(|flushes| *flushes += 1);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
