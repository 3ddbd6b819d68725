//! What a daemon is told: defaults, then `buildkitd.toml`, then flags; checked once, here.
//!
//! [`Settings`] is one layer, in which everything is optional. [`Config`] is the sum of the layers, with every
//! default filled in and every value known to be good. The daemon sees only the latter.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::address::Address;
use super::address::DebugAddress;
use super::defaults::Defaults;
use super::settings::Settings;
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
    pub(super) fn under(self, above: ExecConfig) -> ExecConfig {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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
}
