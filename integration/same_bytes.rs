//! Images that we make, against those that the real `buildkitd` makes of the same build: equal bytes,
//! and so equal digests, whichever of the two a build ran on.
//!
//! One client runs the same build on both, for a frontend's result as Dockerfiles give it: states by
//! platform, with configs, histories, annotations and times.

use std::collections::BTreeMap;

use thunk::proto::gateway;

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Buildkitd;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::client::ContentStore;
use crate::harness::client::Outcome;
use crate::harness::llb;

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
