//! What a build and its exports take of memory at most, whatever the size of its image.

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::harness::llb;

const MIB: u64 = 1 << 20;

/// A build of one step on a lazy base with a large layer, exported: to another registry, which comes first so that the new
/// layer is sent while it is made, and into archives, which the client counts and drops. Returns the target.
async fn exports_in_little_memory(layer: Layer, size: u64) -> Option<TestRegistry> {
    let busybox = busybox()?;
    let (daemon, registry, target) = (Daemon::start(), TestRegistry::open(), TestRegistry::open());
    registry.put_image("base", "1", &Image::of([busybox, layer]));
    let base = llb::image(registry.reference("base", "1"));
    let state = llb::sh(&base, "cat /r* > /copy");
    let client = Client::connect(&daemon).await;
    client.start(Build::of(&state).push(&target.reference("copy", "1"))).await.finish().await.success();
    let manifest = target.manifest("copy", "1").expect("the manifest arrived").json();
    assert_eq!(manifest["layers"].as_array().expect("layers").len(), 3);
    let peak = daemon.peak_memory();
    assert!(peak < 100 * MIB, "push: {peak} bytes of memory");
    for kind in ["oci", "docker", "tar"] {
        let attach = Attachables::default().discarding_files();
        let build = Build::of(&state).export(kind, &[]).attach(attach);
        let outcome = client.start(build).await.finish().await.success();
        let received = outcome.session.received(0).expect("an archive");
        assert!(received.whole, "{kind}");
        if kind == "tar" {
            assert!(received.len > 2 * size, "{} bytes", received.len);
        }
        let peak = daemon.peak_memory();
        assert!(peak < 100 * MIB, "{kind}: {peak} bytes of memory");
    }
    eprintln!("at most {} MiB of memory", daemon.peak_memory() / MIB);
    Some(target)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_image_that_is_small_when_compressed_takes_little_memory() {
    exports_in_little_memory(Layer::compressible(150 * MIB), 150 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_image_of_random_bytes_takes_little_memory() {
    let layer = Layer::incompressible(0x3e3, 64 * MIB);
    let Some(target) = exports_in_little_memory(layer, 64 * MIB).await else { return };
    assert!(target.count(Op::UploadPatch) > 0, "nothing was sent while it was made\n{}", target.story());
}
