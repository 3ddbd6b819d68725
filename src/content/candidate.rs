//! [`Candidate`]: a provider with the rights to use it.

use std::sync::Arc;

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
    /// The asker itself brought the place, so that it may be told of it.
    pub own: bool,
    /// The asker is the node itself, which needs no right to what is here.
    pub by_node: bool,
}

impl Candidate {
    /// True if `other` would get the same answer: the same place asked with the same rights.
    pub(super) fn asks_the_same(&self, other: &Candidate) -> bool {
        self.origin.is_some()
            && self.origin == other.origin
            && self.ctx.sessions().ids() == other.ctx.sessions().ids()
    }

    pub(super) fn refusal(&self, error: ProvideError) -> Refusal {
        Refusal { origin: self.origin.clone(), own: self.own, error }
    }

    /// The place as the asker may be told it.
    pub(super) fn told(&self) -> Option<Origin> {
        self.origin.clone().filter(|_| self.own)
    }
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
        let by_node = handlers.is_empty();
        for handler in handlers {
            let provider = Arc::clone(&handler.provider);
            let (origin, own) = (provider.origin(), !handler.by_others);
            all.push(Candidate { ctx: ctx.clone(), origin, own, provider, by_node });
        }
        let known = row.map_or(&[][..], |row| &row.origins);
        let (proven, said): (Vec<_>, Vec<_>) = known.iter().rev().partition(|k| k.proven);
        for known in proven.into_iter().chain(said) {
            if all.iter().any(|c| c.origin.as_ref() == Some(&known.origin)) {
                continue;
            }
            if let Some(provider) = self.connect.provider(&known.origin) {
                let origin = Some(known.origin.clone());
                all.push(Candidate { ctx: ctx.clone(), provider, origin, own: false, by_node });
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
}
