//! [`Fetch`]: what a running fetch and those who wait for it share.
//!
//! # Invariants
//!
//! - A [`Waiter`] is an interest in the bytes. The token is cancelled when the last one goes, and from
//!   then on, or once the task has run out of candidates, nobody can board: late comers wait for the end
//!   and begin anew.
//! - A fetch whose digest held goes on to its end without anybody: the file is synced and renamed. Who only
//!   reads along has nothing to wait for by then, and gets the processor and the disk first: the end is put off
//!   until somebody waits for it, for [`PAUSE`] at most.
//! - A waiter that leaves takes its candidates along: what it was allowed to do is not done for
//!   others afterwards. A transfer that is already under way goes on.
//!
//! # Locking
//!
//! One mutex, held for memory operations and progress reports, which never block.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::FetchError;
use super::super::ProvideError;
use super::super::Refusal;
use super::super::candidate::Candidate;
use super::super::follow::Written;
use crate::oci::Descriptor;
use crate::progress::TransferProgress;
use crate::task::Tasks;

/// A verified file that nobody waits for is synced after this time. A base of many layers arrives in it, mostly.
const PAUSE: Duration = Duration::from_secs(2);

/// One fetch of one blob.
#[derive(Debug)]
pub(in crate::content) struct Fetch {
    descriptor: Descriptor,
    token: CancellationToken,
    aboard: Mutex<Aboard>,
    stage: watch::Sender<Stage>,
    /// Cancelled when somebody waits for the end.
    hurry: CancellationToken,
    written: Arc<Written>,
}

/// How far a fetch is.
#[derive(Clone, Debug, Default)]
struct Stage {
    /// The digest held. The file is on its way to its place, whoever leaves now and whatever becomes of it.
    verified: Option<Outcome>,
    ended: Option<Outcome>,
}

/// How a fetch ended.
#[derive(Clone, Debug)]
pub(in crate::content) enum Outcome {
    /// The blob is resident, or about to be for who asks no more than its digest. Its bytes, the last of
    /// them at least, came through a candidate of waiter `by`, if not all of them were here before.
    Arrived { by: Option<u64> },
    /// No candidate had it. Each waiter has its own answers.
    Refused,
    /// This node failed, which is everybody's error.
    Failed(FetchError),
    /// The last waiter left, or the daemon stops.
    Abandoned,
}

#[derive(Debug, Default)]
struct Aboard {
    waiters: Vec<Listener>,
    candidates: Vec<Entry>,
    next_id: u64,
    /// Bytes that are here.
    current: u64,
    closed: bool,
}

#[derive(Debug)]
struct Listener {
    id: u64,
    progress: Vec<Arc<dyn TransferProgress>>,
}

#[derive(Debug)]
struct Entry {
    waiter: u64,
    candidate: Candidate,
    refusal: Option<ProvideError>,
}

/// A candidate whose turn it is.
#[derive(Debug)]
pub(super) struct Turn {
    pub waiter: u64,
    pub candidate: Candidate,
}

/// One asker's interest in a fetch.
#[derive(Debug)]
pub(in crate::content) struct Waiter {
    id: u64,
    fetch: Arc<Fetch>,
}

impl Fetch {
    pub(super) fn new(descriptor: Descriptor, tasks: &Tasks) -> Fetch {
        let token = tasks.token().child_token();
        let (aboard, stage) = (Mutex::default(), watch::Sender::default());
        Fetch { descriptor, token, aboard, stage, hurry: CancellationToken::new(), written: Arc::default() }
    }

    pub(in crate::content) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// How far the file is.
    pub(in crate::content) fn written(&self) -> &Arc<Written> {
        &self.written
    }

    /// Cancelled when nobody wants the bytes any more.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Joins with some candidates; `None` if the fetch is about to end without the bytes.
    pub(super) fn board(
        self: &Arc<Self>,
        candidates: Vec<Candidate>,
        progress: Vec<Arc<dyn TransferProgress>>,
    ) -> Option<Waiter> {
        let mut aboard = self.aboard();
        if aboard.closed {
            return None;
        }
        let id = aboard.next_id;
        aboard.next_id += 1;
        for progress in &progress {
            progress.start(self.descriptor.size);
            progress.update(aboard.current);
        }
        aboard.waiters.push(Listener { id, progress });
        let entries = candidates.into_iter().map(|candidate| Entry { waiter: id, candidate, refusal: None });
        aboard.candidates.extend(entries);
        Some(Waiter { id, fetch: Arc::clone(self) })
    }

