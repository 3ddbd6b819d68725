//! The snapshotters of this crate on each file system, and what is true of them only.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;

use super::super::MountPoint;
use super::super::NativeSnapshotter;
use super::super::OverlaySnapshotter;
use super::super::Parents;
use super::super::PointKind;
use super::super::SnapshotError;
use super::super::Snapshotter;
use super::super::mount::Overlay;
use super::super::names::Names;
use super::super::stale;
use super::Site;
use super::commit;
use super::conforms;
use super::disk::Disk;
use super::disk::FileSystem;
use super::files;
use super::key;
use super::mount;
use super::on;
use super::seen;
use super::write;
use crate::task::Tasks;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Overlay,
    Native,
}

pub(super) fn open(kind: Kind, root: &Path) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    Ok(match kind {
        Kind::Overlay => Arc::new(OverlaySnapshotter::open(root, Tasks::new())?),
        Kind::Native => Arc::new(NativeSnapshotter::open(root, Tasks::new())?),
    })
}

/// A directory on a disk.
struct Embedded {
    kind: Kind,
    root: PathBuf,
}

#[async_trait]
impl Site for Embedded {
    async fn open(&self) -> Arc<dyn Snapshotter> {
        open(self.kind, &self.root).expect("opened")
    }

    fn leftovers(&self) -> Vec<String> {
        leftovers(&self.root)
    }
}

/// Files and mounts below a root apart from those that every root has. What was mounted on goes in its own time, which
/// is waited for.
#[expect(clippy::disallowed_methods, reason = "some who ask are in no runtime")]
pub(super) fn leftovers(root: &Path) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_done = || fs::read_dir(root.join("mounts")).is_ok_and(|mut spots| spots.next().is_none());
    while !is_done() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let skeleton =
        ["active", "views", "committed", "temporary", "mounts", "spare", "squashed", "nothing", "l"];
    let mut left = files(root);
    left.retain(|path| {
        let known = skeleton.iter().any(|name| path.strip_suffix('/') == Some(name));
        // Mount points for later.
        !known && !path.starts_with("squashed-in=") && !path.starts_with("spare/")
    });
    let mounts = stale::below(root).expect("mounts");
    left.extend(mounts.iter().map(|mount| format!("mounted: {}", mount.display())));
    left
}

async fn conforms_on(kind: Kind, file_system: FileSystem) {
    let Some(disk) = Disk::new(file_system) else { return };
    let mut count = 0;
    conforms(|| {
        count += 1;
        Box::new(Embedded { kind, root: disk.path().join(format!("root {count}")) })
    })
    .await;
    assert_eq!(count, super::claims::ALL.len());
}

macro_rules! conformance {
    ($($name:ident: $kind:ident on $file_system:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            conforms_on(Kind::$kind, FileSystem::$file_system).await;
        })*
    };
}

conformance! {
    overlay_conforms_on_ext4: Overlay on Ext4,
    overlay_conforms_on_btrfs: Overlay on Btrfs,
    overlay_conforms_on_xfs: Overlay on Xfs,
    native_conforms_on_ext4: Native on Ext4,
    native_conforms_on_btrfs: Native on Btrfs,
    native_conforms_on_xfs: Native on Xfs,
}

