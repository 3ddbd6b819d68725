//! Large layers go to the registry while they are packed. The packing is held in its midst by a failpoint, so that
//! what has arrived by then has arrived before its end.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::client::Running;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::poll;

const MIB: usize = 1 << 20;
/// What must happen happens within this time.
const LIMIT: Duration = Duration::from_secs(60);
/// Packed MiB at which a packing is held: more than are packed before anything is sent.
const HELD_AT: usize = 13;
/// Bytes of a file that makes a layer of more than that.
const LARGE: usize = 22 * MIB;
/// Chunks that are there when the packing is held.
const CHUNKS_WHEN_HELD: usize = 3;

/// A daemon whose packing is held, and what it reads from and pushes to.
struct Scene {
    registry: TestRegistry,
    daemon: Daemon,
    /// Is there while a packing is held.
    held: PathBuf,
    size: usize,
    _directory: TempDir,
}

impl Scene {
    /// `then` are more failpoints.
    fn new(size: usize, then: &str) -> Scene {
        let directory = TempDir::new().expect("a directory");
        let held = directory.path().join("held");
        let failpoint = format!("mebibyte-produced:{HELD_AT}=hold:{}{then}", held.display());
        let options = DaemonOptions { failpoint: Some(failpoint), ..DaemonOptions::default() };
        let registry = TestRegistry::open();
        registry.put_image("base", "1", &Image::of([Layer::files([("large", noise(size))])]));
        Scene { registry, daemon: Daemon::start_with(options), held, size, _directory: directory }
    }

    /// A copy of the file, which is a layer that has no blob yet, pushed to `names`.
    async fn push(&self, names: &[&str]) -> Running {
        let base = llb::image(self.registry.reference("base", "1"));
        let copy = llb::file(None, Some(&base), &Action::Copy { from: "/large", to: "/copied" });
        let names: Vec<_> = names.iter().map(|name| self.registry.reference(name, "1")).collect();
        Client::connect(&self.daemon).await.start(Build::of(&copy).push(&names.join(","))).await
    }

    /// Waits until a packing is held in its midst, and the registry has taken all chunks that are there by then.
    fn until_held(&self, targets: usize) {
        let taken =
            || self.registry.at(Op::UploadPatch).iter().filter(|patch| patch.status == Some(202)).count();
        let arrived = poll(LIMIT, || self.held.exists() && taken() == targets * CHUNKS_WHEN_HELD);
        assert!(arrived, "{}\n{}", self.registry.story(), self.daemon.log());
    }

    fn release(&self) {
        std::fs::remove_file(&self.held).expect("it is held");
    }

