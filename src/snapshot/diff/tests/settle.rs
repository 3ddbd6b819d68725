//! Upper directories that the kernel wrote are settled.

use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use super::*;
use crate::fs::FileTime;
use crate::fs::Kind;
use crate::snapshot::diff::Unsettled;
use crate::snapshot::diff::leave_what_changed;
use crate::snapshot::diff::spell_out;

const MARK: &str = "trusted.overlay.opaque";

/// What is seen of `upper` over a tree.
fn over(upper: &Path, tree: &Path) -> std::collections::BTreeMap<String, String> {
    let both = format!("lowerdir={}:{}", upper.display(), tree.display());
    let mounted = TestMount::new("overlay", &both);
    listing(mounted.path(), false)
}

/// An upper directory in `place`, and what mounts it over `lower` as it is mounted for a step.
fn overlay(place: &Path, lower: &Path) -> (PathBuf, String) {
    let [upper, work] = ["upper", "work"].map(|name| place.join(name));
    for path in [&upper, &work] {
        fs::create_dir(path).expect("made");
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=off",
        lower.display(),
        upper.display(),
        work.display()
    );
    (upper, options)
}

fn paths(root: &Root) -> Vec<String> {
    let entries = root.walk("").expect("it is walked").map(|entry| entry.expect("it is walked"));
    let paths = entries.map(|entry| {
        let mark = if entry.meta.is_whiteout() { " gone" } else { "" };
        format!("{}{mark}", entry.path.display())
    });
    paths.filter(|path| !path.is_empty()).collect()
}

#[test]
fn an_upper_directory_without_marks_shows_what_it_showed_and_hides_nothing_else() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    for path in ["d/gone", "d/kept", "d/sub/gone/f", "d/sub/kept", "d/file-to-dir", "other/f"] {
        write(lower_place.path(), path, b"");
    }
    let (place, upper) = dir();
    for path in ["d/kept", "d/sub/kept", "d/file-to-dir/f", "new/f", "other/new/f"] {
        write(place.path(), path, b"1");
    }
    for marked in ["d", "new", "other/new", "d/sub"] {
        upper.set_xattr(marked, MARK, b"y", Last::Keep).expect("set");
    }
    let time = |path: &str| upper.stat(path, Last::Keep).expect("a stat").expect("it is there").mtime;
    let before = ["d", "d/sub"].map(time);
    let shown = over(place.path(), lower_place.path());
    let found = Unsettled::find(&upper, SystemTime::UNIX_EPOCH).expect("found");
    assert_eq!(found.opaque, ["d", "d/sub", "new", "other/new"].map(PathBuf::from));
    spell_out(&upper, &lower, &found.opaque).expect("spelled out");
    assert!(Unsettled::find(&upper, SystemTime::UNIX_EPOCH).expect("found").is_empty());
    assert_eq!(over(place.path(), lower_place.path()), shown);
    assert_eq!(["d", "d/sub"].map(time), before);
    let gone: Vec<_> = paths(&upper).into_iter().filter(|path| path.ends_with(" gone")).collect();
    assert_eq!(gone, ["d/gone gone", "d/sub/gone gone"]);

    // On another tree it hides what it replaced, and nothing that it knew nothing of.
    let (tree_place, _tree) = dir();
    for path in ["d/gone", "d/others", "new/others", "other/new/others"] {
        write(tree_place.path(), path, b"");
    }
    let shown = over(place.path(), tree_place.path());
    for path in ["d/others", "new/others", "other/new/others"] {
        assert!(shown.contains_key(path), "{path}: {shown:?}");
    }
    assert!(!shown.contains_key("d/gone"), "{shown:?}");
}

#[test]
fn what_was_touched_and_what_was_on_the_way_goes() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    for path in ["touched", "a/b/c/touched", "kept/touched", "linked", "renamed/f"] {
        write(lower_place.path(), path, path.as_bytes());
        settle(&lower, Path::new(path), 1_000_000_000);
    }
    fs::hard_link(lower_place.path().join("linked"), lower_place.path().join("further")).expect("linked");
    let socket = UnixListener::bind(lower_place.path().join("socket")).expect("bound");
    drop(socket);
    let (place, upper) = copy(&lower);
    let bare = upper.stat("renamed", Last::Keep).expect("a stat").expect("it is there");
    fs::remove_dir_all(place.path().join("renamed")).expect("removed");
    fs::create_dir(place.path().join("renamed")).expect("made");
    upper
        .set_meta("renamed", &MetaChange { mode: Some(bare.mode), ..MetaChange::default() }, Last::Keep)
        .expect("set");
    write(place.path(), "kept/new", b"1");
    fs::hard_link(place.path().join("linked"), place.path().join("new-name")).expect("linked");
    let found = Unsettled::find(&upper, SystemTime::now()).expect("found");
    leave_what_changed(&upper, &lower, &found).expect("settled");
    // A name of a file that has a new one stays with it.
    assert_eq!(
        paths(&upper),
        ["further", "kept", "kept/new", "linked", "new-name", "socket gone"],
        "{:?}",
        found
    );
    assert_eq!(upper.stat("socket", Last::Keep).expect("a stat").map(|meta| meta.kind), Some(Kind::WHITEOUT));
}

