//! Tests of the work beneath a root. The hostile ones have a directory beside the root that nothing may touch.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SECRET: &[u8] = b"outside";

/// A root, and beside it a file and a directory that hostile links lead to.
struct Prison {
    dir: TempDir,
    root: Root,
}

impl Prison {
    fn new() -> Prison {
        let dir = TempDir::new().expect("a temporary directory");
        fs::create_dir(dir.path().join("root")).expect("root");
        fs::create_dir_all(dir.path().join("outside/dir")).expect("outside");
        fs::write(dir.path().join("outside/file"), SECRET).expect("a file outside");
        let root = Root::open(dir.path().join("root")).expect("the root opens");
        Prison { dir, root }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Everything that a write outside would change.
    fn surroundings(&self) -> Vec<(PathBuf, u32, i64, i64, u64, Vec<u8>)> {
        let mut all = Vec::new();
        for path in [self.outside(), self.outside().join("dir"), self.outside().join("file")] {
            let meta = fs::symlink_metadata(&path).expect("what is outside stays");
            let content = if meta.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
            all.push((path, meta.mode(), meta.ctime(), meta.ctime_nsec(), meta.nlink(), content));
        }
        let names = |dir: &Path| fs::read_dir(dir).expect("list").count();
        assert_eq!((names(self.dir.path()), names(&self.outside())), (2, 2), "something was made outside");
        assert_eq!(names(&self.outside().join("dir")), 0, "something was made outside");
        all
    }
}

/// Names, kinds, owners, modes, times and attributes of a tree, and the content of its files.
fn manifest(root: &Root, path: &str) -> BTreeMap<PathBuf, String> {
    let mut first_names = BTreeMap::new();
    root.walk(path)
        .expect("walk")
        .map(|entry| {
            let entry = entry.expect("entry");
            let meta = entry.meta;
            let content = match meta.kind {
                Kind::File => {
                    let mut content = Vec::new();
                    entry.open().expect("open").read_to_end(&mut content).expect("read");
                    content
                }
                Kind::Symlink => entry.read_link().expect("target").into_os_string().into_encoded_bytes(),
                _ => Vec::new(),
            };
            let first = first_names.entry((meta.device, meta.inode)).or_insert(entry.path.clone()).clone();
            let nlink = if meta.is_dir() { 0 } else { meta.nlink };
            let xattrs = entry.xattrs().expect("attributes");
            let text = format!(
                "{:?} {:o} {:?} {:?} {nlink} {first:?} {xattrs:?} {content:?}",
                meta.kind, meta.mode, meta.owner, meta.mtime
            );
            (entry.path, text)
        })
        .collect()
}

/// What only root may do. Skipped elsewhere, with a word, except in CI.
fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "the tests of CI run as root");
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn write(root: &Root, path: &str, content: &[u8]) {
    root.create_file(path, 0o644).expect("create").write_all(content).expect("write");
}

#[test]
fn links_resolve_as_under_chroot() {
    let prison = Prison::new();
    let root = &prison.root;
    root.create_dir_all("a/b", &NewDirs::default()).expect("directories");
    write(root, "etc", b"inside");
    for (target, link) in [
        ("/etc", "absolute"),
        ("../../../../etc", "above"),
        ("absolute", "chain"),
        ("/a/../a/b/../../etc", "around"),
    ] {
        root.symlink(target, link).expect("link");
        let mut text = String::new();
        root.open_file(link).expect("open").read_to_string(&mut text).expect("read");
        assert_eq!(text, "inside", "{link}");
        assert_eq!(root.resolve(link, Last::Follow), Ok("etc".into()));
        assert_eq!(root.resolve(link, Last::Keep), Ok(link.into()));
        assert!(root.stat(link, Last::Keep).expect("stat").expect("there").is_symlink());
        assert!(root.stat(link, Last::Follow).expect("stat").expect("there").is_file());
    }
    root.symlink("/a/b", "to-dir").expect("link");
    assert_eq!(root.resolve("to-dir/../x/y/../z", Last::Follow), Ok("a/x/z".into()));
    assert_eq!(root.resolve("/../../to-dir/./q", Last::Follow), Ok("a/b/q".into()));
    assert_eq!(root.resolve("/", Last::Follow), Ok(PathBuf::new()));
    root.symlink("loop2", "loop1").expect("link");
    root.symlink("loop1", "loop2").expect("link");
    assert!(matches!(root.resolve("loop1", Last::Follow), Err(FsError::InvalidPath { .. })));
    assert!(matches!(root.open_file("loop1"), Err(FsError::InvalidPath { .. })));
    assert!(matches!(root.resolve("etc/x", Last::Follow), Err(FsError::WrongKind { .. })));
}

