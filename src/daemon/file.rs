//! `buildkitd.toml` as a layer of settings.
//!
//! A drop-in can't refuse a file that `buildkitd` takes: a key without a use here is a warning that names its
//! line, known to `buildkitd` or not. A value of the wrong type, or one that makes no sense, is refused.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;

use super::address::Address;
use super::address::DebugAddress;
use super::config::ConfigError;
use super::config::DnsConfig;
use super::config::Entitlement;
use super::config::ExecConfig;
use super::config::GcLimits;
use super::config::GcRule;
use super::config::LogLevel;
use super::config::WorkerNetwork;
use super::settings::RegistryWaits;
use super::settings::Settings;
use super::toml::Document;
use super::toml::Finding;
use super::toml::Kind;
use super::toml::Section;
use super::units;
use super::units::Space;
use crate::cache::Filter;
use crate::oci::Platform;
use crate::registry::HostConfig;
use crate::registry::KeyPair;

/// Keys that `buildkitd` has a use for and this daemon does not, with the type that they must have.
const KNOWN: [(&str, Kind); 41] = [
    ("proxyNetwork", Kind::Flag),
    ("provenanceEnvDir", Kind::Text),
    ("otel.socketPath", Kind::Text),
    ("cdi.disabled", Kind::Flag),
    ("cdi.specDirs", Kind::Texts),
    ("cdi.autoAllowed", Kind::Texts),
    ("grpc.securityDescriptor", Kind::Text),
    ("frontend.dockerfile.v0.enabled", Kind::Flag),
    ("frontend.gateway.v0.enabled", Kind::Flag),
    ("frontend.gateway.v0.allowedRepositories", Kind::Texts),
    ("system.platformsCacheMaxAge", Kind::Scalar),
    ("worker.oci.rootless", Kind::Flag),
    ("worker.oci.noProcessSandbox", Kind::Flag),
    ("worker.oci.cniPoolSize", Kind::Number),
    ("worker.oci.bridgeName", Kind::Text),
    ("worker.oci.bridgeSubnet", Kind::Text),
    ("worker.oci.userRemapUnsupported", Kind::Text),
    ("worker.oci.proxySnapshotterPath", Kind::Text),
    ("worker.oci.stargzSnapshotter", Kind::Table),
    ("worker.oci.selinux", Kind::Flag),
    ("worker.containerd.address", Kind::Text),
    ("worker.containerd.labels", Kind::Table),
    ("worker.containerd.platforms", Kind::Texts),
    ("worker.containerd.namespace", Kind::Text),
    ("worker.containerd.runtime", Kind::Table),
    ("worker.containerd.gc", Kind::Flag),
    ("worker.containerd.gckeepstorage", Kind::Scalar),
    ("worker.containerd.reservedSpace", Kind::Scalar),
    ("worker.containerd.maxUsedSpace", Kind::Scalar),
    ("worker.containerd.minFreeSpace", Kind::Scalar),
    ("worker.containerd.gcpolicy", Kind::Tables),
    ("worker.containerd.networkMode", Kind::Text),
    ("worker.containerd.cniConfigPath", Kind::Text),
    ("worker.containerd.cniBinaryPath", Kind::Text),
    ("worker.containerd.cniPoolSize", Kind::Number),
    ("worker.containerd.snapshotter", Kind::Text),
    ("worker.containerd.apparmor-profile", Kind::Text),
    ("worker.containerd.selinux", Kind::Flag),
    ("worker.containerd.max-parallelism", Kind::Number),
    ("worker.containerd.defaultCgroupParent", Kind::Text),
    ("worker.containerd.rootless", Kind::Flag),
];

/// Names in [`KNOWN`] that have a dot of their own.
const DOTTED: [&str; 2] = ["dockerfile.v0", "gateway.v0"];

/// A layer and what to say about it.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    pub warnings: Vec<String>,
}

/// Reads the file at `path`. A file that is not there says nothing.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    read(&text, path)
}

/// Reads the text of a file that is called `path` in what is said about it.
pub fn read(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
    let refused = |findings| ConfigError::Refused { path: path.to_owned(), findings };
    let document = Document::parse(text).map_err(|finding| refused(vec![finding]))?;
    let settings = settings(&document.root());
    for (key, kind) in KNOWN {
        let (section, name) = descend(&document.root(), key);
        section.check(name, kind);
    }
    let faults = document.faults();
    if !faults.is_empty() {
        return Err(refused(faults));
    }
    let warnings = document.unread().iter().map(|unread| warning(path, unread)).collect();
    Ok(Loaded { settings, warnings })
}

