//! Whole builds through the real `buildctl`: commands and files over lazy bases, counted at the registry.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use futures::future::join_all;

use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;

const LAYERS: usize = 12;

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
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(std::fs::File::open(archive).expect("an archive"));
    for entry in archive.entries().expect("entries") {
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
async fn assert_no_leak(client: &Buildctl, daemon: &Daemon) {
    client.run(["prune", "--all"], b"").await.success();
    let listed = client.run(["du"], b"").await.success().stdout_text();
    let records = listed.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_hexdigit())).count();
    assert_eq!(records, 0, "{listed}");
    let snapshots = daemon.root().join("snapshots").join("overlay");
    for _ in 0..200 {
        if left(&snapshots) == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{} snapshots are left", left(&snapshots));
}

/// Snapshot directories, whatever the snapshotter keeps beside them.
fn left(directory: &Path) -> usize {
    let names = ["layer-", "chain-", "made-", "active-", "kept-", "view-", "new-"];
    let mut count = 0;
    let mut stack = vec![directory.to_path_buf()];
    while let Some(directory) = stack.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if names.iter().any(|prefix| name.starts_with(prefix)) {
                count += 1;
            } else if entry.path().is_dir() {
                stack.push(entry.path());
            }
        }
    }
    count
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
async fn builds_at_once_share_what_they_run() {
    let (Some(image), daemon) = (base(), Daemon::start()) else { return };
    let clients: Vec<_> = (0..8).filter_map(|_| Buildctl::of(&daemon)).collect();
    let registry = registry_of(&image);
    let base = llb::image(registry.reference("base", "v1"));
    let run = llb::sh(&base, "echo once > /once; sleep 1").marshal();
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
    for n in 0..clients.len() {
        assert_eq!(files(&daemon.scratch().join(format!("{n}.tar")))["once"], "once\n");
    }
    assert_no_leak(&clients[0], &daemon).await;
}
