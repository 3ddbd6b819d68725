//! Decodes exec ops.

use serde::Serialize;

use super::invalid::InvalidOp;
use super::invalid::index;
use super::invalid::no_nul;
use super::pb;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::ops::op::CacheSharing;
use crate::ops::op::CdiDevice;
use crate::ops::op::ClientFile;
use crate::ops::op::ContentCache;
use crate::ops::op::ExecMount;
use crate::ops::op::ExecOp;
use crate::ops::op::ExtraHost;
use crate::ops::op::LinuxResources;
use crate::ops::op::MountKind;
use crate::ops::op::NetworkMode;
use crate::ops::op::ProxyEnv;
use crate::ops::op::ROOT;
use crate::ops::op::SecretEnv;
use crate::ops::op::SecurityMode;
use crate::ops::op::Ulimit;

/// Reads the op of a vertex with `inputs` inputs; `platform` is the vertex's, as it was sent.
pub(super) fn exec(
    op: &pb::ExecOp,
    platform: Option<&pb::Platform>,
    inputs: usize,
) -> Result<ExecOp, InvalidOp> {
    let missing = |what: &str| InvalidOp::Missing { what: what.to_owned() };
    let meta = op.meta.as_ref().ok_or_else(|| missing("meta"))?;
    if meta.args.is_empty() {
        return Err(missing("argument"));
    }
    let mounts =
        op.mounts.iter().enumerate().map(|(n, m)| mount(n, m, inputs)).collect::<Result<Vec<_>, _>>()?;
    // A later mount covers an earlier one.
    let root = mounts.iter().rev().find(|m| m.dest == ROOT).ok_or_else(|| missing("mount at /"))?;
    if root.kind != MountKind::Bind {
        return Err(InvalidOp::RootKind);
    }
    Ok(ExecOp {
        args: texts("args", &meta.args)?,
        env: texts("env", &meta.env)?,
        cwd: text("cwd", &meta.cwd)?,
        user: text("user", &meta.user)?,
        hostname: text("hostname", &meta.hostname)?,
        extra_hosts: meta.extra_hosts.iter().map(extra_host).collect::<Result<_, _>>()?,
        proxy: meta.proxy_env.as_ref().map(proxy).transpose()?,
        ulimits: meta.ulimit.iter().map(ulimit).collect::<Result<_, _>>()?,
        cgroup_parent: text("cgroupParent", &meta.cgroup_parent)?,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        valid_exit_codes: match meta.valid_exit_codes.as_slice() {
            [] => vec![0],
            codes => codes.to_vec(),
        },
        mounts,
        network: match op.network {
            0 => NetworkMode::Sandbox,
            1 => NetworkMode::Host,
            2 => NetworkMode::None,
            value => return Err(unknown("network", value)),
        },
        security: match op.security {
            0 => SecurityMode::Sandbox,
            1 => SecurityMode::Insecure,
            value => return Err(unknown("security", value)),
        },
        secret_env: op.secretenv.iter().map(secret_env).collect::<Result<_, _>>()?,
        devices: op.cdi_devices.iter().map(device).collect::<Result<_, _>>()?,
        key: key(op, platform),
    })
}

/// The number of outputs of an exec op.
pub(super) fn outputs(op: &pb::ExecOp) -> i64 {
    let gives = |m: &&pb::Mount| match pb::MountType::try_from(m.mount_type) {
        Ok(pb::MountType::Bind) => m.output >= 0,
        Ok(pb::MountType::Cache) => m.output >= 0 && m.input >= 0,
        _ => false,
    };
    i64::try_from(op.mounts.iter().filter(gives).count()).unwrap_or(i64::MAX)
}

/// The process, for people.
pub(super) fn name(op: &pb::ExecOp) -> impl Iterator<Item = &str> {
    op.meta.iter().flat_map(|meta| meta.args.iter().map(String::as_str))
}

/// The limits that the metadata of a vertex states.
pub(super) fn resources(sent: &pb::LinuxResources) -> Result<LinuxResources, InvalidOp> {
    let positive = |value: u64| (value != 0).then_some(value);
    let unlimited = |what: &str, value: i64| match value {
        0 => Ok(None),
        value if value < -1 => Err(InvalidOp::Negative { what: what.to_owned(), value }),
        value => Ok(Some(value)),
    };
    let memory = u64::try_from(sent.memory)
        .map_err(|_| InvalidOp::Negative { what: "memory".to_owned(), value: sent.memory })?;
    Ok(LinuxResources {
        memory: positive(memory),
        memory_swap: unlimited("memorySwap", sent.memory_swap)?,
        cpu_shares: positive(sent.cpu_shares),
        cpu_period: positive(sent.cpu_period),
        cpu_quota: unlimited("cpuQuota", sent.cpu_quota)?,
        cpuset_cpus: text("cpusetCpus", &sent.cpuset_cpus)?,
        cpuset_mems: text("cpusetMems", &sent.cpuset_mems)?,
    })
}