fn warning(path: &Path, unread: &Finding) -> String {
    let place = format!("{}:{}", path.display(), unread.line);
    if is_known(&unread.key) {
        format!("{place}: {} is accepted and not used", unread.key)
    } else {
        format!("{place}: {} is not a key that is known, and is not used", unread.key)
    }
}

/// True for the keys of [`KNOWN`] and what lies below its tables.
fn is_known(key: &str) -> bool {
    let key = key.replace('"', "").to_ascii_lowercase();
    KNOWN.iter().any(|(known, _)| {
        key.strip_prefix(&known.to_ascii_lowercase())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

fn descend<'d>(root: &Section<'d>, key: &'static str) -> (Section<'d>, &'static str) {
    if let Some((first, rest)) = key.split_once('.')
        && !DOTTED.contains(&key)
    {
        for dotted in DOTTED {
            if let Some(rest) = rest.strip_prefix(dotted).and_then(|r| r.strip_prefix('.')) {
                return (root.section(first).section(dotted), rest);
            }
        }
        return descend(&root.section(first), rest);
    }
    (root.clone(), key)
}

fn settings(root: &Section<'_>) -> Settings {
    let log = root.section("log");
    let grpc = root.section("grpc");
    let tls = grpc.section("tls");
    let worker = root.section("worker");
    let oci = worker.section("oci");
    let history = root.section("history");
    let level = log.parsed("level", |text| text.parse::<LogLevel>());
    let id = |section: &Section<'_>, key| {
        section.number(key, 0..=i64::from(u32::MAX - 1)).and_then(|n| u32::try_from(n).ok())
    };
    let count = |section: &Section<'_>, key, least| {
        section.number(key, least..=i64::from(u32::MAX)).and_then(|n| usize::try_from(n).ok())
    };
    let keep = oci.scalar("gckeepstorage", units::SPACE, units::parse_space);
    let oci_limits = limits(&oci);
    Settings {
        root: text_path(root, "root"),
        // `debug` and `trace` are the old spelling of `log.level`, which goes first.
        log_level: level.or(match (root.flag("trace"), root.flag("debug")) {
            (Some(true), _) => Some(LogLevel::Trace),
            (_, Some(true)) => Some(LogLevel::Debug),
            _ => None,
        }),
        log_format: log.parsed("format", str::parse),
        listen: grpc.list("address", |text| text.parse::<Address>()).filter(|list| !list.is_empty()),
        uid: id(&grpc, "uid"),
        gid: id(&grpc, "gid"),
        tls_cert: text_path(&tls, "cert"),
        tls_key: text_path(&tls, "key"),
        tls_client_ca: text_path(&tls, "ca"),
        debug_address: grpc
            .parsed("debugAddress", |text| match text {
                "" => Ok(None),
                text => text.parse::<DebugAddress>().map(Some),
            })
            .flatten(),
        entitlements: root
            .list("insecure-entitlements", |text| text.parse::<Entitlement>())
            .map(BTreeSet::from_iter),
        registries: root
            .section("registry")
            .named_sections()
            .into_iter()
            .map(|(host, section)| (host, registry(&section)))
            .collect(),
        registry_concurrency: count(&root.section("system"), "maxRegistryConcurrency", 1)
            .and_then(NonZeroUsize::new),
        registry_waits: waits(&root.section("thunk").section("registry")),
        oci_worker: oci.flag("enabled"),
        containerd_worker: worker.section("containerd").flag("enabled"),
        labels: oci.section("labels").named_texts().into_iter().collect(),
        platforms: oci.list("platforms", |text| text.parse::<Platform>().map_err(|e| e.to_string())),
        gc: oci.flag("gc"),
        gc_limits: GcLimits {
            reserved: oci_limits.reserved.or(if oci_limits == GcLimits::default() { keep } else { None }),
            ..oci_limits
        },
        gc_rules: oci.sections("gcpolicy").map(|rules| rules.iter().map(rule).collect()),
        max_parallelism: count(&oci, "max-parallelism", 0),
        snapshotter: oci.parsed("snapshotter", str::parse),
        sync_interval: None,
        exec: exec(&oci),
        dns: dns(&root.section("dns")),
        history_max_age: history.scalar("maxAge", units::DURATION, units::parse_duration),
        history_max_entries: count(&history, "maxEntries", 0),
    }
}

