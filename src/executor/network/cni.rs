//! Network namespaces set up by plugins, after the CNI specification (1.0.0).
//!
//! Each plugin of a list is run with the configuration on its standard input and gets the result of the one
//! before. Adding goes through the list in order, removing in reverse.

use std::fs;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::mount::mount_bind;
use rustix::mount::unmount;
use rustix::thread::UnshareFlags;
use serde_json::Map;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::super::ExecError;
use super::super::NetworkMode;
use crate::task::Tasks;

const INTERFACE: &str = "eth0";

/// What every plugin is told: it need not know the rest.
const ARGUMENTS: &str = "IgnoreUnknown=1";

/// The plugins that a configuration names.
#[derive(Default, Debug)]
pub struct Plan {
    plugins: Vec<Map<String, Value>>,
    directory: PathBuf,
}

fn failed(reason: impl Into<String>) -> ExecError {
    ExecError::Network { reason: reason.into() }
}

impl Plan {
    /// `config` is a list of plugins (`plugins`), or one plugin by itself.
    pub fn read(config: &Path, directory: &Path) -> Result<Plan, ExecError> {
        let bad = |error: String| failed(format!("CNI configuration {}: {error}", config.display()));
        let text = fs::read(config).map_err(|error| bad(error.to_string()))?;
        let parsed: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let inherited = |key: &str| parsed.get(key).cloned();
        let plugins = match parsed.get("plugins") {
            None => vec![parsed.clone()],
            Some(Value::Array(list)) => {
                let object = |plugin: &Value| plugin.as_object().cloned();
                let list: Option<Vec<_>> = list.iter().map(object).collect();
                list.ok_or_else(|| bad("a plugin is not an object".to_owned()))?
            }
            Some(_) => return Err(bad("plugins is not a list".to_owned())),
        };
        let complete = |mut plugin: Map<String, Value>| {
            for key in ["cniVersion", "name"] {
                if let Some(value) = inherited(key) {
                    plugin.insert(key.to_owned(), value);
                }
            }
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind.is_empty() || kind.contains('/') {
                return Err(bad(format!("{kind:?} is no type of a plugin")));
            }
            Ok(plugin)
        };
        let plugins = plugins.into_iter().map(complete).collect::<Result<Vec<_>, _>>()?;
        if plugins.is_empty() {
            return Err(bad("it names no plugin".to_owned()));
        }
        Ok(Plan { plugins, directory: directory.to_path_buf() })
    }
}

/// A namespace with what the plugins made in it.
#[derive(Debug)]
pub struct Attachment {
    plan: Arc<Plan>,
    path: PathBuf,
    id: String,
    arguments: String,
    result: Value,
    tasks: Tasks,
}

impl Attachment {
    /// Makes a namespace below `directory` and runs the plugins. What fails half-way is undone.
    pub async fn add(
        plan: Arc<Plan>,
        hostname: &str,
        directory: &Path,
        tasks: &Tasks,
    ) -> Result<Attachment, ExecError> {
        let id = HEXLOWER.encode(&rand::random::<[u8; 16]>());
        let namespaces = directory.join(NAMESPACES);
        let path = namespaces.join(&id);
        let file = path.clone();
        let made = tasks.spawn_blocking("network namespace", move || {
            fs::create_dir_all(&namespaces).map_err(ExecError::io("create", &namespaces))?;
            make_namespace(&file)
        });
        made.await??;
        // Names in an argument list end at a semicolon.
        let arguments = if hostname.is_empty() || hostname.contains([';', '=']) {
            ARGUMENTS.to_owned()
        } else {
            format!("{ARGUMENTS};K8S_POD_NAME={hostname}")
        };
        let tasks = tasks.clone();
        let mut attachment = Attachment { plan, path, id, arguments, result: Value::Null, tasks };
        for plugin in attachment.plan.plugins.clone() {
            match attachment.call("ADD", &plugin).await {
                Ok(result) => attachment.result = result,
                Err(error) => {
                    attachment.remove().await;
                    return Err(error);
                }
            }
        }
        Ok(attachment)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn remove(self) {
        for plugin in self.plan.plugins.clone().iter().rev() {
            if let Err(error) = self.call("DEL", plugin).await {
                tracing::warn!(%error, "a network plugin did not clear up");
            }
        }
        let path = self.path.clone();
        let removed = self.tasks.spawn_blocking("network namespace", move || remove_namespace(&path)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, path = %self.path.display(), "a network namespace stays");
        }
    }