    /// The next candidate to try. `None` closes the fetch: all have refused.
    ///
    /// A candidate whose question was answered for another waiter with the same rights gets the same
    /// answer without being asked.
    pub(super) fn next(&self) -> Option<Turn> {
        let mut aboard = self.aboard();
        while let Some(at) = aboard.candidates.iter().position(|e| e.refusal.is_none()) {
            let entry = &aboard.candidates[at];
            let same = aboard
                .candidates
                .iter()
                .find(|e| e.refusal.is_some() && e.candidate.asks_the_same(&entry.candidate))
                .and_then(|e| e.refusal.clone());
            if same.is_none() {
                return Some(Turn { waiter: entry.waiter, candidate: entry.candidate.clone() });
            }
            aboard.candidates[at].refusal = same;
        }
        aboard.closed = true;
        None
    }

    /// Notes the answer of the candidate whose turn it was.
    pub(super) fn refuse(&self, turn: &Turn, error: ProvideError) {
        let mut aboard = self.aboard();
        let mine = |e: &&mut Entry| {
            e.waiter == turn.waiter && Arc::ptr_eq(&e.candidate.provider, &turn.candidate.provider)
        };
        // None if its waiter has left.
        if let Some(entry) = aboard.candidates.iter_mut().find(mine) {
            entry.refusal = Some(error);
        }
    }

    /// Reports how many bytes are here to everybody who waits.
    pub(super) fn report(&self, current: u64) {
        let mut aboard = self.aboard();
        aboard.current = current;
        for progress in aboard.waiters.iter().flat_map(|w| &w.progress) {
            progress.update(current);
        }
    }

    /// Tells that the digest held: followers are at their end, and who needs no more goes on.
    pub(super) fn verify(&self, by: Option<u64>) {
        self.written.end(true);
        self.stage.send_modify(|stage| stage.verified = Some(Outcome::Arrived { by }));
    }

    /// Puts the end of a verified fetch off, unless somebody waits for it, or the daemon stops.
    pub(super) async fn put_off(&self, stop: &CancellationToken) {
        tokio::select! {
            () = self.hurry.cancelled() => {}
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }

    pub(super) fn land(&self, outcome: Outcome) {
        self.aboard().closed = true;
        self.written.end(matches!(outcome, Outcome::Arrived { .. }));
        self.stage.send_modify(|stage| stage.ended = Some(outcome));
    }

    /// True from when the digest held until the end.
    pub(in crate::content) fn is_landing(&self) -> bool {
        let stage = self.stage.borrow();
        stage.verified.is_some() && stage.ended.is_none()
    }

    /// Waits until the digest has held, or for another end.
    pub(super) async fn verified(&self) -> Outcome {
        self.reached(|stage| stage.verified.as_ref().or(stage.ended.as_ref())).await
    }

    /// Waits for the end.
    pub(in crate::content) async fn landed(&self) -> Outcome {
        self.hurry.cancel();
        self.reached(|stage| stage.ended.as_ref()).await
    }

    async fn reached(&self, outcome: impl Fn(&Stage) -> Option<&Outcome>) -> Outcome {
        let mut stage = self.stage.subscribe();
        let reached = stage.wait_for(|stage| outcome(stage).is_some()).await;
        let reached = reached.ok().and_then(|stage| outcome(&stage).cloned());
        reached.expect("the sender is in self, and the wait was for some")
    }

    fn aboard(&self) -> MutexGuard<'_, Aboard> {
        self.aboard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn fetch(&self) -> &Fetch {
        &self.fetch
    }

    /// The answers of this waiter's own candidates so far.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let aboard = self.fetch.aboard();
        let mine = aboard.candidates.iter().filter(|e| e.waiter == self.id);
        mine.filter_map(|e| Some(e.candidate.refusal(e.refusal.clone()?))).collect()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut aboard = self.fetch.aboard();
        aboard.candidates.retain(|e| e.waiter != self.id);
        let left = aboard.waiters.iter().position(|w| w.id == self.id).map(|at| aboard.waiters.remove(at));
        if aboard.waiters.is_empty() {
            aboard.closed = true;
            self.fetch.token.cancel();
        }
        drop(aboard);
        for progress in left.iter().flat_map(|w| &w.progress) {
            progress.complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::oci::Digest;

    #[tokio::test(start_paused = true)]
    async fn the_end_is_put_off_until_somebody_waits_for_it_or_the_daemon_stops() {
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let new = || Fetch::new(Descriptor::new("text/plain", Digest::sha256(""), 0), &tasks);
        let took = async |fetch: &Fetch| {
            let began = Instant::now();
            fetch.put_off(&stop).await;
            began.elapsed()
        };
        let (fetch, later) = (new(), new());
        assert_eq!(took(&fetch).await, PAUSE);
        assert!(futures::poll!(Box::pin(fetch.landed())).is_pending());
        assert_eq!(took(&fetch).await, Duration::ZERO);
        let (put_off, _) = tokio::join!(took(&later), async {
            tokio::time::sleep(PAUSE / 2).await;
            later.land(Outcome::Refused);
            later.landed().await
        });
        assert_eq!(put_off, PAUSE / 2);
        stop.cancel();
        assert_eq!(took(&new()).await, Duration::ZERO);
    }
}
