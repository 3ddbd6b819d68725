//! `kill -9`, and an error, at each durable step of unpacking, committing, keeping, syncing, packing and pruning.
//!
//! A daemon with one failpoint armed works through [`STEPS`] and kills itself at a hit of it. It is started again without
//! it and judged by what builds give, by what is cached, and by what is left when all is pruned.

use std::collections::BTreeSet;

use thunk::failpoint::Failpoint;
use tonic::Status;

use super::Site;
use super::is_cached;
use super::mounts_below;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::assert_nothing_left;
use crate::harness::llb;
use crate::harness::llb::State;

/// Hits of a failpoint at which the daemon is killed, as far as there are so many.
const HITS: [u32; 2] = [1, 4];

const NO_CHECKPOINT: &str = "--snapshot-sync-interval=24h";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Unpacks, runs, keeps, commits, packs.
    Push,
    /// Views, copies, merges.
    Merge,
    /// Everything goes that nobody uses.
    Prune,
}

const STEPS: [Step; 3] = [Step::Push, Step::Merge, Step::Prune];

macro_rules! tests {
    ($($name:ident = $failpoint:ident,)*) => {
        /// Those of the steps that a client asks for, and the two that happen behind: see the last two tests.
        const TESTED: &[Failpoint] =
            &[Failpoint::SnapshotsSynced, Failpoint::UnsyncedForgotten, $(Failpoint::$failpoint,)*];

        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            survives(Failpoint::$failpoint).await;
        })*
    };
}

tests! {
    survives_a_kill_after_a_snapshot_was_written = SnapshotWritten,
    survives_a_kill_after_a_snapshot_was_made = SnapshotMade,
    survives_a_kill_after_a_snapshot_was_finished = SnapshotFinished,
    survives_a_kill_after_a_snapshot_was_committed = SnapshotCommitted,
    survives_a_kill_after_a_snapshot_was_removed = SnapshotRemoved,
    survives_a_kill_after_a_kept_file_system_was_noted = KeptNoted,
    survives_a_kill_after_a_snapshot_was_noted = SnapshotNoted,
    survives_a_kill_after_a_layer_was_packed = LayerPacked,
    survives_a_kill_after_records_were_removed = RecordsRemoved,
    survives_a_kill_after_snapshots_were_forgotten = SnapshotsForgotten,
}

#[test]
fn every_failpoint_of_snapshots_and_states_has_a_test() {
    let names = |all: &[Failpoint]| all.iter().map(|at| at.name()).collect::<BTreeSet<_>>();
    assert_eq!(names(TESTED), &names(Failpoint::SNAPSHOTS) | &names(Failpoint::STATES));
}

fn kept(site: &Site) -> State {
    llb::sh(&site.base(), "echo kept > /kept")
}

fn push_kept(site: &Site) -> Build {
    Build::of(&kept(site)).push(&site.target.reference("copy", "kept"))
}

/// A daemon that has run a command, said so, and was killed. It does not run.
async fn daemon_with_something_kept(site: &Site, interval: &str) -> Daemon {
    let flags = vec![interval.to_owned()];
    let mut daemon = Daemon::start_with(DaemonOptions { flags, ..DaemonOptions::default() });
    Client::connect(&daemon).await.start(push_kept(site)).await.finish().await.success();
    daemon.kill9();
    daemon
}

async fn take(site: &Site, client: &Client, step: Step) -> Result<(), Status> {
    match step {
        Step::Push => client.try_start(site.push_made()).await?.finish().await.response.map(drop),
        Step::Merge => site.files_of_merged(client).await.map(drop),
        Step::Prune => client.prune_all().await.map(drop),
    }
}

