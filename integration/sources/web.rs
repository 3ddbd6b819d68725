//! Files of web servers.

use futures::future::join_all;
use http::StatusCode;

use super::Frontend;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::TestWeb;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;
use crate::harness::sha256;

fn file(web: &TestWeb, path: &str) -> State {
    llb::source(&web.url(path), &[])
}

/// A step that copies the file, as `ADD` of a Dockerfile does.
fn added(source: &State, path: &str) -> State {
    llb::file(None, Some(source), &Action::Copy { from: path, to: "/added" })
}

/// The frontend was told the digest of one file, and the build got another: the server was asked twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_the_file_that_its_frontend_was_told_of_and_the_next_one_the_new_one() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let (source, url) = (file(&web, "/a"), web.url("/a"));

    let one = Frontend::start(&client).await;
    assert_eq!(one.resolve_file(&url, &[]).await, sha256("first"));
    web.put("/a", "second");
    assert_eq!(one.read(&added(&source, "/a"), "/added").await, "first");
    assert_eq!(one.read(&source, "/a").await, "first");
    assert_eq!(one.resolve_file(&url, &[]).await, sha256("first"));
    assert_eq!(web.take_requests(), ["GET /a 200"]);
    one.finish().await;

    let two = Frontend::start(&client).await;
    assert_eq!(two.resolve_file(&url, &[]).await, sha256("second"));
    assert_eq!(two.read(&added(&source, "/a"), "/added").await, "second");
    assert_eq!(web.take_requests(), ["HEAD /a 200", "GET /a 200"]);
    two.finish().await;

    // Of what has not changed one question is enough, whatever else is asked, and whatever the cache.
    let three = Frontend::start(&client).await;
    assert_eq!(three.resolve_file(&url, &[]).await, sha256("second"));
    assert_eq!(
        three.read(&added(&source.clone().ignore_cache(), "/a").ignore_cache(), "/added").await,
        "second"
    );
    assert_eq!(web.take_requests(), ["HEAD /a 304"]);
    three.finish().await;
}

/// A build that solves first and asks then is told of what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_is_told_of_the_file_that_its_build_has() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let frontend = Frontend::start(&client).await;
    let source = file(&web, "/a");
    assert_eq!(frontend.read(&source, "/a").await, "first");
    web.put("/a", "second");
    assert_eq!(frontend.resolve_file(&web.url("/a"), &[]).await, sha256("first"));
    // Another vertex of the same file.
    assert_eq!(frontend.read(&source.platform("linux/s390x"), "/a").await, "first");
    assert_eq!(web.take_requests(), ["GET /a 200"]);
    frontend.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_and_each_set_of_attributes_is_asked_for_by_itself() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    let frontend = Frontend::start(&client).await;
    for path in ["/a", "/b"] {
        web.put(path, path);
        assert_eq!(frontend.resolve_file(&web.url(path), &[]).await, sha256(path));
    }
    for path in ["/a", "/b"] {
        assert_eq!(frontend.read(&file(&web, path), path).await, path);
    }
    assert_eq!(web.take_requests(), ["GET /a 200", "GET /b 200"]);
    web.put("/a", "second");
    let named = llb::source(&web.url("/a"), &[("http.filename", "named")]);
    assert_eq!(frontend.read(&named, "/named").await, "second");
    let accepting = llb::source(&web.url("/a"), &[("http.header.accept", "text/plain")]);
    assert_eq!(frontend.read(&accepting, "/a").await, "second");
    assert_eq!(web.take_requests(), ["GET /a 200", "GET /a 200"]);
    frontend.finish().await;
}

