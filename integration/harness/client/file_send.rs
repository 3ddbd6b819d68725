//! Archives that the daemon sends to a client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use thunk::proto::filesync::BytesMessage;
use thunk::proto::filesync::file_send_server::FileSend;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::async_trait;

use super::callback::Callback;
use super::callback::Calls;

static CALLS: AtomicU64 = AtomicU64::new(1);
const EXPORTER: &str = "buildkit-attachable-exporter-id";
const METADATA_PREFIX: &str = "exporter-md-";

/// One file as it came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Empty if the client discards files.
    pub bytes: Vec<u8>,
    /// How many bytes came, kept or not.
    pub len: u64,
    /// The exporter's response keys that were told before the first byte.
    pub metadata: BTreeMap<String, String>,
    /// The daemon ended the file: what is there is all. A call that it gave up may look so, too.
    pub whole: bool,
    /// Which call brought it: one that was given up may still have bytes on the way when the next one
    /// has begun.
    call: u64,
}

impl Received {
    /// It ended, and with the end of an archive.
    pub fn is_archive(&self) -> bool {
        self.whole && self.bytes.ends_with(&[0; 1024])
    }
}

/// By the exporter's number, as text.
pub(super) type Files = Arc<Mutex<BTreeMap<String, Received>>>;

pub(super) struct FileSendService {
    pub calls: Arc<Calls>,
    pub files: Files,
    /// Counts bytes and keeps none: for archives that are too large to keep.
    pub discard: bool,
}

#[async_trait]
impl FileSend for FileSendService {
    type DiffCopyStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let text = |key: &str| Some(request.metadata().get(key)?.to_str().ok()?.to_owned());
        let exporter = text(EXPORTER).unwrap_or_else(|| "0".to_owned());
        let metadata = request.metadata().keys().filter_map(|key| match key {
            tonic::metadata::KeyRef::Ascii(key) => {
                Some((key.as_str().strip_prefix(METADATA_PREFIX)?.to_owned(), text(key.as_str())?))
            }
            tonic::metadata::KeyRef::Binary(_) => None,
        });
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let received = Received { metadata: metadata.collect(), call, ..Received::default() };
        self.files.lock().expect("files").insert(exporter.clone(), received);
        self.calls.enter(Callback::FileSend, &exporter).await?;
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            let mut files = self.files.lock().expect("files");
            let Some(received) = files.get_mut(&exporter).filter(|file| file.call == call) else { break };
            received.len += message.data.len() as u64;
            if !self.discard {
                received.bytes.extend_from_slice(&message.data);
            }
        }
        let mut files = self.files.lock().expect("files");
        if let Some(received) = files.get_mut(&exporter).filter(|file| file.call == call) {
            received.whole = true;
        }
        drop(files);
        Ok(Response::new(stream::empty().boxed()))
    }
}
