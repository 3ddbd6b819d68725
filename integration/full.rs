//! A full disk at each kind of write: the build says what ran out and what to do, the daemon lives, and the same build
//! works once there is space.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::Code;
use tonic::Status;

use crate::harness::Attachables;
use crate::harness::BlobSource;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Loopback;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::assert_nothing_left;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;
use crate::harness::sha256;

const MIB: u64 = 1 << 20;
/// What must happen happens within this time.
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon with its root on a small disk. It is dropped before the disk.
struct Small {
    daemon: Daemon,
    registry: TestRegistry,
    disk: Loopback,
}

impl Small {
    fn new() -> Option<Small> {
        let disk = Loopback::ext4(128)?;
        // Nothing frees space but what the test does.
        let config = "[worker.oci]\n  gc = false\n".to_owned();
        let root = Some(disk.root());
        let daemon = Daemon::start_with(DaemonOptions { config, root, ..DaemonOptions::default() });
        Some(Small { daemon, registry: TestRegistry::open(), disk })
    }

    /// An image that commands can run in, and `layer` on it.
    fn base(&self, layer: Layer) -> Option<State> {
        self.registry.put_image("base", "1", &Image::of([busybox()?, layer]));
        Some(llb::image(self.registry.reference("base", "1")))
    }

    async fn build(&self, build: &Build) -> Result<BTreeMap<String, String>, Status> {
        let client = Client::connect(&self.daemon).await;
        client.start(build.clone()).await.finish().await.response
    }

    /// `build` fails for want of space, and not once there is some.
    async fn fails_until_there_is_space(self, build: Build, leave: u64) {
        self.disk.fill(leave);
        assert_no_space(&self.build(&build).await.expect_err("there is no space"));
        self.works_again(&build).await;
    }

    /// A file of more than what may become free behind: its directory fails already, or its bytes do.
    async fn refuses_files(&self, base: Option<&State>) {
        for n in 0..3 {
            let (path, data) = (format!("/made-{n}"), vec![b'x'; 4 << 20]);
            let made = llb::file(base, None, &Action::MkFile { path: &path, data: &data });
            assert_no_space(&self.build(&Build::of(&made)).await.expect_err("there is no space"));
        }
    }

    async fn works_again(mut self, build: &Build) {
        assert!(self.daemon.is_running(), "{}", self.daemon.log());
        self.disk.drain();
        self.build(build).await.expect("there is space again");
        assert_nothing_left(&self.daemon).await;
    }
}

#[track_caller]
fn assert_no_space(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let message = status.message().to_lowercase();
    assert!(message.contains("no space") && message.contains("free some"), "{status:?}");
}

