//! What a daemon is told: defaults, then `buildkitd.toml`, then flags; checked once, here.
//!
//! [`Settings`] is one layer, in which everything is optional. [`Config`] is the sum of the layers, with every
//! default filled in and every value known to be good. The daemon sees only the latter.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::toml::Finding;
use super::units::Space;
use crate::oci::Platform;
use crate::registry::HostConfig;
use crate::registry::Patience;
use crate::registry::RetryPolicy;

/// The kernel begins to write what is as old as this.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything durable lies. Absolute.
    pub root: PathBuf,
    pub log: LogConfig,
    /// At least one, unless the daemon is inside a command.
    pub listen: Vec<Address>,
    pub socket_owner: SocketOwner,
    pub tls: Option<TlsConfig>,
    pub debug_address: Option<DebugAddress>,
    pub entitlements: BTreeSet<Entitlement>,
    /// By host, as it stands in references.
    pub registries: BTreeMap<String, HostConfig>,
    pub registry_concurrency: Option<NonZeroUsize>,
    pub registry_retry: RetryPolicy,
    pub registry_patience: Patience,
    pub worker: WorkerConfig,
    pub dns: DnsConfig,
    pub history: HistoryConfig,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://host:port`
    Tcp(String),
    /// `fd://`: the first socket that the service manager hands over.
    Activated,
}

/// Where the debug page listens: `host:port`, or `unix:///path`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DebugAddress {
    Tcp(String),
    Unix(PathBuf),
}

/// Who owns the unix sockets. Absent: who runs the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketOwner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// TLS for the TCP listeners. Unix sockets are never wrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsConfig {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// If there is one, a client must show a certificate that it signed.
    pub client_ca: Option<PathBuf>,
}

/// What a build may ask for only if the daemon allows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entitlement {
    NetworkHost,
    SecurityInsecure,
    Device,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerConfig {
    pub labels: BTreeMap<String, String>,
    /// The first is the default. Empty for those that the machine runs.
    pub platforms: Vec<Platform>,
    pub gc: GcConfig,
    /// Build steps that run at the same time. None: no limit.
    pub max_parallelism: Option<NonZeroUsize>,
    pub snapshotter: SnapshotterKind,
    /// After which time the files of a step are synced.
    pub sync_interval: Duration,
    pub exec: ExecConfig,
}

/// How directories are made of layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnapshotterKind {
    /// Overlays where they can be mounted, else copies.
    #[default]
    Auto,
    Overlay,
    Native,
}

impl SnapshotterKind {
    /// The name that clients see.
    pub fn name(self) -> &'static str {
        match self {
            SnapshotterKind::Auto => "auto",
            SnapshotterKind::Overlay => "overlayfs",
            SnapshotterKind::Native => "native",
        }
    }
}

impl FromStr for SnapshotterKind {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotterKind, String> {
        match text {
            "" | "auto" => Ok(SnapshotterKind::Auto),
            "overlayfs" | "overlay" => Ok(SnapshotterKind::Overlay),
            "native" => Ok(SnapshotterKind::Native),
            _ => Err("it is not a snapshotter that is here: use auto, overlayfs or native".to_owned()),
        }
    }
}

/// How processes of build steps are run. None: the usual.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExecConfig {
    /// Program of the OCI runtime.
    pub binary: Option<String>,
    pub network: Option<WorkerNetwork>,
    pub cni_config: Option<PathBuf>,
    pub cni_plugins: Option<PathBuf>,
    pub cgroup_parent: Option<String>,
    pub apparmor_profile: Option<String>,
}

impl ExecConfig {
    /// What `above` says, and this where it says nothing.
    fn under(self, above: ExecConfig) -> ExecConfig {
        ExecConfig {
            binary: above.binary.or(self.binary),
            network: above.network.or(self.network),
            cni_config: above.cni_config.or(self.cni_config),
            cni_plugins: above.cni_plugins.or(self.cni_plugins),
            cgroup_parent: above.cgroup_parent.or(self.cgroup_parent),
            apparmor_profile: above.apparmor_profile.or(self.apparmor_profile),
        }
    }
}

/// The network of steps that ask for none in particular.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum WorkerNetwork {
    /// That of plugins if they are configured, or else the host's.
    #[default]
    Auto,
    Cni,
    Host,
}

impl FromStr for WorkerNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<WorkerNetwork, String> {
        match text {
            "" | "auto" => Ok(WorkerNetwork::Auto),
            "cni" => Ok(WorkerNetwork::Cni),
            "host" => Ok(WorkerNetwork::Host),
            _ => Err(format!("expected a network mode (auto, cni or host), found {text:?}")),
        }
    }
}

