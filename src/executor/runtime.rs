//! The installed OCI runtime: found when it is first needed, and run.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Deserialize;
use tokio::process::Child;
use tokio::process::Command;

use super::ExecError;
use super::bundle::Bundle;

/// Best first.
const CANDIDATES: [&str; 3] = ["buildkit-runc", "runc", "crun"];

/// Where administrators' programs lie, which `PATH` of a service may lack.
const MORE_DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

#[derive(Debug)]
pub struct Runtime {
    wanted: Option<String>,
    found: Mutex<Option<PathBuf>>,
}

impl Runtime {
    pub fn new(wanted: Option<String>) -> Runtime {
        Runtime { wanted, found: Mutex::new(None) }
    }

    /// The program. One that was missing is looked for again: it may have been installed meanwhile.
    pub fn program(&self) -> Result<PathBuf, ExecError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = &*found {
            return Ok(program.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<&str> = match &self.wanted {
            Some(wanted) => vec![wanted],
            None => CANDIDATES.to_vec(),
        };
        let program = candidates.iter().find_map(|candidate| look_up(candidate, &path)).ok_or_else(|| {
            ExecError::RuntimeMissing { tried: candidates.iter().map(|c| (*c).to_owned()).collect() }
        })?;
        *found = Some(program.clone());
        Ok(program)
    }
}

fn look_up(program: &str, path: &OsStr) -> Option<PathBuf> {
    if program.contains('/') {
        return is_program(Path::new(program)).then(|| PathBuf::from(program));
    }
    let directories = std::env::split_paths(path).chain(MORE_DIRECTORIES.iter().map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// True for a runtime that may collect a process itself if it ends at once, and its exit code with it:
/// the process is made first, and let go with [`release`] when this process has adopted it.
pub fn is_two_steps(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"crun"))
}

/// Lets a process run that was made in the first of two steps.
pub fn release(program: &Path, bundle: &Bundle, systemd: bool) -> Result<Child, ExecError> {
    let mut command = command(program, bundle, systemd);
    command.arg("start").arg(bundle.id());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(ExecError::io("run", program))
}

/// Starts the runtime on a bundle. It leaves once the process runs (or waits to be released), which gets
/// `stdout` and `stderr`.
pub fn start(
    program: &Path,
    bundle: &Bundle,
    systemd: bool,
    stdout: Stdio,
    stderr: Stdio,
) -> Result<Child, ExecError> {
    let mut command = command(program, bundle, systemd);
    if is_two_steps(program) {
        command.arg("create");
    } else {
        command.args(["run", "--detach"]);
    }
    command.arg("--bundle").arg(bundle.path());
    command.arg("--pid-file").arg(bundle.pid_file()).arg(bundle.id());
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.spawn().map_err(ExecError::io("run", program))
}

fn command(program: &Path, bundle: &Bundle, systemd: bool) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.arg("--root").arg(bundle.state());
    command.arg("--log").arg(bundle.log()).args(["--log-format", "json"]);
    if systemd {
        command.arg("--systemd-cgroup");
    }
    // Signals of a terminal are for this process, which decides what becomes of its children.
    command.process_group(0);
    command
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// What a runtime said when it failed.
pub fn reason(bundle: &Bundle, status: ExitStatus) -> String {
    let log = fs::read_to_string(bundle.log()).unwrap_or_default();
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    let last = lines.rfind(|line| matches!(line.level.as_str(), "error" | "fatal"));
    last.map_or_else(|| format!("the OCI runtime failed: {status}"), |line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_runtime_is_an_error_that_names_what_to_install_and_is_looked_for_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("runc");
        let runtime = Runtime::new(Some(file.display().to_string()));
        let error = runtime.program().expect_err("nothing is there").to_string();
        assert!(error.contains("apt-get install runc"), "{error}");
        fs::write(&file, "").expect("a file");
        assert!(runtime.program().is_err(), "it can't be executed");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a mode");
        assert_eq!(runtime.program().expect("it is there"), file);
    }

    #[test]
    fn the_directories_of_path_come_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("true");
        fs::write(&file, "").expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a mode");
        assert_eq!(look_up("true", dir.path().as_os_str()), Some(file));
        assert_eq!(look_up("true", OsStr::new("/nonexistent")), Some("/usr/bin/true".into()));
    }
}
