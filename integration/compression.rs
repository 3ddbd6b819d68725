//! Exports in another compression: what has it already stays as it is, lazy layers included.

use serde_json::Value;

use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::layer::OCI_LAYER;
use crate::harness::layer::OCI_LAYER_ZSTD;
use crate::harness::layer::tar_of;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::sha256;

fn tar(name: &str) -> Vec<u8> {
    tar_of([(name, name.repeat(40_000))])
}

/// Gzip and zstd in turn.
fn base() -> Image {
    Image::of([
        Layer::gzip(tar("zero")),
        Layer::zstd(&tar("one")),
        Layer::gzip(tar("two")),
        Layer::zstd(&tar("three")),
    ])
}

/// The layers of an image that arrived: media types and digests.
fn layers(registry: &TestRegistry, repository: &str) -> Vec<(String, String)> {
    let manifest = registry.manifest(repository, "1").expect("the manifest arrived").json();
    let text = |layer: &Value, key: &str| layer[key].as_str().expect("text").to_owned();
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(|layer| (text(layer, "mediaType"), text(layer, "digest"))).collect()
}

fn build(registry: &TestRegistry, state: &llb::State, to: &str, attributes: &[(&str, &str)]) -> Build {
    let name = registry.reference(to, "1");
    let attributes = [&[("name", name.as_str()), ("push", "true")], attributes].concat();
    Build::of(state).export("image", &attributes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_compression_converts_each_other_layer_once_and_leaves_the_rest_lazy() {
    let (registry, daemon, image) = (TestRegistry::open(), Daemon::start(), base());
    registry.put_image("base", "1", &image);
    let client = Client::connect(&daemon).await;
    let state = llb::image(registry.reference("base", "1"));
    let forced = [("compression", "zstd"), ("force-compression", "true")];
    // At the same time, as one and as two builds.
    let first = build(&registry, &state, "first", &forced);
    let second = build(&registry, &state, "second", &forced);
    let (first, second) = (client.start(first).await, client.start(second).await);
    first.finish().await.success();
    second.finish().await.success();
    let gets: Vec<usize> = image.layer_digests().iter().map(|digest| registry.gets_of(digest)).collect();
    assert_eq!(gets, [1, 0, 1, 0], "{}", registry.story());
    let made = layers(&registry, "first");
    assert_eq!(made, layers(&registry, "second"));
    for (n, (media_type, digest)) in made.iter().enumerate() {
        assert_eq!(media_type, OCI_LAYER_ZSTD);
        assert_eq!(digest == image.layers[n].digest(), n % 2 == 1, "layer {n}");
        let blob = registry.blob("first", digest).expect("the layer arrived").to_bytes();
        assert_eq!(sha256(zstd::decode_all(&blob[..]).expect("zstd")), image.layers[n].diff_id);
    }
    // What was converted is kept.
    registry.forget();
    client.start(build(&registry, &state, "third", &forced)).await.finish().await.success();
    assert_eq!(layers(&registry, "third"), made);
    assert_eq!(registry.uploads(), 1, "the config alone: {}", registry.story());
    let gets: usize = image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum();
    assert_eq!(gets, 0, "{}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compression_that_is_not_forced_is_that_of_new_layers_alone() {
    let (registry, daemon, image) = (TestRegistry::open(), Daemon::start(), base());
    registry.put_image("base", "1", &image);
    let client = Client::connect(&daemon).await;
    let base = llb::image(registry.reference("base", "1"));
    let given: Vec<_> =
        image.layers.iter().map(|l| (l.descriptor.media_type.clone(), l.digest().to_owned())).collect();
    for (compression, media_type) in [("zstd", OCI_LAYER_ZSTD), ("uncompressed", OCI_LAYER)] {
        let data = compression.repeat(1000);
        let made = llb::file(Some(&base), None, &Action::MkFile { path: "/made", data: data.as_bytes() });
        registry.forget();
        client
            .start(build(&registry, &made, compression, &[("compression", compression)]))
            .await
            .finish()
            .await
            .success();
        let found = layers(&registry, compression);
        assert_eq!(found[..4], given[..]);
        assert_eq!(found[4].0, media_type);
        let gets: usize = image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum();
        assert_eq!(gets, 0, "{}", registry.story());
        let config = registry.manifest(compression, "1").expect("the manifest").json();
        let config = config["config"]["digest"].as_str().expect("a config").to_owned();
        let config = registry.blob(compression, config).expect("the config").to_bytes();
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        let blob = registry.blob(compression, &found[4].1).expect("the layer").to_bytes();
        let tar =
            if compression == "zstd" { zstd::decode_all(&blob[..]).expect("zstd") } else { blob.to_vec() };
        assert_eq!(config["rootfs"]["diff_ids"][4], sha256(tar));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_level_makes_smaller_layers_of_the_same_files() {
    let (registry, daemon) = (TestRegistry::open(), Daemon::start());
    let client = Client::connect(&daemon).await;
    // Words of a few thousand, in no order: what is found of them depends on how long one looks.
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 33) % 5000;
        format!("{} ", word * word * 7919 % 1_000_003)
    });
    let data = words.take(120_000).collect::<String>().into_bytes();
    for (compression, levels) in [("gzip", ["1", "9"]), ("zstd", ["1", "19"])] {
        let mut sizes = Vec::new();
        for level in levels {
            let path = format!("/{compression}-{level}");
            let state = llb::file(None, None, &Action::MkFile { path: &path, data: &data });
            let to = format!("{compression}-{level}");
            let options = [("compression", compression), ("compression-level", level)];
            client.start(build(&registry, &state, &to, &options)).await.finish().await.success();
            let (_, digest) = layers(&registry, &to).remove(0);
            sizes.push(registry.blob(&to, digest).expect("the layer").len());
        }
        assert!(sizes[1] < sizes[0] / 20 * 19, "{compression}: {sizes:?}");
    }
}
