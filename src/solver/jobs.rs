//! [`Jobs`]: the builds of the daemon, by the ref that their client chose.
//!
//! A client calls `Solve`, `Status` and the bridge at the same time, so that a call may come before
//! the job that it names: [`Jobs::get`] and [`Jobs::follow`] wait for it. Of a job that has ended the
//! journal is found for ten seconds more, by readers of its status that come late.
//!
//! # Invariants
//!
//! A job that has ended is kept by its journal alone: its refs, their definitions and what they were decoded
//! from would add up to as much as all builds of ten seconds.
//!
//! # Locking
//!
//! One mutex over the map, held for look-ups, inserts and removals.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Solver;
use super::frontend::Frontends;
use super::job::Job;
use super::job::JobId;
use super::job::JobSpec;
use super::job::RunningJob;
use crate::ops::Operate;
use crate::ops::llb::Limits;
use crate::progress::Journal;
use crate::task::Tasks;

/// How long the journal of an ended job can still be found.
const LINGER: Duration = Duration::from_secs(10);
/// How long a call on the bridge waits for its job.
const BRIDGE_WAIT: Duration = Duration::from_secs(3);
/// How long a reader of the status does.
const STATUS_WAIT: Duration = Duration::from_secs(6);

/// Nobody created the job while its caller waited, or it has ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such job {id}")]
pub struct NoSuchJob {
    pub id: JobId,
}

/// There is a live job of that ref.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("job ID {id} exists")]
pub struct JobExists {
    pub id: JobId,
}

/// The jobs of the daemon. Clones share them.
pub struct Jobs<O: Operate>(Arc<Inner<O>>);

struct Inner<O: Operate> {
    solver: Solver<O>,
    frontends: Arc<Frontends<O>>,
    limits: Limits,
    tasks: Tasks,
    map: Mutex<HashMap<JobId, Entry<O>>>,
    created: Notify,
}

enum Entry<O: Operate> {
    Live(Job<O>),
    Ended(Journal),
}

impl<O: Operate> Entry<O> {
    fn journal(&self) -> &Journal {
        match self {
            Entry::Live(job) => job.journal(),
            Entry::Ended(journal) => journal,
        }
    }
}

impl<O: Operate> Clone for Jobs<O> {
    fn clone(&self) -> Self {
        Jobs(Arc::clone(&self.0))
    }
}

impl<O: Operate> Jobs<O> {
    /// `tasks` owns the timers of jobs that have ended.
    pub fn new(solver: Solver<O>, frontends: Frontends<O>, limits: Limits, tasks: Tasks) -> Jobs<O> {
        Jobs(Arc::new(Inner {
            solver,
            frontends: Arc::new(frontends),
            limits,
            tasks,
            map: Mutex::default(),
            created: Notify::new(),
        }))
    }

    /// Creates a job. It ends when the returned owner is dropped.
    pub fn create(&self, spec: JobSpec) -> Result<RunningJob<O>, JobExists> {
        let id = spec.id.clone();
        let mut map = self.map();
        if let Some(Entry::Live(_)) = map.get(&id) {
            return Err(JobExists { id });
        }
        let inner = &self.0;
        let job = Job::new(spec, inner.solver.clone(), Arc::clone(&inner.frontends), inner.limits);
        map.insert(id.clone(), Entry::Live(job.clone()));
        drop(map);
        inner.created.notify_waiters();
        let (jobs, journal) = (self.clone(), job.journal().clone());
        Ok(RunningJob::new(job, move || jobs.linger(id, journal)))
    }

    /// Keeps the journal of an ended job for a while.
    fn linger(&self, id: JobId, journal: Journal) {
        let ended = {
            let mut map = self.map();
            let entry = map.get_mut(&id).filter(|entry| entry.journal().same(&journal));
            entry.map(|entry| std::mem::replace(entry, Entry::Ended(journal.clone())))
        };
        // What it held goes without the lock.
        drop(ended);
        // An owner may be dropped with the runtime, when nobody reads any more.
        if Handle::try_current().is_err() {
            return self.remove(&id, &journal);
        }
        let (jobs, token) = (self.clone(), self.0.tasks.token().clone());
        drop(self.0.tasks.spawn("journal lingers", async move {
            let _ = token.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            jobs.remove(&id, &journal);
        }));
    }

    fn remove(&self, id: &JobId, journal: &Journal) {
        let mut map = self.map();
        if map.get(id).is_some_and(|entry| entry.journal().same(journal)) {
            map.remove(id);
        }
    }

    /// The live job of that ref, for a call on its bridge: waits three seconds for it to be created.
    ///
    /// Cancellation safe.
    pub async fn get(&self, id: &JobId) -> Result<Job<O>, NoSuchJob> {
        let found = self.wait(id, BRIDGE_WAIT, |entry| match entry {
            Entry::Live(job) => Some(job.clone()),
            Entry::Ended(_) => None,
        });
        found.await?.ok_or_else(|| NoSuchJob { id: id.clone() })
    }

    /// The journal of the job of that ref, for a reader of its status: waits six seconds for it to be created.
    ///
    /// Cancellation safe.
    pub async fn follow(&self, id: &JobId) -> Result<Journal, NoSuchJob> {
        self.wait(id, STATUS_WAIT, |entry| entry.journal().clone()).await
    }

    /// The journal of the job of that ref, if one is there now or was a while ago.
    pub fn journal(&self, id: &JobId) -> Option<Journal> {
        self.map().get(id).map(|entry| entry.journal().clone())
    }

    /// What `take` takes of the entry, as soon as there is one.
    async fn wait<T>(
        &self,
        id: &JobId,
        limit: Duration,
        take: impl Fn(&Entry<O>) -> T,
    ) -> Result<T, NoSuchJob> {
        let find = async {
            loop {
                let mut created = std::pin::pin!(self.0.created.notified());
                created.as_mut().enable();
                if let Some(taken) = self.map().get(id).map(&take) {
                    return taken;
                }
                created.await;
            }
        };
        tokio::time::timeout(limit, find).await.map_err(|_| NoSuchJob { id: id.clone() })
    }

    fn map(&self) -> MutexGuard<'_, HashMap<JobId, Entry<O>>> {
        self.0.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
