//! Layers that are unpacked, well meant and not.

mod hostile;
mod layered;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use data_encoding::HEXLOWER;
use sha2::Digest as _;
use sha2::Sha256;
use tempfile::TempDir;

use super::Applied;
use super::ApplyError;
use super::ApplyOptions;
use super::WhiteoutStyle;
use super::adopt;
use super::apply;
use crate::archive::Compression;
use crate::archive::Encoder;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Limits;
use crate::archive::Writer;
use crate::fs::Last;
use crate::fs::Root;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::Cover;

/// Devices, owners and overlay's attributes are root's to make.
pub(in crate::snapshot) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "these tests have to run as root");
    root
}

pub(in crate::snapshot) fn dir() -> (TempDir, Root) {
    let place = tempfile::tempdir().expect("a directory is made");
    let root = Root::open(place.path()).expect("it is opened");
    (place, root)
}

/// An entry with the bytes of a file.
pub(in crate::snapshot) type Member = (Entry, Vec<u8>);

pub(in crate::snapshot) fn file(path: &str, bytes: &[u8]) -> Member {
    let mut entry = Entry::new(path, EntryKind::File);
    (entry.mode, entry.mtime, entry.size) = (0o644, (1_600_000_000, 0), bytes.len() as u64);
    (entry, bytes.to_vec())
}

pub(in crate::snapshot) fn other(path: &str, kind: EntryKind) -> Member {
    let mut entry = Entry::new(path, kind);
    (entry.mode, entry.mtime) = (0o755, (1_600_000_000, 0));
    (entry, Vec::new())
}

fn directory(path: &str) -> Member {
    other(path, EntryKind::Dir)
}

fn symlink(path: &str, target: &str) -> Member {
    other(path, EntryKind::Symlink { target: target.into() })
}

fn hardlink(path: &str, target: &str) -> Member {
    other(path, EntryKind::Hardlink { target: target.into() })
}

pub(in crate::snapshot) fn layer(members: &[Member]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, bytes) in members {
        writer.append(entry, bytes.as_slice()).expect("it is written");
    }
    writer.finish().expect("it is written")
}

pub(in crate::snapshot) fn unpack(
    root: &Root,
    style: WhiteoutStyle,
    lower: Option<&Root>,
    layer: &[u8],
) -> Result<Applied, ApplyError> {
    apply(root, &ApplyOptions { style, lower, limits: Limits::default() }, layer)
}

fn overlay(root: &Root, members: &[Member]) -> Applied {
    unpack(root, WhiteoutStyle::Overlay, None, &layer(members)).expect("the layer is unpacked")
}

fn plain(root: &Root, members: &[Member]) -> Applied {
    unpack(root, WhiteoutStyle::Plain, None, &layer(members)).expect("the layer is unpacked")
}

/// What can be seen of a tree: a line for each path. The times of directories are left out on demand.
pub(in crate::snapshot) fn listing(root: &Path, dir_times: bool) -> BTreeMap<String, String> {
    let tree = Root::open(root).expect("it is opened");
    let mut lines = BTreeMap::new();
    for entry in tree.walk("").expect("it is walked") {
        let entry = entry.expect("it is walked");
        if entry.path.as_os_str().is_empty() {
            continue;
        }
        let full = root.join(&entry.path);
        let meta = fs::symlink_metadata(&full).expect("it is there");
        let content = if meta.is_file() {
            HEXLOWER.encode(&Sha256::digest(fs::read(&full).expect("it is readable")))
        } else if meta.is_symlink() {
            fs::read_link(&full).expect("it is a link").display().to_string()
        } else {
            meta.rdev().to_string()
        };
        let time = if meta.is_dir() && !dir_times {
            String::new()
        } else {
            format!("{}.{}", meta.mtime(), meta.mtime_nsec())
        };
        let xattrs = tree.xattrs(&entry.path, Last::Keep).expect("they are readable");
        let line = format!(
            "{:o} {}:{} {time} {} {content} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { 0 } else { meta.size() },
        );
        lines.insert(entry.path.display().to_string(), line);
    }
    lines
}

/// A mount that ends with its test.
pub(in crate::snapshot) struct TestMount(TempDir);

impl TestMount {
    pub(in crate::snapshot) fn new(kind: &str, options: &str) -> TestMount {
        let place = tempfile::tempdir().expect("a directory is made");
        let options = std::ffi::CString::new(options).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(kind, place.path(), kind, flags, Some(options.as_c_str()))
            .expect("it is mounted");
        TestMount(place)
    }

