//! A daemon under measurement: ours or the peer.

use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::Client;
use crate::harness::buildctl::Buildctl;
use crate::harness::poll;
use crate::harness::tool;

/// Both daemons get the same: nothing is collected while something is measured.
const CONFIGURATION: &str = "[worker.oci]\n  gc = false\n";

/// Milliseconds of a tick in `/proc`, which is the same on every machine.
const TICK: f64 = 10.0;

/// Which daemon, and where its program is.
pub struct Kind {
    pub name: &'static str,
    pub program: PathBuf,
    flags: &'static [&'static str],
}

impl Kind {
    /// Ours, and the peer unless it is left out; `None` if a program is missing.
    pub fn all(is_alone: bool) -> Option<Vec<Kind>> {
        tool("buildctl")?;
        let ours = std::env::var_os("THUNK_BENCH_THUNKD").map(PathBuf::from);
        let ours = ours.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_thunkd")));
        let mut kinds = vec![Kind { name: "thunkd", program: ours, flags: &[] }];
        if !is_alone {
            let flags = &["--oci-worker=true", "--containerd-worker=false", "--oci-worker-net=host"];
            kinds.push(Kind { name: "buildkitd", program: tool("buildkitd")?, flags });
        }
        Some(kinds)
    }

    /// A running daemon on an empty root, on a disk that has nothing left to write.
    pub async fn start(&self) -> Peer {
        let directory = TempDir::with_prefix("bench-").expect("a temporary directory");
        std::fs::write(directory.path().join("buildkitd.toml"), CONFIGURATION)
            .expect("write the configuration");
        let mut peer = Peer { directory, child: None, started: Duration::ZERO };
        rustix::fs::sync();
        peer.start_again(self).await;
        peer
    }
}

/// A daemon on a root of its own, killed when dropped.
pub struct Peer {
    directory: TempDir,
    child: Option<Child>,
    /// From the start of the process to the first reply.
    pub started: Duration,
}

impl Peer {
    /// Starts on the root as it is and waits for the first reply to a client.
    pub async fn start_again(&mut self, kind: &Kind) {
        let log = std::fs::File::create(self.directory.path().join("log")).expect("create the log");
        let begin = Instant::now();
        let child = Command::new(&kind.program)
            .arg("--root")
            .arg(self.root())
            .arg("--addr")
            .arg(self.address())
            .arg("--config")
            .arg(self.directory.path().join("buildkitd.toml"))
            .args(kind.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        self.child = Some(child);
        self.first_reply().await;
        self.started = begin.elapsed();
    }

    async fn first_reply(&self) {
        let path = self.socket();
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(channel) = connect(&path).await {
                let mut client = thunk::proto::control::control_client::ControlClient::new(channel);
                if client.info(thunk::proto::control::InfoRequest {}).await.is_ok() {
                    return;
                }
            }
            assert!(Instant::now() < limit, "no reply:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("daemon.sock")
    }

    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn client(&self) -> Buildctl {
        Buildctl::at(self.address()).expect("buildctl is there")
    }

    /// A client in this process: what it measures is the daemon alone.
    pub async fn direct(&self) -> Client {
        Client::at(self.socket()).await
    }

    /// Milliseconds that `buildctl` takes to build and export, itself included.
    pub async fn build(&self, definition: &[u8], outputs: &[&str]) -> f64 {
        let client = self.client();
        let begin = Instant::now();
        client.build(definition, outputs).await.success();
        begin.elapsed().as_secs_f64() * 1e3
    }

    /// Where its root is.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub fn scratch(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Milliseconds that its threads have run since the start, in the kernel and outside of it.
    pub fn processor_time(&self) -> f64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        // What follows the name of the program, which may contain anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().filter_map(|field| field.parse::<f64>().ok()).sum();
        ticks * TICK
    }

    /// MiB resident at most since the start, or since [`Peer::forget_peak`].
    pub fn peak(&self) -> f64 {
        self.memory("VmHWM")
    }

    /// Begins to measure the peak from here.
    pub fn forget_peak(&self) {
        let pid = self.child.as_ref().expect("it runs").id();
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("reset the peak");
    }

    /// MiB resident now (`VmRSS`) or at most (`VmHWM`).
    pub fn memory(&self, line: &str) -> f64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let kilobytes = status
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok());
        let kilobytes: f64 = kilobytes.expect("kilobytes");
        kilobytes / 1024.0
    }

    /// SIGTERM, and SIGKILL if that takes long.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
        if !poll(Duration::from_secs(20), || !matches!(child.try_wait(), Ok(None))) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn connect(path: &std::path::Path) -> Result<tonic::transport::Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    tonic::transport::Endpoint::from_static("http://daemon").connect_with_connector(connector).await
}