fn mount(n: usize, mount: &pb::Mount, inputs: usize) -> Result<ExecMount, InvalidOp> {
    let what = |field: &str| format!("{field} of mount {n}");
    let kind = match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind) => MountKind::Bind,
        Ok(pb::MountType::Cache) => {
            let cache =
                mount.cache_opt.as_ref().ok_or_else(|| InvalidOp::Missing { what: what("cacheOpt") })?;
            let sharing = match pb::CacheSharingOpt::try_from(cache.sharing) {
                Ok(pb::CacheSharingOpt::Shared) => CacheSharing::Shared,
                Ok(pb::CacheSharingOpt::Private) => CacheSharing::Private,
                Ok(pb::CacheSharingOpt::Locked) => CacheSharing::Locked,
                Err(_) => return Err(unknown(&what("sharing"), cache.sharing)),
            };
            MountKind::Cache { id: no_nul(|| what("cacheOpt"), &cache.id)?, sharing }
        }
        Ok(pb::MountType::Tmpfs) => {
            let size = mount.tmpfs_opt.as_ref().map_or(0, |t| t.size);
            let size =
                u64::try_from(size).map_err(|_| InvalidOp::Negative { what: what("size"), value: size })?;
            MountKind::Tmpfs { size: (size > 0).then_some(size) }
        }
        Ok(pb::MountType::Secret) => {
            let secret = mount.secret_opt.as_ref();
            let secret = secret.ok_or_else(|| InvalidOp::Missing { what: what("secretOpt") })?;
            let missing = || InvalidOp::Missing { what: what("ID") };
            let id = Some(&secret.id).filter(|id| !id.is_empty()).ok_or_else(missing)?;
            MountKind::Secret(ClientFile {
                id: no_nul(|| what("ID"), id)?,
                uid: secret.uid,
                gid: secret.gid,
                mode: file_mode(|| what("mode"), secret.mode)?,
                optional: secret.optional,
            })
        }
        Ok(pb::MountType::Ssh) => {
            let ssh = mount.ssh_opt.as_ref().ok_or_else(|| InvalidOp::Missing { what: what("SSHOpt") })?;
            MountKind::Ssh(ClientFile {
                id: no_nul(|| what("ID"), &ssh.id)?,
                uid: ssh.uid,
                gid: ssh.gid,
                mode: file_mode(|| what("mode"), ssh.mode)?,
                optional: ssh.optional,
            })
        }
        Err(_) => return Err(unknown(&what("mountType"), mount.mount_type)),
    };
    if mount.dest.is_empty() {
        return Err(InvalidOp::Missing { what: what("dest") });
    }
    if mount.output < -1 {
        return Err(InvalidOp::Negative { what: what("output"), value: mount.output });
    }
    let content_cache = match pb::MountContentCache::try_from(mount.content_cache) {
        Ok(pb::MountContentCache::Default) => ContentCache::Default,
        Ok(pb::MountContentCache::On) => ContentCache::On,
        Ok(pb::MountContentCache::Off) => ContentCache::Off,
        Err(_) => return Err(unknown(&what("contentCache"), mount.content_cache)),
    };
    // These have no input, and arrive with 0, as their output does.
    let input = match kind {
        MountKind::Bind | MountKind::Cache { .. } => index(|| what("input"), mount.input, inputs)?,
        MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
    };
    let mount = ExecMount {
        dest: no_nul(|| what("dest"), &mount.dest)?,
        input,
        selector: no_nul(|| what("selector"), &mount.selector)?,
        output: mount.output >= 0,
        read_only: mount.readonly,
        kind,
        content_cache,
    };
    let whole = mount.selector.split('/').all(|part| part.is_empty() || part == ".");
    if content_cache == ContentCache::On && input.is_some() && mount.output && !mount.read_only && !whole {
        return Err(InvalidOp::UnsafeContentCache { mount: n });
    }
    Ok(mount)
}

/// Go clients send no more than permission bits.
fn file_mode(what: impl FnOnce() -> String, mode: u32) -> Result<u32, InvalidOp> {
    if mode > 0o7777 {
        return Err(InvalidOp::TooLarge { what: what(), value: mode.into(), limit: 0o7777 });
    }
    Ok(mode)
}

