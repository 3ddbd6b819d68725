//! [`Candidate`]: a provider with the rights to use it; and who may have what is here already.

use std::sync::Arc;

use futures::StreamExt as _;

use super::ContentError;
use super::DescHandler;
use super::FetchError;
use super::Inner;
use super::Opened;
use super::Origin;
use super::ProvideError;
use super::Provider;
use super::Refusal;
use super::rows;
use super::rows::BlobRow;
use super::stats::add;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;

/// One asker's way to a blob.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub ctx: Ctx,
    pub provider: Arc<dyn Provider>,
    pub origin: Option<Origin>,
}

impl Candidate {
    /// True if `other` would get the same answer: the same place asked with the same rights.
    pub(super) fn asks_the_same(&self, other: &Candidate) -> bool {
        self.origin.is_some()
            && self.origin == other.origin
            && self.ctx.sessions().ids() == other.ctx.sessions().ids()
    }

    pub(super) fn refusal(&self, error: ProvideError) -> Refusal {
        Refusal { origin: self.origin.clone(), error }
    }
}

/// True if it is enough that the origin says yes. A registry that was never seen to have the blob may
/// say so to get it, for whoever asks here in its name.
fn is_believed(row: Option<&BlobRow>, origin: Option<&Origin>) -> bool {
    let Some(Origin::Registry { host, .. }) = origin else { return true };
    let known = row.map_or(&[][..], |row| &row.origins);
    known.iter().any(|k| k.proven && matches!(&k.origin, Origin::Registry { host: seen, .. } if seen == host))
}

impl Inner {
    pub(super) fn row(&self, digest: &Digest) -> Result<Option<BlobRow>, FetchError> {
        self.db
            .read(|tx| rows::get(tx, digest))
            .map_err(|e| FetchError::store(*digest, ContentError::from(e)))
    }

    /// The ways that an asker has to a blob, best first: its own handlers, then the origins that are
    /// known, those that were seen to have the blob before those that are said to.
    pub(super) fn candidates(
        &self,
        ctx: &Ctx,
        handlers: &[DescHandler],
        row: Option<&BlobRow>,
    ) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = Vec::new();
        for handler in handlers {
            let provider = Arc::clone(&handler.provider);
            all.push(Candidate { ctx: ctx.clone(), origin: provider.origin(), provider });
        }
        let known = row.map_or(&[][..], |row| &row.origins);
        let (proven, said): (Vec<_>, Vec<_>) = known.iter().rev().partition(|k| k.proven);
        for known in proven.into_iter().chain(said) {
            if all.iter().any(|c| c.origin.as_ref() == Some(&known.origin)) {
                continue;
            }
            if let Some(provider) = self.connect.provider(&known.origin) {
                all.push(Candidate { ctx: ctx.clone(), provider, origin: Some(known.origin.clone()) });
            }
        }
        all
    }

    pub(super) async fn open_candidate(
        &self,
        candidate: &Candidate,
        ctx: &Ctx,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Opened, ProvideError> {
        add(&self.counters.opens, 1);
        let opened = candidate.provider.open(ctx, descriptor, offset).await?;
        if opened.offset > offset {
            let (asked, got) = (offset, opened.offset);
            return Err(ProvideError::corrupt(format!("asked for bytes from {asked}, got them from {got}")));
        }
        Ok(opened)
    }

    /// Lets an asker have bytes that are here, or says why not. `refused` are candidates of this asker
    /// that said no a moment ago.
    pub(super) async fn entitle(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &[DescHandler],
        mut refused: Vec<Refusal>,
    ) -> Result<(), FetchError> {
        if handlers.is_empty() {
            return Ok(());
        }
        let digest = descriptor.digest;
        let row = self.row(&digest)?;
        let said_no = |origin: &Option<Origin>, refused: &[Refusal]| {
            origin.is_some() && refused.iter().any(|r| r.origin == *origin)
        };
        let vouched = |origin: &Origin| {
            origin.vouches()
                && !said_no(&Some(origin.clone()), &refused)
                && handlers
                    .iter()
                    .any(|h| h.provider.vouches_for(ctx) && h.provider.origin().as_ref() == Some(origin))
        };
        if let Some(row) = &row
            && (row.local || row.origins.iter().any(|k| k.proven && vouched(&k.origin)))
        {
            return Ok(());
        }
        let believed = |candidate: &Candidate| is_believed(row.as_ref(), candidate.origin.as_ref());
        let mut candidates = self.candidates(ctx, handlers, row.as_ref());
        // A word costs less than the bytes.
        candidates.sort_by_key(|candidate| !believed(candidate));
        for candidate in candidates {
            if said_no(&candidate.origin, &refused) {
                continue;
            }
            let answer = if believed(&candidate) {
                add(&self.counters.probes, 1);
                candidate.provider.probe(ctx, descriptor).await
            } else {
                self.challenge(&candidate, ctx, descriptor).await
            };
            match answer {
                Ok(()) => {
                    self.prove(descriptor, candidate.origin.as_ref()).await;
                    return Ok(());
                }
                Err(error) => refused.push(candidate.refusal(error)),
            }
        }
        Err(FetchError::refused(digest, refused))
    }

    /// Has a candidate show all the bytes, and keeps none of them.
    async fn challenge(
        &self,
        candidate: &Candidate,
        ctx: &Ctx,
        descriptor: &Descriptor,
    ) -> Result<(), ProvideError> {
        let Descriptor { digest, size, .. } = *descriptor;
        let opened = self.open_candidate(candidate, ctx, descriptor, 0).await?;
        let (mut body, mut hasher, mut got) = (opened.body, digest.hasher(), 0);
        while let Some(chunk) = ctx.run(body.next()).await.map_err(|_| ProvideError::Cancelled)? {
            let chunk = chunk?;
            got += chunk.len() as u64;
            if got > size {
                return Err(ProvideError::corrupt(format!("more than its {size} bytes came")));
            }
            hasher.update(&chunk);
        }
        if hasher.finish() == digest {
            return Ok(());
        }
        body.condemn();
        Err(ProvideError::corrupt("the bytes do not have its digest"))
    }

    /// Notes that the blob was read from or seen at `origin`. Readers of the row see it when this
    /// returns; it is durable soon.
    pub(super) async fn prove(&self, descriptor: &Descriptor, origin: Option<&Origin>) {
        let (descriptor, origin) = (descriptor.clone(), origin.cloned());
        let noted = self.db.write_visible(move |tx| rows::arrived(tx, &descriptor, origin.as_ref()));
        if let Err(error) = noted.await {
            // The bytes are what counts: the next asker pays with a probe.
            tracing::warn!(%error, "an origin was not noted");
        }
    }
}
