//! Faults while an image is pushed.

use super::TRIES;
use super::impatient;
use super::matrix::End;
use super::matrix::End::Either;
use super::matrix::End::Fails;
use super::matrix::End::Passes;
use super::matrix::Line;
use super::matrix::SOURCE;
use super::matrix::Scene;
use super::matrix::Spot;
use super::matrix::TAG;
use super::matrix::TARGET;
use super::matrix::Work;
use super::matrix::run;
use super::matrix::with;
use super::matrix::with_all;
use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::llb;

/// The client's redirects, and the request itself.
const TURNS: usize = 11;

/// Faults of a body, of which some requests and replies have none.
const OF_BODIES: [How; 3] = [How::ResetAfter(100), How::StallAfter(100), How::Truncate(100)];

/// Faults of a reply's head that say nothing to a push.
const OF_HEADS: [How; 2] = [How::WrongDigest, How::WrongLength(1)];

/// What a request of a push can meet. It is sent for so many `blobs` at a time.
fn lines(blobs: usize) -> Vec<Line> {
    let line = |how, once: End, always: End| Line { how, once, always };
    let refusals = [How::Status(403), How::Status(404), How::Status(405), How::EarlyStatus(403)];
    let passing = [
        How::Status(429),
        How::RetryAfter { status: 429, seconds: 1 },
        How::Status(500),
        How::Status(503),
        How::EarlyStatus(500),
        How::Reset,
        How::Stall,
        How::LoseReply,
    ];
    let mut lines: Vec<_> = refusals.into_iter().map(|how| line(how, Fails(blobs), Fails(blobs))).collect();
    // A token for what is said to be missing is asked for once.
    lines.push(line(How::Status(401), Passes(blobs + 1), Fails(blobs * 2)));
    let passing = passing.into_iter().chain(OF_BODIES);
    lines.extend(passing.map(|how| line(how, Passes(blobs + 1), Fails(blobs * TRIES))));
    lines.push(line(How::RedirectLoop, Passes(blobs + 1), Fails(blobs * TURNS)));
    lines.extend(OF_HEADS.map(|how| line(how, Passes(blobs), Passes(blobs))));
    lines
}

fn token() -> Vec<Line> {
    let others = [How::Status(401), How::Status(404), How::Status(405)];
    let lines = with_all(lines(1), others, Passes(2), Fails(2));
    let lines = with(lines, How::WrongLength(1), Passes(2), Fails(TRIES));
    // The redirected request has lost its scope.
    with(lines, How::RedirectLoop, Either(3), Fails(TURNS))
}

/// Whether a blob is there: those who are not told may still send it.
fn look_up() -> Vec<Line> {
    let refusals = [How::Status(403), How::Status(404), How::Status(405), How::EarlyStatus(403)];
    let lines = with_all(lines(1), refusals, Passes(1), Passes(1));
    let lines = with(lines, How::Status(501), Passes(1), Passes(1));
    let lines = with(lines, How::Status(401), Passes(2), Passes(2));
    with_all(lines, OF_BODIES, Passes(1), Passes(1))
}

fn start() -> Vec<Line> {
    let lines = with_all(lines(2), OF_BODIES, Passes(2), Passes(2));
    with(lines, How::WrongLength(1), Passes(3), Fails(2 * TRIES))
}

fn upload() -> Vec<Line> {
    let lines = with(lines(1), How::Status(404), Passes(2), Fails(TRIES));
    // The blob is found there before it is sent again.
    let lines = with(lines, How::LoseReply, Passes(1), Passes(1));
    // The connection may break before the answer is read.
    let lines = with(lines, How::EarlyStatus(403), Either(2), Either(TRIES));
    with(lines, How::RedirectLoop, Passes(2), Fails(TURNS))
}

/// What the tag stands for: who is not told may still set it. The first look is answered with a challenge.
fn tag() -> Vec<Line> {
    let mut all = with_all(lines(1), OF_BODIES, Passes(1), Passes(1));
    let silent = [403, 404, 405, 501].map(How::Status);
    all = with_all(all, silent, Passes(1), Passes(1));
    all = with(all, How::EarlyStatus(403), Passes(1), Passes(1));
    all = with(all, How::Status(401), Passes(1), Passes(2));
    let more = |end| match end {
        Passes(most) => Passes(most + 1),
        Fails(most) => Fails(most + 1),
        Either(most) => Either(most + 1),
    };
    all.into_iter().map(|l| Line { once: more(l.once), always: more(l.always), ..l }).collect()
}

