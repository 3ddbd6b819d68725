//! An executor and a root for it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::sync::watch;

use crate::ctx::Ctx;
use crate::executor::ExecError;
use crate::executor::Executor;
use crate::executor::ExecutorOptions;
use crate::executor::Exit;
use crate::executor::Output;
use crate::executor::Process;
use crate::progress::LogStream;
use crate::progress::Sample;
use crate::task::Tasks;

/// Whether a tool is there. In CI it has to be.
pub fn installed(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "{tool} is not installed");
    found
}

pub struct Fixture {
    pub dir: TempDir,
    pub executor: Executor,
    pub tasks: Tasks,
}

impl Fixture {
    /// `None` where no process can be run.
    pub fn new() -> Option<Fixture> {
        Fixture::with(ExecutorOptions::default())
    }

    pub fn with(options: ExecutorOptions) -> Option<Fixture> {
        if !installed("runc") || !installed("busybox") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("bin")).expect("a directory");
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        fs::copy(busybox.expect("busybox"), root.join("bin/busybox")).expect("a copy of busybox");
        symlink("busybox", root.join("bin/sh")).expect("a symlink");
        let tasks = Tasks::new();
        let options = ExecutorOptions { directory: dir.path().join("executor"), ..options };
        let executor = Executor::open(options, tasks.clone()).expect("an executor");
        Some(Fixture { dir, executor, tasks })
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Where the executor keeps what it needs while processes run.
    pub fn bundles(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("executor/bundles"));
        entries.map(|e| e.map(|e| e.expect("an entry").path()).collect()).unwrap_or_default()
    }

    /// A script of the root's shell.
    pub fn script(&self, script: &str) -> Process {
        Process {
            root: self.root(),
            args: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            ..Process::default()
        }
    }

    pub async fn run(&self, process: Process) -> (Result<Exit, ExecError>, Arc<Recording>) {
        let recording = Arc::new(Recording::default());
        let done = self.executor.run(&Ctx::background(), process, recording.clone()).await;
        self.executor.cleared().await;
        assert!(self.bundles().is_empty(), "nothing stays of a process");
        (done, recording)
    }

    /// What a process prints that ends well.
    pub async fn output(&self, process: Process) -> String {
        let (done, recording) = self.run(process).await;
        if let Err(error) = done {
            panic!("{error}; it printed {:?} {:?}", recording.stdout(), recording.stderr());
        }
        assert_eq!(recording.stderr(), "");
        recording.stdout()
    }
}

/// What a process printed.
pub struct Recording {
    streams: Mutex<[Vec<u8>; 2]>,
    length: watch::Sender<usize>,
    used: Mutex<Vec<Sample>>,
}

impl Default for Recording {
    fn default() -> Recording {
        Recording { streams: Mutex::default(), length: watch::Sender::new(0), used: Mutex::default() }
    }
}

impl Recording {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.streams.lock().expect("a lock")[0]).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.streams.lock().expect("a lock")[1]).into_owned()
    }

    /// What the process used.
    pub fn used(&self) -> Vec<Sample> {
        self.used.lock().expect("a lock").clone()
    }

    /// Waits until something was printed.
    pub async fn printed(&self) {
        self.length.subscribe().wait_for(|length| *length > 0).await.expect("the sender lives");
    }
}

impl Output for Recording {
    fn write(&self, stream: LogStream, data: &[u8]) {
        let index = usize::from(stream == LogStream::Stderr);
        self.streams.lock().expect("a lock")[index].extend_from_slice(data);
        self.length.send_modify(|length| *length += data.len());
    }

    fn used(&self, samples: Vec<Sample>) {
        *self.used.lock().expect("a lock") = samples;
    }
}
