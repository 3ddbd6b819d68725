//! A child process that is signalled, waited for and measured.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Signal;

use super::wait::poll;

/// A running child; it is killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        Self { child: command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}")) }
    }

    /// Its status if it has ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        poll(limit, || {
            status = self.ended();
            status.is_some()
        });
        status
    }

    /// Its status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for the child")
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("signal the child");
    }

    /// Bytes of memory that were resident at most since the start (or `forget_peak_memory`).
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM")
    }

    /// Bytes of memory that are resident.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS")
    }

    /// Begins to measure the peak from here.
    pub fn forget_peak_memory(&self) {
        let file = format!("/proc/{}/clear_refs", self.pid().as_raw_nonzero());
        std::fs::write(file, "5").expect("reset the peak");
    }

    fn status(&self, name: &str) -> u64 {
        let file = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(file).expect("the child runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.expect("kilobytes") * 1024
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process ended by this signal.
pub fn died_of(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal.as_raw())
}

/// Takes out of the environment what would let the machine's set-up into a test.
pub fn scrub(command: &mut Command, home: &Path) {
    let proxies = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    for name in proxies.into_iter().flat_map(|name| [name.to_owned(), name.to_uppercase()]) {
        command.env_remove(name);
    }
    for name in [
        "BUILDKIT_HOST",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "RUST_LOG",
        "THUNKD_FAILPOINT",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("DOCKER_CONFIG", home.join(".docker"));
}