/// A step began a few milliseconds after the one before it had written a file, and moved that file away and back: the
/// layer had the file, or not, as the time went.
#[test]
fn what_was_touched_goes_if_it_was_written_just_before_too() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    write(lower_place.path(), "dir/touched", b"1");
    let (place, _all) = dir();
    let (upper_place, options) = overlay(place.path(), lower_place.path());
    let since = SystemTime::now();
    // Earlier than any clock of files is late.
    let before =
        (since - Duration::from_millis(15)).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let mtime = FileTime { seconds: before.as_secs() as i64, nanos: before.subsec_nanos() };
    lower
        .set_meta("dir/touched", &MetaChange { mtime: Some(mtime), ..MetaChange::default() }, Last::Keep)
        .expect("set");
    {
        let mounted = TestMount::new("overlay", &options);
        let [file, away] = ["dir/touched", "dir/away"].map(|path| mounted.path().join(path));
        fs::rename(&file, &away).expect("renamed");
        fs::rename(&away, &file).expect("renamed");
        write(mounted.path(), "new", b"2");
    }
    let upper = Root::open(&upper_place).expect("opened");
    assert_eq!(paths(&upper), ["dir", "dir/touched", "new"]);
    let found = Unsettled::find(&upper, since).expect("found");
    leave_what_changed(&upper, &lower, &found).expect("settled");
    assert_eq!(paths(&upper), ["new"]);
}

/// A step replaced a file by a tree from an archive, with its times, and failed: behind a file nothing can be looked for.
#[test]
fn a_tree_of_older_files_may_be_where_a_file_was() {
    if !is_root() {
        return;
    }
    let (lower_place, lower) = dir();
    write(lower_place.path(), "c", b"1");
    let (place, upper) = dir();
    write(place.path(), "c/b/a", b"1");
    let old =
        MetaChange { mtime: Some(FileTime { seconds: 1_000_000_000, nanos: 0 }), ..MetaChange::default() };
    upper.set_meta("c/b/a", &old, Last::Keep).expect("set");
    let found = Unsettled::find(&upper, SystemTime::now()).expect("found");
    leave_what_changed(&upper, &lower, &found).expect("settled");
    assert_eq!(paths(&upper), ["c", "c/b", "c/b/a"]);
}

#[test]
fn nothing_is_asked_of_the_tree_below_for_what_is_plainly_new() {
    if !is_root() {
        return;
    }
    let since = SystemTime::now();
    let (place, upper) = dir();
    write(place.path(), "dir/new", b"1");
    upper.mknod("gone", Kind::WHITEOUT, 0).expect("made");
    assert!(Unsettled::find(&upper, since).expect("found").is_empty());
    fs::create_dir(place.path().join("dir/on-the-way")).expect("made");
    assert!(!Unsettled::find(&upper, since).expect("found").is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is done to an overlay: its settled directory is the same layer as a comparison of both trees.
    #[test]
    fn both_ways_to_a_layer_give_the_same_bytes(
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
        let (place, _all) = dir();
        let (upper_place, options) = overlay(place.path(), lower_place.path());
        let trees = {
            let mounted = TestMount::new("overlay", &options);
            let tree = Root::open(mounted.path()).expect("opened");
            for (at, step) in after.iter().enumerate() {
                // Some steps undo what another one did, times included.
                take(mounted.path(), &tree, step, 1_000_000_000 + (at / 2) as i64);
            }
            written(&diff_trees(Some(&lower), &tree).expect("compared"))
        };
        let shown = over(&upper_place, lower_place.path());
        let upper = Root::open(&upper_place).expect("opened");
        let found = Unsettled::find(&upper, SystemTime::now()).expect("found");
        spell_out(&upper, &lower, &found.opaque).expect("spelled out");
        leave_what_changed(&upper, &lower, &found).expect("settled");
        prop_assert_eq!(over(&upper_place, lower_place.path()), shown);
        let settled = written(&diff_upper(&upper).expect("listed"));
        prop_assert_eq!(names(&settled), names(&trees));
        prop_assert!(settled == trees, "other bytes");
    }
}
