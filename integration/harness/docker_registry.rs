//! Debian's docker-registry (distribution 2.8) as the referee: what passes against it and against
//! `TestRegistry` is what registries do, not what our own idea of one does.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::process::Process;
use super::tools::tool;
use super::wait::poll;

const START: Duration = Duration::from_secs(20);

/// A running docker-registry with its storage in a temporary directory.
pub struct DockerRegistry {
    process: Process,
    host: String,
    log: File,
    /// Removed after the child has ended.
    _directory: TempDir,
}

impl DockerRegistry {
    /// `None` where it isn't installed; see [`tool`].
    pub fn start() -> Option<Self> {
        let program = tool("docker-registry")?;
        // It can't be asked which port it chose, and another process may take a free one first.
        let started = (0..5).find_map(|_| Self::try_start(&program));
        Some(started.expect("docker-registry starts"))
    }

    fn try_start(program: &Path) -> Option<Self> {
        let directory = TempDir::new().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let host = free.expect("a free port").to_string();
        let config = directory.path().join("config.yml");
        std::fs::write(&config, config_text(&host, directory.path())).expect("write the configuration");
        let log = tempfile::tempfile().expect("a file for the log");
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("a second handle"));
        let process = Process::spawn(command);
        let mut registry = Self { process, host, log, _directory: directory };
        registry.is_up().then_some(registry)
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    pub fn reference(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{reference}", self.host)
    }

    /// What it wrote to stderr.
    pub fn log(&mut self) -> String {
        let mut text = String::new();
        self.log.rewind().and_then(|()| self.log.read_to_string(&mut text)).expect("read the log");
        text
    }

    fn is_up(&mut self) -> bool {
        let mut dead = false;
        let listens = poll(START, || {
            dead = self.process.ended().is_some();
            dead || self.listens()
        });
        listens && !dead
    }

    /// True if the port is this process's: who else answers there may have been faster.
    fn listens(&self) -> bool {
        let port = self.host.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
        let end = format!(":{port:04X}");
        // See proc_pid_net(5): the local address, the state (0A is LISTEN) and the inode.
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let inode = fields
            .filter(|fields| fields.get(1).is_some_and(|local| local.ends_with(&end)))
            .find(|fields| fields.get(3) == Some(&"0A"))
            .and_then(|fields| fields.get(9).map(|inode| format!("socket:[{inode}]")));
        let Some(inode) = inode else { return false };
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.process.pid().as_raw_nonzero()));
        let mut links =
            open.into_iter().flatten().flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|link| link.as_os_str() == inode.as_str())
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("docker-registry said:\n{}", self.log());
        }
    }
}

fn config_text(host: &str, directory: &Path) -> String {
    let root = directory.display();
    format!(
        r#"version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {root}/data
  delete:
    enabled: true
http:
  addr: {host}
validation:
  manifests:
    urls:
      allow:
        - ^https?://
"#
    )
}
