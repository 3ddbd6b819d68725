//! Reading what is here: [`BlobReader`], and the [`BlobStream`] that hides whether it is.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use bytes::BytesMut;
use futures::Stream;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::ContentError;
use super::FetchError;
use super::Inner;
use super::disk::READ_BYTES;
use crate::lease::Lease;
use crate::oci::Digest;
use crate::task::Tasks;

/// Chunks of a file that are read ahead of their consumer.
const READ_AHEAD: usize = 2;

/// A resident blob, open and held.
#[derive(Clone, Debug)]
pub struct BlobReader {
    file: Arc<File>,
    size: u64,
    lease: Lease,
    tasks: Tasks,
}

impl Inner {
    pub(super) fn reader(&self, digest: Digest, lease: Lease) -> Result<BlobReader, FetchError> {
        let file = self.disk.open_blob(&digest).map_err(|e| FetchError::store(digest, e))?;
        let size = file.metadata().map_err(ContentError::io("look at", &self.disk.blob(&digest)));
        let size = size.map_err(|e| FetchError::store(digest, e))?.len();
        Ok(BlobReader { file: Arc::new(file), size, lease, tasks: self.tasks.clone() })
    }
}

impl BlobReader {
    pub fn digest(&self) -> Digest {
        self.lease.digest()
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The open file, for work on a blocking thread. Its offset is shared by all clones: read at
    /// positions.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buffer` from `offset`. Blocks.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// The whole blob in memory. For blobs whose size was checked.
    pub async fn read_all(&self) -> Result<Bytes, FetchError> {
        let (reader, digest) = (self.clone(), self.digest());
        let read = self.tasks.spawn_blocking("read blob", move || {
            let mut bytes = vec![0; usize::try_from(reader.size).unwrap_or(usize::MAX)];
            reader.read_exact_at(&mut bytes, 0).map(|()| Bytes::from(bytes))
        });
        let read = read.await.map_err(|e| FetchError::store(digest, e.into()))?;
        read.map_err(|e| self.failed(e))
    }

    /// The bytes of `range`, cut to the blob's size, in large chunks.
    pub fn stream(&self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, FetchError>> {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let reader = self.clone();
        drop(self.tasks.spawn_blocking("read blob", move || {
            let (mut at, end) = (range.start, range.end.min(reader.size));
            while at < end {
                let wanted = (end - at).min(READ_BYTES as u64);
                let mut chunk = BytesMut::zeroed(wanted as usize);
                let read = match reader.read_exact_at(&mut chunk, at) {
                    Ok(()) => Ok(chunk.freeze()),
                    Err(e) => Err(reader.failed(e)),
                };
                at += wanted;
                let failed = read.is_err();
                // A consumer that has left ends the reading.
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        }));
        Box::pin(ReceiverStream::new(receiver))
    }

    fn failed(&self, error: io::Error) -> FetchError {
        let digest = self.digest();
        let path = std::path::PathBuf::from(digest.to_string());
        FetchError::store(digest, ContentError::Io { action: "read", path, source: Arc::new(error) })
    }
}

/// A blob's bytes from its first to its last, wherever they come from.
pub struct BlobStream {
    size: u64,
    source: StreamSource,
    stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// Where a stream's bytes come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamSource {
    /// A file of the store.
    File,
    /// An origin; nothing is kept.
    PassThrough,
}

impl BlobStream {
    pub(super) fn new(
        size: u64,
        source: StreamSource,
        stream: BoxStream<'static, Result<Bytes, FetchError>>,
    ) -> BlobStream {
        BlobStream { size, source, stream }
    }

    /// Bytes that the stream has in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn source(&self) -> StreamSource {
        self.source
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, FetchError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobStream({} bytes, {:?})", self.size, self.source)
    }
}