    pub(in crate::snapshot) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).expect("it is unmounted");
    }
}

fn exists(root: &Path, path: &str) -> bool {
    fs::symlink_metadata(root.join(path)).is_ok()
}

fn is_whiteout(root: &Path, path: &str) -> bool {
    fs::symlink_metadata(root.join(path))
        .is_ok_and(|meta| meta.mode() & 0o170_000 == 0o020_000 && meta.rdev() == 0)
}

fn is_opaque(root: &Root, path: &str) -> bool {
    let value = root.xattr(path, super::place::OPAQUE, Last::Keep).expect("it is asked");
    value.is_some_and(|value| value == b"y")
}

#[test]
fn all_that_an_entry_says_is_made() {
    if !is_root() {
        return;
    }
    let (place, root) = dir();
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut capable = file("bin/ping", b"ping");
    (capable.0.uid, capable.0.gid, capable.0.mode) = (1000, 1001, 0o6755);
    capable.0.mtime = (1_234_567_890, 123_456_789);
    capable.0.xattrs.insert(b"security.capability".to_vec(), capability.clone());
    let mut tmp = directory("tmp");
    tmp.0.mode = 0o1777;
    let null = other("dev/null", EntryKind::CharDevice { major: 1, minor: 3 });
    let members = [
        directory("bin"),
        capable,
        hardlink("bin/ping6", "bin/ping"),
        symlink("bin/sh", "/nowhere/busybox"),
        directory("dev"),
        null,
        other("dev/loop0", EntryKind::BlockDevice { major: 7, minor: 0 }),
        other("dev/pipe", EntryKind::Fifo),
        tmp,
        file("tmp/late", b""),
    ];
    let applied = overlay(&root, &members);
    let at = |path: &str| fs::symlink_metadata(place.path().join(path)).expect("it is there");
    let ping = at("bin/ping");
    assert_eq!((ping.mode() & 0o7777, ping.uid(), ping.gid(), ping.nlink()), (0o6755, 1000, 1001, 2));
    assert_eq!((ping.mtime(), ping.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(at("bin/ping6").ino(), ping.ino());
    let found = root.xattr("bin/ping", "security.capability", Last::Keep).expect("it is asked");
    assert_eq!(found, Some(capability));
    assert_eq!(fs::read_link(place.path().join("bin/sh")).expect("a link"), Path::new("/nowhere/busybox"));
    assert_eq!(at("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(at("dev/loop0").mode(), 0o060_755);
    assert_eq!(at("dev/pipe").mode(), 0o010_755);
    assert_eq!((at("tmp").mode() & 0o7777, at("tmp").mtime()), (0o1777, 1_600_000_000));
    assert!(applied.implied.is_empty());
    let bytes = layer(&members);
    assert_eq!(applied.diff_id, DiffId(Digest::sha256(&bytes)));
    assert_eq!(applied.size, bytes.len() as u64);
    let Cover::Present(late) = applied.index.cover(b"bin/ping") else { panic!("it is in the index") };
    assert_eq!(late.size, 4);
    assert_eq!(&bytes[late.offset as usize..][..4], b"ping");
}

/// The kernel stored them, and said "invalid argument" to whoever listed the attributes: nothing could copy or compare
/// such a file any more.
#[test]
fn empty_capabilities_are_none() {
    if !is_root() {
        return;
    }
    for style in [WhiteoutStyle::Overlay, WhiteoutStyle::Plain] {
        let (_place, root) = dir();
        let mut members = [file("f", b""), directory("d")];
        for (entry, _) in &mut members {
            entry.xattrs.insert(b"security.capability".to_vec(), Vec::new());
            entry.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        }
        unpack(&root, style, None, &layer(&members)).expect("it is unpacked");
        for path in ["f", "d"] {
            let xattrs = root.xattrs(path, Last::Keep).expect("they can be read");
            assert_eq!(xattrs.into_iter().collect::<Vec<_>>(), [("user.empty".into(), Vec::new())]);
        }
    }
}

#[test]
fn a_layer_of_any_compression_has_the_diff_id_of_its_whole_stream() {
    if !is_root() {
        return;
    }
    let mut bytes = layer(&[file("f", b"bytes")]);
    bytes.extend([0; 12_345]);
    for compression in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression, None).expect("a level");
        io::copy(&mut bytes.as_slice(), &mut encoder).expect("it is written");
        let stream = encoder.finish().expect("it is whole");
        let (place, root) = dir();
        let applied = unpack(&root, WhiteoutStyle::Overlay, None, &stream).expect("it is unpacked");
        assert_eq!(applied.compression, compression);
        assert_eq!(applied.diff_id, DiffId(Digest::sha256(&bytes)));
        assert_eq!(fs::read(place.path().join("f")).expect("it is there"), b"bytes");
    }
}

#[test]
fn a_full_disk_is_said_to_be_full_and_another_attempt_succeeds() {
    if !is_root() {
        return;
    }
    let disk = TestMount::new("tmpfs", "size=1m");
    fs::write(disk.path().join("other"), vec![1; 512 << 10]).expect("it is written");
    fs::create_dir(disk.path().join("layer")).expect("it is made");
    let root = Root::open(disk.path().join("layer")).expect("it is opened");
    let members = [file("a", &[1; 300 << 10]), file("b", &[2; 300 << 10]), file("c", b"3")];
    for style in [WhiteoutStyle::Overlay, WhiteoutStyle::Plain] {
        let error = unpack(&root, style, None, &layer(&members)).expect_err("there is no space");
        assert!(matches!(error, ApplyError::NoSpace), "{error}");
        root.remove_all("").expect("it is emptied");
    }
    fs::remove_file(disk.path().join("other")).expect("it is removed");
    overlay(&root, &members);
}

#[test]
fn gnu_tar_unpacks_the_same_tree() {
    if !is_root() {
        return;
    }
    let tar = Command::new("tar").arg("--version").output();
    assert!(tar.is_ok() || std::env::var_os("CI").is_none(), "tar has to be installed");
    if tar.is_err() {
        return;
    }
    let (source, _) = dir();
    let path = |name: &str| source.path().join(name);
    fs::create_dir_all(path("a/very/deep/tree")).expect("made");
    fs::write(path("a/very/deep/tree/file"), vec![1; 100_000]).expect("written");
    fs::hard_link(path("a/very/deep/tree/file"), path("a/link")).expect("linked");
    std::os::unix::fs::symlink("very/deep", path("a/symlink")).expect("linked");
    fs::write(path("n".repeat(150).as_str()), b"long").expect("written");
    let sparse = fs::File::create(path("sparse")).expect("made");
    sparse.set_len(10 << 20).expect("sized");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 5 << 20).expect("written");
    std::os::unix::fs::chown(path("a"), Some(12), Some(3_000_000)).expect("owned");
    rustix::fs::setxattr(path("a/link"), "user.note", b"\0\xff", rustix::fs::XattrFlags::empty())
        .expect("set");
    let mut files = Vec::new();
    for options in [
        &["--format=pax", "--xattrs"][..],
        &["--format=pax", "--xattrs", "--sparse"],
        &["--format=gnu", "--sparse"],
    ] {
        let mut command = Command::new("tar");
        command.args(["-cf", "-"]).args(options).arg("-C").arg(source.path()).arg(".");
        let packed = command.output().expect("tar runs");
        assert!(packed.status.success(), "{packed:?}");
        let (ours, root) = dir();
        let (theirs, _) = dir();
        let archive = theirs.path().join("packed.tar");
        fs::write(&archive, &packed.stdout).expect("written");
        let (tree, _) = dir();
        let mut command = Command::new("tar");
        command.args(["-xpf"]).arg(&archive).args([
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "-C",
        ]);
        let unpacked = command.arg(tree.path()).output().expect("tar runs");
        assert!(unpacked.status.success(), "{unpacked:?}");
        unpack(&root, WhiteoutStyle::Plain, None, &packed.stdout).expect("it is unpacked");
        assert_eq!(listing(ours.path(), true), listing(tree.path(), true), "{options:?}");
        files.push(fs::metadata(ours.path().join("sparse")).expect("it is there").blocks());
    }
    assert!(files[0] > 1000 && files[1] < 100 && files[2] < 100, "holes stay holes: {files:?}");
}

#[test]
fn what_comes_later_replaces_what_was_there() {
    if !is_root() {
        return;
    }
    for style in [WhiteoutStyle::Overlay, WhiteoutStyle::Plain] {
        let (place, root) = dir();
        let members = [
            directory("dir-to-file/sub"),
            file("dir-to-file/sub/f", b"1"),
            file("dir-to-file", b"2"),
            file("file-to-dir", b"3"),
            file("file-to-dir/f", b"4"),
        ];
        let error = unpack(&root, style, None, &layer(&members)).expect_err("a file is no directory");
        assert!(matches!(error, ApplyError::NotADirectory { .. }), "{error}");
        let members = [
            directory("d"),
            file("d/gone", b"1"),
            file("d", b"2"),
            symlink("l", "d"),
            directory("l"),
            file("l/f", b"3"),
            file("s", b"4"),
            symlink("s", "l/f"),
            file("s", b"5"),
            hardlink("h", "s"),
            file("s", b"6"),
        ];
        let (other_place, root) = dir();
        let applied = unpack(&root, style, None, &layer(&members)).expect("it is unpacked");
        drop(place);
        let read = |path: &str| fs::read(other_place.path().join(path)).expect("it is there");
        assert_eq!(
            (read("d"), read("l/f"), read("s"), read("h")),
            (b"2".into(), b"3".into(), b"6".into(), b"5".into())
        );
        assert_eq!(applied.index.cover(b"d/gone"), Cover::Hidden);
        assert_eq!(applied.index.entries().len(), 5);
    }
}

#[test]
fn links_that_stay_inside_are_followed() {
    if !is_root() {
        return;
    }
    let (place, root) = dir();
    let applied = overlay(
        &root,
        &[
            directory("usr/lib"),
            symlink("lib", "usr/lib"),
            file("lib/so", b"1"),
            symlink("usr/lib/up", "../../usr/./lib"),
            file("lib/up/so2", b"2"),
            symlink("new", "made/here"),
            file("new/f", b"3"),
            hardlink("hard", "lib/so"),
        ],
    );
    let read = |path: &str| fs::read(place.path().join(path)).expect("it is there");
    assert_eq!(
        (read("usr/lib/so"), read("usr/lib/so2"), read("made/here/f")),
        (b"1".into(), b"2".into(), b"3".into())
    );
    assert!(fs::symlink_metadata(place.path().join("lib")).expect("it is there").is_symlink());
    assert!(matches!(applied.index.cover(b"usr/lib/so"), Cover::Present(_)));
    assert_eq!(applied.implied, ["made", "made/here", "usr"].map(PathBuf::from));
}

#[test]
fn a_link_that_leads_through_nothing_and_out_again_makes_nothing_there() {
    if !is_root() {
        return;
    }
    let members = [
        symlink("l", "no/where/../../d/./e"),
        file("l/f", b"1"),
        // Where the link leads, a directory would go that is there by then.
        symlink("own", "d/.."),
        file("own/d", b"2"),
    ];
    let layer = layer(&members);
    let (lower, lower_root) = dir();
    fs::create_dir(lower.path().join("x")).expect("a directory is made");
    fs::create_dir(lower.path().join("no")).expect("a directory is made");
    std::os::unix::fs::symlink("../x", lower.path().join("no/where")).expect("linked");
    for style in [WhiteoutStyle::Overlay, WhiteoutStyle::Plain] {
        let (place, root) = dir();
        let applied = unpack(&root, style, None, &layer).expect("the layer is unpacked");
        let there: Vec<_> = listing(place.path(), false).into_keys().collect();
        assert_eq!(there, ["d", "l", "own"], "{style:?}");
        assert_eq!(applied.index.cover(b"no"), Cover::No);
        let implied: &[&str] = match style {
            WhiteoutStyle::Overlay => &["d", "d/e", "no", "no/where"],
            WhiteoutStyle::Plain => &[],
        };
        assert_eq!(applied.implied, implied.iter().map(PathBuf::from).collect::<Vec<_>>());
        if style == WhiteoutStyle::Overlay {
            // Below, the link leads elsewhere.
            assert!(!adopt(&root, &lower_root, &applied.implied, &applied.index).expect("it is looked at"));
        }
    }
    let (place, root) = dir();
    unpack(&root, WhiteoutStyle::Overlay, Some(&lower_root), &layer).expect("the layer is unpacked");
    assert!(listing(place.path(), false).contains_key("d"));
}

#[test]
fn a_whiteout_that_a_link_leads_through_stays_one() {
    if !is_root() {
        return;
    }
    let (place, root) = dir();
    let members = [file(".wh.w", b""), symlink("l", "w/../d"), file("l/f", b"1")];
    let applied = overlay(&root, &members);
    assert!(is_whiteout(place.path(), "w"));
    assert_eq!(applied.index.cover(b"w"), Cover::Hidden);
    assert!(exists(place.path(), "d/f"));
}
