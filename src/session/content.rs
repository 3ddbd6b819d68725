//! A client's content stores (`containerd.services.content.v1.Content` inside the session).

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::Streaming;
use tonic::metadata::AsciiMetadataValue;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::tunnel::Wire;
use crate::oci::Digest;
use crate::proto::content::InfoRequest;
use crate::proto::content::ListStatusesRequest;
use crate::proto::content::ReadContentRequest;
use crate::proto::content::WriteAction;
use crate::proto::content::WriteContentRequest;
use crate::proto::content::WriteContentResponse;
use crate::proto::content::content_client::ContentClient;
use crate::session::MESSAGE_LIMIT;
use crate::session::Session;
use crate::session::SessionError;

const STORE: &str = "buildkit-attachable-store-id";
const INFO: &str = "/containerd.services.content.v1.Content/Info";
const READ: &str = "/containerd.services.content.v1.Content/Read";
const WRITE: &str = "/containerd.services.content.v1.Content/Write";
const STATUSES: &str = "/containerd.services.content.v1.Content/ListStatuses";

/// One content store of a client, by its name: `oci:<store>` for an OCI layout, `export` for the
/// target of an archive without tar, `local:<path>` for a cache directory.
#[derive(Clone, Debug)]
pub struct ClientContent {
    session: Session,
    store: String,
}

/// A blob that a client has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientBlob {
    pub digest: Digest,
    pub size: u64,
}

/// Where an interrupted write to a client stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientIngestStatus {
    pub reference: String,
    pub offset: u64,
    pub total: u64,
}

/// What came of committing a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingested {
    Written,
    /// The client had the blob already, or got it from somebody else meanwhile.
    AlreadyThere,
}

/// A write to a client's content store under way. Dropping it leaves what was written for a resume.
pub struct ClientIngest {
    session: Session,
    reference: String,
    digest: Digest,
    size: u64,
    offset: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
}

impl Session {
    /// The client's content store of this name. Makes no call.
    pub fn content(&self, store: &str) -> ClientContent {
        ClientContent { session: self.clone(), store: store.to_owned() }
    }
}

impl ClientContent {
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn store(&self) -> &str {
        &self.store
    }

