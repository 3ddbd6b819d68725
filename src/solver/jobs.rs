//! [`Jobs`]: the builds of the daemon, by the ref that their client chose.
//!
//! A client calls `Solve`, `Status` and the bridge at the same time, so that a call may come before
//! the job that it names: [`Jobs::get`] waits for it. A job that has ended is found for ten seconds
//! more, by readers of its status that come late.
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
use crate::task::Tasks;

/// How long an ended job can still be found.
const LINGER: Duration = Duration::from_secs(10);

/// Who waits for a job to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// A call on the bridge: three seconds.
    Bridge,
    /// A reader of the status: six seconds.
    Status,
}

impl Wait {
    fn limit(self) -> Duration {
        match self {
            Wait::Bridge => Duration::from_secs(3),
            Wait::Status => Duration::from_secs(6),
        }
    }
}

/// Nobody created the job while its caller waited.
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

struct Entry<O: Operate> {
    job: Job<O>,
    live: bool,
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
        if map.get(&id).is_some_and(|entry| entry.live) {
            return Err(JobExists { id });
        }
        let inner = &self.0;
        let job = Job::new(spec, inner.solver.clone(), Arc::clone(&inner.frontends), inner.limits);
        map.insert(id, Entry { job: job.clone(), live: true });
        drop(map);
        inner.created.notify_waiters();
        let jobs = self.clone();
        let ended = job.clone();
        Ok(RunningJob::new(job, move || jobs.linger(ended)))
    }

    /// Marks an ended job, and removes it in a while.
    fn linger(&self, job: Job<O>) {
        if let Some(entry) = self.map().get_mut(job.id()).filter(|entry| entry.job.same(&job)) {
            entry.live = false;
        }
        // An owner may be dropped with the runtime, when nobody reads any more.
        if Handle::try_current().is_err() {
            return self.remove(&job);
        }
        let (jobs, token) = (self.clone(), self.0.tasks.token().clone());
        drop(self.0.tasks.spawn("job lingers", async move {
            let _ = token.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            jobs.remove(&job);
        }));
    }

    fn remove(&self, job: &Job<O>) {
        let mut map = self.map();
        if map.get(job.id()).is_some_and(|entry| entry.job.same(job)) {
            map.remove(job.id());
        }
    }

    /// The job of that ref, waiting a while for it to be created.
    ///
    /// Cancellation safe.
    pub async fn get(&self, id: &JobId, wait: Wait) -> Result<Job<O>, NoSuchJob> {
        let find = async {
            loop {
                let mut created = std::pin::pin!(self.0.created.notified());
                created.as_mut().enable();
                if let Some(job) = self.find(id) {
                    return job;
                }
                created.await;
            }
        };
        tokio::time::timeout(wait.limit(), find).await.map_err(|_| NoSuchJob { id: id.clone() })
    }

    /// The job of that ref, if it is there now.
    pub fn find(&self, id: &JobId) -> Option<Job<O>> {
        self.map().get(id).map(|entry| entry.job.clone())
    }

    /// The jobs that have not ended.
    pub fn live(&self) -> Vec<Job<O>> {
        self.map().values().filter(|entry| entry.live).map(|entry| entry.job.clone()).collect()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<JobId, Entry<O>>> {
        self.0.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
