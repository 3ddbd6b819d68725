//! The real containerd, which reads the images that are made here.

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::process::Process;
use super::process::scrub;
use super::tools::tool;
use super::wait::poll;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running containerd on a root of its own, and its `ctr`.
pub struct Containerd {
    /// Held: it ends with this.
    _process: Process,
    ctr: PathBuf,
    /// Removed after the process has ended.
    directory: TempDir,
}

impl Containerd {
    /// `None` where it isn't installed, see [`tool`], or where the test isn't root.
    pub fn start() -> Option<Self> {
        let (program, ctr) = (tool("containerd")?, tool("ctr")?);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED, NOT CHECKED: containerd takes root");
            return None;
        }
        let directory = TempDir::with_prefix("containerd-").expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock"),
            path("ttrpc.sock"),
        );
        std::fs::write(path("config.toml"), config).expect("write the configuration");
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log")).expect("create the log"));
        scrub(&mut command, directory.path());
        let containerd = Self { _process: Process::spawn(command), ctr, directory };
        let serves = poll(START_LIMIT, || containerd.ctr(&["version"]).status.success());
        assert!(serves, "containerd does not start:\n{}", containerd.log());
        Some(containerd)
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(self.directory.path().join("containerd.sock"));
        command.args(arguments).stdin(Stdio::null()).output().expect("run ctr")
    }

    /// Runs `ctr`, which has to succeed, and returns what it wrote.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.ctr(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {said}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A place for files of a test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