fn manifest() -> Vec<Line> {
    // It is sent again, and is there already.
    let lines = with(lines(1), How::LoseReply, Passes(2), Either(TRIES));
    let lines = with(lines, How::WrongLength(1), Passes(2), Either(TRIES));
    // What was put is not what the registry says that it took.
    with(lines, How::WrongDigest, Passes(2), Fails(TRIES))
}

/// Whatever a registry answers to a mount, or does not answer, the blob can be uploaded.
fn mount() -> Vec<Line> {
    let lines = lines(1).into_iter().map(|l| Line { once: Passes(3), always: Passes(TURNS), ..l }).collect();
    let limited = [How::Status(429), How::RetryAfter { status: 429, seconds: 1 }];
    let lines = with_all(lines, limited, Passes(2), Passes(TRIES));
    let lines = with_all(lines, [How::LoseReply, How::Reset], Passes(2), Passes(TRIES));
    // Silence costs more time than bytes.
    with(lines, How::Stall, Passes(1), Passes(1))
}

/// The bytes of a layer on their way through, from another registry.
fn source() -> Vec<Line> {
    let lines = lines(1);
    let lines = with(lines, How::Status(405), Fails(1), Fails(1));
    let lines = with_all(lines, [How::FlipByte(120), How::WrongLength(1)], Passes(2), Fails(2 * TRIES));
    with(lines, How::WrongDigest, Passes(1), Passes(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_push_ends_in_success_or_in_an_error_that_names_the_place() {
    let tag_of = |_: &Scene| ":v1".to_owned();
    let any = |_: &Scene| "@sha256:".to_owned();
    let layer = |scene: &Scene| scene.layer().to_owned();
    let spot = |name, point, subject| Spot { name, work: Work::Push, point, after: None, subject };
    run(vec![
        (spot("upload", |s| Op::UploadPut.of(s.layer()), layer), upload()),
        (Spot { work: Work::Mount, ..spot("mount", |s| Op::Mount.of(s.layer()), layer) }, mount()),
        (Spot { work: Work::Through, ..spot("source", |s| Op::BlobGet.of(s.layer()), layer) }, source()),
        (spot("token", |_| Op::Token.into(), tag_of), token()),
        (spot("look-up", |s| Op::BlobHead.of(s.layer()), layer), look_up()),
        (spot("start", |_| Op::UploadStart.into(), any), start()),
        (spot("tag", |_| Op::ManifestHead.into(), tag_of), tag()),
        (spot("manifest", |_| Op::ManifestPut.into(), tag_of), manifest()),
    ])
    .await;
}

/// The root manifest was looked up by its digest as well, which the look-ups of its blobs, side by side,
/// make up for.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_a_fault_asks_for_each_thing_once() {
    let daemon = Daemon::start_with(impatient(""));
    let client = Client::connect(&daemon).await;
    let (from, to) = (TestRegistry::open(), TestRegistry::open());
    let image = Image::incompressible(0xfa_f000, 3, 3 * (20 << 10));
    from.put_image(SOURCE, TAG, &image);
    let ops = [
        Op::ManifestHead,
        Op::BlobHead,
        Op::Mount,
        Op::UploadStart,
        Op::UploadPut,
        Op::ManifestPut,
        Op::Token,
    ];
    let push = async |tag: &str| {
        to.forget();
        let build = Build::of(&llb::image(from.reference(SOURCE, TAG))).push(&to.reference(TARGET, tag));
        client.start(build.attach(Attachables::default())).await.finish().await.success();
        ops.map(|op| to.count(op))
    };
    let blobs = image.layers.len() + 1;
    assert_eq!(push("v1").await, [1, blobs, 0, blobs, blobs, 1, 0], "{}", to.story());
    assert_eq!(push("v1").await, [1, 0, 0, 0, 0, 0, 0], "it is there: {}", to.story());
    assert_eq!(push("v2").await, [1, blobs, 0, 0, 0, 1, 0], "a retag: {}", to.story());
}
