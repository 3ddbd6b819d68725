//! The flags of `buildkitd`, as a layer of settings.
//!
//! They are read as Go programs read them: one dash or two, `--flag=false` for booleans, the last one of a flag
//! that is given twice. Every flag that `buildkitd` has is taken; one without a use here is a warning.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Arg;
use clap::ArgAction;
use clap::ArgMatches;
use clap::Args;
use clap::Command;
use clap::FromArgMatches;
use clap::parser::ValueSource;

use super::address::Address;
use super::address::DebugAddress;
use super::config::ConfigError;
use super::config::Entitlement;
use super::config::ExecConfig;
use super::config::GcLimits;
use super::config::LogFormat;
use super::config::LogLevel;
use super::config::SnapshotterKind;
use super::config::WorkerNetwork;
use super::settings::Settings;
use super::units::Space;
use super::units::parse_duration;
use crate::oci::Platform;

/// Flags that are used.
#[derive(Clone, PartialEq, Debug, Default, Args)]
pub struct Flags {
    /// Configuration file [default: /etc/buildkit/buildkitd.toml, or the user's own]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for everything that is kept [default: /var/lib/buildkit, or the user's own]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Address to listen on: unix:///path, tcp://host:port or fd:// (repeatable)
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    addr: Option<Vec<Address>>,
    /// Group (name or ID) that owns the unix sockets
    #[arg(long)]
    group: Option<String>,
    /// Log at level debug
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    debug: Option<bool>,
    /// Log at level trace
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    trace: Option<bool>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, env = "BUILDKITD_LOG_LEVEL", hide_env = true)]
    log_level: Option<LogLevel>,
    /// Log format: text or json [default: text]
    #[arg(long)]
    log_format: Option<LogFormat>,
    /// Address of the debug page: host:port or unix:///path
    #[arg(long, env = "BUILDKITD_DEBUGADDR", hide_env = true, value_name = "ADDRESS")]
    debugaddr: Option<String>,
    /// Certificate of the TCP listeners
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Authority that signs the certificates that clients must show
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Entitlement that builds may ask for (repeatable)
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    allow_insecure_entitlement: Option<Vec<Entitlement>>,
    /// Use the embedded worker: true, false or auto
    #[arg(long, value_name = "BOOL", value_parser = bool_or_auto)]
    oci_worker: Option<Auto>,
    /// Label of the worker, key=value (repeatable)
    #[arg(long, value_name = "LABEL", action = ArgAction::Append, value_parser = label)]
    oci_worker_labels: Option<Vec<(String, String)>>,
    /// Platform that the worker serves, the first is the default (repeatable)
    #[arg(long, value_name = "PLATFORM", action = ArgAction::Append)]
    oci_worker_platform: Option<Vec<Platform>>,
    /// Collect garbage without being asked [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    oci_worker_gc: Option<bool>,
    /// What garbage collection keeps, in MB: reserved,free,maximum, the last two optional
    #[arg(long, value_name = "MB", value_parser = keep_storage)]
    oci_worker_gc_keepstorage: Option<GcLimits>,
    /// Build steps that run at the same time, 0 for no limit
    #[arg(long, value_name = "N")]
    oci_max_parallelism: Option<usize>,
    /// How directories are made of layers: auto, overlayfs or native
    #[arg(long, value_name = "NAME")]
    oci_worker_snapshotter: Option<SnapshotterKind>,
    /// How long the files of a step may wait until they outlast a power cut [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    snapshot_sync_interval: Option<Duration>,
    /// Network of build steps: auto, cni or host
    #[arg(long, value_name = "MODE", value_parser = str::parse::<WorkerNetwork>)]
    oci_worker_net: Option<WorkerNetwork>,
    /// Configuration of the network's plugins [default: /etc/buildkit/cni.json]
    #[arg(long, value_name = "FILE")]
    oci_cni_config_path: Option<PathBuf>,
    /// Where those plugins lie [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    oci_cni_binary_dir: Option<PathBuf>,
    /// OCI runtime that runs build steps [default: runc or crun]
    #[arg(long, value_name = "PROGRAM")]
    oci_worker_binary: Option<String>,
    /// AppArmor profile of build steps
    #[arg(long, value_name = "NAME")]
    oci_worker_apparmor_profile: Option<String>,
    /// Use containerd's worker: true, false or auto
    #[arg(long, value_name = "BOOL", value_parser = bool_or_auto)]
    containerd_worker: Option<Auto>,
    #[arg(hide = true)]
    rest: Vec<String>,
}

