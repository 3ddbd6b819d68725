//! The real `buildkitd`, as the referee of the test's own client and for tests that compare.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::process::Process;
use super::process::scrub;
use super::tools::tool;
use super::wait::poll;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running buildkitd on a root of its own; it takes root and `runc`.
pub struct Buildkitd {
    process: Process,
    /// Removed after the process has ended.
    directory: TempDir,
}

impl Buildkitd {
    /// With the text of its `buildkitd.toml`. `None` where it isn't installed, see [`tool`], or where
    /// the test isn't root.
    pub fn start(config: &str) -> Option<Self> {
        let (program, _) = (tool("buildkitd")?, tool("runc")?);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED, NOT CHECKED: buildkitd takes root");
            return None;
        }
        let directory = TempDir::with_prefix("buildkitd-").expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("buildkitd.toml"), config).expect("write the configuration");
        let mut command = Command::new(program);
        command
            .args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"])
            .args(["--oci-worker-net=host", "--root"])
            .arg(file("root"))
            .arg("--config")
            .arg(file("buildkitd.toml"))
            .arg("--addr")
            .arg(format!("unix://{}", file("buildkitd.sock").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(file("log")).expect("create the log"));
        scrub(&mut command, directory.path());
        let mut buildkitd = Self { process: Process::spawn(command), directory };
        let socket = buildkitd.socket();
        let process = &mut buildkitd.process;
        let connects =
            poll(START_LIMIT, || process.ended().is_some() || UnixStream::connect(&socket).is_ok());
        assert!(connects && process.ended().is_none(), "buildkitd does not start:\n{}", buildkitd.log());
        Some(buildkitd)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("buildkitd.sock")
    }

    /// `unix://…`, as clients take it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn log(&self) -> String {
        let log = std::fs::read(self.directory.path().join("log"));
        log.map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }
}

impl Drop for Buildkitd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("buildkitd said:\n{}", self.log());
        }
    }
}
