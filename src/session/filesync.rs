//! Directories of a client (`moby.filesync.v1.FileSync`), and directories to a client (`FileSend`).

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::TryStreamExt as _;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataKey;
use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;
use tonic_prost::ProstCodec;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::fsutil;
use super::fsutil::ReceiveOptions;
use super::fsutil::Received;
use super::fsutil::TransferError;
use super::fsutil::TreeSource;
use super::tunnel::Abort;
use crate::proto::filesync::file_sync_client::FileSyncClient;
use crate::proto::fsutil::Packet;
use crate::proto::fsutil::packet::PacketType;
use crate::session::Session;
use crate::session::SessionError;
use crate::task::Tasks;

const RECEIVE: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Packets under way to a client.
const AHEAD: usize = 16;

/// What of a client's directory is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileSyncRequest {
    /// Of the directory.
    pub name: String,
    /// Empty for everything.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Paths whose symbolic links are followed: what they lead to is wanted as well.
    pub follow: Vec<String>,
}

/// How a client is to take a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectorySend {
    /// The client's exporter.
    pub exporter: usize,
    /// All that the client shall have comes in this one transfer, so that it may delete the rest.
    pub whole: bool,
}

impl Session {
    /// Makes `target` what the client has. `progress` is told of the bytes that came.
    ///
    /// Cancellation safe as [`fsutil`] says.
    pub async fn file_sync(
        &self,
        tasks: &Tasks,
        request: &FileSyncRequest,
        target: &Path,
        options: ReceiveOptions,
        progress: impl FnMut(u64) + Send,
    ) -> Result<Received, TransferError> {
        if !self.supports(RECEIVE) {
            return Err(SessionError::Unsupported { session: self.id().clone(), method: RECEIVE }.into());
        }
        let (answers, receiver) = mpsc::unbounded_channel();
        let mut call = tonic::Request::new(UnboundedReceiverStream::new(receiver));
        let metadata = call.metadata_mut();
        insert(metadata, RECEIVE, "dir-name", std::slice::from_ref(&request.name))?;
        insert(metadata, RECEIVE, "include-patterns", &request.include)?;
        insert(metadata, RECEIVE, "exclude-patterns", &request.exclude)?;
        insert(metadata, RECEIVE, "followpaths", &request.follow)?;
        let mut client =
            FileSyncClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT);
        let packets = self.call(RECEIVE, None, client.diff_copy(call)).await?;
        let packets = self.messages(RECEIVE, packets).boxed();
        fsutil::receive(tasks, packets, answers, target, options, progress).await
    }

    /// Sends `source` to a directory of the client. `progress` is told of the bytes that were sent.
    ///
    /// Cancellation safe: a client is told that a transfer was given up.
    pub async fn file_send_dir(
        &self,
        tasks: &Tasks,
        to: DirectorySend,
        source: Arc<dyn TreeSource>,
        progress: impl FnMut(u64) + Send,
    ) -> Result<fsutil::Sent, TransferError> {
        if !self.supports(SEND) {
            return Err(SessionError::Unsupported { session: self.id().clone(), method: SEND }.into());
        }
        let (out, receiver) = mpsc::channel(AHEAD);
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        // The end of our side is the end of a whole transfer only.
        let abort = CancellationToken::new();
        let given_up = abort.clone().drop_guard();
        call.extensions_mut().insert(Abort(abort));
        let metadata = call.metadata_mut();
        insert(metadata, SEND, "buildkit-attachable-exporter-id", &[to.exporter.to_string()])?;
        if to.whole {
            insert(metadata, SEND, "buildkit-exporter-multi-platform", &["1".to_owned()])?;
        }
        let session = self.clone();
        let packets = async move {
            let mut client =
                Grpc::with_origin(session.wire(), origin()).max_decoding_message_size(DECODE_LIMIT);
            let answered = async {
                // The clone of a connection is ready when its original is.
                client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
                let codec = ProstCodec::<Packet, Packet>::default();
                client.streaming(call, PathAndQuery::from_static(SEND), codec).await
            };
            let messages = session.call(SEND, None, answered).await?;
            Ok::<_, SessionError>(session.messages(SEND, messages))
        };
        // The client may answer only when it wants the first file: nobody waits for that here.
        let mut packets = futures::stream::once(packets).try_flatten().boxed();
        let sent = fsutil::send(tasks, &mut packets, out, source, progress).await?;
        given_up.disarm();
        // Our side has ended. The end of the client's side says how it fared.
        while let Some(packet) = packets.try_next().await? {
            if packet.r#type() == PacketType::Err {
                return Err(TransferError::peer(&packet.data));
            }
        }
        Ok(sent)
    }
}

/// Adds the values of a key. What headers can't carry is escaped as in the query of a URL, and the key's
/// companion says so.
fn insert(
    metadata: &mut MetadataMap,
    method: &'static str,
    key: &'static str,
    values: &[String],
) -> Result<(), SessionError> {
    let plain = |text: &String| text.bytes().all(|b| (0x20..0x7f).contains(&b)) && text.trim() == text;
    let encoded = !values.iter().all(plain);
    let name = AsciiMetadataKey::from_static(key);
    for value in values {
        let text =
            if encoded { form_urlencoded::byte_serialize(value.as_bytes()).collect() } else { value.clone() };
        let value = AsciiMetadataValue::try_from(text.as_bytes()).map_err(|_| SessionError::Unsendable {
            method,
            problem: format!("the value {text:?} of the metadata key {key:?}"),
        })?;
        metadata.append(name.clone(), value);
    }
    if encoded {
        let companion = AsciiMetadataKey::from_bytes(format!("{key}-encoded").as_bytes());
        let companion = companion
            .map_err(|_| SessionError::Unsendable { method, problem: format!("the metadata key {key:?}") })?;
        metadata.insert(companion, AsciiMetadataValue::from_static("1"));
    }
    Ok(())
}
