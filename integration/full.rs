//! A full disk at each kind of write: the build says what ran out and what to do, the daemon lives, and the same build
//! works once there is space.

use std::collections::BTreeMap;

use tonic::Code;
use tonic::Status;

use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Loopback;
use crate::harness::TestRegistry;
use crate::harness::assert_nothing_left;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;

const MIB: u64 = 1 << 20;

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

    async fn works_again(mut self, build: &Build) {
        assert!(self.daemon.is_running(), "{}", self.daemon.log());
        self.disk.drain();
        self.build(build).await.expect("there is space again");
        assert_nothing_left(&self.daemon).await;
        self.daemon.terminate();
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
