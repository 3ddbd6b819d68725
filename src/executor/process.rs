//! [`Process`]: what to run, and in what.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::progress::LogStream;
use crate::progress::Sample;

/// A process and the sandbox around it. Paths of the sandbox are resolved in its root.
#[derive(Debug, Default)]
pub struct Process {
    /// A directory of the host, mounted and writable, that becomes `/`.
    pub root: PathBuf,
    /// The process can't write to `/`. Directories that it needs are made nevertheless.
    pub read_only_root: bool,
    /// Mounted in this order, above `/proc`, `/dev` and `/sys`.
    pub mounts: Vec<ProcessMount>,
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Made, owned by the user, if it is missing.
    pub cwd: String,
    /// `user[:group]`, each a name of the root's `/etc/passwd` and `/etc/group`, or a number; empty for root.
    pub user: String,
    /// Empty for the default one.
    pub hostname: String,
    pub extra_hosts: Vec<ExtraHost>,
    pub network: Network,
    pub security: Security,
    /// Limits that are not named are those of the daemon.
    pub ulimits: Vec<Ulimit>,
    /// A cgroup below which the process gets its own; empty for the executor's.
    pub cgroup_parent: String,
    pub limits: Limits,
    /// Codes that are no failure; empty for 0 alone.
    pub valid_exit_codes: Vec<i32>,
    /// Directories made on the way to a mount point are removed with it.
    pub remove_mount_stubs_recursive: bool,
    /// Released when nothing of the process is left: whatever keeps its directories mounted.
    pub holds: Vec<Hold>,
}

/// Something that must outlive a process.
#[derive(Clone)]
pub struct Hold(#[expect(dead_code, reason = "it is held for its drop")] Arc<dyn Any + Send + Sync>);

impl Hold {
    pub fn new<T: Any + Send + Sync>(value: Arc<T>) -> Hold {
        Hold(value)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

#[derive(Clone, Debug)]
pub struct ProcessMount {
    /// Where it is seen, an absolute path in the root.
    pub dest: String,
    pub source: MountSource,
    pub read_only: bool,
}

#[derive(Clone)]
pub enum MountSource {
    /// `selector`, a file or directory, resolved as if `directory` were `/`.
    Directory { directory: PathBuf, selector: String },
    /// Lives in memory and goes with the process.
    Tmpfs { size: Option<u64> },
    /// A file that lies in memory only. Always read-only.
    Secret { data: Arc<[u8]>, uid: u32, gid: u32, mode: u32 },
    /// A socket of the host.
    Socket { path: PathBuf },
}

impl fmt::Debug for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountSource::Directory { directory, selector } => {
                write!(f, "Directory({} {selector})", directory.display())
            }
            MountSource::Tmpfs { size } => write!(f, "Tmpfs({size:?})"),
            // The data is nobody's business.
            MountSource::Secret { uid, gid, mode, .. } => write!(f, "Secret({uid}:{gid} {mode:o})"),
            MountSource::Socket { path } => write!(f, "Socket({})", path.display()),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtraHost {
    pub host: String,
    pub address: IpAddr,
}

/// What the process sees of the network.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Network {
    /// What the executor is configured to give: see [`NetworkMode`](super::NetworkMode).
    #[default]
    Sandbox,
    Host,
    /// Loopback and nothing else.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Security {
    /// The default capabilities and system calls; what of `/proc` and `/sys` tells about the host is masked.
    #[default]
    Sandbox,
    /// All that the daemon itself may do.
    Insecure,
}

/// `-1` for no limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ulimit {
    /// As `ulimit` of Docker spells it: `nofile`, `nproc`.
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// Limits of the process's cgroup; 0 and empty for none. Units are those of the OCI runtime specification.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    pub memory: i64,
    /// Memory and swap together; -1 for no limit.
    pub memory_swap: i64,
    pub cpu_shares: u64,
    pub cpu_quota: i64,
    pub cpu_period: u64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}

impl Limits {
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// Takes what a process prints, as it prints it, and what it used. Never blocks.
pub trait Output: Send + Sync {
    fn write(&self, stream: LogStream, data: &[u8]);

    /// The process has ended, well or not. A few samples, the last one of its end; not called where the kernel has no
    /// control groups, or systemd has made the process's.
    fn used(&self, samples: Vec<Sample>);
}

/// How a process ended well.
#[derive(Clone, PartialEq, Debug)]
pub struct Exit {
    /// One of the valid exit codes. 128+n for signal n.
    pub code: u32,
}
