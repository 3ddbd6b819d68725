//! Who leaves a build ends it: at once, wherever it waits, and without harm to those who stay.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use thunk::proto::control::BuildHistoryRequest;
use thunk::proto::control::StatusRequest;
use tonic::Code;

use crate::harness::Attachables;
use crate::harness::Auth;
use crate::harness::Build;
use crate::harness::Buildctl;
use crate::harness::Callback;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::client::Running;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::poll;
use crate::harness::registry::Hold;

/// A build that was left is over within this time.
const PROMPT: Duration = Duration::from_secs(1);
/// And recorded within this time, which is the disk's.
const RECORDED: Duration = Duration::from_secs(60);
/// A daemon that was told to stop is gone within this time.
const STOP: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// A registry with an image and another one to push to.
struct Site {
    source: TestRegistry,
    target: TestRegistry,
    image: Image,
}

impl Site {
    /// With an image of its own, so that nothing of it is known to a daemon that saw other sites.
    fn new() -> Site {
        static SEED: AtomicU64 = AtomicU64::new(0xca00);
        let image = Image::incompressible(SEED.fetch_add(1, Ordering::Relaxed), 2, 2 * MIB);
        let site = Site { source: TestRegistry::open(), target: TestRegistry::open(), image };
        site.source.put_image("team/base", "1", &site.image);
        site
    }

    fn state(&self) -> State {
        llb::image(self.source.reference("team/base", "1"))
    }

    fn archive(&self) -> Build {
        Build::of(&self.state()).export("oci", &[]).attach(Attachables::default().discarding_files())
    }

    fn push(&self) -> Build {
        Build::of(&self.state()).push(&self.target.reference("copy/base", "1"))
    }

    /// In the middle of a layer.
    fn hold_layer(&self) -> Hold {
        self.source.hold_after(Op::BlobGet.of(self.image.layers[0].digest()), MIB / 4)
    }

    async fn until_idle(&self) {
        self.source.until_idle().await;
        self.target.until_idle().await;
    }
}

/// Waits for `work`; panics unless it ends promptly.
async fn prompt<T>(what: &str, work: impl Future<Output = T>) -> T {
    let timely = tokio::time::timeout(PROMPT, work).await;
    timely.unwrap_or_else(|_| panic!("{what} took more than {PROMPT:?}"))
}

/// The status of a build that was cancelled: all that had begun is over, some of it cancelled.
#[track_caller]
fn assert_told_cancelled(outcome: &Outcome, at: &str) {
    assert!(outcome.status_ended.is_ok(), "{at}: {:?}", outcome.status_ended);
    let all: Vec<_> = outcome.progress.iter().flat_map(|message| &message.vertexes).collect();
    for vertex in &all {
        let last = all.iter().rev().find(|other| other.digest == vertex.digest).expect("itself");
        assert!(last.started.is_none() || last.completed.is_some(), "{at}: {last:?} is open");
    }
    assert!(all.iter().any(|vertex| vertex.error == "context canceled"), "{at}: {all:#?}");
}

