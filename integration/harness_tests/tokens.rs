//! The registry's door: who gets in, with what, and what the journal says about it.

use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::Auth;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;
use crate::harness::http_client;

fn guarded(auth: Auth) -> (TestRegistry, Image) {
    let registry = TestRegistry::start(Options { auth, ..Options::default() });
    let image = Image::of([Layer::files([("a", "1")])]);
    registry.put_image("team/app", "v1", &image);
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "team/app", Right::Push);
    registry.add_user("bob", "hunter2");
    registry.allow("bob", "team/app", Right::Pull);
    (registry, image)
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("a reply")
}

async fn token(registry: &TestRegistry, login: Option<(&str, &str)>, scopes: &[&str]) -> Value {
    let scopes: String = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
    let mut request =
        http_client(None).get(format!("{}/token?service=test-registry{scopes}", registry.url()));
    if let Some((user, password)) = login {
        request = request.basic_auth(user, Some(password));
    }
    send(request).await.json().await.expect("a token")
}

async fn pull(registry: &TestRegistry, token: &Value) -> StatusCode {
    let request = http_client(None).get(format!("{}/v2/team/app/manifests/v1", registry.url()));
    send(request.bearer_auth(token["token"].as_str().expect("a token"))).await.status()
}

#[tokio::test]
async fn a_stranger_is_told_where_to_get_a_token_for_what() {
    let (registry, _) = guarded(Auth::Bearer);
    let reply = send(http_client(None).get(format!("{}/v2/team/app/manifests/v1", registry.url()))).await;
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    let challenge = reply.headers()["www-authenticate"].to_str().expect("text");
    let realm = registry.url();
    let expected = format!(
        "Bearer realm=\"{realm}/token\",service=\"test-registry\",scope=\"repository:team/app:pull\""
    );
    assert_eq!(challenge, expected);
    assert_eq!(registry.requests()[0].user, None);
}

#[tokio::test]
async fn a_token_is_worth_what_its_user_may_do() {
    let (registry, _) = guarded(Auth::Bearer);
    let scope = "repository:team/app:pull,push";
    let alice = token(&registry, Some(("alice", "open sesame")), &[scope]).await;
    let bob = token(&registry, Some(("bob", "hunter2")), &[scope]).await;
    let nobody = token(&registry, None, &[scope]).await;
    assert_eq!(pull(&registry, &alice).await, StatusCode::OK);
    assert_eq!(pull(&registry, &bob).await, StatusCode::OK);
    assert_eq!(pull(&registry, &nobody).await, StatusCode::UNAUTHORIZED);
    let begin = |token: &Value| {
        let request = http_client(None).post(format!("{}/v2/team/app/blobs/uploads/", registry.url()));
        send(request.bearer_auth(token["token"].as_str().expect("a token")))
    };
    assert_eq!(begin(&alice).await.status(), StatusCode::ACCEPTED);
    let refused = begin(&bob).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let challenge = refused.headers()["www-authenticate"].to_str().expect("text");
    assert!(challenge.ends_with("error=\"insufficient_scope\""), "{challenge}");
    assert_eq!(registry.count(Op::UploadStart.by("bob")), 1);
    assert_eq!(registry.count(Op::ManifestGet.by("alice")), 1);
    assert_eq!(registry.at(Op::Token.by("alice"))[0].scopes, [scope]);
    registry.allow("", "team/app", Right::Pull);
    let nobody = token(&registry, None, &[scope]).await;
    assert_eq!(pull(&registry, &nobody).await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_says_no_more_than_it_was_asked_for_and_ends() {
    let (registry, _) = guarded(Auth::Bearer);
    let login = Some(("alice", "open sesame"));
    let other = token(&registry, login, &["repository:team/other:pull"]).await;
    assert_eq!(pull(&registry, &other).await, StatusCode::UNAUTHORIZED);
    let good = token(&registry, login, &["repository:team/app:pull"]).await;
    assert_eq!(pull(&registry, &good).await, StatusCode::OK);
    registry.expire_tokens();
    assert_eq!(pull(&registry, &good).await, StatusCode::UNAUTHORIZED);
    let again = token(&registry, login, &["repository:team/app:pull"]).await;
    assert_eq!(pull(&registry, &again).await, StatusCode::OK);
    registry.deny("alice", "team/app");
    assert_eq!(pull(&registry, &again).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_wrong_password_gets_no_token() {
    let (registry, _) = guarded(Auth::Bearer);
    let request =
        http_client(None).get(format!("{}/token", registry.url())).basic_auth("alice", Some("wrong"));
    assert_eq!(send(request).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(registry.requests()[0].user, None);
}

#[tokio::test]
async fn the_oauth2_form_takes_passwords_and_identity_tokens() {
    let (registry, _) = guarded(Auth::Bearer);
    let post = |form: String| {
        let request = http_client(None).post(format!("{}/token", registry.url()));
        send(request.header("content-type", "application/x-www-form-urlencoded").body(form))
    };
    let scope = "service=test-registry&client_id=test&scope=repository:team/app:pull";
    let form = format!("grant_type=password&username=alice&password=open+sesame&access_type=offline&{scope}");
    let first: Value = post(form).await.json().await.expect("a token");
    assert_eq!(pull(&registry, &first).await, StatusCode::OK);
    let refresh = first["refresh_token"].as_str().expect("a refresh token");
    let form = format!("grant_type=refresh_token&refresh_token={refresh}&{scope}");
    let second: Value = post(form.clone()).await.json().await.expect("a token");
    assert_eq!(pull(&registry, &second).await, StatusCode::OK);
    registry.revoke_identity_tokens();
    assert_eq!(post(form).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(registry.count(Op::Token.by("alice")), 2);
}

#[tokio::test]
async fn basic_credentials_are_asked_for_on_every_request() {
    let (registry, _) = guarded(Auth::Basic);
    let manifest = format!("{}/v2/team/app/manifests/v1", registry.url());
    let reply = send(http_client(None).get(&manifest)).await;
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(reply.headers()["www-authenticate"], "Basic realm=\"test registry\"");
    let right = http_client(None).get(&manifest).basic_auth("bob", Some("hunter2"));
    assert_eq!(send(right).await.status(), StatusCode::OK);
    let wrong = http_client(None).get(&manifest).basic_auth("bob", Some("hunter3"));
    assert_eq!(send(wrong).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_mount_takes_the_right_to_pull_from_the_other_repository() {
    let (registry, image) = guarded(Auth::Bearer);
    registry.allow("alice", "team/copy", Right::Push);
    let digest = image.layers[0].digest();
    let mount = format!("{}/v2/team/copy/blobs/uploads/?mount={digest}&from=team/app", registry.url());
    let login = Some(("alice", "open sesame"));
    let narrow = token(&registry, login, &["repository:team/copy:pull,push"]).await;
    let wide = token(&registry, login, &["repository:team/copy:pull,push", "repository:team/app:pull"]).await;
    let try_with = |token: Value| {
        let request = http_client(None).post(&mount);
        send(request.bearer_auth(token["token"].as_str().expect("a token").to_owned()))
    };
    let refused = try_with(narrow).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let challenge = refused.headers()["www-authenticate"].to_str().expect("text");
    assert!(challenge.contains("repository:team/copy:pull,push repository:team/app:pull"), "{challenge}");
    assert_eq!(try_with(wide).await.status(), StatusCode::CREATED);
    assert_eq!(registry.mounts_ok(), 1);
    assert_eq!(registry.uploads(), 0);
}