/// Layer `n` says so in `top`, has `n-<n>` of its own, and removes that of the layer before.
async fn deep(s: &dyn Snapshotter, depth: usize) -> Vec<String> {
    let names: Vec<_> = (0..depth).map(|n| format!("layer-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        s.prepare(&key("new"), &Parents::default()).await.expect("prepared");
        let upper = s.upper(&key("new")).expect("it stacks");
        write(&upper, "top", &n.to_string());
        write(&upper, &format!("{n}/own"), "x");
        write(&upper, "shared/text", &n.to_string());
        let root = crate::fs::Root::open(&upper).expect("opened");
        if n > 0 {
            root.mknod((n - 1).to_string(), crate::fs::Kind::WHITEOUT, 0).expect("whiteout");
        }
        // The directory hides what the layers below have in it.
        if n == 100 {
            let opaque = crate::fs::Last::Keep;
            root.set_xattr("shared", "trusted.overlay.opaque", b"y", opaque).expect("opaque");
        } else {
            write(&upper, &format!("shared/{n}"), "");
        }
        s.commit(&key(name), &key("new")).await.expect("committed");
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_deeper_than_the_kernel_mounts_is_seen_and_written() {
    const DEPTH: usize = 1100;
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join("root");
    let s = OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    let names = deep(&s, DEPTH).await;
    let chain: Vec<_> = names.iter().map(String::as_str).collect();
    let expected = |depth: usize| {
        let mut all = vec![format!("{}/", depth - 1), format!("{}/own=x", depth - 1), "shared/".to_owned()];
        let from = if depth > 100 { 101 } else { 0 };
        all.extend((from..depth).map(|n| format!("shared/{n}=")));
        all.push(format!("shared/text={}", depth - 1));
        all.push(format!("top={}", depth - 1));
        // By component, as a walk goes.
        all.sort_by(|a, b| path_of(a).cmp(path_of(b)));
        all
    };
    for (depth, blocks) in [(1, 0), (2, 0), (64, 0), (65, 1), (113, 1), (114, 2), (500, 9), (DEPTH, 22)] {
        assert_eq!(seen(&s, &chain[..depth]).await, expected(depth), "{depth} layers");
        let made = fs::read_dir(root.join("squashed")).expect("listed").count();
        assert_eq!(made, blocks, "{depth} layers: each is merged once");
    }
    // As a parent of what is written, and after a restart.
    drop(s);
    let s = OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    commit(&s, "above", &chain, |root| {
        fs::remove_file(root.join("shared/1099")).expect("removed");
        fs::remove_dir_all(root.join("1099")).expect("removed");
    })
    .await;
    // A chain of N that said so of each would take N² bytes. It says it until somebody has time.
    let limit = Instant::now() + Duration::from_secs(30);
    while fs::read_to_string(root.join("committed/above/meta")).expect("read").contains("layer-") {
        assert!(Instant::now() < limit, "it still says what it was made on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut all = chain.clone();
    all.push("above");
    let mut left = expected(DEPTH);
    left.retain(|line| !line.starts_with("1099/") && line != "shared/1099=");
    assert_eq!(seen(&s, &all).await, left);
    // A layer takes along what was made of it; others of the merged ones are whole still.
    s.remove(&key("layer-17")).await.expect("removed");
    assert_eq!(fs::read_dir(root.join("squashed")).expect("listed").count(), 21);
    assert_eq!(files(&s.upper(&key("layer-16")).expect("there")).len(), 7);
    for info in s.walk().await.expect("walked") {
        s.remove(&info.key).await.expect("removed");
    }
    assert_eq!(leftovers(&root), [""; 0]);
}

/// What the layers of a block removed or replaced is below the block, in it, or nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_merged_layers_hide_stays_hidden() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let s = OverlaySnapshotter::open(&disk.path().join("root"), Tasks::new()).expect("opened");
    let mut chain = Vec::new();
    for n in 0..800 {
        s.prepare(&key("new"), &Parents::default()).await.expect("prepared");
        let upper = s.upper(&key("new")).expect("it stacks");
        let root = crate::fs::Root::open(&upper).expect("opened");
        let hide = |path: &str| root.mknod(path, crate::fs::Kind::WHITEOUT, 0).expect("whiteout");
        match n {
            // Below the block.
            10 => {
                for path in ["low/gone", "low/kept", "swap/low", "again/low", "opaque/low"] {
                    write(&upper, path, "low");
                }
            }
            // The block.
            300 => {
                for path in ["only/gone", "only/kept", "opaque/gone"] {
                    write(&upper, path, "block");
                }
                write(&upper, "swap", "a file");
                fs::create_dir(upper.join("low")).expect("made");
                hide("low/gone");
                hide("again");
            }
            310 => {
                write(&upper, "swap/new", "block");
                write(&upper, "again/new", "block");
                write(&upper, "opaque/new", "block");
                let keep = crate::fs::Last::Keep;
                root.set_xattr("opaque", "trusted.overlay.opaque", b"y", keep).expect("opaque");
                fs::create_dir(upper.join("only")).expect("made");
                hide("only/gone");
            }
            _ => {}
        }
        chain.push(format!("layer-{n}"));
        s.commit(&key(&chain[n]), &key("new")).await.expect("committed");
    }
    let chain: Vec<_> = chain.iter().map(String::as_str).collect();
    let expected = [
        "again/",
        "again/new=block",
        "low/",
        "low/kept=low",
        "only/",
        "only/kept=block",
        "opaque/",
        "opaque/new=block",
        "swap/",
        "swap/new=block",
    ];
    // As they are, and merged.
    for depth in [350, 800] {
        assert_eq!(seen(&s, &chain[..depth]).await, expected, "{depth} layers");
    }
    // A name that is listed need not be one that is found.
    s.view(&key("view"), &on(&s, &chain)).await.expect("viewed");
    let mounted = mount(&s, "view").await;
    let listed = fs::read_dir(mounted.path().join("only")).expect("listed");
    let names: Vec<_> = listed.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["kept"]);
}

/// A long chain can be seen where nothing can be made for it.
#[tokio::test]
async fn layers_that_can_not_be_merged_are_mounted_as_they_are() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join("root");
    let s = OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    let names = deep(&s, 70).await;
    let chain: Vec<_> = names.iter().map(String::as_str).collect();
    let expected = seen(&s, &chain[..64]).await.len() + 6;
    fs::remove_dir(root.join("squashed")).expect("removed");
    fs::write(root.join("squashed"), "in the way").expect("written");
    assert_eq!(seen(&s, &chain).await.len(), expected);
    fs::remove_file(root.join("squashed")).expect("removed");
    fs::create_dir(root.join("squashed")).expect("made");
    assert_eq!(seen(&s, &chain).await.len(), expected);
    assert_eq!(fs::read_dir(root.join("squashed")).expect("listed").count(), 1);
}

#[tokio::test]
async fn layers_of_many_files_are_merged_where_they_must_be() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join("root");
    let s = OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    let mut chain = Vec::new();
    for n in 0..549 {
        s.prepare(&key("new"), &Parents::default()).await.expect("prepared");
        let upper = s.upper(&key("new")).expect("it stacks");
        // Too many in each block but the second one.
        let count = if n % 50 == 20 && n != 70 { 1_000 } else { 1 };
        (0..count).for_each(|file| write(&upper, &format!("{n}-{file}"), ""));
        chain.push(format!("layer-{n}"));
        s.commit(&key(&chain[n]), &key("new")).await.expect("committed");
    }
    let chain: Vec<_> = chain.iter().map(String::as_str).collect();
    for (depth, blocks) in [(65, 0), (164, 1), (548, 1), (549, 2)] {
        let large = (0..depth).filter(|n| n % 50 == 20 && *n != 70).count();
        assert_eq!(seen(&s, &chain[..depth]).await.len(), depth + large * 999);
        let made = fs::read_dir(root.join("squashed")).expect("listed").count();
        assert_eq!(made, blocks, "{depth} layers");
    }
    assert!(!files(&root).iter().any(|path| path.starts_with("temporary/") && path != "temporary/"));
    for name in chain.iter().rev() {
        s.remove(&key(name)).await.expect("removed");
    }
    assert_eq!(leftovers(&root), [""; 0]);
}

/// Whatever the layers of a long chain do, it shows what a copy of all shows to which the same was done.
#[tokio::test]
async fn a_long_chain_shows_what_was_done() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let overlay = open(Kind::Overlay, &disk.path().join("overlay")).expect("opened");
    let native = open(Kind::Native, &disk.path().join("native")).expect("opened");
    let mut chance = 1_u64;
    let mut chain: Vec<String> = Vec::new();
    for n in 0..240 {
        let mut acts = Vec::new();
        for _ in 0..4 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            acts.push(chance >> 33);
        }
        let name = format!("layer-{n}");
        let all: Vec<_> = chain.iter().map(String::as_str).collect();
        let (top, act) =
            (all.last().copied(), |root: &Path| acts.iter().for_each(|seed| change(root, *seed)));
        commit(&*overlay, &name, &all, act).await;
        commit(&*native, &name, top.as_slice(), act).await;
        chain.push(name);
        if n % 10 == 9 {
            let all: Vec<_> = chain.iter().map(String::as_str).collect();
            let top = all.last().copied();
            assert_eq!(seen(&*overlay, &all).await, seen(&*native, top.as_slice()).await, "{n}");
        }
    }
    let made = fs::read_dir(disk.path().join("overlay/squashed")).expect("listed").count();
    assert_eq!(made, 4);
}

