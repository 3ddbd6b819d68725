//! Who may have bytes that are here.
//!
//! ```text
//!   asker ──▶ the node itself, made here, or shown by one of its sessions? ──▶ yes
//!     │ no
//!     ▼
//!   a proven origin that one of its handlers vouches for? ──▶ yes
//!     │ no
//!     ▼
//!   for each of its candidates, with its own rights:
//!     registry seen to have the blob ──▶ is asked ([`Provider::probe`])
//!     any other                      ──▶ shows all the bytes, and is proven
//! ```
//!
//! A registry that is gone says nothing for as long as it is asked again and again, and an asker may never have named it:
//! after a second the next candidate is asked as well, and for a minute others are asked before it ([`Slow`]).
//!
//! [`Slow`]: super::slow::Slow
//!
//! # Proof
//!
//! Who says that he has a blob shows it: all of its bytes are read and hashed, and thrown away. A sample
//! would be cheaper and prove less: of a layer that is an uncompressed archive, somebody who lacks
//! nothing but one small private file knows every other range, and would be handed the file.
//!
//! - A registry proves itself once, for all of its repositories and for ever: it is a party of its own,
//!   that nobody who asks here can speak for. Whom it lets in is still asked for each asker.
//! - A client's content store proves its session, for as long as that lasts. The store's name proves
//!   nothing, since each client chooses its own.
//!
//! # Invariants
//!
//! - Of one blob at most one proof by one party runs at a time, whatever number of askers. An asker who
//!   would have come elsewhere, or with other rights, is asked about for itself afterwards.
//!
//! # Cancellation
//!
//! A proof belongs to the store: it goes on while anybody waits for it, and ends with the last one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::timeout;

use super::DescHandler;
use super::FetchError;
use super::Inner;
use super::Origin;
use super::ProvideError;
use super::Refusal;
use super::candidate::Candidate;
use super::rows;
use super::rows::BlobRow;
use super::stats::add;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::session::SessionId;
use crate::task::Flights;

/// A registry whose word has not come by then is not waited for alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// The proofs that are being read, each with the candidate whose asker came first.
pub(super) type Proofs = Flights<(Digest, Party), Candidate, Result<(), ProvideError>>;

/// Who proves that he has a blob.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Party {
    Registry { host: String },
    Client { session: SessionId, store: String },
}

/// What a candidate says. The outer error is this node's.
type Answer = Result<Result<(), ProvideError>, FetchError>;

/// Whom a proof answered.
enum Proof {
    /// This asker: it was read where it asks, with its rights.
    Own(Result<(), ProvideError>),
    /// Somebody else.
    Others,
}

/// True if it is enough that the origin says yes. A registry that was never seen to have the blob may
/// say so to get it, for whoever asks here in its name.
fn is_believed(row: Option<&BlobRow>, origin: Option<&Origin>) -> bool {
    let Some(Origin::Registry { host, .. }) = origin else { return false };
    let known = row.map_or(&[][..], |row| &row.origins);
    known.iter().any(|k| k.proven && matches!(&k.origin, Origin::Registry { host: seen, .. } if seen == host))
}

fn said_no(origin: &Option<Origin>, refused: &[Refusal]) -> bool {
    origin.is_some() && refused.iter().any(|r| r.origin == *origin)
}

impl Inner {
    /// Lets an asker have bytes that are here, or says why not. `refused` are candidates of this asker
    /// that said no a moment ago.
    pub(super) async fn entitle(
        self: &Arc<Self>,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &[DescHandler],
        refused: Vec<Refusal>,
    ) -> Result<(), FetchError> {
        let digest = descriptor.digest;
        if handlers.is_empty() || ctx.sessions().open().iter().any(|session| session.has_shown(&digest)) {
            return Ok(());
        }
        let vouched = |origin: &Origin| {
            origin.vouches()
                && !said_no(&Some(origin.clone()), &refused)
                && handlers
                    .iter()
                    .any(|h| h.provider.vouches_for(ctx) && h.provider.origin().as_ref() == Some(origin))
        };
        let settles = |row: &BlobRow| row.local || row.proven().any(vouched);
        let mut row = self.row(&digest)?;
        if row.as_ref().is_some_and(settles) {
            return Ok(());
        }
        if self.recover(descriptor, row.as_ref()).await {
            row = self.row(&digest)?;
            if row.as_ref().is_some_and(settles) {
                return Ok(());
            }
        }
        let mut candidates = self.candidates(ctx, handlers, row.as_ref());
        // A word costs less than the bytes.
        candidates.sort_by_key(|candidate| {
            let origin = candidate.origin.as_ref();
            (self.slow.has(origin), !is_believed(row.as_ref(), origin))
        });
        self.ask_all(candidates, descriptor, row.as_ref(), refused).await
    }

    /// Asks one after the other until one says yes. One whose word does not come in time is not waited for alone: the
    /// next one is asked as well.
    async fn ask_all(
        self: &Arc<Self>,
        candidates: Vec<Candidate>,
        descriptor: &Descriptor,
        row: Option<&BlobRow>,
        mut refused: Vec<Refusal>,
    ) -> Result<(), FetchError> {
        let mut candidates = candidates.into_iter().peekable();
        let mut asked = FuturesUnordered::new();
        while let Some(candidate) = candidates.next() {
            let (origin, is_last) = (candidate.origin.clone(), candidates.peek().is_none());
            if said_no(&origin, &refused) {
                continue;
            }
            let is_word = is_believed(row, origin.as_ref());
            asked.push(self.ask(candidate, descriptor));
            let patience = if is_word && !is_last { PATIENCE } else { Duration::MAX };
            loop {
                match timeout(patience, asked.next()).await {
                    Ok(None) => break,
                    Ok(Some((candidate, answer))) => match answer? {
                        Ok(()) => return Ok(()),
                        Err(error) => refused.push(candidate.refusal(error)),
                    },
                    Err(_) => {
                        self.slow.note(origin.as_ref());
                        break;
                    }
                }
            }
        }
        Err(FetchError::refused(descriptor.digest, refused))
    }

