//! A daemon that ends in the middle of a build: its client is told, and the next daemon builds it as if nothing had been,
//! with what was done before from the cache.

use std::path::Path;
use std::path::PathBuf;

use rustix::process::Signal;

use super::Site;
use super::files_of;
use super::is_cached;
use super::mounts_below;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Op;
use crate::harness::assert_nothing_left;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::poll;
use crate::harness::registry::Hold;
use crate::harness::sha256;

const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Unpacking,
    Running,
    Packed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Stop,
    Kill,
}

const ANSWER: &[u8] = b"the answer\n";

/// A command that gets a file from the registry, which can be held.
fn asking(site: &Site, below: &State) -> State {
    site.source.put_blob("answers", sha256(ANSWER), crate::harness::BlobSource::Bytes(ANSWER.into()));
    let url = format!("http://{}/v2/answers/blobs/{}", site.source.host(), sha256(ANSWER));
    llb::sh(below, &format!("/bin/busybox wget -q -O /answer {url}"))
}

fn hold(site: &Site, place: Place) -> Hold {
    match place {
        Place::Unpacking => site.source.hold_after(Op::BlobGet.of(site.base.layers[0].digest()), 64 << 10),
        Place::Running => site.source.hold(Op::BlobGet.of(sha256(ANSWER))),
        Place::Packed => site.target.hold(Op::ManifestPut),
    }
}

/// Control groups of steps below this one, in all hierarchies.
fn groups_below(parent: &str) -> Vec<String> {
    let parents = hierarchies().into_iter().map(|hierarchy| hierarchy.join(parent).join("thunk"));
    let groups = parents.flat_map(|parent| std::fs::read_dir(parent).into_iter().flatten().flatten());
    groups.filter(|group| group.path().is_dir()).map(|group| group.path().display().to_string()).collect()
}

fn remove_groups(parent: &str) {
    for hierarchy in hierarchies() {
        let _ = std::fs::remove_dir(hierarchy.join(parent).join("thunk"));
        let _ = std::fs::remove_dir(hierarchy.join(parent));
    }
}

/// Where control groups are mounted: the unified hierarchy itself, or one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let each = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    each.filter(|path| path.is_dir()).chain([root.to_path_buf()]).collect()
}

async fn ends_in_the_middle(place: Place, end: End) {
    let at = format!("{end:?} while {place:?}");
    let Some(site) = Site::new() else { return };
    let parent = format!("thunk-test-{}-{place:?}-{end:?}", std::process::id());
    let config = format!("[worker.oci]\n  defaultCgroupParent = \"{parent}\"\n");
    let mut daemon = Daemon::start_with(DaemonOptions { config, ..DaemonOptions::default() });
    // In the first place nothing was done before: that is what it is about.
    let first = llb::sh(&site.base(), "echo first > /first");
    let client = Client::connect(&daemon).await;
    if place != Place::Unpacking {
        client.start(Build::of(&first)).await.finish().await.success();
    }
    let asked = asking(&site, &first);
    let build = Build::of(&asked).push(&site.target.reference("copy", "asked"));
    let held = hold(&site, place);
    let running = client.start(build.clone()).await;
    held.reached().await;
    if place == Place::Running {
        assert!(!groups_below(&parent).is_empty() || !has_groups(), "{at}: the command is in no group");
    }
    match end {
        End::Stop => daemon.signal(Signal::TERM),
        End::Kill => daemon.kill9(),
    }
    let outcome = running.finish_cut().await;
    assert!(outcome.is_err(), "{at}: {outcome:?}");
    if end == End::Stop {
        assert!(daemon.wait(LIMIT).success(), "{at}: {}", daemon.log());
        assert_eq!(mounts_below(&daemon.root()), [""; 0], "{at}");
        assert_eq!(groups_below(&parent), [""; 0], "{at}");
    }
    drop(held);
    daemon.start_again();
    let client = Client::connect(&daemon).await;
    site.source.forget();
    let again = client.start(build).await.finish().await.success();
    if place != Place::Unpacking {
        assert!(is_cached(&again, &first), "{at}: what was done before runs again");
    }
    assert!(site.target.manifest("copy", "asked").is_some(), "{at}");
    let files = files_of(&client, &asked).await.expect("the files");
    assert_eq!((files["first"].as_str(), files["answer"].as_bytes()), ("first\n", ANSWER), "{at}");
    assert_nothing_left(&daemon).await;
    assert!(poll(LIMIT, || groups_below(&parent).is_empty()), "{at}: {:?}", groups_below(&parent));
    daemon.terminate();
    assert_eq!(mounts_below(&daemon.root()), [""; 0], "{at}");
    remove_groups(&parent);
}

/// Whether this machine has control groups at all.
fn has_groups() -> bool {
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| text.contains(" - cgroup"))
}

macro_rules! tests {
    ($($name:ident = $place:ident, $end:ident;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            ends_in_the_middle(Place::$place, End::$end).await;
        })*
    };
}

tests! {
    a_stop_while_a_layer_is_unpacked_leaves_a_build_that_works = Unpacking, Stop;
    a_kill_while_a_layer_is_unpacked_leaves_a_build_that_works = Unpacking, Kill;
    a_stop_while_a_command_runs_leaves_a_build_that_works = Running, Stop;
    a_kill_while_a_command_runs_leaves_a_build_that_works = Running, Kill;
    a_stop_while_an_image_is_exported_leaves_a_build_that_works = Packed, Stop;
    a_kill_while_an_image_is_exported_leaves_a_build_that_works = Packed, Kill;
}
