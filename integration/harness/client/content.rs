//! Content stores of a client: OCI layouts to read from, and the `export` store to write to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use thunk::proto::content::AbortRequest;
use thunk::proto::content::DeleteContentRequest;
use thunk::proto::content::Info;
use thunk::proto::content::InfoRequest;
use thunk::proto::content::InfoResponse;
use thunk::proto::content::ListContentRequest;
use thunk::proto::content::ListContentResponse;
use thunk::proto::content::ListStatusesRequest;
use thunk::proto::content::ListStatusesResponse;
use thunk::proto::content::ReadContentRequest;
use thunk::proto::content::ReadContentResponse;
use thunk::proto::content::StatusRequest;
use thunk::proto::content::StatusResponse;
use thunk::proto::content::UpdateRequest;
use thunk::proto::content::UpdateResponse;
use thunk::proto::content::WriteAction;
use thunk::proto::content::WriteContentRequest;
use thunk::proto::content::WriteContentResponse;
use thunk::proto::content::content_server::Content;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::async_trait;
use tonic::metadata::MetadataMap;

use super::callback::Callback;
use super::callback::Calls;
use crate::harness::blob::BlobSource;
use crate::harness::digest::sha256;
use crate::harness::image::Image;

const STORE_ID: &str = "buildkit-attachable-store-id";

/// Blobs by digest. Cheap to clone; clones share the blobs.
#[derive(Clone, Default)]
pub struct ContentStore {
    blobs: Arc<Mutex<BTreeMap<String, BlobSource>>>,
}

impl ContentStore {
    /// A store with the blobs and manifests of an image.
    pub fn of(image: &Image) -> Self {
        let store = Self::default();
        for (digest, source) in image.blobs() {
            store.put(&digest, source);
        }
        for (descriptor, manifest) in image.manifests() {
            store.put(&descriptor.digest, BlobSource::Bytes(manifest.clone()));
        }
        store
    }

    pub fn put(&self, digest: &str, source: BlobSource) {
        self.blobs.lock().expect("blobs").insert(digest.to_owned(), source);
    }

    pub fn get(&self, digest: &str) -> Option<BlobSource> {
        self.blobs.lock().expect("blobs").get(digest).cloned()
    }

    pub fn remove(&self, digest: &str) {
        self.blobs.lock().expect("blobs").remove(digest);
    }

    pub fn digests(&self) -> Vec<String> {
        self.blobs.lock().expect("blobs").keys().cloned().collect()
    }
}

pub(super) struct ContentService {
    pub calls: Arc<Calls>,
    /// By the store's id, such as `oci:<name>` or `export`.
    pub stores: BTreeMap<String, ContentStore>,
}

impl ContentService {
    fn store(&self, metadata: &MetadataMap) -> Result<ContentStore, Status> {
        let id = metadata.get(STORE_ID).and_then(|id| id.to_str().ok());
        let store = id.and_then(|id| self.stores.get(id));
        store.cloned().ok_or_else(|| Status::not_found(format!("no content store {id:?}")))
    }
}

fn unknown(digest: &str) -> Status {
    Status::not_found(format!("no blob {digest}"))
}

#[async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.store(request.metadata())?;
        let digest = request.into_inner().digest;
        self.calls.enter(Callback::ContentInfo, &digest).await?;
        let source = store.get(&digest).ok_or_else(|| unknown(&digest))?;
        let info = Info { digest, size: source.len() as i64, ..Info::default() };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    type ReadStream = BoxStream<'static, Result<ReadContentResponse, Status>>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(request.metadata())?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        self.calls.enter(Callback::ContentRead, &digest).await?;
        let source = store.get(&digest).ok_or_else(|| unknown(&digest))?;
        let (offset, size) = (offset as u64, size as u64);
        if offset > source.len() {
            return Err(Status::out_of_range(format!("{digest} has {} bytes", source.len())));
        }
        let end = if size == 0 { source.len() } else { offset + size };
        let mut at = offset;
        let messages = source.read(offset, end).map(move |data| {
            let message = ReadContentResponse { offset: at as i64, data: data.to_vec() };
            at += message.data.len() as u64;
            Ok(message)
        });
        Ok(Response::new(stream::iter(messages).boxed()))
    }

    type WriteStream = BoxStream<'static, Result<WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(request.metadata())?;
        self.calls.enter(Callback::ContentWrite, "").await?;
        let mut messages = request.into_inner();
        let answers = async_stream::try_stream! {
            let mut written = Vec::new();
            while let Some(message) = messages.message().await? {
                let answer = write_one(&store, &mut written, message)?;
                yield answer;
            }
        };
        Ok(Response::new(answers.boxed()))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(Status::unimplemented("labels are not kept"))
    }

    type ListStream = BoxStream<'static, Result<ListContentResponse, Status>>;

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("clients don't list"))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::permission_denied("clients keep what they have"))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::not_found(format!("no ingest {}", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// One request of a write: its answer, or why the stream ends.
fn write_one(
    store: &ContentStore,
    written: &mut Vec<u8>,
    message: WriteContentRequest,
) -> Result<WriteContentResponse, Status> {
    let action = message.action();
    if !message.expected.is_empty() && store.get(&message.expected).is_some() {
        return Err(Status::already_exists(message.expected));
    }
    if action != WriteAction::Stat && !message.data.is_empty() {
        if message.offset as usize != written.len() {
            return Err(Status::out_of_range("a gap, or bytes twice"));
        }
        written.extend_from_slice(&message.data);
    }
    let mut answer = WriteContentResponse {
        action: action.into(),
        offset: written.len() as i64,
        total: message.total,
        ..WriteContentResponse::default()
    };
    if action == WriteAction::Commit {
        let bytes = Bytes::from(std::mem::take(written));
        answer.digest = sha256(&bytes);
        if !message.expected.is_empty() && message.expected != answer.digest {
            return Err(Status::failed_precondition(format!("{} is {}", message.expected, answer.digest)));
        }
        if message.total > 0 && message.total != bytes.len() as i64 {
            return Err(Status::failed_precondition(format!(
                "{} bytes, {} told",
                bytes.len(),
                message.total
            )));
        }
        store.put(&answer.digest, BlobSource::Bytes(bytes));
    }
    Ok(answer)
}
