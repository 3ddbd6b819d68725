//! What commands leave of the mount points that were made for them: what the real `buildkitd` leaves.

use std::os::unix::net::UnixListener;
use std::path::Path;

use thunk::proto::pb;

use crate::harness::Buildctl;
use crate::harness::Buildkitd;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::State;

/// One mount of each kind.
fn mounts() -> Vec<pb::Mount> {
    let mount = |dest: &str, kind: pb::MountType| pb::Mount {
        input: -1,
        dest: dest.to_owned(),
        output: -1,
        mount_type: kind.into(),
        ..Default::default()
    };
    let sharing = pb::CacheSharingOpt::Shared.into();
    let cache_opt = Some(pb::CacheOpt { id: "c".to_owned(), sharing });
    let secret_opt = Some(pb::SecretOpt { id: "x".to_owned(), mode: 0o400, ..Default::default() });
    let ssh_opt = Some(pb::SshOpt { id: "default".to_owned(), mode: 0o600, ..Default::default() });
    vec![
        pb::Mount { cache_opt, ..mount("/c/d", pb::MountType::Cache) },
        pb::Mount { input: 1, readonly: true, ..mount("/b", pb::MountType::Bind) },
        mount("/t/u", pb::MountType::Tmpfs),
        pb::Mount { secret_opt, ..mount("/run/secrets/x", pb::MountType::Secret) },
        pb::Mount { ssh_opt, ..mount("/run/buildkit/agent", pb::MountType::Ssh) },
    ]
}

/// `script` in `root` with `mounts`, of which the second one shows `other`.
fn command(root: &State, other: &State, script: &str, mounts: Vec<pb::Mount>, recursive: bool) -> State {
    let meta = pb::Meta {
        args: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).into(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        remove_mount_stubs_recursive: recursive,
        ..Default::default()
    };
    let mount = pb::Mount { input: 0, dest: "/".to_owned(), output: 0, ..Default::default() };
    let mounts = std::iter::once(mount).chain(mounts).collect();
    let exec = pb::ExecOp { meta: Some(meta), mounts, ..Default::default() };
    let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
    State::from_op(op, &[root.clone(), other.clone()])
}

/// What the layers of a state's commands have, as an image that is pushed says: all but the times, which are those of
/// the moment, and but what files have.
async fn layers(client: &Buildctl, registry: &TestRegistry, state: &State, below: usize) -> Vec<Vec<String>> {
    let to = registry.reference("out", "entries");
    let (secret, socket) = (client.home().join("secret"), client.home().join("agent"));
    std::fs::write(&secret, "s").expect("a secret");
    let _ = std::fs::remove_file(&socket);
    let _agent = UnixListener::bind(&socket).expect("an agent that nobody asks");
    let output = format!("type=image,name={to},push=true");
    let arguments = [
        "--output".to_owned(),
        output,
        "--secret".to_owned(),
        format!("id=x,src={}", secret.display()),
        "--ssh".to_owned(),
        format!("default={}", socket.display()),
    ];
    client.build_with(&state.marshal(), arguments).await.success();
    let manifest = registry.manifest("out", "entries").expect("the image arrived");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    layers[below..]
        .iter()
        .map(|layer| entries(registry, layer["digest"].as_str().expect("a digest")))
        .collect()
}

fn entries(registry: &TestRegistry, digest: &str) -> Vec<String> {
    let blob = registry.blob("out", digest).expect("it arrived").to_bytes();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]));
    let entries = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mode = entry.header().mode().expect("a mode");
        let text = std::io::read_to_string(&mut entry).expect("text");
        format!("{mode:o} {path} {text}")
    });
    entries.collect()
}

