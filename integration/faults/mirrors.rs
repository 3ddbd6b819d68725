//! Origins that are gone, and mirrors of `buildkitd.toml` that are alive: before, and in mid-transfer.

use super::STALL;
use super::TRIES;
use super::impatient;
use super::matrix::SOURCE;
use super::matrix::TAG;
use crate::harness::Archive;
use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::client::Running;
use crate::harness::llb;
use crate::harness::verify_blobs;

const SIZE: u64 = 4 << 20;

/// An origin, a mirror that is asked first, and a daemon that knows of both.
struct Scene {
    daemon: Daemon,
    client: Client,
    origin: TestRegistry,
    mirror: TestRegistry,
    image: Image,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let (origin, mirror) = (TestRegistry::open(), TestRegistry::open());
        let image = Image::incompressible(seed, 1, SIZE);
        for registry in [&origin, &mirror] {
            registry.put_image(SOURCE, TAG, &image);
        }
        let config = format!("[registry.\"{}\"]\n  mirrors = [\"{}\"]\n", origin.host(), mirror.host());
        let daemon = Daemon::start_with(impatient(&config));
        let client = Client::connect(&daemon).await;
        Self { daemon, client, origin, mirror, image }
    }

    fn layer(&self) -> &str {
        self.image.layers[0].digest()
    }

    fn name(&self) -> String {
        self.origin.reference(SOURCE, TAG)
    }

    async fn start(&self) -> Running {
        let build = Build::of(&llb::image(self.name())).export("oci", &[]);
        self.client.start(build.attach(Attachables::default().files())).await
    }

    async fn build(&self) -> Outcome {
        self.start().await.finish().await
    }

    /// The archive came, and holds the image.
    #[track_caller]
    fn succeeds(&self, outcome: Outcome) {
        let outcome = outcome.success();
        let received = outcome.session.received(0).expect("an archive");
        assert!(received.whole);
        let archive = Archive::parse(&received.bytes);
        archive.verify();
        assert!(archive.has_blob(self.layer()));
        verify_blobs(&self.daemon.root());
    }

    /// Bytes of the layer that either of them sent.
    fn layer_bytes(&self) -> u64 {
        self.origin.bytes_of(self.layer()) + self.mirror.bytes_of(self.layer())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_the_origin_not_at_all() {
    let scene = Scene::new(0xfb_0001).await;
    scene.succeeds(scene.build().await);
    assert_eq!(scene.mirror.gets_of(scene.layer()), 1);
    assert!(scene.origin.requests().is_empty(), "{}", scene.origin.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_gone_is_not_missed_while_its_mirror_is_alive() {
    let scene = Scene::new(0xfb_0002).await;
    scene.origin.go_down();
    scene.succeeds(scene.build().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mirror_is_passed_over_for_its_origin() {
    let scene = Scene::new(0xfb_0003).await;
    scene.mirror.go_down();
    scene.succeeds(scene.build().await);
    assert_eq!(scene.origin.gets_of(scene.layer()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_lacks_or_refuses_or_damages_comes_from_the_origin() {
    let faults = [
        How::Status(401),
        How::Status(403),
        How::Status(404),
        How::Status(429),
        How::Status(500),
        How::Status(503),
        How::Reset,
        How::Stall,
        How::FlipByte(1000),
        How::WrongLength(1),
        How::WrongLength(-1),
        How::RedirectLoop,
        How::Garbage(b"a page that says how to log in"),
    ];
    for (n, how) in faults.into_iter().enumerate() {
        let scene = Scene::new(0xfb_0100 + n as u64).await;
        scene.mirror.fail(Op::BlobGet, how.clone());
        scene.succeeds(scene.build().await);
        let (at_mirror, at_origin) =
            (scene.mirror.count(Op::BlobGet.of(scene.layer())), scene.origin.gets_of(scene.layer()));
        let turns = if how == How::RedirectLoop { 11 } else { 1 };
        assert_eq!((at_mirror, at_origin), (turns, 1), "{how:?}: {}", scene.mirror.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_in_mid_transfer_is_followed_by_the_origin_at_the_same_byte() {
    let scene = Scene::new(0xfb_0004).await;
    let hold = scene.mirror.hold_after(Op::BlobGet.of(scene.layer()), SIZE / 2);
    let running = scene.start().await;
    hold.reached().await;
    scene.mirror.go_down();
    drop(hold);
    scene.succeeds(running.finish().await);
    let rest = scene.origin.at(Op::BlobGet.of(scene.layer()));
    assert_eq!(rest.len(), 1, "{}", scene.origin.story());
    assert!(rest[0].range.is_some(), "{}", scene.origin.story());
    assert!(scene.layer_bytes() < SIZE * 5 / 4, "{} bytes", scene.layer_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_in_mid_transfer_is_followed_by_a_mirror_that_came_back() {
    let scene = Scene::new(0xfb_0005).await;
    scene.mirror.go_down();
    let hold = scene.origin.hold_after(Op::BlobGet.of(scene.layer()), SIZE / 2);
    let running = scene.start().await;
    hold.reached().await;
    scene.mirror.come_back();
    scene.origin.go_down();
    drop(hold);
    scene.succeeds(running.finish().await);
    assert!(scene.layer_bytes() < SIZE * 5 / 4, "{} bytes", scene.layer_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_of_them_gone_the_error_names_the_image_and_what_was_asked() {
    let scene = Scene::new(0xfb_0006).await;
    scene.origin.go_down();
    scene.mirror.go_down();
    let outcome = scene.build().await;
    let message = outcome.failure().message();
    for part in [&scene.origin.host(), SOURCE, TAG] {
        assert!(message.contains(part), "{message}");
    }
    scene.origin.come_back();
    scene.succeeds(scene.build().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_to_the_registry_itself_whatever_mirrors_it_has() {
    let scene = Scene::new(0xfb_0007).await;
    let to = scene.origin.reference("team/target", "v1");
    let push = Build::of(&llb::image(scene.name())).push(&to);
    scene.client.start(push).await.finish().await.success();
    assert!(scene.origin.manifest("team/target", "v1").is_some());
    let writes = [Op::UploadStart, Op::UploadPut, Op::UploadPatch, Op::Mount, Op::ManifestPut];
    assert_eq!(scene.mirror.count(writes), 0, "{}", scene.mirror.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_costs_no_more_than_it_is_configured_to() {
    let scene = Scene::new(0xfb_0008).await;
    scene.mirror.go_down();
    scene.origin.fail(Op::BlobGet.of(scene.layer()), How::StallAfter(1000));
    let begun = std::time::Instant::now();
    let outcome = scene.build().await;
    let message = outcome.failure().message();
    assert!(message.contains(scene.layer()) && message.contains(SOURCE), "{message}");
    // Bytes that are lost are looked for once more by running the source again.
    let tries = scene.origin.count(Op::BlobGet.of(scene.layer()));
    assert!(tries <= TRIES * 2, "{}", scene.origin.story());
    let longest = STALL * u32::try_from(tries + 2).expect("a few");
    assert!(begun.elapsed() < longest, "{:?}", begun.elapsed());
    scene.origin.heal();
    scene.succeeds(scene.build().await);
}