fn extra_host(host: &pb::HostIp) -> Result<ExtraHost, InvalidOp> {
    Ok(ExtraHost { host: text("extraHosts", &host.host)?, ip: text("extraHosts", &host.ip)? })
}

fn proxy(proxy: &pb::ProxyEnv) -> Result<ProxyEnv, InvalidOp> {
    let text = |value: &str| text("proxy_env", value);
    Ok(ProxyEnv {
        http: text(&proxy.http_proxy)?,
        https: text(&proxy.https_proxy)?,
        ftp: text(&proxy.ftp_proxy)?,
        no: text(&proxy.no_proxy)?,
        all: text(&proxy.all_proxy)?,
    })
}

fn ulimit(limit: &pb::Ulimit) -> Result<Ulimit, InvalidOp> {
    for value in [limit.soft, limit.hard] {
        if value < -1 {
            return Err(InvalidOp::Negative { what: format!("ulimit {}", limit.name.escape_debug()), value });
        }
    }
    Ok(Ulimit { name: text("ulimit", &limit.name)?, soft: limit.soft, hard: limit.hard })
}

fn secret_env(secret: &pb::SecretEnv) -> Result<SecretEnv, InvalidOp> {
    if secret.id.is_empty() || secret.name.is_empty() {
        return Err(InvalidOp::Missing { what: "ID or name of a secretenv".to_owned() });
    }
    Ok(SecretEnv {
        id: text("secretenv", &secret.id)?,
        name: text("secretenv", &secret.name)?,
        optional: secret.optional,
    })
}

fn device(device: &pb::CdiDevice) -> Result<CdiDevice, InvalidOp> {
    Ok(CdiDevice { name: text("cdiDevices", &device.name)?, optional: device.optional })
}

fn text(what: &str, text: &str) -> Result<String, InvalidOp> {
    no_nul(|| what.to_owned(), text)
}

fn texts(what: &str, texts: &[String]) -> Result<Vec<String>, InvalidOp> {
    texts.iter().map(|t| text(what, t)).collect()
}

fn unknown(what: &str, value: i32) -> InvalidOp {
    InvalidOp::Enumeration { what: what.to_owned(), value }
}

/// The digest of the JSON that BuildKit hashes: what has no influence on the result is left out of it.
fn key(op: &pb::ExecOp, platform: Option<&pb::Platform>) -> Digest {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Key<'a> {
        r#type: &'static str,
        exec: &'a pb::ExecOp,
        #[serde(rename = "OS")]
        os: &'a str,
        arch: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        variant: &'a str,
        #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
        os_version: &'a str,
        #[serde(rename = "OSFeatures", skip_serializing_if = "<[_]>::is_empty")]
        os_features: &'a [String],
    }
    let mut op = op.clone();
    if let Some(meta) = &mut op.meta {
        meta.proxy_env = None;
        meta.extra_hosts.iter_mut().for_each(|host| host.ip.clear());
    }
    for mount in &mut op.mounts {
        mount.selector.clear();
        let dest = mount.dest.clone();
        if let Some(cache) = &mut mount.cache_opt {
            // What the Dockerfile frontend writes by itself, with a namespace or without one, stays.
            let name = cache.id.split_once('/').map_or("", |(_, rest)| rest);
            if (cache.id != dest && name != dest) || cache.sharing != 0 {
                cache.id.clear();
                cache.sharing = 0;
            }
        }
    }
    let plain_root = |m: &pb::Mount| {
        m.dest == ROOT
            && !m.readonly
            && m.mount_type == 0
            && m.cache_opt.is_none()
            && m.ssh_opt.is_none()
            && m.secret_opt.is_none()
            && m.result_id.is_empty()
    };
    if matches!(op.mounts.as_slice(), [only] if plain_root(only)) {
        op.mounts.clear();
    }
    let host = Platform::host();
    let key = match platform {
        Some(p) => Key {
            r#type: "buildkit.exec.v0",
            exec: &op,
            os: &p.os,
            arch: &p.architecture,
            variant: &p.variant,
            os_version: &p.os_version,
            os_features: &p.os_features,
        },
        None => Key {
            r#type: "buildkit.exec.v0",
            exec: &op,
            os: &host.os,
            arch: &host.architecture,
            variant: &host.variant,
            os_version: &host.os_version,
            os_features: &host.os_features,
        },
    };
    Digest::sha256(super::go_json(&key))
}

#[cfg(test)]
mod tests;
