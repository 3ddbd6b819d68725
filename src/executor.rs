//! Runs a process in a root file system.
//!
//! The installed `runc` or `crun` makes the sandbox; this module describes it, waits for the process, and
//! clears up. It knows nothing of layers: the root is a directory that the caller keeps mounted.

mod error;
mod process;
mod samples;

use std::path::PathBuf;
use std::sync::Arc;

pub use error::ExecError;
pub use error::MountError;
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
pub use samples::CpuUsage;
pub use samples::IoUsage;
pub use samples::MemoryUsage;
pub use samples::Sample;

use crate::ctx::Ctx;
use crate::task::Tasks;

/// Runs processes. Clones are the same executor.
#[derive(Clone, Debug)]
pub struct Executor {
    #[expect(dead_code, reason = "signatures first: the body lands next")]
    options: Arc<ExecutorOptions>,
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
    pub fn open(options: ExecutorOptions, _tasks: Tasks) -> Result<Executor, ExecError> {
        Ok(Executor { options: Arc::new(options) })
    }

    /// Runs a process to its end. An exit code that is not valid is [`ExecError::Exit`].
    ///
    /// Cancellation safe: a process whose caller leaves is killed, with all that it started.
    #[expect(clippy::todo, reason = "signatures first: the body lands next")]
    pub async fn run(
        &self,
        _ctx: &Ctx,
        _process: Process,
        _output: Arc<dyn Output>,
    ) -> Result<Exit, ExecError> {
        todo!()
    }
}
