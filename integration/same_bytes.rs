//! Images that we make, against those that the real `buildkitd` makes of the same build: equal bytes,
//! and so equal digests, whichever of the two a build ran on.
//!
//! One client runs the same build on both, for a frontend's result as Dockerfiles give it: states by
//! platform, with configs, histories, annotations and times.

use std::collections::BTreeMap;
use std::io::Read as _;

use thunk::proto::gateway;

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Buildkitd;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::client::ContentStore;
use crate::harness::client::Outcome;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;

/// A frontend's result: an image of the registry by platform ID, and metadata.
struct Made<'m> {
    states: &'m [(&'m str, &'m str)],
    metadata: &'m [(&'m str, &'m str)],
    attributes: &'m [(&'m str, &'m str)],
}

/// Builds on one daemon with an image exporter that pushes to `name`, and returns what it said.
async fn build(
    client: &Client,
    registry: &TestRegistry,
    made: &Made<'_>,
    name: &str,
) -> BTreeMap<String, String> {
    let mut attributes = vec![("name", name), ("push", "true")];
    attributes.extend_from_slice(made.attributes);
    let build = Build::gateway().export("image", &attributes);
    solve(client, registry, made, build).await.success().response.expect("it succeeded")
}

/// Runs `build` on one daemon, with a result that is `made`.
async fn solve(client: &Client, registry: &TestRegistry, made: &Made<'_>, build: Build) -> Outcome {
    let running = client.start(build).await;
    let mut bridge = client.bridge(&running.reference);
    let mut refs = BTreeMap::new();
    for (platform, image) in made.states {
        let state = llb::image(registry.reference(image, "v1")).platform(platform);
        let solve = gateway::SolveRequest {
            definition: Some(state.definition()),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let result = bridge.solve(solve).await.expect("a result").into_inner().result.expect("a result");
        let Some(gateway::result::Result::Ref(solved)) = result.result else { panic!("{result:?}") };
        refs.insert((*platform).to_owned(), solved);
    }
    let result = match made.states {
        [(only, _)] => gateway::result::Result::Ref(refs.remove(*only).expect("it was solved")),
        _ => gateway::result::Result::Refs(gateway::RefMap { refs: refs.into_iter().collect() }),
    };
    let metadata =
        made.metadata.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec().into())).collect();
    let result = gateway::Result { result: Some(result), metadata, ..gateway::Result::default() };
    bridge.r#return(gateway::ReturnRequest { result: Some(result), error: None }).await.expect("an answer");
    running.finish().await
}