/// A switch that may be left to the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Auto {
    Auto,
    Set(bool),
}

/// What a flag without a use here takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Takes {
    Flag,
    Text,
    Number,
}

const UNUSED: [(&str, Takes); 36] = [
    ("rootless", Takes::Flag),
    ("proxy-network", Takes::Flag),
    ("otel-socket-path", Takes::Text),
    ("cdi-disabled", Takes::Flag),
    ("cdi-spec-dir", Takes::Text),
    ("save-cache-debug", Takes::Flag),
    ("profile-cpu", Takes::Text),
    ("profile-memory", Takes::Text),
    ("profile-memoryrate", Takes::Number),
    ("profile-block", Takes::Text),
    ("profile-mutex", Takes::Text),
    ("profile-trace", Takes::Text),
    ("oci-worker-proxy-snapshotter-path", Takes::Text),
    ("oci-cni-worker-path", Takes::Text),
    ("oci-cni-pool-size", Takes::Number),
    ("oci-worker-selinux", Takes::Flag),
    ("oci-worker-rootless", Takes::Flag),
    ("oci-worker-no-process-sandbox", Takes::Flag),
    ("containerd-worker-addr", Takes::Text),
    ("containerd-worker-labels", Takes::Text),
    ("containerd-worker-platform", Takes::Text),
    ("containerd-worker-namespace", Takes::Text),
    ("containerd-worker-runtime", Takes::Text),
    ("containerd-worker-net", Takes::Text),
    ("containerd-cni-config-path", Takes::Text),
    ("containerd-cni-worker-path", Takes::Text),
    ("containerd-cni-binary-dir", Takes::Text),
    ("containerd-cni-pool-size", Takes::Number),
    ("containerd-worker-snapshotter", Takes::Text),
    ("containerd-worker-apparmor-profile", Takes::Text),
    ("containerd-worker-selinux", Takes::Flag),
    ("containerd-max-parallelism", Takes::Number),
    ("containerd-worker-rootless", Takes::Flag),
    ("containerd-worker-gc", Takes::Flag),
    ("containerd-worker-gc-keepstorage", Takes::Text),
    ("containerd-default-cgroup-parent", Takes::Text),
];

/// The command line of a daemon that is called `name`.
pub fn command(name: &'static str) -> Command {
    let command = Flags::augment_args(Command::new(name))
        .version(env!("CARGO_PKG_VERSION"))
        .about("The build cache daemon; takes the flags and the configuration of buildkitd")
        // The last one wins, as in Go.
        .args_override_self(true);
    UNUSED.iter().fold(command, |command, &(name, takes)| {
        let arg = Arg::new(name).long(name).hide(true);
        command.arg(match takes {
            Takes::Flag => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(go_bool)
            }
            Takes::Text => arg.action(ArgAction::Append).allow_hyphen_values(true),
            Takes::Number => arg.value_parser(clap::value_parser!(i64)).allow_negative_numbers(true),
        })
    })
}

/// Arguments in the one form that clap knows: `-debug` becomes `--debug`. The program's name is not among them.
pub fn two_dashes(args: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.into_iter().map(|arg| match arg.to_str() {
        Some(text)
            if text.len() > 2
                && text.starts_with('-')
                && text.as_bytes()[1].is_ascii_alphabetic()
                && text.as_bytes()[2] != b'=' =>
        {
            format!("-{text}").into()
        }
        _ => arg,
    })
}

