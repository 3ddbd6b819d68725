use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use super::*;
use crate::ops::op::FileInput;
use crate::ops::op::Timestamp;

/// A source and a destination.
struct Fixture {
    from: tempfile::TempDir,
    to: tempfile::TempDir,
}

fn plain(src: &str, dest: &str) -> CopyFiles {
    CopyFiles::plain(FileInput::Scratch, src, dest)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

impl Fixture {
    /// Files in the source: a name that ends in a slash is a directory's, an arrow makes a link.
    fn new(source: &[&str], destination: &[&str]) -> Fixture {
        let make = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                let (name, target) = match name.split_once(" -> ") {
                    Some((name, target)) => (name, Some(target)),
                    None => (*name, None),
                };
                let path = dir.path().join(name);
                if name.ends_with('/') {
                    fs::create_dir_all(path).unwrap();
                    continue;
                }
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                match target {
                    Some(target) => symlink(target, path).unwrap(),
                    None => fs::write(path, name).unwrap(),
                }
            }
            dir
        };
        Fixture { from: make(source), to: make(destination) }
    }

    fn copy(&self, what: &CopyFiles) -> Result<(), FileError> {
        let (from, to) = (Root::open(self.from.path()).unwrap(), Root::open(self.to.path()).unwrap());
        copy(&from, &to, what, None, &CancellationToken::new())
    }

    /// Every path in the destination, links with their targets, files with their text where it is not their name.
    fn tree(&self) -> Vec<String> {
        let root = Root::open(self.to.path()).unwrap();
        let entry = |entry: WalkEntry| {
            let path = entry.path.display().to_string();
            match entry.meta.kind {
                Kind::Directory => format!("{path}/"),
                Kind::Symlink => format!("{path} -> {}", entry.read_link().unwrap().display()),
                _ => path,
            }
        };
        root.walk("").unwrap().map(|found| entry(found.unwrap())).filter(|path| path != "/").collect()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.to.path().join(path)).unwrap()
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.to.path().join(path)).unwrap()
    }
}

#[test]
fn where_things_go_is_decided_as_by_cp() {
    /// What is there, from, to, whether contents are meant, what is there afterwards.
    type Case<'a> = (&'a [&'a str], &'a str, &'a str, bool, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        // A file: to a name, into a directory that is there, into one that is named as such.
        (&[], "/f", "/g", false, &["g"]),
        (&["d/"], "/f", "/d", false, &["d/", "d/f"]),
        (&[], "/f", "/d/", false, &["d/", "d/f"]),
        (&[], "/f", "/d/.", false, &["d/", "d/f"]),
        (&[], "/f", "/", false, &["f"]),
        (&[], "/f", "", false, &["f"]),
        (&[], "/f", "/x/y/z", false, &["x/", "x/y/", "x/y/z"]),
        (&["g"], "/f", "/g", false, &["g"]),
        (&[], "f", "g", false, &["g"]),
        // A directory: under a new name, into one that is there, its contents.
        (&[], "/dir", "/new", false, &["new/", "new/a", "new/sub/", "new/sub/b"]),
        (&["d/"], "/dir", "/d", false, &["d/", "d/dir/", "d/dir/a", "d/dir/sub/", "d/dir/sub/b"]),
        (&[], "/dir", "/", false, &["dir/", "dir/a", "dir/sub/", "dir/sub/b"]),
        (&[], "/dir", "/", true, &["a", "sub/", "sub/b"]),
        (&["d/"], "/dir", "/d", true, &["d/", "d/a", "d/sub/", "d/sub/b"]),
        (&[], "/dir", "/d/e", true, &["d/", "d/e/", "d/e/a", "d/e/sub/", "d/e/sub/b"]),
        (&[], "/dir/.", "/", false, &["a", "sub/", "sub/b"]),
        // The root itself has no name.
        (&["d/"], "/", "/d", false, &["d/", "d/dir/", "d/dir/a", "d/dir/sub/", "d/dir/sub/b", "d/f"]),
    ];
    for (there, src, dest, contents_only, expected) in cases {
        let f = Fixture::new(&["f", "dir/a", "dir/sub/b"], there);
        f.copy(&CopyFiles { contents_only: *contents_only, ..plain(src, dest) }).unwrap();
        assert_eq!(f.tree(), *expected, "{src} to {dest:?} with {there:?}, {contents_only}");
    }
}

