//! What a process may do: capabilities, devices, and what of `/proc` and `/sys` it sees.

use std::fs;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::Capabilities;
use oci_spec::runtime::Capability;
use oci_spec::runtime::LinuxCapabilities;
use oci_spec::runtime::LinuxCapabilitiesBuilder;
use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceBuilder;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceCgroupBuilder;
use oci_spec::runtime::LinuxDeviceType;

use super::Security;

/// What container engines leave to a sandboxed root.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// By their numbers in the kernel.
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices of an insecure process, beside those of every one, with their numbers in the kernel.
const INSECURE_DEVICES: [(&str, i64, i64); 6] = [
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
];

/// Block devices for loop mounts: those that the host has, and some to be used next.
const SPARE_LOOPS: usize = 8;
const LOOP_MAJOR: i64 = 7;

pub fn masked_paths(security: Security) -> Vec<String> {
    match security {
        Security::Sandbox => MASKED.map(str::to_owned).to_vec(),
        Security::Insecure => Vec::new(),
    }
}

pub fn read_only_paths(security: Security) -> Vec<String> {
    match security {
        Security::Sandbox => READ_ONLY.map(str::to_owned).to_vec(),
        Security::Insecure => Vec::new(),
    }
}

pub fn capabilities(security: Security) -> Result<LinuxCapabilities, OciSpecError> {
    let (all, inherited) = match security {
        // A program that is run with another user ID starts without any.
        Security::Sandbox => (Capabilities::from(DEFAULT), Capabilities::new()),
        Security::Insecure => {
            let own = own_capabilities();
            (own.clone(), own)
        }
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .effective(all.clone())
        .permitted(all)
        .inheritable(inherited.clone())
        .ambient(inherited)
        .build()
}

/// What this process itself may do.
fn own_capabilities() -> Capabilities {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    NUMBERED.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0).map(|(_, c)| *c).collect()
}

pub fn device_rules(security: Security) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow: bool| LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm");
    match security {
        // The runtime adds those that every process needs.
        Security::Sandbox => Ok(vec![rule(false).build()?]),
        Security::Insecure => {
            Ok(vec![rule(true).typ(LinuxDeviceType::C).build()?, rule(true).typ(LinuxDeviceType::B).build()?])
        }
    }
}

pub fn devices(security: Security) -> Result<Vec<LinuxDevice>, OciSpecError> {
    if security == Security::Sandbox {
        return Ok(Vec::new());
    }
    let device = |path: &str, typ, major: i64, minor: i64| {
        LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build()
    };
    let mut devices = Vec::new();
    for (path, major, minor) in INSECURE_DEVICES {
        devices.push(device(path, LinuxDeviceType::C, major, minor)?);
    }
    let present = (0i64..).take_while(|n| Path::new(&format!("/dev/loop{n}")).exists()).count();
    for n in 0..present + SPARE_LOOPS {
        let minor = i64::try_from(n).unwrap_or(i64::MAX);
        devices.push(device(&format!("/dev/loop{n}"), LinuxDeviceType::B, LOOP_MAJOR, minor)?);
    }
    Ok(devices)
}
