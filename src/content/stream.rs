//! Passing a remote blob through, from its origin to one reader, without touching the disk.
//!
//! The bytes are hashed as they pass. The last chunk is kept back until the digest held, so that a
//! reader that counts bytes (an upload of known length) can't complete with a wrong blob. A transfer
//! that breaks off goes on at the same byte with the next candidate.
//!
//! # Invariants
//!
//! - A pass-through is not a fetch. It is this reader's alone, with this reader's rights, and ends with
//!   it; residency doesn't change.
//! - Of one blob at most one passes through at a time. A second reader makes the blob resident, or
//!   joins the fetch that does, and reads the file: two downloads at most, whatever number of readers.

use std::sync::Arc;
use std::sync::PoisonError;

use bytes::Bytes;
use futures::StreamExt as _;

use super::BlobStream;
use super::Body;
use super::DescHandler;
use super::DescHandlers;
use super::FetchError;
use super::Inner;
use super::ProvideError;
use super::Refusal;
use super::StreamSource;
use super::blob::Residency;
use super::candidate::Candidate;
use super::fetch::Until;
use super::given::Given;
use super::stats::add;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::DigestHasher;
use crate::progress::TransferProgress;

impl Inner {
    pub(super) async fn stream(
        self: &Arc<Self>,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
    ) -> Result<BlobStream, FetchError> {
        let digest = descriptor.digest;
        let lease = self.leases.hold(digest);
        let state = self.look(descriptor).await.map_err(|e| FetchError::store(digest, e))?;
        let passing = match state {
            Residency::Remote => Passing::begin(self, digest),
            _ => None,
        };
        let Some(passing) = passing else {
            let lease = self.fetch(ctx, descriptor, handlers, Until::Resident, &mut drop).await?;
            let reader = self.reader(digest, lease)?;
            return Ok(BlobStream::new(reader.size(), StreamSource::File, reader.stream(0..u64::MAX)));
        };
        let handlers = handlers.get(&digest);
        let row = self.row(&digest)?;
        let candidates = self.candidates(ctx, handlers, row.as_ref());
        let mut passage = Passage {
            inner: Arc::clone(self),
            ctx: ctx.clone(),
            hasher: digest.hasher(),
            descriptor: descriptor.clone(),
            candidates: candidates.into_iter(),
            refusals: Vec::new(),
            at: 0,
            given: Given::Nothing,
            reports: Reports::start(handlers, descriptor.size),
            _passing: passing,
            _lease: lease,
        };
        // Opened before the answer, so that a refusal is an error here and not within the stream.
        let first = match descriptor.size {
            0 => None,
            _ => Some(passage.open().await?),
        };
        let size = descriptor.size;
        Ok(BlobStream::new(size, StreamSource::PassThrough, Box::pin(passage.stream(first))))
    }
}

/// A blob on its way through.
struct Passage {
    inner: Arc<Inner>,
    ctx: Ctx,
    descriptor: Descriptor,
    hasher: DigestHasher,
    /// Those that were not tried yet.
    candidates: std::vec::IntoIter<Candidate>,
    refusals: Vec<Refusal>,
    /// Bytes that passed.
    at: u64,
    /// Who gave them.
    given: Given,
    reports: Reports,
    _passing: Passing,
    _lease: Lease,
}