    /// One call as the specification has it. The result of `DEL` is null.
    async fn call(&self, command: &str, plugin: &Map<String, Value>) -> Result<Value, ExecError> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let program = self.plan.directory.join(kind);
        let told = |reason: String| failed(format!("CNI plugin {}: {reason}", program.display()));
        let mut config = plugin.clone();
        if !self.result.is_null() {
            config.insert("prevResult".to_owned(), self.result.clone());
        }
        let mut child = Command::new(&program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.path)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &self.arguments)
            .env("CNI_PATH", &self.plan.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| told(error.to_string()))?;
        let input = Value::Object(config).to_string();
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that doesn't read it says why on its output.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(|error| told(error.to_string()))?;
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(result);
        }
        // A failing plugin prints an object with the reason in `msg`.
        let reason = match result.get("msg").and_then(Value::as_str) {
            Some(reason) => reason.to_owned(),
            None => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        };
        Err(told(reason))
    }
}

const NAMESPACES: &str = "netns";

/// Makes a namespace that lives as long as `path` is mounted, with its loopback up.
fn make_namespace(path: &Path) -> Result<(), ExecError> {
    File::create_new(path).map_err(ExecError::io("create", path))?;
    let target = path.to_path_buf();
    // A thread of its own: it ends up in another namespace than the rest of the process.
    let made = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        // SAFETY: only the network namespace of this thread changes; file descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        loopback_up()?;
        mount_bind("/proc/thread-self/ns/net", &target)
    });
    let made = made.map_err(ExecError::io("start a thread for", path))?.join();
    match made {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => {
            let _ = fs::remove_file(path);
            Err(failed(format!("a network namespace can't be made: {errno}")))
        }
        Err(_) => Err(failed("the thread that makes a network namespace panicked")),
    }
}

/// Brings up `lo` in the namespace of this thread.
fn loopback_up() -> rustix::io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    set_up(socket.as_fd())
}

/// `SIOCSIFFLAGS` of `netdevice(7)` on `lo`.
fn set_up(socket: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<()> {
    const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
    const IFF_UP: u16 = 1;
    #[repr(C)]
    struct InterfaceFlags {
        name: [u8; 16],
        flags: u16,
        unused: [u8; 22],
    }
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    let request = InterfaceFlags { name, flags: IFF_UP, unused: [0; 22] };
    // SAFETY: the kernel reads a `struct ifreq`, which this is laid out as.
    unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Setter::<SIOCSIFFLAGS, _>::new(request)) }
}

fn remove_namespace(path: &Path) -> std::io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        // It was never mounted, or went with the kernel that had it.
        Ok(()) | Err(Errno::INVAL) => fs::remove_file(path),
        Err(errno) => Err(errno.into()),
    }
}

/// Releases, in the background, the namespaces that an earlier daemon left and what plugins gave to them, by
/// the plugins that are configured now.
pub fn clear_leftovers(directory: &Path, mode: &NetworkMode, tasks: &Tasks) -> Result<(), ExecError> {
    let namespaces = directory.join(NAMESPACES);
    let Ok(entries) = fs::read_dir(&namespaces) else { return Ok(()) };
    let left = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
    let left = left.map_err(ExecError::io("read", &namespaces))?;
    if left.is_empty() {
        return Ok(());
    }
    let plan = match mode {
        NetworkMode::Cni { config, plugins } => Plan::read(config, plugins).unwrap_or_else(|error| {
            tracing::warn!(%error, "addresses of an earlier daemon's steps stay");
            Plan::default()
        }),
        NetworkMode::Host => Plan::default(),
    };
    let (plan, work) = (Arc::new(plan), tasks.clone());
    drop(tasks.spawn("network clean-up", async move {
        for name in left {
            let attachment = Attachment {
                plan: Arc::clone(&plan),
                path: namespaces.join(&name),
                id: name.to_string_lossy().into_owned(),
                arguments: ARGUMENTS.to_owned(),
                result: Value::Null,
                tasks: work.clone(),
            };
            attachment.remove().await;
        }
    }));
    Ok(())
}
