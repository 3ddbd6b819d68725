//! Options of the image exporter, through a daemon to a registry.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Options;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::layer::OCI_LAYER_FOREIGN_GZIP;
use crate::harness::layer::OCI_LAYER_GZIP;
use crate::harness::llb;
use crate::harness::llb::Action;

async fn export(daemon: &Daemon, state: &llb::State, attributes: &[(&str, &str)]) -> Outcome {
    let build = Build::of(state).export("image", attributes);
    Client::connect(daemon).await.start(build).await.finish().await
}

fn small() -> llb::State {
    llb::file(None, None, &Action::MkFile { path: "/small", data: b"small\n" })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_name_gets_one_of_its_digest() {
    let daemon = Daemon::start();
    let named = async |attributes: &[(&str, &str)]| -> (Option<String>, String) {
        let outcome = export(&daemon, &small(), attributes).await.success();
        let response: BTreeMap<_, _> = outcome.response.expect("it succeeded");
        (response.get("image.name").cloned(), response["containerimage.digest"].clone())
    };
    let epoch = ("source-date-epoch", "0");
    let (prefix, only) =
        (("dangling-name-prefix", "r.example/dangling"), ("danging-name-empty-only", "true"));
    let (name, digest) = named(&[epoch]).await;
    assert_eq!(name, None);
    let dangling = format!("r.example/dangling@{digest}");
    assert_eq!(named(&[epoch, prefix]).await.0, Some(dangling.clone()));
    assert_eq!(named(&[epoch, prefix, only]).await.0, Some(dangling.clone()));
    let own = ("name", "r.example/own:1");
    assert_eq!(named(&[epoch, prefix, own]).await.0, Some(format!("r.example/own:1,{dangling}")));
    assert_eq!(named(&[epoch, prefix, own, only]).await.0, Some("r.example/own:1".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_nobody_vouches_for_is_pushed_to_if_that_is_asked_for() {
    let registry = TestRegistry::start(Options { tls: true, ..Options::default() });
    let config = format!("[registry.\"{}\"]\n  http = false\n", registry.host());
    let daemon = Daemon::start_with(DaemonOptions { config, ..DaemonOptions::default() });
    let name = registry.reference("out", "1");
    let push = [("name", name.as_str()), ("push", "true")];
    for refused in [&[][..], &[("registry.insecure", "false")]] {
        let outcome = export(&daemon, &small(), &[&push, refused].concat()).await;
        let message = outcome.failure().message().to_owned();
        assert!(message.to_lowercase().contains("certificate"), "{message}");
        assert!(registry.manifest("out", "1").is_none());
    }
    export(&daemon, &small(), &[&push[..], &[("registry.insecure", "true")]].concat()).await.success();
    assert!(registry.manifest("out", "1").is_some());
    // It was said for that export, not for the host.
    let other = registry.reference("other", "1");
    export(&daemon, &small(), &[("name", &other), ("push", "true")]).await.failure();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_elsewhere_stays_there_if_that_is_preferred() {
    let (daemon, registry, elsewhere) = (Daemon::start(), TestRegistry::open(), TestRegistry::open());
    let layer = Layer::files([("file", "foreign\n".repeat(1000))]);
    let source = layer.source.clone().expect("bytes");
    elsewhere.put_blob("store", layer.digest(), source);
    let url = format!("{}/v2/store/blobs/{}", elsewhere.url(), layer.digest());
    let image = Image::of([Layer::files([("own", "own\n")]), layer.foreign([url.as_str()])]);
    let digest = image.layer_digests()[1].to_owned();
    registry.put_image("base", "1", &image);
    let base = llb::image(registry.reference("base", "1"));
    let pushed = async |to: &str, preferred: &str| -> Value {
        let name = registry.reference(to, "1");
        let attributes = [("name", name.as_str()), ("push", "true"), ("prefer-nondist-layers", preferred)];
        export(&daemon, &base, &attributes).await.success();
        registry.manifest(to, "1").expect("the manifest arrived").json()["layers"][1].clone()
    };
    let kept = pushed("kept", "true").await;
    assert_eq!((&kept["mediaType"], &kept["digest"]), (&json!(OCI_LAYER_FOREIGN_GZIP), &json!(digest)));
    assert_eq!(kept["urls"], json!([url]));
    assert_eq!(elsewhere.requests().len(), 0, "{}", elsewhere.story());
    assert!(!registry.has_blob("kept", &digest));
    let shared = pushed("shared", "false").await;
    assert_eq!((&shared["mediaType"], &shared["digest"]), (&json!(OCI_LAYER_GZIP), &json!(digest)));
    assert_eq!(shared["urls"], Value::Null);
    assert_eq!(elsewhere.gets_of(&digest), 1, "{}", elsewhere.story());
    assert!(registry.has_blob("shared", &digest));
}
