//! One layer of what a daemon is told, in which everything is optional: see [`config`](super::config).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;
use super::address::DebugAddress;
use super::config::DnsConfig;
use super::config::Entitlement;
use super::config::ExecConfig;
use super::config::GcLimits;
use super::config::GcRule;
use super::config::LogFormat;
use super::config::LogLevel;
use super::config::SnapshotterKind;
use crate::oci::Platform;
use crate::registry::HostConfig;
use crate::registry::Patience;
use crate::registry::RetryPolicy;

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

    pub(super) fn retry(self) -> RetryPolicy {
        let default = RetryPolicy::default();
        RetryPolicy {
            retries: self.retries.unwrap_or(default.retries),
            base: self.retry_base.unwrap_or(default.base),
            longest_wait: self.longest_retry_after.unwrap_or(default.longest_wait),
        }
    }

    pub(super) fn patience(self) -> Patience {
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