/// A layer without what it has below `/etc`. No whiteout says so: a directory that is made where one was hides what is
/// below.
fn without_etc(layer: &Layer) -> Layer {
    let blob = layer.source.as_ref().expect("it is no foreign one").to_bytes();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]));
    let mut rest = tar::Builder::new(Vec::new());
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        if !entry.path().expect("a path").starts_with("etc") {
            let header = entry.header().clone();
            rest.append(&header, &mut entry).expect("tar to memory");
        }
    }
    Layer::gzip(rest.into_inner().expect("tar to memory"))
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_points_stay_as_buildkitd_leaves_them() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let Some(shell) = busybox() else { return };
    let native = "[worker.oci]\n  snapshotter = \"native\"\n".to_owned();
    let native = Daemon::start_with(DaemonOptions { config: native, ..DaemonOptions::default() });
    let overlay = Daemon::start();
    let registry = TestRegistry::open();
    let Some(theirs) = Buildctl::at(format!("unix://{}", buildkitd.socket().display())) else { return };
    let ours = [&overlay, &native].map(|daemon| Buildctl::of(daemon).expect("buildctl"));
    registry.put_image("other", "v1", &Image::of([Layer::files([("file", "1")])]));
    let other = llb::image(registry.reference("other", "v1"));
    let linked = [
        ("var/", ""),
        ("var/run/", ""),
        ("run", "-> var/run"),
        ("opt/", ""),
        ("etc/resolv.conf", "-> ../opt/resolv.conf"),
    ];
    let bases = [
        ("plain", Layer::files([("opt/x", "")])),
        ("without-etc", Layer::files([("opt/x", "")])),
        (
            "with-directories",
            Layer::tree(&[("c/", ""), ("t/", ""), ("run/", ""), ("run/secrets/", ""), ("run/buildkit/", "")]),
        ),
        ("with-points", Layer::tree(&[("c/", ""), ("c/d/", ""), ("etc/hosts", "own"), ("b/", "")])),
        ("linked", Layer::tree(&linked)),
    ];
    for (name, layer) in bases {
        let shell = if name == "without-etc" { without_etc(&shell) } else { shell.clone() };
        registry.put_image(name, "v1", &Image::of([shell, layer]));
        let base = llb::image(registry.reference(name, "v1"));
        for recursive in [false, true] {
            let look = "stat -c '%n %a %u' /c /c/d /b /t /t/u /etc /run/ /run/secrets /run/secrets/x > /seen";
            let state = command(&base, &other, look, mounts(), recursive);
            let state = command(&state, &other, "true", mounts(), recursive);
            let state = command(&state, &other, "echo 1 > /etc/new; cp /seen /again", mounts(), recursive);
            let expected = layers(&theirs, &registry, &state, 2).await;
            assert_eq!(expected.len(), 3, "{expected:?}");
            for (client, kind) in ours.iter().zip(["overlay", "native"]) {
                let found = layers(client, &registry, &state, 2).await;
                assert_eq!(found, expected, "{kind}, {name}, recursive: {recursive}");
            }
        }
    }
}

/// The directory of the changes of each command of a row, by the times at which they were made.
fn changes(daemon: &Daemon) -> Vec<Vec<String>> {
    let committed = daemon.root().join("snapshots/overlayfs/committed");
    let made = std::fs::read_dir(committed).expect("snapshots").map(|entry| entry.expect("an entry").path());
    let made =
        made.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("made-")));
    made.map(|path| below(&path.join("fs"))).collect()
}

fn below(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).expect("listed") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().expect("a type").is_dir() {
            names.extend(below(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        }
        names.push(name);
    }
    names.sort();
    names
}

/// Each command of a row had `/etc` among its changes, copied up for its mount points alone, so that all of them were
/// looked through and listed for the next one.
#[tokio::test(flavor = "multi_thread")]
async fn the_changes_of_a_command_are_what_it_wrote() {
    let Some(shell) = busybox() else { return };
    let daemon = Daemon::start();
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = TestRegistry::open();
    registry.put_image("base", "v1", &Image::of([shell]));
    let base = llb::image(registry.reference("base", "v1"));
    let row =
        (0..5).fold(base, |below, n| llb::sh_caching(&below, "c", &format!("echo {n} > /ran; ls /etc")));
    client.build_with(&row.marshal(), ["--progress=plain"]).await.success();
    let mut found = changes(&daemon);
    found.sort();
    assert_eq!(found, vec![vec!["ran".to_owned()]; 5]);
}
