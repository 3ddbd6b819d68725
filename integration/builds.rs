//! Whole builds through the real `buildctl`: commands and files over lazy bases, counted at the registry.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;

use crate::harness::Archive;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::assert_nothing_left;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;

const LAYERS: usize = 12;

/// Until something has happened that has to.
const PATIENCE: Duration = Duration::from_secs(60);

/// An image of twelve layers: a busybox and eleven with a file each.
fn base() -> Option<Image> {
    let others = (1..LAYERS).map(|n| Layer::files([(format!("layer-{n}"), format!("{n}\n").repeat(4096))]));
    Some(Image::of(std::iter::once(busybox()?).chain(others)))
}

fn registry_of(image: &Image) -> TestRegistry {
    let registry = TestRegistry::open();
    registry.put_image("base", "v1", image);
    registry
}

fn layer_gets(registry: &TestRegistry, image: &Image) -> usize {
    image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum()
}

/// The regular files of an archive that the `tar` exporter wrote.
pub fn files(archive: &Path) -> BTreeMap<String, String> {
    files_in(std::fs::File::open(archive).expect("an archive"))
}

/// The regular files of an uncompressed archive.
pub fn files_in(tar: impl Read) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        if entry.header().entry_type().is_file() {
            let path = entry.path().expect("a path").display().to_string();
            let mut text = Vec::new();
            entry.read_to_end(&mut text).expect("its bytes");
            files.insert(path, String::from_utf8_lossy(&text).into_owned());
        }
    }
    files
}

