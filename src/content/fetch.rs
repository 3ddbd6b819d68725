//! Making a blob resident: the asker's side.
//!
//! An asker looks the blob up and, if it is remote, begins a [`flight::Fetch`] or boards the one that
//! runs, with its own candidates. What it gets is its own as well: the bytes if they came through a
//! candidate of its own or it may have them otherwise, else the answers of its own candidates.

pub(super) mod flight;
mod transfer;

use std::sync::Arc;

use super::ContentError;
use super::DescHandler;
use super::DescHandlers;
use super::FetchError;
use super::Inner;
use super::blob::Residency;
use super::follow::Follower;
use super::stats::add;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::Descriptor;
use crate::oci::Digest;

use flight::Fetch;
use flight::Outcome;
use flight::Waiter;

/// Is given the way to read along, each time that a fetch is begun or joined.
pub(super) type OnFetch<'a> = &'a mut (dyn FnMut(Follower) + Send);

/// What an asker waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Until {
    /// The digest held, or the blob is resident: enough for one who reads along.
    Verified,
    /// The file is there for good.
    Resident,
}

/// An asker, and what it wants.
#[derive(Clone, Copy)]
struct Asker<'a> {
    ctx: &'a Ctx,
    descriptor: &'a Descriptor,
    handlers: &'a [DescHandler],
    until: Until,
}

impl Inner {
    pub(super) async fn fetch(
        self: &Arc<Self>,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        until: Until,
        follow: OnFetch<'_>,
    ) -> Result<Lease, FetchError> {
        let digest = descriptor.digest;
        // First held, then looked up: see the invariants of the table.
        let lease = self.leases.hold(digest);
        let asker = Asker { ctx, descriptor, handlers: handlers.get(&digest), until };
        match ctx.run(self.bring(asker, follow)).await {
            Ok(brought) => brought.map(|()| lease),
            Err(Cancelled) => Err(FetchError::Cancelled { digest }),
        }
    }

    /// Returns once the blob is what is asked for and the asker may have it. The caller holds it.
    async fn bring(self: &Arc<Self>, asker: Asker<'_>, follow: OnFetch<'_>) -> Result<(), FetchError> {
        let Asker { ctx, descriptor, handlers, .. } = asker;
        let digest = descriptor.digest;
        loop {
            let state = self.look(descriptor).await.map_err(|e| FetchError::store(digest, e))?;
            match state {
                Residency::Resident { size } => {
                    right_size(descriptor, size)?;
                    self.entitle(ctx, descriptor, handlers, Vec::new()).await?;
                    add(&self.counters.cached_bytes, size);
                    return Ok(());
                }
                Residency::Evicting { ended, .. } => ended.cancelled().await,
                Residency::Fetching(_) if let Some(size) = self.made_here(&digest)? => {
                    right_size(descriptor, size)?;
                    add(&self.counters.cached_bytes, size);
                    return Ok(());
                }
                Residency::Fetching(fetch) => {
                    // A fetch for another size is for a wrong descriptor, theirs or ours: its end tells.
                    let same = fetch.descriptor().size == descriptor.size;
                    match same.then(|| self.board(&fetch, ctx, handlers)).transpose()?.flatten() {
                        Some(waiter) => {
                            add(&self.counters.joined, 1);
                            follow(self.follower(&fetch));
                            return self.land(waiter, asker, false).await;
                        }
                        None => drop(fetch.landed().await),
                    }
                }
                Residency::Remote => {
                    let fetch = Arc::new(Fetch::new(descriptor.clone(), &self.tasks));
                    let waiter = self.board(&fetch, ctx, handlers)?;
                    let waiter = waiter.expect("nobody else knows this fetch, so it can't have ended");
                    // Whoever was faster is met in the next round.
                    if self.table.begin(&digest, Arc::clone(&fetch)).is_ok() {
                        add(&self.counters.fetches, 1);
                        follow(self.follower(&fetch));
                        drop(self.tasks.spawn("fetch", transfer::run(Arc::clone(self), fetch)));
                        return self.land(waiter, asker, true).await;
                    }
                }
            }
        }
    }