/// When to collect without being asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GcConfig {
    Off,
    /// Rules that follow from three amounts; absent ones follow from the size of the disk.
    Standard(GcLimits),
    /// Rules as written, in order.
    Rules(Vec<GcRule>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GcLimits {
    pub reserved: Option<Space>,
    pub max_used: Option<Space>,
    pub min_free: Option<Space>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GcRule {
    pub all: bool,
    pub filters: Vec<String>,
    pub keep: Duration,
    pub limits: GcLimits,
}

/// Name resolution of build steps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    pub search_domains: Vec<String>,
}

/// A record goes when it is older than `max_age` and beyond the newest `max_entries`: none in a configuration that has an
/// age alone. One of no entries says that builds are not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryConfig {
    pub max_age: Duration,
    pub max_entries: usize,
    pub recorded: bool,
}

impl Default for HistoryConfig {
    fn default() -> HistoryConfig {
        HistoryConfig { max_age: Duration::from_secs(48 * 3600), max_entries: 50, recorded: true }
    }
}

/// One layer of configuration. None: this layer says nothing.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Settings {
    pub root: Option<PathBuf>,
    pub log_level: Option<LogLevel>,
    pub log_format: Option<LogFormat>,
    pub listen: Option<Vec<Address>>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_client_ca: Option<PathBuf>,
    pub debug_address: Option<DebugAddress>,
    pub entitlements: Option<BTreeSet<Entitlement>>,
    pub registries: BTreeMap<String, HostConfig>,
    pub registry_concurrency: Option<NonZeroUsize>,
    pub registry_waits: RegistryWaits,
    pub oci_worker: Option<bool>,
    pub containerd_worker: Option<bool>,
    pub labels: BTreeMap<String, String>,
    pub platforms: Option<Vec<Platform>>,
    pub gc: Option<bool>,
    pub gc_limits: GcLimits,
    pub gc_rules: Option<Vec<GcRule>>,
    /// 0 is no limit.
    pub max_parallelism: Option<usize>,
    pub snapshotter: Option<SnapshotterKind>,
    pub sync_interval: Option<Duration>,
    pub exec: ExecConfig,
    pub dns: Option<DnsConfig>,
    pub history_max_age: Option<Duration>,
    pub history_max_entries: Option<usize>,
}

/// What one layer says about how long registries are waited for, and how often they are asked again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegistryWaits {
    pub retries: Option<u32>,
    pub retry_base: Option<Duration>,
    pub longest_retry_after: Option<Duration>,
    pub connect: Option<Duration>,
    pub stall: Option<Duration>,
    pub commit: Option<Duration>,
}

impl RegistryWaits {
    fn under(self, above: RegistryWaits) -> RegistryWaits {
        RegistryWaits {
            retries: above.retries.or(self.retries),
            retry_base: above.retry_base.or(self.retry_base),
            longest_retry_after: above.longest_retry_after.or(self.longest_retry_after),
            connect: above.connect.or(self.connect),
            stall: above.stall.or(self.stall),
            commit: above.commit.or(self.commit),
        }
    }

    fn retry(self) -> RetryPolicy {
        let default = RetryPolicy::default();
        RetryPolicy {
            retries: self.retries.unwrap_or(default.retries),
            base: self.retry_base.unwrap_or(default.base),
            longest_wait: self.longest_retry_after.unwrap_or(default.longest_wait),
        }
    }

    fn patience(self) -> Patience {
        let default = Patience::default();
        Patience {
            connect: self.connect.unwrap_or(default.connect),
            stall: self.stall.unwrap_or(default.stall),
            commit: self.commit.unwrap_or(default.commit),
        }
    }
}

