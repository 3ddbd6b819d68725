//! Why an exec op failed.

use super::super::left::FailedMounts;
use super::super::operate::OpError;
use crate::cache::CacheError;
use crate::executor::ExecError;
use crate::oci::Platform;
use crate::session::SessionError;

#[derive(Debug, thiserror::Error)]
pub enum ExecOpError {
    /// A process was started, or nearly.
    #[error("{source}{}", foreign.as_ref().map(emulation).unwrap_or_default())]
    Process {
        source: ExecError,
        mounts: Box<FailedMounts>,
        /// What the process is of, if this machine may have nothing that runs it.
        foreign: Option<Platform>,
    },
    #[error("a command takes root to run, and the daemon is not root's: run it as root")]
    NotRoot,
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Nobody who asks for the build has it.
    #[error("secret {id}: not found")]
    SecretMissing { id: String },
    #[error("secret {id} can't be the value of {name}: it has a NUL byte or is no UTF-8")]
    SecretNotText { id: String, name: String },
    /// Nobody who asks for the build forwards an agent of that name.
    #[error("no SSH key {id:?} forwarded from the client")]
    AgentMissing { id: String },
    #[error("failed to parse IP {address}")]
    ExtraHost { address: String },
    #[error("device {name:?} is not known: no CDI devices are configured")]
    Device { name: String },
    #[error("can't make the socket of the agent {id:?}: {source}")]
    Socket { id: String, source: std::io::Error },
}

impl ExecOpError {
    /// The code that the process ended with.
    pub fn exit_code(&self) -> Option<u32> {
        match self {
            ExecOpError::Exec(error) | ExecOpError::Process { source: error, .. } => error.exit_code(),
            _ => None,
        }
    }

    /// What is left of the process's file systems.
    pub fn failed_mounts(&self) -> Option<&FailedMounts> {
        match self {
            ExecOpError::Process { mounts, .. } => Some(mounts),
            _ => None,
        }
    }
}

fn emulation(platform: &Platform) -> String {
    let host = Platform::host();
    format!(" (it is of platform {platform}: on {host} that takes an emulator which binfmt_misc knows)")
}

pub(super) fn of_exec(error: ExecError) -> OpError {
    match error {
        ExecError::Cancelled(_) => OpError::Cancelled,
        error => OpError::failed(ExecOpError::from(error)),
    }
}

impl From<ExecOpError> for OpError {
    fn from(error: ExecOpError) -> OpError {
        match error {
            ExecOpError::Exec(error) => of_exec(error),
            ExecOpError::Cache(CacheError::Cancelled) => OpError::Cancelled,
            error => OpError::failed(error),
        }
    }
}
