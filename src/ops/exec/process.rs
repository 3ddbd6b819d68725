//! The process of an exec op, in the executor's words.

use super::super::op::ExecOp;
use super::super::op::LinuxResources;
use super::super::op::NetworkMode;
use super::super::op::ProxyEnv;
use super::super::op::SecurityMode;
use super::ExecOpError;
use super::prepare::Prepared;
use crate::executor::ExtraHost;
use crate::executor::Limits;
use crate::executor::Network;
use crate::executor::Process;
use crate::executor::Security;
use crate::executor::Ulimit;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `secrets` are variables that nothing overrides. Takes the mounts out of `prepared`.
pub fn describe(
    op: &ExecOp,
    resources: Option<&LinuxResources>,
    prepared: &mut Prepared,
    secrets: Vec<String>,
) -> Result<Process, ExecOpError> {
    if let Some(device) = op.devices.iter().find(|device| !device.optional) {
        return Err(ExecOpError::Device { name: device.name.clone() });
    }
    let extra_host = |host: &super::super::op::ExtraHost| {
        let address = host.ip.parse().map_err(|_| ExecOpError::ExtraHost { address: host.ip.clone() })?;
        Ok::<_, ExecOpError>(ExtraHost { host: host.host.clone(), address })
    };
    Ok(Process {
        root: prepared.root.clone(),
        read_only_root: prepared.read_only_root,
        mounts: std::mem::take(&mut prepared.mounts),
        args: op.args.clone(),
        env: environment(&op.env, op.proxy.as_ref(), secrets),
        cwd: op.cwd.clone(),
        user: op.user.clone(),
        hostname: op.hostname.clone(),
        extra_hosts: op.extra_hosts.iter().map(extra_host).collect::<Result<_, _>>()?,
        network: match op.network {
            NetworkMode::Sandbox => Network::Sandbox,
            NetworkMode::Host => Network::Host,
            NetworkMode::None => Network::None,
        },
        security: match op.security {
            SecurityMode::Sandbox => Security::Sandbox,
            SecurityMode::Insecure => Security::Insecure,
        },
        ulimits: op
            .ulimits
            .iter()
            .map(|u| Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard })
            .collect(),
        cgroup_parent: op.cgroup_parent.clone(),
        limits: resources.map(limits).unwrap_or_default(),
        valid_exit_codes: op.valid_exit_codes.clone(),
        remove_mount_stubs_recursive: op.remove_mount_stubs_recursive,
        holds: std::mem::take(&mut prepared.holds),
    })
}

fn limits(resources: &LinuxResources) -> Limits {
    Limits {
        memory: resources.memory.map_or(0, |memory| i64::try_from(memory).unwrap_or(i64::MAX)),
        memory_swap: resources.memory_swap.unwrap_or_default(),
        cpu_shares: resources.cpu_shares.unwrap_or_default(),
        cpu_quota: resources.cpu_quota.unwrap_or_default(),
        cpu_period: resources.cpu_period.unwrap_or_default(),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
    }
}

/// A later variable replaces an earlier one, in its place; a name without a value takes it away.
fn environment(own: &[String], proxy: Option<&ProxyEnv>, secrets: Vec<String>) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = own.to_vec();
    all.extend(proxy.into_iter().flat_map(proxies));
    if !all.iter().any(|variable| variable.starts_with("PATH=")) {
        all.push(DEFAULT_PATH.to_owned());
    }
    all.extend(secrets);
    let mut found: Vec<String> = Vec::with_capacity(all.len());
    for variable in all {
        let place = found.iter().position(|earlier| name(earlier) == name(&variable));
        match (place, variable.contains('=')) {
            (Some(place), true) => found[place] = variable,
            (Some(place), false) => {
                found.remove(place);
            }
            (None, true) => found.push(variable),
            (None, false) => {}
        }
    }
    found
}

/// Programs don't agree on the case.
fn proxies(proxy: &ProxyEnv) -> impl Iterator<Item = String> {
    let pairs = [
        ("HTTP_PROXY", &proxy.http),
        ("HTTPS_PROXY", &proxy.https),
        ("FTP_PROXY", &proxy.ftp),
        ("NO_PROXY", &proxy.no),
        ("ALL_PROXY", &proxy.all),
    ];
    let set = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| {
        [format!("{name}={value}"), format!("{}={value}", name.to_ascii_lowercase())]
    })
    .collect::<Vec<_>>()
    .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn later_variables_win_and_a_path_is_always_there() {
        let proxy = ProxyEnv { http: "p".into(), no: "n".into(), ..ProxyEnv::default() };
        let own = variables(&["A=1", "B=2", "A=3", "B", "http_proxy=own"]);
        let found = environment(&own, Some(&proxy), variables(&["S=x", "A=secret"]));
        let expected =
            ["A=secret", "http_proxy=p", "HTTP_PROXY=p", "NO_PROXY=n", "no_proxy=n", DEFAULT_PATH, "S=x"];
        assert_eq!(found, expected);
        assert_eq!(environment(&variables(&["PATH=/x"]), None, Vec::new()), ["PATH=/x"]);
    }
}