impl Settings {
    /// This layer with `above` laid over it.
    pub fn under(self, above: Settings) -> Settings {
        let mut labels = self.labels;
        labels.extend(above.labels);
        let mut registries = self.registries;
        registries.extend(above.registries);
        let gc_limits = if above.gc_limits == GcLimits::default() { self.gc_limits } else { above.gc_limits };
        Settings {
            root: above.root.or(self.root),
            log_level: above.log_level.or(self.log_level),
            log_format: above.log_format.or(self.log_format),
            listen: above.listen.or(self.listen),
            uid: above.uid.or(self.uid),
            gid: above.gid.or(self.gid),
            tls_cert: above.tls_cert.or(self.tls_cert),
            tls_key: above.tls_key.or(self.tls_key),
            tls_client_ca: above.tls_client_ca.or(self.tls_client_ca),
            debug_address: above.debug_address.or(self.debug_address),
            entitlements: above.entitlements.or(self.entitlements),
            registries,
            registry_concurrency: above.registry_concurrency.or(self.registry_concurrency),
            registry_waits: self.registry_waits.under(above.registry_waits),
            oci_worker: above.oci_worker.or(self.oci_worker),
            containerd_worker: above.containerd_worker.or(self.containerd_worker),
            labels,
            platforms: above.platforms.or(self.platforms),
            gc: above.gc.or(self.gc),
            gc_limits,
            gc_rules: above.gc_rules.or(self.gc_rules),
            max_parallelism: above.max_parallelism.or(self.max_parallelism),
            snapshotter: above.snapshotter.or(self.snapshotter),
            sync_interval: above.sync_interval.or(self.sync_interval),
            exec: self.exec.under(above.exec),
            dns: above.dns.or(self.dns),
            history_max_age: above.history_max_age.or(self.history_max_age),
            history_max_entries: above.history_max_entries.or(self.history_max_entries),
        }
    }
}

/// A configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read the configuration {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {path:?} is refused:{}", Lines(findings))]
    Refused { path: PathBuf, findings: Vec<Finding> },
    #[error("--{flag}: {what}")]
    Flag { flag: String, what: String },
    #[error("the TLS settings have a {have} and no {lacks}: a server needs both")]
    HalfOfTls { have: &'static str, lacks: &'static str },
    #[error("a client CA is set, but no server certificate and key: set grpc.tls.cert and grpc.tls.key")]
    ClientCaWithoutTls,
    #[error("there is no address to listen on: set grpc.address or --addr")]
    NoAddress,
    #[error(
        "no worker is enabled: worker.oci.enabled is false, and there is no other worker in this version; \
         remove that key or --oci-worker=false"
    )]
    NoWorker,
    #[error("the root {path:?} can't be made absolute")]
    Root { path: PathBuf, source: io::Error },
}

/// One finding a line.
struct Lines<'a>(&'a [Finding]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

/// A configuration and what to say about it once the log is there.
#[derive(Debug)]
pub struct Checked {
    pub config: Config,
    pub warnings: Vec<String>,
}

impl Config {
    /// Like [`Config::check`], for a daemon inside a command: it listens nowhere.
    pub fn check_embedded(settings: Settings, warnings: Vec<String>) -> Result<Checked, ConfigError> {
        let mut checked = Config::check(settings, warnings)?;
        checked.config.listen.clear();
        checked.config.debug_address = None;
        Ok(checked)
    }

    /// Fills in the defaults and holds one value against the other.
    pub fn check(settings: Settings, mut warnings: Vec<String>) -> Result<Checked, ConfigError> {
        let root = settings.root.unwrap_or_else(Defaults::root);
        let root = std::path::absolute(&root).map_err(|source| ConfigError::Root { path: root, source })?;
        let tls = match (settings.tls_cert, settings.tls_key) {
            (Some(cert), Some(key)) => Some(TlsConfig { cert, key, client_ca: settings.tls_client_ca }),
            (Some(_), None) => return Err(ConfigError::HalfOfTls { have: "certificate", lacks: "key" }),
            (None, Some(_)) => return Err(ConfigError::HalfOfTls { have: "key", lacks: "certificate" }),
            (None, None) if settings.tls_client_ca.is_some() => return Err(ConfigError::ClientCaWithoutTls),
            (None, None) => None,
        };
        let listen = settings.listen.unwrap_or_else(|| vec![Address::Unix(Defaults::socket())]);
        if listen.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        if settings.containerd_worker == Some(true) {
            warnings
                .push("the containerd worker is not there yet: builds run on the embedded worker".to_owned());
        } else if settings.oci_worker == Some(false) {
            return Err(ConfigError::NoWorker);
        }
        let gc = match (settings.gc, settings.gc_rules) {
            (Some(false), _) => GcConfig::Off,
            (_, Some(rules)) if !rules.is_empty() => GcConfig::Rules(rules),
            _ => GcConfig::Standard(settings.gc_limits),
        };
        let history = HistoryConfig::default();
        let config = Config {
            root,
            log: LogConfig {
                level: settings.log_level.unwrap_or_default(),
                format: settings.log_format.unwrap_or_default(),
            },
            listen,
            socket_owner: SocketOwner { uid: settings.uid, gid: settings.gid },
            tls,
            debug_address: settings.debug_address,
            entitlements: settings.entitlements.unwrap_or_default(),
            registries: settings.registries,
            registry_concurrency: settings.registry_concurrency,
            registry_retry: settings.registry_waits.retry(),
            registry_patience: settings.registry_waits.patience(),
            worker: WorkerConfig {
                labels: settings.labels,
                platforms: settings.platforms.unwrap_or_default(),
                gc,
                max_parallelism: settings.max_parallelism.and_then(NonZeroUsize::new),
                snapshotter: settings.snapshotter.unwrap_or_default(),
                sync_interval: settings.sync_interval.unwrap_or(SYNC_INTERVAL),
                exec: settings.exec,
            },
            dns: settings.dns.unwrap_or_default(),
            history: HistoryConfig {
                max_age: settings.history_max_age.unwrap_or(history.max_age),
                max_entries: settings.history_max_entries.unwrap_or(match settings.history_max_age {
                    Some(_) => 0,
                    None => history.max_entries,
                }),
                recorded: settings.history_max_entries != Some(0),
            },
        };
        Ok(Checked { config, warnings })
    }
}

