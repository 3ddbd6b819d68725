//! The task of a fetch: candidate after candidate, until the digest holds or nobody is left.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;

use super::super::Body;
use super::super::ContentError;
use super::super::FetchError;
use super::super::Inner;
use super::super::ProvideError;
use super::super::given::Given;
use super::super::ingest::Ingest;
use super::super::ingest::Ingested;
use super::super::stats::add;
use super::flight::Fetch;
use super::flight::Outcome;
use super::flight::Turn;
use crate::task::TaskFailed;

/// Progress is reported this often, and at the end of each transfer.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Times that a candidate may send wrong bytes: the second time another of its mirrors may serve
/// them, or what damaged them on the way is over.
const CORRUPT_TRIES: u32 = 2;

/// How one transfer from one candidate ended.
enum Transfer {
    /// The blob is resident.
    Arrived,
    /// All bytes came and are not the blob's. They are removed. `pure` if all were this candidate's.
    Corrupt { pure: bool },
    /// The candidate can't go on. What it gave stays.
    Refused(ProvideError),
    /// Nobody waits any more. What is here stays.
    Abandoned,
}

/// Whose bytes a partial blob has.
///
/// Whoever gets a blob by giving its last bytes must have been given the first ones too, or he would get
/// what others began. So a candidate goes on only behind its own asker's bytes or those of its own
/// registry, and begins anew behind anybody else's.
struct Prefix {
    given: Given,
    /// The waiter whose candidates gave all of it to this fetch, if it was one.
    waiter: Option<u64>,
}

impl Prefix {
    /// True if the candidate may go on here. Of the node itself every one may.
    fn is_followed_by(&self, Turn { waiter, candidate }: &Turn) -> bool {
        candidate.by_node
            || self.waiter == Some(*waiter)
            || self.given.and(candidate.origin.as_ref()) != Given::ByMany
    }

    /// Notes that a candidate gives the bytes behind the first `have`.
    fn grow(&mut self, have: u64, turn: &Turn) {
        if have == 0 {
            *self = Prefix { given: Given::Nothing, waiter: Some(turn.waiter) };
        } else if self.waiter != Some(turn.waiter) {
            self.waiter = None;
        }
        self.given = self.given.and(turn.candidate.origin.as_ref());
    }
}

/// Runs a fetch to its end. State changes here, after the durable step, and askers are woken last.
pub(super) async fn run(inner: Arc<Inner>, fetch: Arc<Fetch>) {
    let landing = Landing { inner: &inner, fetch: &fetch };
    let outcome = bring(&inner, &fetch).await.unwrap_or_else(|error| {
        let digest = fetch.descriptor().digest;
        let error = FetchError::store(digest, error);
        if matches!(error, FetchError::NoSpace { .. }) {
            // The space is worth more than the bytes: others need it to finish.
            let _ = inner.disk.remove_partial(&digest);
        }
        Outcome::Failed(error)
    });
    landing.land(outcome);
}

/// Sees to it that a fetch ends for its waiters even if its task panics.
struct Landing<'a> {
    inner: &'a Inner,
    fetch: &'a Fetch,
}

impl Landing<'_> {
    fn land(self, outcome: Outcome) {
        self.end(outcome);
        std::mem::forget(self);
    }

    fn end(&self, outcome: Outcome) {
        let descriptor = self.fetch.descriptor();
        let arrived = matches!(outcome, Outcome::Arrived { .. }).then_some(descriptor.size);
        self.inner.table.end(&descriptor.digest, arrived);
        self.fetch.land(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let failed = TaskFailed { name: "fetch", reason: "it panicked".to_owned() };
        let digest = self.fetch.descriptor().digest;
        self.end(Outcome::Failed(FetchError::store(digest, failed.into())));
    }
}

async fn bring(inner: &Arc<Inner>, fetch: &Fetch) -> Result<Outcome, ContentError> {
    let descriptor = fetch.descriptor();
    let digest = descriptor.digest;
    let mut prefix = Prefix { given: inner.disk.given_partial(&digest), waiter: None };
    let mut corrupt = 0;
    loop {
        if fetch.token().is_cancelled() {
            return Ok(Outcome::Abandoned);
        }
        let have = inner.disk.partial_size(&digest);
        if have >= descriptor.size {
            // All was here when a fetch ended, or a crash came before the rename.
            let ingest =
                Ingest::start(&inner.tasks, &inner.disk, digest, prefix.given.clone(), fetch.written());
            let ingested = ingest.finish().await?;
            if have == descriptor.size && ingested.digest == digest {
                commit(inner, fetch, ingested, &prefix.given, None).await?;
                return Ok(Outcome::Arrived { by: None });
            }
            fetch.written().restart();
            inner.disk.remove_partial(&digest)?;
            if descriptor.size == 0 {
                let cause = "only the digest of nothing has no bytes";
                let error = ProvideError::corrupt(cause);
                while let Some(turn) = fetch.next() {
                    fetch.refuse(&turn, error.clone());
                }
                return Ok(Outcome::Refused);
            }
            continue;
        }
        let Some(turn) = fetch.next() else { return Ok(Outcome::Refused) };
        match transfer(inner, fetch, &turn, have, &mut prefix).await? {
            Transfer::Arrived => return Ok(Outcome::Arrived { by: Some(turn.waiter) }),
            Transfer::Abandoned => return Ok(Outcome::Abandoned),
            Transfer::Refused(error) => {
                corrupt = 0;
                fetch.refuse(&turn, error);
            }
            // Bytes of several transfers may have been damaged in any of them.
            Transfer::Corrupt { pure: false } => {}
            Transfer::Corrupt { pure: true } => {
                corrupt += 1;
                if corrupt == CORRUPT_TRIES {
                    corrupt = 0;
                    fetch.refuse(&turn, ProvideError::corrupt("the bytes do not have its digest"));
                }
            }
        }
    }
}

