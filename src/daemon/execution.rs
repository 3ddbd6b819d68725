//! The configuration of build steps' processes, for the executor.

use std::path::PathBuf;

use super::config::Config;
use super::config::ExecConfig;
use super::config::WorkerNetwork;
use crate::executor::Dns;
use crate::executor::ExecutorOptions;
use crate::executor::NetworkMode;

/// How the daemon runs processes.
pub(super) fn options(config: &Config) -> ExecutorOptions {
    let exec = &config.worker.exec;
    ExecutorOptions {
        directory: config.root.join("executor"),
        runtime: exec.binary.clone(),
        network: network(exec),
        dns: Dns {
            nameservers: config.dns.nameservers.clone(),
            options: config.dns.options.clone(),
            search_domains: config.dns.search_domains.clone(),
        },
        cgroup_parent: exec.cgroup_parent.clone().unwrap_or_default(),
        apparmor_profile: exec.apparmor_profile.clone(),
    }
}

/// The network of steps that ask for none in particular. Without a configuration of plugins it is the host's.
pub(super) fn network(exec: &ExecConfig) -> NetworkMode {
    let path = |configured: &Option<PathBuf>, usual: &str| {
        configured.clone().unwrap_or_else(|| PathBuf::from(usual))
    };
    let config = path(&exec.cni_config, "/etc/buildkit/cni.json");
    let plugins = path(&exec.cni_plugins, "/opt/cni/bin");
    match exec.network.unwrap_or_default() {
        WorkerNetwork::Host => NetworkMode::Host,
        WorkerNetwork::Auto if !config.exists() => NetworkMode::Host,
        WorkerNetwork::Auto | WorkerNetwork::Cni => NetworkMode::Cni { config, plugins },
    }
}
