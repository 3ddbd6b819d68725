//! One case of the matrix, from the fault to the build that succeeds without it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use futures::stream;
use serde_json::Value;

use super::impatient;
use crate::harness::Archive;
use crate::harness::Attachables;
use crate::harness::Auth;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::client::Received;
use crate::harness::llb;
use crate::harness::registry::Point;
use crate::harness::sha256;
use crate::harness::verify_blobs;

pub const SOURCE: &str = "team/source";
pub const TARGET: &str = "team/target";
pub const TAG: &str = "v1";

/// Bytes of the one layer of the images here.
const LAYER: u64 = 60 << 10;

/// Cases at the same time: their waits are the longest part.
const AT_ONCE: usize = 24;

/// How the build of a case ends, after so many requests at most to the point of the fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Passes(usize),
    Fails(usize),
    /// It depends on what is faster.
    Either(usize),
}

impl End {
    fn allows(self, passed: bool, asked: usize) -> bool {
        match self {
            End::Passes(most) => passed && asked <= most,
            End::Fails(most) => !passed && asked <= most,
            End::Either(most) => asked <= most,
        }
    }
}

/// What a build does with its image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// An archive for the client.
    Archive,
    /// To another registry, which has the faults.
    Push,
    /// The same, from a registry that has the faults.
    Through,
    /// To another repository of the same registry.
    Mount,
}

/// A line of a table: what goes wrong, and how that ends if it happens once or always.
#[derive(Clone, Debug)]
pub struct Line {
    pub how: How,
    pub once: End,
    pub always: End,
}

/// The table with another line for `how`.
pub fn with(mut lines: Vec<Line>, how: How, once: End, always: End) -> Vec<Line> {
    lines.retain(|line| line.how != how);
    lines.push(Line { how, once, always });
    lines
}

/// The same for several that end alike.
pub fn with_all<const N: usize>(lines: Vec<Line>, all: [How; N], once: End, always: End) -> Vec<Line> {
    all.into_iter().fold(lines, |lines, how| with(lines, how, once, always))
}

/// What is told of a fault at a point: which requests, and how an error names them.
pub struct Spot {
    pub name: &'static str,
    pub work: Work,
    pub point: fn(&Scene) -> Point,
    /// What goes wrong before, at the first request of the point: the fault is met by those after it.
    pub after: Option<How>,
    /// What an error must say besides host and repository.
    pub subject: fn(&Scene) -> String,
}

/// The registries and the image of one case; no other case has one of its blobs.
pub struct Scene {
    pub work: Work,
    pub from: TestRegistry,
    pub to: TestRegistry,
    pub image: Image,
}

impl Scene {
    fn new(work: Work) -> Self {
        static SEED: AtomicU64 = AtomicU64::new(0xfa_0000);
        let image = Image::incompressible(SEED.fetch_add(1, Ordering::Relaxed), 1, LAYER);
        let (from, to) = (guarded(), guarded());
        from.put_image(SOURCE, TAG, &image);
        Self { work, from, to, image }
    }

    pub fn layer(&self) -> &str {
        self.image.layers[0].digest()
    }

    pub fn config(&self) -> &str {
        &self.image.config_descriptor.as_ref().expect("an image has a config").digest
    }

    /// The registry that has the faults.
    pub fn faulty(&self) -> &TestRegistry {
        if self.work == Work::Push { &self.to } else { &self.from }
    }

    /// The registry that is pushed to.
    fn target(&self) -> &TestRegistry {
        if self.work == Work::Mount { &self.from } else { &self.to }
    }

    async fn build(&self, client: &Client) -> Outcome {
        let attach = [&self.from, &self.to].into_iter().fold(Attachables::default().files(), |attach, r| {
            attach.login(&r.host(), "alice", "open sesame")
        });
        let build = Build::of(&llb::image(self.from.reference(SOURCE, TAG)));
        let build = match self.work {
            Work::Archive => build.export("oci", &[]),
            Work::Push | Work::Through | Work::Mount => build.push(&self.target().reference(TARGET, TAG)),
        };
        client.start(build.attach(attach)).await.finish().await
    }