/// A path; the empty string says nothing, as in `buildkitd`.
fn text_path(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    section.text(key).filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn limits(section: &Section<'_>) -> GcLimits {
    let space = |key| {
        let space = section.scalar(key, units::SPACE, units::parse_space);
        space.filter(|space| !matches!(space, Space::Bytes(0) | Space::Percent(0)))
    };
    GcLimits {
        reserved: space("reservedSpace"),
        max_used: space("maxUsedSpace"),
        min_free: space("minFreeSpace"),
    }
}

fn rule(section: &Section<'_>) -> GcRule {
    let keep_bytes = section.scalar("keepBytes", units::SPACE, units::parse_space);
    let limits = limits(section);
    GcRule {
        all: section.flag("all").unwrap_or_default(),
        filters: section.list("filters", filter).unwrap_or_default(),
        keep: section.scalar("keepDuration", units::DURATION, units::parse_duration).unwrap_or_default(),
        limits: GcLimits { reserved: limits.reserved.or(keep_bytes), ..limits },
    }
}

fn filter(text: &str) -> Result<String, String> {
    Filter::parse(&[text]).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// How steps are run. The empty string says nothing.
fn exec(section: &Section<'_>) -> ExecConfig {
    let text = |key| section.text(key).filter(|text| !text.is_empty());
    ExecConfig {
        binary: text("binary"),
        network: section.parsed("networkMode", str::parse::<WorkerNetwork>),
        cni_config: text_path(section, "cniConfigPath"),
        cni_plugins: text_path(section, "cniBinaryPath"),
        cgroup_parent: text("defaultCgroupParent"),
        apparmor_profile: text("apparmor-profile"),
    }
}

fn dns(section: &Section<'_>) -> Option<DnsConfig> {
    let texts = |key| section.list(key, |text| Ok(text.to_owned()));
    let nameservers = section.list("nameservers", |text| {
        text.parse::<std::net::IpAddr>()
            .map(|_| text.to_owned())
            .map_err(|_| format!("expected the IP address of a name server, found {text:?}"))
    });
    let (options, search_domains) = (texts("options"), texts("searchDomains"));
    if nameservers.is_none() && options.is_none() && search_domains.is_none() {
        return None;
    }
    Some(DnsConfig {
        nameservers: nameservers.unwrap_or_default(),
        options: options.unwrap_or_default(),
        search_domains: search_domains.unwrap_or_default(),
    })
}

fn registry(section: &Section<'_>) -> HostConfig {
    let paths = |key| section.list(key, |text| Ok(PathBuf::from(text))).unwrap_or_default();
    HostConfig {
        mirrors: section.list("mirrors", mirror).unwrap_or_default(),
        http: section.flag("http"),
        insecure: section.flag("insecure"),
        ca: paths("ca"),
        keypairs: section.sections("keypair").unwrap_or_default().iter().filter_map(keypair).collect(),
        tls_config_dirs: paths("tlsconfigdir"),
    }
}

/// `[thunk.registry]`, which `buildkitd` doesn't have and ignores.
fn waits(section: &Section<'_>) -> RegistryWaits {
    let wait = |key| {
        let expected = format!("{} that is not zero", units::DURATION);
        section.scalar(key, &expected, |text| units::parse_duration(text).filter(|wait| !wait.is_zero()))
    };
    RegistryWaits {
        retries: section.number("retries", 0..=100).and_then(|n| u32::try_from(n).ok()),
        retry_base: wait("retryBase"),
        longest_retry_after: wait("maxRetryAfter"),
        connect: wait("connectTimeout"),
        stall: wait("stallTimeout"),
        commit: wait("commitTimeout"),
    }
}

fn keypair(section: &Section<'_>) -> Option<KeyPair> {
    match (text_path(section, "key"), text_path(section, "cert")) {
        (Some(key), Some(cert)) => Some(KeyPair { key, cert }),
        _ => {
            section.refuse("", "expected a key and a cert");
            None
        }
    }
}

fn mirror(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = bare.split('/').next().unwrap_or_default();
    if host.is_empty() || bare.contains(|c: char| c.is_whitespace() || matches!(c, '@' | '?' | '#')) {
        return Err(format!("expected host[:port][/prefix], found {text:?}"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
