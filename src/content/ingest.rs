//! [`Ingest`]: writes and hashes the bytes of one transfer on a thread of its own.
//!
//! A partial blob's file is its own progress note: its length is how far it came. A transfer that goes
//! on first hashes what is there, at 1.7 GB/s, which is cheaper than to trust anything else. The file
//! isn't synced before it is whole; if a power cut left garbage in it, the digest says so and the
//! transfer starts again.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ContentError;
use super::disk::Disk;
use super::disk::hash;
use super::follow::Written;
use super::given::Given;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::oci::Digest;
use crate::task::Task;
use crate::task::Tasks;

/// Chunks between the network and the disk. A chunk may be all that a connection had buffered, which is up to
/// some 400 KiB; a dozen transfers at once are to fit into memory all the same.
const IN_FLIGHT: usize = 4;

/// A transfer into a partial blob.
#[derive(Debug)]
pub(super) struct Ingest {
    chunks: mpsc::Sender<Bytes>,
    writer: Task<Result<Ingested, ContentError>>,
}

/// What a partial blob has become.
#[derive(Debug)]
pub(super) struct Ingested {
    pub file: File,
    pub size: u64,
    pub digest: Digest,
}

/// The writer has failed; [`Ingest::finish`] says why.
#[derive(Debug)]
pub(super) struct WriterFailed;

impl Ingest {
    /// Goes on at the end of the partial blob, or starts one, with bytes after which it is `given`.
    pub(super) fn start(
        tasks: &Tasks,
        disk: &Arc<Disk>,
        digest: Digest,
        given: Given,
        written: &Arc<Written>,
    ) -> Ingest {
        let (chunks, receiver) = mpsc::channel(IN_FLIGHT);
        let (disk, written) = (Arc::clone(disk), Arc::clone(written));
        let writer =
            tasks.spawn_blocking("ingest", move || write(&disk, &digest, &given, receiver, &written));
        Ingest { chunks, writer }
    }

    /// Appends bytes; waits while the disk is behind.
    ///
    /// Not cancellation safe: the bytes may or may not have been taken.
    pub(super) async fn append(&self, bytes: Bytes) -> Result<(), WriterFailed> {
        self.chunks.send(bytes).await.map_err(|_| WriterFailed)
    }

    /// Waits until everything is written. The partial blob stays.
    pub(super) async fn finish(self) -> Result<Ingested, ContentError> {
        drop(self.chunks);
        self.writer.await?
    }
}

fn write(
    disk: &Disk,
    digest: &Digest,
    given: &Given,
    mut chunks: mpsc::Receiver<Bytes>,
    written: &Written,
) -> Result<Ingested, ContentError> {
    let path = disk.partial(digest);
    let mut file = disk.open_partial(digest)?;
    disk.note(&file, digest, given)?;
    let mut hasher = digest.hasher();
    let mut size = hash(&mut file, &mut hasher).map_err(ContentError::io("read", &path))?;
    written.advance(size);
    while let Some(chunk) = chunks.blocking_recv() {
        disk.append(&file, size, &chunk).map_err(ContentError::io("write", &path))?;
        hasher.update(&chunk);
        size += chunk.len() as u64;
        written.advance(size);
        failpoint::hit(Failpoint::IngestWritten)?;
    }
    Ok(Ingested { file, size, digest: hasher.finish() })
}
