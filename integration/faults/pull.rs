//! Faults while an image is resolved and its blobs come.
//!
//! The exporter fetches what it needs. Bytes that can't be had are given up at once where no other
//! record of the result has others: a layer is asked for as often as anything else.

use super::TRIES;
use super::matrix::End;
use super::matrix::End::Either;
use super::matrix::End::Fails;
use super::matrix::End::Passes;
use super::matrix::Line;
use super::matrix::Scene;
use super::matrix::Spot;
use super::matrix::Work;
use super::matrix::run;
use super::matrix::with;
use super::matrix::with_all;
use crate::harness::How;
use crate::harness::Op;

const GARBAGE: How = How::Garbage(b"a page that says how to log in");

/// The client's redirects, and the request itself.
const TURNS: usize = 11;

/// What a GET can meet.
fn lines() -> Vec<Line> {
    let line = |how, once: End, always: End| Line { how, once, always };
    let final_ones = [How::Status(403), How::Status(404)];
    let passing = [
        How::Status(429),
        How::RetryAfter { status: 429, seconds: 1 },
        How::Status(500),
        How::Status(503),
        How::Reset,
        How::ResetAfter(100),
        How::Stall,
        How::StallAfter(100),
        How::Truncate(100),
        How::FlipByte(120),
        How::WrongLength(1),
        How::WrongLength(-1),
        GARBAGE,
        How::LoseReply,
    ];
    let long = How::RetryAfter { status: 429, seconds: 60 };
    let mut lines: Vec<_> = final_ones.into_iter().map(|how| line(how, Fails(1), Fails(1))).collect();
    // A token for what is said to be missing is asked for once.
    lines.push(line(How::Status(401), Passes(2), Fails(2)));
    lines.extend(passing.into_iter().map(|how| line(how, Passes(2), Fails(TRIES))));
    lines.push(line(long, Fails(1), Fails(1)));
    lines.push(line(How::RedirectLoop, Passes(2), Fails(TURNS)));
    lines.push(line(How::WrongDigest, Passes(1), Passes(1)));
    lines
}

/// A token server is asked in another form before it is given up, and its answer has no digest.
fn token() -> Vec<Line> {
    let lines = with(lines(), How::Status(401), Passes(2), Fails(2));
    let lines = with(lines, How::Status(404), Passes(2), Fails(2));
    // Within the token, where nobody looks.
    let lines = with(lines, How::FlipByte(120), Either(TRIES), Either(TRIES));
    // The redirected request has lost its scope.
    with(lines, How::RedirectLoop, Either(3), Fails(TURNS))
}

/// A HEAD without a body, after which a GET looks again. The first is answered with a challenge.
fn tag() -> Vec<Line> {
    let bodies =
        [How::ResetAfter(100), How::StallAfter(100), How::Truncate(100), How::FlipByte(120), GARBAGE];
    let lines = with_all(lines(), bodies, Passes(2), Passes(2));
    let lines = with(lines, How::Status(401), Passes(2), Fails(2));
    let lengths = [How::WrongLength(1), How::WrongLength(-1), How::WrongDigest];
    let lines = with_all(lines, lengths, Passes(2), Fails(2));
    lines
        .into_iter()
        .map(|line| Line { once: one_more(line.once), always: one_more(line.always), ..line })
        .collect()
}

fn one_more(end: End) -> End {
    match end {
        Passes(most) => Passes(most + 1),
        Fails(most) => Fails(most + 1),
        Either(most) => Either(most + 1),
    }
}

/// After a first request that broke off: what is here stays, and only the rest is asked for.
fn rest() -> Vec<Line> {
    let lines: Vec<_> = lines()
        .into_iter()
        .map(|line| Line { once: one_more(line.once), always: one_more(line.always), ..line })
        .collect();
    let lines = with(lines, How::FlipByte(120), Passes(2), Passes(2));
    // Whose bytes were damaged is not known until all come from one.
    let lines = with(lines, How::FlipByte(40_000), Passes(3), Fails(TRIES + 1));
    with_all(lines, [How::IgnoreRange, How::WrongContentRange], Passes(3), Passes(3))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_pull_ends_in_success_or_in_an_error_that_names_the_place() {
    let tag_of = |_: &Scene| ":v1".to_owned();
    let manifest = |scene: &Scene| scene.image.digest().to_owned();
    let layer = |scene: &Scene| scene.layer().to_owned();
    let config = |scene: &Scene| scene.config().to_owned();
    let spot = |name, point, subject| Spot { name, work: Work::Archive, point, after: None, subject };
    let of_layer = spot("layer", |s| Op::BlobGet.of(s.layer()), layer);
    let rest_of_layer = Spot {
        name: "rest of a layer",
        after: Some(How::Truncate(30_000)),
        ..spot("", |s| Op::BlobGet.of(s.layer()), layer)
    };
    run(vec![
        (of_layer, lines()),
        (rest_of_layer, rest()),
        (spot("token", |_| Op::Token.into(), tag_of), token()),
        (spot("tag", |_| Op::ManifestHead.into(), tag_of), tag()),
        (spot("manifest", |_| Op::ManifestGet.into(), manifest), lines()),
        (spot("config", |s| Op::BlobGet.of(s.config()), config), lines()),
    ])
    .await;
}