#[test]
fn missing_parents_are_made_where_links_lead() {
    let prison = Prison::new();
    let root = &prison.root;
    root.symlink("/new/place", "dangling").expect("link");
    let new = NewDirs { mode: 0o2751, owner: None, mtime: Some(FileTime { seconds: -5, nanos: 7 }) };
    let created = root.create_dir_all("/dangling/../other/deep", &new).expect("made");
    assert_eq!(created, ["new", "new/place", "new/other", "new/other/deep"].map(PathBuf::from));
    for path in created {
        let meta = root.stat(&path, Last::Keep).expect("stat").expect("there");
        assert_eq!((meta.mode, meta.mtime), (0o2751, FileTime { seconds: -5, nanos: 7 }), "{path:?}");
    }
    assert_eq!(root.create_dir_all("dangling/../other/deep", &new), Ok(Vec::new()));
    write(root, "file", b"");
    assert!(matches!(root.create_dir_all("file", &new), Err(FsError::WrongKind { .. })));
    assert!(matches!(root.create_dir_all("file/x", &new), Err(FsError::WrongKind { .. })));
    root.symlink("/made/by/nobody", "open").expect("link");
    assert!(root.overwrite_file("open", 0o600).expect_err("no parent").is_not_found());
    root.create_dir_all("made/by", &new).expect("made");
    root.overwrite_file("open", 0o640).expect("made").write_all(b"long text").expect("write");
    root.overwrite_file("open", 0o600).expect("emptied").write_all(b"text").expect("write");
    assert_eq!(fs::read(prison.host("made/by/nobody")).expect("read"), b"text");
    assert_eq!(root.stat("made/by/nobody", Last::Keep).expect("stat").expect("there").mode, 0o640);
}

#[test]
fn nothing_but_regular_files_is_opened() {
    let prison = Prison::new();
    let root = &prison.root;
    root.mknod("fifo", Kind::Fifo, 0o666).expect("fifo");
    root.create_dir("dir", 0o755).expect("dir");
    // Opening a FIFO would wait for its other end.
    for path in ["fifo", "dir"] {
        assert!(matches!(root.open_file(path), Err(FsError::WrongKind { .. })), "{path}");
        assert!(matches!(root.overwrite_file(path, 0o600), Err(FsError::WrongKind { .. })), "{path}");
    }
    assert!(matches!(root.remove(".."), Err(FsError::InvalidPath { .. })));
    assert!(matches!(root.create_file("/", 0o600), Err(FsError::InvalidPath { .. })));
    assert!(root.create_file("x".repeat(256), 0o600).is_err());
    assert!(root.create_file("x\0y", 0o600).is_err());
}

#[test]
fn a_walk_is_sorted_by_component_and_can_leave_out_a_directory() {
    let prison = Prison::new();
    let root = &prison.root;
    for dir in ["a", "a-b", "b", "b/c"] {
        root.create_dir(dir, 0o755).expect("dir");
    }
    for file in ["a/z", "a!", "a-b/x", "b/c/d", "b/e"] {
        write(root, file, b"");
    }
    let all: Vec<_> = root.walk("").expect("walk").map(|e| e.expect("entry").path).collect();
    let expected = ["", "a", "a/z", "a!", "a-b", "a-b/x", "b", "b/c", "b/c/d", "b/e"];
    assert_eq!(all, expected.map(PathBuf::from));
    assert!(all.is_sorted(), "a path compares by component");
    let mut walk = root.walk("/").expect("walk");
    let mut some = Vec::new();
    while let Some(entry) = walk.next() {
        let path = entry.expect("entry").path;
        if path == Path::new("a") || path == Path::new("b/c") || path == Path::new("b/e") {
            walk.skip_dir();
        }
        some.push(path);
    }
    assert_eq!(some, ["", "a", "a!", "a-b", "a-b/x", "b", "b/c", "b/e"].map(PathBuf::from));
}

