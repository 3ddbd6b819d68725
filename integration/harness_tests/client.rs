//! The test's own client against the real `buildkitd`: what it says and serves is the protocol, not
//! our idea of it.

use thunk::proto::control::ListWorkersRequest;
use thunk::proto::gateway;
use tonic::Code;

use crate::harness::Archive;
use crate::harness::Attachables;
use crate::harness::Auth;
use crate::harness::Build;
use crate::harness::Buildkitd;
use crate::harness::Callback;
use crate::harness::Client;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;
use crate::harness::client::ContentStore;
use crate::harness::llb;

fn image() -> Image {
    Image::of([Layer::files([("a", "1")]), Layer::files([("b", "2")])])
}

fn guarded() -> TestRegistry {
    let registry = TestRegistry::start(Options { auth: Auth::Bearer, ..Options::default() });
    registry.put_image("team/app", "v1", &image());
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Push);
    registry
}

#[tokio::test]
async fn an_archive_comes_through_the_session() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let workers = client.control().list_workers(ListWorkersRequest::default()).await.expect("workers");
    assert_eq!(workers.into_inner().record.len(), 1);

    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image());
    let state = llb::image(registry.reference("app", "v1"));
    let build = Build::of(&state).export("oci", &[]).attach(Attachables::default().files());
    let outcome = client.start(build).await.finish().await.success();
    let received = outcome.session.received(0).expect("an archive");
    assert!(received.whole);
    assert_eq!(received.len, received.bytes.len() as u64);
    let archive = Archive::parse(&received.bytes);
    let manifests = archive.verify();
    assert_eq!(manifests.len(), 1);
    assert!(image().layer_digests().into_iter().all(|layer| archive.has_blob(layer)));
    assert_eq!(outcome.session.count(Callback::FileSend), 1);
    assert!(outcome.exported("containerimage.digest").starts_with("sha256:"));
    let vertex = outcome.vertex(state.digest());
    assert!(vertex.iter().any(|vertex| vertex.completed.is_some()), "{vertex:?}");
    assert!(outcome.items(state.digest()).keys().any(|id| id.starts_with("resolve ")));
    outcome.session.close().await;
    assert!(outcome.session.has_ended());
}

#[tokio::test]
async fn vertices_have_the_digests_that_definitions_say() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = TestRegistry::open();
    for (tag, file) in [("one", "1"), ("two", "2")] {
        registry.put_image("app", tag, &Image::of([Layer::files([(file, file)])]));
    }
    let [one, two] = ["one", "two"].map(|tag| llb::image(registry.reference("app", tag)));
    let merged = llb::merge([one.clone(), two.clone()]);
    let build = Build::of(&merged).push(&registry.reference("app", "both"));
    let outcome = client.start(build).await.finish().await.success();
    for state in [one, two, merged] {
        assert!(!outcome.vertex(state.digest()).is_empty(), "{:?}", outcome.progress);
    }
}

#[tokio::test]
async fn credentials_are_asked_for_and_used() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = guarded();
    let state = llb::image(registry.reference("team/app", "v1"));
    let attach = Attachables::default().login(&registry.host(), "alice", "open sesame");
    let build = Build::of(&state).push(&registry.reference("team/copy", "v2")).attach(attach);
    let outcome = client.start(build).await.finish().await.success();
    assert!(outcome.session.count(Callback::Credentials) > 0);
    assert_eq!(outcome.session.count(Callback::FetchToken), 0);
    assert!(registry.manifest("team/copy", "v2").is_some());
    assert_eq!(registry.mounts_ok(), 2);
    assert!(registry.count(Op::ManifestPut.by("alice")) > 0);
}

#[tokio::test]
async fn tokens_are_fetched_by_the_client_so_that_secrets_stay() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = guarded();
    let state = llb::image(registry.reference("team/app", "v1"));
    for login in
        [("alice".to_owned(), "open sesame".to_owned()), (String::new(), registry.identity_token("alice"))]
    {
        let attach = Attachables::default().login(&registry.host(), &login.0, &login.1).fetching_tokens();
        let build = Build::of(&state).push(&registry.reference("team/copy", "v3")).attach(attach);
        let outcome = client.start(build).await.finish().await.success();
        assert!(outcome.session.count(Callback::GetTokenAuthority) > 0);
        assert!(outcome.session.count(Callback::FetchToken) > 0);
        assert_eq!(outcome.session.count(Callback::Credentials), 0);
        outcome.session.close().await;
    }
}

