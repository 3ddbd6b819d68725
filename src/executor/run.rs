//! One process, from its description to the last thing that is cleared up.
//!
//! ```text
//! network -> prepare (bundle, user, mounts, config.json) -> start the runtime -> adopt -> wait
//!        -> read the rest of the output -> last sample -> clear (mount point stubs) -> network
//!                                                      \-> remove the cgroup and the bundle
//! ```
//!
//! A cgroup of version 1 is a directory in each of a dozen hierarchies, and to unmount costs the kernel a grace period,
//! tens of milliseconds on a busy machine: nobody waits for that, unless the bundle shows a directory that somebody else
//! needs back.
//!
//! # Cancellation
//!
//! A runtime that is starting a process is let finish, as one that is killed leaves half a sandbox; then the first
//! process is killed, and the kernel kills the rest of its PID namespace. Clearing up is never cancelled.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ExecError;
use super::ExecutorOptions;
use super::Exit;
use super::MountSource;
use super::Output;
use super::Process;
use super::ProcessMount;
use super::bundle::Bundle;
use super::bundle::Bundles;
use super::cgroup::Cgroups;
use super::cgroup::Group;
use super::child::Adopted;
use super::hosts;
use super::network::Connection;
use super::runtime;
use super::samples::Recorder;
use super::spec;
use super::spec::CgroupSupport;
use super::spec::HostMount;
use super::stubs::Stubs;
use super::totals::Totals;
use super::user;
use crate::ctx::Cancelled;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::NewDirs;
use crate::fs::Owner;
use crate::fs::Root;
use crate::progress::LogStream;
use crate::progress::Sample;
use crate::task::Tasks;

/// How long a runtime may take to start a process that nobody wants any more.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long output is waited for when the last process is gone: somebody else may hold the pipe.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const BUFFER: usize = 32 << 10;

/// What every run needs to know.
#[derive(Debug)]
pub struct Setting {
    pub options: ExecutorOptions,
    pub bundles: Bundles,
    pub cgroups: Cgroups,
    pub seccomp: bool,
    pub clearing: Clearing,
    pub totals: Totals,
    pub tasks: Tasks,
}

/// How many ended processes still have a bundle or a cgroup.
#[derive(Debug)]
pub struct Clearing(watch::Sender<usize>);

impl Default for Clearing {
    fn default() -> Clearing {
        Clearing(watch::Sender::new(0))
    }
}

impl Clearing {
    fn begin(&self) -> Leaving {
        self.0.send_modify(|leaving| *leaving += 1);
        Leaving(self.0.clone())
    }

    /// Waits until there is none.
    pub async fn ended(&self) {
        // The sender is in self.
        let _ = self.0.subscribe().wait_for(|leaving| *leaving == 0).await;
    }
}

struct Leaving(watch::Sender<usize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.send_modify(|leaving| *leaving -= 1);
    }
}

/// How the process ended, and what is known of it.
struct Ended {
    code: u32,
    group: Option<Group>,
    recorder: Recorder,
}

pub async fn run(
    setting: &Arc<Setting>,
    program: PathBuf,
    mut process: Process,
    output: Arc<dyn Output>,
    cancel: CancellationToken,
) -> Result<Exit, ExecError> {
    let ExecutorOptions { network, directory, .. } = &setting.options;
    let connection =
        Connection::open(process.network, network, &process.hostname, directory, &setting.tasks).await?;
    let holds = std::mem::take(&mut process.holds);
    let (args, valid) = (process.args.clone(), process.valid_exit_codes.clone());
    let done = in_sandbox(setting, &program, process, &connection, &*output, &cancel).await;
    connection.close().await;
    drop(holds);
    let (code, last, recorder) = done?;
    let oom_killed = last.as_ref().and_then(|l| l.memory.oom_kills).is_some_and(|kills| kills > 0);
    setting.totals.add(last.as_ref());
    if let Some(last) = last {
        output.used(recorder.finish(last));
    }
    if cancel.is_cancelled() {
        return Err(Cancelled.into());
    }
    let is_valid =
        if valid.is_empty() { code == 0 } else { valid.iter().any(|v| i64::from(*v) == i64::from(code)) };
    if !is_valid {
        return Err(ExecError::Exit { args, code, oom_killed });
    }
    Ok(Exit { code })
}