/// Runs one build on both daemons and compares every document that arrived.
async fn compare(ours: &Client, theirs: &Client, registry: &TestRegistry, title: &str, made: &Made<'_>) {
    let mut found = Vec::new();
    for (client, tag) in [(theirs, "theirs"), (ours, "ours")] {
        let said = build(client, registry, made, &registry.reference("out", tag)).await;
        let root = registry.manifest("out", tag).expect("the image arrived");
        let mut documents = vec![String::from_utf8(root.bytes.to_vec()).expect("JSON is text")];
        let tree: serde_json::Value = serde_json::from_slice(&root.bytes).expect("JSON");
        let children = tree["manifests"].as_array().cloned().unwrap_or_default();
        for digest in children.iter().map(|child| child["digest"].as_str().expect("a digest")) {
            let child = registry.manifest("out", digest).expect("the manifest arrived");
            documents.push(String::from_utf8(child.bytes.to_vec()).expect("JSON is text"));
        }
        for at in 0..documents.len() {
            let document: serde_json::Value = serde_json::from_str(&documents[at]).expect("JSON");
            if let Some(config) = document["config"]["digest"].as_str() {
                let config = registry.blob("out", config).expect("the config arrived").to_bytes();
                documents.push(String::from_utf8(config.to_vec()).expect("JSON is text"));
            }
        }
        let keys = ["containerimage.digest", "containerimage.config.digest", "containerimage.descriptor"];
        let said: Vec<_> = keys.iter().map(|key| said.get(*key).cloned()).collect();
        found.push((documents, said));
    }
    assert_eq!(found[1].0, found[0].0, "{title}: ours against theirs");
    assert_eq!(found[1].1, found[0].1, "{title}: what the exporters said");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_configs_and_indexes_equal_those_of_buildkitd() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let daemon = Daemon::start();
    let (theirs, ours) = (Client::at(buildkitd.socket()).await, Client::connect(&daemon).await);
    let registry = TestRegistry::open();
    for (name, platform) in [("amd", "linux/amd64"), ("arm", "linux/arm64")] {
        let layers = [Layer::files([("base", "1")]), Layer::files([(name, "2")])];
        registry.put_image(name, "v1", &Image::builder().layers(layers).platform(platform).build());
    }
    let docker = Image::builder().layer(Layer::files([("x", "y")])).platform("linux/amd64").docker();
    registry.put_image("docker", "v1", &docker.build());

    let history = r#"[{"created":"2020-01-01T00:00:00.120Z","created_by":"ADD <base> &"},
        {"created_by":"ENV A=b","empty_layer":true,"unknown":1},
        {"created":"2024-05-06T07:08:09+02:00","created_by":"COPY x","comment":"c","author":"a"}]"#;
    let config = |arch: &str, more: &str| {
        format!(
            r#"{{"os":"linux","architecture":"{arch}","config":{{"Labels":{{"b":"<&>\u2028","a":"1"}},"Env":["A=b"]}},{more}
            "x-unknown": {{ "z": 1.50, "a": [ 1e3 ] }}, "history": {history}}}"#
        )
    };
    let amd = config("amd64", "");
    let arm = config("arm64", r#""variant":"v8","created":"2031-01-01T00:00:00Z","#);
    let one_layer = config("amd64", "").replace(history, r#"[{"created":"2020-01-01T00:00:00Z"}]"#);
    let platforms = r#"{"Platforms":[
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
        {"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#;
    let both = [("linux/amd64", "amd"), ("linux/arm64", "arm")];
    let base = r#"{"architecture":"amd64","os":"linux","history":[{"created":"2020-01-01T00:00:00.12Z","created_by":"ADD <base> &"}]}"#;

    let single = Made {
        states: &both[..1],
        metadata: &[("containerimage.config", &amd), ("annotation.m", "<1>")],
        attributes: &[("annotation-manifest-descriptor.d", "2")],
    };
    compare(&ours, &theirs, &registry, "one platform", &single).await;

    let clamped = Made {
        metadata: &[("containerimage.config", &amd), ("containerimage.base.config", base)],
        attributes: &[("source-date-epoch", "1500000000")],
        ..single
    };
    compare(&ours, &theirs, &registry, "an epoch, and a base that is older than it", &clamped).await;

    let docker = Made {
        states: &[("linux/amd64", "docker")],
        metadata: &[("containerimage.config", &one_layer)],
        attributes: &[("oci-mediatypes", "false")],
    };
    compare(&ours, &theirs, &registry, "Docker's media types", &docker).await;

    let index = Made {
        states: &both,
        metadata: &[
            ("refs.platforms", platforms),
            ("containerimage.config/linux/amd64", &amd),
            ("containerimage.config/linux/arm64", &arm),
            ("annotation-index.i", "1"),
            ("annotation[linux/arm64].m", "3"),
            ("source.date.epoch", "1700000000"),
        ],
        attributes: &[
            ("annotation-manifest-descriptor[linux/amd64].d", "2"),
            ("annotation-index-descriptor.j", "4"),
        ],
    };
    compare(&ours, &theirs, &registry, "an index", &index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_equal_those_of_buildkitd() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let daemon = Daemon::start();
    let (theirs, ours) = (Client::at(buildkitd.socket()).await, Client::connect(&daemon).await);
    let registry = TestRegistry::open();
    let layers = [Layer::files([("base", "1")]), Layer::incompressible(0x5a_3e, 3 << 20)];
    let image = Image::builder().layers(layers).platform("linux/amd64").build();
    registry.put_image("amd", "v1", &image);
    let config = r#"{"os":"linux","architecture":"amd64","history":[{"created":"2020-01-01T00:00:00Z"},{"created":"2020-01-01T00:00:00Z"}]}"#;
    let states = [("linux/amd64", "amd")];
    let made = Made { states: &states, metadata: &[("containerimage.config", config)], attributes: &[] };
    for (kind, names) in [("oci", ""), ("oci", "busybox,r.example:5000/a/b:t"), ("docker", "busybox")] {
        let mut found = Vec::new();
        for client in [&theirs, &ours] {
            let attributes = [("name", names), ("source-date-epoch", "1700000000")];
            let build = Build::gateway().export(kind, &attributes).attach(Attachables::default().files());
            let outcome = solve(client, &registry, &made, build).await.success();
            let received = outcome.session.received(0).expect("an archive");
            assert!(received.whole);
            found.push((received.bytes, received.metadata, outcome.response.expect("it succeeded")));
        }
        assert_eq!(found[1].1, found[0].1, "{kind} {names}: what came before the first byte");
        assert_eq!(found[1].2, found[0].2, "{kind} {names}: what the exporter said");
        assert!(found[1].0 == found[0].0, "{kind} {names}: the archives differ");
    }
    // Blob by blob into the client's store.
    let mut found = Vec::new();
    for client in [&theirs, &ours] {
        let store = ContentStore::default();
        let build = Build::gateway().export("oci", &[("tar", "false")]);
        let attach = Attachables::default().export_store(&store);
        solve(client, &registry, &made, build.attach(attach)).await.success();
        let mut digests = store.digests();
        digests.sort();
        found.push(digests);
    }
    assert_eq!(found[1], found[0]);
    assert_eq!(found[1].len(), 4, "two layers, the config and the manifest");
}

/// The manifest that a build pushes, and its layers unpacked.
async fn pushed(
    client: &Client,
    registry: &TestRegistry,
    state: &State,
    attributes: &[(&str, &str)],
) -> (serde_json::Value, Vec<Vec<u8>>) {
    let to = registry.reference("out", "pushed");
    let attributes = [&[("name", to.as_str()), ("push", "true")], attributes].concat();
    let build = Build::of(state).export("image", &attributes);
    client.start(build).await.finish().await.success();
    let manifest = registry.manifest("out", "pushed").expect("the image arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter().map(|layer| {
        let blob = registry.blob("out", layer["digest"].as_str().expect("a digest"));
        let mut bytes = Vec::new();
        let blob = blob.expect("it arrived").to_bytes();
        thunk::archive::Decoder::new(&blob[..]).read_to_end(&mut bytes).expect("it is unpacked");
        bytes
    });
    let layers = layers.collect();
    (manifest, layers)
}

/// Docker's name for zstd was refused, which there is one for.
#[tokio::test(flavor = "multi_thread")]
async fn zstd_goes_under_dockers_manifest_as_well() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let daemon = Daemon::start();
    let (theirs, ours) = (Client::at(buildkitd.socket()).await, Client::connect(&daemon).await);
    let registry = TestRegistry::open();
    let made = llb::file(None, None, &Action::MkFile { path: "/small", data: b"small\n" });
    let attributes = [("compression", "zstd"), ("oci-mediatypes", "false")];
    let mut types = Vec::new();
    for client in [&theirs, &ours] {
        let (manifest, layers) = pushed(client, &registry, &made, &attributes).await;
        types.push((manifest["mediaType"].clone(), manifest["layers"][0]["mediaType"].clone()));
        assert_eq!(layers.len(), 1);
    }
    assert_eq!(types[1], types[0]);
    assert_eq!(types[1].1, "application/vnd.docker.image.rootfs.diff.tar.zstd");
    for kind in ["oci", "docker"] {
        let attributes = [&[("name", "small")], &attributes[..]].concat();
        let build = Build::of(&made).export(kind, &attributes).attach(Attachables::default().files());
        let outcome = ours.start(build).await.finish().await.success();
        assert!(outcome.session.received(0).expect("an archive").whole, "{kind}");
    }
}

/// Names were cleaned on the way, and nothing said that a layer was rewritten.
#[tokio::test(flavor = "multi_thread")]
async fn layers_with_rewritten_times_equal_those_of_buildkitd() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let daemon = Daemon::start();
    let (theirs, ours) = (Client::at(buildkitd.socket()).await, Client::connect(&daemon).await);
    let registry = TestRegistry::open();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind) in [
        (&b"./"[..], tar::EntryType::Directory),
        (b"./dev/", tar::EntryType::Directory),
        (b"./dev/null", tar::EntryType::Fifo),
    ] {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_size(0);
        header.set_cksum();
        archive.append(&header, std::io::empty()).expect("tar to memory");
    }
    let spelled = Layer::gzip(archive.into_inner().expect("tar to memory"));
    registry.put_image("base", "v1", &Image::of([spelled, Layer::tree(&[("etc/", ""), ("etc/conf", "2")])]));
    let made = llb::file(
        Some(&llb::image(registry.reference("base", "v1"))),
        None,
        &Action::MkFile { path: "/small", data: b"small\n" },
    );
    let attributes = [
        ("rewrite-timestamp", "true"),
        ("source-date-epoch", "1"),
        ("compression", "uncompressed"),
        ("force-compression", "true"),
    ];
    let (their_manifest, their_layers) = pushed(&theirs, &registry, &made, &attributes).await;
    let (manifest, layers) = pushed(&ours, &registry, &made, &attributes).await;
    assert_eq!(layers.len(), 3);
    for (index, (ours, theirs)) in layers.iter().zip(&their_layers).enumerate() {
        assert!(ours == theirs, "layer {index} differs");
    }
    assert_eq!(manifest["layers"], their_manifest["layers"]);
    assert_eq!(manifest["layers"][0]["annotations"]["buildkit/rewritten-timestamp"], "1");
}