    /// Puts into the row what the blob's file says of its origin, if a crash lost it there.
    async fn recover(&self, descriptor: &Descriptor, row: Option<&BlobRow>) -> bool {
        let Some(origin) = self.disk.given_blob(&descriptor.digest) else { return false };
        if row.is_some_and(|row| row.proven().any(|proven| *proven == origin)) {
            return false;
        }
        self.prove(descriptor, Some(&origin)).await;
        true
    }

    async fn ask(self: &Arc<Self>, candidate: Candidate, descriptor: &Descriptor) -> (Candidate, Answer) {
        let answer = self.answer(&candidate, descriptor).await;
        (candidate, answer)
    }

    /// Has one candidate say or show that its asker may have the blob.
    async fn answer(self: &Arc<Self>, candidate: &Candidate, descriptor: &Descriptor) -> Answer {
        match &candidate.origin {
            Some(Origin::Registry { host, .. }) => loop {
                if is_believed(self.row(&descriptor.digest)?.as_ref(), candidate.origin.as_ref()) {
                    add(&self.counters.probes, 1);
                    let answer = candidate.provider.probe(&candidate.ctx, descriptor).await;
                    if answer.is_ok() {
                        self.prove(descriptor, candidate.origin.as_ref()).await;
                    }
                    return Ok(answer);
                }
                match self.show(Party::Registry { host: host.clone() }, candidate, descriptor).await {
                    Proof::Own(answer) => return Ok(answer),
                    // If they proved it, this asker's own rights are asked for next; otherwise it is
                    // this one's turn to prove it.
                    Proof::Others => {}
                }
            },
            Some(Origin::SessionStore { store }) => {
                let mut answer =
                    Err(ProvideError::gone(format!("no client is there with its store {store}")));
                for (session, alone) in candidate.ctx.sessions().singly() {
                    let ctx = candidate.ctx.with_sessions(alone);
                    let candidate = Candidate { ctx, ..candidate.clone() };
                    let party = Party::Client { session, store: store.clone() };
                    answer = match self.show(party, &candidate, descriptor).await {
                        Proof::Own(answer) => answer,
                        Proof::Others => continue,
                    };
                    if answer.is_ok() {
                        break;
                    }
                }
                Ok(answer)
            }
            None => Ok(self.read_through(candidate, descriptor).await),
        }
    }

    /// Has a party show the blob to this asker and to all who ask meanwhile.
    async fn show(self: &Arc<Self>, party: Party, candidate: &Candidate, descriptor: &Descriptor) -> Proof {
        let own = AtomicBool::new(false);
        let proof = self.proofs.join(
            &self.tasks,
            (descriptor.digest, party),
            |token| {
                own.store(true, Ordering::Relaxed);
                let (inner, descriptor) = (Arc::clone(self), descriptor.clone());
                let ctx = candidate.ctx.with_cancel(token);
                let candidate = Arc::new(Candidate { ctx, ..candidate.clone() });
                let read = Arc::clone(&candidate);
                let shown = matches!(read.origin, Some(Origin::SessionStore { .. }))
                    && read.ctx.sessions().open().iter().any(|s| s.has_shown(&descriptor.digest));
                let work = async move {
                    if shown {
                        // Since this asker looked.
                        return Ok(());
                    }
                    inner.read_through(&read, &descriptor).await?;
                    inner.had(&read, &descriptor);
                    inner.prove(&descriptor, read.origin.as_ref()).await;
                    Ok(())
                };
                (candidate, work)
            },
            |first| own.store(first.asks_the_same(candidate), Ordering::Relaxed),
        );
        match proof.await {
            Ok(answer) if own.load(Ordering::Relaxed) => Proof::Own(answer),
            Ok(_) => Proof::Others,
            Err(failed) => Proof::Own(Err(ProvideError::unreachable(failed))),
        }
    }

    /// Reads all the bytes of a candidate, and keeps none of them.
    async fn read_through(&self, candidate: &Candidate, descriptor: &Descriptor) -> Result<(), ProvideError> {
        let Descriptor { digest, size, .. } = *descriptor;
        let ctx = &candidate.ctx;
        add(&self.counters.proofs, 1);
        let opened = self.open_candidate(candidate, ctx, descriptor, 0).await?;
        let (mut body, mut hasher, mut got) = (opened.body, digest.hasher(), 0);
        while let Some(chunk) = ctx.run(body.next()).await.map_err(|_| ProvideError::Cancelled)? {
            let chunk = chunk?;
            add(&self.counters.fetched_bytes, chunk.len() as u64);
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

    /// Remembers that all the bytes of a blob came through this candidate, for the session that gave them.
    /// Of several nobody knows which one it was.
    pub(super) fn had(&self, candidate: &Candidate, descriptor: &Descriptor) {
        let sessions = candidate.ctx.sessions();
        if let Some(Origin::SessionStore { .. }) = candidate.origin
            && sessions.ids().len() == 1
        {
            sessions.open().iter().for_each(|session| session.note_shown(descriptor.digest));
        }
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
