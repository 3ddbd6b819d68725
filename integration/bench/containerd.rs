//! Debian's containerd, as one more that unpacks layers.

use std::process::Command;
use std::time::Instant;

use crate::harness;
use crate::harness::Image;
use crate::harness::write_layout;

/// A containerd on a root of its own with one image, whose layers are not unpacked.
pub struct Containerd {
    containerd: harness::Containerd,
    manifest: String,
}

impl Containerd {
    /// `None` where it isn't installed.
    pub async fn start(image: &Image) -> Option<Containerd> {
        let containerd = harness::Containerd::start()?;
        let containerd = Containerd { containerd, manifest: image.digest().to_owned() };
        containerd.import(image);
        Some(containerd)
    }

    fn import(&self, image: &Image) {
        let layout = self.containerd.directory().join("layout");
        write_layout(&layout, &[("bench.example/files:v1", image)]).expect("write the layout");
        let archive = self.containerd.directory().join("image.tar");
        let status = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status();
        assert!(status.expect("start tar").success());
        let archive = archive.to_str().expect("a path in UTF-8");
        self.containerd.succeed(&["images", "import", "--no-unpack", "--all-platforms", archive]);
    }

    /// Milliseconds that it takes to unpack the image. What was unpacked is removed again.
    pub async fn unpack(&self) -> f64 {
        let begin = Instant::now();
        self.containerd.succeed(&["snapshots", "unpack", &self.manifest]);
        let time = begin.elapsed().as_secs_f64() * 1e3;
        let listed = self.containerd.succeed(&["snapshots", "list"]);
        for key in listed.lines().filter_map(|line| line.split_whitespace().next()) {
            if key.starts_with("sha256:") {
                self.containerd.succeed(&["snapshots", "remove", key]);
            }
        }
        time
    }
}
