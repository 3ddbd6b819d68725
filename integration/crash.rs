//! D1: `kill -9` at any durable step of a fetch, a registration, a push or a deletion loses nothing that
//! was acknowledged, leaves nothing that looks whole and is not, and leaks nothing.
//!
//! A daemon with one failpoint armed works through [`STEPS`] and kills itself at the failpoint's first,
//! second, third, fifth ... hit. It is started again without the failpoint and judged by what lies in
//! its root, by what it says of itself, and by what it asks of the registries when all is done once more.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use thunk::failpoint::Failpoint;
use tonic::Status;

use crate::harness::Archive;
use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::verify_blobs;

/// Hits of a failpoint at which the daemon is killed, as far as there are so many.
const HITS: [u32; 8] = [1, 2, 3, 5, 8, 13, 21, 34];

/// Layers of each image, and their bytes together.
const LAYERS: u64 = 3;
const BYTES: u64 = 600 << 10;

/// What a client asks for, in this order. A crash ends the row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// A lazy image to another registry: registered, then streamed past the disk.
    Push,
    /// Another one as an archive: fetched.
    Archive,
    /// The lazy one with an annotation to a repository beside its own: mounted.
    Relabel,
    /// Everything goes that nobody uses.
    Prune,
}

const BUILDS: [Step; 3] = [Step::Push, Step::Archive, Step::Relabel];
const STEPS: [Step; 4] = [Step::Push, Step::Archive, Step::Relabel, Step::Prune];

macro_rules! tests {
    ($($name:ident = $failpoint:ident,)*) => {
        const TESTED: &[Failpoint] = &[$(Failpoint::$failpoint,)*];

        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            survives(Failpoint::$failpoint).await;
        })*
    };
}

tests! {
    survives_a_kill_after_a_partial_blob_was_made = IngestCreated,
    survives_a_kill_after_some_bytes_were_written = IngestWritten,
    survives_a_kill_after_a_whole_blob_was_synced = IngestSynced,
    survives_a_kill_after_a_blob_was_renamed = BlobRenamed,
    survives_a_kill_after_the_directory_of_a_blob_was_synced = BlobDirectorySynced,
    survives_a_kill_before_a_transaction_is_committed = TransactionBuilt,
    survives_a_kill_after_a_transaction_was_committed = TransactionCommitted,
    survives_a_kill_after_deletions_were_recorded = DeletionRecorded,
    survives_a_kill_after_a_blob_was_deleted = BlobDeleted,
    survives_a_kill_after_a_blob_was_pushed = BlobPushed,
    survives_a_kill_after_a_manifest_was_pushed = ManifestPushed,
}

#[test]
fn every_failpoint_of_blobs_has_a_test() {
    let names = |all: &[Failpoint]| all.iter().map(|at| at.name()).collect::<BTreeSet<_>>();
    assert_eq!(names(TESTED), names(Failpoint::BLOBS));
}

/// The same steps with an error in place of the kill: one of them may fail, with a typed error, and the
/// daemon that lives on is as good as new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_at_a_durable_step_fails_one_request_at_most_and_leaves_the_store_whole() {
    for (failpoint, nth) in Failpoint::BLOBS.iter().flat_map(|at| [(at, 1), (at, 5)]) {
        let at = format!("{failpoint}:{nth}=error");
        let site = Site::new();
        let mut daemon = site.daemon_with_something_kept().await;
        daemon.arm(&at);
        daemon.start_again();
        let client = Client::connect(&daemon).await;
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for step in STEPS {
            match site.take(&client, step).await {
                Ok(reference) => done.push(Done { step, reference }),
                Err(status) => failed.push((step, status)),
            }
        }
        // Later ones may hit the record of a build, which does not fail the build.
        let expected = if nth == 1 { 1..=1 } else { 0..=1 };
        assert!(expected.contains(&failed.len()), "{at}: {failed:?}");
        for (step, status) in &failed {
            assert!(status.message().contains("was set to fail"), "{at}: {step:?} failed with {status:?}");
        }
        judge(&mut daemon, &site, &Crash { at: &at, done: &done, pruned: true, recorded: false }).await;
    }
}

