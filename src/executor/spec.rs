//! The sandbox as the OCI runtime specification describes it (`config.json`, version 1.0.2).

use std::path::Path;
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxBuilder;
use oci_spec::runtime::LinuxCpuBuilder;
use oci_spec::runtime::LinuxMemoryBuilder;
use oci_spec::runtime::LinuxNamespace;
use oci_spec::runtime::LinuxNamespaceBuilder;
use oci_spec::runtime::LinuxNamespaceType;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::LinuxResourcesBuilder;
use oci_spec::runtime::Mount;
use oci_spec::runtime::MountBuilder;
use oci_spec::runtime::PosixRlimit;
use oci_spec::runtime::PosixRlimitBuilder;
use oci_spec::runtime::PosixRlimitType;
use oci_spec::runtime::ProcessBuilder;
use oci_spec::runtime::RootBuilder;
use oci_spec::runtime::Spec;
use oci_spec::runtime::SpecBuilder;
use oci_spec::runtime::UserBuilder;

use super::ExecError;
use super::Limits;
use super::Process;
use super::Security;
use super::Ulimit;
use super::hosts::DEFAULT_HOSTNAME;
use super::hosts::OWN_FILES;
use super::network::Namespace;
use super::seccomp;
use super::security;
use super::user::User;

const VERSION: &str = "1.0.2";

/// What was worked out for a process before it is described.
pub struct Parts<'a> {
    pub user: &'a User,
    pub network: &'a Namespace,
    /// Files of the host.
    pub hosts: &'a Path,
    pub resolv_conf: &'a Path,
    /// In the order of the process's mounts.
    pub mounts: Vec<HostMount>,
    pub cgroup: &'a str,
    pub cgroups: CgroupSupport,
    pub seccomp: bool,
    pub apparmor_profile: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CgroupSupport {
    Missing,
    Legacy,
    Unified,
}

/// A mount whose source is ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostMount {
    pub dest: String,
    pub kind: &'static str,
    pub source: PathBuf,
    pub options: Vec<String>,
}

pub fn describe(process: &Process, parts: &Parts<'_>) -> Result<Spec, ExecError> {
    let rlimits = process.ulimits.iter().map(rlimit).collect::<Result<Vec<_>, _>>()?;
    build(process, parts, rlimits).map_err(|error| ExecError::Invalid { reason: error.to_string() })
}

fn build(process: &Process, parts: &Parts<'_>, rlimits: Vec<PosixRlimit>) -> Result<Spec, OciSpecError> {
    let user = UserBuilder::default()
        .uid(parts.user.uid)
        .gid(parts.user.gid)
        .additional_gids(parts.user.groups.clone())
        .build()?;
    let mut inner = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(process.args.clone())
        .env(process.env.clone())
        .cwd(PathBuf::from(working_directory(&process.cwd)))
        .capabilities(security::capabilities(process.security)?)
        .rlimits(rlimits)
        // Set-user-ID programs work: package managers and `sudo` need them.
        .no_new_privileges(false);
    if let Some(profile) = parts.apparmor_profile.filter(|_| process.security == Security::Sandbox) {
        inner = inner.apparmor_profile(profile);
    }
    let root = RootBuilder::default().path(process.root.clone()).readonly(process.read_only_root).build()?;
    let hostname = if process.hostname.is_empty() { DEFAULT_HOSTNAME } else { &process.hostname };
    SpecBuilder::default()
        .version(VERSION)
        .root(root)
        .process(inner.build()?)
        .hostname(hostname)
        .mounts(mounts(process.security, parts)?)
        .linux(linux(process, parts)?)
        .build()
}

/// Absolute, as the specification demands.
pub fn working_directory(cwd: &str) -> String {
    if cwd.starts_with('/') { cwd.to_owned() } else { format!("/{cwd}") }
}

fn linux(process: &Process, parts: &Parts<'_>) -> Result<Linux, OciSpecError> {
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(parts)?)
        .resources(resources(process, parts.cgroups)?)
        .devices(security::devices(process.security)?)
        .masked_paths(security::masked_paths(process.security))
        .readonly_paths(security::read_only_paths(process.security));
    if parts.cgroups != CgroupSupport::Missing {
        linux = linux.cgroups_path(PathBuf::from(parts.cgroup));
    }
    if parts.seccomp && process.security == Security::Sandbox {
        linux = linux.seccomp(seccomp::default_profile()?);
    }
    linux.build()
}

