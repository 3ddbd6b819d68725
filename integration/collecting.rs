//! Garbage that a daemon collects by the rules of its configuration, without anybody asking it to.
//!
//! A daemon that collects nothing builds; it starts again with rules, and applies them soon after that.

use std::time::Duration;

use crate::harness::BlobSource;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::harness::leaks::snapshots;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::poll;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A daemon that has built.
struct Scene {
    daemon: Daemon,
}

impl Scene {
    fn new() -> Scene {
        Scene { daemon: Daemon::start() }
    }

    /// A record of about so many bytes, with this description.
    async fn make(&self, name: &str, size: u64) {
        self.export(name, size, &[]).await;
    }

    /// The same, named as an image.
    async fn export(&self, name: &str, size: u64, attributes: &[(&str, &str)]) {
        let data = BlobSource::generated(rand::random::<u32>().into(), size).to_bytes();
        let state = llb::file(None, None, &Action::MkFile { path: "/file", data: &data });
        let state = state.metadata(|m| drop(m.description.insert("llb.customname".into(), name.into())));
        let mut build = Build::of(&state);
        if !attributes.is_empty() {
            build = build.export("image", attributes);
        }
        self.build(build).await;
    }

    async fn build(&self, build: Build) {
        Client::connect(&self.daemon).await.start(build).await.finish().await.success();
    }

    /// Starts the daemon anew with these rules, and waits until it has collected something.
    fn collect(&mut self, rules: &[&str]) {
        let rules = rules.iter().map(|rule| format!("[[worker.oci.gcpolicy]]\n{rule}\n"));
        self.daemon.configure(&rules.collect::<String>());
        self.daemon.terminate();
        let before = self.daemon.log().len();
        self.daemon.start_again();
        let collected = || self.daemon.log()[before..].contains("collected garbage");
        assert!(poll(LIMIT, collected), "{}", self.daemon.log());
    }

    /// The descriptions of what is left, in order.
    async fn left(&self) -> Vec<String> {
        let usage = Client::connect(&self.daemon).await.usage().await;
        let mut left: Vec<_> = usage.into_iter().map(|record| record.description).collect();
        left.sort();
        left
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_takes_what_its_filters_select_and_what_is_older_than_it_keeps() {
    let Some(busybox) = busybox() else { return };
    let mut scene = Scene::new();
    let registry = TestRegistry::open();
    registry.put_image("base", "1", &Image::of([busybox]));
    let base = llb::image(registry.reference("base", "1"));
    scene.build(Build::of(&llb::sh_caching(&base, "kept", "echo kept > /cache/file"))).await;
    scene.make("first", 4096).await;
    scene.make("second", 4096).await;
    let all = scene.left().await;
    assert_eq!(all.len(), 5, "{all:?}");
    let without = |gone: &[&str]| -> Vec<String> {
        all.iter().filter(|name| !gone.iter().any(|g| name.contains(g))).cloned().collect()
    };

    scene.collect(&[
        "filters = [\"type==exec.cachemount\", \"description==second\"]\nkeepDuration = \"1h\"",
        "filters = [\"description==first\"]\nkeepDuration = \"1ms\"",
    ]);
    assert_eq!(scene.left().await, without(&["first"]));
    scene.collect(&["filters = [\"type==exec.cachemount\"]\nkeepDuration = \"1ms\""]);
    assert_eq!(scene.left().await, without(&["first", "cached mount"]));
    scene.collect(&["all = true"]);
    assert_eq!(scene.left().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_with_limits_takes_the_oldest_until_the_rest_fits() {
    let mut scene = Scene::new();
    for (name, size) in [("large", 8 * MIB), ("small", MIB), ("medium", 4 * MIB)] {
        scene.make(name, size).await;
    }
    scene.collect(&[
        "maxUsedSpace = \"100MB\"",
        "filters = [\"type==exec.cachemount\"]\nmaxUsedSpace = 1",
        "maxUsedSpace = \"6MB\"",
    ]);
    assert_eq!(scene.left().await, ["medium", "small"]);
    scene.collect(&["maxUsedSpace = 1\nreservedSpace = \"4500kB\"", "reservedSpace = \"100MB\""]);
    assert_eq!(scene.left().await, ["medium"]);
    scene.make("last", MIB).await;
    scene.collect(&[
        "minFreeSpace = 1",
        "minFreeSpace = 1",
        "minFreeSpace = \"1000PB\"\nreservedSpace = \"2MB\"",
    ]);
    assert_eq!(scene.left().await, ["last"]);
}

/// Every name that an export set used to hold its layers for 60 days, whatever the rules said.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_keeps_no_image_from_being_collected() {
    let mut scene = Scene::new();
    let registry = TestRegistry::open();
    registry.put_image("lazy", "1", &Image::incompressible(0xc011, 2, MIB));
    scene.export("named", MIB, &[("name", "r.example/named:1"), ("unpack", "true")]).await;
    let lazy = Build::of(&llb::image(registry.reference("lazy", "1")));
    scene.build(lazy.export("image", &[("name", "r.example/lazy:1")])).await;
    assert_eq!(scene.left().await.len(), 3);
    scene.collect(&["keepDuration = \"1ms\""]);
    assert_eq!(scene.left().await, [""; 0]);
    assert_eq!(snapshots(&scene.daemon), [""; 0]);
}
