//! Whose credentials a daemon uses for whom: every request at a registry is logged with its user.

mod kinds;
mod private;

use crate::harness::Attachables;
use crate::harness::Auth;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::gate::PATIENCE;
use crate::harness::llb;
use crate::harness::poll;
use crate::harness::registry::Request;

/// A registry that knows `alice` and `bob`, neither of whom may do anything yet.
fn guarded(options: Options) -> TestRegistry {
    let registry = TestRegistry::start(options);
    for user in ["alice", "bob"] {
        registry.add_user(user, &password(user));
    }
    registry
}

fn bearer() -> TestRegistry {
    guarded(Options { auth: Auth::Bearer, ..Options::default() })
}

fn password(user: &str) -> String {
    format!("the password of {user}")
}

/// A client of `user` that knows its password for each registry and takes archives.
fn of(user: &str, registries: &[&TestRegistry]) -> Attachables {
    let attach = Attachables::default().files();
    registries.iter().fold(attach, |attach, r| attach.login(&r.host(), user, &password(user)))
}

/// A build that sends an image to its client as an archive.
fn archive(name: &str, attach: Attachables) -> Build {
    Build::of(&llb::image(name)).export("oci", &[]).attach(attach)
}

/// Builds as a client with a connection of its own.
async fn build(daemon: &Daemon, build: Build) -> Outcome {
    Client::connect(daemon).await.start(build).await.finish().await
}

/// Requests that brought a credential of somebody else than `user`.
fn of_others<'a>(requests: &'a [Request], user: &str) -> Vec<&'a Request> {
    requests.iter().filter(|r| r.user.as_deref().is_some_and(|other| other != user)).collect()
}

fn has_archive(outcome: &Outcome) -> bool {
    outcome.session.received(0).is_some_and(|received| received.is_archive())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_clients_refusal_is_not_anothers_and_nobody_uses_anothers_token() {
    let daemon = Daemon::start();
    let registry = bearer();
    registry.allow("alice", "team/secret", Right::Pull);
    registry.put_image("team/secret", "v1", &Image::incompressible(0xc0_0001, 3, 300 << 10));
    let name = registry.reference("team/secret", "v1");
    for round in 0..3 {
        // Both at the same time, when nothing is known and when all of it is.
        let (hers, his) = tokio::join!(
            build(&daemon, archive(&name, of("alice", &[&registry]))),
            build(&daemon, archive(&name, of("bob", &[&registry]))),
        );
        assert!(has_archive(&hers.success()), "round {round}");
        let refusal = his.failure().message().to_owned();
        assert!(refusal.contains(&registry.host()) && refusal.contains("team/secret"), "{refusal}");
        assert!(!has_archive(&his), "round {round}");
    }
    let story = registry.story();
    assert!(
        registry.at(Op::BlobGet).iter().all(|get| !get.succeeded() || get.user.as_deref() == Some("alice"))
    );
    assert!(
        registry
            .at(Op::READS.map(|op| op))
            .iter()
            .all(|r| !r.succeeded() || r.user.as_deref() == Some("alice")),
        "{story}"
    );
    registry.forget();
    let his = build(&daemon, archive(&name, of("bob", &[&registry]))).await;
    his.failure();
    assert!(of_others(&registry.requests(), "bob").is_empty(), "{}", registry.story());
    registry.forget();
    build(&daemon, archive(&name, of("alice", &[&registry]))).await.success();
    assert!(of_others(&registry.requests(), "alice").is_empty(), "{}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_side_by_side_ask_each_with_its_own_account() {
    let daemon = Daemon::start();
    let registry = bearer();
    let image = Image::incompressible(0xc0_0002, 4, 400 << 10);
    for (user, repository) in [("alice", "of/alice"), ("bob", "of/bob")] {
        registry.allow(user, repository, Right::Push);
        registry.put_image(repository, "v1", &image);
    }
    let run = |user: &'static str| {
        let name = registry.reference(&format!("of/{user}"), "v1");
        let to = registry.reference(&format!("of/{user}"), "v2");
        build(&daemon, archive(&name, of(user, &[&registry])).push(&to))
    };
    let (hers, his) = tokio::join!(run("alice"), run("bob"));
    assert!(has_archive(&hers.success()) && has_archive(&his.success()));
    for (user, repository) in [("alice", "of/alice"), ("bob", "of/bob")] {
        let all = registry.requests();
        let there: Vec<_> = all.iter().filter(|r| r.repository == repository).cloned().collect();
        assert!(of_others(&there, user).is_empty(), "{}", registry.story());
        assert!(there.iter().any(|r| r.op == Op::ManifestPut && r.succeeded()));
    }
    // Both have the same layers, which came once each, whoever was first.
    for layer in image.layer_digests() {
        assert_eq!(registry.gets_of(layer), 1, "{}", registry.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_whose_first_client_left_goes_on_with_the_others_account() {
    let daemon = Daemon::start_with(crate::faults::impatient(""));
    let registry = bearer();
    let image = Image::incompressible(0xc0_0003, 1, 4 << 20);
    for (user, repository) in [("alice", "of/alice"), ("bob", "of/bob")] {
        registry.allow(user, repository, Right::Pull);
        registry.put_image(repository, "v1", &image);
    }
    let layer = image.layers[0].digest();
    let hold = registry.hold_after(Op::BlobGet.of(layer).in_repository("of/alice"), 1 << 20);
    let client = Client::connect(&daemon).await;
    let hers = archive(&registry.reference("of/alice", "v1"), of("alice", &[&registry]));
    let hers = client.start(hers).await;
    hold.reached().await;
    let his = archive(&registry.reference("of/bob", "v1"), of("bob", &[&registry]));
    let his = client.start(his).await;
    assert!(poll(PATIENCE, || daemon.counter("content_joined") > 0), "he never joined her fetch");
    // What is under way ends when she leaves or with a break; he goes on from there by himself.
    hers.cancel().await;
    registry.fail(Op::BlobGet.of(layer).in_repository("of/alice"), How::Status(503));
    registry.go_down();
    registry.come_back();
    drop(hold);
    assert!(has_archive(&his.finish().await.success()), "{}", registry.story());
    let all = registry.requests();
    let there: Vec<_> = all.iter().filter(|r| r.repository == "of/bob").cloned().collect();
    assert!(of_others(&there, "bob").is_empty(), "{}", registry.story());
    let gets = registry.at(Op::BlobGet.of(layer).in_repository("of/bob"));
    assert!(gets.len() <= 1, "{}", registry.story());
}
