//! Networks of build steps, set up by Debian's plugins.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::builds::files;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::daemon::DaemonOptions;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::poll;

const PLUGINS: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon whose steps have a network of plugins, and what they know.
struct Scene {
    daemon: Daemon,
    client: Buildctl,
    registry: TestRegistry,
    /// The addresses that are given away, a file each.
    leases: TempDir,
}

impl Scene {
    /// With `further` plugins behind the one that gives an address. None where the tools are missing.
    fn new(subnet: &str, further: &[Value]) -> Option<Scene> {
        let busybox = busybox()?;
        if !Path::new(PLUGINS).join("ptp").is_file() {
            assert!(std::env::var("CI").is_err(), "no plugins in {PLUGINS}");
            eprintln!("SKIPPED, NOT CHECKED: no plugins in {PLUGINS}");
            return None;
        }
        let leases = TempDir::with_prefix("leases-").expect("a temporary directory");
        let ipam = json!({"type": "host-local", "subnet": subnet, "dataDir": leases.path()});
        let mut plugins = vec![json!({"type": "ptp", "ipam": ipam})];
        plugins.extend_from_slice(further);
        let list = json!({"cniVersion": "0.4.0", "name": "thunk-test", "plugins": plugins});
        let path = leases.path().join("list.json");
        std::fs::write(&path, list.to_string()).expect("write the configuration of the plugins");
        let config = format!(
            "[worker.oci]\nnetworkMode = \"cni\"\ncniConfigPath = {path:?}\ncniBinaryPath = {PLUGINS:?}\n"
        );
        let daemon = Daemon::start_with(DaemonOptions { config, ..DaemonOptions::default() });
        let (client, registry) = (Buildctl::of(&daemon)?, TestRegistry::open());
        registry.put_image("base", "v1", &Image::of([busybox]));
        Some(Scene { daemon, client, registry, leases })
    }

    fn sh(&self, script: &str) -> State {
        llb::sh(&llb::image(self.registry.reference("base", "v1")), script)
    }

    fn leased(&self) -> usize {
        let list = std::fs::read_dir(self.leases.path().join("thunk-test"));
        let names = list.into_iter().flatten().map(|entry| entry.expect("an entry").file_name());
        names.filter(|name| name.to_string_lossy().starts_with("10.")).count()
    }

    fn namespaces(&self) -> usize {
        let list = std::fs::read_dir(self.daemon.root().join("executor/netns"));
        list.map_or(0, Iterator::count)
    }

    fn assert_released(&self) {
        let released = poll(PATIENCE, || self.leased() == 0 && self.namespaces() == 0);
        assert!(released, "{} addresses, {} namespaces", self.leased(), self.namespaces());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_the_network_of_its_plugins_and_gives_it_back() {
    let Some(scene) = Scene::new("10.198.77.0/24", &[json!({"type": "tuning"})]) else { return };
    let step = scene.sh("ip -o addr > /addresses; ip route > /routes; hostname > /name");
    let archive = scene.daemon.scratch().join("out.tar");
    scene.client.build(&step.marshal(), &[&format!("type=tar,dest={}", archive.display())]).await.success();
    let files = files(&archive);
    assert!(
        files["addresses"].contains("eth0") && files["addresses"].contains("inet 10.198.77."),
        "{files:?}"
    );
    assert!(files["addresses"].contains("inet 127.0.0.1/8"), "{files:?}");
    assert!(files["routes"].contains("10.198.77.1"), "{files:?}");
    scene.assert_released();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_is_named_and_what_was_set_up_before_it_is_undone() {
    let Some(scene) = Scene::new("10.198.78.0/24", &[json!({"type": "nowhere"})]) else { return };
    let said = scene.client.build(&scene.sh("true").marshal(), &[]).await.failure();
    assert!(said.contains("/usr/lib/cni/nowhere"), "{said}");
    scene.assert_released();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_given_back_at_the_next_start() {
    let Some(mut scene) = Scene::new("10.198.79.0/24", &[]) else { return };
    let definition = scene.sh("sleep 600").marshal();
    let client = Buildctl::of(&scene.daemon).expect("buildctl");
    let kill = async {
        while (scene.leased(), scene.namespaces()) != (1, 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene.daemon.kill9();
    };
    let both = async { tokio::join!(client.build(&definition, &[]), kill) };
    let (build, ()) = tokio::time::timeout(PATIENCE, both).await.expect("in time");
    build.failure();
    scene.daemon.start_again();
    scene.assert_released();
}