async fn in_sandbox(
    setting: &Arc<Setting>,
    program: &Path,
    process: Process,
    connection: &Connection,
    output: &dyn Output,
    cancel: &CancellationToken,
) -> Result<(u32, Option<Sample>, Recorder), ExecError> {
    let args = process.args.clone();
    let (shared, namespace) = (setting.clone(), connection.namespace.clone());
    let host_network = connection.is_host();
    let prepared = setting.tasks.spawn_blocking("prepare a sandbox", move || {
        Sandbox::prepare(&shared, &process, &namespace, host_network)
    });
    let sandbox = prepared.await??;
    let ended = supervise(setting, program, &sandbox, args, output, cancel).await;
    let (mut recorder, group, code) = match ended {
        Ok(Ended { code, group, recorder }) => (recorder, group, Ok(code)),
        Err(error) => (Recorder::new(), None, Err(error)),
    };
    let leaving = setting.clearing.begin();
    let cleared = setting.tasks.spawn_blocking("clear a sandbox", move || {
        let last = group.map(|group| group.sample());
        (last, sandbox.clear())
    });
    let (last, remains) = cleared.await?;
    drop(setting.tasks.spawn_at_leisure("clear what a sandbox left", move || {
        drop(remains);
        drop(leaving);
    }));
    if last.is_none() {
        recorder = Recorder::new();
    }
    Ok((code?, last, recorder))
}

/// A process that is ready to be started.
struct Sandbox {
    bundle: Bundle,
    root: Root,
    stubs: Stubs,
    group: Option<Group>,
    systemd: bool,
}

impl Sandbox {
    fn prepare(
        setting: &Setting,
        process: &Process,
        namespace: &super::network::Namespace,
        host_network: bool,
    ) -> Result<Sandbox, ExecError> {
        if process.args.is_empty() {
            return Err(ExecError::Invalid { reason: "it has no arguments".to_owned() });
        }
        let options = &setting.options;
        let cgroups = match &setting.cgroups {
            none if none.is_none() => CgroupSupport::Missing,
            unified if unified.is_unified() => CgroupSupport::Unified,
            _ => CgroupSupport::Legacy,
        };
        if cgroups == CgroupSupport::Missing && !process.limits.is_none() {
            return Err(ExecError::NoCgroups { what: "memory or CPU" });
        }
        let mut bundle = setting.bundles.create()?;
        let root = Root::open(&process.root)
            .map_err(|error| ExecError::Invalid { reason: format!("its root: {error}") })?;
        let dests =
            hosts::OWN_FILES.into_iter().chain(process.mounts.iter().map(|mount| mount.dest.as_str()));
        let stubs = Stubs::note(&root, dests, process.remove_mount_stubs_recursive);
        let user = user::find(&root, &process.user)?;
        make_working_directory(&root, &process.cwd, Owner { uid: user.uid, gid: user.gid })?;
        let parent = match process.cgroup_parent.as_str() {
            "" => &options.cgroup_parent,
            parent => parent,
        };
        let (cgroup, systemd) = cgroup_path(parent, bundle.id());
        let hosts =
            bundle.write("hosts", hosts::hosts(&process.hostname, &process.extra_hosts).as_bytes())?;
        let resolv_conf = hosts::resolv_conf(&options.dns, host_network)?;
        let resolv_conf = bundle.write("resolv.conf", resolv_conf.as_bytes())?;
        let mounts = process.mounts.iter().map(|m| host_mount(&mut bundle, m)).collect::<Result<_, _>>()?;
        let parts = spec::Parts {
            user: &user,
            network: namespace,
            hosts: &hosts,
            resolv_conf: &resolv_conf,
            mounts,
            cgroup: &cgroup,
            cgroups,
            seccomp: setting.seccomp,
            apparmor_profile: options.apparmor_profile.as_deref(),
        };
        let config = serde_json::to_vec(&spec::describe(process, &parts)?)
            .map_err(|error| ExecError::Invalid { reason: error.to_string() })?;
        bundle.write("config.json", &config)?;
        // Where systemd puts a group is its own affair.
        let known = cgroups != CgroupSupport::Missing && !systemd;
        let group = known.then(|| setting.cgroups.group(Path::new(&cgroup)));
        Ok(Sandbox { bundle, root, stubs, group, systemd })
    }

    /// To be called when no process is left. Returns what has time.
    fn clear(self) -> Remains {
        // Mounts on the stubs went with the process's namespace.
        self.stubs.remove(&self.root);
        let id = self.bundle.id().to_owned();
        let bundle = (!self.bundle.shows()).then_some(self.bundle);
        Remains { id, bundle, group: self.group }
    }
}