/// Waits until every build is over and recorded.
async fn assert_no_build_runs(client: &Client, at: &str) {
    let begun = Instant::now();
    loop {
        let active = client.active_builds().await;
        if active.is_empty() {
            return;
        }
        assert!(begun.elapsed() < RECORDED, "{at}: {active:?} do not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_solve_ends_at_once_wherever_it_waits() {
    type Place = (&'static str, fn(&Site) -> Build, fn(&Site) -> Hold);
    let places: [Place; 8] = [
        ("the manifest", Site::push, |site| site.source.hold([Op::ManifestHead, Op::ManifestGet])),
        ("the config", Site::push, |site| {
            let config = site.image.config_descriptor.as_ref().expect("a config");
            site.source.hold(Op::BlobGet.of(&config.digest))
        }),
        ("a layer on its way to the disk", Site::archive, Site::hold_layer),
        ("a layer on its way through", Site::push, Site::hold_layer),
        ("the question for a blob", Site::push, |site| site.target.hold(Op::BlobHead)),
        ("the start of an upload", Site::push, |site| site.target.hold(Op::UploadStart)),
        ("an upload", Site::push, |site| site.target.hold_after([Op::UploadPatch, Op::UploadPut], MIB / 4)),
        ("the manifest's upload", Site::push, |site| site.target.hold(Op::ManifestPut)),
    ];
    let daemon = Daemon::start();
    let client = Client::connect(&daemon).await;
    for (place, build, hold) in places {
        let site = Site::new();
        let hold = hold(&site);
        let running = client.start(build(&site)).await;
        hold.reached().await;
        let outcome = prompt(&format!("{place}: the status"), running.cancel_solve()).await;
        assert_told_cancelled(&outcome, place);
        prompt(&format!("{place}: to hang up"), site.source.until_idle()).await;
        assert_no_build_runs(&client, place).await;
        // The target reads no body while it holds one, and doesn't see that its client is gone.
        drop(hold);
        prompt(&format!("{place}: to leave the target"), site.target.until_idle()).await;
        assert!(site.target.tags("copy/base").is_empty(), "{place}: {}", site.target.story());
        let history = client.history().await;
        let record = history.iter().find(|record| record.r#ref == outcome.reference);
        let error = record.expect("a cancelled build is recorded").error.as_ref().expect("with its error");
        assert_eq!(Code::from(error.code), Code::Cancelled, "{place}: {error:?}");

        // Nothing of it stands in the way of the next one.
        client.start(build(&site)).await.finish().await.success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_solve_does_not_wait_for_its_own_client() {
    let registry = TestRegistry::start(Options { auth: Auth::Bearer, ..Options::default() });
    registry.put_image("team/base", "1", &Image::incompressible(0xcb, 1, MIB));
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Pull);
    let daemon = Daemon::start();
    let client = Client::connect(&daemon).await;
    let attach = Attachables::default().login(&registry.host(), "alice", "open sesame");
    let manifests = registry.hold([Op::ManifestHead, Op::ManifestGet]);
    let build = Build::of(&llb::image(registry.reference("team/base", "1"))).attach(attach);
    let running = client.start(build).await;
    manifests.reached().await;
    let credentials = running.session.hold(Callback::Credentials);
    manifests.release();
    credentials.reached().await;
    let outcome = prompt("the status", running.cancel_solve()).await;
    assert_told_cancelled(&outcome, "credentials");
    assert_no_build_runs(&client, "credentials").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_build_that_never_returns_is_cancelled_at_once() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon).await;
    let running = client.start(Build::gateway()).await;
    client.bridge(&running.reference).ping(thunk::proto::gateway::PingRequest {}).await.expect("ping");
    let reference = running.reference.clone();
    let outcome = prompt("the status", running.cancel_solve()).await;
    assert!(outcome.status_ended.is_ok(), "{:?}", outcome.status_ended);
    assert_no_build_runs(&client, &reference).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_build_of_a_buildctl_that_was_killed_ends_at_once() {
    let (daemon, site) = (Daemon::start(), Site::new());
    let Some(buildctl) = Buildctl::of(&daemon) else { return };
    for kind in ["archive", "push"] {
        let output = match kind {
            "archive" => format!("type=oci,dest={}", daemon.scratch().join("image.tar").display()),
            _ => format!("type=image,name={},push=true", site.target.reference("copy/base", "1")),
        };
        let hold = site.hold_layer();
        let (definition, outputs) = (site.state().marshal(), [output.as_str()]);
        tokio::select! {
            run = buildctl.build(&definition, &outputs) => panic!("{kind} ended while held: {}", run.stderr),
            () = hold.reached() => {}
        }
        // The future that was dropped has killed it.
        prompt(&format!("{kind}: to hang up"), site.until_idle()).await;
        assert_no_build_runs(&Client::connect(&daemon).await, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_breaks_ends_its_build_and_its_session() {
    let (daemon, site) = (Daemon::start(), Site::new());
    let hold = site.hold_layer();
    let client = Client::connect(&daemon).await;
    let running = client.start(site.archive()).await;
    hold.reached().await;
    drop((running, client));
    prompt("to hang up", site.until_idle()).await;
    assert_no_build_runs(&Client::connect(&daemon).await, "a broken connection").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_stalled_builds_with_an_error_and_the_daemon_in_order() {
    type Place = (&'static str, fn(&Site) -> Build, fn(&Site) -> Hold);
    let places: [Place; 3] = [
        ("the manifest", Site::push, |site| site.source.hold([Op::ManifestHead, Op::ManifestGet])),
        ("a layer", Site::archive, Site::hold_layer),
        ("an upload", Site::push, |site| site.target.hold_after([Op::UploadPatch, Op::UploadPut], MIB / 4)),
    ];
    for (place, build, hold) in places {
        let (mut daemon, site) = (Daemon::start(), Site::new());
        let client = Client::connect(&daemon).await;
        let hold = hold(&site);
        let running = client.start(build(&site)).await;
        hold.reached().await;
        // Streams without an end of their own must not keep it.
        let listen = BuildHistoryRequest::default();
        let mut listener = client.control().listen_build_history(listen).await.expect("listen").into_inner();
        let idle = client.session(Attachables::default()).await;
        daemon.signal(Signal::TERM);
        let outcome = running.finish().await;
        let failure = outcome.failure();
        assert!(matches!(failure.code(), Code::Cancelled | Code::Unavailable), "{place}: {failure:?}");
        let status = daemon.wait(STOP);
        assert!(status.success(), "{place}: {status}\n{}", daemon.log());
        while let Ok(Some(_)) = listener.message().await {}
        idle.until_ended().await;
        drop(hold);
        site.until_idle().await;

        daemon.start_again();
        let client = Client::connect(&daemon).await;
        client.start(build(&site)).await.finish().await.success();
    }
}

/// Reads the status of a build until a vertex has started.
async fn until_started(client: &Client, running: &Running, state: &State) {
    let request = StatusRequest { r#ref: running.reference.clone() };
    let mut status = client.control().status(request).await.expect("status").into_inner();
    while let Some(message) = status.message().await.expect("status") {
        if message.vertexes.iter().any(|v| v.digest == state.digest() && v.started.is_some()) {
            return;
        }
    }
    panic!("the vertex never started");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_builds_that_share_a_vertex_either_may_leave() {
    for first_leaves in [true, false] {
        let (daemon, site) = (Daemon::start(), Site::new());
        let hold = site.source.hold([Op::ManifestHead, Op::ManifestGet]);
        let (one, other) = (Client::connect(&daemon).await, Client::connect(&daemon).await);
        let first = one.start(site.push()).await;
        hold.reached().await;
        let second = other.start(site.push()).await;
        until_started(&other, &second, &site.state()).await;
        let (leaves, stays) = if first_leaves { (first, second) } else { (second, first) };
        let outcome = leaves.cancel_solve().await;
        assert_told_cancelled(&outcome, "the one that leaves");
        let asked = site.source.requests();
        assert_eq!(asked.len(), 1, "{}", site.source.story());
        assert!(!asked[0].ended, "the shared work went with the one that left: {}", site.source.story());
        hold.release();
        stays.finish().await.success();
        assert!(site.target.manifest("copy/base", "1").is_some());
        for layer in site.image.layer_digests() {
            assert_eq!(site.source.gets_of(layer), 1, "{}", site.source.story());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_last_of_two_leaves_their_shared_work_ends() {
    let (daemon, site) = (Daemon::start(), Site::new());
    let hold = site.source.hold([Op::ManifestHead, Op::ManifestGet]);
    let client = Client::connect(&daemon).await;
    let first = client.start(site.push()).await;
    hold.reached().await;
    let second = client.start(site.push()).await;
    until_started(&client, &second, &site.state()).await;
    first.cancel_solve().await;
    assert!(!site.source.requests()[0].ended, "{}", site.source.story());
    second.cancel_solve().await;
    prompt("to hang up", site.until_idle()).await;
    assert!(poll(PROMPT, || daemon.counter("content_fetches") == 0));
    assert_no_build_runs(&client, "both left").await;
}