/// Gets the bytes from `have` on from one candidate, or all if they are not to be mixed.
async fn transfer(
    inner: &Arc<Inner>,
    fetch: &Fetch,
    turn: &Turn,
    have: u64,
    prefix: &mut Prefix,
) -> Result<Transfer, ContentError> {
    let descriptor = fetch.descriptor();
    let anew = have > 0 && !prefix.is_followed_by(turn);
    let have = if anew { 0 } else { have };
    // The candidate's rights, and the fetch's life: the asker may leave while others wait.
    let ctx = turn.candidate.ctx.with_cancel(fetch.token().clone());
    let open = inner.open_candidate(&turn.candidate, &ctx, descriptor, have);
    let opened = match fetch.token().run_until_cancelled(open).await {
        None => return Ok(Transfer::Abandoned),
        Some(Err(_)) if fetch.token().is_cancelled() => return Ok(Transfer::Abandoned),
        Some(Err(error)) => return Ok(Transfer::Refused(error)),
        Some(Ok(opened)) => opened,
    };
    fetch.written().begin();
    let mut body = opened.body;
    if anew {
        fetch.written().restart();
        inner.disk.remove_partial(&descriptor.digest)?;
        fetch.report(0);
    }
    prefix.grow(have, turn);
    let given = prefix.given.clone();
    let ingest = Ingest::start(&inner.tasks, &inner.disk, descriptor.digest, given, fetch.written());
    let ended = receive(inner, fetch, &ingest, body.as_mut(), opened.offset, have).await;
    let ingested = ingest.finish().await?;
    fetch.report(ingested.size);
    match ended {
        Ended::Abandoned => return Ok(Transfer::Abandoned),
        Ended::Refused(error) => return Ok(Transfer::Refused(error)),
        Ended::WriterFailed => {
            // It gave no reason, so it must have been stopped.
            return Ok(Transfer::Abandoned);
        }
        Ended::Whole => {}
    }
    if ingested.size == descriptor.size && ingested.digest == descriptor.digest {
        if prefix.waiter == Some(turn.waiter) {
            inner.had(&turn.candidate, descriptor);
        }
        commit(inner, fetch, ingested, &prefix.given, Some(turn.waiter)).await?;
        return Ok(Transfer::Arrived);
    }
    body.condemn();
    fetch.written().restart();
    inner.disk.remove_partial(&descriptor.digest)?;
    fetch.report(0);
    Ok(Transfer::Corrupt { pure: have == 0 })
}

/// How a body ended.
enum Ended {
    /// As many bytes as the blob has are here.
    Whole,
    Refused(ProvideError),
    /// [`Ingest::finish`] has the error.
    WriterFailed,
    Abandoned,
}

async fn receive(
    inner: &Inner,
    fetch: &Fetch,
    ingest: &Ingest,
    mut body: Pin<&mut dyn Body>,
    offset: u64,
    have: u64,
) -> Ended {
    let size = fetch.descriptor().size;
    let mut at = offset;
    let mut reported = Instant::now();
    while let Some(chunk) = match fetch.token().run_until_cancelled(body.next()).await {
        None => return Ended::Abandoned,
        Some(chunk) => chunk,
    } {
        let mut chunk = match chunk {
            Err(_) if fetch.token().is_cancelled() => return Ended::Abandoned,
            Err(error) => return Ended::Refused(error),
            Ok(chunk) => chunk,
        };
        add(&inner.counters.fetched_bytes, chunk.len() as u64);
        let start = at;
        at += chunk.len() as u64;
        if at > size {
            return Ended::Refused(ProvideError::corrupt(format!("more than its {size} bytes came")));
        }
        if at <= have {
            continue;
        }
        if start < have {
            // The provider could not start where it was asked to.
            chunk = chunk.slice((have - start) as usize..);
        }
        if ingest.append(chunk).await.is_err() {
            return Ended::WriterFailed;
        }
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            fetch.report(at);
        }
    }
    if at < size {
        return Ended::Refused(ProvideError::unreachable(format!("the bytes ended after {at} of {size}")));
    }
    Ended::Whole
}

/// Makes verified bytes the blob. Not given up in between: the bytes are worth the sync. Those who don't
/// need the file go on before it, with an origin that is proven: their rights are looked up there.
async fn commit(
    inner: &Arc<Inner>,
    fetch: &Fetch,
    ingested: Ingested,
    given: &Given,
    by: Option<u64>,
) -> Result<(), ContentError> {
    let digest = fetch.descriptor().digest;
    inner.prove(fetch.descriptor(), given.origin()).await;
    fetch.verify(by);
    fetch.put_off(inner.tasks.token()).await;
    let disk = Arc::clone(&inner.disk);
    let commit =
        inner.tasks.spawn_blocking("commit blob", move || disk.commit_partial(&ingested.file, &digest));
    commit.await?
}