/// One of many changes.
fn change(root: &Path, seed: u64) {
    // So many names that what one block hides of another is not soon made anew.
    let (outer, inner, file) = (seed / 128 % 6, seed / 1024 % 4, seed / 8192 % 8);
    let path = match seed / 16 % 8 {
        0 => format!("d{outer}"),
        1 => format!("d{outer}/e{inner}"),
        2..5 => format!("d{outer}/e{inner}/{file}"),
        _ => format!("d{outer}/{file}"),
    };
    let path = root.join(path);
    let parent = path.parent().expect("a parent");
    // Errors are the same in both: something is in the way, or nothing is there.
    let _ = match seed % 16 {
        0 | 1 => fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)),
        2 => fs::create_dir_all(&path),
        3 => fs::remove_dir_all(&path).and_then(|()| fs::create_dir(&path)),
        4 => std::os::unix::fs::symlink("a", &path),
        5 => fs::hard_link(root.join("d1/1"), &path),
        6 => fs::remove_file(&path).and_then(|()| fs::create_dir(&path)),
        7..10 => fs::remove_file(&path),
        // Anew: an overlay does not write through another name of a file that is below.
        _ => {
            let _ = fs::remove_file(&path);
            fs::create_dir_all(parent).and_then(|()| fs::write(&path, seed.to_string()))
        }
    };
}

