//! Many builds of all kinds at once, some of them cancelled, while everything that nobody uses is pruned all the time: no
//! build fails, nothing is left, and memory, threads and open files do not grow.
//!
//! `THUNK_LOAD_SECONDS` says for how long: 120 and more to look for leaks; a moment otherwise.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use thunk::proto::control::PruneRequest;
use tokio::task::JoinSet;

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::assert_nothing_left;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;

const WORKERS: u64 = 32;
const SECONDS: u64 = 10;
/// By how much the resident memory may be larger in the last quarter than in the second one. The allocator keeps what a
/// burst of 32 builds needed, which comes and goes by some MiB; a leak of 16 KiB a build is more than this in two
/// minutes.
const GROWTH: u64 = 24 << 20;
/// From here on that is asserted: before, the second quarter is the warm-up.
const LONG: u64 = 60;

struct Site {
    source: TestRegistry,
    target: TestRegistry,
    done: AtomicU64,
    cancelled: AtomicU64,
}

impl Site {
    fn base(&self) -> State {
        llb::image(self.source.reference("base", "1"))
    }

    /// The build of this number: each kind in turn, some that nobody had before and some that many have.
    fn build(&self, n: u64) -> Build {
        let files = |build: Build| build.attach(Attachables::default().discarding_files());
        let (shared, own) = (n / 16 % 8, n);
        let ran = llb::sh(&self.base(), &format!("echo {shared} > /ran; cat /one > /two"));
        match n % 8 {
            0 => Build::of(&ran),
            1 => files(Build::of(&ran).export("tar", &[])),
            2 => Build::of(&llb::sh_caching(
                &ran,
                "load",
                &format!("echo {own} >> /cache/log; echo {own} > /own"),
            )),
            3 => {
                let copied = llb::file(None, Some(&ran), &Action::Copy { from: "/two", to: "/copied" });
                files(Build::of(&llb::merge([self.base(), copied])).export("oci", &[]))
            }
            4 => {
                let text = own.to_string();
                let made =
                    llb::file(Some(&ran), None, &Action::MkFile { path: "/made", data: text.as_bytes() });
                Build::of(&made).push(&self.target.reference("copy", &format!("v{shared}")))
            }
            5 => files(Build::of(&llb::image(self.source.reference("lazy", "1"))).export("oci", &[])),
            6 => {
                let made =
                    llb::file(Some(&self.base()), None, &Action::MkDir { path: &format!("/dir-{own}") });
                Build::of(&llb::sh(&made, &format!("echo {own} > /dir-{own}/x")))
            }
            _ => Build::of(&llb::sh(&self.base(), &format!("/bin/busybox sleep 1000; echo {own}"))),
        }
    }
}

/// Builds until the time is over. Returns what failed.
async fn work(site: Arc<Site>, client: Client, next: Arc<AtomicU64>, end: Instant) -> Vec<String> {
    let mut failed = Vec::new();
    while Instant::now() < end {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let running = client.start(site.build(n)).await;
        // The last kind does not end by itself; others are left wherever they are.
        if n % 8 == 7 || n.is_multiple_of(13) {
            tokio::time::sleep(Duration::from_millis(n * 37 % 700)).await;
            running.cancel().await;
            site.cancelled.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let outcome = running.finish().await;
        match outcome.response {
            Ok(_) => drop(site.done.fetch_add(1, Ordering::Relaxed)),
            Err(status) => failed.push(format!("build {n}: {status:?}")),
        }
    }
    failed
}

/// Prunes by every rule in turn until the time is over.
async fn prune(client: Client, end: Instant) -> u64 {
    let rules = [
        PruneRequest { all: true, ..PruneRequest::default() },
        PruneRequest { max_used_space: 1 << 20, ..PruneRequest::default() },
        PruneRequest { filter: vec!["type==exec.cachemount".to_owned()], ..PruneRequest::default() },
        PruneRequest { keep_duration: 1_000_000_000, ..PruneRequest::default() },
    ];
    let mut rounds = 0;
    while Instant::now() < end {
        for rule in rules.clone() {
            let mut stream = client.control().prune(rule).await.expect("prune").into_inner();
            while stream.message().await.expect("prune").is_some() {}
            client.usage().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rounds += 1;
    }
    rounds
}

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Sample {
    memory: u64,
    files: usize,
    tasks: u64,
}

fn sample(daemon: &Daemon) -> Sample {
    let process = daemon.process();
    let files = format!("/proc/{}/fd", process.pid().as_raw_nonzero());
    let files = std::fs::read_dir(files).expect("the daemon runs").count();
    Sample { memory: process.memory(), files, tasks: daemon.counter("tasks") }
}

fn mean(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.memory).sum::<u64>() / samples.len().max(1) as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_builds_and_prunes_at_once_fail_nothing_and_leave_nothing() {
    let Some(busybox) = busybox() else { return };
    let seconds =
        std::env::var("THUNK_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let (source, target) = (TestRegistry::open(), TestRegistry::open());
    let base = Image::of([
        busybox,
        Layer::files([("one", "1\n".repeat(4096))]),
        Layer::files([("below/file", "x")]),
    ]);
    source.put_image("base", "1", &base);
    source.put_image("lazy", "1", &Image::incompressible(0x10ad, 4, 4 << 20));
    let site = Arc::new(Site { source, target, done: AtomicU64::new(0), cancelled: AtomicU64::new(0) });
    let config =
        "[[worker.oci.gcpolicy]]\n  all = true\n  maxUsedSpace = \"1MB\"\n[history]\n  maxEntries = 10\n";
    let flags = vec!["--snapshot-sync-interval=500ms".to_owned()];
    let daemon =
        Daemon::start_with(DaemonOptions { config: config.to_owned(), flags, ..DaemonOptions::default() });

    let end = Instant::now() + Duration::from_secs(seconds);
    let next = Arc::new(AtomicU64::new(0));
    let (mut workers, mut pruner) = (JoinSet::new(), JoinSet::new());
    for _ in 0..WORKERS {
        let client = Client::connect(&daemon).await;
        workers.spawn(work(site.clone(), client, next.clone(), end));
    }
    pruner.spawn(prune(Client::connect(&daemon).await, end));
    let mut samples = Vec::new();
    while Instant::now() < end {
        samples.push(sample(&daemon));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let failed: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    let rounds: u64 = pruner.join_all().await.into_iter().sum();
    let (done, cancelled) = (site.done.load(Ordering::Relaxed), site.cancelled.load(Ordering::Relaxed));
    eprintln!(
        "{seconds} s: {done} builds, {cancelled} cancelled, {} failed, {rounds} rounds of prunes",
        failed.len()
    );
    let quarter = samples.len() / 4;
    let (warm, last) = (mean(&samples[quarter..2 * quarter]), mean(&samples[3 * quarter..]));
    eprintln!("resident: {} KiB in the second quarter, {} KiB in the last", warm >> 10, last >> 10);
    for (n, sample) in samples.iter().enumerate().step_by((samples.len() / 12).max(1)) {
        eprintln!("{n:4} s: {} KiB, {} files, {} tasks", sample.memory >> 10, sample.files, sample.tasks);
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(done > 0 && cancelled > 0);
    assert_nothing_left(&daemon).await;
    let idle = sample(&daemon);
    eprintln!("idle: {} KiB, {} files, {} tasks", idle.memory >> 10, idle.files, idle.tasks);
    if seconds >= LONG {
        assert!(last <= warm + GROWTH, "memory grows: {samples:#?}");
    }
}
