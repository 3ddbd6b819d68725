//! Layers that nobody should send. Each ends in a typed error, and nothing outside is touched.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proptest::collection;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::ApplyError;
use super::super::ApplyOptions;
use super::super::WhiteoutStyle;
use super::super::apply;
use super::Member;
use super::directory;
use super::file;
use super::hardlink;
use super::is_root;
use super::layer;
use super::listing;
use super::other;
use super::symlink;
use super::unpack;
use crate::archive::ArchiveError;
use crate::archive::EntryKind;
use crate::archive::Limit;
use crate::archive::Limits;
use crate::archive::Unsafe;
use crate::fs::Root;

const STYLES: [WhiteoutStyle; 2] = [WhiteoutStyle::Overlay, WhiteoutStyle::Plain];

/// A root with things beside it that must stay as they are.
struct Outside {
    place: TempDir,
    before: Vec<(String, String)>,
}

impl Outside {
    fn new() -> Outside {
        let place = tempfile::tempdir().expect("a directory is made");
        for path in ["root", "victim", "victim/sub"] {
            fs::create_dir(place.path().join(path)).expect("it is made");
        }
        fs::write(place.path().join("victim/file"), b"precious").expect("it is written");
        fs::write(place.path().join("victim/sub/file"), b"precious").expect("it is written");
        let before = Outside::state(place.path());
        Outside { place, before }
    }

    /// All but what is beneath the root, with times and numbers of links.
    fn state(place: &Path) -> Vec<(String, String)> {
        let outside = listing(place, true).into_iter().filter(|(path, _)| !path.starts_with("root"));
        let state = outside.map(|(path, line)| {
            let links = fs::symlink_metadata(place.join(&path)).expect("it is there").nlink();
            (path, format!("{line} {links}"))
        });
        state.collect()
    }

    fn root(&self) -> Root {
        Root::open(self.place.path().join("root")).expect("it is opened")
    }

    fn assert_untouched(&self) {
        assert_eq!(Outside::state(self.place.path()), self.before);
    }
}

/// Unpacks in both styles; the errors of both, and nothing outside.
fn refused(members: &[Member]) -> [ApplyError; 2] {
    STYLES.map(|style| {
        let outside = Outside::new();
        let error = unpack(&outside.root(), style, None, &layer(members)).expect_err("it is refused");
        outside.assert_untouched();
        error
    })
}

#[test]
fn absolute_paths_and_parents_are_refused() {
    if !is_root() {
        return;
    }
    let cases = [
        (file("/etc/passwd", b"x"), Unsafe::Absolute),
        (file("../victim/file", b"x"), Unsafe::ParentComponent),
        (directory("a/../../victim"), Unsafe::ParentComponent),
        (symlink("../victim/link", "x"), Unsafe::ParentComponent),
        (file("../.wh.victim", b""), Unsafe::ParentComponent),
        (hardlink("a", "../victim/file"), Unsafe::ParentComponent),
    ];
    for (member, expected) in cases {
        for error in refused(&[member]) {
            match error {
                ApplyError::Archive(ArchiveError::UnsafePath { reason, .. }) => assert_eq!(reason, expected),
                error => panic!("{error}"),
            }
        }
    }
}

#[test]
fn hard_links_to_the_outside_find_nothing() {
    if !is_root() {
        return;
    }
    let host = std::env::current_exe().expect("there is one");
    for target in ["/victim/file", "victim/file", "/etc/passwd", host.to_str().expect("it is text")] {
        let [overlay, plain] = refused(&[hardlink("a", target)]);
        assert!(matches!(overlay, ApplyError::NeedsLower { .. }), "{target}: {overlay}");
        assert!(matches!(plain, ApplyError::MissingTarget { .. }), "{target}: {plain}");
    }
}

