//! The real `buildctl`, as a child process.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::daemon::Daemon;
use super::process::scrub;
use super::tools::tool;

/// A client of one address with a Docker configuration of its own.
pub struct Buildctl {
    program: PathBuf,
    address: OsString,
    home: TempDir,
}

/// How a run of it ended.
#[derive(Debug)]
pub struct Run {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// What `--metadata-file` holds: the exporter's response. Null without one.
    pub metadata: Value,
}

impl Run {
    /// Panics with all that it said unless it succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "buildctl ended with {}:\n{}", self.status, self.stderr);
        self
    }

    /// Panics if it succeeded; its stderr otherwise.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(!self.status.success(), "buildctl succeeded:\n{}", self.stderr);
        self.stderr
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Buildctl {
    /// `None` where it isn't installed; see [`tool`].
    pub fn of(daemon: &Daemon) -> Option<Self> {
        Self::at(daemon.address())
    }

    pub fn at(address: impl Into<OsString>) -> Option<Self> {
        let home = TempDir::with_prefix("buildctl-").expect("a temporary directory");
        std::fs::create_dir(home.path().join(".docker")).expect("a directory");
        Some(Self { program: tool("buildctl")?, address: address.into(), home })
    }

    /// Writes credentials into its Docker configuration, in place of all that are there.
    pub fn login(&self, credentials: &[(&str, &str, &str)]) {
        let auths = credentials.iter().map(|(host, user, password)| {
            (host.to_string(), json!({"auth": STANDARD.encode(format!("{user}:{password}"))}))
        });
        let config = json!({"auths": auths.collect::<serde_json::Map<_, _>>()});
        let file = self.home.path().join(".docker/config.json");
        std::fs::write(file, config.to_string()).expect("write the Docker configuration");
    }

    /// `buildctl build` of an LLB definition with one `--output` for each of `outputs`.
    pub async fn build(&self, definition: &[u8], outputs: &[&str]) -> Run {
        let outputs = outputs.iter().flat_map(|output| ["--output", output]);
        self.build_with(definition, outputs).await
    }

    /// `buildctl build` of an LLB definition with any further arguments.
    pub async fn build_with<A: AsRef<OsStr>>(
        &self,
        definition: &[u8],
        arguments: impl IntoIterator<Item = A>,
    ) -> Run {
        let directory = TempDir::new_in(self.home.path()).expect("a temporary directory");
        let metadata = directory.path().join("metadata.json");
        let mut all: Vec<OsString> = vec!["build".into(), "--progress=plain".into()];
        all.extend(["--metadata-file".into(), metadata.clone().into_os_string()]);
        all.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        let mut run = self.run(all, definition).await;
        if let Ok(text) = std::fs::read(&metadata) {
            run.metadata = serde_json::from_slice(&text).expect("metadata is JSON");
        }
        run
    }

    /// Any command. Dropping the future kills it.
    pub async fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, stdin: &[u8]) -> Run {
        let mut command = std::process::Command::new(&self.program);
        command.arg("--addr").arg(&self.address).args(arguments);
        scrub(&mut command, self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn().expect("start buildctl");
        let mut input = child.stdin.take().expect("a pipe");
        // It may end without reading; its status says why.
        let feed = async move {
            let _ = input.write_all(stdin).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        let output = output.expect("wait for buildctl");
        Run {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            metadata: Value::Null,
        }
    }

    /// Its home directory, for files that it should read or write.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}