/// What is of no use and in nobody's way. Goes when it is dropped.
struct Remains {
    id: String,
    bundle: Option<Bundle>,
    group: Option<Group>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        drop(self.bundle.take());
        let Some(group) = self.group.take() else { return };
        if group.remove().is_err() {
            // Somebody joined it.
            group.kill();
            if let Err(error) = group.remove() {
                tracing::warn!(%error, id = self.id, "a cgroup stays");
            }
        }
    }
}

/// The group's path, and whether systemd has to make it: parents of the form `x.slice:prefix:` are its.
fn cgroup_path(parent: &str, id: &str) -> (String, bool) {
    if parent.contains(".slice") && parent.ends_with(':') {
        return (format!("{parent}{id}"), true);
    }
    let parent = parent.trim_matches('/');
    let parent = if parent.is_empty() { String::new() } else { format!("/{parent}") };
    (format!("{parent}/thunk/{id}"), false)
}

fn make_working_directory(root: &Root, cwd: &str, owner: Owner) -> Result<(), ExecError> {
    let failed = |source| ExecError::WorkingDirectory { cwd: cwd.to_owned(), source };
    let path = spec::working_directory(cwd);
    match root.stat(&path, Last::Follow) {
        Ok(Some(_)) => Ok(()),
        Ok(None) | Err(FsError::NotFound { .. }) => {
            let new = NewDirs { owner: Some(owner), ..NewDirs::default() };
            root.create_dir_all(&path, &new).map(drop).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn host_mount(bundle: &mut Bundle, mount: &ProcessMount) -> Result<HostMount, ExecError> {
    let dest = mount.dest.clone();
    let options = |list: &[&str]| list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
    let access: &[&str] = if mount.read_only { &["ro"] } else { &[] };
    let bind = |source, more: &[&str]| HostMount {
        dest: dest.clone(),
        kind: "bind",
        source,
        options: options(&[&["rbind"], more].concat()),
    };
    match &mount.source {
        MountSource::Directory { directory, selector } if selector.trim_matches('/').is_empty() => {
            Ok(bind(directory.clone(), access))
        }
        MountSource::Directory { directory, selector } => {
            let shown = bundle.show(directory, selector);
            Ok(bind(shown.map_err(|source| ExecError::Mount { dest: dest.clone(), source })?, access))
        }
        MountSource::Tmpfs { size } => {
            let mut options = options(&[&["nosuid"], access].concat());
            options.extend(size.map(|size| format!("size={size}")));
            Ok(HostMount { dest, kind: "tmpfs", source: "tmpfs".into(), options })
        }
        MountSource::Secret { data, uid, gid, mode } => {
            let source = bundle.secret(data, *uid, *gid, *mode)?;
            let execute: &[&str] = if mode & 0o111 == 0 { &["noexec"] } else { &[] };
            Ok(bind(source, &[&["ro", "nodev", "nosuid"], execute].concat()))
        }
        MountSource::Socket { path } => Ok(bind(path.clone(), &[])),
    }
}

/// Starts the process, passes on what it prints, and waits for its end.
async fn supervise(
    setting: &Setting,
    program: &Path,
    sandbox: &Sandbox,
    args: Vec<String>,
    output: &dyn Output,
    cancel: &CancellationToken,
) -> Result<Ended, ExecError> {
    if cancel.is_cancelled() {
        return Err(Cancelled.into());
    }
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let mut child =
        runtime::start(program, &sandbox.bundle, sandbox.systemd, stdout_end.into(), stderr_end.into())?;
    let printed = async {
        tokio::join!(pass_on(stdout, LogStream::Stdout, output), pass_on(stderr, LogStream::Stderr, output))
    };
    let mut printed = std::pin::pin!(printed);
    let mut is_drained = false;
    let ended = {
        let wait = wait(setting, program, sandbox, &mut child, args, cancel);
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                ended = &mut wait => break ended,
                _ = &mut printed, if !is_drained => is_drained = true,
            }
        }
    };
    if !is_drained && tokio::time::timeout(DRAIN_LIMIT, printed).await.is_err() {
        tracing::warn!(id = sandbox.bundle.id(), "the output of a process stays open after its end");
    }
    ended
}

fn pipe() -> Result<(pipe::Receiver, std::io::PipeWriter), ExecError> {
    let failed = ExecError::io("make", "a pipe");
    let made = std::io::pipe().and_then(|(reader, writer)| {
        let reader = std::os::fd::OwnedFd::from(reader);
        Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
    });
    made.map_err(failed)
}

async fn pass_on(mut from: pipe::Receiver, stream: LogStream, output: &dyn Output) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => output.write(stream, &buffer[..n]),
            Err(error) => {
                tracing::warn!(%error, "the output of a process can't be read");
                return;
            }
        }
    }
}

