//! Every kind of credential, every way to hand it over, and the transports below.

use super::*;
use crate::harness::Callback;
use crate::harness::DaemonOptions;
use crate::harness::trust;

/// Pulls and pushes as alice; what her client was asked for is in the outcome's session.
async fn pull_and_push(daemon: &Daemon, registry: &TestRegistry, seed: u64, attach: Attachables) -> Outcome {
    let image = Image::incompressible(seed, 2, 100 << 10);
    registry.put_image("team/app", "v1", &image);
    registry.allow("alice", "*", Right::Push);
    let name = registry.reference("team/app", "v1");
    let to = registry.reference("team/copy", "v1");
    let outcome = build(daemon, archive(&name, attach).push(&to)).await.success();
    assert!(has_archive(&outcome));
    assert!(registry.manifest("team/copy", "v1").is_some());
    assert_eq!(registry.mounts_ok(), 2, "{}", registry.story());
    let answered = registry.requests().into_iter().filter(|r| r.op != Op::Token && r.succeeded());
    assert!(answered.into_iter().all(|r| r.user.as_deref() == Some("alice")), "{}", registry.story());
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_of_the_client_are_shown_where_they_are_asked_for() {
    let daemon = Daemon::start();
    let registry = guarded(Options { auth: Auth::Basic, ..Options::default() });
    let outcome = pull_and_push(&daemon, &registry, 0xc0_2001, of("alice", &[&registry])).await;
    assert!(outcome.session.count(Callback::Credentials) > 0);
    assert_eq!(registry.count(Op::Token), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_becomes_a_token_once_for_each_scope() {
    let daemon = Daemon::start();
    let registry = bearer();
    let outcome = pull_and_push(&daemon, &registry, 0xc0_2002, of("alice", &[&registry])).await;
    assert!(outcome.session.count(Callback::Credentials) > 0);
    assert_eq!(outcome.session.count(Callback::FetchToken), 0);
    let tokens = registry.at(Op::Token);
    assert!((1..=4).contains(&tokens.len()), "pull, push, and push with mount: {}", registry.story());
    let scopes: Vec<_> = tokens.iter().map(|token| &token.scopes).collect();
    assert!(
        scopes.iter().all(|scope| scopes.iter().filter(|other| *other == scope).count() == 1),
        "{scopes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fetches_tokens_keeps_its_secrets() {
    let daemon = Daemon::start();
    let registry = bearer();
    let attach = of("alice", &[&registry]).fetching_tokens();
    let outcome = pull_and_push(&daemon, &registry, 0xc0_2003, attach).await;
    assert_eq!(outcome.session.count(Callback::Credentials), 0);
    assert_eq!(outcome.session.count(Callback::FetchToken), registry.count(Op::Token));
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_tokens_are_exchanged_by_the_daemon_or_by_the_client() {
    let daemon = Daemon::start();
    for (seed, fetches) in [(0xc0_2004, false), (0xc0_2005, true)] {
        let registry = bearer();
        let attach =
            Attachables::default().files().login(&registry.host(), "", &registry.identity_token("alice"));
        let attach = if fetches { attach.fetching_tokens() } else { attach };
        let outcome = pull_and_push(&daemon, &registry, seed, attach).await;
        assert_eq!(outcome.session.count(Callback::FetchToken) > 0, fetches);
        assert_eq!(outcome.session.count(Callback::Credentials) > 0, !fetches);
        assert!(registry.at(Op::Token).iter().all(|token| token.method == http::Method::POST));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_in_mid_build_are_fetched_again() {
    let daemon = Daemon::start();
    let registry = bearer();
    let image = Image::incompressible(0xc0_2006, 2, 200 << 10);
    registry.allow("alice", "*", Right::Push);
    registry.put_image("team/app", "v1", &image);
    let hold = registry.hold(Op::ManifestGet);
    let client = Client::connect(&daemon).await;
    let name = registry.reference("team/app", "v1");
    let running = client.start(archive(&name, of("alice", &[&registry]))).await;
    hold.reached().await;
    registry.expire_tokens();
    drop(hold);
    assert!(has_archive(&running.finish().await.success()));
    assert!((2..=3).contains(&registry.count(Op::Token)), "{}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_needs_no_credentials_and_no_session_that_has_some() {
    let daemon = Daemon::start();
    let registry = bearer();
    registry.allow("", "library/base", Right::Pull);
    registry.put_image("library/base", "v1", &Image::incompressible(0xc0_2007, 1, 10 << 10));
    let name = registry.reference("library/base", "v1");
    let outcome = build(&daemon, archive(&name, Attachables::default().files())).await.success();
    assert!(has_archive(&outcome));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blobs_are_redirected_to_no_credential_goes() {
    let daemon = Daemon::start();
    for auth in [Auth::Basic, Auth::Bearer] {
        let registry = guarded(Options { auth, redirect_blobs: true, ..Options::default() });
        let seed = 0xc0_2010 + auth as u64;
        let image = Image::incompressible(seed, 2, 100 << 10);
        registry.put_image("team/app", "v1", &image);
        registry.allow("alice", "*", Right::Push);
        // A resumed download is redirected anew.
        registry.fail(Op::BlobGet.of(image.layers[0].digest()).at(CDN).once(), How::Truncate(30_000));
        let name = registry.reference("team/app", "v1");
        let outcome = build(&daemon, archive(&name, of("alice", &[&registry]))).await.success();
        assert!(has_archive(&outcome));
        assert!(registry.count(Op::BlobGet.nth(1).at(CDN)) >= 4, "{}", registry.story());
        assert_eq!(registry.leaked_credentials(), 0, "{}", registry.story());
    }
}

const CDN: crate::harness::registry::Listener = crate::harness::registry::Listener::Cdn;

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_over_tls_is_trusted_by_its_configured_authority_and_spoken_to_in_http2() {
    let registry = guarded(Options { auth: Auth::Bearer, tls: true, ..Options::default() });
    let directory = tempfile::tempdir().expect("a directory");
    let config = trust(&registry, directory.path()) + "http = false\n";
    let daemon = Daemon::start_with(DaemonOptions { config, ..DaemonOptions::default() });
    pull_and_push(&daemon, &registry, 0xc0_2020, of("alice", &[&registry])).await;
    assert!(registry.requests().iter().all(|r| r.version == http::Version::HTTP_2), "{}", registry.story());
    // One connection for the API, and one for the token server, which is another origin to a client.
    assert!(registry.connections().accepted <= 2, "{:?}", registry.connections());

    let distrustful = DaemonOptions {
        config: format!("[registry.\"{}\"]\n  http = false\n", registry.host()),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::start_with(distrustful);
    let name = registry.reference("team/app", "v1");
    let outcome = build(&daemon, archive(&name, of("alice", &[&registry]))).await;
    let refusal = outcome.failure().message();
    assert!(refusal.contains(&registry.host()) && refusal.contains("certificate"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_with_the_place_to_log_in_to_and_without_the_password() {
    let daemon = Daemon::start();
    let registry = bearer();
    registry.put_image("team/app", "v1", &Image::incompressible(0xc0_2030, 1, 10 << 10));
    let attach = Attachables::default().files().login(&registry.host(), "alice", "a guess");
    let outcome = build(&daemon, archive(&registry.reference("team/app", "v1"), attach)).await;
    let refusal = outcome.failure().message();
    assert!(refusal.contains(&registry.host()) && refusal.contains("team/app"), "{refusal}");
    assert!(!refusal.contains("a guess") && !daemon.log().contains("a guess"), "{refusal}");
}
