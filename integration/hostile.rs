//! Requests that make no sense, or that are there to do harm: each ends soon and in an error that says what is wrong,
//! and the daemon goes on as if none had come. What it has left then is looked at when it goes.

mod bridge;
mod definitions;
mod requests;

use std::time::Duration;

use thunk::proto::control::SolveRequest;
use thunk::proto::pb;
use tonic::Code;
use tonic::Status;

use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::harness::llb;

/// How soon an error comes, on a machine that has much else to do. Calls may wait six seconds for what they name to come.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of an error at most, which a person reads.
const MOST_WORDS: usize = 8 << 10;
/// Bytes of what comes with it at most.
const MOST_DETAILS: usize = 2 << 20;

/// Bytes that requests may take at a time, one after the other: a message has 16 MiB at most.
const MOST_MEMORY: u64 = 512 << 20;

/// What is refused: a name for it, the code, and a part of what is said.
type Refusal<'a> = (&'a str, Code, &'a str);

#[track_caller]
fn check(refusal: &Refusal<'_>, answer: &Result<impl Sized, Status>) {
    let (what, code, says) = refusal;
    let Err(status) = answer else { panic!("{what}: it is taken") };
    let said = status.message();
    assert_eq!(status.code(), *code, "{what}: {}", said.chars().take(MOST_WORDS).collect::<String>());
    assert!(said.len() <= MOST_WORDS, "{what}: {} bytes are said", said.len());
    assert!(status.details().len() <= MOST_DETAILS, "{what}: {} bytes of details", status.details().len());
    assert!(said.contains(says), "{what}: {said}");
}

async fn soon<T>(what: &str, call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what}: no answer within {SOON:?}"),
    }
}

/// A build without a session, under a ref of its own.
fn request(definition: pb::Definition) -> SolveRequest {
    let r#ref = format!("hostile-{:016x}", rand::random::<u64>());
    SolveRequest { r#ref, definition: Some(definition), ..SolveRequest::default() }
}

async fn refused(client: &Client, request: SolveRequest, refusal: &Refusal<'_>) {
    let answer = soon(refusal.0, client.control().solve(request)).await;
    check(refusal, &answer);
}

/// A step that runs on an image, and its push.
async fn a_usual_build_works(client: &Client) {
    let Some(busybox) = busybox() else { return };
    let registry = TestRegistry::open();
    registry.put_image("base", "v1", &Image::of([busybox]));
    let state = llb::sh(&llb::image(registry.reference("base", "v1")), "echo built >/file");
    let build = Build::of(&state).push(&registry.reference("made", "v1"));
    client.start(build).await.finish().await.success();
    assert!(registry.manifest("made", "v1").is_some());
}

/// A daemon that everything is sent to, and that then works as before.
async fn with_daemon(send: impl AsyncFnOnce(&Client)) {
    let mut daemon = Daemon::start();
    let client = Client::connect(&daemon).await;
    daemon.process().forget_peak_memory();
    let begun = daemon.peak_memory();
    send(&client).await;
    assert!(daemon.is_running());
    let taken = daemon.peak_memory().saturating_sub(begun);
    assert!(taken <= MOST_MEMORY, "{taken} bytes of memory were taken");
    a_usual_build_works(&client).await;
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
