//! The tunnel as a byte stream, and the HTTP/2 connection inside it.
//!
//! The client frames its bytes any way it likes. What goes to it is one message for each write of the
//! HTTP/2 codec, at most [`WRITE_LIMIT`] bytes.
//!
//! # Cancellation
//!
//! The connection's own task lives as long as its I/O: once `ended` is cancelled every read and write
//! fails, the task ends, and all streams in the tunnel with it. The client's half-close cancels `ended`.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Buf as _;
use bytes::Bytes;
use bytes::BytesMut;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::PollSender;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::task::Tasks;

/// Bytes that one answer may have under way before the client waits for us.
const STREAM_WINDOW: u32 = 2 << 20;
/// Of all answers together. h2 ends a connection that has too many small frames that nobody has read yet, each
/// counted as up to 256 bytes, with half of this window for the limit. The packets of a tree are small: a stream
/// full of the smallest ones has to stay below it, several times over.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Go clients send error details with whole stacks in trailers.
const HEADER_LIMIT: u32 = 1 << 20;
/// Bounds a message to the client and, times [`WRITES_AHEAD`], the memory of a slow tunnel.
const WRITE_LIMIT: usize = 1 << 20;
const WRITES_AHEAD: usize = 4;

/// The client's bytes in, ours out.
struct TunnelIo {
    inbound: BoxStream<'static, io::Result<Bytes>>,
    unread: Bytes,
    outbound: PollSender<Bytes>,
    ended: CancellationToken,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl TunnelIo {
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.waiting
            .as_mut()
            .poll(context)
            .map(|()| io::Error::new(io::ErrorKind::ConnectionAborted, "the session has ended"))
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(ended) = self.poll_open(context) {
            return Poll::Ready(Err(ended));
        }
        while self.unread.is_empty() {
            match ready!(self.inbound.poll_next_unpin(context)) {
                Some(Ok(bytes)) => self.unread = bytes,
                Some(Err(error)) => {
                    self.ended.cancel();
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.ended.cancel();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(ended) = self.poll_open(context) {
            return Poll::Ready(Err(ended));
        }
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the client left");
        ready!(self.outbound.poll_reserve(context)).map_err(|_| closed())?;
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut message = BytesMut::with_capacity(whole.min(WRITE_LIMIT));
        for slice in slices {
            let room = WRITE_LIMIT - message.len();
            message.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let length = message.len();
        self.outbound.send_item(message.freeze()).map_err(|_| closed())?;
        Poll::Ready(Ok(length))
    }

    /// A frame's head and its payload become one message.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}

/// Runs the tasks of a connection where shutdown sees them.
#[derive(Clone)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        drop(self.0.spawn("session-tunnel", work));
    }
}

/// The sending end of a tunnel's connection; clones share it. It never reconnects.
#[derive(Clone)]
pub(super) struct Wire(http2::SendRequest<RequestBody>);

/// What [`start`] gives.
pub(super) struct Tunnel {
    pub(super) wire: Wire,
    /// Ends when the connection does.
    pub(super) connection: BoxFuture<'static, String>,
    pub(super) outbound: mpsc::Receiver<Bytes>,
}

/// Starts the HTTP/2 connection. Does not wait for the client: it answers once it has our headers.
pub(super) async fn start(
    tasks: &Tasks,
    inbound: BoxStream<'static, io::Result<Bytes>>,
    ended: CancellationToken,
) -> Result<Tunnel, hyper::Error> {
    let (sender, outbound) = mpsc::channel(WRITES_AHEAD);
    let io = TunnelIo {
        inbound,
        unread: Bytes::new(),
        outbound: PollSender::new(sender),
        waiting: Box::pin(ended.clone().cancelled_owned()),
        ended,
    };
    let (sender, connection) = http2::Builder::new(Executor(tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIMIT)
        .handshake(TokioIo::new(io))
        .await?;
    let connection = async move {
        match connection.await {
            Ok(()) => "the client closed the connection".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    Ok(Tunnel { wire: Wire(sender), connection: Box::pin(connection), outbound })
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Wire {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<http::Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let abort = request.extensions_mut().remove::<Abort>();
        let request = request.map(|body| RequestBody { body, abort });
        Box::pin(self.0.send_request(request))
    }
}

/// An extension of a request whose body must not look whole if it is given up. The end of a body is
/// the end of a file for the client, so giving up resets the stream instead.
#[derive(Clone)]
pub(super) struct Abort(pub(super) CancellationToken);

/// A request's body, which fails once its [`Abort`] is cancelled.
pub(super) struct RequestBody {
    body: tonic::body::Body,
    abort: Option<Abort>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Looked at after the body: whoever gives up cancels before it drops the body's source.
        if self.abort.as_ref().is_some_and(|abort| abort.0.is_cancelled()) {
            return Poll::Ready(Some(Err(tonic::Status::cancelled("given up"))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.abort.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.abort.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}