#[test]
fn parents_that_are_links_out_are_refused() {
    if !is_root() {
        return;
    }
    let targets = ["../victim", "/victim", "/", "..", "a/../../victim", "./.././victim"];
    for target in targets {
        let evil = symlink("evil", target);
        let beneath = [
            file("evil/file", b"x"),
            directory("evil/sub"),
            symlink("evil/link", "x"),
            other("evil/pipe", EntryKind::Fifo),
            hardlink("evil/hard", "f"),
            file("evil/.wh.file", b""),
            file("evil/.wh..wh..opq", b""),
            file("evil/sub/file", b"x"),
        ];
        for member in beneath {
            for error in refused(&[file("f", b""), evil.clone(), member.clone()]) {
                assert!(matches!(error, ApplyError::Escapes { .. }), "{target} {member:?}: {error}");
            }
        }
        // The link is a link's own affair as long as nobody goes through it.
        for error in refused(&[file("f", b""), evil.clone(), hardlink("h", "evil/file")]) {
            assert!(matches!(error, ApplyError::Escapes { .. }), "{target}: {error}");
        }
    }
    // Each link is harmless, and together they lead out.
    let chain =
        [directory("d"), symlink("d/up", "../"), symlink("out", "d/up/.."), file("out/victim/f", b"x")];
    for error in refused(&chain) {
        assert!(matches!(error, ApplyError::Escapes { .. }), "{error}");
    }
    for error in refused(&[symlink("a", "b"), symlink("b", "a"), file("a/f", b"x")]) {
        assert!(matches!(error, ApplyError::TooManyLinks { .. }), "{error}");
    }
}

#[test]
fn a_directory_that_becomes_a_link_has_no_time_set_where_that_leads() {
    if !is_root() {
        return;
    }
    for style in STYLES {
        let outside = Outside::new();
        let victim = outside.place.path().join("victim");
        let link = victim.to_str().expect("it is text");
        let members = [directory("d"), directory("d/sub"), symlink("d", link)];
        unpack(&outside.root(), style, None, &layer(&members)).expect("it is unpacked");
        outside.assert_untouched();
    }
}

#[test]
fn a_link_at_the_end_of_a_path_is_replaced_and_not_followed() {
    if !is_root() {
        return;
    }
    for style in STYLES {
        for last in [file("evil", b"x"), other("evil", EntryKind::Fifo), hardlink("evil", "f")] {
            let outside = Outside::new();
            let members = [file("f", b"x"), symlink("evil", "../victim/file"), last];
            unpack(&outside.root(), style, None, &layer(&members)).expect("it is unpacked");
            outside.assert_untouched();
        }
        let outside = Outside::new();
        let members = [symlink("evil", "../victim"), directory("evil"), file("evil/file", b"mine")];
        unpack(&outside.root(), style, None, &layer(&members)).expect("it is unpacked");
        outside.assert_untouched();
        assert_eq!(fs::read(outside.place.path().join("root/evil/file")).expect("it is there"), b"mine");
    }
}

#[test]
fn devices_and_pipes_are_never_opened() {
    if !is_root() {
        return;
    }
    // The pipe has no reader, and a device of this number would answer "no such device".
    let absent = EntryKind::CharDevice { major: 4000, minor: 7 };
    for style in STYLES {
        let outside = Outside::new();
        let members = [
            other("pipe", EntryKind::Fifo),
            file("pipe", b"bytes"),
            other("device", absent.clone()),
            file("device", b"bytes"),
            other("link-target", absent.clone()),
            hardlink("linked", "link-target"),
            file("linked", b"bytes"),
        ];
        unpack(&outside.root(), style, None, &layer(&members)).expect("it is unpacked");
        assert_eq!(fs::read(outside.place.path().join("root/linked")).expect("it is there"), b"bytes");
    }
    for error in refused(&[other("device", absent.clone()), file("device/f", b"x")]) {
        assert!(matches!(error, ApplyError::NotADirectory { .. }), "{error}");
    }
    for error in refused(&[other("hides", EntryKind::CharDevice { major: 0, minor: 0 })]) {
        assert!(matches!(error, ApplyError::WhiteoutDevice { .. }), "{error}");
    }
    let outside = Outside::new();
    let linked = layer(&[file(".wh.x", b""), hardlink("hides", "x")]);
    let error = unpack(&outside.root(), WhiteoutStyle::Overlay, None, &linked).expect_err("it is refused");
    assert!(matches!(error, ApplyError::MissingTarget { .. }), "{error}");
}