impl Flags {
    /// The flags in `matches`, and a warning for each that has no use here.
    pub fn read(matches: &ArgMatches) -> Result<(Flags, Vec<String>), clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        let mut warnings: Vec<String> = UNUSED
            .iter()
            .filter(|(name, _)| matches.value_source(name) == Some(ValueSource::CommandLine))
            .map(|(name, _)| format!("--{name} is accepted and not used"))
            .collect();
        warnings.extend(flags.rest.iter().map(|arg| format!("the argument {arg:?} is not used")));
        Ok((flags, warnings))
    }

    /// The layer that these flags are.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let refuse = |flag: &str, what| ConfigError::Flag { flag: flag.to_owned(), what };
        let debug_address = match self.debugaddr.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse::<DebugAddress>().map_err(|what| refuse("debugaddr", what))?),
        };
        let gid = match self.group.as_deref() {
            None | Some("") => None,
            Some(group) => Some(group_id(group).map_err(|what| refuse("group", what))?),
        };
        let level = match (self.trace, self.debug) {
            (Some(true), _) => Some(LogLevel::Trace),
            (_, Some(true)) => Some(LogLevel::Debug),
            _ => None,
        };
        Ok(Settings {
            root: self.root,
            log_level: self.log_level.or(level),
            log_format: self.log_format,
            listen: self.addr,
            gid,
            tls_cert: some_path(self.tlscert),
            tls_key: some_path(self.tlskey),
            tls_client_ca: some_path(self.tlscacert),
            debug_address,
            entitlements: self.allow_insecure_entitlement.map(BTreeSet::from_iter),
            oci_worker: self.oci_worker.and_then(Auto::set),
            containerd_worker: self.containerd_worker.and_then(Auto::set),
            labels: self.oci_worker_labels.unwrap_or_default().into_iter().collect(),
            platforms: self.oci_worker_platform,
            gc: self.oci_worker_gc,
            gc_limits: self.oci_worker_gc_keepstorage.unwrap_or_default(),
            max_parallelism: self.oci_max_parallelism,
            snapshotter: self.oci_worker_snapshotter,
            sync_interval: self.snapshot_sync_interval,
            exec: ExecConfig {
                binary: some_text(self.oci_worker_binary),
                network: self.oci_worker_net,
                cni_config: some_path(self.oci_cni_config_path),
                cni_plugins: some_path(self.oci_cni_binary_dir),
                cgroup_parent: None,
                apparmor_profile: some_text(self.oci_worker_apparmor_profile),
            },
            ..Settings::default()
        })
    }
}

impl Auto {
    fn set(self) -> Option<bool> {
        match self {
            Auto::Auto => None,
            Auto::Set(on) => Some(on),
        }
    }
}

fn some_path(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

fn some_text(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration, such as 30s".to_owned())
}

fn bool_or_auto(text: &str) -> Result<Auto, String> {
    match text {
        "auto" => Ok(Auto::Auto),
        "" => Err("expected true, false or auto".to_owned()),
        text => go_bool(text).map(Auto::Set).map_err(|_| "expected true, false or auto".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value")?;
    if key.is_empty() {
        return Err("expected key=value".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `reserved[,free[,maximum]]` in millions of bytes. 0 leaves a limit to the size of the disk.
fn keep_storage(text: &str) -> Result<GcLimits, String> {
    let amounts = text
        .split(',')
        .map(|part| part.parse::<u64>().ok().and_then(|n| n.checked_mul(1_000_000)))
        .collect::<Option<Vec<u64>>>()
        .filter(|amounts| amounts.len() <= 3)
        .ok_or("expected reserved[,free[,maximum]] in MB")?;
    let space = |i: usize| amounts.get(i).filter(|n| **n > 0).map(|n| Space::Bytes(*n));
    Ok(GcLimits { reserved: space(0), min_free: space(1), max_used: space(2) })
}

/// The ID of a group, given as such or by its name in `/etc/group`.
fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups =
        std::fs::read_to_string("/etc/group").map_err(|e| format!("could not read /etc/group: {e}"))?;
    groups
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
        })
        .ok_or_else(|| format!("there is no group {group:?}"))
}

#[cfg(test)]
#[path = "flags_tests.rs"]
mod tests;
