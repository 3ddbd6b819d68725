//! D1 for states: what a kill, an error, a stop in the middle of a build or a power cut leaves of unpacked layers, of
//! commands' files, of cache mounts and of packed layers.

mod crash;
mod midway;
mod native;
mod power;

use std::collections::BTreeMap;
use std::path::Path;

use tonic::Status;

use crate::builds::files_in;
use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;

/// An image that commands can run in, in a registry, and one to push to.
pub struct Site {
    pub source: TestRegistry,
    pub target: TestRegistry,
    pub base: Image,
}

impl Site {
    /// `None` without a busybox. The third layer has files in directories that it does not name.
    pub fn new() -> Option<Site> {
        let layers = [
            busybox()?,
            Layer::files([("one", "1\n".repeat(4096))]),
            Layer::files([("implied/directory/file", "below\n")]),
        ];
        let site =
            Site { source: TestRegistry::open(), target: TestRegistry::open(), base: Image::of(layers) };
        site.source.put_image("base", "1", &site.base);
        Some(site)
    }

    pub fn base(&self) -> State {
        llb::image(self.source.reference("base", "1"))
    }

    /// A command that looks at its base and writes, besides, to a cache mount.
    pub fn ran(&self) -> State {
        let script = "cat /implied/directory/file > /ran; echo ran >> /ran; echo more >> /cache/log";
        llb::sh_caching(&self.base(), "site", script)
    }

    /// A file on what ran.
    pub fn made(&self) -> State {
        llb::file(Some(&self.ran()), None, &Action::MkFile { path: "/made", data: b"made\n" })
    }

    /// What ran, and a file of it copied over it.
    pub fn merged(&self) -> State {
        let copied = llb::file(None, Some(&self.ran()), &Action::Copy { from: "/ran", to: "/copied" });
        llb::merge([self.made(), copied])
    }

    pub fn push_made(&self) -> Build {
        Build::of(&self.made()).push(&self.target.reference("copy", "made"))
    }

    /// The files of what is merged, after a build of them.
    pub async fn files_of_merged(&self, client: &Client) -> Result<BTreeMap<String, String>, Status> {
        files_of(client, &self.merged()).await
    }

    /// Panics unless all that was built has the files that it must.
    pub async fn judge_results(&self, client: &Client, at: &str) {
        client.start(self.push_made()).await.finish().await.success();
        self.judge_pushed(at);
        let files = self.files_of_merged(client).await;
        self.judge_files(&files.unwrap_or_else(|status| panic!("{at}: {status:?}")), at);
    }

    pub fn judge_files(&self, files: &BTreeMap<String, String>, at: &str) {
        for (name, text) in [
            ("implied/directory/file", "below\n"),
            ("ran", "below\nran\n"),
            ("made", "made\n"),
            ("copied", "below\nran\n"),
        ] {
            assert_eq!(files.get(name).map(String::as_str), Some(text), "{at}: {name} of {:?}", files.keys());
        }
        assert_eq!(files.get("one").map(String::len), Some(8192), "{at}");
    }

    /// The pushed image has every layer, and the last ones have the files that were made.
    pub fn judge_pushed(&self, at: &str) {
        let manifest = self.target.manifest("copy", "made").unwrap_or_else(|| panic!("{at}: no manifest"));
        let manifest: serde_json::Value =
            serde_json::from_slice(&manifest.bytes).expect("a manifest is JSON");
        let layers = manifest["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), self.base.layers.len() + 2, "{at}: {manifest}");
        let mut files = BTreeMap::new();
        for layer in layers {
            let digest = layer["digest"].as_str().expect("a digest");
            let blob =
                self.target.blob("copy", digest).unwrap_or_else(|| panic!("{at}: {digest} is not there"));
            let bytes: Vec<u8> = blob.read(0, blob.len()).flat_map(|chunk| chunk.to_vec()).collect();
            files.extend(files_in(flate2::read::MultiGzDecoder::new(&bytes[..])));
        }
        for (name, text) in [("ran", "below\nran\n"), ("made", "made\n")] {
            assert_eq!(files.get(name).map(String::as_str), Some(text), "{at}: {name} of {:?}", files.keys());
        }
    }
}

/// The files of a state, by the `tar` exporter.
pub async fn files_of(client: &Client, state: &State) -> Result<BTreeMap<String, String>, Status> {
    let build = Build::of(state).export("tar", &[]).attach(Attachables::default().files());
    let outcome = client.try_start(build).await?.finish().await;
    outcome.response?;
    let received = outcome.session.received(0).expect("an archive");
    assert!(received.whole);
    Ok(files_in(&received.bytes[..]))
}

pub fn is_cached(outcome: &Outcome, state: &State) -> bool {
    outcome.vertex(state.digest()).iter().any(|vertex| vertex.cached)
}

/// Mount points below a directory, as this process sees them.
pub fn mounts_below(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let below =
        points.filter(|point| Path::new(point) != directory && Path::new(point).starts_with(directory));
    below.map(str::to_owned).collect()
}
