//! Debian's containerd, as one more that unpacks layers.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::harness::Image;
use crate::harness::poll;
use crate::harness::tool;
use crate::harness::write_layout;

/// A containerd on a root of its own with one image, whose layers are not unpacked.
pub struct Containerd {
    program: PathBuf,
    child: Child,
    directory: TempDir,
    manifest: String,
}

impl Containerd {
    /// `None` where it isn't installed.
    pub async fn start(image: &Image) -> Option<Containerd> {
        let (daemon, program) = (tool("containerd")?, tool("ctr")?);
        let directory = TempDir::with_prefix("bench-").expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        let configuration = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\nroot = {:?}\nstate = {:?}\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
            at("socket.ttrpc"),
        );
        std::fs::write(at("config.toml"), configuration).expect("write the configuration");
        let log = std::fs::File::create(at("log")).expect("create the log");
        let child = Command::new(daemon)
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start containerd");
        let manifest = image.digest().to_owned();
        let containerd = Containerd { program, child, directory, manifest };
        let answers = poll(Duration::from_secs(20), || containerd.ctr(&["version"]).status.success());
        assert!(answers, "containerd does not start:\n{}", containerd.log());
        containerd.import(image);
        Some(containerd)
    }

    fn import(&self, image: &Image) {
        let layout = self.directory.path().join("layout");
        write_layout(&layout, &[("bench.example/files:v1", image)]).expect("write the layout");
        let archive = self.directory.path().join("image.tar");
        let status = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status();
        assert!(status.expect("start tar").success());
        let archive = archive.to_str().expect("a path in UTF-8");
        self.succeed(&["images", "import", "--no-unpack", "--all-platforms", archive]);
    }

    /// Milliseconds that it takes to unpack the image. What was unpacked is removed again.
    pub async fn unpack(&self) -> f64 {
        let begin = Instant::now();
        self.succeed(&["snapshots", "unpack", &self.manifest]);
        let time = begin.elapsed().as_secs_f64() * 1e3;
        let listed = self.succeed(&["snapshots", "list"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for key in listed.lines().filter_map(|line| line.split_whitespace().next()) {
            if key.starts_with("sha256:") {
                self.succeed(&["snapshots", "remove", key]);
            }
        }
        time
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> Output {
        let output = self.ctr(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {said}\n{}", self.log());
        output
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("--address").arg(self.directory.path().join("socket"));
        command.args(arguments).stdin(Stdio::null()).output().expect("start ctr")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(Path::new(self.directory.path()).join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