#[test]
fn attributes_that_steer_an_overlay_are_refused() {
    if !is_root() {
        return;
    }
    for name in ["trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.metacopy"] {
        let mut member = directory("d");
        member.0.xattrs.insert(name.into(), b"/victim".to_vec());
        for error in refused(&[member.clone()]) {
            assert!(matches!(error, ApplyError::ReservedXattr { .. }), "{error}");
        }
    }
}

#[test]
fn the_root_can_be_neither_whited_out_nor_replaced() {
    if !is_root() {
        return;
    }
    for path in [".wh..", ".wh.", ".wh...", "d/.wh..", "d/.wh...", ".wh..wh..opq"] {
        for error in refused(&[directory("d"), file("kept", b""), file(path, b"")]) {
            assert!(matches!(error, ApplyError::InvalidWhiteout { .. }), "{path}: {error}");
        }
    }
    // A link to the root must not stand for it either.
    for error in refused(&[symlink("l", "."), file("kept", b""), file("l/.wh..wh..opq", b"")]) {
        assert!(matches!(error, ApplyError::InvalidWhiteout { .. }), "{error}");
    }
    for error in refused(&[hardlink("a", ".")]) {
        assert!(matches!(error, ApplyError::Archive(_)), "{error}");
    }
    for error in refused(&[directory("d"), hardlink("a", "d")]) {
        assert!(matches!(error, ApplyError::MissingTarget { .. }), "{error}");
    }
}

#[test]
fn owners_that_the_system_has_not_are_refused() {
    if !is_root() {
        return;
    }
    for uid in [u64::from(u32::MAX), 1 << 40] {
        let mut member = file("f", b"");
        member.0.uid = uid;
        for error in refused(&[member.clone()]) {
            assert!(matches!(error, ApplyError::Owner { .. }), "{error}");
        }
    }
}

#[test]
fn bombs_by_size_count_and_depth_are_refused() {
    if !is_root() {
        return;
    }
    let many: Vec<Member> = (0..100).map(|n| file(&format!("f{n}"), b"")).collect();
    let large = [file("large", &[0; 100_000])];
    let deep = [directory(&vec!["d"; 600].join("/"))];
    let limits = Limits::default();
    for (members, limits, expected) in [
        (&many[..], Limits { entries: 99, ..limits }, Limit::Entries),
        (&large[..], Limits { expanded_bytes: 50_000, ..limits }, Limit::ExpandedBytes),
        (&deep[..], limits, Limit::Depth),
    ] {
        for style in STYLES {
            let outside = Outside::new();
            let options = ApplyOptions { style, lower: None, limits };
            let error =
                apply(&outside.root(), &options, layer(members).as_slice()).expect_err("it is refused");
            match error {
                ApplyError::Archive(ArchiveError::TooMuch { limit, .. }) => assert_eq!(limit, expected),
                error => panic!("{error}"),
            }
            outside.assert_untouched();
        }
    }
}

/// Names that meet one another, with all that has a meaning.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "c",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh..wh.x",
        "..",
        ".",
        "victim",
    ]);
    collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn member() -> impl Strategy<Value = Member> {
    let target = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "..",
        "../victim",
        "../..",
        "/",
        "/victim",
        "c",
        ".",
        "b/../..",
        "../root/a",
    ]);
    (path(), target, path(), 0..7).prop_map(|(path, target, hard, kind)| match kind {
        0 | 1 => file(&path, b"content"),
        2 | 3 => directory(&path),
        4 => symlink(&path, target),
        5 => hardlink(&path, &hard),
        _ => other(&path, EntryKind::Fifo),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_outside_is_ever_touched(layers in collection::vec(collection::vec(member(), 1..12), 1..3)) {
        if !is_root() {
            return Ok(());
        }
        for style in STYLES {
            let outside = Outside::new();
            for members in &layers {
                let _ = unpack(&outside.root(), style, None, &layer(members));
            }
            outside.assert_untouched();
        }
    }
}
