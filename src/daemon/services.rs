//! Everything that a daemon consists of, wired in the order of the rows.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::config::Config;
use super::config::HistoryConfig;
use super::debug;
use super::debug::Counters;
use super::execution;
use super::gc;
use super::platforms;
use super::snapshots;
use super::worker_id;
use crate::cache::Cache;
use crate::cache::ImageList;
use crate::cache::InvalidFilter;
use crate::content::ContentError;
use crate::content::ContentStore;
use crate::control::Builds;
use crate::control::ControlService;
use crate::control::Greeting;
use crate::control::history::History;
use crate::control::history::HistoryLimits;
use crate::db::Db;
use crate::db::DbError;
use crate::executor::ExecError;
use crate::executor::Executor;
use crate::executor::LogLimits;
use crate::executor::NetworkMode;
use crate::export::Exporters;
use crate::gateway::GatewayService;
use crate::identity::Identity;
use crate::identity::Version;
use crate::lease::Leases;
use crate::ops::Execs;
use crate::ops::Origins;
use crate::ops::Worker;
use crate::ops::llb::Limits;
use crate::registry::LaneLimits;
use crate::registry::RegistryClient;
use crate::registry::RegistryConfig;
use crate::registry::SessionCredentials;
use crate::session::Sessions;
use crate::snapshot::SnapshotError;
use crate::solver::Frontends;
use crate::solver::Jobs;
use crate::solver::KeyIndex;
use crate::solver::Solver;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// A store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not open the database {path:?}")]
    Db { path: PathBuf, source: DbError },
    #[error("could not open the blobs below {path:?}")]
    Content { path: PathBuf, source: ContentError },
    #[error("could not open the snapshots below {path:?}")]
    Snapshots { path: PathBuf, source: SnapshotError },
    #[error("could not read the index of cache keys")]
    Index(#[source] DbError),
    #[error("could not keep the name of the worker in {root:?}")]
    WorkerId { root: PathBuf, source: io::Error },
    #[error("could not clear up after processes of an earlier daemon")]
    Executor(#[source] ExecError),
    #[error("a filter of a garbage collection rule is not valid")]
    Filter(#[from] InvalidFilter),
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

/// The services of a daemon and the stores below them.
pub(super) struct Services {
    db: Db,
    cache: Cache,
    executor: Executor,
    builds: Builds,
    /// Ends the streams that have no end of their own, and turns the health.
    stop: CancellationToken,
    /// The solver, which builds wait for.
    solving: Tasks,
    /// Fetches, pushes and the like, which the solver waits for.
    work: Tasks,
    routes: Routes,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Services {
    /// Opens the stores and what stands on them, for the daemon of this identity.
    pub(super) async fn open(config: &Config, identity: Identity) -> Result<Services, OpenError> {
        let (solving, work) = (Tasks::new(), Tasks::new());
        let root = config.root.clone();
        let path = root.join("thunk.redb");
        // After a crash the whole of it is read.
        let opening = work.spawn_blocking("open the database", {
            let path = path.clone();
            move || Db::open(&path)
        });
        let db = opening.await?.map_err(|source| OpenError::Db { path, source })?;

        let sessions = Sessions::new(&work);
        let credentials = Arc::new(SessionCredentials::new());
        let registry = RegistryClient::new(registry_config(config), credentials, &work);

        let origins = Arc::new(Origins::new(registry.clone()));
        let path = root.join("content");
        let content = ContentStore::open(&path, db.clone(), Leases::new(), origins, work.clone())
            .map_err(|source| OpenError::Content { path, source })?;
        let snapshotter = snapshots::open(&root, config.worker.snapshotter, &work)?;
        let cache = Cache::new(db.clone(), content, snapshotter, work.clone(), &root);

        let images = ImageList::new(db.clone());
        let worker = Worker::new(cache.clone(), registry.clone(), images.clone(), work.clone());
        let executor =
            Executor::open(execution::options(config), work.clone()).map_err(OpenError::Executor)?;
        let logs = LogLimits::from_environment(|name| std::env::var(name).ok());
        let execs =
            Execs::new(cache.clone(), executor.clone(), logs, identity.platforms.clone(), work.clone());
        let worker = worker.executing(execs);
        let worker = match config.worker.max_parallelism {
            Some(limit) => worker.limited(limit),
            None => worker,
        };
        let exporters = Exporters::new(cache.content().clone(), registry, images, work.clone());
        let index = KeyIndex::open(db.clone()).map_err(OpenError::Index)?;
        cache.set_listener(Arc::new(index.clone()));
        cache.start_upkeep(config.worker.sync_interval);
        let solver = Solver::new(Arc::new(worker.clone()), index, sessions.clone(), solving.clone());
        let jobs = Jobs::new(solver, Frontends::default(), Limits::default(), solving.clone());

        gc::start(cache.clone(), gc::prunes(&identity.gc)?, &work);

        let HistoryConfig { max_age, max_entries, recorded } = config.history;
        let limits = HistoryLimits { max_age, max_entries, recorded };
        let history = History::open(cache.content().clone(), limits, &work);
        let entitlements = config.entitlements.iter().map(|e| e.name().to_owned()).collect();
        let builds =
            Builds::new(jobs.clone(), sessions.clone(), exporters, history, entitlements, Tasks::new());
        let stop = CancellationToken::new();
        let gateway = GatewayService::new(jobs, worker, identity.clone());
        let greeting = Greeting::new(identity);
        let control = ControlService::new(builds.clone(), sessions, cache.clone(), greeting, stop.clone());
        let routes = control.into_routes().add_service(gateway.into_server());
        Ok(Services { db, cache, executor, builds, stop, solving, work, routes })
    }

    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    pub(super) fn counters(&self) -> Counters {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let content = self.cache.content().stats();
        let steps = self.executor.totals();
        let mut counters = Counters::from([
            ("db_commits", self.db.commits()),
            ("db_fsyncs", self.db.fsyncs()),
            ("db_written_bytes", self.db.written_bytes()),
            ("content_fetched_bytes", content.fetched_bytes),
            ("content_waited_bytes", content.waited_bytes),
            ("content_cached_bytes", content.cached_bytes),
            ("content_streamed_bytes", content.streamed_bytes),
            ("content_fetches", content.fetches),
            ("content_joined", content.joined),
            ("content_opens", content.opens),
            ("content_probes", content.probes),
            ("content_proofs", content.proofs),
            ("content_fsyncs", content.fsyncs),
            ("content_collected_bytes", content.collected_bytes),
            ("content_leases", count(self.cache.content().leases().len())),
            ("steps", steps.steps),
            ("steps_cpu_milliseconds", steps.cpu_nanos / 1_000_000),
            ("steps_read_bytes", steps.read_bytes),
            ("steps_written_bytes", steps.write_bytes),
            ("steps_oom_killed", steps.oom_kills),
            ("step_peak_memory_bytes", steps.peak_memory),
            ("snapshot_syncs", self.cache.syncs()),
            ("snapshots_unsynced", count(self.cache.unsynced())),
            ("tasks", count(self.solving.running() + self.work.running())),
        ]);
        debug::process(&mut counters);
        counters
    }

    /// Cancels every build, and waits until each has told its client and is recorded.
    pub(super) async fn cancel_builds(&self) {
        self.stop.cancel();
        self.builds.shutdown().await;
    }

    /// Waits for the tasks and makes the last writes durable.
    pub(super) async fn close(&self) {
        self.solving.shutdown().await;
        self.work.shutdown().await;
        self.db.close();
    }
}

/// Who the daemon of this configuration is. Needs no store.
pub(super) fn identity(config: &Config) -> Result<Identity, OpenError> {
    let root = &config.root;
    let worker = worker_id::worker_id(root);
    Ok(Identity {
        worker: worker.map_err(|source| OpenError::WorkerId { root: root.clone(), source })?,
        labels: labels(config),
        platforms: match &config.worker.platforms {
            listed if listed.is_empty() => platforms::of_this_machine(),
            listed => listed.clone(),
        },
        gc: gc::policies(&config.worker.gc, gc::disk_size(root)),
        version: Version::default(),
    })
}

fn registry_config(config: &Config) -> RegistryConfig {
    let mut lanes = LaneLimits::default();
    if let Some(limit) = config.registry_concurrency {
        (lanes.download, lanes.upload) = (limit.get(), limit.get());
    }
    RegistryConfig {
        hosts: config.registries.clone(),
        lanes,
        retry: config.registry_retry,
        patience: config.registry_patience,
    }
}

/// The labels that clients know, below those that were configured.
fn labels(config: &Config) -> BTreeMap<String, String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let snapshotter = config.worker.snapshotter.name();
    let network_name = match execution::network(&config.worker.exec) {
        NetworkMode::Host => "host",
        NetworkMode::Cni { .. } => "cni",
    };
    let known = [
        ("executor", "oci"),
        ("oci.process-mode", "sandbox"),
        // Steps are confined by AppArmor, or not.
        ("selinux.enabled", "false"),
        ("snapshotter", snapshotter),
        ("hostname", &host),
        ("network", network_name),
    ];
    let known =
        known.map(|(key, value)| (format!("org.mobyproject.buildkit.worker.{key}"), value.to_owned()));
    known.into_iter().chain(config.worker.labels.clone()).collect()
}