/// What the topmost layer of a result has. The times are those of the moment.
async fn top_entries(client: &Client, registry: &TestRegistry, state: &State) -> Vec<String> {
    let to = registry.reference("out", "entries");
    let build = Build::of(state).export("image", &[("name", &to), ("push", "true")]);
    client.start(build).await.finish().await.success();
    let manifest = registry.manifest("out", "entries").expect("the image arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    let top = layers.last().and_then(|layer| layer["digest"].as_str()).expect("a digest");
    let blob = registry.blob("out", top).expect("it arrived").to_bytes();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]));
    let entries = archive.entries().expect("an archive").map(|entry| {
        let entry = entry.expect("an entry");
        let header = entry.header();
        let kind = char::from(header.entry_type().as_byte());
        format!("{kind} {:o} {}", header.mode().expect("a mode"), entry.path().expect("a path").display())
    });
    entries.collect()
}

/// A daemon that has overlays, and one that copies.
fn both_snapshotters() -> [Daemon; 2] {
    let native = "[worker.oci]\n  snapshotter = \"native\"\n".to_owned();
    [Daemon::start(), Daemon::start_with(DaemonOptions { config: native, ..DaemonOptions::default() })]
}

/// Layers listed what was only copied up on the way, such as /etc, and said of a new directory that it hides all below.
#[tokio::test(flavor = "multi_thread")]
async fn the_layer_of_a_command_has_the_entries_that_buildkitd_gives_it() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let Some(shell) = busybox() else { return };
    let daemons = both_snapshotters();
    let registry = TestRegistry::open();
    let files = [
        ("etc/", ""),
        ("etc/conf", "x"),
        ("opt/", ""),
        ("opt/a", "1"),
        ("opt/b", "2"),
        ("opt/d/", ""),
        ("opt/d/deep/", ""),
        ("opt/d/deep/f", "3"),
    ];
    registry.put_image("base", "v1", &Image::of([shell, Layer::tree(&files)]));
    let base = llb::image(registry.reference("base", "v1"));
    let theirs = Client::at(buildkitd.socket()).await;
    let ours = [Client::connect(&daemons[0]).await, Client::connect(&daemons[1]).await];
    for script in [
        "true",
        "echo 3 > /opt/c",
        "chmod 700 /opt/d; chmod 755 /opt/d",
        "mkdir -p /opt/new/er /newer; echo 1 > /opt/new/er/f",
        "rm -r /opt; mkdir /opt; echo 3 > /opt/c",
        "rm -r /opt; mkdir -p /opt/d/deep; echo 3 > /opt/d/deep/g",
        "rm -r /opt/d; echo 3 > /opt/d; rm /opt/a; mkdir /opt/a; echo 4 > /opt/a/f",
        "mkdir /opt/new; rm -r /opt/d; mkdir /opt/d; mv /opt/new /opt/d/new",
        "rm /opt/a; echo new > /etc/new; touch /opt/x; rm /opt/x",
        "mv /opt/b /opt/e; ln /opt/e /etc/f; ln -s e /opt/g",
    ] {
        let state = llb::sh(&base, script);
        let expected = top_entries(&theirs, &registry, &state).await;
        for client in &ours {
            assert_eq!(top_entries(client, &registry, &state).await, expected, "{script}");
        }
    }
}