#[test]
fn a_copied_tree_is_the_same_tree() {
    if !privileged() {
        return;
    }
    let prison = Prison::new();
    let root = &prison.root;
    root.create_dir_all("from/dir/sub", &NewDirs::default()).expect("dirs");
    write(root, "from/dir/file", b"content");
    write(root, "from/empty", b"");
    root.hard_link("from/dir/file", "from/dir/sub/again").expect("link");
    root.symlink("../outside", "from/link").expect("link");
    root.hard_link("from/link", "from/link-again").expect("a link to a link");
    root.mknod("from/null", Kind::CharDevice { major: 1, minor: 3 }, 0o666).expect("device");
    root.mknod("from/loop", Kind::BlockDevice { major: 7, minor: 300 }, 0o6660).expect("device");
    root.mknod("from/fifo", Kind::Fifo, 0o4700).expect("fifo");
    root.mknod("from/socket", Kind::Socket, 0o700).expect("socket");
    let time = |seconds| FileTime { seconds, nanos: 123_456_789 };
    for (n, path) in ["from/link", "from/null", "from/dir/file", "from/dir/sub", "from/dir", "from"]
        .into_iter()
        .enumerate()
    {
        root.set_xattr(path, "trusted.test", path.as_bytes(), Last::Keep).expect("attribute");
        let n = u32::try_from(n).expect("few");
        let change = MetaChange {
            owner: Some(Owner { uid: 1000 + n, gid: 70_000 + n }),
            mode: Some(0o4710 + n),
            mtime: Some(time(1_000_000_000 + i64::from(n))),
            xattrs: None,
        };
        root.set_meta(path, &change, Last::Keep).expect("meta");
    }
    let capability = Xattrs::from([("security.capability".into(), capability())]);
    let change = MetaChange {
        owner: Some(Owner { uid: 5, gid: 6 }),
        xattrs: Some(&capability),
        mode: Some(0o4755),
        mtime: Some(time(-1)),
    };
    root.set_meta("from/empty", &change, Last::Keep).expect("a capability outlives the change of owner");
    let copied = copy_tree(root, "from", root, "to", &CopyOptions::default()).expect("copied");
    assert_eq!(copied, Copied { entries: 12, bytes: 7 });
    assert_eq!(manifest(root, "from"), manifest(root, "to"));
    assert_ne!(inode(root, "from/dir/file"), inode(root, "to/dir/file"));
    // Onto itself: files are replaced, directories filled.
    copy_tree(root, "from", root, "to", &CopyOptions::default()).expect("copied again");
    assert_eq!(manifest(root, "from"), manifest(root, "to"));
    let linked = copy_tree(root, "from", root, "linked", &CopyOptions { link: true }).expect("linked");
    assert_eq!(linked.bytes, 0);
    for path in ["dir/file", "link", "empty"] {
        assert_eq!(inode(root, &format!("from/{path}")), inode(root, &format!("linked/{path}")), "{path}");
    }
    copy_tree(root, "from/link", root, "single", &CopyOptions::default()).expect("a single link");
    assert_eq!(root.read_link("single"), Ok("../outside".into()));
    for into in ["from", "from/dir/sub", "from/dir/new"] {
        let error = copy_tree(root, "from", root, into, &CopyOptions::default()).expect_err("endless");
        assert!(matches!(error, FsError::InvalidPath { .. }), "{error}");
    }
    assert!(copy_tree(root, "from/empty", root, "to/dir", &CopyOptions::default()).is_err());
    assert!(copy_tree(root, "from/dir", root, "to/empty", &CopyOptions::default()).is_err());
}

/// `cap_net_raw+ep`, version 2.
fn capability() -> Vec<u8> {
    let mut value = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    value.resize(20, 0);
    value
}

fn inode(root: &Root, path: &str) -> u64 {
    root.stat(path, Last::Keep).expect("stat").expect("there").inode
}

#[test]
fn a_copy_has_the_holes_and_bytes_of_the_original() {
    let prison = Prison::new();
    let root = &prison.root;
    let sparse = root.create_file("sparse", 0o644).expect("create");
    const MIB: u64 = 1 << 20;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 64 * MIB).expect("write");
    sparse.set_len(200 * MIB).expect("a hole at the end");
    let copy = root.create_file("copy", 0o644).expect("create");
    assert_eq!(copy_file(&sparse, &copy).expect("copied"), 200 * MIB);
    let meta = root.stat("copy", Last::Keep).expect("stat").expect("there");
    assert_eq!(meta.size, 200 * MIB);
    assert!(meta.allocated <= MIB, "{} bytes are allocated", meta.allocated);
    let mut text = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut text, 64 * MIB).expect("read");
    assert_eq!(&text, b"middle");
    // Its length is said to be none.
    let version = root.create_file("version", 0o644).expect("create");
    assert!(copy_file(&File::open("/proc/version").expect("open"), &version).expect("copied") > 0);
    assert_eq!(fs::read(prison.host("version")).expect("read"), fs::read("/proc/version").expect("read"));
}