    /// Size of a blob; none if the client does not have it, or not this store.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ClientBlob>, SessionError> {
        let mut client = self.client();
        let request = self.request(INFO, InfoRequest { digest: digest.to_string() })?;
        match self.session.call(INFO, None, client.info(request)).await {
            Ok(answer) => {
                let size = answer.info.map_or(-1, |info| info.size);
                match u64::try_from(size) {
                    Ok(size) => Ok(Some(ClientBlob { digest: *digest, size })),
                    Err(_) => Err(self.session.nonsense(INFO, format!("no size for {digest}"))),
                }
            }
            Err(error) if error.refusal() == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a blob from `offset` to its end. They are not verified.
    pub async fn read(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, SessionError>>, SessionError> {
        let mut client = self.client();
        let request =
            ReadContentRequest { digest: digest.to_string(), offset: self.number(READ, offset)?, size: 0 };
        let request = self.request(READ, request)?;
        let answer = self.session.call(READ, None, client.read(request)).await?;
        let (session, mut expected) = (self.session.clone(), offset);
        let bytes = self.session.messages(READ, answer).and_then(move |message| {
            let checked = if u64::try_from(message.offset) == Ok(expected) {
                expected += message.data.len() as u64;
                Ok(Bytes::from(message.data))
            } else {
                let problem = format!("bytes of offset {} where {expected} was next", message.offset);
                Err(session.nonsense(READ, problem))
            };
            futures::future::ready(checked)
        });
        Ok(bytes.boxed())
    }

    /// Opens a write under the name `reference`; none if the client has the blob already. A name that
    /// was written to before goes on at [`ClientIngest::offset`].
    pub async fn write(
        &self,
        reference: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<ClientIngest>, SessionError> {
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total: self.number(WRITE, size)?,
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        let request = self.request(WRITE, ReceiverStream::new(receiver))?;
        let mut client = self.client();
        let opened = async {
            // Of a new channel, and it has room for one.
            let _ = requests.send(first).await;
            let mut responses = self.session.call(WRITE, None, client.write(request)).await?;
            match self.session.message(WRITE, &mut responses).await? {
                Some(stat) => Ok((stat, responses)),
                None => Err(self.session.nonsense(WRITE, "an end before the first status")),
            }
        };
        match opened.await {
            Ok((stat, responses)) => {
                let offset = u64::try_from(stat.offset).ok().filter(|&offset| offset <= size);
                let Some(offset) = offset else {
                    let problem = format!("offset {} of {size} bytes", stat.offset);
                    return Err(self.session.nonsense(WRITE, problem));
                };
                Ok(Some(ClientIngest {
                    session: self.session.clone(),
                    reference: reference.to_owned(),
                    digest: *digest,
                    size,
                    offset,
                    requests,
                    responses,
                }))
            }
            Err(error) if error.refusal() == Some(Code::AlreadyExists) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes to this store that were not committed.
    pub async fn statuses(&self) -> Result<Vec<ClientIngestStatus>, SessionError> {
        let mut client = self.client();
        let request = self.request(STATUSES, ListStatusesRequest::default())?;
        let answer = self.session.call(STATUSES, None, client.list_statuses(request)).await?;
        let statuses = answer.statuses.into_iter().map(|status| ClientIngestStatus {
            reference: status.r#ref,
            offset: u64::try_from(status.offset).unwrap_or(0),
            total: u64::try_from(status.total).unwrap_or(0),
        });
        Ok(statuses.collect())
    }

    fn client(&self) -> ContentClient<Wire> {
        ContentClient::with_origin(self.session.wire(), origin()).max_decoding_message_size(DECODE_LIMIT)
    }

    fn request<T>(&self, method: &'static str, message: T) -> Result<tonic::Request<T>, SessionError> {
        let store = AsciiMetadataValue::try_from(self.store.as_bytes()).map_err(|_| {
            SessionError::Unsendable { method, problem: format!("the store name {:?}", self.store) }
        })?;
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(STORE, store);
        Ok(request)
    }

    fn number(&self, method: &'static str, number: u64) -> Result<i64, SessionError> {
        i64::try_from(number)
            .map_err(|_| SessionError::Unsendable { method, problem: format!("the offset {number}") })
    }
}

impl ClientIngest {
    /// How many bytes the client has.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes, in messages that the client accepts, and waits until it has them.
    ///
    /// Not cancellation safe: after a dropped call the ingest is good for nothing but a drop.
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), SessionError> {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(MESSAGE_LIMIT));
            let after = self.offset + data.len() as u64;
            let response = self.exchange(WriteAction::Write, data).await?;
            if u64::try_from(response.offset) != Ok(after) {
                let problem = format!("offset {} after a write up to {after}", response.offset);
                return Err(self.session.nonsense(WRITE, problem));
            }
            self.offset = after;
        }
        Ok(())
    }

    /// Makes the blob visible, after the client verified it.
    pub async fn commit(mut self) -> Result<Ingested, SessionError> {
        match self.exchange(WriteAction::Commit, Bytes::new()).await {
            Ok(_) => Ok(Ingested::Written),
            Err(error) if error.refusal() == Some(Code::AlreadyExists) => Ok(Ingested::AlreadyThere),
            Err(error) => Err(error),
        }
    }

    /// One request and its answer.
    async fn exchange(
        &mut self,
        action: WriteAction,
        data: Bytes,
    ) -> Result<WriteContentResponse, SessionError> {
        let request = WriteContentRequest {
            action: action as i32,
            r#ref: self.reference.clone(),
            // Both were checked when the write was opened.
            total: self.size as i64,
            offset: self.offset as i64,
            expected: self.digest.to_string(),
            data: data.into(),
            ..WriteContentRequest::default()
        };
        // If the tunnel dropped the requests, its answer says why.
        let _ = self.requests.send(request).await;
        match self.session.message(WRITE, &mut self.responses).await? {
            Some(response) => Ok(response),
            None => Err(self.session.nonsense(WRITE, "an end before the commit")),
        }
    }
}
