//! Archives to a client (`moby.filesync.v1.FileSend`).
//!
//! The service's stream carries one file in messages of bytes; a directory travels in fsutil packets
//! under the same method and would be a call of its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::metadata::AsciiMetadataKey;
use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::tunnel::Abort;
use crate::proto::filesync::BytesMessage;
use crate::proto::filesync::file_send_client::FileSendClient;
use crate::session::MESSAGE_LIMIT;
use crate::session::Session;
use crate::session::SessionError;

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
const EXPORTER: &str = "buildkit-attachable-exporter-id";
const METADATA_PREFIX: &str = "exporter-md-";

/// A file on its way to a client. Dropping it unfinished resets the transfer: the client must not
/// take a prefix for the whole.
pub struct FileSend {
    /// None once the file is whole.
    bytes: Option<mpsc::Sender<BytesMessage>>,
    /// The client's answer: it comes at the end, or early if it takes no more.
    answer: BoxFuture<'static, Result<Sent, SessionError>>,
    early: Option<Result<Sent, SessionError>>,
    abort: CancellationToken,
}

/// How a transfer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Written,
    /// The client has the target already and takes nothing.
    AlreadyThere,
}

impl Session {
    /// Opens a file of the client's exporter number `exporter`. `metadata` are response keys that the
    /// client learns before the first byte.
    pub async fn file_send(
        &self,
        exporter: usize,
        metadata: &BTreeMap<String, String>,
    ) -> Result<FileSend, SessionError> {
        if !self.supports(METHOD) {
            return Err(SessionError::Unsupported { session: self.id().clone(), method: METHOD });
        }
        let (sender, receiver) = mpsc::channel(1);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        let abort = CancellationToken::new();
        request.extensions_mut().insert(Abort(abort.clone()));
        insert(request.metadata_mut(), EXPORTER, &exporter.to_string())?;
        for (key, value) in metadata {
            insert(request.metadata_mut(), &format!("{METADATA_PREFIX}{key}"), value)?;
        }
        let session = self.clone();
        let answer = async move {
            let mut client =
                FileSendClient::with_origin(session.wire(), origin()).max_decoding_message_size(DECODE_LIMIT);
            let finished = async {
                let mut messages = session.call(METHOD, None, client.diff_copy(request)).await?;
                while session.message(METHOD, &mut messages).await?.is_some() {}
                Ok(Sent::Written)
            };
            finished.await.or_else(|error: SessionError| match error.refusal() {
                Some(Code::AlreadyExists) => Ok(Sent::AlreadyThere),
                _ => Err(error),
            })
        };
        Ok(FileSend { bytes: Some(sender), answer: Box::pin(answer), early: None, abort })
    }
}

impl FileSend {
    /// Appends bytes, in messages that the client accepts; waits while the client is slow. False if
    /// the client takes no more, since it has the target already: [`FileSend::finish`] then.
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<bool, SessionError> {
        while !bytes.is_empty() {
            if let Some(early) = &self.early {
                return early.clone().map(|_| false);
            }
            let Some(sender) = &self.bytes else { return Ok(false) };
            tokio::select! {
                biased;
                // A client that answers before the end takes no more.
                answer = &mut self.answer => self.early = Some(answer),
                permit = sender.reserve() => match permit {
                    Ok(permit) => {
                        let data = bytes.split_to(bytes.len().min(MESSAGE_LIMIT));
                        permit.send(BytesMessage { data });
                    }
                    // The tunnel dropped the body: the answer says why.
                    Err(_) => self.early = Some((&mut self.answer).await),
                },
            }
        }
        Ok(true)
    }

    /// Ends the file and waits until the client has it.
    pub async fn finish(mut self) -> Result<Sent, SessionError> {
        match self.early.take() {
            Some(early) => early,
            None => {
                self.bytes = None;
                (&mut self.answer).await
            }
        }
    }
}

impl Drop for FileSend {
    fn drop(&mut self) {
        if self.bytes.is_some() {
            self.abort.cancel();
        }
    }
}

fn insert(metadata: &mut MetadataMap, key: &str, value: &str) -> Result<(), SessionError> {
    let unsendable = |problem: String| SessionError::Unsendable { method: METHOD, problem };
    let name = AsciiMetadataKey::from_bytes(key.to_ascii_lowercase().as_bytes())
        .map_err(|_| unsendable(format!("the metadata key {key:?}")))?;
    let value = AsciiMetadataValue::try_from(value.as_bytes())
        .map_err(|_| unsendable(format!("the value of the metadata key {key:?}")))?;
    metadata.insert(name, value);
    Ok(())
}