/// Kills at each of [`HITS`] that there are, and judges what is left.
async fn survives(failpoint: Failpoint) {
    for nth in HITS {
        let Some(site) = Site::new() else { return };
        let at = format!("{failpoint}:{nth}=kill");
        let mut daemon = daemon_with_something_kept(&site, NO_CHECKPOINT).await;
        daemon.arm(&at);
        daemon.start_again();
        let client = Client::connect(&daemon).await;
        let mut done = Vec::new();
        let mut cut = None;
        for step in STEPS {
            match take(&site, &client, step).await {
                Ok(()) => done.push(step),
                Err(_) => {
                    cut = Some(step);
                    break;
                }
            }
        }
        let Some(cut) = cut else {
            assert!(nth > 1, "nothing that was done reaches {failpoint}");
            return;
        };
        daemon.wait_killed();
        daemon.start_again();
        judge(&mut daemon, &site, &done, cut == Step::Prune, &at).await;
    }
}

/// Holds a daemon after a crash to its word.
async fn judge(daemon: &mut Daemon, site: &Site, done: &[Step], pruned: bool, at: &str) {
    let client = Client::connect(daemon).await;
    let usage = client.usage().await;
    let ids: BTreeSet<&String> = usage.iter().map(|record| &record.id).collect();
    for record in &usage {
        assert!(
            record.parents.iter().all(|parent| ids.contains(parent)),
            "{at}: {record:?} hangs in the air"
        );
        assert!(!record.in_use, "{at}: {record:?}");
    }
    site.source.forget();
    let again = client.start(push_kept(site)).await.finish().await.success();
    if !pruned {
        assert!(is_cached(&again, &kept(site)), "{at}: what was acknowledged before runs again");
        for layer in site.base.layer_digests() {
            assert_eq!(site.source.gets_of(layer), 0, "{at}: {}", site.source.story());
        }
    }
    let again = client.start(site.push_made()).await.finish().await.success();
    if done.contains(&Step::Push) && !pruned {
        assert!(is_cached(&again, &site.ran()), "{at}: what was acknowledged runs again");
    }
    site.judge_results(&client, at).await;
    assert_nothing_left(daemon).await;
    // And from nothing.
    site.judge_results(&client, at).await;
    assert_nothing_left(daemon).await;
    daemon.terminate();
    assert_eq!(mounts_below(&daemon.root()), [""; 0], "{at}");
}

/// An error in place of the kill: one step may fail, with a typed error, and the daemon that lives on clears up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_at_a_durable_step_fails_one_build_at_most_and_leaves_nothing() {
    for failpoint in Failpoint::SNAPSHOTS.iter().chain(Failpoint::STATES) {
        let Some(site) = Site::new() else { return };
        let at = format!("{failpoint}=error");
        let mut daemon = daemon_with_something_kept(&site, "--snapshot-sync-interval=50ms").await;
        daemon.arm(&at);
        daemon.start_again();
        let client = Client::connect(&daemon).await;
        let mut failed = Vec::new();
        for step in STEPS {
            failed.extend(take(&site, &client, step).await.err());
        }
        assert!(failed.len() <= 1, "{at}: {failed:?}");
        for status in &failed {
            assert!(status.message().contains("was set to fail"), "{at}: {status:?}");
        }
        judge(&mut daemon, &site, &[], true, &at).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_kill_after_snapshots_were_synced() {
    let Some(site) = Site::new() else { return };
    let at = format!("{}=kill", Failpoint::SnapshotsSynced);
    let mut daemon = daemon_with_something_kept(&site, NO_CHECKPOINT).await;
    daemon.set_flags(&["--snapshot-sync-interval=1ms"]);
    daemon.arm(&at);
    // What the first run made is not synced: the checkpoint comes by itself.
    daemon.spawn();
    daemon.wait_killed();
    daemon.start_again();
    judge(&mut daemon, &site, &[], false, &at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_kill_after_what_an_earlier_boot_had_not_synced_was_forgotten() {
    let Some(site) = Site::new() else { return };
    let at = format!("{}=kill", Failpoint::UnsyncedForgotten);
    let mut daemon = daemon_with_something_kept(&site, NO_CHECKPOINT).await;
    daemon.reboot("another boot");
    daemon.arm(&at);
    daemon.spawn();
    daemon.wait_killed();
    daemon.start_again();
    judge(&mut daemon, &site, &[], true, &at).await;
}
