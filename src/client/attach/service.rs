//! The services of a session that read and write files of this machine.

use std::io;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use async_trait::async_trait;
use bytes::Buf as _;
use bytes::BufMut as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::codec::Codec;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic::codec::EncodeBuf;
use tonic::codec::Encoder;
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::server::StreamingService;

use crate::client::Destination;
use crate::client::broken::Broken;
use crate::client::directories;
use crate::client::directories::Wanted;
use crate::client::output::Writer;
use crate::client::service::Callbacks;
use crate::client::service::MESSAGE_LIMIT;
use crate::fs::Owner;
use crate::proto::filesync::BytesMessage;
use crate::proto::filesync::file_sync_server::FileSync;
use crate::proto::fsutil::Packet;
use crate::proto::secrets;
use crate::proto::sshforward;
use crate::session::fsutil;
use crate::session::fsutil::Differ;
use crate::session::fsutil::ReceiveOptions;
use crate::session::fsutil::TransferError;

/// Packets under way to the daemon.
const AHEAD: usize = 16;
/// Bytes of an agent's answer in one message.
const AGENT_CHUNK: usize = 32 << 10;

#[async_trait]
impl FileSync for Callbacks {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;

    /// Sends what is asked for of a directory.
    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let wanted = Wanted {
            name: values(request.metadata(), "dir-name").into_iter().next().unwrap_or_default(),
            include: values(request.metadata(), "include-patterns"),
            exclude: values(request.metadata(), "exclude-patterns"),
            follow: values(request.metadata(), "followpaths"),
        };
        let (attachments, tasks) = (Arc::clone(&self.0), self.0.tasks.clone());
        let select = move || directories::select(&attachments.directories, &wanted);
        let selected = tasks.spawn_blocking("directory", select).await;
        let source =
            selected.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| match error {
                directories::DirectoryError::Unknown { .. } => Status::not_found(error.to_string()),
                error => Status::unknown(error.to_string()),
            })?;
        let (out, packets) = mpsc::channel(AHEAD);
        let requests = request.into_inner().map(|packet| packet.map_err(|status| lost(&status)));
        let sent = tasks.clone().spawn("directory", async move {
            fsutil::send(&tasks, requests, out, Arc::new(source), |_| ()).await
        });
        let end = stream::once(async move {
            match sent.await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(Err(Status::unknown(error.to_string()))),
                Err(error) => Some(Err(Status::internal(error.to_string()))),
            }
        });
        let packets = ReceiverStream::new(packets).map(Ok);
        Ok(Response::new(packets.chain(end.filter_map(async |end| end)).boxed()))
    }

    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("directories are sent in packets"))
    }
}

fn lost(status: &Status) -> TransferError {
    TransferError::Peer { message: status.message().to_owned() }
}

/// The values of a key; escaped as in the query of a URL if its companion says so.
fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = metadata.get(format!("{key}-encoded")).is_some_and(|value| value == "1" || value == "true");
    let texts = metadata.get_all(key).iter().filter_map(|value| value.to_str().ok());
    texts
        .map(|text| match encoded {
            // A key of a form, which has no value.
            true => form_urlencoded::parse(text.replace('=', "%3D").replace('&', "%26").as_bytes())
                .map(|(key, _)| key.into_owned())
                .next()
                .unwrap_or_default(),
            false => text.to_owned(),
        })
        .collect()
}

/// `moby.filesync.v1.FileSend`, whose messages are of one type for a file and of another for a directory.
#[derive(Clone, Debug)]
pub(in crate::client) struct FileSendService(pub(in crate::client) Arc<Callbacks>);

impl NamedService for FileSendService {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower_service::Service<http::Request<tonic::body::Body>> for FileSendService {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSend/DiffCopy" {
                return Ok(Status::unimplemented("there is one call").into_http());
            }
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(MESSAGE_LIMIT);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl StreamingService<Bytes> for FileSendService {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let callbacks = Arc::clone(&self.0);
        Box::pin(async move { callbacks.take_output(request).await })
    }
}

impl Callbacks {
    async fn take_output(
        &self,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<BoxStream<'static, Result<Bytes, Status>>>, Status> {
        let number = request
            .metadata()
            .get("buildkit-attachable-exporter-id")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or_default();
        match self.0.destinations.get(&number) {
            None => Err(Status::not_found(format!("output {number} has no destination here"))),
            Some(Destination::Directory { path, delete }) => {
                let whole = request.metadata().get("buildkit-exporter-multi-platform").is_some();
                if *delete && !whole {
                    return Err(Status::failed_precondition(
                        "mode=delete needs a daemon that sends all platforms at once",
                    ));
                }
                Ok(Response::new(self.take_directory(request.into_inner(), path.clone(), *delete)))
            }
            Some(destination) => {
                self.take_file(request, destination).await?;
                Ok(Response::new(stream::empty().boxed()))
            }
        }
    }

