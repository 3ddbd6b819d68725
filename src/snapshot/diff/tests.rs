//! Changes that are found, written, and unpacked again.

mod settle;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use proptest::collection;
use proptest::prelude::*;

use super::ChangeKind;
use super::Changes;
use super::DiffError;
use super::WriteLayer;
use super::diff_trees;
use super::diff_upper;
use super::write_layer;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Reader;
use crate::fs::CopyOptions;
use crate::fs::FileTime;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::fs::copy_tree;
use crate::snapshot::WhiteoutStyle;
use crate::snapshot::apply::tests::TestMount;
use crate::snapshot::apply::tests::dir;
use crate::snapshot::apply::tests::is_root;
use crate::snapshot::apply::tests::listing;
use crate::snapshot::apply::tests::unpack;

fn written(changes: &Changes) -> Vec<u8> {
    let mut out = Vec::new();
    write_layer(changes, &WriteLayer::default(), &mut out).expect("it is written");
    out
}

fn entries(layer: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(layer);
    std::iter::from_fn(|| reader.next_entry().expect("it is read")).collect()
}

fn names(layer: &[u8]) -> Vec<String> {
    entries(layer).into_iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

/// Whole seconds, as a layer has them.
fn settle(root: &Root, path: &Path, seconds: i64) {
    let mtime = Some(FileTime { seconds, nanos: 0 });
    root.set_meta(path, &MetaChange { mtime, ..MetaChange::default() }, Last::Keep).expect("it is set");
}

fn copy(from: &Root) -> (tempfile::TempDir, Root) {
    let (place, root) = dir();
    copy_tree(from, "", &root, "", &CopyOptions::default()).expect("it is copied");
    (place, root)
}

fn write(place: &Path, path: &str, bytes: &[u8]) {
    let path = place.join(path);
    fs::create_dir_all(path.parent().expect("it has a parent")).expect("it is made");
    fs::write(path, bytes).expect("it is written");
}

#[test]
fn parents_come_before_what_changed_in_them_and_names_that_are_gone_are_whited_out() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    for path in ["a/b/kept", "a/b/gone", "a/tree/x/y", "to-file/f", "to-dir", "same/f"] {
        write(lower_place.path(), path, path.as_bytes());
    }
    let (place, upper) = copy(&lower);
    let at = |path: &str| place.path().join(path);
    fs::remove_file(at("a/b/gone")).expect("removed");
    fs::remove_dir_all(at("a/tree")).expect("removed");
    fs::remove_dir_all(at("to-file")).expect("removed");
    write(place.path(), "to-file", b"1");
    fs::remove_file(at("to-dir")).expect("removed");
    write(place.path(), "to-dir/f", b"2");
    write(place.path(), "a-b", b"3");
    let layer = written(&diff_trees(Some(&lower), &upper).expect("compared"));
    assert_eq!(
        names(&layer),
        ["a", "a/b", "a/b/.wh.gone", "a/.wh.tree", "a-b", "to-dir", "to-dir/f", "to-file"]
    );
    let gone = &entries(&layer)[2];
    assert_eq!((gone.mode, gone.mtime, gone.size), (0, (0, 0), 0));
    assert!(diff_trees(Some(&lower), &lower).expect("compared").is_empty());
    assert!(diff_trees(Some(&lower), &copy(&lower).1).expect("compared").changes().is_empty());
}

#[test]
fn bytes_that_changed_behind_an_equal_time_are_seen() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    write(lower_place.path(), "f", b"one");
    write(lower_place.path(), "g", b"one");
    settle(&lower, Path::new("f"), 1_000_000_000);
    let (place, upper) = copy(&lower);
    fs::write(place.path().join("f"), b"two").expect("written");
    settle(&upper, Path::new("f"), 1_000_000_000);
    let changes = diff_trees(Some(&lower), &upper).expect("compared");
    let paths: Vec<_> = changes.changes().iter().map(|change| change.path.as_path()).collect();
    assert_eq!(paths, [Path::new("f")]);
}

#[test]
fn no_time_in_a_layer_is_later_than_the_epoch() {
    if !is_root() {
        return;
    }
    let (place, upper) = dir();
    write(place.path(), "early", b"");
    write(place.path(), "late", b"");
    settle(&upper, Path::new("early"), 10);
    let mut layer = Vec::new();
    let options = WriteLayer { epoch: Some(1000) };
    write_layer(&diff_trees(None, &upper).expect("compared"), &options, &mut layer).expect("written");
    let times: Vec<_> = entries(&layer).into_iter().map(|entry| entry.mtime).collect();
    assert_eq!(times, [(10, 0), (1000, 0)]);
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    write(lower_place.path(), "d/first", b"bytes");
    write(lower_place.path(), "z/changed", b"bytes");
    settle(&lower, Path::new("d/first"), 1_000_000_000);
    let (place, upper) = copy(&lower);
    let at = |path: &str| place.path().join(path);
    // A new name of a file that did not change, and two of a new file.
    fs::hard_link(at("d/first"), at("e")).expect("linked");
    write(place.path(), "x", b"new");
    fs::hard_link(at("x"), at("z/y")).expect("linked");
    let layer = written(&diff_trees(Some(&lower), &upper).expect("compared"));
    assert_eq!(names(&layer), ["d", "d/first", "e", "x", "z", "z/y"]);
    let kinds: Vec<_> = entries(&layer).into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds[2], EntryKind::Hardlink { target: b"d/first".to_vec() });
    assert_eq!(kinds[5], EntryKind::Hardlink { target: b"x".to_vec() });
    unpack(&lower, WhiteoutStyle::Plain, None, &layer).expect("it is unpacked");
    let inode = |path: &str| fs::metadata(lower_place.path().join(path)).expect("there").ino();
    assert_eq!((inode("e"), inode("x")), (inode("d/first"), inode("z/y")));
}

