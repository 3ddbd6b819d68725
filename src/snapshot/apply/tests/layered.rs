//! Layers over others: whiteouts, hard links, implied directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::super::ApplyError;
use super::super::WhiteoutStyle;
use super::super::adopt;
use super::Member;
use super::dir;
use super::directory;
use super::exists;
use super::file;
use super::hardlink;
use super::is_opaque;
use super::is_root;
use super::is_whiteout;
use super::layer;
use super::listing;
use super::overlay;
use super::plain;
use super::symlink;
use super::unpack;
use crate::fs::Last;
use crate::fs::Root;
use crate::snapshot::Cover;

#[test]
fn whiteouts_become_overlays_in_a_directory_of_its_own() {
    if !is_root() {
        return;
    }
    let (place, root) = dir();
    let applied = overlay(
        &root,
        &[
            file("a/.wh.gone", b""),
            file("b/.wh..wh..opq", b""),
            file("b/new", b"1"),
            file(".wh..wh.plnk/77", b"skipped"),
            file(".wh..wh.orph", b"skipped"),
            // Removed below and made anew, in both orders.
            file(".wh.first", b""),
            directory("first"),
            directory("last"),
            file(".wh.last", b""),
            file(".wh.implied", b""),
            file("implied/f", b"2"),
            file(".wh.file", b""),
            file("file", b"3"),
            file("kept", b"4"),
            file(".wh.kept", b""),
        ],
    );
    assert!(is_whiteout(place.path(), "a/gone") && !exists(place.path(), "a/.wh.gone"));
    for opaque in ["b", "first", "last", "implied"] {
        assert!(is_opaque(&root, opaque), "{opaque}");
        assert_eq!(applied.index.cover(format!("{opaque}/other").as_bytes()), Cover::Hidden, "{opaque}");
    }
    assert!(!is_opaque(&root, "a"));
    assert!(!exists(place.path(), ".wh..wh.orph"));
    assert_eq!(fs::read(place.path().join("file")).expect("it is there"), b"3");
    assert_eq!(fs::read(place.path().join("kept")).expect("it is there"), b"4");
    assert_eq!(applied.index.cover(b"a/gone"), Cover::Hidden);
    assert_eq!(applied.index.cover(b"a/gone/beneath"), Cover::Hidden);
    assert_eq!(applied.index.cover(b"a/other"), Cover::No);
    assert!(matches!(applied.index.cover(b"b/new"), Cover::Present(_)));
    assert_eq!(applied.index.cover(b"implied"), Cover::Implied { opaque: true });
}

#[test]
fn whiteouts_delete_in_a_whole_tree_what_is_of_layers_below() {
    if !is_root() {
        return;
    }
    let (place, root) = dir();
    let below = [
        file("a/gone", b"1"),
        file("a/stays", b"1"),
        file("b/old/deep", b"1"),
        file("b/old2", b"1"),
        file("c/old", b"1"),
        file("d/old", b"1"),
        file("e", b"1"),
    ];
    plain(&root, &below);
    plain(
        &root,
        &[
            file("a/.wh.gone", b""),
            file("a/.wh.never-was", b""),
            file("b/new", b"2"),
            file("b/.wh..wh..opq", b""),
            file("c/new", b"2"),
            file(".wh.c", b""),
            file(".wh.d", b""),
            file("d/new", b"2"),
            file("e", b"2"),
            file(".wh.e", b""),
        ],
    );
    let all = listing(place.path(), false);
    let paths: Vec<&str> = all.keys().map(String::as_str).collect();
    assert_eq!(paths, ["a", "a/stays", "b", "b/new", "c", "c/new", "d", "d/new", "e"]);
    assert_eq!(fs::read(place.path().join("e")).expect("it is there"), b"2");
}

#[test]
fn a_directory_has_the_attributes_of_its_last_entry_alone() {
    if !is_root() {
        return;
    }
    let (_place, root) = dir();
    let mut noted = directory("d");
    for name in ["user.a", "user.b"] {
        noted.0.xattrs.insert(name.into(), "1".into());
    }
    plain(&root, &[noted.clone()]);
    noted.0.xattrs.remove(&b"user.a"[..]);
    noted.0.xattrs.insert("user.b".into(), "2".into());
    plain(&root, &[noted]);
    let names = || root.xattrs("d", Last::Keep).expect("attributes");
    assert_eq!(names().into_iter().collect::<Vec<_>>(), [("user.b".into(), b"2".to_vec())]);
    plain(&root, &[directory("d")]);
    assert!(names().is_empty());
    let (_place, root) = dir();
    overlay(&root, &[file("d/.wh..wh..opq", b""), directory("d")]);
    assert!(is_opaque(&root, "d"), "what overlays are steered by stays");
}