    /// The bytes of one output until the daemon half-closes; then the file takes its place.
    async fn take_file(
        &self,
        request: Request<Streaming<Bytes>>,
        destination: &Destination,
    ) -> Result<(), Status> {
        let failed = |error: io::Error| {
            let to = match destination {
                Destination::File(path) => format!("{path:?}"),
                _ => "the output".to_owned(),
            };
            Status::unknown(format!("could not write {to}: {error}"))
        };
        let mut writer = Writer::start(destination, &self.0.tasks);
        let broken = request.extensions().get::<Broken>().cloned().unwrap_or_default();
        let mut bytes = request.into_inner();
        while let Some(message) = bytes.message().await? {
            let message = BytesMessage::decode(message).map_err(|e| Status::internal(e.to_string()))?;
            writer.append(message.data).await.map_err(failed)?;
        }
        if broken.is_broken() {
            return Err(Status::cancelled("the daemon gave the output up"));
        }
        writer.commit().await.map_err(failed)
    }

    /// Makes a directory what the daemon sends. What is there stays, unless it is to be deleted.
    fn take_directory(
        &self,
        messages: Streaming<Bytes>,
        path: std::path::PathBuf,
        delete: bool,
    ) -> BoxStream<'static, Result<Bytes, Status>> {
        let packets = messages.map(|message| {
            let message = message.map_err(|status| lost(&status))?;
            Packet::decode(message).map_err(|error| TransferError::Peer { message: error.to_string() })
        });
        let options = ReceiveOptions {
            merge: !delete,
            differ: Differ::None,
            owner: Some(Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            }),
            ..ReceiveOptions::default()
        };
        let (answers, answered) = mpsc::unbounded_channel();
        let tasks = self.0.tasks.clone();
        let received = tasks.clone().spawn("output directory", async move {
            let failed = |error: io::Error| format!("could not make the directory {path:?}: {error}");
            tokio::fs::create_dir_all(&path).await.map_err(failed)?;
            let received = fsutil::receive(&tasks, packets, answers, &path, options, |_| ()).await;
            received.map(drop).map_err(|error| error.to_string())
        });
        let end = stream::once(async move {
            match received.await {
                Ok(Ok(())) => None,
                Ok(Err(message)) => Some(Err(Status::unknown(message))),
                Err(error) => Some(Err(Status::internal(error.to_string()))),
            }
        });
        let answers = UnboundedReceiverStream::new(answered).map(|packet| Ok(packet.encode_to_vec().into()));
        answers.chain(end.filter_map(async |end| end)).boxed()
    }
}

/// Messages as their bytes.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[async_trait]
impl secrets::secrets_server::Secrets for Callbacks {
    async fn get_secret(
        &self,
        request: Request<secrets::GetSecretRequest>,
    ) -> Result<Response<secrets::GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let missing = || Status::not_found(format!("secret {id} not found"));
        let source = self.0.secrets.get(&id).cloned().ok_or_else(missing)?;
        let read = self.0.tasks.spawn_blocking("secret", move || source.read()).await;
        match read.map_err(|error| Status::internal(error.to_string()))? {
            Ok(data) => Ok(Response::new(secrets::GetSecretResponse { data: data.into() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(Status::unknown(format!("secret {id}: {error}"))),
        }
    }
}

#[async_trait]
impl sshforward::ssh_server::Ssh for Callbacks {
    async fn check_agent(
        &self,
        request: Request<sshforward::CheckAgentRequest>,
    ) -> Result<Response<sshforward::CheckAgentResponse>, Status> {
        self.agent(&request.get_ref().id)?;
        Ok(Response::new(sshforward::CheckAgentResponse {}))
    }

    type ForwardAgentStream = BoxStream<'static, Result<sshforward::BytesMessage, Status>>;

    /// One connection to the agent's socket.
    async fn forward_agent(
        &self,
        request: Request<Streaming<sshforward::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id =
            request.metadata().get("buildkit.ssh.id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        let failed = |error: io::Error| Status::unknown(format!("the SSH agent: {error}"));
        let socket = UnixStream::connect(self.agent(id)?).await.map_err(failed)?;
        let (mut from_agent, mut to_agent) = socket.into_split();
        let mut asked = request.into_inner();
        drop(self.0.tasks.spawn("agent requests", async move {
            while let Ok(Some(message)) = asked.message().await {
                if to_agent.write_all(&message.data).await.is_err() {
                    break;
                }
            }
            let _ = to_agent.shutdown().await;
        }));
        let (send, answers) = mpsc::channel(2);
        drop(self.0.tasks.spawn("agent answers", async move {
            loop {
                let mut data = bytes::BytesMut::with_capacity(AGENT_CHUNK);
                let message = match from_agent.read_buf(&mut data).await {
                    Ok(0) => break,
                    Ok(_) => Ok(sshforward::BytesMessage { data: data.freeze() }),
                    Err(error) => Err(failed(error)),
                };
                if send.send(message).await.is_err() {
                    break;
                }
            }
        }));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }
}

impl Callbacks {
    fn agent(&self, id: &str) -> Result<&std::path::Path, Status> {
        let id = if id.is_empty() { "default" } else { id };
        let agent = self.0.agents.get(id);
        agent
            .map(std::path::PathBuf::as_path)
            .ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}: give it with --ssh {id}")))
    }
}