async fn wait(
    setting: &Setting,
    program: &Path,
    sandbox: &Sandbox,
    child: &mut Child,
    args: Vec<String>,
    cancel: &CancellationToken,
) -> Result<Ended, ExecError> {
    let status = started(child, cancel).await.map_err(ExecError::io("wait for", program))?;
    let pid = sandbox.bundle.pid();
    let Some(pid) = pid.filter(|_| status.success()) else {
        // Whatever it made before it failed.
        if let Some(group) = &sandbox.group {
            group.kill();
        }
        if let Some(pid) = pid {
            end(pid).await;
        }
        if cancel.is_cancelled() {
            return Err(Cancelled.into());
        }
        let code = status.code().and_then(|c| u32::try_from(c).ok()).filter(|c| *c != 0).unwrap_or(255);
        return Err(ExecError::NotStarted { args, code, reason: runtime::reason(&sandbox.bundle, status) });
    };
    let failed = |error| ExecError::io("wait for", format!("process {}", pid.as_raw_nonzero()))(error);
    let process = Adopted::new(pid).map_err(failed)?;
    if runtime::is_two_steps(program) {
        let mut release = runtime::release(program, &sandbox.bundle, sandbox.systemd)?;
        let status = release.wait().await.map_err(ExecError::io("wait for", program))?;
        if !status.success() {
            process.kill().map_err(failed)?;
            let _ = process.wait().await;
            let reason = runtime::reason(&sandbox.bundle, status);
            return Err(ExecError::NotStarted { args, code: 255, reason });
        }
    }
    let mut recorder = Recorder::new();
    let mut killed = false;
    let mut ended = std::pin::pin!(process.wait());
    let code = loop {
        tokio::select! {
            code = &mut ended => break code.map_err(failed)?,
            () = cancel.cancelled(), if !killed => {
                process.kill().map_err(failed)?;
                killed = true;
            }
            () = tokio::time::sleep(recorder.interval()) => {
                if let Some(group) = sandbox.group.clone() {
                    let sample = setting.tasks.spawn_blocking("sample a cgroup", move || group.sample());
                    recorder.push(sample.await?);
                }
            }
        }
    };
    Ok(Ended { code, group: sandbox.group.clone(), recorder })
}

/// Waits until the runtime has left. One that takes too long for a caller who has gone is killed.
async fn started(child: &mut Child, cancel: &CancellationToken) -> std::io::Result<ExitStatus> {
    if let Some(status) = cancel.run_until_cancelled(child.wait()).await {
        return status;
    }
    match tokio::time::timeout(START_LIMIT, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.kill().await?;
            child.wait().await
        }
    }
}

/// Kills and collects a process that a failed runtime left.
async fn end(pid: Pid) {
    if let Ok(process) = Adopted::new(pid)
        && process.kill().is_ok()
    {
        let _ = process.wait().await;
    }
}

/// Whether the kernel can filter system calls.
pub fn has_seccomp() -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        status.lines().any(|line| line.starts_with("Seccomp:"))
    }
}

/// What a process may not be asked to be.
pub fn validate(process: &Process) -> Result<(), ExecError> {
    let invalid = |reason: String| Err(ExecError::Invalid { reason });
    for text in
        process.args.iter().chain(&process.env).chain([&process.cwd, &process.user, &process.hostname])
    {
        if text.contains('\0') {
            return invalid(format!("{text:?} contains a NUL"));
        }
    }
    for mount in &process.mounts {
        if !mount.dest.starts_with('/') || mount.dest.contains('\0') {
            return invalid(format!("{:?} is no place to mount at", mount.dest));
        }
    }
    for part in process.cgroup_parent.split('/') {
        if part == ".." {
            return invalid(format!("cgroup parent {:?} leaves the hierarchy", process.cgroup_parent));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_later_goes_when_the_daemon_ends_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let mounted = format!("29 25 0:26 / {} rw - cgroup2 cgroup2 rw\n", directory.path().display());
        let group = Cgroups::parse(&mounted).group(Path::new("/thunk/x"));
        let path = group.directory("memory").expect("the one for all");
        std::fs::create_dir_all(&path).expect("made");
        let remains = Remains { id: "x".to_owned(), bundle: None, group: Some(group) };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            drop(Tasks::new().spawn_at_leisure("clear what a sandbox left", move || drop(remains)));
        });
        drop(runtime);
        assert!(!path.exists());
    }
}
