//! `containerd.services.content.v1.Content` over the blobs of the build history.

use futures::StreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;

use crate::content::BlobReader;
use crate::control::history::History;
use crate::control::history::HistoryError;
use crate::oci::Digest;
use crate::proto::content as wire;
use crate::proto::content::content_server::Content;

/// Bytes of one message of a read.
const CHUNK: usize = 1 << 20;

/// Gives clients the blobs that records of the history name.
#[derive(Clone, Debug)]
pub struct HistoryContent {
    history: History,
}

impl HistoryContent {
    pub fn new(history: History) -> HistoryContent {
        HistoryContent { history }
    }

    async fn open(&self, digest: &str) -> Result<BlobReader, Status> {
        let parsed: Digest = digest.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        match self.history.blob(parsed).await? {
            Some(blob) => Ok(blob),
            None => Err(Status::not_found(format!("content {digest}: not found"))),
        }
    }
}

fn read_only<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this content store is read-only, and lists nothing"))
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Content for HistoryContent {
    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        let size = i64::try_from(self.open(&digest).await?.size()).unwrap_or(i64::MAX);
        let info = wire::Info { digest, size, ..wire::Info::default() };
        Ok(Response::new(wire::InfoResponse { info: Some(info) }))
    }

    type ReadStream = Answers<wire::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let blob = self.open(&request.digest).await?;
        let out_of_range =
            || Status::out_of_range(format!("offset {} of {} bytes", request.offset, blob.size()));
        let start = u64::try_from(request.offset).ok().filter(|&start| start <= blob.size());
        let start = start.ok_or_else(out_of_range)?;
        let wanted = u64::try_from(request.size).map_err(|_| out_of_range())?;
        let end = if wanted == 0 { blob.size() } else { blob.size().min(start.saturating_add(wanted)) };
        // What the history keeps of a build is small.
        let bytes = blob.read_all().await.map_err(HistoryError::from)?;
        let range = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let mut left = bytes.slice(range(start)..range(end));
        let mut offset = request.offset;
        let chunks = std::iter::from_fn(move || {
            let chunk = left.split_to(left.len().min(CHUNK));
            (!chunk.is_empty()).then(|| {
                let message = wire::ReadContentResponse { offset, data: chunk.to_vec() };
                offset += i64::try_from(chunk.len()).unwrap_or_default();
                Ok(message)
            })
        });
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        read_only()
    }

    type ListStream = Answers<wire::ListContentResponse>;

    async fn list(&self, _: Request<wire::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        read_only()
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        read_only()
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        read_only()
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        read_only()
    }

    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn write(
        &self,
        _: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        read_only()
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        read_only()
    }
}
