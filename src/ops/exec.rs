//! Exec: runs a process on file systems, some of which are its outputs.
//!
//! # Invariants
//!
//! - What the process wrote becomes a result only if it ended well. Everything else that was made for it goes; if
//!   the process failed, with the last one who has its error.
//! - Secrets and the sockets of agents are in no result and in no key.
//!
//! # Cancellation
//!
//! A run is an owned task: when its caller leaves, the process is killed, and its file systems are given up once
//! nothing of it is left.

mod cache_mount;
mod error;
mod key;
mod log;
mod points;
mod prepare;
mod process;
mod secret;
mod ssh;

use std::sync::Arc;

pub use error::ExecOpError;
pub use key::cache_map;

use super::graph::Vertex;
use super::op::ExecOp;
use super::operate::OpError;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::content::FetchError;
use crate::ctx::Ctx;
use crate::executor::ExecError;
use crate::executor::Executor;
use crate::executor::LogLimits;
use crate::oci::Platform;
use crate::task::Tasks;

use cache_mount::CacheMounts;
use log::StepLog;
use prepare::Prepared;

/// Runs exec ops. Clones share cache mounts that are in use.
#[derive(Clone, Debug)]
pub struct Execs {
    cache: Cache,
    executor: Executor,
    cache_mounts: CacheMounts,
    logs: LogLimits,
    /// What the node is known to run, besides programs of its own architecture.
    platforms: Arc<[Platform]>,
    tasks: Tasks,
}

impl Execs {
    pub fn new(
        cache: Cache,
        executor: Executor,
        logs: LogLimits,
        platforms: Vec<Platform>,
        tasks: Tasks,
    ) -> Execs {
        let cache_mounts = CacheMounts::new(cache.clone());
        Execs { cache, executor, cache_mounts, logs, platforms: platforms.into(), tasks }
    }

    /// Runs the op, for one result per output.
    ///
    /// Cancellation safe.
    pub async fn run(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        op: &ExecOp,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        can_run(&vertex.platform)?;
        takes_root(rustix::process::geteuid().is_root())?;
        let work = ctx.child();
        let _leaving = work.cancel().clone().drop_guard();
        let (execs, vertex, op, inputs) = (self.clone(), vertex.clone(), op.clone(), inputs.to_vec());
        let run = async move { Box::pin(execs.run_owned(&work, &vertex, &op, &inputs)).await };
        self.tasks.spawn("exec op", run).await.map_err(OpError::failed)?
    }

    /// Forgets the cache mounts of the op, for a build that ignores the cache.
    ///
    /// Cancellation safe.
    pub async fn forget_cache_mounts(&self, op: &ExecOp) -> Result<(), OpError> {
        for mount in &op.mounts {
            if let Some(id) = mount.cache_id() {
                self.cache_mounts.forget(id, mount.input.is_some()).await.map_err(ExecOpError::from)?;
            }
        }
        Ok(())
    }

    async fn run_owned(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        op: &ExecOp,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        let mut prepared = Prepared::new(self, ctx, op, inputs).await?;
        let secrets = secret::environment(ctx, &op.secret_env).await?;
        let process = process::describe(op, vertex.options.resources.as_ref(), &mut prepared, secrets)?;
        let log = Arc::new(StepLog::new(ctx.progress().cloned(), self.logs));
        let done = self.executor.run(ctx, process, log.clone()).await;
        match done {
            Ok(_) => {}
            Err(ExecError::Cancelled(_)) => return Err(OpError::Cancelled),
            Err(source) => {
                log.flush();
                let mounts = Box::new(prepared.fail(op, inputs));
                let foreign = is_foreign(&vertex.platform, &self.platforms).then(|| vertex.platform.clone());
                return Err(OpError::failed(ExecOpError::Process { source, mounts, foreign }));
            }
        }
        prepared.commit(op).await
    }
}

/// Only programs of this system can be run. Those of another machine are left to the kernel, which may have an
/// emulator, and an image may say less of what is in it than is true.
fn can_run(platform: &Platform) -> Result<(), OpError> {
    let host = Platform::host();
    if platform.os == host.os {
        return Ok(());
    }
    Err(OpError::Unsupported { what: format!("running a process of platform {platform} on {host}") })
}

/// Whether programs of the platform need an emulator that is not known to be there: it is not `listed`.
fn is_foreign(platform: &Platform, listed: &[Platform]) -> bool {
    let host = Platform::host();
    let is_own = platform.architecture == host.architecture
        || (host.architecture == "amd64" && platform.architecture == "386");
    !is_own && !listed.contains(platform)
}

/// Told before anything is fetched that nobody could use.
fn takes_root(is_root: bool) -> Result<(), OpError> {
    if is_root { Ok(()) } else { Err(ExecOpError::NotRoot.into()) }
}

/// The error of an input that could not be used: one whose bytes are nowhere to be had can be made anew.
fn of_input(input: Option<usize>, error: CacheError) -> OpError {
    let digests = match &error {
        CacheError::Cancelled => return OpError::Cancelled,
        CacheError::NeedsRemoteProvider { digests } => digests.clone(),
        CacheError::Fetch(FetchError::Gone { digest, .. }) => vec![*digest],
        CacheError::Fetch(FetchError::Cancelled { .. }) => return OpError::Cancelled,
        _ => return OpError::failed(ExecOpError::from(error)),
    };
    match input {
        Some(input) => OpError::InputGone { input, digests, source: Arc::new(error) },
        None => OpError::failed(ExecOpError::from(error)),
    }
}

#[cfg(test)]
mod tests;
