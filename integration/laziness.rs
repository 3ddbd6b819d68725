//! The promise of the product, counted at the registry: a layer moves only if somebody needs its bytes.
//!
//! All of it goes through the real `buildctl`, on an image of twelve incompressible layers and 640 MiB.

use std::sync::OnceLock;

use futures::future::join_all;

use crate::harness::Image;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::buildctl::Run;
use crate::harness::daemon::Daemon;
use crate::harness::llb;

const LAYERS: usize = 12;
const SIZE: u64 = 640 << 20;
const MIB: u64 = 1 << 20;

/// Hashed once for all tests: its bytes are made anew whenever they are sent.
fn large() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::incompressible(0x1a2, LAYERS as u64, SIZE))
}

/// A registry that has `image` as `base:v1`.
fn registry_of(image: &Image) -> TestRegistry {
    let registry = TestRegistry::open();
    registry.put_image("base", "v1", image);
    registry
}

/// Pushes `source`'s `base:v1`, annotated with `label`, to `target`.
async fn push(client: &Buildctl, source: &TestRegistry, target: &TestRegistry, to: &str, label: &str) -> Run {
    let definition = llb::image(source.reference("base", "v1")).marshal();
    let name = target.reference(to, label);
    let output = format!("type=image,name={name},push=true,annotation.org.example.label={label}");
    client.build(&definition, &[&output]).await.success()
}

/// GETs of layers: those of configs don't count.
fn layer_gets(registry: &TestRegistry, image: &Image) -> usize {
    image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum()
}

/// Uploads of layers, begun or not finished included.
fn layer_bytes_in(registry: &TestRegistry) -> u64 {
    registry.at(Op::UPLOADS).iter().map(|request| request.bytes_in).sum()
}