fn path_of(line: &str) -> &Path {
    Path::new(line.split('=').next().unwrap_or(line))
}

#[tokio::test]
async fn many_layers_have_short_names_in_the_list_of_mounts() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join(format!("a long, odd: name \\ {}", "x".repeat(200)));
    let s = OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    let names = deep(&s, 400).await;
    let chain: Vec<_> = names.iter().map(String::as_str).collect();
    s.view(&key("view"), &on(&s, &chain)).await.expect("viewed");
    let mounted = s.mount(&key("view"), true).await.expect("mounted");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let id = format!("/mounts/{} ", mounted.path().file_name().expect("a name").to_string_lossy());
    let line = mounts.lines().find(|line| line.contains(&id) && line.contains(&"x".repeat(200)));
    let line = line.expect("it is mounted");
    assert!(line.len() < 400 * 6 + 800, "{} bytes: {line}", line.len());
    let expected = files(mounted.path());
    assert!(fs::read_dir(root.join("l")).expect("listed").count() <= 400);
    // What is too much for one page is mounted in another way, and looks the same.
    let dirs = ["upper", "work", "target"].map(|name| disk.path().join(name));
    dirs.iter().for_each(|dir| fs::create_dir(dir).expect("made"));
    let [upper, work, target] = dirs;
    let lower = chain.iter().rev().map(|name| s.upper(&key(name)).expect("there")).collect();
    let overlay = Overlay { lower, lowest: None, upper: Some((upper.clone(), work)) };
    assert!(overlay.mount_without_names(&target));
    assert_eq!(files(&target), expected);
    write(&target, "new", "x");
    assert_eq!(files(&upper), ["new=x"]);
    mounted.unmount().await.expect("unmounted");
    s.remove(&key("view")).await.expect("removed");
    for name in chain {
        s.remove(&key(name)).await.expect("removed");
    }
    assert_eq!(leftovers(&root), [""; 0], "no name outlasts what it names");
}