/// A frontend asks for the digest and pins it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_found_is_the_one_that_is_pinned() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let frontend = Frontend::start(&client).await;
    let digest = frontend.resolve_file(&web.url("/a"), &[]).await;
    web.put("/a", "second");
    let pinned = llb::source(&web.url("/a"), &[("http.checksum", &digest)]);
    assert_eq!(frontend.read(&pinned, "/a").await, "first");
    assert_eq!(web.take_requests(), ["GET /a 200"]);
    let other = llb::source(&web.url("/a"), &[("http.checksum", &sha256("second"))]);
    assert_eq!(frontend.read(&other, "/a").await, "second");
    let neither = llb::source(&web.url("/a"), &[("http.checksum", &sha256("third"))]);
    let refused = frontend.solve(&neither).await.unwrap_err();
    assert!(refused.message().contains("digest mismatch"), "{refused:?}");
    frontend.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_after_it_was_asked_fails_nobody_and_a_failure_is_not_kept() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let (source, url) = (file(&web, "/a"), web.url("/a"));
    let frontend = Frontend::start(&client).await;
    web.fail(StatusCode::SERVICE_UNAVAILABLE);
    assert!(frontend.resolve(&url, &[]).await.unwrap_err().message().contains("503"));
    web.heal();
    assert_eq!(frontend.resolve_file(&url, &[]).await, sha256("first"));
    web.fail(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(frontend.read(&added(&source, "/a"), "/added").await, "first");
    assert_eq!(web.take_requests(), ["GET /a 503", "GET /a 200"]);

    // Another build is not told of what this one has, while it runs or after.
    let other = Frontend::start(&client).await;
    assert!(other.resolve(&url, &[]).await.unwrap_err().message().contains("503"));
    frontend.finish().await;
    assert!(other.resolve(&url, &[]).await.unwrap_err().message().contains("503"));
    other.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_ask_at_about_the_same_time_get_the_answer_to_one_question() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    for path in ["/a", "/b"] {
        web.put(path, "first");
    }
    let frontend = Frontend::start(&client).await;
    let (source, url) = (file(&web, "/a"), web.url("/a"));
    let (other, third) = (source.clone().platform("linux/s390x"), added(&source, "/a"));
    let gate = web.hold();
    let (told, one, two, three, ()) = tokio::join!(
        frontend.resolve_file(&url, &[]),
        frontend.read(&source, "/a"),
        frontend.read(&other, "/a"),
        frontend.read(&third, "/added"),
        async {
            gate.reached_by(1).await;
            gate.open();
        }
    );
    assert_eq!((told, one, two, three), (sha256("first"), "first".into(), "first".into(), "first".into()));
    assert_eq!(web.take_requests(), ["GET /a 200"]);

    // Some come before the answer, some just after it.
    let (asking, url) = (&frontend, web.url("/b"));
    let told = join_all((0..16).map(async |_| {
        let mut told = Vec::new();
        for _ in 0..8 {
            told.push(asking.resolve_file(&url, &[]).await);
        }
        told
    }));
    assert!(told.await.concat().iter().all(|digest| *digest == sha256("first")));
    assert_eq!(web.take_requests(), ["GET /b 200"]);
    frontend.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_asking_takes_nothing_from_those_who_go_on() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let frontend = Frontend::start(&client).await;
    let (source, url) = (file(&web, "/a"), web.url("/a"));
    let gate = web.hold();
    {
        let mut asking = Box::pin(frontend.resolve(&url, &[]));
        tokio::select! {
            answer = &mut asking => panic!("the server has not answered: {answer:?}"),
            () = gate.reached_by(1) => {}
        }
        let solving = frontend.read(&source, "/a");
        let leaving = async {
            drop(asking);
            gate.open();
        };
        let (read, ()) = tokio::join!(solving, leaving);
        assert_eq!(read, "first");
    }
    // Whether the solve joined the question or came after its end.
    let asked = web.take_requests();
    assert!(!asked.is_empty() && asked.len() <= 2, "{asked:?}");
    web.put("/a", "second");
    assert_eq!(frontend.resolve_file(&url, &[]).await, sha256("first"));
    assert!(web.take_requests().is_empty());
    frontend.finish().await;
}

/// Two builds at the same time with the same vertex: each has what its own frontend was told.
#[tokio::test(flavor = "multi_thread")]
async fn builds_that_were_told_of_different_files_have_different_files() {
    let (daemon, web) = (Daemon::start(), TestWeb::start().await);
    let client = Client::connect(&daemon).await;
    web.put("/a", "first");
    let (source, url) = (file(&web, "/a"), web.url("/a"));
    let step = added(&source, "/a");
    let (one, two) = (Frontend::start(&client).await, Frontend::start(&client).await);
    assert_eq!(one.resolve_file(&url, &[]).await, sha256("first"));
    assert_eq!(one.read(&step, "/added").await, "first");
    web.put("/a", "second");
    assert_eq!(two.resolve_file(&url, &[]).await, sha256("second"));
    assert_eq!(two.read(&step, "/added").await, "second");
    assert_eq!(one.read(&step, "/added").await, "first");
    assert_eq!(web.take_requests(), ["GET /a 200", "HEAD /a 200", "GET /a 200"]);

    // One that was told nothing shares what there is, and keeps to it.
    let three = Frontend::start(&client).await;
    let read = three.read(&step, "/added").await;
    assert_eq!(three.resolve_file(&url, &[]).await, sha256(&read));
    assert_eq!(three.read(&source.platform("linux/s390x"), "/a").await, read);
    assert!(web.take_requests().is_empty());
    for frontend in [one, two, three] {
        frontend.finish().await;
    }
}