/// Kills at each of [`HITS`] that there are, and judges what is left.
async fn survives(failpoint: Failpoint) {
    for nth in HITS {
        let at = format!("{failpoint}:{nth}=kill");
        let site = Site::new();
        let mut daemon = site.daemon_with_something_kept().await;
        daemon.arm(&at);
        daemon.start_again();
        let (done, cut) = site.take_all(&daemon).await;
        let Some((step, _)) = cut else {
            assert!(nth > 1, "nothing that was done reaches {failpoint}");
            return;
        };
        daemon.wait_killed();
        daemon.start_again();
        let pruned = step == Step::Prune;
        judge(&mut daemon, &site, &Crash { at: &at, done: &done, pruned, recorded: true }).await;
    }
}

/// A step that was acknowledged.
struct Done {
    step: Step,
    /// Of the build; none for a prune.
    reference: Option<String>,
}

/// What happened before the judge came.
struct Crash<'a> {
    at: &'a str,
    done: &'a [Done],
    /// A prune had begun.
    pruned: bool,
    /// Acknowledged builds must have a record.
    recorded: bool,
}

impl Crash<'_> {
    fn has_done(&self, step: Step) -> bool {
        self.done.iter().any(|done| done.step == step)
    }
}

/// The registries around a daemon, and the images in them.
struct Site {
    source: TestRegistry,
    target: TestRegistry,
    kept: &'static Image,
    lazy: &'static Image,
    fetched: &'static Image,
}

impl Site {
    fn new() -> Site {
        static IMAGES: OnceLock<[Image; 3]> = OnceLock::new();
        let [kept, lazy, fetched] =
            IMAGES.get_or_init(|| [1, 2, 3].map(|n| Image::incompressible(0xc0 + n, LAYERS, BYTES)));
        let site = Site { source: TestRegistry::open(), target: TestRegistry::open(), kept, lazy, fetched };
        for (name, image) in [("team/kept", kept), ("team/lazy", lazy), ("team/fetched", fetched)] {
            site.source.put_image(name, "1", image);
        }
        site
    }

    /// A daemon that was killed after it had pushed an image and said so. It does not run.
    async fn daemon_with_something_kept(&self) -> Daemon {
        let mut daemon = Daemon::prepare(DaemonOptions::default());
        daemon.start_again();
        self.push_kept(&Client::connect(&daemon).await).await;
        daemon.kill9();
        daemon
    }

    async fn push_kept(&self, client: &Client) {
        let build = Build::of(&self.state("team/kept")).push(&self.target.reference("copy/kept", "1"));
        client.start(build).await.finish().await.success();
    }

    fn state(&self, repository: &str) -> State {
        llb::image(self.source.reference(repository, "1"))
    }

    fn source_of(&self, step: Step) -> State {
        match step {
            Step::Archive => self.state("team/fetched"),
            _ => self.state("team/lazy"),
        }
    }

    fn build(&self, step: Step) -> Build {
        let build = Build::of(&self.source_of(step));
        match step {
            Step::Push => build.push(&self.target.reference("copy/lazy", "1")),
            Step::Archive => build.export("oci", &[]).attach(Attachables::default().files()),
            Step::Relabel => {
                let name = self.source.reference("team/app", "1");
                let label = ("annotation.org.example.label", "new");
                build.export("image", &[("name", name.as_str()), ("push", "true"), label])
            }
            Step::Prune => unreachable!("a prune builds nothing"),
        }
    }

    /// One step. Returns the ref of its build.
    async fn take(&self, client: &Client, step: Step) -> Result<Option<String>, Status> {
        if step == Step::Prune {
            return client.prune_all().await.map(|_| None);
        }
        let outcome = client.try_start(self.build(step)).await?.finish().await;
        if step == Step::Archive && outcome.response.is_ok() {
            self.verify_archive(&outcome);
        }
        outcome.response.map(|_| Some(outcome.reference))
    }

