//! What is configured about registries: `[registry."host"]` of `buildkitd.toml`, limits and patience.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a [`RegistryClient`](super::RegistryClient) can be told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegistryConfig {
    /// By host as image names spell it (`docker.io`, `r.example:5000`), mirrors included.
    pub hosts: BTreeMap<String, HostConfig>,
    pub lanes: LaneLimits,
    pub retry: RetryPolicy,
    pub patience: Patience,
}

/// How one registry host is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostConfig {
    /// Asked before the host itself, in order, for everything that only reads: `host[:port][/path]`.
    ///
    /// A path is put behind `/v2/`. `http://` before it means plain HTTP; other settings of a mirror
    /// are those of its own entry in [`RegistryConfig::hosts`].
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset means HTTPS, except for loopback addresses.
    pub http: Option<bool>,
    /// Takes any certificate; together with `http` (or on loopback) HTTPS is tried first and plain
    /// HTTP is what it falls back to.
    pub insecure: Option<bool>,
    /// PEM files with certificates to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Certificates that we show.
    pub keypairs: Vec<KeyPair>,
    /// Directories in Docker's layout: `*.crt` to trust, `*.cert` with `*.key` to show.
    pub tls_config_dirs: Vec<PathBuf>,
}

/// A certificate and its private key, both PEM files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyPair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How many requests one host gets at the same time, by what they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneLimits {
    /// Manifests, tokens, look-ups, mounts.
    pub metadata: usize,
    /// Blobs on their way here.
    pub download: usize,
    /// Blobs on their way there.
    pub upload: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        LaneLimits { metadata: 16, download: 8, upload: 8 }
    }
}

/// How often a transient failure is tried again, and after how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Rounds over all endpoints after the first, without progress in between.
    pub retries: u32,
    /// The pause before the first of them; each later one is twice as long.
    pub base: Duration,
    /// The longest that a registry's `Retry-After` is obeyed; a longer one is an error at once.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { retries: 3, base: Duration::from_secs(1), longest_wait: Duration::from_secs(30) }
    }
}

/// How long nothing may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// To open a connection, TLS included.
    pub connect: Duration,
    /// Without a byte, in either direction, or without the head of a reply.
    pub stall: Duration,
    /// For the reply to a whole upload, which the registry may have to verify or to copy first.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            commit: Duration::from_secs(300),
        }
    }
}