/// Nothing is in use, and pruning everything leaves nothing on the disk.
pub async fn assert_no_leak(client: &Buildctl, daemon: &Daemon) {
    assert_nothing_left(daemon).await;
    let listed = client.run(["du"], b"").await.success().stdout_text();
    let records = listed.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_hexdigit())).count();
    assert_eq!(records, 0, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_cold_base_fetches_each_layer_once_and_pushes_only_its_own() {
    let (Some(image), daemon) = (base(), &mut Daemon::start()) else { return };
    let Some(client) = Buildctl::of(daemon) else { return };
    let registry = registry_of(&image);
    let run = llb::sh(&llb::image(registry.reference("base", "v1")), "cat /layer-11 | wc -l > /lines");
    let push =
        |repository: &str| format!("type=image,name={},push=true", registry.reference(repository, "v1"));
    client.build(&run.marshal(), &[&push("other")]).await.success();
    assert_eq!(daemon.counter("steps"), 1);
    assert!(daemon.counter("step_peak_memory_bytes") > 0);
    for digest in image.layer_digests() {
        assert_eq!(registry.gets_of(digest), 1, "{}", registry.story());
    }
    assert_eq!(registry.mounts_ok(), LAYERS, "{}", registry.story());
    let manifest = registry.manifest("other", "v1").expect("the manifest arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), LAYERS + 1);

    // From cache, also after a restart: nothing runs, nothing moves but what a new repository lacks.
    for to in ["third", "fourth"] {
        registry.forget();
        client.build(&run.marshal(), &[&push(to)]).await.success();
        assert_eq!(layer_gets(&registry, &image), 0, "{}", registry.story());
        assert_eq!(registry.mounts_ok(), LAYERS + 1, "{}", registry.story());
        assert_eq!(registry.count(Op::UploadPut), 1, "the config\n{}", registry.story());
        assert_eq!(
            registry.manifest(to, "v1").unwrap().bytes,
            registry.manifest("other", "v1").unwrap().bytes
        );
        daemon.restart();
    }
    assert_no_leak(&client, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_small_file_on_a_cold_base_moves_no_byte_of_the_base() {
    let (Some(image), daemon) = (base(), Daemon::start()) else { return };
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = registry_of(&image);
    let base = llb::image(registry.reference("base", "v1"));
    let made = llb::file(Some(&base), None, &Action::MkFile { path: "/small", data: b"small\n" });
    for to in ["base", "other"] {
        registry.forget();
        let output = format!("type=image,name={},push=true", registry.reference(to, "small"));
        client.build(&made.marshal(), &[&output]).await.success();
        assert_eq!(layer_gets(&registry, &image), 0, "{}", registry.story());
        assert_eq!(registry.mounts_ok(), if to == "base" { 0 } else { LAYERS + 1 }, "{}", registry.story());
        let manifest = registry.manifest(to, "small").expect("the manifest arrived");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), LAYERS + 1);
    }
    // The files are those of both, once somebody looks.
    let archive = daemon.scratch().join("result.tar");
    client.build(&made.marshal(), &[&format!("type=tar,dest={}", archive.display())]).await.success();
    let files = files(&archive);
    assert!(files["small"] == "small\n" && files.contains_key("layer-11"), "{:?}", files.keys());
    assert_no_leak(&client, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_see_the_files_of_those_before_them() {
    let (Some(image), daemon) = (base(), Daemon::start()) else { return };
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = registry_of(&image);
    let base = llb::image(registry.reference("base", "v1"));
    let made = llb::file(Some(&base), None, &Action::MkFile { path: "/made", data: b"made\n" });
    let ran = llb::sh(
        &made,
        "cat /made /layer-1 | head -n 2 > /ran; rm /layer-2; mkdir -p /dir && echo x > /dir/x",
    );
    let copied = llb::file(None, Some(&ran), &Action::Copy { from: "/ran", to: "/copied" });
    let result =
        llb::merge([copied, llb::file(None, Some(&ran), &Action::Copy { from: "/dir", to: "/dir" })]);
    let archive = daemon.scratch().join("result.tar");
    client.build(&result.marshal(), &[&format!("type=tar,dest={}", archive.display())]).await.success();
    let files = files(&archive);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["copied", "dir/x"], "{files:?}");
    assert_eq!(files["copied"], "made\n1\n");

    let whole = daemon.scratch().join("whole.tar");
    client.build(&ran.marshal(), &[&format!("type=tar,dest={}", whole.display())]).await.success();
    let files = self::files(&whole);
    assert!(files.contains_key("layer-3") && !files.contains_key("layer-2"), "{:?}", files.keys());
    assert_no_leak(&client, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_is_for_builds_of_a_daemon_that_may_grant_it() {
    let daemon = Daemon::start();
    let Some(client) = Buildctl::of(&daemon) else { return };
    let empty = llb::file(None, None, &Action::MkFile { path: "/x", data: b"x" }).marshal();
    let said = client.run(["build", "--allow", "security.insecure"], &empty).await.failure();
    let expected = "granting entitlement security.insecure is not allowed by build daemon configuration";
    assert!(said.contains(expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_at_once_share_what_they_run() {
    let (Some(image), daemon) = (base(), Daemon::start()) else { return };
    let clients: Vec<_> = (0..8).filter_map(|_| Buildctl::of(&daemon)).collect();
    let registry = registry_of(&image);
    let base = llb::image(registry.reference("base", "v1"));
    let run = llb::sh(&base, "cat /proc/sys/kernel/random/uuid > /once; sleep 1").marshal();
    let builds = clients.iter().enumerate().map(|(n, client)| {
        let output = format!("type=tar,dest={}/{n}.tar", daemon.scratch().display());
        let run = &run;
        async move { client.build(run, &[&output]).await.success() }
    });
    if join_all(builds).await.is_empty() {
        return;
    }
    for digest in image.layer_digests() {
        assert_eq!(registry.gets_of(digest), 1, "{}", registry.story());
    }
    let once = |n: usize| files(&daemon.scratch().join(format!("{n}.tar"))).remove("once").expect("a file");
    assert_eq!(once(0).len(), "00000000-0000-0000-0000-000000000000\n".len());
    assert!((1..clients.len()).all(|n| once(n) == once(0)), "it ran more than once");
    assert_no_leak(&clients[0], &daemon).await;
}

/// The layer that a step wrote is made once, whoever exports it.
#[tokio::test(flavor = "multi_thread")]
async fn exporters_of_one_build_share_its_result() {
    let (Some(image), daemon) = (base(), Daemon::start()) else { return };
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = registry_of(&image);
    let base = llb::image(registry.reference("base", "v1"));
    let run = llb::sh(&base, "cat /proc/sys/kernel/random/uuid > /once");
    let path = |name: &str| daemon.scratch().join(name).display().to_string();
    let outputs = [
        format!("type=oci,dest={}", path("oci.tar")),
        format!("type=docker,dest={}", path("docker.tar")),
        format!("type=tar,dest={}", path("files.tar")),
        format!("type=local,dest={}", path("files")),
        format!("type=image,name={},push=true", registry.reference("one", "v1")),
        format!("type=image,name={},push=true", registry.reference("two", "v1")),
    ];
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    client.build(&run.marshal(), &outputs).await.success();
    for digest in image.layer_digests() {
        assert_eq!(registry.gets_of(digest), 1, "{}", registry.story());
    }
    let manifest = |name: &str| registry.manifest(name, "v1").expect("a manifest").json();
    assert_eq!(manifest("one")["layers"], manifest("two")["layers"]);
    let made = manifest("one")["layers"][LAYERS]["digest"].as_str().expect("a digest").to_owned();
    for archive in ["oci.tar", "docker.tar"] {
        let archive = Archive::parse(&std::fs::read(path(archive)).expect("an archive"));
        archive.verify();
        assert!(archive.has_blob(&made));
    }
    let once = std::fs::read_to_string(daemon.scratch().join("files/once")).expect("a file");
    assert_eq!(files(&daemon.scratch().join("files.tar"))["once"], once);
    assert_no_leak(&client, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_unpacked_while_it_downloads() {
    let (Some(busybox), daemon) = (busybox(), Daemon::start()) else { return };
    let Some(client) = Buildctl::of(&daemon) else { return };
    let noise = |n: u64| Layer::incompressible(n, 16 << 10).source.expect("bytes").to_bytes();
    let image = Image::of([busybox, Layer::files((0..200).map(|n| (format!("noise-{n}"), noise(n))))]);
    let registry = registry_of(&image);
    let (layer, size) = (&image.layers[1].digest(), image.layers[1].descriptor.size);
    let hold = registry.hold_after(Op::BlobGet.of(layer), size / 2);
    let run = llb::sh(&llb::image(registry.reference("base", "v1")), "ls /noise-199").marshal();
    let build = client.build(&run, &[]);
    let look = async {
        hold.reached().await;
        let snapshots = daemon.root().join("snapshots");
        while !has_file(&snapshots, "noise-0") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!has_file(&snapshots, "noise-199"), "its bytes are not there yet");
        hold.release();
    };
    let (build, ()) =
        tokio::join!(build, tokio::time::timeout(PATIENCE, look).map(|done| done.expect("in time")));
    build.success();
    assert_eq!(registry.gets_of(layer), 1, "{}", registry.story());
    assert_no_leak(&client, &daemon).await;
}

/// True if there is a file of that name anywhere below.
fn has_file(directory: &Path, name: &str) -> bool {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name() == name || (entry.path().is_dir() && has_file(&entry.path(), name)))
}