#[test]
fn a_tree_deeper_than_a_path_or_the_open_files_is_walked_copied_and_removed() {
    const DEPTH: usize = 3000;
    let prison = Prison::new();
    let root = &prison.root;
    root.create_dir("deep", 0o755).expect("dir");
    let mut dir = at::open_dir(root.as_fd(), OsStr::new("deep")).expect("open");
    for _ in 0..DEPTH {
        dir = at::create_dir(&dir, OsStr::new("directory"), 0o755).expect("dir");
    }
    at::create_file(&dir, OsStr::new("file"), 0o600).expect("file");
    assert_eq!(root.walk("deep").expect("walk").filter(Result::is_ok).count(), DEPTH + 2);
    let copied = copy_tree(root, "deep", root, "copy", &CopyOptions::default()).expect("copied");
    assert_eq!(copied.entries, DEPTH as u64 + 2);
    root.remove_all("deep").expect("removed");
    root.remove_all("copy").expect("removed");
    root.remove_all("copy").expect("nothing to remove");
    assert_eq!(root.read_dir("/"), Ok(Vec::new()));
}

/// Paths and targets that a hostile layer might hold.
fn hostile() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a", "b", "c", "..", ".", "", "outside", "file", "dir", "proc", "self", "root",
    ]);
    (any::<bool>(), prop::collection::vec(name, 1..6))
        .prop_map(|(absolute, names)| format!("{}{}", if absolute { "/" } else { "" }, names.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_is_read_or_written_through_hostile_links(
        links in prop::collection::vec((hostile(), hostile(), any::<bool>()), 1..12),
        paths in prop::collection::vec((hostile(), hostile()), 1..12),
    ) {
        let prison = Prison::new();
        let root = &prison.root;
        let before = prison.surroundings();
        let check = |content: &mut File| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).expect("read");
            assert_ne!(bytes, SECRET, "a file outside was read");
        };
        // What fails is as good as what works: only the outside counts.
        for (target, path, real) in &links {
            let target = if *real { format!("{}/{target}", prison.outside().display()) } else { target.clone() };
            let _ = root.symlink(target, path);
        }
        root.symlink(prison.outside(), "direct").expect("link");
        root.symlink("/proc/self/root", "magic").expect("link");
        root.symlink(prison.outside().join("file"), "direct-file").expect("link");
        let direct = [("direct/dir", "direct/file"), ("direct-file", "direct"), ("magic", "magic/x")];
        let direct = direct.map(|(a, b)| (a.to_owned(), b.to_owned()));
        for (path, other) in paths.iter().chain(&direct) {
            let _ = root.open_file(path).map(|mut file| check(&mut file));
            let _ = root.create_dir_all(path, &NewDirs::default());
            let _ = root.overwrite_file(other, 0o666).map(|mut file| file.write_all(b"x"));
            let _ = root.create_file(path, 0o666);
            let _ = root.mknod(other, Kind::Fifo, 0o666);
            let _ = root.hard_link(path, other);
            let change = MetaChange { mode: Some(0o777), mtime: Some(FileTime::default()), ..MetaChange::default() };
            let _ = root.set_meta(path, &change, Last::Follow);
            let _ = root.set_meta(other, &change, Last::Keep);
            let _ = root.set_xattr(path, "user.x", b"x", Last::Follow);
            let _ = root.rename(other, path);
            for entry in root.walk(path).into_iter().flatten().flatten() {
                let _ = entry.open().map(|mut file| check(&mut file));
            }
            let _ = copy_tree(root, path, root, other, &CopyOptions::default());
            let _ = root.remove(path);
            let resolved = root.resolve(other, Last::Follow).unwrap_or_default();
            prop_assert!(resolved.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            let _ = root.remove_all(other);
        }
        root.remove_all("/").expect("everything inside goes");
        prop_assert_eq!(before, prison.surroundings());
    }
}

/// A name is a directory at one moment and a link to the outside at the next.
#[test]
fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
    let prison = Prison::new();
    let root = &prison.root;
    let before = prison.surroundings();
    root.create_dir("d", 0o755).expect("dir");
    root.symlink(prison.outside(), "evil").expect("link");
    write(root, "source", b"x");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let dir = root.as_fd();
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(dir, "d", dir, "evil", flags);
            }
        });
        for _ in 0..1000 {
            let _ = root.create_file("d/new", 0o644);
            let _ = root.hard_link("source", "d/file2");
            let _ = root.create_dir_all("d/dir/x", &NewDirs::default());
            let _ = root.set_meta(
                "d/file",
                &MetaChange { mode: Some(0o777), ..MetaChange::default() },
                Last::Follow,
            );
            let _ = root.walk("d").map(|walk| {
                for entry in walk.flatten() {
                    assert_ne!(entry.path, Path::new("file"), "the outside was listed");
                }
            });
            let _ = copy_tree(root, "source", root, "d/dir/copy", &CopyOptions::default());
            let _ = root.remove_all("d/dir");
            let _ = root.remove("d/file2");
            let _ = root.remove("d/new");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(before, prison.surroundings());
}