    /// The layer of the image that was pushed to `repository`, which has all bytes.
    fn layer(&self, repository: &str) -> String {
        let manifest = self.registry.manifest(repository, "1").expect("the manifest arrived");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
        let layers = manifest["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 1);
        assert!(layers[0]["size"].as_u64().expect("a size") > self.size as u64);
        let digest = layers[0]["digest"].as_str().expect("a digest").to_owned();
        // The registry has hashed what it got.
        assert!(self.registry.has_blob(repository, &digest), "{}", self.registry.story());
        digest
    }

    /// Cancelling goes behind.
    fn assert_no_upload_is_open(&self) {
        let closed = poll(LIMIT, || self.registry.open_uploads() == 0);
        assert!(closed, "{}", self.registry.story());
    }

    fn count(&self, op: Op, repository: &str) -> usize {
        self.registry.count(op.in_repository(repository))
    }
}

/// Bytes that no compression makes fewer.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size / 8).flat_map(|_| word()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_arrives_while_it_is_packed() {
    let scene = Scene::new(LARGE, "");
    let running = scene.push(&["copy"]).await;
    scene.until_held(1);
    assert_eq!(scene.count(Op::UploadPut, "copy"), 0, "nobody knows the digest yet");
    scene.release();
    running.finish().await.success();
    let digest = scene.layer("copy");
    assert_eq!(scene.count(Op::UploadPatch, "copy"), LARGE.div_ceil(4 * MIB), "{}", scene.registry.story());
    assert_eq!(scene.count(Op::UploadStart, "copy"), 2, "the layer and the config");
    assert_eq!(scene.count(Op::UploadPut, "copy"), 2, "the layer and the config");
    assert_eq!(scene.registry.count(Op::BlobHead.of(&digest)), 0, "nobody asks for what was seen to arrive");
    scene.assert_no_upload_is_open();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_targets_get_a_layer_from_one_packing() {
    let scene = Scene::new(LARGE, "");
    let running = scene.push(&["one", "other"]).await;
    scene.until_held(2);
    scene.release();
    running.finish().await.success();
    assert_eq!(scene.layer("one"), scene.layer("other"));
    for repository in ["one", "other"] {
        assert_eq!(scene.count(Op::UploadPatch, repository), LARGE.div_ceil(4 * MIB));
        assert_eq!(scene.count(Op::UploadPut, repository), 2, "the layer and the config");
    }
    assert_eq!(scene.registry.count(Op::Mount), 0, "{}", scene.registry.story());
    scene.assert_no_upload_is_open();
}

/// Both ask for the same layer at the same place, and it goes there once.
#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_of_a_layer_to_one_place_share_its_stream() {
    let scene = Scene::new(LARGE, "");
    let first = scene.push(&["copy"]).await;
    scene.until_held(1);
    let second = scene.push(&["copy"]).await;
    // Whenever the second one comes, there is one upload: it joins the stream, or finds what came of it.
    scene.release();
    first.finish().await.success();
    second.finish().await.success();
    scene.layer("copy");
    assert_eq!(scene.count(Op::UploadPatch, "copy"), LARGE.div_ceil(4 * MIB), "{}", scene.registry.story());
    scene.assert_no_upload_is_open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_in_mid_stream_gets_the_layer_in_one_piece() {
    let scene = Scene::new(LARGE, "");
    let running = scene.push(&["copy"]).await;
    scene.until_held(1);
    let fault = scene.registry.fail(Op::UploadPatch, How::Status(500));
    scene.release();
    running.finish().await.success();
    assert_eq!(fault.fired(), 1, "nothing is tried twice\n{}", scene.registry.story());
    scene.layer("copy");
    assert_eq!(scene.count(Op::UploadStart, "copy"), 3, "the stream, the layer and the config");
    assert_eq!(scene.count(Op::UploadPut, "copy"), 2, "the layer and the config");
    scene.assert_no_upload_is_open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_not_taken_leads_to_an_upload_in_one_piece() {
    let scene = Scene::new(LARGE, "");
    let running = scene.push(&["copy"]).await;
    scene.until_held(1);
    // The config may come first: it is tried again.
    let fault = scene.registry.fail(Op::UploadPut, How::Status(503));
    let lifted = poll(LIMIT, || {
        if scene.held.exists() {
            scene.release();
        }
        fault.fired() > 0
    });
    assert!(lifted, "{}", scene.registry.story());
    fault.lift();
    running.finish().await.success();
    scene.layer("copy");
    scene.assert_no_upload_is_open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_in_mid_stream_leaves_no_upload_open() {
    let scene = Scene::new(LARGE, "");
    let running = scene.push(&["copy"]).await;
    scene.until_held(1);
    assert_eq!(scene.registry.open_uploads(), 1);
    running.cancel_solve().await;
    scene.assert_no_upload_is_open();
    assert!(scene.held.exists(), "the packing goes on to its end");
    scene.release();
    // What was packed is there for the next one.
    scene.push(&["copy"]).await.finish().await.success();
    scene.layer("copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packing_that_fails_in_mid_stream_cancels_the_upload() {
    let scene = Scene::new(LARGE, &format!(",mebibyte-produced:{HELD_AT}=error"));
    let running = scene.push(&["copy"]).await;
    scene.until_held(1);
    scene.release();
    let outcome = running.finish().await;
    let status = outcome.failure();
    assert!(status.message().contains("was set to fail"), "{status:?}");
    scene.assert_no_upload_is_open();
    assert_eq!(scene.count(Op::UploadPut, "copy"), 0, "{}", scene.registry.story());
    // The next one packs anew.
    scene.push(&["copy"]).await.finish().await.success();
    scene.layer("copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_layer_is_looked_for_first() {
    let scene = Scene::new(4 * MIB, "");
    scene.push(&["copy"]).await.finish().await.success();
    let digest = scene.layer("copy");
    assert_eq!(scene.count(Op::UploadPatch, "copy"), 0, "{}", scene.registry.story());
    assert_eq!(scene.registry.count(Op::BlobHead.of(&digest)), 1);
    assert_eq!(scene.count(Op::UploadStart, "copy"), 2, "the layer and the config");
    assert_eq!(scene.count(Op::UploadPut, "copy"), 2, "the layer and the config");
}

/// A layer that exists and is only compressed anew is none that anybody sends ahead, and its push waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_compressed_anew_goes_in_one_piece() {
    let scene = Scene::new(LARGE, "");
    let base = llb::image(scene.registry.reference("base", "1"));
    let name = scene.registry.reference("copy", "1");
    let options = [
        ("name", name.as_str()),
        ("push", "true"),
        ("compression", "zstd"),
        ("force-compression", "true"),
        ("oci-mediatypes", "true"),
    ];
    let build = Build::of(&base).export("image", &options);
    let running = Client::connect(&scene.daemon).await.start(build).await;
    assert!(poll(LIMIT, || scene.held.exists()), "{}", scene.daemon.log());
    scene.release();
    running.finish().await.success();
    scene.layer("copy");
    assert_eq!(scene.count(Op::UploadPatch, "copy"), 0, "{}", scene.registry.story());
}
