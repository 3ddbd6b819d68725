//! L3 and L5: what is lazy stays lazy over a crash, and bytes that are lost at one place come from another.
//! D2: an image is registered in one transaction, however many layers it has.

use std::collections::BTreeMap;
use std::path::Path;

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::verify_blobs;

const MIB: u64 = 1 << 20;

async fn run(daemon: &Daemon, build: Build) -> Outcome {
    Client::connect(daemon).await.start(build).await.finish().await
}

fn archive(state: &State) -> Build {
    Build::of(state).export("oci", &[]).attach(Attachables::default().discarding_files())
}

fn crash(daemon: &mut Daemon) {
    daemon.kill9();
    daemon.start_again();
}

fn layer_gets(registry: &TestRegistry, image: &Image) -> usize {
    image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum()
}

fn is_cached(outcome: &Outcome, state: &State) -> bool {
    outcome.vertex(state.digest()).iter().any(|vertex| vertex.cached)
}

/// Layers of `image` that are in the daemon's store.
fn resident(root: &Path, image: &Image) -> usize {
    let blobs = verify_blobs(root);
    image.layer_digests().iter().filter(|layer| blobs.iter().any(|blob| blob == *layer)).count()
}

/// Bytes of unfinished blobs in the store, by digest.
fn partial_sizes(root: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(root.join("content/ingest")).expect("the ingest directory");
    let entries = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().replacen("sha256-", "sha256:", 1);
        (name, entry.metadata().expect("metadata").len())
    });
    entries.collect()
}

