//! Who we are to a registry: tokens, and that nobody's is used for another.

use thunk::registry::PushError;
use thunk::registry::Selector;

use super::*;
use crate::harness::How;
use crate::harness::Op;
use crate::harness::registry::Point;

fn two_accounts(registry: &TestRegistry) -> Accounts {
    registry.add_user("bob", "pw");
    alice().password("bob", "bob", "pw")
}

#[tokio::test]
async fn basic_and_tokens_of_every_kind_are_understood() {
    let image = Image::incompressible(0xc301, 1, 10 << 10);
    let l = &image.layers[0];
    for auth in [Auth::Basic, Auth::Bearer] {
        let registry = guarded(auth);
        registry.put_image("app", "v1", &image);
        let (client, app) = (alice().client(patient()), repository(&registry, "app"));
        assert_eq!(read(&client, &by(&["alice"]), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
        assert_eq!(registry.count(Op::BlobGet), 2, "one is the challenge");
        read(&client, &by(&["alice"]), &app, &layer(l), 0).await.expect("a layer");
        assert_eq!(registry.count(Op::BlobGet), 3);
        assert_eq!(registry.count(Op::Token), usize::from(auth == Auth::Bearer));
    }
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let app = repository(&registry, "app");
    let token = Identity::refresh_token(&Secret::new(registry.identity_token("alice")));
    let client = Accounts::default().identity("alice", token).client(patient());
    read(&client, &by(&["alice"]), &app, &layer(l), 0).await.expect("with an identity token");
    assert_eq!(registry.at(Op::Token)[0].method, http::Method::POST);

    registry.allow("", "app", Right::Pull);
    let client = anonymous(patient());
    read(&client, &nobody(), &app, &layer(l), 0).await.expect("anonymously");
    assert_eq!(registry.count(Op::Token), 2, "an anonymous token is one as well");
}

#[tokio::test]
async fn a_token_server_that_knows_only_the_other_form_is_asked_in_it() {
    let image = Image::incompressible(0xc302, 1, 10 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    registry.fail(Op::Token.once(), How::Status(405));
    let (client, app) = (alice().client(patient()), repository(&registry, "app"));
    read(&client, &by(&["alice"]), &app, &layer(&image.layers[0]), 0).await.expect("a layer");
    let methods: Vec<_> = registry.at(Op::Token).into_iter().map(|token| token.method).collect();
    assert_eq!(methods, [http::Method::GET, http::Method::POST]);
}

#[tokio::test]
async fn a_token_is_fetched_once_for_all_that_wait_and_again_when_it_ended() {
    let image = Image::incompressible(0xc303, 8, 80 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let all = async || {
        let reads = image.layers.iter().map(|l| {
            let (client, ctx, app) = (&client, &ctx, &app);
            async move { read(client, ctx, app, &layer(l), 0).await.map(|_| ()) }
        });
        futures::future::join_all(reads).await.into_iter().collect::<Result<Vec<()>, _>>().expect("layers");
    };
    all().await;
    assert_eq!(registry.count(Op::Token), 1);
    registry.expire_tokens();
    all().await;
    assert!(registry.count(Op::Token) <= 3, "at most one more for those whose refusal was late");
}

#[tokio::test]
async fn who_fetches_a_token_for_others_can_leave() {
    let image = Image::incompressible(0xc304, 2, 20 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let (client, app) = (alice().client(patient()), repository(&registry, "app"));
    let (first, second) = (by(&["alice"]).child(), by(&["alice"]));
    let [a, b] = [layer(&image.layers[0]), layer(&image.layers[1])];
    let hold = registry.hold(Op::Token);
    let leaver = read(&client, &first, &app, &a, 0);
    let stayer = read(&client, &second, &app, &b, 0);
    let watch = async {
        hold.reached().await;
        first.cancel().cancel();
        tokio::task::yield_now().await;
        hold.release();
    };
    let (leaver, stayer, ()) = tokio::join!(leaver, stayer, watch);
    assert!(matches!(leaver, Err(RegistryError::Cancelled { .. })));
    assert_eq!(stayer.expect("a layer"), bytes_of(&image.layers[1]));
}

#[tokio::test]
async fn no_request_carries_the_token_of_another_session() {
    let image = Image::incompressible(0xc305, 4, 40 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("secret", "v1", &image);
    let client = two_accounts(&registry).client(patient());
    let app = repository(&registry, "secret");
    for _ in 0..2 {
        for l in &image.layers {
            read(&client, &by(&["alice"]), &app, &layer(l), 0).await.expect("alice may");
            let error = read(&client, &by(&["bob"]), &app, &layer(l), 0).await.expect_err("bob may not");
            assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
            assert!(error.to_string().contains(l.digest()) && error.to_string().contains("secret"));
            let error = read(&client, &nobody(), &app, &layer(l), 0).await.expect_err("nobody may not");
            assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        }
    }
    let served = registry.at(Op::BlobGet).into_iter().filter(|get| get.succeeded());
    let users: Vec<_> = served.map(|get| get.user.unwrap_or_default()).collect();
    assert_eq!(users, vec!["alice"; 8]);
    let alices = registry.at(Op::BlobGet.by("alice"));
    assert_eq!(alices.len(), 8, "every request with her token was hers: {}", registry.story());
}

#[tokio::test]
async fn both_sessions_at_once_get_their_own_answers() {
    let image = Image::incompressible(0xc306, 1, 40 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("secret", "v1", &image);
    let client = two_accounts(&registry).client(patient());
    let (app, blob) = (repository(&registry, "secret"), layer(&image.layers[0]));
    let (alice, bob) = (by(&["alice"]), by(&["bob"]));
    let hold = registry.hold(Op::Token);
    let both =
        async { tokio::join!(read(&client, &alice, &app, &blob, 0), read(&client, &bob, &app, &blob, 0)) };
    let release = async {
        hold.reached_by(2).await;
        hold.release();
    };
    let ((alices, bobs), ()) = tokio::join!(both, release);
    assert!(alices.is_ok());
    assert!(matches!(bobs, Err(RegistryError::Unauthorized { .. })));
    assert_eq!(registry.count(Op::Token), 3, "one of alice; bob's, and once more when it was not enough");
}

#[tokio::test]
async fn a_request_of_two_sessions_goes_through_if_one_of_them_may() {
    let image = Image::incompressible(0xc307, 1, 40 << 10);
    for auth in [Auth::Basic, Auth::Bearer] {
        let registry = guarded(auth);
        registry.put_image("secret", "v1", &image);
        let client = two_accounts(&registry).client(patient());
        let app = repository(&registry, "secret");
        read(&client, &by(&["bob", "alice"]), &app, &layer(&image.layers[0]), 0).await.expect("alice may");
        let wrong =
            Accounts::default().password("eve", "alice", "guess").password("alice", "alice", "open sesame");
        let client = wrong.client(patient());
        read(&client, &by(&["eve", "alice"]), &app, &layer(&image.layers[0]), 0).await.expect("alice may");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_with_the_host_to_log_in_to() {
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &Image::incompressible(0xc308, 1, 1000));
    let client = Accounts::default().password("eve", "alice", "guess").client(patient());
    let error = client.resolve(&by(&["eve"]), &reference(&registry, "app", "v1")).await.expect_err("refused");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("log in to {}", registry.host())) && !text.contains("guess"), "{text}");
}

#[tokio::test]
async fn a_right_that_was_given_meanwhile_counts_at_the_next_request() {
    let image = Image::incompressible(0xc309, 1, 1000);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let client = two_accounts(&registry).client(patient());
    let (ctx, app, blob) = (by(&["bob"]), repository(&registry, "app"), layer(&image.layers[0]));
    read(&client, &ctx, &app, &blob, 0).await.expect_err("bob may not yet");
    registry.allow("bob", "app", Right::Pull);
    read(&client, &ctx, &app, &blob, 0).await.expect("bob may now");
}

/// A registry that says once that a token is not for this failed the request, at every step but a mount:
/// rights that came a moment later, and a registry of several minds.
#[tokio::test]
async fn a_token_said_to_lack_a_scope_is_fetched_anew_once_and_the_second_refusal_is_final() {
    let image = Image::incompressible(0xc30b, 1, 10 << 10);
    let config = descriptor(image.config_descriptor.as_ref().expect("a config"));
    let l = &image.layers[0];
    let steps =
        [Op::ManifestHead, Op::ManifestGet, Op::BlobGet, Op::UploadStart, Op::UploadPut, Op::ManifestPut];
    for step in steps {
        for always in [false, true] {
            let registry = guarded(Auth::Bearer);
            registry.put_image("app", "v1", &image);
            for (digest, source) in image.blobs() {
                registry.put_blob("to", &digest, source.clone());
            }
            registry.remove_blob("to", l.digest());
            let (client, ctx, app) =
                (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
            let (to, tag) = (repository(&registry, "to"), Selector::Tag("v1".to_owned()));
            // Tokens for both, so that no request but the refused one needs another.
            client.resolve(&ctx, &reference(&registry, "app", "v1")).await.expect("a warm client");
            client.has_blob(&ctx, &to, &config).await.expect("a warm client");
            registry.forget();
            let point = Point::from(step).by("alice");
            registry.fail(if always { point.clone() } else { point.clone().once() }, How::Status(401));
            let error = match step {
                Op::ManifestHead => client.resolve(&ctx, &reference(&registry, "app", "v1")).await.err(),
                Op::ManifestGet => client.manifest(&ctx, &app, &descriptor(&image.descriptor)).await.err(),
                Op::BlobGet => read(&client, &ctx, &app, &config, 0).await.err(),
                Op::ManifestPut => {
                    let (known, bytes) = (descriptor(&image.descriptor), image.manifest.clone());
                    registry.put_blob("to", l.digest(), l.source.clone().expect("bytes"));
                    of_registry(client.put_manifest(&ctx, &to, &tag, &known, bytes).await)
                }
                _ => {
                    let mut opened = 0;
                    let mut body = body(bytes_of(l), &mut opened);
                    of_registry(client.upload_blob(&ctx, &to, &layer(l), None, &mut body).await)
                }
            };
            let case = format!("{step:?}, always {always}: {error:?}\n{}", registry.story());
            match error {
                None => assert!(!always, "{case}"),
                Some(error) => {
                    assert!(always && matches!(error, RegistryError::Unauthorized { .. }), "{case}");
                }
            }
            assert_eq!((registry.count(step), registry.count(Op::Token)), (2, 1), "{case}");
        }
    }
}

fn of_registry(pushed: Result<(), PushError>) -> Option<RegistryError> {
    match pushed {
        Ok(()) => None,
        Err(PushError::Registry(error)) => Some(error),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_token_server_that_redirects_elsewhere_gets_no_secret_there() {
    let image = Image::incompressible(0xc30a, 1, 1000);
    let (registry, elsewhere) = (guarded(Auth::Bearer), guarded(Auth::Bearer));
    registry.put_image("app", "v1", &image);
    registry.fail(Op::Token, How::RedirectTo(format!("{}/token", elsewhere.url())));
    let (app, blob) = (repository(&registry, "app"), layer(&image.layers[0]));
    let token = Identity::refresh_token(&Secret::new(registry.identity_token("alice")));
    for accounts in [alice(), Accounts::default().identity("alice", token)] {
        let error = read(&accounts.client(patient()), &by(&["alice"]), &app, &blob, 0).await;
        error.expect_err("no token from there is good here");
    }
    let asked = elsewhere.requests();
    assert!(
        asked.iter().all(|request| request.authorization.is_none() && request.bytes_in == 0),
        "{asked:?}"
    );
}

#[tokio::test]
async fn secrets_don_t_go_to_a_token_server_over_plain_http_unless_the_registry_is_plain() {
    // A registry behind TLS whose token server is not.
    let registry = TestRegistry::start(Options { auth: Auth::Bearer, tls: true, ..Options::default() });
    let eavesdropper = guarded(Auth::Bearer);
    registry.fail(Op::BlobGet, How::RedirectTo(format!("{}/v2/app/blobs/x", eavesdropper.url())));
    let host = registry.host();
    let insecure = HostConfig { insecure: Some(true), http: Some(false), ..HostConfig::default() };
    let config = RegistryConfig { hosts: [(host.clone(), insecure)].into(), ..patient() };
    let client = alice().client(config);
    let blob = Descriptor::of("x", b"x");
    let error = read(&client, &by(&["alice"]), &Repository::new(host, "app"), &blob, 0).await;
    assert!(error.is_err());
    assert!(eavesdropper.requests().iter().all(|request| request.authorization.is_none()));
    assert_eq!(eavesdropper.count(Op::Token), 0, "a challenge from elsewhere is not answered");
}
