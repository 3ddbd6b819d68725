//! Reading parts of a blob: [`ContentStore::read_parts`](super::ContentStore::read_parts).
//!
//! Parts are for who knows what is in a blob and can verify a part of it. They are not kept, and nothing is known of
//! the blob afterwards that was not known before.
//!
//! # Invariants
//!
//! - Bytes that are here are read only for who may have the blob; see [`access`](super::access).
//! - Remote parts are read with the asker's rights, and all of them from one candidate.
//! - A blob that is being fetched, or that a candidate gives as a whole only, has no parts.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;

use super::ContentError;
use super::DescHandler;
use super::DescHandlers;
use super::FetchError;
use super::Inner;
use super::ProvideError;
use super::blob::Residency;
use super::candidate::Candidate;
use super::stats::add;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::Descriptor;
use crate::progress::TransferProgress;

/// Parts of one blob that are read at the same time.
const CONCURRENT: usize = 4;

impl Inner {
    pub(super) async fn read_parts(
        self: &Arc<Self>,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        parts: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>, FetchError> {
        let digest = descriptor.digest;
        let ascending = parts.iter().all(|part| part.start <= part.end);
        if !ascending || parts.iter().any(|part| part.end > descriptor.size) {
            return Ok(None);
        }
        let handlers = handlers.get(&digest);
        let lease = self.leases.hold(digest);
        let read = async {
            match self.look(descriptor).await.map_err(|e| FetchError::store(digest, e))? {
                Residency::Resident { size } if size == descriptor.size => {
                    self.entitle(ctx, descriptor, handlers, Vec::new()).await?;
                    self.read_here(lease, parts).await.map(Some)
                }
                Residency::Remote => self.read_there(ctx, descriptor, handlers, parts).await,
                Residency::Resident { .. } | Residency::Fetching(_) | Residency::Evicting { .. } => Ok(None),
            }
        };
        ctx.run(read).await.map_err(|_| FetchError::Cancelled { digest })?
    }

    async fn read_here(&self, lease: Lease, parts: &[Range<u64>]) -> Result<Vec<Bytes>, FetchError> {
        let digest = lease.digest();
        let (reader, parts) = (self.reader(digest, lease)?, parts.to_vec());
        let path = self.disk.blob(&digest);
        let read = self.tasks.spawn_blocking("read parts", move || {
            let read = |part: &Range<u64>| {
                let mut bytes = vec![0; usize::try_from(part.end - part.start).unwrap_or(usize::MAX)];
                reader.read_exact_at(&mut bytes, part.start).map(|()| Bytes::from(bytes))
            };
            parts.iter().map(read).collect::<Result<Vec<Bytes>, _>>()
        });
        let read = read.await.map_err(|e| FetchError::store(digest, e.into()))?;
        let read = read.map_err(ContentError::io("read", &path)).map_err(|e| FetchError::store(digest, e))?;
        add(&self.counters.cached_bytes, read.iter().map(|part| part.len() as u64).sum());
        Ok(read)
    }

    async fn read_there(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &[DescHandler],
        parts: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>, FetchError> {
        let digest = descriptor.digest;
        let row = self.row(&digest)?;
        let _reports = Reports::start(handlers, parts.iter().map(|part| part.end - part.start).sum());
        for candidate in self.candidates(ctx, handlers, row.as_ref()) {
            match self.read_from(&candidate, descriptor, parts).await {
                Ok(Some(read)) => return Ok(Some(read)),
                Ok(None) => {}
                Err(ProvideError::Cancelled) => return Err(FetchError::Cancelled { digest }),
                // Who needs the blob asks for all of it next, and is told what is wrong.
                Err(error) => tracing::debug!(%digest, %error, "parts of a blob can't be had"),
            }
        }
        Ok(None)
    }

    async fn read_from(
        &self,
        candidate: &Candidate,
        descriptor: &Descriptor,
        parts: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>, ProvideError> {
        let reads = parts.iter().map(|part| async move {
            add(&self.counters.opens, 1);
            let read = candidate.provider.read_range(&candidate.ctx, descriptor, part).await?;
            let read = read.filter(|bytes| bytes.len() as u64 == part.end - part.start);
            add(&self.counters.fetched_bytes, read.as_ref().map_or(0, |bytes| bytes.len() as u64));
            Ok(read)
        });
        let reads: Vec<_> = reads.collect();
        let mut reads = stream::iter(reads).buffered(CONCURRENT);
        let mut all = Vec::with_capacity(parts.len());
        while let Some(read) = reads.try_next().await? {
            let Some(read) = read else { return Ok(None) };
            all.push(read);
        }
        Ok(Some(all))
    }
}

/// The vertices that offered the blob are told while this lives that so many bytes of it come.
struct Reports {
    told: Vec<Arc<dyn TransferProgress>>,
    size: u64,
}

impl Reports {
    fn start(handlers: &[DescHandler], size: u64) -> Reports {
        let told: Vec<_> = handlers.iter().filter_map(|handler| handler.progress.clone()).collect();
        told.iter().for_each(|progress| progress.start(size));
        Reports { told, size }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        for progress in &self.told {
            progress.update(self.size);
            progress.complete();
        }
    }
}