    /// What is wrong with what a build that succeeded has made.
    fn fault_of_product(&self, outcome: &Outcome) -> Option<&'static str> {
        match self.work {
            Work::Archive => {
                let received = outcome.session.received(0).filter(Received::is_archive);
                let Some(received) = received else { return Some("there is no archive") };
                let archive = Archive::parse(&received.bytes);
                archive.verify();
                (!archive.has_blob(self.layer())).then_some("the archive has no layer")
            }
            Work::Push | Work::Through | Work::Mount => {
                let Some(stored) = self.target().manifest(TARGET, TAG) else {
                    return Some("there is no manifest");
                };
                let whole = stored.digest == outcome.exported("containerimage.digest")
                    && stored.json()["layers"][0]["digest"] == self.layer();
                (!whole).then_some("the manifest is another")
            }
        }
    }

    /// What must not be seen of a build that failed.
    fn fault_of_leavings(&self, outcome: &Outcome) -> Option<&'static str> {
        let archive = outcome.session.received(0).is_some_and(|received| received.is_archive());
        (self.work == Work::Archive && archive).then_some("the archive came nevertheless")
    }

    /// What is at the target is what it says, and below a manifest nothing is missing.
    fn check_target(&self) {
        let registry = self.target();
        for (digest, _) in self.image.blobs() {
            let blob = registry.blob(TARGET, &digest);
            assert!(blob.is_none_or(|blob| sha256(blob.to_bytes()) == digest), "{digest} is damaged");
        }
        for tag in registry.tags(TARGET) {
            let manifest = registry.manifest(TARGET, &tag).expect("a tag has a manifest");
            assert_eq!(sha256(&manifest.bytes), manifest.digest);
            let manifest: Value = manifest.json();
            let layers = manifest["layers"].as_array().expect("layers").iter();
            for below in layers.chain([&manifest["config"]]) {
                let digest = below["digest"].as_str().expect("a digest");
                let bytes = registry.blob(TARGET, digest).expect("what a manifest names").to_bytes();
                assert_eq!(sha256(&bytes), digest);
                assert_eq!(below["size"], bytes.len());
            }
        }
    }
}

/// A registry where only `alice` may do anything.
pub fn guarded() -> TestRegistry {
    let registry = TestRegistry::start(Options { auth: Auth::Bearer, ..Options::default() });
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Push);
    registry
}

/// Runs every line of each table at its spot, once and always, and panics with all that did not end
/// as they should.
pub async fn run(tables: Vec<(Spot, Vec<Line>)>) {
    let daemon = Daemon::start_with(impatient(""));
    let client = Client::connect(&daemon).await;
    let cases = tables.iter().flat_map(|(spot, lines)| {
        let ways = lines.iter().flat_map(|line| [(line, false, line.once), (line, true, line.always)]);
        ways.map(move |(line, always, end)| (spot, line.how.clone(), always, end))
    });
    let runs = cases.map(|(spot, how, always, end)| case(&daemon, &client, spot, how, always, end));
    let failed: Vec<String> =
        stream::iter(runs).buffer_unordered(AT_ONCE).filter_map(async |f| f).collect().await;
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
}

async fn case(
    daemon: &Daemon,
    client: &Client,
    spot: &Spot,
    how: How,
    always: bool,
    end: End,
) -> Option<String> {
    let scene = Scene::new(spot.work);
    let registry = scene.faulty();
    let point = (spot.point)(&scene);
    if let Some(before) = &spot.after {
        registry.fail(point.clone().once(), before.clone());
    }
    let fault = registry.fail(if always { point.clone() } else { point.clone().once() }, how.clone());
    let outcome = scene.build(client).await;
    let asked = registry.count(point);
    let (passed, message) = match &outcome.response {
        Ok(_) => (true, String::new()),
        Err(status) => (false, format!("{:?}: {}", status.code(), status.message())),
    };
    let mut wrong = Vec::new();
    if !end.allows(passed, asked) {
        let seen = if passed { End::Passes(asked) } else { End::Fails(asked) };
        wrong.push(format!("it ended as {seen:?} instead of {end:?}"));
    }
    if fault.fired() == 0 {
        wrong.push("the fault was not met".to_owned());
    }
    if passed {
        wrong.extend(scene.fault_of_product(&outcome).map(str::to_owned));
    } else {
        wrong.extend(scene.fault_of_leavings(&outcome).map(str::to_owned));
        let subject = (spot.subject)(&scene);
        for part in [registry.host().as_str(), "team/", &subject] {
            if !message.contains(part) {
                wrong.push(format!("the error does not name {part}"));
            }
        }
        if message.contains("open sesame") || message.contains("token-") {
            wrong.push("the error tells a secret".to_owned());
        }
    }
    let story = registry.story();
    verify_blobs(&daemon.root());
    scene.check_target();
    registry.heal();
    let healed = scene.build(client).await;
    match &healed.response {
        Ok(_) => wrong.extend(scene.fault_of_product(&healed).map(str::to_owned)),
        Err(status) => wrong.push(format!("without the fault it fails with {status:?}")),
    }
    scene.check_target();
    let case = format!("{} {how:?} {}", spot.name, if always { "always" } else { "once" });
    (!wrong.is_empty()).then(|| format!("{case}: {}\n  {message}\n{story}", wrong.join("; ")))
}