fn namespaces(parts: &Parts<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    // Those of version 1 fail on hierarchies with other names.
    if parts.cgroups == CgroupSupport::Unified {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let build = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let mut namespaces = kinds.into_iter().map(build).collect::<Result<Vec<_>, _>>()?;
    match parts.network {
        Namespace::Host => {}
        Namespace::Loopback => namespaces.push(build(LinuxNamespaceType::Network)?),
        Namespace::At(path) => namespaces.push(
            LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path.clone()).build()?,
        ),
    }
    Ok(namespaces)
}

fn resources(process: &Process, cgroups: CgroupSupport) -> Result<LinuxResources, OciSpecError> {
    let mut resources = LinuxResourcesBuilder::default();
    if cgroups != CgroupSupport::Missing {
        resources = resources.devices(security::device_rules(process.security)?);
    }
    let Limits { memory, memory_swap, cpu_shares, cpu_quota, cpu_period, cpuset_cpus, cpuset_mems } =
        &process.limits;
    if *memory != 0 || *memory_swap != 0 {
        let mut limits = LinuxMemoryBuilder::default();
        if *memory != 0 {
            limits = limits.limit(*memory);
        }
        if *memory_swap != 0 {
            limits = limits.swap(*memory_swap);
        }
        resources = resources.memory(limits.build()?);
    }
    let mut cpu = LinuxCpuBuilder::default();
    if *cpu_shares != 0 {
        cpu = cpu.shares(*cpu_shares);
    }
    if *cpu_quota != 0 {
        cpu = cpu.quota(*cpu_quota);
    }
    if *cpu_period != 0 {
        cpu = cpu.period(*cpu_period);
    }
    if !cpuset_cpus.is_empty() {
        cpu = cpu.cpus(cpuset_cpus.clone());
    }
    if !cpuset_mems.is_empty() {
        cpu = cpu.mems(cpuset_mems.clone());
    }
    resources.cpu(cpu.build()?).build()
}

fn rlimit(ulimit: &Ulimit) -> Result<PosixRlimit, ExecError> {
    let invalid = |reason| ExecError::Invalid { reason };
    let name = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
    let typ: PosixRlimitType =
        name.parse().map_err(|_| invalid(format!("there is no ulimit {:?}", ulimit.name)))?;
    // -1 is the largest number: no limit.
    let limit = PosixRlimitBuilder::default().typ(typ).hard(ulimit.hard as u64).soft(ulimit.soft as u64);
    limit.build().map_err(|error| invalid(error.to_string()))
}

/// A later mount at the same place replaces an earlier one.
fn mounts(security: Security, parts: &Parts<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let access = if security == Security::Insecure { "rw" } else { "ro" };
    let [own_resolv_conf, own_hosts] = OWN_FILES;
    let mut all = vec![
        system("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        system("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        system("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        system("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        system("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        system("/sys", "sysfs", "sysfs", &format!("nosuid,noexec,nodev,{access}")),
        file(own_resolv_conf, parts.resolv_conf),
        file(own_hosts, parts.hosts),
    ];
    if parts.cgroups != CgroupSupport::Missing {
        all.push(system("/sys/fs/cgroup", "cgroup", "cgroup", &format!("{access},nosuid,noexec,nodev")));
    }
    for mount in &parts.mounts {
        match all.iter_mut().find(|earlier| earlier.dest == mount.dest) {
            Some(earlier) => *earlier = mount.clone(),
            None => all.push(mount.clone()),
        }
    }
    let build = |mount: HostMount| {
        MountBuilder::default()
            .destination(mount.dest)
            .typ(mount.kind)
            .source(mount.source)
            .options(mount.options)
            .build()
    };
    all.into_iter().map(build).collect()
}

fn system(dest: &str, kind: &'static str, source: &str, options: &str) -> HostMount {
    let options = options.split(',').map(str::to_owned).collect();
    HostMount { dest: dest.to_owned(), kind, source: PathBuf::from(source), options }
}

fn file(dest: &str, source: &Path) -> HostMount {
    let options = ["nosuid", "noexec", "nodev", "rbind", "ro"].map(str::to_owned).to_vec();
    HostMount { dest: dest.to_owned(), kind: "bind", source: source.to_path_buf(), options }
}
