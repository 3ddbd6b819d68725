//! `thunkd` as a child process on a root of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use tempfile::TempDir;

use super::disk::DiskWatch;
use super::disk::disk_usage;
use super::leaks::left_of;
use super::loopback::unmount_below;
use super::process::Process;
use super::process::died_of;
use super::process::scrub;
use super::registry::TestRegistry;
use super::wait::poll;

const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Until a failpoint kills it.
const KILL_LIMIT: Duration = Duration::from_secs(60);
/// What has rules for collecting garbage names them so.
const GC_RULES: &str = "[[worker.oci.gcpolicy]]";

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// The text of `buildkitd.toml`.
    pub config: String,
    /// Further flags.
    pub flags: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The value of `THUNKD_FAILPOINT`, for the first start only.
    pub failpoint: Option<String>,
    /// Where its root is, if not in its own directory.
    pub root: Option<PathBuf>,
    /// What it takes for the ID of the boot. It has mounts of its own then. Needs root.
    pub boot: Option<String>,
}

/// A daemon, running or not, with its directory. It is killed when dropped, and its log is shown if
/// the test fails. If the test passes, it must have nothing left: see [`super::leaks`]. One that a test has stopped or
/// killed is started again for that, and so is one that a failpoint could still stop.
pub struct Daemon {
    process: Option<Process>,
    /// It started at least once, and nobody said that what it leaves is not to be looked at.
    is_judged: bool,
    /// The process has a failpoint, which may not have been reached yet.
    is_armed: bool,
    /// Its configuration has rules for collecting garbage. Without any it collects none: what a test looks for must not
    /// depend on how full the machine's disk is.
    collects: bool,
    options: DaemonOptions,
    /// From the last start until it could be connected to.
    start_time: Duration,
    /// Removed after the process has ended.
    directory: TempDir,
}

impl Daemon {
    /// A running daemon with an empty configuration.
    pub fn start() -> Self {
        Self::start_with(DaemonOptions::default())
    }

    pub fn start_with(options: DaemonOptions) -> Self {
        let mut daemon = Self::prepare(options);
        daemon.start_again();
        daemon
    }

    /// A daemon with its directory, not yet started.
    pub fn prepare(options: DaemonOptions) -> Self {
        let directory = TempDir::with_prefix("thunk-").expect("a temporary directory");
        for name in ["root", "home"] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        std::fs::write(directory.path().join("buildkitd.toml"), &options.config)
            .expect("write the configuration");
        Self {
            process: None,
            is_judged: false,
            is_armed: false,
            collects: options.config.contains(GC_RULES),
            options,
            start_time: Duration::ZERO,
            directory,
        }
    }

    /// Starts it on the root as it is, and waits until it can be connected to.
    pub fn start_again(&mut self) {
        let begun = Instant::now();
        self.spawn();
        let socket = self.socket();
        let mut ended = None;
        let connects = poll(START_LIMIT, || {
            ended = self.process.as_mut().and_then(Process::ended);
            ended.is_some() || UnixStream::connect(&socket).is_ok()
        });
        assert!(ended.is_none(), "thunkd ended at start: {ended:?}\n{}", self.log());
        assert!(connects, "thunkd can't be connected to:\n{}", self.log());
        self.start_time = begun.elapsed();
        self.is_judged = true;
    }

    /// Takes away the leak oracle at the end of the test, for a reason that the test gives.
    pub fn leaves_something(&mut self, why: &str) {
        eprintln!("what is left of thunkd is not looked at: {why}");
        self.is_judged = false;
    }

    /// What the leak oracle finds at the end of a test.
    fn judge(&mut self) {
        if !std::mem::take(&mut self.is_judged) {
            return;
        }
        assert!(self.process.is_none() || self.is_running(), "thunkd has ended by itself:\n{}", self.log());
        if self.is_armed {
            self.process = None;
        }
        if self.process.is_none() {
            self.start_again();
        }
        let left = left_of(self);
        self.is_judged = false;
        assert!(left.is_empty(), "left: {left:#?}\n{}", self.log());
    }

