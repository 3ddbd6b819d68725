//! The thread that owns all writes: takes what waits, runs it, commits once.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use redb::Durability;
use tokio::sync::oneshot;

use super::BEHIND;
use super::DbError;
use super::Shared;
use super::tx::WriteTx;
use crate::failpoint;
use crate::failpoint::Failpoint;

/// Closures in one commit at most, so that a flood of them can't starve the first ones of an answer.
const MAX_BATCH: usize = 1024;

/// A queued closure.
pub(super) struct Job {
    durable: bool,
    work: Box<dyn Work>,
}

/// What a run of a closure came to.
enum Ran {
    Well,
    /// The closure refused; its changes must go.
    Refused,
    /// The file failed; nothing of the transaction can be kept.
    StorageFailed,
}

trait Work: Send {
    fn run(&mut self, tx: &WriteTx) -> Ran;
    /// Answers the caller: with what the last run returned, or with `failure` in place of a success.
    fn finish(self: Box<Self>, failure: Option<&DbError>);
}

impl Job {
    pub(super) fn waited<T, E>(
        durable: bool,
        write: impl Fn(&WriteTx) -> Result<T, E> + Send + 'static,
    ) -> (Job, oneshot::Receiver<Result<T, E>>)
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        (Job { durable, work: Box::new(Waited { write, outcome: None, answer }) }, receiver)
    }

    pub(super) fn behind(write: impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static) -> Job {
        Job { durable: false, work: Box::new(Behind { write, outcome: None }) }
    }
}

struct Waited<F, T, E> {
    write: F,
    outcome: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Work for Waited<F, T, E>
where
    F: Fn(&WriteTx) -> Result<T, E> + Send,
    T: Send,
    E: From<DbError> + Send,
{
    fn run(&mut self, tx: &WriteTx) -> Ran {
        // The type of a refusal is the caller's, so a failure of the file inside it is not seen here;
        // the commit of the others will meet it again.
        let (outcome, ran) = match catch_unwind(AssertUnwindSafe(|| (self.write)(tx))) {
            Ok(Ok(value)) => (Ok(value), Ran::Well),
            Ok(Err(error)) => (Err(error), Ran::Refused),
            Err(_) => (Err(DbError::Panicked.into()), Ran::Refused),
        };
        self.outcome = Some(outcome);
        ran
    }

    fn finish(mut self: Box<Self>, failure: Option<&DbError>) {
        let outcome = match (self.outcome.take(), failure) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(failure)) => Err(failure.clone().into()),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(DbError::Closed.into()),
        };
        // The caller may have left.
        let _ = self.answer.send(outcome);
    }
}

struct Behind<F> {
    write: F,
    outcome: Option<DbError>,
}

impl<F: Fn(&WriteTx) -> Result<(), DbError> + Send> Work for Behind<F> {
    fn run(&mut self, tx: &WriteTx) -> Ran {
        self.outcome = match catch_unwind(AssertUnwindSafe(|| (self.write)(tx))) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(DbError::Panicked),
        };
        match &self.outcome {
            None => Ran::Well,
            Some(error) if error.is_storage() => Ran::StorageFailed,
            Some(_) => Ran::Refused,
        }
    }

    fn finish(self: Box<Self>, failure: Option<&DbError>) {
        if let Some(error) = self.outcome.as_ref().or(failure) {
            tracing::warn!(%error, "a write behind was lost");
        }
    }
}

/// Runs until every sender is gone and all that was queued is durable.
pub(super) fn run(shared: &Arc<Shared>, jobs: &mpsc::Receiver<Job>) {
    let mut writer = Writer { shared: Arc::clone(shared), due: None };
    loop {
        let first = match writer.due {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => jobs.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match first {
            Ok(first) => {
                let mut batch = vec![first];
                batch.extend(std::iter::from_fn(|| jobs.try_recv().ok()).take(MAX_BATCH - 1));
                writer.commit(batch);
            }
            Err(RecvTimeoutError::Timeout) => writer.flush(),
            Err(RecvTimeoutError::Disconnected) => {
                if writer.due.is_some() {
                    writer.flush();
                }
                return;
            }
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// When the commits that aren't durable yet must become so; `None` without any.
    due: Option<Instant>,
}

impl Writer {
    fn commit(&mut self, mut batch: Vec<Job>) {
        // Each round takes one job out, so there are at most as many as jobs.
        while !batch.is_empty() {
            let tx = match self.begin() {
                Ok(tx) => tx,
                Err(error) => return finish(batch, Some(&error)),
            };
            let odd = batch.iter_mut().enumerate().find_map(|(at, job)| match job.work.run(&tx) {
                Ran::Well => None,
                ran => Some((at, ran)),
            });
            match odd {
                Some((at, ran)) => {
                    drop(tx);
                    batch.remove(at).work.finish(None);
                    if matches!(ran, Ran::StorageFailed) {
                        self.reopen();
                    }
                }
                None => {
                    let durable = batch.iter().any(|job| job.durable);
                    let failure = self.end(tx, durable).err();
                    return finish(batch, failure.as_ref());
                }
            }
        }
    }

    /// Makes what was committed behind durable.
    fn flush(&mut self) {
        if let Err(error) = self.begin().and_then(|tx| self.end(tx, true)) {
            tracing::warn!(%error, "writes behind are not durable yet");
            self.due = Some(Instant::now() + BEHIND);
        }
    }

    /// A transaction, on the file opened anew if it had failed.
    fn begin(&mut self) -> Result<WriteTx, DbError> {
        WriteTx::begin(&self.shared.handle()?.database).or_else(|_| {
            self.shared.reopen()?;
            WriteTx::begin(&self.shared.handle()?.database)
        })
    }

    fn end(&mut self, tx: WriteTx, durable: bool) -> Result<(), DbError> {
        let durability = if durable { Durability::Immediate } else { Durability::None };
        if durable {
            failpoint::hit(Failpoint::TransactionBuilt)?;
        }
        if let Err(error) = tx.commit(durability) {
            self.reopen();
            return Err(error);
        }
        if durable {
            self.shared.sync_directory()?;
            failpoint::hit(Failpoint::TransactionCommitted)?;
        }
        self.shared.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.due = if durable { None } else { self.due.or(Some(Instant::now() + BEHIND)) };
        Ok(())
    }

    /// Readers should not have to wait for the next write to see the store again. What fails here is
    /// tried again by the next one.
    fn reopen(&mut self) {
        self.due = None;
        if let Err(error) = self.shared.reopen() {
            tracing::error!(%error, path = %self.shared.path.display(), "the metadata store can't be opened again");
        }
    }
}

fn finish(batch: Vec<Job>, failure: Option<&DbError>) {
    for job in batch {
        job.work.finish(failure);
    }
}