#[test]
fn sockets_are_left_out_and_hide_what_they_replaced() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    write(lower_place.path(), "replaced", b"1");
    let (place, upper) = copy(&lower);
    fs::remove_file(place.path().join("replaced")).expect("removed");
    for name in ["replaced", "new"] {
        let socket = UnixListener::bind(place.path().join(name)).expect("bound");
        drop(socket);
        assert!(fs::symlink_metadata(place.path().join(name)).expect("there").file_type().is_socket());
    }
    let layer = written(&diff_trees(Some(&lower), &upper).expect("compared"));
    assert_eq!(names(&layer), [".wh.replaced"]);
}

#[test]
fn attributes_of_files_are_kept_and_those_of_the_host_are_not() {
    if !is_root() {
        return;
    }
    let (place, upper) = dir();
    write(place.path(), "f", b"");
    for (name, value) in [
        ("user.note", &b"mine"[..]),
        ("trusted.overlay.origin", b"x"),
        ("trusted.kept", b"x"),
        ("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        rustix::fs::setxattr(place.path().join("f"), name, value, rustix::fs::XattrFlags::empty())
            .expect("set");
    }
    let layer = written(&diff_trees(None, &upper).expect("compared"));
    let names: Vec<_> = entries(&layer)[0].xattrs.keys().cloned().collect();
    assert_eq!(names, [&b"security.capability"[..], b"trusted.kept", b"user.note"]);
}

#[test]
fn an_upper_directory_with_redirects_is_refused() {
    if !is_root() {
        return;
    }
    let (place, upper) = dir();
    write(place.path(), "d/f", b"");
    upper.set_xattr("d", "trusted.overlay.redirect", b"/elsewhere", Last::Keep).expect("set");
    let error = diff_upper(&upper).expect_err("it is refused");
    assert!(matches!(error, DiffError::Redirected { path } if path == Path::new("d")));
}

#[test]
fn a_settled_directory_is_a_layer_that_makes_it_again() {
    if !is_root() {
        return;
    }
    let (place, upper) = dir();
    write(place.path(), "dir/new", b"1");
    for path in ["dir/gone", "gone"] {
        upper.mknod(path, crate::fs::Kind::WHITEOUT, 0).expect("made");
    }
    let layer = written(&diff_upper(&upper).expect("listed"));
    assert_eq!(names(&layer), ["dir", "dir/.wh.gone", "dir/new", ".wh.gone"]);
    let (again_place, again) = dir();
    unpack(&again, WhiteoutStyle::Overlay, None, &layer).expect("unpacked");
    assert_eq!(
        listing(again_place.path(), false).into_keys().collect::<Vec<_>>(),
        listing(place.path(), false).into_keys().collect::<Vec<_>>()
    );
    // Of a tree below it makes what the directory would.
    let (tree_place, tree) = dir();
    for path in ["dir/gone/f", "dir/kept", "gone"] {
        write(tree_place.path(), path, b"0");
    }
    unpack(&tree, WhiteoutStyle::Plain, None, &layer).expect("unpacked");
    let left: Vec<_> = listing(tree_place.path(), false).into_keys().collect();
    assert_eq!(left, ["dir", "dir/kept", "dir/new"]);
}

/// A change of a tree. Names are few, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Write(String, Vec<u8>),
    Remove(String),
    Dir(String),
    Link(String, String),
    Hard(String, String),
    Mode(String, u32),
    Owner(String, u32),
    Attribute(String, u8),
    Fifo(String),
}

fn path() -> impl Strategy<Value = String> {
    collection::vec(prop::sample::select(vec!["a", "b", "b-c", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), collection::vec(any::<u8>(), 0..3)).prop_map(|(path, bytes)| Step::Write(path, bytes)),
        3 => path().prop_map(Step::Remove),
        2 => path().prop_map(Step::Dir),
        1 => (path(), path()).prop_map(|(path, to)| Step::Link(path, to)),
        1 => (path(), path()).prop_map(|(path, to)| Step::Hard(path, to)),
        1 => (path(), 0..=0o7777u32).prop_map(|(path, mode)| Step::Mode(path, mode)),
        1 => (path(), 0..9u32).prop_map(|(path, owner)| Step::Owner(path, owner)),
        1 => (path(), any::<u8>()).prop_map(|(path, value)| Step::Attribute(path, value)),
        1 => path().prop_map(Step::Fifo),
    ]
}