#[tokio::test]
async fn what_is_changed_is_in_the_upper_directory_in_a_form_that_can_be_moved() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let s = OverlaySnapshotter::open(&disk.path().join("root"), Tasks::new()).expect("opened");
    commit(&s, "a", &[], |root| {
        write(root, "dir/file", "a");
        write(root, "gone", "a");
    })
    .await;
    commit(&s, "b", &["a"], |root| {
        fs::remove_file(root.join("gone")).expect("removed");
        // No redirect is noted: the directory is copied by who moves it, as `mv` does.
        let moved = fs::rename(root.join("dir"), root.join("moved"));
        assert_eq!(moved.expect_err("refused").kind(), std::io::ErrorKind::CrossesDevices);
        // The whole file is copied up, not its attributes only.
        fs::set_permissions(root.join("dir/file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("mode");
    })
    .await;
    let upper = s.upper(&key("b")).expect("it stacks");
    assert_eq!(files(&upper), ["dir/", "dir/file=a", "gone: CharDevice { major: 0, minor: 0 }"]);
    let committed = upper.parent().expect("a parent");
    assert_eq!(fs::read_dir(committed).expect("listed").count(), 2, "the work directory is gone");
    let mounts = {
        s.prepare(&key("n"), &on(&s, &["a", "b"])).await.expect("prepared");
        s.mounts(&key("n")).await.expect("listed")
    };
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].kind, "overlay");
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).expect("there");
    let root = disk.path().join("root");
    assert_eq!(lower, format!("{0}/committed/b/fs:{0}/committed/a/fs", root.display()));
    // What is listed can be mounted by others, as it is.
    let target = disk.path().join("elsewhere");
    fs::create_dir(&target).expect("made");
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&target).status();
        assert!(status.expect("started").success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "overlay", "-o", &mounts[0].options.join(","), "overlay"]);
    write(&target, "new", "n");
    mount(&["umount"]);
    s.commit(&key("c"), &key("n")).await.expect("committed");
    assert_eq!(seen(&s, &["a", "b", "c"]).await, ["dir/", "dir/file=a", "new=n"]);
    assert_eq!(fs::read_dir(root.join("committed/c")).expect("listed").count(), 2);
}

#[tokio::test]
async fn mount_points_are_seen_where_no_layer_says_anything_else() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join("root");
    let s = &OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    commit(s, "a", &[], |root| {
        for file in ["etc/conf", "var/run/pid", "opt/x", "gone/x", "file"] {
            write(root, file, "a");
        }
        fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o750)).expect("permissions");
        std::os::unix::fs::symlink("/var/run", root.join("run")).expect("a link");
    })
    .await;
    commit(s, "b", &["a"], |root| {
        fs::remove_dir_all(root.join("gone")).expect("removed");
        fs::remove_dir_all(root.join("opt")).expect("removed");
        write(root, "opt/y", "b");
    })
    .await;
    s.prepare(&key("new"), &on(s, &["a", "b"])).await.expect("prepared");
    let points = [
        ("/etc/hosts", PointKind::File),
        ("/etc/d", PointKind::Directory { mode: 0o1777 }),
        ("/missing/d", PointKind::File),
        ("/run/d", PointKind::File),
        ("/opt/d", PointKind::File),
        ("/gone/d", PointKind::File),
        ("/file/d", PointKind::File),
    ];
    let points = points.map(|(path, kind)| MountPoint { path: path.into(), kind });
    let mounted = s.mount_with(&key("new"), &points).await.expect("mounted");
    let expected = [
        "etc/",
        "etc/conf=a",
        "etc/d/",
        "etc/hosts=",
        "file=a",
        "opt/",
        "opt/y=b",
        "run->/var/run",
        "var/",
        "var/run/",
        "var/run/d=",
        "var/run/pid=a",
    ];
    assert_eq!(files(mounted.path()), expected);
    let mode = |path: &str| fs::metadata(mounted.path().join(path)).expect("it is seen").mode() & 0o7777;
    assert_eq!(["etc", "etc/d", "etc/hosts"].map(mode), [0o750, 0o1777, 0o755]);
    let upper = s.upper(&key("new")).expect("it stacks");
    assert_eq!(files(&upper), [""; 0]);
    // Without the layer itself, after a restart in mid-way.
    std::mem::forget(mounted);
    let s = &OverlaySnapshotter::open(&root, Tasks::new()).expect("opened");
    s.commit(&key("made"), &key("new")).await.expect("committed");
    assert_eq!(
        files(&root.join("committed/made")).iter().filter(|path| !path.starts_with("meta=")).count(),
        1
    );
    assert_eq!(seen(s, &["a", "b", "made"]).await, seen(s, &["a", "b"]).await);
}

