//! [`ExecOp`]: a process in a root file system.

use std::fmt;
use std::str::FromStr;

use crate::oci::Digest;

/// Runs a process. The file systems that it writes are its outputs.
///
/// # Invariants
///
/// There are arguments. The *last* mount at [`ROOT`] is a bind mount: the root file system. Every input that a
/// mount names is one of the vertex. No text has a NUL byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecOp {
    pub args: Vec<String>,
    /// `KEY=value`, later ones before earlier ones.
    pub env: Vec<String>,
    /// Empty for the root.
    pub cwd: String,
    /// Name or ID, and group after a colon; empty for root.
    pub user: String,
    /// Empty for the daemon's choice.
    pub hostname: String,
    pub extra_hosts: Vec<ExtraHost>,
    /// Counts for nothing in the cache key.
    pub proxy: Option<ProxyEnv>,
    pub ulimits: Vec<Ulimit>,
    /// Empty for the daemon's choice.
    pub cgroup_parent: String,
    /// Directories made for mount points are taken away again, with their parents.
    pub remove_mount_stubs_recursive: bool,
    /// Never empty.
    pub valid_exit_codes: Vec<i32>,
    /// As sent.
    pub mounts: Vec<ExecMount>,
    pub network: NetworkMode,
    pub security: SecurityMode,
    pub secret_env: Vec<SecretEnv>,
    pub devices: Vec<CdiDevice>,
    /// What the op itself counts for in the cache, inputs left out: that of BuildKit for the same op.
    pub key: Digest,
}

/// A right that a build has to be granted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entitlement {
    NetworkHost,
    SecurityInsecure,
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Entitlement::NetworkHost => "network.host",
            Entitlement::SecurityInsecure => "security.insecure",
        })
    }
}

/// No right has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no entitlement {name:?}")]
pub struct NoSuchEntitlement {
    pub name: String,
}

impl FromStr for Entitlement {
    type Err = NoSuchEntitlement;

    fn from_str(name: &str) -> Result<Entitlement, NoSuchEntitlement> {
        match name {
            "network.host" => Ok(Entitlement::NetworkHost),
            "security.insecure" => Ok(Entitlement::SecurityInsecure),
            name => Err(NoSuchEntitlement { name: name.to_owned() }),
        }
    }
}

/// Where the root file system is mounted.
pub const ROOT: &str = "/";

impl ExecOp {
    /// The mount that each output of the vertex is made from, as indices into `mounts`.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + '_ {
        self.mounts.iter().enumerate().filter(|(_, mount)| mount.gives_output()).map(|(index, _)| index)
    }

    /// The rights that it needs.
    pub fn entitlements(&self) -> impl Iterator<Item = Entitlement> + use<> {
        let host = (self.network == NetworkMode::Host).then_some(Entitlement::NetworkHost);
        let insecure = (self.security == SecurityMode::Insecure).then_some(Entitlement::SecurityInsecure);
        host.into_iter().chain(insecure)
    }

    /// The root file system.
    pub fn root(&self) -> Option<&ExecMount> {
        self.mounts.iter().rev().find(|mount| mount.dest == ROOT)
    }
}

/// A line of `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtraHost {
    pub host: String,
    pub ip: String,
}

/// Environment of the process, in both cases, which is not part of the result.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProxyEnv {
    pub http: String,
    pub https: String,
    pub ftp: String,
    pub no: String,
    pub all: String,
}

/// A limit of the process, by the name that `ulimit` documents (`nofile`). -1 is no limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// A secret as an environment variable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretEnv {
    pub id: String,
    /// Of the variable.
    pub name: String,
    /// A missing secret is no error.
    pub optional: bool,
}

/// A device by its qualified CDI name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CdiDevice {
    pub name: String,
    pub optional: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum NetworkMode {
    #[default]
    Sandbox,
    /// That of the node: needs the entitlement `network.host`.
    Host,
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SecurityMode {
    #[default]
    Sandbox,
    /// All rights: needs the entitlement `security.insecure`.
    Insecure,
}

/// A mount as it was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecMount {
    /// Absolute, or relative to the working directory; [`ROOT`] for the root file system.
    pub dest: String,
    /// Index into the vertex's inputs; none for an empty file system.
    pub input: Option<usize>,
    /// The path within the input that is mounted; empty for all of it.
    pub selector: String,
    /// True if what is in the mount afterwards is wanted, or, of a read-only mount, the input again.
    pub output: bool,
    pub read_only: bool,
    pub kind: MountKind,
    pub content_cache: ContentCache,
}

impl ExecMount {
    /// The ID of a cache mount.
    pub fn cache_id(&self) -> Option<&str> {
        match &self.kind {
            MountKind::Cache { id, .. } => Some(if id.is_empty() { &self.dest } else { id }),
            _ => None,
        }
    }

    /// True if the vertex has an output for this mount. Secrets and sockets never have one.
    pub fn gives_output(&self) -> bool {
        match self.kind {
            MountKind::Bind => self.output,
            MountKind::Cache { .. } => self.output && self.input.is_some(),
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MountKind {
    Bind,
    /// Kept between builds.
    Cache {
        /// Empty for the destination.
        id: String,
        sharing: CacheSharing,
    },
    Tmpfs {
        /// Bytes at most.
        size: Option<u64>,
    },
    Secret(ClientFile),
    Ssh(ClientFile),
}

/// A file that the client provides: a secret, or the socket of its agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientFile {
    pub id: String,
    pub uid: u32,
    pub gid: u32,
    /// Bits of 07777.
    pub mode: u32,
    /// That the client has none is no error.
    pub optional: bool,
}

/// What several users of a cache mount get.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum CacheSharing {
    /// All write the same one.
    #[default]
    Shared,
    /// A new one if it is busy.
    Private,
    /// They wait for each other.
    Locked,
}

/// Whether the contents of a mount count for the cache instead of its key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ContentCache {
    /// Where that is safe, and not for the root.
    #[default]
    Default,
    /// Where that is not safe, the op is refused.
    On,
    Off,
}

/// Limits of the resources of the step; they are no part of its key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinuxResources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap: Option<i64>,
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds in each period; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// Lists such as `0-3,5`; empty for all.
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}