fn layers_of(registry: &TestRegistry, repository: &str, tag: &str) -> Vec<String> {
    let manifest = registry.manifest(repository, tag).expect("a pushed manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("a manifest is JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lazy_results_with_their_keys_and_origins_survive_kill_9_and_a_prune_of_all_else() {
    let image = Image::incompressible(0xd1, 4, 4 * MIB);
    let (source, target, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    source.put_image("team/base", "1", &image);
    source.put_image("team/unused", "1", &Image::incompressible(0xd2, 2, MIB));
    let state = llb::image(source.reference("team/base", "1"));
    run(&daemon, Build::of(&state).push(&target.reference("copy/base", "1"))).await.success();

    crash(&mut daemon);
    source.forget();
    target.forget();
    let again = run(&daemon, Build::of(&state).push(&target.reference("copy/base", "1"))).await.success();
    assert!(is_cached(&again, &state), "{:?}", again.vertex(state.digest()));
    assert_eq!(source.count(Op::BlobGet), 0, "not even the config: {}", source.story());
    assert!(source.requests().iter().all(|r| r.op == Op::ManifestHead), "{}", source.story());
    assert_eq!(target.uploads(), 0, "{}", target.story());

    // With the result in use by a gateway build that is not over, everything else goes.
    run(&daemon, archive(&llb::image(source.reference("team/unused", "1")))).await.success();
    let client = Client::connect(&daemon).await;
    let holder = client.start(Build::gateway()).await;
    let request = thunk::proto::gateway::SolveRequest {
        definition: Some(state.definition()),
        evaluate: true,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..Default::default()
    };
    client.bridge(&holder.reference).solve(request).await.expect("solve");
    let gone = client.prune_all().await.expect("prune");
    assert_eq!(gone.len(), 2, "the two of the other image: {gone:#?}");
    assert_eq!(client.usage().await.len(), 4);
    holder.cancel().await;

    crash(&mut daemon);
    source.forget();
    let elsewhere = run(&daemon, Build::of(&state).push(&source.reference("team/app", "1"))).await.success();
    assert!(is_cached(&elsewhere, &state));
    assert_eq!(layer_gets(&source, &image), 0, "{}", source.story());
    assert_eq!(source.mounts_ok(), 4, "{}", source.story());
    assert_eq!(resident(&daemon.root(), &image), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_layer_is_mounted_still_after_a_crash() {
    let image = Image::incompressible(0xd3, 3, 3 * MIB);
    let (source, mut daemon) = (TestRegistry::open(), Daemon::start());
    source.put_image("team/base", "1", &image);
    let state = llb::image(source.reference("team/base", "1"));
    run(&daemon, archive(&state)).await.success();
    assert_eq!(resident(&daemon.root(), &image), 3);
    crash(&mut daemon);
    source.forget();
    run(&daemon, Build::of(&state).push(&source.reference("team/app", "1"))).await.success();
    assert_eq!((layer_gets(&source, &image), source.mounts_ok()), (0, 3), "{}", source.story());
}

/// The note of where a blob came from is a row that is written behind its file. A kill in between cost every
/// asker another download of it, and two at once had two.
#[tokio::test(flavor = "multi_thread")]
async fn two_who_ask_after_a_kill_get_only_the_rest_and_that_once() {
    let image = Image::incompressible(0xdb, 3, 3 * MIB);
    let mut whole_ones = 0;
    for nth in 1..=5 {
        let (source, mut daemon) = (TestRegistry::open(), Daemon::prepare(DaemonOptions::default()));
        source.put_image("team/base", "1", &image);
        let state = llb::image(source.reference("team/base", "1"));
        daemon.arm(&format!("blob-directory-synced:{nth}=kill"));
        daemon.start_again();
        let cut = Client::connect(&daemon).await.try_start(archive(&state)).await;
        if let Ok(cut) = cut {
            cut.finish().await.failure();
        }
        daemon.wait_killed();
        daemon.start_again();
        let whole = verify_blobs(&daemon.root());
        let partial = partial_sizes(&daemon.root());
        source.forget();
        let (one, other) = tokio::join!(run(&daemon, archive(&state)), run(&daemon, archive(&state)));
        drop((one.success(), other.success()));
        for layer in &image.layers {
            let (digest, story) = (layer.digest(), source.story());
            let had = match partial.get(digest) {
                _ if whole.iter().any(|there| there == digest) => layer.size(),
                had => had.copied().unwrap_or(0),
            };
            assert_eq!(source.bytes_of(digest), layer.size() - had, "kill {nth}, {digest}: {story}");
            assert!(source.gets_of(digest) <= 1, "kill {nth}, {digest}: {story}");
            whole_ones += usize::from(had == layer.size());
        }
    }
    assert!(whole_ones > 0, "no layer was whole at any of the kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_an_origin_when_the_first_one_has_lost_the_blob() {
    let image = Image::incompressible(0xd4, 3, 3 * MIB);
    let (source, target, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    source.put_image("team/base", "1", &image);
    let state = llb::image(source.reference("team/base", "1"));
    run(&daemon, Build::of(&state).push(&target.reference("copy/base", "1"))).await.success();
    crash(&mut daemon);
    for layer in image.layer_digests() {
        assert!(source.remove_blob("team/base", layer));
    }
    target.forget();
    run(&daemon, archive(&state)).await.success();
    assert_eq!(layer_gets(&target, &image), 3, "{}", target.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_shares_a_layer_lends_its_origin() {
    let shared = Layer::incompressible(0xd5_0000, MIB);
    let image = |n: u64| Image::of([shared.clone(), Layer::incompressible(0xd5_0000 + n, MIB)]);
    let (one, other, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    one.put_image("team/one", "1", &image(1));
    other.put_image("team/other", "1", &image(2));
    let first = llb::image(one.reference("team/one", "1"));
    let both = llb::merge([first.clone(), llb::image(other.reference("team/other", "1"))]);
    run(&daemon, Build::of(&both)).await.success();
    crash(&mut daemon);
    assert!(one.remove_blob("team/one", shared.digest()));
    run(&daemon, archive(&first)).await.success();
    assert_eq!(other.gets_of(shared.digest()), 1, "{}", other.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_what_the_origin_has_lost() {
    let image = Image::incompressible(0xd6, 2, MIB);
    let (origin, mirror, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    for registry in [&origin, &mirror] {
        registry.put_image("team/base", "1", &image);
    }
    let state = llb::image(origin.reference("team/base", "1"));
    run(&daemon, Build::of(&state)).await.success();
    daemon.configure(&format!(
        "[registry.\"{}\"]\n  mirrors = [\"{}\"]\n[registry.\"{}\"]\n  http = true\n",
        origin.host(),
        mirror.host(),
        mirror.host(),
    ));
    crash(&mut daemon);
    for layer in image.layer_digests() {
        assert!(origin.remove_blob("team/base", layer));
    }
    run(&daemon, archive(&state)).await.success();
    assert_eq!(layer_gets(&mirror, &image), 2, "{}", mirror.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_nobody_has_fails_the_build_by_name_and_its_return_heals_it() {
    let image = Image::incompressible(0xd7, 2, MIB);
    let (source, mut daemon) = (TestRegistry::open(), Daemon::start());
    source.put_image("team/base", "1", &image);
    let state = llb::image(source.reference("team/base", "1"));
    run(&daemon, Build::of(&state)).await.success();
    crash(&mut daemon);
    let lost = image.layers[1].clone();
    assert!(source.remove_blob("team/base", lost.digest()));
    let outcome = run(&daemon, archive(&state)).await;
    let message = outcome.failure().message().to_owned();
    for word in [source.host().as_str(), "team/base", lost.digest()] {
        assert!(message.contains(word), "no {word} in {message:?}");
    }
    // Lazily it is as good as ever, and so is a daemon that was refused once.
    run(&daemon, Build::of(&state)).await.success();
    source.put_image("team/base", "1", &image);
    run(&daemon, archive(&state)).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_named_here_is_built_without_its_registry() {
    let image = Image::incompressible(0xd8, 2, MIB);
    let (source, mut daemon) = (TestRegistry::open(), Daemon::start());
    source.put_image("team/base", "1", &image);
    let name = source.reference("team/base", "1");
    let state = llb::image(&name);
    run(&daemon, Build::of(&state).export("image", &[("name", name.as_str())])).await.success();
    crash(&mut daemon);
    source.go_down();
    run(&daemon, Build::of(&state)).await.success();
    assert_eq!(Client::connect(&daemon).await.usage().await.len(), 2);
    // The name goes with the records.
    Client::connect(&daemon).await.prune_all().await.expect("prune");
    let outcome = run(&daemon, Build::of(&state)).await;
    assert_eq!(outcome.failure().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_of_images_stays_lazy_and_cached_over_a_crash() {
    let images = [0xd9, 0xda].map(|seed| Image::incompressible(seed, 2, MIB));
    let (source, target, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    for (name, image) in ["team/a", "team/b"].iter().zip(&images) {
        source.put_image(name, "1", image);
    }
    let merged = llb::merge(["team/a", "team/b"].map(|name| llb::image(source.reference(name, "1"))));
    run(&daemon, Build::of(&merged).push(&target.reference("copy/both", "1"))).await.success();
    let layers: Vec<&str> = images.iter().flat_map(Image::layer_digests).collect();
    assert_eq!(layers_of(&target, "copy/both", "1"), layers);

    crash(&mut daemon);
    source.forget();
    target.forget();
    let again = run(&daemon, Build::of(&merged).push(&target.reference("copy/both", "1"))).await.success();
    assert!(is_cached(&again, &merged), "{:?}", again.vertex(merged.digest()));
    assert_eq!(source.count(Op::BlobGet), 0, "{}", source.story());
    assert_eq!(target.uploads(), 0, "{}", target.story());

    source.forget();
    run(&daemon, Build::of(&merged).push(&source.reference("team/both", "1"))).await.success();
    assert_eq!(layers_of(&source, "team/both", "1"), layers);
    assert_eq!(source.mounts_ok(), 4, "{}", source.story());
    for image in &images {
        assert_eq!(layer_gets(&source, image), 0, "{}", source.story());
        assert_eq!(resident(&daemon.root(), image), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_an_image_costs_the_same_commits_and_fsyncs_for_1_10_and_125_layers() {
    let source = TestRegistry::open();
    let mut costs = Vec::new();
    for layers in [1, 10, 125] {
        let image = Image::incompressible(0xe00 + layers, layers, layers * 1024);
        let tag = layers.to_string();
        source.put_image("team/base", &tag, &image);
        let daemon = Daemon::start();
        let before = daemon.counters();
        run(&daemon, Build::of(&llb::image(source.reference("team/base", &tag)))).await.success();
        let after = daemon.counters();
        let cost = |name: &str| after[name] - before[name];
        costs.push((layers, cost("db_commits"), cost("db_fsyncs"), cost("content_fsyncs")));
        assert_eq!(Client::connect(&daemon).await.usage().await.len() as u64, layers);
        assert_eq!(layer_gets(&source, &image), 0, "{}", source.story());
    }
    // The writes behind of one build may ride with one commit or another; layers must not show.
    for (layers, commits, fsyncs, _) in &costs {
        assert!(*commits <= 10 && *fsyncs <= 8, "{layers} layers: {costs:?}");
    }
    assert!(costs.iter().all(|cost| cost.3 == costs[0].3), "fsyncs of blobs: {costs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_125_layers_goes_from_registry_to_registry_in_order() {
    let image = Image::incompressible(0xeff, 125, 125 * 1024);
    let (source, target, mut daemon) = (TestRegistry::open(), TestRegistry::open(), Daemon::start());
    source.put_image("team/deep", "1", &image);
    let state = llb::image(source.reference("team/deep", "1"));
    run(&daemon, Build::of(&state).push(&target.reference("copy/deep", "1"))).await.success();
    assert_eq!(layers_of(&target, "copy/deep", "1"), image.layer_digests());
    assert_eq!(layer_gets(&source, &image), 125, "{}", source.story());
    crash(&mut daemon);
    source.forget();
    run(&daemon, Build::of(&state).push(&source.reference("team/app", "1"))).await.success();
    assert_eq!((layer_gets(&source, &image), source.mounts_ok()), (0, 125));
}