    fn follower(&self, fetch: &Fetch) -> Follower {
        let Descriptor { digest, size, .. } = *fetch.descriptor();
        let (partial, whole) = (self.disk.partial(&digest), self.disk.blob(&digest));
        Follower::new(Arc::clone(fetch.written()), partial, whole, size)
    }

    fn board(
        &self,
        fetch: &Arc<Fetch>,
        ctx: &Ctx,
        handlers: &[DescHandler],
    ) -> Result<Option<Waiter>, FetchError> {
        let row = self.row(&fetch.descriptor().digest)?;
        let candidates = self.candidates(ctx, handlers, row.as_ref());
        let progress = handlers.iter().filter_map(|h| h.progress.clone()).collect();
        Ok(fetch.board(candidates, progress))
    }

    /// The size of a blob that was made here while it was being fetched. Its file is whole and everybody's,
    /// whatever comes of the fetch.
    fn made_here(&self, digest: &Digest) -> Result<Option<u64>, FetchError> {
        let Some(size) = self.disk.size_of(digest) else { return Ok(None) };
        Ok(self.row(digest)?.filter(|row| row.local).map(|_| size))
    }

    /// What a fetch comes to for one who waits for it.
    async fn land(self: &Arc<Self>, waiter: Waiter, asker: Asker<'_>, began: bool) -> Result<(), FetchError> {
        match self.await_landing(waiter, asker, began).await {
            Err(error) => match self.made_here(&asker.descriptor.digest)? {
                Some(size) => right_size(asker.descriptor, size),
                None => Err(error),
            },
            landed => landed,
        }
    }

    async fn await_landing(
        self: &Arc<Self>,
        waiter: Waiter,
        Asker { ctx, descriptor, handlers, until }: Asker<'_>,
        began: bool,
    ) -> Result<(), FetchError> {
        let Descriptor { digest, size, .. } = *descriptor;
        let outcome = match until {
            Until::Verified => waiter.fetch().verified().await,
            Until::Resident => waiter.fetch().landed().await,
        };
        match outcome {
            Outcome::Arrived { by } => {
                if by != Some(waiter.id()) {
                    self.entitle(ctx, descriptor, handlers, waiter.refusals()).await?;
                }
                if !began {
                    add(&self.counters.waited_bytes, size);
                }
                Ok(())
            }
            Outcome::Refused => Err(FetchError::refused(digest, waiter.refusals())),
            Outcome::Failed(error) => Err(error),
            Outcome::Abandoned => Err(FetchError::Cancelled { digest }),
        }
    }

    /// What the blob is now, read off the disk if nothing happened to it in this process. A file that
    /// is not what its name says is removed. The caller holds the blob.
    pub(super) async fn look(
        self: &Arc<Self>,
        descriptor: &Descriptor,
    ) -> Result<Residency<Fetch>, ContentError> {
        let digest = descriptor.digest;
        if let Some(state) = self.table.get(&digest) {
            return Ok(state);
        }
        let mut found = self.disk.size_of(&digest);
        if let Some(size) = found
            && size != descriptor.size
        {
            // Either the file is torn or the descriptor wrong; the digest knows.
            let disk = Arc::clone(&self.disk);
            if !self.tasks.spawn_blocking("verify", move || disk.verify(&digest)).await?? {
                tracing::warn!(%digest, size, expected = descriptor.size, "a blob's file was torn");
                self.table.while_unknown(&digest, || self.disk.remove_blob(&digest)).transpose()?;
                found = None;
            }
        }
        Ok(self.table.get_or_note(&digest, found))
    }
}

pub(super) fn right_size(descriptor: &Descriptor, actual: u64) -> Result<(), FetchError> {
    let Descriptor { digest, size: expected, .. } = *descriptor;
    if actual == expected { Ok(()) } else { Err(FetchError::WrongSize { digest, expected, actual }) }
}