/// Where things are if nobody says: `buildkitd`'s places, root's or the user's own.
pub struct Defaults;

impl Defaults {
    pub fn root() -> PathBuf {
        Self::of_user("XDG_DATA_HOME", ".local/share").unwrap_or_else(|| PathBuf::from("/var/lib/buildkit"))
    }

    pub fn config_file() -> PathBuf {
        Self::of_user("XDG_CONFIG_HOME", ".config")
            .unwrap_or_else(|| PathBuf::from("/etc/buildkit"))
            .join("buildkitd.toml")
    }

    pub fn socket() -> PathBuf {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        match runtime {
            Some(dir) if !rustix::process::geteuid().is_root() => {
                Path::new(&dir).join("buildkit/buildkitd.sock")
            }
            _ => PathBuf::from("/run/buildkit/buildkitd.sock"),
        }
    }

    /// The user's directory named by `variable`, or `below` her home. None for root.
    fn of_user(variable: &str, below: &str) -> Option<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return None;
        }
        let named = std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let home = std::env::var_os("HOME").filter(|dir| !dir.is_empty());
        named.or_else(|| Some(Path::new(&home?).join(below))).map(|dir| dir.join("buildkit"))
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<LogLevel, String> {
        match text.to_ascii_lowercase().as_str() {
            "panic" | "fatal" | "error" => Ok(LogLevel::Error),
            "warn" | "warning" => Ok(LogLevel::Warn),
            "info" => Ok(LogLevel::Info),
            "debug" => Ok(LogLevel::Debug),
            "trace" => Ok(LogLevel::Trace),
            _ => Err(format!("expected a log level (error, warn, info, debug or trace), found {text:?}")),
        }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" | "" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("expected the log format text or json, found {text:?}")),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("the address {text:?} has no scheme: did you mean unix://{text}?"));
        };
        match scheme {
            "unix" if rest.is_empty() => Err(format!("the address {text:?} has no path")),
            "unix" => Ok(Address::Unix(PathBuf::from(rest))),
            "tcp" => host_and_port(rest).map(Address::Tcp),
            "fd" if rest.is_empty() => Ok(Address::Activated),
            "fd" => {
                Err(format!("the address {text:?} selects a socket: only fd://, the first one, is there"))
            }
            _ => {
                Err(format!("the address {text:?} has an unknown scheme: expected unix://, tcp:// or fd://"))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(host) => write!(f, "tcp://{host}"),
            Address::Activated => f.write_str("fd://"),
        }
    }
}

impl FromStr for DebugAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<DebugAddress, String> {
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(DebugAddress::Unix(PathBuf::from(path))),
            Some(("tcp", rest)) => host_and_port(rest).map(DebugAddress::Tcp),
            Some(_) => Err(format!("expected host:port or unix:///path, found {text:?}")),
            None if text.starts_with('/') => Ok(DebugAddress::Unix(PathBuf::from(text))),
            None => host_and_port(text).map(DebugAddress::Tcp),
        }
    }
}

impl FromStr for Entitlement {
    type Err = String;

    fn from_str(text: &str) -> Result<Entitlement, String> {
        match text {
            "network.host" => Ok(Entitlement::NetworkHost),
            "security.insecure" => Ok(Entitlement::SecurityInsecure),
            "device" => Ok(Entitlement::Device),
            _ => Err(format!(
                "expected an entitlement (network.host, security.insecure or device), found {text:?}"
            )),
        }
    }
}

