//! D1: `kill -9` at each step loses no snapshot that was acknowledged, leaves none that looks whole and is not, and
//! leaks nothing.
//!
//! A child process (this test binary once more) works through a scenario and says what was acknowledged; it dies, or is
//! made to fail, at a failpoint. Then the snapshots are opened again here.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::super::Snapshotter;
use super::embedded::Kind;
use super::embedded::leftovers;
use super::embedded::open;
use super::files;
use super::key;
use super::on;
use super::seen;
use super::write;
use crate::failpoint;
use crate::failpoint::Failpoint;

const ROOT: &str = "THUNK_TEST_SNAPSHOT_ROOT";

async fn work(s: &dyn Snapshotter) {
    let acknowledge = |what: &str, well: bool| {
        if well {
            println!("acknowledged {what}");
        }
    };
    for (name, chain) in [("a", &[][..]), ("b", &["a"]), ("c", &["a", "b"])] {
        let active = key(&format!("{name}.new"));
        // Only what went well so far can be built on.
        if s.prepare(&active, &on(s, chain)).await.is_err() {
            continue;
        }
        acknowledge(active.as_str(), true);
        if let Ok(mounted) = s.mount(&active, false).await {
            write(mounted.path(), name, name);
            drop(mounted);
            acknowledge(name, s.commit(&key(name), &active).await.is_ok());
        }
    }
    acknowledge("view", s.view(&key("view"), &on(s, &["a"])).await.is_ok());
    if let Ok(mounted) = s.mount(&key("view"), true).await {
        // The mount is there when the process dies in what follows.
        std::mem::forget(mounted);
    }
    acknowledge("removed c", s.remove(&key("c")).await.is_ok());
}

/// Not a test of its own: the child's part.
#[tokio::test]
async fn scenario() {
    if let Ok(root) = std::env::var(ROOT) {
        let (kind, root) = root.split_once(':').expect("a kind and a path");
        let kind = if kind == "overlay" { Kind::Overlay } else { Kind::Native };
        failpoint::arm_from_environment().expect("armed");
        work(&*open(kind, Path::new(root)).expect("opened")).await;
    }
}

/// Runs the child. Returns what it acknowledged, and whether it lived.
fn run(kind: Kind, root: &Path, failpoint: &str) -> (BTreeSet<String>, bool) {
    let name = if kind == Kind::Overlay { "overlay" } else { "native" };
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "snapshot::conformance::crash::scenario", "--nocapture"])
        .env(ROOT, format!("{name}:{}", root.display()))
        .env("THUNKD_FAILPOINT", failpoint)
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let said =
        text.lines().filter_map(|line| line.split_once("acknowledged ")).map(|(_, what)| what.to_owned());
    (said.collect(), output.status.success())
}

async fn judge(kind: Kind, failpoint: &str) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let root = std::fs::canonicalize(dir.path()).expect("a real path").join("root");
    let (said, lived) = run(kind, &root, failpoint);
    let s = &*open(kind, &root).expect("it opens after any death");
    let at = format!("{kind:?} {failpoint}: {said:?}");
    let all = s.walk().await.expect("walked");
    let there: BTreeSet<_> = all.iter().map(|info| info.key.as_str().to_owned()).collect();
    for (name, chain) in [("a", &["a"][..]), ("b", &["a", "b"]), ("c", &["a", "b", "c"])] {
        let acknowledged = said.contains(name) && !(name == "c" && said.contains("removed c"));
        let active = format!("{name}.new");
        if acknowledged && name != "c" {
            assert!(there.contains(name), "{at}: {name} is lost");
        }
        if said.contains(&active) {
            let kept = there.contains(name) || there.contains(&active);
            // The removal of the last one may have been on its way.
            assert!(kept || (name == "c" && said.contains("view")), "{at}: {active} is lost");
        }
        assert!(!(there.contains(name) && there.contains(&active)), "{at}: {name} is there twice");
        if there.contains(name) {
            let expected: Vec<_> = chain.iter().map(|name| format!("{name}={name}")).collect();
            assert_eq!(seen(s, chain).await, expected, "{at}");
        }
    }
    if said.contains("view") {
        let mounted = s.mount(&key("view"), true).await.expect("mounted");
        assert_eq!(files(mounted.path()), ["a=a"], "{at}");
    }
    // Views and active ones stand on the others, and later ones on earlier ones.
    let mut names: Vec<_> = there.into_iter().collect();
    names.sort_by_key(|name| (!name.ends_with(".new") && name != "view", std::cmp::Reverse(name.clone())));
    for name in names {
        s.remove(&key(&name)).await.unwrap_or_else(|error| panic!("{at}: {error}"));
    }
    assert_eq!(leftovers(&root), [""; 0], "{at}");
    lived
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_loses_and_leaks_nothing() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "the tests of CI run as root");
        eprintln!("skipped: only root can mount");
        return;
    }
    for kind in [Kind::Overlay, Kind::Native] {
        assert!(judge(kind, "").await, "without a failpoint all goes well");
        for failpoint in Failpoint::SNAPSHOTS {
            let mut deaths = 0;
            for nth in 1..=4 {
                if judge(kind, &format!("{failpoint}:{nth}=kill")).await {
                    break;
                }
                deaths += 1;
            }
            assert!(deaths > 0, "{kind:?}: {failpoint} is never reached");
            assert!(judge(kind, &format!("{failpoint}=error")).await, "{kind:?}: an error kills nobody");
        }
    }
}
