//! The daemon's process, its measures, and the real client beside it.

use std::time::Duration;

use prost::Message as _;
use thunk::proto::pb;

use crate::harness::Buildctl;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::DiskWatch;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::disk_usage;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::sha256;
use crate::harness::verify_blobs;

#[test]
fn a_daemon_starts_ends_and_starts_again_on_its_root() {
    let mut daemon = Daemon::start();
    assert!(daemon.process().memory() > 0);
    assert!(!daemon.start_time().is_zero());
    assert!(daemon.peak_memory() > 0);
    assert!(daemon.disk_usage() > 0);
    daemon.terminate();
    assert!(!daemon.is_running());
    daemon.start_again();
    daemon.kill9();
    assert!(!daemon.is_running());
    daemon.start_again();
    assert!(daemon.is_running());
}

/// The harness kills daemons. Every runtime reads all mounts there are, so one that stays makes other tests slower.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_ran_a_command_leaves_no_mount() {
    let Some(shell) = busybox() else { return };
    let registry = TestRegistry::open();
    registry.put_image("shell", "v1", &Image::of([shell]));
    let daemon = Daemon::start();
    let Some(buildctl) = Buildctl::of(&daemon) else { return };
    let state = llb::sh(&llb::image(registry.reference("shell", "v1")), "true");
    buildctl.build(&state.marshal(), &[]).await.success();
    let below = format!(" {}/", daemon.root().display());
    let mounted = || {
        let text = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        text.lines().filter(|line| line.contains(&below)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(!mounted().is_empty(), "it is there for the next command");
    drop(daemon);
    assert_eq!(mounted(), Vec::<String>::new());
}

#[test]
fn the_counters_of_the_debug_page_are_read() {
    let daemon = Daemon::start();
    assert!(daemon.counter("process_resident_bytes") > 0);
}

#[test]
fn a_configuration_that_is_refused_ends_the_start_and_says_why() {
    let config = "[grpc]\n  address = 7\n".to_owned();
    let mut daemon = Daemon::prepare(DaemonOptions { config, ..DaemonOptions::default() });
    daemon.spawn();
    let status = daemon.wait(Duration::from_secs(10));
    assert!(!status.success());
    assert!(daemon.log().contains("address"), "{}", daemon.log());
}

#[test]
fn the_peak_of_a_disk_is_seen_after_it_has_passed() {
    let directory = tempfile::tempdir().expect("a directory");
    let watch = DiskWatch::start(directory.path().to_owned());
    let file = directory.path().join("large");
    std::fs::write(&file, vec![1; 1 << 20]).expect("write");
    assert!(disk_usage(directory.path()) >= 1 << 20);
    // The next sample is a few milliseconds away.
    assert!(crate::harness::poll(Duration::from_secs(10), || watch.seen() >= 1 << 20));
    std::fs::remove_file(&file).expect("remove");
    assert!(disk_usage(directory.path()) < 1 << 20);
    assert!(watch.peak() >= 1 << 20);
}

#[test]
fn what_looks_like_a_blob_must_be_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let blobs = directory.path().join("content/blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a directory");
    let digest = sha256("whole");
    std::fs::write(blobs.join(&digest[7..]), "whole").expect("write");
    std::fs::write(blobs.join("partial"), "part").expect("write");
    assert_eq!(verify_blobs(directory.path()), [digest]);
    std::fs::write(blobs.join(&sha256("other")[7..]), "half").expect("write");
    let root = directory.path().to_owned();
    assert!(std::panic::catch_unwind(|| verify_blobs(&root)).is_err());
}

#[test]
fn a_definition_names_its_operations_by_the_digest_of_their_bytes() {
    let base = llb::image("docker.io/library/alpine:3");
    let both = llb::merge([base.clone(), llb::image("example.com/x:1"), base.clone()]);
    let definition = pb::Definition::decode(&both.marshal()[..]).expect("a definition");
    assert_eq!(definition.def.len(), 4);
    let digests: Vec<_> = definition.def.iter().map(sha256).collect();
    let merge = pb::Op::decode(&definition.def[2][..]).expect("an operation");
    let inputs: Vec<_> = merge.inputs.iter().map(|input| &input.digest).collect();
    assert_eq!(inputs, [&digests[0], &digests[1], &digests[0]]);
    let last = pb::Op::decode(&definition.def[3][..]).expect("an operation");
    assert_eq!(last.inputs[0].digest, digests[2]);
    assert!(last.op.is_none());
    assert_eq!(base.digest(), digests[0]);
    assert_ne!(base.platform("linux/s390x").digest(), digests[0]);
}

/// `buildctl` itself judges the definitions: it prints digests and inputs as it reads them.
#[tokio::test]
async fn buildctl_reads_the_definitions() {
    let daemon = Daemon::start();
    let Some(buildctl) = Buildctl::of(&daemon) else { return };
    let state = llb::merge([llb::image("docker.io/library/alpine:3"), llb::image("example.com/x:1")]);
    let run = buildctl.run(["debug", "dump-llb"], &state.marshal()).await.success();
    let text = run.stdout_text();
    assert!(text.contains(state.digest()), "{text}");
    assert!(text.contains("docker-image://docker.io/library/alpine:3"), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
}
