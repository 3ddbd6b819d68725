//! Credentials that are asked of the sessions of the request at hand.

use thunk::registry::SessionCredentials;
use tonic::Code;

use super::*;
use crate::harness::Attachables;
use crate::harness::Callback;
use crate::harness::Op;
use crate::harness::client::Session;

struct Setting {
    registry: TestRegistry,
    image: Image,
    sessions: Sessions,
    client: RegistryClient,
}

fn setting(auth: Auth) -> Setting {
    let image = Image::incompressible(0x5e55, 4, 40 << 10);
    let registry = guarded(auth);
    registry.add_user("bob", "pw");
    registry.put_image("app", "v1", &image);
    let tasks = Tasks::new();
    let client = RegistryClient::new(patient(), Arc::new(SessionCredentials::new()), &tasks);
    Setting { registry, image, sessions: Sessions::new(&tasks), client }
}

impl Setting {
    async fn join(&self, user: &str, secret: &str) -> Session {
        Session::join(&self.sessions, Attachables::default().login(&self.registry.host(), user, secret)).await
    }

    /// A client that keeps its secret.
    async fn join_fetching(&self, user: &str, secret: &str) -> Session {
        let attach = Attachables::default().login(&self.registry.host(), user, secret).fetching_tokens();
        Session::join(&self.sessions, attach).await
    }

    fn ctx(&self, sessions: &[&Session]) -> Ctx {
        let ids = sessions.iter().map(|session| SessionId::new(session.id()));
        Ctx::new(SessionGroup::new(&self.sessions, ids), CancellationToken::new())
    }

    async fn pull(&self, ctx: &Ctx) -> Result<(), RegistryError> {
        let app = repository(&self.registry, "app");
        for l in &self.image.layers {
            assert_eq!(read(&self.client, ctx, &app, &layer(l), 0).await?, bytes_of(l));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_session_is_asked_once_for_many_requests() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let setting = setting(auth);
        let session = setting.join("alice", "open sesame").await;
        setting.pull(&setting.ctx(&[&session])).await.expect("alice may");
        assert_eq!(session.count(Callback::Credentials), 1);
        assert_eq!(session.count(Callback::FetchToken), 0);
        assert_eq!(setting.registry.count(Op::Token), usize::from(auth == Auth::Bearer));
    }
    let setting = setting(Auth::Bearer);
    let token = setting.registry.identity_token("alice");
    let session = setting.join("", &token).await;
    setting.pull(&setting.ctx(&[&session])).await.expect("a secret alone is an identity token");
}

#[tokio::test]
async fn an_open_registry_asks_no_session_for_anything() {
    let setting = setting(Auth::Open);
    let session = setting.join("alice", "open sesame").await;
    setting.pull(&setting.ctx(&[&session])).await.expect("anybody may");
    assert_eq!(session.count(Callback::Credentials) + session.count(Callback::GetTokenAuthority), 0);
}

#[tokio::test]
async fn a_client_that_keeps_its_secret_fetches_the_token_itself() {
    let setting = setting(Auth::Bearer);
    let session = setting.join_fetching("alice", "open sesame").await;
    setting.pull(&setting.ctx(&[&session])).await.expect("alice may");
    assert_eq!(session.count(Callback::FetchToken), 1);
    assert_eq!(session.count(Callback::Credentials), 0);
    assert_eq!(setting.registry.count(Op::Token), 1, "the client's own request");
}

#[tokio::test]
async fn sessions_with_the_same_proven_secret_share_a_token_and_others_do_not() {
    let setting = setting(Auth::Bearer);
    let first = setting.join_fetching("alice", "open sesame").await;
    setting.pull(&setting.ctx(&[&first])).await.expect("alice may");
    let second = setting.join_fetching("alice", "open sesame").await;
    setting.pull(&setting.ctx(&[&second])).await.expect("alice may");
    assert_eq!((second.count(Callback::VerifyTokenAuthority), second.count(Callback::FetchToken)), (1, 0));

    // Who can't prove the secret gets a token of its own.
    let third = setting.join_fetching("alice", "open sesame").await;
    third.refuse(Callback::VerifyTokenAuthority, Code::Unimplemented, 1);
    setting.pull(&setting.ctx(&[&third])).await.expect("alice may");
    assert_eq!(third.count(Callback::FetchToken), 1);

    let other = setting.join_fetching("bob", "pw").await;
    let error = setting.pull(&setting.ctx(&[&other])).await.expect_err("bob may not");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    let bobs = setting.registry.at(Op::BlobGet.by("bob"));
    assert!(!bobs.is_empty() && bobs.iter().all(|get| !get.succeeded()));
    assert_eq!(setting.registry.at(Op::BlobGet.by("alice")).len(), 12);
}

#[tokio::test]
async fn a_session_that_ends_while_it_fetches_a_token_does_not_fail_those_that_wait_for_it() {
    let setting = setting(Auth::Bearer);
    let first = setting.join_fetching("alice", "open sesame").await;
    let second = setting.join_fetching("alice", "open sesame").await;
    // The registry's way of asking is known, and no token is.
    setting.pull(&setting.ctx(&[&first])).await.expect("alice may");
    setting.pull(&setting.ctx(&[&second])).await.expect("alice may");
    setting.registry.expire_tokens();
    let (one, two) = (setting.ctx(&[&first]), setting.ctx(&[&second]));
    let hold = first.hold(Callback::FetchToken);
    let leave = async {
        hold.reached().await;
        tokio::task::yield_now().await;
        first.close().await;
        // A build ends with its session.
        one.cancel().cancel();
    };
    let both = async {
        tokio::join!(setting.pull(&one), async {
            first.until(Callback::FetchToken, 2).await;
            setting.pull(&two).await
        })
    };
    let ((_, seconds), ()) = tokio::join!(both, leave);
    seconds.expect("the second session fetches its own");
}

#[tokio::test]
async fn a_request_of_two_sessions_uses_the_one_that_may() {
    for fetching in [false, true] {
        let setting = setting(Auth::Bearer);
        let (alice, bob) = match fetching {
            true => (
                setting.join_fetching("alice", "open sesame").await,
                setting.join_fetching("bob", "pw").await,
            ),
            false => (setting.join("alice", "open sesame").await, setting.join("bob", "pw").await),
        };
        setting.pull(&setting.ctx(&[&bob, &alice])).await.expect("alice may");
    }
}

#[tokio::test]
async fn sessions_that_left_make_a_request_anonymous() {
    let setting = setting(Auth::Bearer);
    let session = setting.join("alice", "open sesame").await;
    let ctx = setting.ctx(&[&session]);
    setting.pull(&ctx).await.expect("alice may");
    session.close().await;
    ctx.sessions().remove(&SessionId::new(session.id()));
    let error = setting.pull(&ctx).await.expect_err("nobody may not");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    setting.registry.allow("", "app", Right::Pull);
    setting.pull(&ctx).await.expect("it is public now");
}