impl Entitlement {
    pub fn name(self) -> &'static str {
        match self {
            Entitlement::NetworkHost => "network.host",
            Entitlement::SecurityInsecure => "security.insecure",
            Entitlement::Device => "device",
        }
    }
}

/// A name or an address, and a port. Names are looked up when the daemon listens.
fn host_and_port(text: &str) -> Result<String, String> {
    let expected = || format!("expected host:port, found {text:?}");
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    port.parse::<u16>().map_err(|_| expected())?;
    if host.contains([':', '/', ' ']) {
        return Err(expected());
    }
    // Go listens on every address if there is no host.
    Ok(if host.is_empty() { format!("[::]:{port}") } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(settings: Settings) -> Result<Config, ConfigError> {
        Config::check(settings, Vec::new()).map(|checked| checked.config)
    }

    #[test]
    fn a_flag_goes_over_the_file_and_the_file_over_the_default() {
        let file = Settings {
            root: Some("/file".into()),
            log_level: Some(LogLevel::Warn),
            labels: BTreeMap::from([("a".into(), "file".into()), ("b".into(), "file".into())]),
            gc_limits: GcLimits { max_used: Some(Space::Bytes(1)), ..GcLimits::default() },
            ..Settings::default()
        };
        let flags = Settings {
            root: Some("/flag".into()),
            labels: BTreeMap::from([("b".into(), "flag".into())]),
            ..Settings::default()
        };
        let config = check(file.under(flags)).unwrap();
        assert_eq!(config.root, Path::new("/flag"));
        assert_eq!(config.log, LogConfig { level: LogLevel::Warn, format: LogFormat::Text });
        assert_eq!((&*config.worker.labels["a"], &*config.worker.labels["b"]), ("file", "flag"));
        let limits = GcLimits { max_used: Some(Space::Bytes(1)), ..GcLimits::default() };
        assert_eq!(config.worker.gc, GcConfig::Standard(limits));
        assert_eq!(config.worker.platforms, []);
        assert_eq!(config.history, HistoryConfig::default());
    }

    #[test]
    fn a_history_of_an_age_keeps_no_older_builds_and_one_of_none_records_none() {
        let limits = |history_max_age, history_max_entries| {
            let settings = Settings { history_max_age, history_max_entries, ..Settings::default() };
            let history = check(settings).unwrap().history;
            (history.max_age.as_secs(), history.max_entries, history.recorded)
        };
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(limits(None, None), (48 * 3600, 50, true));
        assert_eq!(limits(hour, None), (3600, 0, true));
        assert_eq!(limits(hour, Some(7)), (3600, 7, true));
        assert_eq!(limits(None, Some(0)), (48 * 3600, 0, false));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let pem = || Some(PathBuf::from("x.pem"));
        let refused = |settings| check(settings).unwrap_err();
        assert!(matches!(
            refused(Settings { tls_cert: pem(), ..Settings::default() }),
            ConfigError::HalfOfTls { lacks: "key", .. }
        ));
        assert!(matches!(
            refused(Settings { tls_client_ca: pem(), ..Settings::default() }),
            ConfigError::ClientCaWithoutTls
        ));
        assert!(matches!(
            refused(Settings { listen: Some(Vec::new()), ..Settings::default() }),
            ConfigError::NoAddress
        ));
        assert!(matches!(
            refused(Settings { oci_worker: Some(false), ..Settings::default() }),
            ConfigError::NoWorker
        ));
    }

    #[test]
    fn a_worker_that_is_not_there_is_warned_of_and_replaced() {
        let settings =
            Settings { oci_worker: Some(false), containerd_worker: Some(true), ..Settings::default() };
        let checked = Config::check(settings, Vec::new()).unwrap();
        assert_eq!(checked.warnings.len(), 1);
    }

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["unix:///run/a.sock", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://name:1", "fd://"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://:1234".parse::<Address>().unwrap().to_string(), "tcp://[::]:1234");
        for text in ["", "a", "unix://", "tcp://a", "tcp://a:b", "tcp://a:99999", "fd://3", "npipe://a"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let debug = |text: &str| text.parse::<DebugAddress>();
        assert_eq!(debug("0.0.0.0:6060"), Ok(DebugAddress::Tcp("0.0.0.0:6060".into())));
        assert_eq!(debug("/run/debug.sock"), Ok(DebugAddress::Unix("/run/debug.sock".into())));
        assert!(debug("debug").is_err());
    }
}