#[test]
fn a_look_whether_overlays_work_survives_its_own_death() {
    let Some(disk) = Disk::new(FileSystem::Ext4) else { return };
    let root = disk.path().join("root");
    OverlaySnapshotter::supported(&root).expect("supported");
    assert_eq!(files(&root), [""; 0]);
    // As a kill leaves it: mounted, and marked as not to be mounted again.
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| root.join("overlay-check").join(name));
    [&lower, &upper, &work, &merged].into_iter().for_each(|dir| fs::create_dir_all(dir).expect("made"));
    let names = Names::new(&root.join("overlay-check"));
    Overlay { lower: vec![lower], lowest: None, upper: Some((upper, work)) }
        .mount(&names, &merged)
        .expect("mounted");
    OverlaySnapshotter::supported(&root).expect("supported");
    assert_eq!(files(&root), [""; 0]);
    assert_eq!(stale::below(&root).expect("mounts"), [""; 0].map(PathBuf::from));
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_leaves_nothing() {
    for kind in [Kind::Overlay, Kind::Native] {
        let Some(disk) = Disk::small() else { return };
        let root = disk.path().join("root");
        let s = &*open(kind, &root).expect("opened");
        commit(s, "a", &[], |root| write(root, "file", &"x".repeat(1 << 20))).await;
        let filler = disk.path().join("filler");
        let mut file = fs::File::create(&filler).expect("made");
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        // The last blocks go too.
        let mut n = 0;
        while fs::create_dir(disk.path().join(format!("dir-{n}"))).is_ok() {
            n += 1;
        }
        let before = leftovers(&root);
        let refused = s.prepare(&key("n"), &on(s, &["a"])).await;
        assert!(matches!(refused, Err(SnapshotError::NoSpace)), "{kind:?}: {refused:?}");
        assert_eq!(leftovers(&root), before, "{kind:?}");
        // A process that another test starts has all open files for a moment, and a file that is removed takes room while
        // anybody has it.
        file.set_len(0).expect("emptied");
        drop(file);
        fs::remove_file(&filler).expect("removed");
        s.prepare(&key("n"), &on(s, &["a"])).await.expect("there is room again");
        assert_eq!(files(mount(s, "n").await.path()).len(), 1);
    }
}

#[test]
fn an_overlay_that_the_kernel_makes_read_only_for_want_of_space_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let flags = rustix::mount::MountFlags::empty();
    // The root and the five below it.
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(c"nr_inodes=6")).expect("a tmpfs");
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| dir.path().join(name));
    [&lower, &upper, &work, &merged].into_iter().for_each(|dir| fs::create_dir(dir).expect("made"));
    let names = Names::new(dir.path());
    let refused =
        Overlay { lower: vec![lower], lowest: None, upper: Some((upper, work)) }.mount(&names, &merged);
    let below = stale::below(dir.path()).expect("mounts");
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    assert!(matches!(refused, Err(SnapshotError::NoSpace)), "{refused:?}");
    assert!(below.is_empty(), "{below:?}");
}

/// A power cut keeps the names of files that were written last, and loses their content.
#[tokio::test]
async fn what_a_power_cut_left_half_written_goes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for kind in [Kind::Overlay, Kind::Native] {
        let dir = tempfile::tempdir().expect("a directory");
        {
            let s = &*open(kind, dir.path()).expect("opened");
            for name in ["whole", "empty", "missing"] {
                commit(s, name, &[], |root| write(root, "file", name)).await;
            }
        }
        let meta = |name: &str| dir.path().join("committed").join(name).join("meta");
        fs::write(meta("empty"), "").expect("emptied");
        fs::remove_file(meta("missing")).expect("removed");
        let s = &*open(kind, dir.path()).expect("it opens all the same");
        let all = s.walk().await.expect("walked");
        assert_eq!(all.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(), ["whole"]);
        s.remove(&key("whole")).await.expect("removed");
        assert_eq!(leftovers(dir.path()), [""; 0]);
    }
}

#[test]
fn what_never_was_a_snapshot_is_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(dir.path().join("active/not ours")).expect("made");
    for kind in [Kind::Overlay, Kind::Native] {
        let refused = open(kind, dir.path()).expect_err("not ours");
        assert!(matches!(refused, SnapshotError::Damaged { .. }), "{refused}");
    }
    assert!(dir.path().join("active/not ours").exists());
}