#[tokio::test]
async fn a_client_without_the_right_credentials_is_refused() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = guarded();
    let state = llb::image(registry.reference("team/app", "v1"));
    let outcome = client.start(Build::of(&state).export("oci", &[])).await.finish().await;
    assert!(outcome.failure().message().contains("authorization failed"), "{}", outcome.failure());
}

#[tokio::test]
async fn a_layout_is_read_from_the_clients_store() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let (image, target) = (image(), TestRegistry::open());
    let state = llb::oci_layout("example.com/base", image.digest(), "mine", &[]);
    let attach = Attachables::default().oci_store("mine", &ContentStore::of(&image));
    let mut build = Build::of(&state).push(&target.reference("from/layout", "v1")).attach(attach);
    build.request.exporters[0].attrs.insert("oci-mediatypes".to_owned(), "true".to_owned());
    let outcome = client.start(build).await.finish().await.success();
    assert!(outcome.session.count(Callback::ContentRead) > 0);
    for layer in image.layer_digests() {
        assert!(target.has_blob("from/layout", layer));
    }
}

#[tokio::test]
async fn a_layout_is_written_to_the_clients_store() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image());
    let store = ContentStore::default();
    let build = Build::of(&llb::image(registry.reference("app", "v1"))).export("oci", &[("tar", "false")]);
    let build = build.attach(Attachables::default().export_store(&store));
    let outcome = client.start(build).await.finish().await.success();
    assert!(outcome.session.count(Callback::ContentWrite) >= 4);
    for layer in image().layer_digests() {
        assert!(store.digests().iter().any(|digest| digest == layer));
    }
}

#[tokio::test]
async fn a_gateway_client_returns_what_the_bridge_solved() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image());
    let state = llb::image(registry.reference("app", "v1"));
    let running = client.start(Build::gateway().push(&registry.reference("app", "v2"))).await;
    let mut bridge = client.bridge(&running.reference);
    let pong = bridge.ping(gateway::PingRequest {}).await.expect("a pong").into_inner();
    assert!(pong.frontend_api_caps.iter().any(|cap| cap.id == "return"));
    let solve = gateway::SolveRequest {
        definition: Some(state.definition()),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    let result = bridge.solve(solve).await.expect("a result").into_inner().result;
    let end = gateway::ReturnRequest { result, error: None };
    bridge.r#return(end).await.expect("an answer");
    running.finish().await.success();
    assert!(registry.manifest("app", "v2").is_some());
    for layer in image().layer_digests() {
        assert_eq!(registry.gets_of(layer), 0);
    }
}

#[tokio::test]
async fn a_cancelled_build_ends_its_requests() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &Image::incompressible(77, 1, 4 << 20));
    let hold = registry.hold_after(Op::BlobGet, 1 << 20);
    let build = Build::of(&llb::image(registry.reference("app", "v1"))).export("oci", &[]);
    let running = client.start(build.attach(Attachables::default().discarding_files())).await;
    hold.reached().await;
    let session = running.cancel().await;
    assert!(session.has_ended());
    registry.until(|registry| registry.at(Op::BlobGet).iter().all(|request| request.ended)).await;
    drop(hold);
}

#[tokio::test]
async fn callbacks_can_be_held_and_refused() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let client = Client::at(buildkitd.socket()).await;
    let registry = guarded();
    let state = llb::image(registry.reference("team/app", "v1"));
    let attach = Attachables::default().login(&registry.host(), "alice", "open sesame");
    let build = Build::gateway().attach(attach);
    let running = client.start(build).await;
    let hold = running.session.hold(Callback::Credentials);
    let mut bridge = client.bridge(&running.reference);
    let solve = gateway::SolveRequest {
        definition: Some(state.definition()),
        evaluate: true,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    let solving = bridge.solve(solve);
    let watching = async {
        hold.reached().await;
        assert_eq!(registry.count(Op::Token.by("alice")), 0);
        running.session.refuse(Callback::Credentials, Code::PermissionDenied, usize::MAX);
        hold.release();
    };
    let (solved, ()) = tokio::join!(solving, watching);
    assert!(solved.is_err());
    assert_eq!(registry.count(Op::Token.by("alice")), 0);
    let error = thunk::proto::rpc::Status { code: 2, message: "given up".to_owned(), ..Default::default() };
    let end = gateway::ReturnRequest { result: None, error: Some(error) };
    client.bridge(&running.reference).r#return(end).await.expect("an answer");
    assert!(running.finish().await.failure().message().contains("given up"));
}
