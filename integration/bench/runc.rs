//! The runtime's own cost: the specification that the daemon gives it, run without a daemon.
//!
//! A root of many layers takes the runtime longer than one directory: it looks for each file in all of them.

use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::Build;
use crate::harness::client::Running;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::tool;
use crate::peer::Peer;

const BASE: &str = "base";
const MERGED: &str = "merged";

/// A bundle like those of a daemon.
pub struct Bare {
    program: PathBuf,
    directory: TempDir,
    specification: Value,
    /// Keeps the files that the specification mounts.
    _model: Running,
}

impl Bare {
    /// Starts a command that goes on, and takes its specification as the model.
    pub async fn like(peer: &Peer, base: &State) -> Bare {
        let client = peer.direct().await;
        let model = client.start(Build::of(&llb::sh(base, "sleep 100000"))).await;
        let limit = Instant::now() + Duration::from_secs(30);
        let mut specification: Value = loop {
            let found = find(&peer.root(), "config.json").and_then(|file| std::fs::read(file).ok());
            if let Some(found) = found.and_then(|text| serde_json::from_slice(&text).ok()) {
                break found;
            }
            assert!(Instant::now() < limit, "no specification below {}", peer.root().display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let directory = TempDir::with_prefix("bench-").expect("a temporary directory");
        let root = directory.path().join(BASE);
        let layer = busybox().and_then(|layer| layer.source).expect("a busybox").to_bytes();
        tar::Archive::new(flate2::read::GzDecoder::new(&layer[..])).unpack(&root).expect("unpack");
        std::fs::create_dir(directory.path().join(MERGED)).expect("make a mount point");
        specification["process"]["args"] = json!(["/bin/busybox", "sh", "-c", "echo ran > /ran"]);
        if specification["linux"]["cgroupsPath"].is_string() {
            specification["linux"]["cgroupsPath"] = json!("/thunk-bench/bare");
        }
        Bare { program: tool("runc").expect("runc is there"), directory, specification, _model: model }
    }

    /// Milliseconds of `count` runs in one directory, one after another.
    pub async fn run(&self, count: usize) -> f64 {
        self.at(BASE);
        let begin = Instant::now();
        for _ in 0..count {
            self.once().await;
        }
        begin.elapsed().as_secs_f64() * 1e3
    }

    /// As [`Bare::run`], each on the changes of those before as layers; mounting them is not counted.
    pub async fn run_on_layers(&self, count: usize) -> f64 {
        self.at(MERGED);
        let mut layers = vec![BASE.to_owned()];
        let mut time = Duration::ZERO;
        for n in 0..count {
            let (upper, work) = (format!("u{n}"), format!("w{n}"));
            for name in [&upper, &work] {
                std::fs::create_dir(self.directory.path().join(name)).expect("make a layer");
            }
            let lower: Vec<_> = layers.iter().rev().map(String::as_str).collect();
            let options = format!("lowerdir={},upperdir={upper},workdir={work},volatile", lower.join(":"));
            self.host("mount", &["-t", "overlay", "-o", &options, "overlay", MERGED]);
            let begin = Instant::now();
            self.once().await;
            time += begin.elapsed();
            self.host("umount", &[MERGED]);
            layers.push(upper);
        }
        for name in layers.iter().skip(1).flat_map(|upper| [upper.clone(), upper.replace('u', "w")]) {
            std::fs::remove_dir_all(self.directory.path().join(name)).expect("remove a layer");
        }
        time.as_secs_f64() * 1e3
    }

    fn at(&self, root: &str) {
        let mut specification = self.specification.clone();
        specification["root"]["path"] = json!(self.directory.path().join(root));
        std::fs::write(self.directory.path().join("config.json"), specification.to_string())
            .expect("write the specification");
    }

    async fn once(&self) {
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("--root").arg(self.directory.path().join("state"));
        command.arg("run").arg("--bundle").arg(self.directory.path()).arg("bare");
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        assert!(command.status().await.expect("start runc").success());
    }

    fn host(&self, program: &str, arguments: &[&str]) {
        let status =
            std::process::Command::new(program).args(arguments).current_dir(self.directory.path()).status();
        assert!(status.expect("start it").success(), "{program} {arguments:?}");
    }
}

/// The first file of that name; directories that go away meanwhile have none.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => below.push(entry.path()),
            Ok(_) if entry.file_name() == name => return Some(entry.path()),
            _ => {}
        }
    }
    below.iter().find_map(|directory| find(directory, name))
}