    /// Starts it without waiting: for starts that must fail, see [`Daemon::wait`].
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "thunkd runs already");
        // A socket left by a kill would connect to nobody, but exist.
        let _ = std::fs::remove_file(self.socket());
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let mut command = self.program();
        command
            .arg("--root")
            .arg(self.root())
            .arg("--addr")
            .arg(self.address())
            .arg("--config")
            .arg(self.directory.path().join("buildkitd.toml"))
            .arg("--debugaddr")
            .arg(format!("unix://{}", self.debug_socket().display()))
            .arg("--debug");
        if !self.collects {
            command.arg("--oci-worker-gc=false");
        }
        command.args(&self.options.flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        scrub(&mut command, &self.directory.path().join("home"));
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        let failpoint = self.options.failpoint.take();
        self.is_armed = failpoint.is_some();
        if let Some(failpoint) = failpoint {
            command.env("THUNKD_FAILPOINT", failpoint);
        }
        self.process = Some(Process::spawn(command));
    }

    fn program(&self) -> Command {
        let thunkd = env!("CARGO_BIN_EXE_thunkd");
        let Some(boot) = &self.options.boot else { return Command::new(thunkd) };
        let file = self.directory.path().join("boot_id");
        std::fs::write(&file, boot).expect("write the boot's ID");
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(file).arg(thunkd);
        command
    }

    /// The next start is in this boot.
    pub fn reboot(&mut self, boot: &str) {
        self.options.boot = Some(boot.to_owned());
    }

    /// Replaces the flags for the next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.options.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Arms failpoints for the next start.
    pub fn arm(&mut self, failpoint: &str) {
        self.options.failpoint = Some(failpoint.to_owned());
    }

    /// Replaces the configuration for the next start.
    pub fn configure(&mut self, config: &str) {
        self.collects = config.contains(GC_RULES);
        std::fs::write(self.directory.path().join("buildkitd.toml"), config)
            .expect("write the configuration");
    }

    /// `kill -9`, and nothing is left of the process.
    pub fn kill9(&mut self) {
        assert!(self.is_running(), "thunkd has ended by itself:\n{}", self.log());
        self.process = None;
    }

    /// Waits until a failpoint has killed it.
    pub fn wait_killed(&mut self) {
        let status = self.wait(KILL_LIMIT);
        assert!(died_of(status, Signal::KILL), "thunkd was not killed: {status}\n{}", self.log());
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = self.process.as_mut().expect("thunkd runs").wait(limit);
        let Some(status) = status else { panic!("thunkd still runs after {limit:?}:\n{}", self.log()) };
        self.process = None;
        status
    }

    /// SIGTERM. Panics unless it exits with success within five seconds.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(STOP_LIMIT);
        assert!(status.success(), "thunkd ended with {status}:\n{}", self.log());
    }

    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// `terminate` and `start_again`.
    pub fn restart(&mut self) {
        self.terminate();
        self.start_again();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    pub fn root(&self) -> PathBuf {
        self.options.root.clone().unwrap_or_else(|| self.directory.path().join("root"))
    }

    /// A directory that clients may use; it goes with the daemon's.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("thunkd.sock")
    }

    /// `unix://…`, as clients take it.
    pub fn address(&self) -> OsString {
        let mut address = OsString::from("unix://");
        address.push(self.socket());
        address
    }

    /// All that it wrote to stderr, earlier starts included.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The running process: its memory, for example.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("thunkd runs")
    }

    /// Bytes of memory that were resident at most since the start (or `forget_peak_memory`).
    pub fn peak_memory(&self) -> u64 {
        self.process().peak_memory()
    }

    /// How long the last start took until a connection was taken, to about 2 ms.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Bytes on disk below the root.
    pub fn disk_usage(&self) -> u64 {
        disk_usage(&self.root())
    }

    /// Watches the disk usage of the root from here on.
    pub fn watch_disk(&self) -> DiskWatch {
        DiskWatch::start(self.root())
    }

    /// All counters of the debug page: fsyncs, transactions, fetches and so on by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let request = b"GET /debug/counters HTTP/1.1\r\nHost: thunkd\r\nConnection: close\r\n\r\n";
        // It listens a moment after the daemon does.
        let mut stream = None;
        poll(START_LIMIT, || {
            stream = UnixStream::connect(self.debug_socket()).ok();
            stream.is_some()
        });
        let mut stream = stream.expect("connect to the debug page");
        let mut reply = String::new();
        stream
            .write_all(request)
            .and_then(|()| stream.read_to_string(&mut reply))
            .expect("read the debug page");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a reply");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).expect("counters are JSON")
    }

    /// One counter of the debug page; panics with those that are there if it isn't.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.counters();
        *counters.get(name).unwrap_or_else(|| panic!("no counter {name} in {counters:?}"))
    }

    fn debug_socket(&self) -> PathBuf {
        self.directory.path().join("debug.sock")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("thunkd.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("thunkd said:\n{}", self.log());
        } else {
            self.judge();
        }
        // It is killed, and leaves what all processes share mounted for the next start.
        self.process = None;
        unmount_below(self.directory.path());
    }
}

/// The part of `buildkitd.toml` that lets the daemon trust a registry over TLS.
pub fn trust(registry: &TestRegistry, directory: &Path) -> String {
    let file = directory.join(format!("ca-{}.pem", registry.host().replace(':', "-")));
    std::fs::write(&file, registry.ca_pem().expect("a registry over TLS")).expect("write the authority");
    format!("[registry.\"{}\"]\n  ca = [\"{}\"]\n", registry.host(), file.display())
}