#[test]
fn what_can_not_be_replaced_is_an_error() {
    let refused = |there: &[&str], src: &str, dest: &str| {
        let f = Fixture::new(&["f", "dir/x/y", "dir2/x"], there);
        f.copy(&CopyFiles { contents_only: true, ..plain(src, dest) }).unwrap_err().to_string()
    };
    assert_eq!(refused(&["x"], "/dir", "/"), "cannot copy to non-directory: /x");
    assert_eq!(refused(&["x -> d", "d/"], "/dir", "/"), "cannot copy to non-directory: /x");
    assert_eq!(refused(&["x/"], "/dir2", "/"), "cannot replace to directory /x with file");
    assert_eq!(refused(&["d/f/"], "/f", "/d"), "cannot replace to directory /d/f with file");
    assert!(refused(&[], "/nothing", "/").contains("/nothing: no such file"));
}

#[test]
fn everything_gives_way_where_that_is_asked_for() {
    let f = Fixture::new(&["dir/x/y", "dir/z"], &["x -> elsewhere/", "elsewhere/keep", "z/deep/file"]);
    f.copy(&CopyFiles { contents_only: true, replace: true, ..plain("/dir", "/") }).unwrap();
    assert_eq!(f.tree(), ["elsewhere/", "elsewhere/keep", "x/", "x/y", "z"]);
    let f = Fixture::new(&["dir/x/y"], &["x/other"]);
    f.copy(&CopyFiles { contents_only: true, replace: true, ..plain("/dir", "/") }).unwrap();
    assert_eq!(f.tree(), ["x/", "x/other", "x/y"], "directories merge");
}

#[test]
fn the_parent_must_be_there_unless_it_is_made() {
    let f = Fixture::new(&["f"], &["there/"]);
    let strict = |dest: &str| CopyFiles { create_dest_path: false, ..plain("/f", dest) };
    f.copy(&strict("/no/f")).unwrap_err();
    f.copy(&strict("/no/d/")).unwrap_err();
    f.copy(&strict("/there/f")).unwrap();
    f.copy(&strict("/new/")).unwrap();
    assert_eq!(f.tree(), ["new/", "new/f", "there/", "there/f"]);
}

#[test]
fn links_are_copied_and_only_the_sources_own_path_is_followed() {
    let f = Fixture::new(&["real/f", "l -> real", "real/in -> ../../../etc/passwd", "f -> real/f"], &[]);
    f.copy(&plain("/l", "/link")).unwrap();
    f.copy(&CopyFiles { follow_symlink: true, ..plain("/l", "/dir") }).unwrap();
    f.copy(&CopyFiles { follow_symlink: true, ..plain("/f", "/file") }).unwrap();
    f.copy(&plain("/l/f", "/through")).unwrap();
    let expected = ["dir/", "dir/f", "dir/in -> ../../../etc/passwd", "file", "link -> real", "through"];
    assert_eq!(f.tree(), expected);
    assert_eq!(f.text("file"), "real/f");
}

#[test]
fn links_of_the_destination_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let f = Fixture::new(&["f", "dir/up/x"], &[]);
    symlink(outside.path(), f.to.path().join("out")).unwrap();
    symlink("../../../..", f.to.path().join("up")).unwrap();
    f.copy(&plain("/f", "/out/f")).unwrap();
    f.copy(&plain("/f", "/up/g")).unwrap();
    f.copy(&CopyFiles { contents_only: true, ..plain("/dir", "/") }).unwrap_err();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let inside = outside.path().strip_prefix("/").unwrap().join("f");
    assert!(f.to.path().join(inside).exists(), "the link leads to a path of the root");
    assert!(f.to.path().join("g").exists());
    // A link where the file goes is replaced, where it is the destination itself it is followed.
    let f = Fixture::new(&["d/f"], &["f -> target"]);
    f.copy(&CopyFiles { contents_only: true, ..plain("/d", "/") }).unwrap();
    assert_eq!(f.tree(), ["f"]);
    let f = Fixture::new(&["f"], &["f -> target"]);
    f.copy(&plain("/f", "/f")).unwrap();
    assert_eq!(f.tree(), ["f -> target", "target"]);
}

