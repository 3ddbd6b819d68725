//! Why a process could not be run, or ended badly.

use std::io;
use std::path::PathBuf;

use crate::ctx::Cancelled;
use crate::fs::FsError;
use crate::task::TaskFailed;

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Nothing is installed that could run a process in a sandbox.
    #[error(
        "no OCI runtime: {} can't be found; install one (Debian: `apt-get install runc`, or `crun`)",
        tried.join(", ")
    )]
    RuntimeMissing { tried: Vec<String> },
    /// The process ran, and ended with a code that is not valid.
    #[error("process {} did not complete successfully: {}", quote(args), ending(*code, *oom_killed))]
    Exit {
        args: Vec<String>,
        /// 128+n for signal n.
        code: u32,
        /// The kernel killed a part of it since the cgroup's memory ran out.
        oom_killed: bool,
    },
    /// The runtime could not start it, for instance since the program is not in the root.
    #[error("process {} did not complete successfully: exit code: {code}: {reason}", quote(args))]
    NotStarted {
        args: Vec<String>,
        /// Of the runtime.
        code: u32,
        reason: String,
    },
    #[error("unable to find user {user}: {reason}")]
    User { user: String, reason: String },
    #[error("working directory {cwd} can't be made: {source}")]
    WorkingDirectory { cwd: String, source: FsError },
    #[error("failed to mount {dest}: {source}")]
    Mount { dest: String, source: MountError },
    #[error("invalid process: {reason}")]
    Invalid { reason: String },
    #[error("limits of {what} are asked for, and no cgroup is mounted that could hold them")]
    NoCgroups { what: &'static str },
    #[error("network of the process can't be set up: {reason}")]
    Network { reason: String },
    #[error("can't {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Nothing is there, or it leads out.
    #[error("{selector:?}: {source}")]
    Selector { selector: String, source: rustix::io::Errno },
    #[error("can't {operation}: {source}")]
    System { operation: &'static str, source: rustix::io::Errno },
}

impl ExecError {
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> ExecError {
        let path = path.into();
        move |source| ExecError::Io { operation, path, source }
    }

    /// The code that the process, or the runtime in its place, ended with.
    pub fn exit_code(&self) -> Option<u32> {
        match self {
            ExecError::Exit { code, .. } | ExecError::NotStarted { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn ending(code: u32, oom_killed: bool) -> String {
    // What clients know a lack of memory by.
    if oom_killed { "cannot allocate memory".to_owned() } else { format!("exit code: {code}") }
}

/// Arguments as one string literal.
fn quote(args: &[String]) -> String {
    format!("{:?}", args.join(" "))
}