/// A directory that was new on its base hid, in a merge, what others have in it, while the image of the merge did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_shows_what_its_image_has() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let Some(shell) = busybox() else { return };
    let daemons = both_snapshotters();
    let registry = TestRegistry::open();
    let layers = [
        shell,
        Layer::tree(&[
            ("opt/", ""),
            ("opt/old/", ""),
            ("opt/old/f", "1"),
            ("opt/other/", ""),
            ("opt/other/f", "1"),
        ]),
    ];
    registry.put_image("base", "v1", &Image::of(layers));
    let files = [("opt/", ""), ("opt/new/", ""), ("opt/new/f", "2"), ("opt/old/", ""), ("opt/old/g", "2")];
    registry.put_image("other", "v1", &Image::of([Layer::tree(&files)]));
    let base = llb::image(registry.reference("base", "v1"));
    let above = llb::sh(&base, "mkdir /opt/new; rm -r /opt/old; mkdir /opt/old; echo 3 > /opt/new/g");
    let other = llb::image(registry.reference("other", "v1"));
    let merged = llb::merge([base, other, llb::diff(&llb::image(registry.reference("base", "v1")), &above)]);
    let listed = llb::sh(&merged, "cd /opt && find . | sort > /list");
    let copied = llb::file(None, Some(&listed), &Action::Copy { from: "/list", to: "/" });
    let mut lists = Vec::new();
    let clients = [
        Client::at(buildkitd.socket()).await,
        Client::connect(&daemons[0]).await,
        Client::connect(&daemons[1]).await,
    ];
    for client in &clients {
        let to = registry.reference("out", "list");
        let build = Build::of(&copied).export("image", &[("name", &to), ("push", "true")]);
        client.start(build).await.finish().await.success();
        lists.push(only_file(&registry, "out", "list"));
    }
    assert_eq!(lists[0], ".\n./new\n./new/f\n./new/g\n./old\n./old/g\n./other\n./other/f\n", "buildkitd");
    assert_eq!(lists[1], lists[0], "overlays");
    assert_eq!(lists[2], lists[0], "copies");
}

/// The one file of an image of one layer.
fn only_file(registry: &TestRegistry, repository: &str, tag: &str) -> String {
    let manifest = registry.manifest(repository, tag).expect("the image arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
    let blob = registry.blob(repository, layer).expect("it arrived").to_bytes();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]));
    let mut entry = archive.entries().expect("an archive").next().expect("an entry").expect("it is read");
    let mut text = String::new();
    entry.read_to_string(&mut text).expect("it is read");
    text
}