#[test]
fn wildcards_copy_each_match() {
    let f = Fixture::new(&["a.txt", "b.txt", "c.md", "d.txt/x"], &[]);
    let wild = |src: &str, wildcard| CopyFiles { wildcard, ..plain(src, "/out/") };
    f.copy(&wild("/*.txt", Wildcard::Required)).unwrap();
    assert_eq!(f.tree(), ["out/", "out/a.txt", "out/b.txt", "out/d.txt/", "out/d.txt/x"]);
    let error = f.copy(&wild("/*.none", Wildcard::Required)).unwrap_err();
    assert_eq!(error.to_string(), "/*.none: no such file or directory");
    f.copy(&wild("/*.none", Wildcard::MayBeEmpty)).unwrap();
    let literal = Fixture::new(&["*.txt", "a.txt"], &[]);
    literal.copy(&wild("/*.txt", Wildcard::No)).unwrap();
    assert_eq!(literal.tree(), ["out/", "out/*.txt"]);
}

#[test]
fn patterns_choose_and_directories_come_with_what_is_in_them() {
    let source = ["a/b/c.go", "a/b/d.txt", "a/e/f.txt", "g.go", "empty/", "vendor/x.go", "vendor/keep/y.go"];
    let chosen = |include: &[&str], exclude: &[&str]| {
        let f = Fixture::new(&source, &[]);
        let what = CopyFiles {
            contents_only: true,
            include: texts(include),
            exclude: texts(exclude),
            ..plain("/", "/")
        };
        f.copy(&what).unwrap();
        f.tree()
    };
    assert_eq!(chosen(&["**/*.go"], &["vendor"]), ["a/", "a/b/", "a/b/c.go", "g.go"]);
    assert_eq!(chosen(&["a/*/f.txt"], &[]), ["a/", "a/e/", "a/e/f.txt"]);
    assert_eq!(
        chosen(&[], &["a", "g.go", "empty"]),
        ["vendor/", "vendor/keep/", "vendor/keep/y.go", "vendor/x.go"]
    );
    assert_eq!(
        chosen(&[], &["a", "g.go", "empty", "vendor", "!vendor/keep"]),
        ["vendor/", "vendor/keep/", "vendor/keep/y.go"]
    );
    assert_eq!(chosen(&["nothing"], &[]), [""; 0]);
    let f = Fixture::new(&["a"], &[]);
    let bad = CopyFiles { include: texts(&["["]), ..plain("/", "/") };
    assert!(matches!(f.copy(&bad).unwrap_err(), FileError::Pattern(_)));
}

