//! SSH agents of a client (`moby.sshforward.v1.SSH`).

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Buf as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::metadata::AsciiMetadataValue;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::tunnel::Wire;
use crate::proto::sshforward::BytesMessage;
use crate::proto::sshforward::CheckAgentRequest;
use crate::proto::sshforward::ssh_client::SshClient;
use crate::session::Session;
use crate::session::SessionError;

const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
const ID: &str = "buildkit.ssh.id";
const DEFAULT: &str = "default";

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of one message; the requests of agents are small.
const WRITE_LIMIT: usize = 32 << 10;
const WRITES_AHEAD: usize = 4;

/// One connection to an agent of the client. Shutting it down ends our side of it; dropping it ends both.
pub struct SshConnection {
    outbound: PollSender<BytesMessage>,
    inbound: BoxStream<'static, io::Result<Bytes>>,
    unread: Bytes,
}

impl Session {
    /// Fails if the client has no agent of this name; the empty name is `default`.
    ///
    /// Cancellation safe.
    pub async fn ssh_check(&self, id: &str) -> Result<(), SessionError> {
        let request = CheckAgentRequest { id: agent(id).to_owned() };
        self.call(CHECK, Some(LIMIT), self.ssh().check_agent(request)).await.map(drop)
    }

    /// Opens a connection to the client's agent of this name. To be called once for each connection to
    /// the socket that stands for the agent.
    ///
    /// Cancellation safe.
    pub async fn ssh_forward(&self, id: &str) -> Result<SshConnection, SessionError> {
        let (sender, receiver) = mpsc::channel(WRITES_AHEAD);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        let id = AsciiMetadataValue::try_from(agent(id)).map_err(|_| SessionError::Unsendable {
            method: FORWARD,
            problem: format!("the name of an agent {id:?}"),
        })?;
        request.metadata_mut().insert(ID, id);
        let session = self.clone();
        // The client may send its headers only with its first bytes, so nobody waits for them here.
        let messages = async move {
            let messages = session.call(FORWARD, None, session.ssh().forward_agent(request)).await?;
            Ok::<_, SessionError>(session.messages(FORWARD, messages))
        };
        let inbound = futures::stream::once(messages).try_flatten();
        let inbound = inbound.map_ok(|message| message.data).map_err(io::Error::other).boxed();
        Ok(SshConnection { outbound: PollSender::new(sender), inbound, unread: Bytes::new() })
    }

    fn ssh(&self) -> SshClient<Wire> {
        SshClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT)
    }
}

fn agent(id: &str) -> &str {
    if id.is_empty() { DEFAULT } else { id }
}

impl AsyncRead for SshConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.inbound.poll_next_unpin(context)) {
                Some(bytes) => self.unread = bytes?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SshConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the client closed the agent's connection");
        ready!(self.outbound.poll_reserve(context)).map_err(|_| closed())?;
        let length = bytes.len().min(WRITE_LIMIT);
        let data = Bytes::copy_from_slice(&bytes[..length]);
        self.outbound.send_item(BytesMessage { data }).map_err(|_| closed())?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}