/// The blob's one pass-through.
struct Passing {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Passing {
    /// `None` if the blob is passing through already.
    fn begin(inner: &Arc<Inner>, digest: Digest) -> Option<Passing> {
        let first = inner.passing.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        first.then(|| Passing { inner: Arc::clone(inner), digest })
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.inner.passing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

/// A candidate that gives its bytes.
struct Source {
    candidate: Candidate,
    body: std::pin::Pin<Box<dyn Body>>,
    /// Bytes to drop, since the candidate could not start where it was asked to.
    skip: u64,
}

impl Passage {
    /// Opens the next candidate that doesn't refuse, at the byte that is wanted next.
    async fn open(&mut self) -> Result<Source, FetchError> {
        while let Some(candidate) = self.candidates.next() {
            let open = self.inner.open_candidate(&candidate, &self.ctx, &self.descriptor, self.at);
            match self.ctx.run(open).await {
                Err(Cancelled) => return Err(self.cancelled()),
                Ok(Ok(opened)) => {
                    let skip = self.at - opened.offset;
                    let before = if self.at == 0 { &Given::Nothing } else { &self.given };
                    self.given = before.and(candidate.origin.as_ref());
                    return Ok(Source { candidate, body: opened.body, skip });
                }
                Ok(Err(error)) => self.refusals.push(candidate.refusal(error)),
            }
        }
        Err(FetchError::refused(self.descriptor.digest, std::mem::take(&mut self.refusals)))
    }

    fn stream(
        mut self,
        first: Option<Source>,
    ) -> impl futures::Stream<Item = Result<Bytes, FetchError>> + Send {
        async_stream::try_stream! {
            let mut source = first;
            let mut kept: Option<Bytes> = None;
            while self.at < self.descriptor.size {
                let from = match source.as_mut() {
                    Some(from) => from,
                    None => source.insert(self.open().await?),
                };
                match self.next(from).await? {
                    Ok(chunk) => {
                        if let Some(previous) = kept.replace(chunk) {
                            yield previous;
                        }
                    }
                    Err(error) => {
                        self.refusals.push(from.candidate.refusal(error));
                        source = None;
                    }
                }
            }
            self.settle(source).await?;
            if let Some(last) = kept {
                yield last;
            }
        }
    }

    /// The next bytes that the reader lacks. The inner error is the candidate's.
    async fn next(&mut self, from: &mut Source) -> Result<Result<Bytes, ProvideError>, FetchError> {
        loop {
            let chunk = match self.ctx.run(from.body.next()).await {
                Err(Cancelled) => return Err(self.cancelled()),
                Ok(None) => {
                    let (at, size) = (self.at, self.descriptor.size);
                    return Ok(Err(ProvideError::unreachable(format!(
                        "the bytes ended after {at} of {size}"
                    ))));
                }
                Ok(Some(Err(error))) => return Ok(Err(error)),
                Ok(Some(Ok(chunk))) => chunk,
            };
            let length = chunk.len() as u64;
            add(&self.inner.counters.fetched_bytes, length);
            let skipped = from.skip.min(length);
            from.skip -= skipped;
            let chunk = chunk.slice(skipped as usize..);
            if chunk.is_empty() {
                continue;
            }
            let size = self.descriptor.size;
            if chunk.len() as u64 > size - self.at {
                return Ok(Err(ProvideError::corrupt(format!("more than its {size} bytes came"))));
            }
            self.at += chunk.len() as u64;
            self.hasher.update(&chunk);
            self.reports.update(self.at);
            return Ok(Ok(chunk));
        }
    }

    /// Verifies what passed.
    async fn settle(&mut self, source: Option<Source>) -> Result<(), FetchError> {
        let digest = self.descriptor.digest;
        let got = self.hasher.clone().finish();
        let origin = source.as_ref().and_then(|s| s.candidate.told());
        if got != digest {
            if let Some(source) = &source {
                source.body.condemn();
            }
            let cause = format!("the bytes have digest {got}").into();
            let cause: Box<dyn std::error::Error + Send + Sync> = cause;
            return Err(FetchError::Corrupt { digest, origin, cause: cause.into() });
        }
        add(&self.inner.counters.streamed_bytes, self.descriptor.size);
        if let Some(origin) = self.given.origin() {
            self.inner.prove(&self.descriptor, Some(origin)).await;
        }
        if let Some(source) = &source {
            self.inner.had(&source.candidate, &self.descriptor);
        }
        Ok(())
    }

    fn cancelled(&self) -> FetchError {
        FetchError::Cancelled { digest: self.descriptor.digest }
    }
}

/// Reports to the vertices that offered the blob, and that it is over when it is dropped.
struct Reports(Vec<Arc<dyn TransferProgress>>);

impl Reports {
    fn start(handlers: &[DescHandler], size: u64) -> Reports {
        let all: Vec<_> = handlers.iter().filter_map(|h| h.progress.clone()).collect();
        all.iter().for_each(|progress| progress.start(size));
        Reports(all)
    }

    fn update(&self, current: u64) {
        self.0.iter().for_each(|progress| progress.update(current));
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.0.iter().for_each(|progress| progress.complete());
    }
}
