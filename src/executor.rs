//! Runs a process in a root file system.
//!
//! The installed `runc` or `crun` makes the sandbox; this module describes it, waits for the process, and
//! clears up. It knows nothing of layers: the root is a directory that the caller keeps mounted.
//!
//! # Invariants
//!
//! - When [`Executor::run`] has returned, nothing of the process is left that anybody could meet: no process, no mount
//!   of its root or of another directory. Its cgroup and its own files in memory are removed by the daemon soon
//!   after ([`Executor::cleared`]), and at the latest before it ends.
//! - Secrets lie in memory only.
//! - Nothing of the sandbox stays in the root: mount points that were made for it are removed again.
//!
//! # Cancellation
//!
//! A run is an owned task. When its caller leaves or its request is cancelled, everything of the process is killed,
//! and the task goes on until all is cleared up.
//!
//! # Crash consistency
//!
//! After a kill of the daemon, processes go on without it. The next [`Executor::open`] on the same directory kills
//! them and clears up before anything new is run.

mod bundle;
mod cgroup;
mod child;
mod clip;
mod error;
mod hosts;
mod mountinfo;
mod network;
mod process;
mod reaper;
mod run;
mod runtime;
mod samples;
mod scratch;
mod seccomp;
mod security;
mod spec;
mod stubs;
mod totals;
mod user;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

pub use clip::Clip;
pub use clip::LogLimits;
pub use error::ExecError;
pub use error::MountError;
pub use hosts::OWN_FILES;
pub use process::Exit;
pub use process::ExtraHost;
pub use process::Hold;
pub use process::Limits;
pub use process::MountSource;
pub use process::Network;
pub use process::Output;
pub use process::Process;
pub use process::ProcessMount;
pub use process::Security;
pub use process::Ulimit;
pub use scratch::Scratch;
pub use totals::StepTotals;

use crate::ctx::Ctx;
use crate::task::Tasks;

/// Runs processes. Clones are the same executor.
#[derive(Clone, Debug)]
pub struct Executor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    setting: Arc<run::Setting>,
    runtime: runtime::Runtime,
    reaper: reaper::Reaper,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ExecutorOptions {
    /// Where bundles lie while their processes run. The executor's own.
    pub directory: PathBuf,
    /// A program's name or path, instead of the runtimes that are looked for.
    pub runtime: Option<String>,
    pub network: NetworkMode,
    pub dns: Dns,
    /// For processes that name none; empty for the root of the hierarchy.
    pub cgroup_parent: String,
    pub apparmor_profile: Option<String>,
}

/// What [`Network::Sandbox`] is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum NetworkMode {
    /// The host's.
    #[default]
    Host,
    /// A namespace of its own, set up by the plugins that a configuration (`.conf`, `.json` or `.conflist`) names.
    Cni { config: PathBuf, plugins: PathBuf },
}

/// What replaces the entries of the host's `resolv.conf`, where it is not empty.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    pub search_domains: Vec<String>,
}

impl Executor {
    /// Clears up what an executor with the same directory left when it was killed. The runtime is looked for
    /// when it is first needed.
    ///
    /// Blocks: to be called before the daemon serves.
    pub fn open(options: ExecutorOptions, tasks: Tasks) -> Result<Executor, ExecError> {
        fs::create_dir_all(&options.directory).map_err(ExecError::io("create", &options.directory))?;
        // Mount points are looked for by the path that the kernel tells.
        let directory =
            options.directory.canonicalize().map_err(ExecError::io("resolve", &options.directory))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
            .map_err(ExecError::io("protect", &directory))?;
        child::adopt_orphans().map_err(ExecError::io("adopt the orphans of", "this process"))?;
        let cgroups = cgroup::Cgroups::detect().map_err(ExecError::io("read", "/proc/self/mountinfo"))?;
        bundle::clear_leftovers(&directory, &cgroups)?;
        network::clear_leftovers(&directory, &options.network, &tasks)?;
        scratch::clear_leftovers(&directory)?;
        let runtime = runtime::Runtime::new(options.runtime.clone());
        let options = ExecutorOptions { directory, ..options };
        let (seccomp, clearing, totals) =
            (run::has_seccomp(), run::Clearing::default(), totals::Totals::default());
        let bundles = bundle::Bundles::new(&options.directory);
        let setting = run::Setting { options, bundles, cgroups, seccomp, clearing, totals, tasks };
        Ok(Executor(Arc::new(Inner {
            setting: Arc::new(setting),
            runtime,
            reaper: reaper::Reaper::default(),
        })))
    }

    /// What all processes used so far.
    pub fn totals(&self) -> StepTotals {
        self.0.setting.totals.get()
    }

    /// Runs a process to its end. An exit code that is not valid is [`ExecError::Exit`].
    ///
    /// Cancellation safe: a process whose caller leaves is killed, with all that it started.
    pub async fn run(&self, ctx: &Ctx, process: Process, output: Arc<dyn Output>) -> Result<Exit, ExecError> {
        ctx.check()?;
        run::validate(&process)?;
        let program = self.0.runtime.program()?;
        let cancel = ctx.cancel().child_token();
        let _leaving = cancel.clone().drop_guard();
        let inner = self.0.clone();
        let tasks = &self.0.setting.tasks;
        // The daemon's end is the end of everything that it runs.
        let stop = tasks.token().clone();
        let work = async move {
            let run = Box::pin(run::run(&inner.setting, program, process, output, cancel.clone()));
            let mut run = run;
            let done = tokio::select! {
                done = &mut run => done,
                () = stop.cancelled() => {
                    cancel.cancel();
                    run.await
                }
            };
            inner.reaper.sweep();
            done
        };
        tasks.spawn("exec", work).await?
    }

    /// Waits until nothing at all is left of processes that have ended.
    ///
    /// Cancellation safe.
    pub async fn cleared(&self) {
        self.0.setting.clearing.ended().await;
    }

    /// A directory for sockets and the like that are shown to processes: the executor's own, emptied at start.
    pub fn scratch(&self) -> Result<Scratch, ExecError> {
        Scratch::create(&self.0.setting.options.directory)
    }
}

#[cfg(test)]
mod tests;
