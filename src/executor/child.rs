//! The first process of a sandbox, adopted when its runtime has left.
//!
//! The daemon is the *subreaper* of its descendants: what a runtime starts and leaves becomes the daemon's child, so
//! that its end and its exit code are known, and its PID is not used again before they are.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use rustix::process::WaitId;
use rustix::process::WaitIdOptions;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes orphans of this process's children its own children. Idempotent.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// A child of this process that something else started.
#[derive(Debug)]
pub struct Adopted {
    fd: AsyncFd<OwnedFd>,
}

impl Adopted {
    /// `pid` has to be a child that nobody else waits for.
    pub fn new(pid: Pid) -> io::Result<Adopted> {
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: an owned descriptor stays open and the same one for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Adopted { fd })
    }

    /// Waits for its end: its exit code, or 128+n if signal n killed it.
    ///
    /// Cancellation safe until it has returned, and to be called once.
    pub async fn wait(&self) -> io::Result<u32> {
        // Readable once it has ended.
        let _ready = self.fd.readable().await?;
        let id = WaitId::PidFd(rustix::fd::AsFd::as_fd(self.fd.get_ref()));
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED)?;
        let Some(status) = status else { return Err(io::ErrorKind::NotFound.into()) };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(u32::try_from(code).unwrap_or(u32::from(u8::MAX)))
    }

    /// Kills it, and with it everything in its PID namespace.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