#[test]
fn attributes_are_kept_unless_others_are_stated() {
    let f = Fixture::new(&["d/f", "d/l -> f", "d/sub/"], &[]);
    let at = |path: &str| f.from.path().join(path);
    fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::lchown(at("d/f"), Some(11), Some(12)).unwrap();
    std::os::unix::fs::lchown(at("d/l"), Some(13), Some(14)).unwrap();
    fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    let root = Root::open(f.from.path()).unwrap();
    root.set_xattr("d/f", "user.note", b"kept", Last::Keep).unwrap();
    for (path, seconds) in [("d/f", 100), ("d/l", 200), ("d/sub", 300), ("d", 400)] {
        let mtime = Some(FileTime { seconds, nanos: 5 });
        root.set_meta(path, &MetaChange { mtime, ..MetaChange::default() }, Last::Keep).unwrap();
    }
    f.copy(&plain("/d", "/d")).unwrap();
    let file = f.stat("d/f");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4751, 11, 12));
    assert_eq!((f.stat("d/l").uid(), f.stat("d/l").gid()), (13, 14));
    for (path, seconds) in [("d/f", 100), ("d/l", 200), ("d/sub", 300), ("d", 400)] {
        assert_eq!((f.stat(path).mtime(), f.stat(path).mtime_nsec()), (seconds, 5), "{path}");
    }
    assert_eq!(f.stat("d").mode() & 0o7777, 0o700);
    let to = Root::open(f.to.path()).unwrap();
    assert_eq!(to.xattr("d/f", "user.note", Last::Keep).unwrap().as_deref(), Some(b"kept".as_slice()));

    let stated = CopyFiles {
        mode: CopyMode::Set(0o640),
        timestamp: Some(Timestamp(7_000_000_000)),
        ..plain("/d", "/made/e")
    };
    let to = Root::open(f.to.path()).unwrap();
    let owner = Some(crate::fs::Owner { uid: 1, gid: 2 });
    copy(&root, &to, &stated, owner, &CancellationToken::new()).unwrap();
    for path in ["made", "made/e", "made/e/f", "made/e/sub"] {
        let stat = f.stat(path);
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o640, 1, 2, 7), "{path}");
    }
    assert_eq!((f.stat("made/e/l").uid(), f.stat("made/e/l").mtime()), (1, 7));

    let change = CopyMode::Change("u=rwX,go=".parse().unwrap());
    f.copy(&CopyFiles { mode: change, ..plain("/d", "/changed") }).unwrap();
    assert_eq!(f.stat("changed/sub").mode() & 0o7777, 0o700);
    assert_eq!(f.stat("changed/f").mode() & 0o7777, 0o700);
}

#[test]
fn a_directory_that_is_there_keeps_its_own_attributes_at_the_top_and_not_below() {
    let f = Fixture::new(&["d/sub/f"], &["d/sub/"]);
    let mode = |path: &str, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    mode(f.from.path().join("d").to_str().unwrap(), 0o711);
    mode(f.from.path().join("d/sub").to_str().unwrap(), 0o711);
    mode(f.to.path().join("d").to_str().unwrap(), 0o750);
    mode(f.to.path().join("d/sub").to_str().unwrap(), 0o750);
    f.copy(&CopyFiles { contents_only: true, ..plain("/d", "/d") }).unwrap();
    assert_eq!(f.stat("d").mode() & 0o7777, 0o750);
    assert_eq!(f.stat("d/sub").mode() & 0o7777, 0o711);
}

#[test]
fn hard_links_among_what_is_copied_stay_such_and_special_files_are_made() {
    let f = Fixture::new(&["d/a"], &[]);
    let at = |path: &str| f.from.path().join(path);
    fs::hard_link(at("d/a"), at("d/b")).unwrap();
    let root = Root::open(f.from.path()).unwrap();
    root.mknod("d/fifo", Kind::Fifo, 0o600).unwrap();
    root.mknod("d/socket", Kind::Socket, 0o600).unwrap();
    f.copy(&plain("/d", "/d")).unwrap();
    assert_eq!(f.stat("d/a").ino(), f.stat("d/b").ino());
    let to = Root::open(f.to.path()).unwrap();
    assert_eq!(to.stat("d/fifo", Last::Keep).unwrap().unwrap().kind, Kind::Fifo);
    assert_eq!(to.stat("d/socket", Last::Keep).unwrap().unwrap().kind, Kind::File);
}

#[test]
fn a_cancelled_copy_ends() {
    let f = Fixture::new(&["d/a", "d/b"], &[]);
    let (from, to) = (Root::open(f.from.path()).unwrap(), Root::open(f.to.path()).unwrap());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = copy(&from, &to, &plain("/d", "/d"), None, &cancel).unwrap_err();
    assert!(matches!(error, FileError::Cancelled));
    assert_eq!(f.tree(), [""; 0]);
}