/// True if no component but the last is anything else than a directory.
fn in_dirs(place: &Path, path: &str) -> bool {
    Path::new(path)
        .ancestors()
        .skip(1)
        .all(|parent| fs::symlink_metadata(place.join(parent)).is_ok_and(|meta| meta.is_dir()))
}

/// Takes a step as far as it makes sense, at a time that is the step's own.
fn take(place: &Path, root: &Root, step: &Step, seconds: i64) {
    let clear = |path: &str| root.remove_all(path).expect("it is removed");
    let (Step::Write(path, _)
    | Step::Remove(path)
    | Step::Dir(path)
    | Step::Link(path, _)
    | Step::Hard(path, _)
    | Step::Mode(path, _)
    | Step::Owner(path, _)
    | Step::Attribute(path, _)
    | Step::Fifo(path)) = step;
    if !in_dirs(place, path) {
        return;
    }
    let full = place.join(path);
    let found = fs::symlink_metadata(&full).ok();
    match step {
        Step::Write(_, bytes) => {
            clear(path);
            fs::write(&full, bytes).expect("written");
        }
        Step::Remove(_) => return clear(path),
        Step::Dir(_) if found.as_ref().is_some_and(fs::Metadata::is_dir) => return,
        Step::Dir(_) => {
            clear(path);
            fs::create_dir(&full).expect("made");
        }
        Step::Link(_, to) => {
            clear(path);
            symlink(to, &full).expect("linked");
        }
        Step::Hard(_, to) => {
            let target = place.join(to);
            if to == path || !in_dirs(place, to) || !fs::symlink_metadata(&target).is_ok_and(|m| m.is_file())
            {
                return;
            }
            clear(path);
            // It may have been in what was cleared.
            if fs::hard_link(&target, &full).is_err() {
                return;
            }
        }
        Step::Mode(_, mode) if found.as_ref().is_some_and(|found| !found.is_symlink()) => {
            fs::set_permissions(&full, fs::Permissions::from_mode(*mode)).expect("set");
        }
        Step::Owner(_, owner) if found.is_some() => {
            std::os::unix::fs::lchown(&full, Some(*owner), Some(*owner)).expect("set");
        }
        Step::Attribute(_, value)
            if found.as_ref().is_some_and(|found| found.is_file() || found.is_dir()) =>
        {
            root.set_xattr(path, "user.note", &[*value], Last::Keep).expect("set");
        }
        Step::Fifo(_) => {
            clear(path);
            root.mknod(path, crate::fs::Kind::Fifo, 0o644).expect("made");
        }
        Step::Mode(..) | Step::Owner(..) | Step::Attribute(..) => return,
    }
    settle(root, Path::new(path), seconds);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever is done to a tree: the layer of it makes the same tree of the old one, in a whole tree as
    /// in an overlay's directory, and from the latter the same layer is found again.
    #[test]
    fn a_layer_makes_of_the_old_tree_the_new_one(
        before in collection::vec(step(), 0..25),
        after in collection::vec(step(), 0..25),
    ) {
        if !is_root() {
            return Ok(());
        }
        let (lower_place, lower) = dir();
        for (at, step) in before.iter().enumerate() {
            take(lower_place.path(), &lower, step, 1_000_000_000 + at as i64);
        }
        let (place, upper) = copy(&lower);
        for (at, step) in after.iter().enumerate() {
            take(place.path(), &upper, step, 1_000_001_000 + at as i64);
        }
        let changes = diff_trees(Some(&lower), &upper).expect("compared");
        let layer = written(&changes);

        let (again_place, again) = copy(&lower);
        unpack(&again, WhiteoutStyle::Plain, None, &layer).expect("it is unpacked");
        prop_assert_eq!(listing(again_place.path(), false), listing(place.path(), false));

        let (own_place, own) = dir();
        let applied = unpack(&own, WhiteoutStyle::Overlay, None, &layer).expect("it is unpacked");
        prop_assert!(applied.implied.is_empty());
        let found = diff_upper(&own).expect("compared");
        prop_assert_eq!(names(&written(&found)), names(&layer));
        prop_assert!(written(&found) == layer);

        // The kernel sees in both directories the tree that was meant.
        let both = format!("lowerdir={}:{}", own_place.path().display(), lower_place.path().display());
        let mounted = TestMount::new("overlay", &both);
        prop_assert_eq!(listing(mounted.path(), false), listing(place.path(), false));

        // The index says of every path what the list of changes says.
        for change in changes.changes() {
            use std::os::unix::ffi::OsStrExt as _;
            let cover = applied.index.cover(OsStr::as_bytes(change.path.as_os_str()));
            let removed = matches!(cover, crate::snapshot::Cover::Hidden);
            prop_assert_eq!(removed, change.kind == ChangeKind::Removed, "{:?}", change);
        }
    }
}