    /// All steps up to the one that failed.
    async fn take_all(&self, daemon: &Daemon) -> (Vec<Done>, Option<(Step, Status)>) {
        let client = Client::connect(daemon).await;
        let mut done = Vec::new();
        for step in STEPS {
            match self.take(&client, step).await {
                Ok(reference) => done.push(Done { step, reference }),
                Err(status) => return (done, Some((step, status))),
            }
        }
        (done, None)
    }

    fn verify_archive(&self, outcome: &Outcome) {
        let received = outcome.session.received(0).expect("an archive");
        assert!(received.whole);
        let archive = Archive::parse(&received.bytes);
        archive.verify();
        assert!(self.fetched.layer_digests().into_iter().all(|layer| archive.has_blob(layer)));
    }

    /// Where a step pushed to.
    fn pushed(&self, step: Step) -> Option<(&TestRegistry, &'static str)> {
        match step {
            Step::Push => Some((&self.target, "copy/lazy")),
            Step::Relabel => Some((&self.source, "team/app")),
            Step::Archive | Step::Prune => None,
        }
    }

    /// The sizes of all that is fetched, by digest.
    fn sizes(&self) -> BTreeMap<String, u64> {
        let images = [self.kept, self.lazy, self.fetched];
        let blobs = images.iter().flat_map(|image| image.blobs()).map(|(digest, blob)| (digest, blob.len()));
        let manifests = images.iter().map(|image| (image.digest().to_owned(), image.descriptor.size));
        blobs.chain(manifests).collect()
    }
}