/// The manifest at the target names the same layers in the same order.
fn assert_arrived(target: &TestRegistry, repository: &str, tag: &str, image: &Image) {
    let manifest = target.manifest(repository, tag).expect("the manifest arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("a manifest is JSON");
    let layers: Vec<_> = manifest["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|l| l["digest"].as_str().unwrap())
        .collect();
    assert_eq!(layers, image.layer_digests());
    for digest in image.layer_digests() {
        assert!(target.has_blob(repository, digest), "{repository} lacks {digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relabelled_image_moves_no_layer_within_its_registry() {
    let (image, daemon) = (large(), &mut Daemon::start());
    let Some(client) = Buildctl::of(daemon) else { return };
    let registry = registry_of(image);

    // To the repository that it came from.
    push(&client, &registry, &registry, "base", "same").await;
    assert_arrived(&registry, "base", "same", image);
    assert_eq!(layer_gets(&registry, image), 0, "{}", registry.story());
    assert_eq!(registry.mounts_ok(), 0, "the blobs are there: nothing to mount\n{}", registry.story());
    assert!(layer_bytes_in(&registry) < MIB, "{}", registry.story());

    // To another one: as it is, after a crash, after everything unused was pruned, after a fetch.
    for (to, prepare) in [("other", ""), ("crashed", "kill"), ("pruned", "prune"), ("fetched", "fetch")] {
        match prepare {
            "kill" => {
                daemon.kill9();
                daemon.start_again();
            }
            "prune" => {
                client.run(["prune", "--all"], b"").await.success();
            }
            "fetch" => {
                let definition = llb::image(registry.reference("base", "v1")).marshal();
                let archive = daemon.scratch().join("image.tar");
                let output = format!("type=oci,dest={}", archive.display());
                client.build(&definition, &[&output]).await.success();
                assert!(archive.metadata().expect("the archive").len() > SIZE);
                std::fs::remove_file(archive).expect("remove the archive");
            }
            _ => {}
        }
        registry.forget();
        push(&client, &registry, &registry, to, "v2").await;
        assert_arrived(&registry, to, "v2", image);
        assert_eq!(layer_gets(&registry, image), 0, "{to}\n{}", registry.story());
        assert_eq!(registry.mounts_ok(), LAYERS, "{to}\n{}", registry.story());
        assert!(layer_bytes_in(&registry) < MIB, "{to}\n{}", registry.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_another_registry_streams_each_layer_once_past_the_disk() {
    let (image, daemon) = (large(), Daemon::start());
    let Some(client) = Buildctl::of(&daemon) else { return };
    let (source, target) = (registry_of(image), TestRegistry::open());
    let before = daemon.disk_usage();
    let disk = daemon.watch_disk();
    push(&client, &source, &target, "copy", "v1").await;
    let peak = disk.peak().saturating_sub(before);
    assert_arrived(&target, "copy", "v1", image);
    for digest in image.layer_digests() {
        assert_eq!(source.gets_of(digest), 1, "{}", source.story());
        assert_eq!(target.count(Op::UploadPut.of(digest)), 1, "{}", target.story());
    }
    assert!(peak < 10 * MIB, "{peak} bytes of disk");
    assert!(daemon.peak_memory() < 100 * MIB, "{} bytes of memory", daemon.peak_memory());

    // The push left an origin: from there on another repository of the target mounts.
    target.forget();
    source.forget();
    push(&client, &source, &target, "copy-of-copy", "v1").await;
    assert_arrived(&target, "copy-of-copy", "v1", image);
    assert_eq!(target.mounts_ok(), LAYERS, "{}", target.story());
    assert_eq!(layer_gets(&source, image), 0, "{}", source.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_made_at_once_share_one_fetch_of_each_blob() {
    let image = Image::incompressible(0x1a3, 6, 48 * MIB);
    let daemon = Daemon::start();
    let clients: Vec<_> = (0..32).filter_map(|_| Buildctl::of(&daemon)).collect();
    let registry = registry_of(&image);
    let definition = llb::image(registry.reference("base", "v1")).marshal();
    let runs = clients.iter().enumerate().map(|(n, client)| {
        // Without an epoch an archive tells the second it was made in.
        let output = format!("type=oci,source-date-epoch=0,dest={}/{n}.tar", daemon.scratch().display());
        let definition = &definition;
        async move { client.build(definition, &[&output]).await.success() }
    });
    let runs = join_all(runs).await;
    if runs.is_empty() {
        return;
    }
    for digest in image.layer_digests() {
        assert_eq!(registry.gets_of(digest), 1, "{}", registry.story());
    }
    let archive = |n: usize| std::fs::read(daemon.scratch().join(format!("{n}.tar"))).expect("an archive");
    let first = archive(0);
    assert!(first.len() as u64 > 48 * MIB);
    for n in 1..32 {
        assert!(archive(n) == first, "archive {n} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_who_came_first_may_leave_and_the_others_pay_nothing() {
    let image = Image::incompressible(0x1a4, 1, 8 * MIB);
    let daemon = Daemon::start();
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = registry_of(&image);
    let definition = llb::image(registry.reference("base", "v1")).marshal();
    // Resolved before, so that the layer is all that is left to wait for.
    client.build(&definition, &[]).await.success();
    let hold = registry.hold_after(Op::BlobGet.of(image.layer_digests()[0]), MIB);
    let build = |n: usize| {
        let output = format!("type=oci,dest={}/{n}.tar", daemon.scratch().display());
        let (client, definition) = (&client, &definition);
        async move { client.build(definition, &[&output]).await }
    };
    let mut first = Box::pin(build(0));
    tokio::select! {
        run = &mut first => panic!("it ended while its layer is held: {}", run.stderr),
        () = hold.reached() => {}
    }
    let mut others = Box::pin(join_all((1..5).map(build)));
    let joined = async {
        while daemon.counter("content_joined") < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = &mut others => panic!("they ended while the layer is held"),
        _ = &mut first => panic!("it ended while its layer is held"),
        joined = tokio::time::timeout(std::time::Duration::from_secs(30), joined) => joined.expect("all wait"),
    }
    drop(first);
    drop(hold);
    for run in others.await {
        run.success();
    }
    for digest in image.layer_digests() {
        assert_eq!(registry.gets_of(digest), 1, "{}", registry.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_everybody_left_ends_and_the_next_one_gets_only_the_rest() {
    let image = Image::incompressible(0x1a5, 1, 16 * MIB);
    let daemon = Daemon::start();
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = registry_of(&image);
    let layer = image.layer_digests()[0];
    let hold = registry.hold_after(Op::BlobGet.of(layer), 8 * MIB);
    let definition = llb::image(registry.reference("base", "v1")).marshal();
    let output = format!("type=oci,dest={}/image.tar", daemon.scratch().display());
    let outputs = [output.as_str()];
    tokio::select! {
        run = client.build(&definition, &outputs) => panic!("it ended while held: {}", run.stderr),
        () = async {
            hold.reached().await;
            // What the registry has sent may still be on its way.
            while daemon.counter("content_fetched_bytes") < 6 * MIB {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        } => {}
    }
    // Both clients are gone; the daemon hangs up by itself.
    registry.until(|r| r.at(Op::BlobGet.of(layer)).iter().all(|request| request.ended)).await;
    drop(hold);
    registry.forget();
    client.build(&definition, &outputs).await.success();
    let gets = registry.at(Op::BlobGet.of(layer));
    assert_eq!(gets.len(), 1, "{}", registry.story());
    let range = gets[0].range.as_deref().expect("a range");
    let from: u64 = range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("an open range");
    assert!(from >= 4 * MIB, "only {from} bytes were kept");
    assert_eq!(gets[0].bytes_out, image.layer_bytes() - from);
}
