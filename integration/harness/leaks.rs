//! The leak oracle: once nobody needs anything, a daemon has nothing left.
//!
//! Every [`Daemon`] is asked when it is dropped by a test that passed, so a test need not ask; one that asks in its
//! midst does so because it goes on.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::buildctl::Buildctl;
use super::client::Client;
use super::daemon::Daemon;

/// What goes behind a reply is gone within this time, which is the disk's.
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);

/// Forgets all builds and prunes everything, and waits until nothing is left of them: no record, no snapshot, no mount
/// below the root, no sandbox or network of a step, no blob nor a part of one.
/// Panics with what stays.
pub async fn assert_nothing_left(daemon: &Daemon) {
    let left = what_is_left(daemon).await;
    assert!(left.is_empty(), "left: {left:#?}");
}

/// The same for where nothing is awaited: on a thread and a runtime of its own. Tells what stays.
pub fn left_of(daemon: &Daemon) -> Vec<String> {
    let look = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(what_is_left(daemon))
    };
    std::thread::scope(|scope| {
        scope.spawn(look).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn what_is_left(daemon: &Daemon) -> Vec<String> {
    let client = Client::connect(daemon).await;
    let begun = Instant::now();
    loop {
        let mut left = left_in_client(&client).await;
        if left.is_empty() {
            left = left_on_disk(daemon);
        }
        if left.is_empty() || begun.elapsed() > LIMIT {
            return left;
        }
        tokio::time::sleep(STEP).await;
    }
}

async fn left_in_client(client: &Client) -> Vec<String> {
    let active = client.active_builds().await;
    if !active.is_empty() {
        return active.iter().map(|build| format!("{build} runs")).collect();
    }
    for record in client.history().await {
        client.forget_build(&record.r#ref).await;
    }
    client.prune_all().await.expect("prune");
    let usage = client.usage().await;
    usage
        .iter()
        .map(|record| format!("record {} {:?} in use: {}", record.id, record.description, record.in_use))
        .collect()
}

/// All that the snapshotter of a daemon has on its disk.
pub fn snapshots(daemon: &Daemon) -> Vec<String> {
    let root = daemon.root().join("snapshots");
    let kinds = names(&root);
    assert!(!kinds.is_empty(), "no snapshotter has a directory here");
    let mut found = Vec::new();
    for kind in kinds.iter().map(|kind| root.join(kind)) {
        for directory in ["active", "views", "committed", "temporary", "mounts", "squashed", "l"] {
            found.extend(names(&kind.join(directory)).iter().map(|name| format!("{directory}/{name}")));
        }
    }
    found
}

/// Prunes until nothing has files here. What was in use a moment ago may be held a moment longer, and then stays until
/// the next time. Panics with what stays.
pub async fn prune_files(client: &Buildctl, daemon: &Daemon) {
    for _ in 0..200 {
        client.run(["prune"], b"").await.success();
        if snapshots(daemon).is_empty() {
            return;
        }
    }
    assert_eq!(snapshots(daemon), [""; 0]);
}

fn left_on_disk(daemon: &Daemon) -> Vec<String> {
    let root = daemon.root();
    let mut left = snapshots(daemon);
    // As the daemon sees them, which may have mounts of its own.
    let seen = format!("/proc/{}/root{}", daemon.process().pid().as_raw_nonzero(), root.display());
    for directory in ["executor/bundles", "executor/netns", "executor/scratch"] {
        left.extend(
            names(&Path::new(&seen).join(directory)).iter().map(|name| format!("{directory}/{name}")),
        );
    }
    for directory in ["content/blobs/sha256", "content/blobs/sha512", "content/ingest"] {
        left.extend(names(&root.join(directory)).iter().map(|name| format!("{directory}/{name}")));
    }
    // What all processes share is mounted as long as the daemon runs.
    let shared = root.join("executor/bundles");
    let mounts = mounts_below(&root, daemon).into_iter().filter(|mount| Path::new(mount) != shared);
    left.extend(mounts.map(|mount| format!("mounted: {mount}")));
    left
}

/// Mount points below a directory, as the daemon sees them.
fn mounts_below(directory: &Path, daemon: &Daemon) -> Vec<String> {
    let file = format!("/proc/{}/mountinfo", daemon.process().pid().as_raw_nonzero());
    let text = std::fs::read_to_string(file).expect("the daemon runs");
    // See proc_pid_mountinfo(5): the fifth field is the mount point.
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let below =
        points.filter(|point| Path::new(point) != directory && Path::new(point).starts_with(directory));
    below.map(str::to_owned).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