#[test]
fn a_hard_link_to_an_earlier_layer_needs_that_layer() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    let mut below = file("bin/tool", b"tool");
    (below.0.uid, below.0.mode) = (7, 0o4755);
    plain(&lower, &[directory("bin"), below]);
    fs::set_permissions(lower_place.path().join("bin"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("it is set");
    let linking = layer(&[hardlink("also", "bin/tool")]);

    let (_place, root) = dir();
    let error = unpack(&root, WhiteoutStyle::Overlay, None, &linking).expect_err("it is not there");
    assert!(matches!(error, ApplyError::NeedsLower { .. }), "{error}");

    let (place, root) = dir();
    unpack(&root, WhiteoutStyle::Overlay, Some(&lower), &linking).expect("it is unpacked");
    let also = fs::metadata(place.path().join("also")).expect("it is there");
    let tool = fs::metadata(place.path().join("bin/tool")).expect("it was copied up");
    assert_eq!((also.ino(), also.uid(), also.mode() & 0o7777), (tool.ino(), 7, 0o4755));
    assert_eq!(fs::metadata(place.path().join("bin")).expect("it is there").mode() & 0o7777, 0o700);
    assert_eq!(fs::read(place.path().join("also")).expect("it is there"), b"tool");

    unpack(&lower, WhiteoutStyle::Plain, None, &linking).expect("it is all there");
    assert_eq!(fs::metadata(lower_place.path().join("also")).expect("it is there").nlink(), 2);

    for style in [WhiteoutStyle::Overlay, WhiteoutStyle::Plain] {
        let (_place, root) = dir();
        let nothing = layer(&[hardlink("also", "nowhere")]);
        let error = unpack(&root, style, Some(&lower), &nothing).expect_err("nothing has it");
        assert!(matches!(error, ApplyError::MissingTarget { .. }), "{error}");
    }
}

#[test]
fn directories_that_are_implied_are_like_those_below() {
    if !is_root() {
        return;
    }
    let (_lower_place, lower) = dir();
    let mut tmp = directory("tmp");
    (tmp.0.mode, tmp.0.gid) = (0o1777, 9);
    plain(&lower, &[tmp, directory("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")]);
    let mode = |place: &Path, path: &str| {
        let meta = fs::metadata(place.join(path)).expect("it is there");
        (meta.mode() & 0o7777, meta.gid(), meta.mtime())
    };

    let (place, root) = dir();
    let adding = layer(&[file("tmp/f", b""), file("new/f", b"")]);
    let applied = unpack(&root, WhiteoutStyle::Overlay, None, &adding).expect("it is unpacked");
    assert_eq!(applied.implied, [Path::new("new"), Path::new("tmp")]);
    assert_eq!(mode(place.path(), "tmp"), (0o755, 0, 0));
    assert_eq!(mode(place.path(), "new"), (0o755, 0, 0));

    let (place, root) = dir();
    let applied = unpack(&root, WhiteoutStyle::Overlay, Some(&lower), &adding).expect("it is unpacked");
    assert!(applied.implied.is_empty());
    assert_eq!(mode(place.path(), "tmp"), (0o1777, 9, 1_600_000_000));

    // Where the tree below has a link, the files belong where it leads.
    let linked = layer(&[file("lib/f", b"1"), file("abs/g", b"2")]);
    let (_place, root) = dir();
    let applied = unpack(&root, WhiteoutStyle::Overlay, None, &linked).expect("it is unpacked");
    assert_eq!(applied.implied, [Path::new("abs"), Path::new("lib")]);
    let (place, root) = dir();
    let applied = unpack(&root, WhiteoutStyle::Overlay, Some(&lower), &linked).expect("it is unpacked");
    assert!(exists(place.path(), "usr/lib/f") && exists(place.path(), "usr/lib/g"));
    assert!(!exists(place.path(), "lib"));
    assert!(matches!(applied.index.cover(b"usr/lib/f"), Cover::Present(_)));
    unpack(&lower, WhiteoutStyle::Plain, None, &linked).expect("it is unpacked");
    assert_eq!(lower.stat("usr/lib/g", Last::Keep).expect("it is asked").map(|m| m.size), Some(1));
}

/// A file that replaced such a directory was given the owner and the mode of the directory below. Where the directory had
/// another one in it, the layer could not be unpacked.
#[test]
fn what_replaces_an_implied_directory_is_not_like_the_one_below() {
    if !is_root() {
        return;
    }
    let (_lower_place, lower) = dir();
    let mut below = directory("a");
    (below.0.mode, below.0.uid) = (0o1777, 9);
    plain(&lower, &[below, directory("p/q"), directory("s")]);
    assert_adopted(
        &lower,
        &[
            file("a/f", b""),
            file("a", b"1"),
            file("p/q/f", b""),
            symlink("p", "a"),
            file("s/f", b""),
            directory("s"),
        ],
    );
}

/// What went into a directory before its entry came was not looked for where a link below leads.
#[test]
fn an_entry_that_comes_late_does_not_undo_where_a_link_led() {
    if !is_root() {
        return;
    }
    let (_lower_place, lower) = dir();
    plain(&lower, &[directory("b"), symlink("a", "b")]);
    for late in [directory("a"), file("a", b""), symlink("a", "c")] {
        let (_place, root) = dir();
        let alone = overlay(&root, &[file("a/f", b""), late]);
        assert_eq!(alone.implied, [Path::new("a")]);
        assert!(!adopt(&root, &lower, &alone.implied, &alone.index).expect("it is asked"));
    }
}

/// Adopted, a layer is what it would be if it had been unpacked over the tree below.
fn assert_adopted(lower: &Root, members: &[Member]) {
    let (over_place, over) = dir();
    unpack(&over, WhiteoutStyle::Overlay, Some(lower), &layer(members)).expect("it is unpacked");
    let (place, root) = dir();
    let alone = overlay(&root, members);
    assert!(adopt(&root, lower, &alone.implied, &alone.index).expect("it is asked"));
    assert_eq!(listing(place.path(), false), listing(over_place.path(), false));
}

#[test]
fn a_directory_that_replaces_what_is_none_hides_what_is_below() {
    if !is_root() {
        return;
    }
    let below = [directory("d"), file("d/low", b""), directory("l"), file("l/low", b"")];
    let (replaced, linked) = (file("d", b"1"), symlink("l", "d"));
    let members = [replaced, linked, directory("d"), file("d/new", b"2"), directory("l")];
    let (whole, whole_root) = dir();
    plain(&whole_root, &below);
    plain(&whole_root, &members);
    let there: Vec<_> = listing(whole.path(), false).into_keys().collect();
    assert_eq!(there, ["d", "d/new", "l"]);
    let (_place, root) = dir();
    let applied = overlay(&root, &members);
    for path in ["d", "l"] {
        assert!(is_opaque(&root, path), "{path}");
        let Cover::Present(said) = applied.index.cover(path.as_bytes()) else {
            panic!("{path} is not there")
        };
        assert!(said.opaque, "{path}");
    }
}

#[test]
fn a_link_below_that_the_layer_hides_leads_nowhere() {
    if !is_root() {
        return;
    }
    let (_lower, lower) = dir();
    let linked = ["w", "o", "shown"].map(|at| [directory(at), symlink(&format!("{at}/l"), "/x")]);
    plain(&lower, &[vec![directory("x")], linked.concat()].concat());
    let members = [
        file(".wh.w", b""),
        file("w/l/f", b""),
        file("o/.wh..wh..opq", b""),
        file("o/l/f", b""),
        file("shown/l/f", b""),
    ];
    let (place, root) = dir();
    unpack(&root, WhiteoutStyle::Overlay, Some(&lower), &layer(&members)).expect("it is unpacked");
    let there: Vec<_> = listing(place.path(), false).into_keys().collect();
    assert_eq!(there, ["o", "o/l", "o/l/f", "shown", "w", "w/l", "w/l/f", "x", "x/f"]);
}