fn archive(state: &State) -> Build {
    Build::of(state).export("oci", &[]).attach(Attachables::default().discarding_files())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_does_not_fit_is_fetched_once_there_is_space() {
    let Some(small) = Small::new() else { return };
    small.registry.put_image("large", "1", &Image::incompressible(0xf1, 2, 32 * MIB));
    let build = archive(&llb::image(small.registry.reference("large", "1")));
    small.fails_until_there_is_space(build, 8 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_fit_is_unpacked_once_there_is_space() {
    let Some(small) = Small::new() else { return };
    let Some(base) = small.base(Layer::files([("large", vec![b'x'; 32 << 20])])) else { return };
    let build = Build::of(&llb::sh(&base, "true"));
    small.fails_until_there_is_space(build, 12 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_fit_is_made_once_there_is_space() {
    let Some(small) = Small::new() else { return };
    let data = vec![b'x'; 6 << 20];
    let build = Build::of(&llb::file(None, None, &Action::MkFile { path: "/large", data: &data }));
    small.fails_until_there_is_space(build, 2 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fills_the_disk_fails_alone_and_works_once_there_is_space() {
    let Some(small) = Small::new() else { return };
    let Some(base) = small.base(Layer::files([("one", "1")])) else { return };
    let build = Build::of(&llb::sh(&base, "dd if=/dev/zero of=/large bs=1M count=24"));
    small.disk.fill(16 * MIB);
    // What the command makes of it is the command's.
    let status = small.build(&build).await.expect_err("there is no space");
    assert!(status.message().contains("exit code: 1"), "{status:?}");
    small.works_again(&build).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_does_not_fit_is_packed_once_there_is_space() {
    let Some(small) = Small::new() else { return };
    let Some(base) = small.base(Layer::files([("one", "1")])) else { return };
    let ran = llb::sh(&base, "dd if=/dev/urandom of=/large bs=1M count=16");
    small.build(&Build::of(&ran)).await.expect("it fits");
    let build = Build::of(&ran).push(&small.registry.reference("copy", "large"));
    small.fails_until_there_is_space(build, 4 * MIB).await;
}

/// The disk fills up while a command runs that writes nothing: its result is noted, or refused for want of space.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_byte_refuses_what_it_must_and_nothing_is_lost() {
    let Some(small) = Small::new() else { return };
    let Some(base) = small.base(Layer::files([("one", "1")])) else { return };
    let first = llb::sh(&base, "echo first > /first");
    small.build(&Build::of(&first)).await.expect("it fits");
    let answer = b"the answer";
    small.registry.put_blob("answers", sha256(answer), BlobSource::Bytes(answer.to_vec().into()));
    let url = format!("http://{}/v2/answers/blobs/{}", small.registry.host(), sha256(answer));
    let asked = llb::sh(&first, &format!("/bin/busybox wget -q -O /dev/null {url}"));
    let held = small.registry.hold(Op::BlobGet.of(sha256(answer)));
    let client = Client::connect(&small.daemon).await;
    let running = client.start(Build::of(&asked)).await;
    held.reached().await;
    small.disk.fill(0);
    drop(held);
    if let Err(status) = running.finish().await.response {
        assert_no_space(&status);
    }
    small.refuses_files(Some(&first)).await;
    small.works_again(&Build::of(&asked)).await;
}

/// How a daemon ended before it starts on a disk that has no byte left.
async fn starts_without_a_byte(end: impl FnOnce(&mut Daemon)) {
    let Some(mut small) = Small::new() else { return };
    let data = vec![b'x'; 12 << 20];
    let large = llb::file(None, None, &Action::MkFile { path: "/large", data: &data });
    small.build(&Build::of(&large)).await.expect("it fits");
    small.disk.fill(0);
    end(&mut small.daemon);
    small.disk.fill_more();
    small.daemon.start_again();
    let client = Client::connect(&small.daemon).await;
    let usage = client.usage().await;
    assert!(usage.iter().any(|record| record.size >= 12 << 20), "{usage:?}");
    assert!(!client.history().await.is_empty(), "what was built is told");
    small.refuses_files(None).await;
    // From cache, since nothing has to be written.
    client.prune_all().await.expect("a prune needs no space");
    assert_eq!(client.usage().await.len(), 0);
    let gone = crate::harness::poll(LIMIT, || small.disk.free() >= 12 << 20);
    assert!(gone, "{} bytes are free", small.disk.free());
    small.works_again(&Build::of(&large)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_on_a_disk_without_a_byte_and_a_prune_frees_some() {
    starts_without_a_byte(Daemon::terminate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_killed_starts_on_a_disk_without_a_byte_and_a_prune_frees_some() {
    starts_without_a_byte(Daemon::kill9).await;
}

#[test]
fn a_new_root_on_a_disk_without_a_byte_is_refused_with_what_to_do() {
    let Some(disk) = Loopback::ext4(128) else { return };
    let root = disk.root();
    disk.fill(0);
    let mut daemon = Daemon::prepare(DaemonOptions { root: Some(root), ..DaemonOptions::default() });
    daemon.spawn();
    let status = daemon.wait(LIMIT);
    assert!(!status.success());
    let log = daemon.log();
    assert!(
        log.to_lowercase().contains("no space left to open the metadata store") && log.contains("free some"),
        "{log}"
    );
    disk.drain();
    daemon.start_again();
}