/// Holds a daemon after a crash to its word.
async fn judge(daemon: &mut Daemon, site: &Site, crash: &Crash<'_>) {
    let at = crash.at;
    let root = daemon.root();
    let client = Client::connect(daemon).await;

    // It listens before its stores are open, and answers when what was interrupted is finished.
    let history: BTreeSet<String> = client.history().await.into_iter().map(|record| record.r#ref).collect();

    // Nothing looks whole and is not, and what is half done is known and of use.
    let whole: BTreeSet<String> = verify_blobs(&root).into_iter().collect();
    let partial = partial_blobs(&root);
    for (name, size) in &partial {
        let known = site.sizes().get(name).copied();
        let known = known.unwrap_or_else(|| panic!("{at}: {name} of {size} bytes is left in ingest"));
        assert!(*size <= known, "{at}: {name} has too many bytes");
    }

    // What was acknowledged is there.
    for done in crash.done {
        let recorded = done.reference.as_ref().is_none_or(|reference| history.contains(reference));
        assert!(recorded || !crash.recorded, "{at}: the record of {:?} is lost", done.step);
        if let Some((registry, repository)) = site.pushed(done.step) {
            assert!(registry.manifest(repository, "1").is_some(), "{at}: {:?} is not there", done.step);
        }
    }
    judge_usage(&client, site, crash, &whole).await;
    judge_repetition(&client, site, crash, &whole, &partial).await;
    judge_leaks(&client, &root, at).await;
    daemon.terminate();
    verify_blobs(&root);
}

/// Every record stands on records, and the bytes of all of them are those on disk.
async fn judge_usage(client: &Client, site: &Site, crash: &Crash<'_>, whole: &BTreeSet<String>) {
    let at = crash.at;
    let usage = client.usage().await;
    let ids: BTreeSet<&String> = usage.iter().map(|record| &record.id).collect();
    assert_eq!(ids.len(), usage.len(), "{at}: a record is listed twice");
    for record in &usage {
        assert!(
            record.parents.iter().all(|parent| ids.contains(parent)),
            "{at}: {record:?} hangs in the air"
        );
        assert!(!record.in_use, "{at}: {record:?}");
    }
    let images = [site.kept, site.lazy, site.fetched];
    let layers = images.iter().flat_map(|image| &image.layers);
    let on_disk: u64 = layers.filter(|layer| whole.contains(layer.digest())).map(|layer| layer.size()).sum();
    let told: u64 = usage.iter().map(|record| u64::try_from(record.size).expect("a size")).sum();
    if crash.pruned {
        // Records go first; the blobs of those that are gone wait for the next prune.
        assert!(told <= on_disk, "{at}: {told} bytes told, {on_disk} on disk");
    } else {
        assert_eq!(told, on_disk, "{at}: {usage:#?}");
    }
}

/// The same builds once more succeed, find what was done, and fetch only the rest.
async fn judge_repetition(
    client: &Client,
    site: &Site,
    crash: &Crash<'_>,
    whole: &BTreeSet<String>,
    partial: &BTreeMap<String, u64>,
) {
    let at = crash.at;
    site.source.forget();
    site.target.forget();
    site.push_kept(client).await;
    for layer in site.kept.layer_digests() {
        assert_eq!(site.source.gets_of(layer), 0, "{at}: {}", site.source.story());
    }
    assert_eq!(site.target.uploads(), 0, "{at}: {}", site.target.story());
    for step in BUILDS {
        site.target.forget();
        let outcome = client.start(site.build(step)).await.finish().await.success();
        if crash.has_done(step) && !crash.pruned {
            let state = site.source_of(step);
            let vertex = outcome.vertex(state.digest());
            assert!(vertex.iter().any(|v| v.cached), "{at}: {step:?} is not cached: {vertex:?}");
        }
        match step {
            Step::Push if crash.has_done(step) => {
                for layer in site.lazy.layer_digests() {
                    assert_eq!(site.source.gets_of(layer), 0, "{at}: {}", site.source.story());
                }
                assert_eq!(site.target.uploads(), 0, "{at}: {}", site.target.story());
            }
            Step::Push => {
                for layer in site.lazy.layer_digests() {
                    assert!(site.source.gets_of(layer) <= 1, "{at}: {}", site.source.story());
                    assert!(site.target.has_blob("copy/lazy", layer), "{at}: {}", site.target.story());
                }
            }
            Step::Archive => {
                site.verify_archive(&outcome);
                for layer in &site.fetched.layers {
                    let digest = layer.digest();
                    let had = if whole.contains(digest) {
                        layer.size()
                    } else {
                        partial.get(digest).copied().unwrap_or(0)
                    };
                    let got = site.source.bytes_of(digest);
                    assert_eq!(got, layer.size() - had, "{at}: {digest}\n{}", site.source.story());
                }
            }
            Step::Relabel => {
                let story = || site.source.story();
                for layer in site.lazy.layer_digests() {
                    assert!(site.source.has_blob("team/app", layer), "{at}: {}", story());
                }
                let sent: u64 = site.source.at(Op::UPLOADS).iter().map(|request| request.bytes_in).sum();
                assert!(
                    sent < BYTES / LAYERS,
                    "{at}: {sent} bytes were sent in place of mounts: {}",
                    story()
                );
            }
            Step::Prune => unreachable!("not a build"),
        }
    }
}

/// With the cache and the history empty, nothing is left on disk, whatever has a name.
async fn judge_leaks(client: &Client, root: &Path, at: &str) {
    client.prune_all().await.expect("prune");
    let left = client.usage().await;
    assert!(left.is_empty(), "{at}: {left:#?}");
    for record in client.history().await {
        client.forget_build(&record.r#ref).await;
    }
    client.prune_all().await.expect("prune");
    let blobs: BTreeSet<String> = verify_blobs(root).into_iter().collect();
    assert_eq!(blobs, BTreeSet::new(), "{at}");
    assert_eq!(partial_blobs(root), BTreeMap::new(), "{at}");
}

/// What lies in the store's directory of unfinished blobs: sizes by digest, or by name if it is no digest.
fn partial_blobs(root: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(root.join("content/ingest")).expect("the ingest directory");
    let entries = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().replacen("sha256-", "sha256:", 1);
        (name, entry.metadata().expect("metadata").len())
    });
    entries.collect()
}
