use futures::TryStreamExt as _;
use proptest::prelude::*;

use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::cache::ImmutableRef;
use crate::cache::Layer;
use crate::cache::LayerOptions;
use crate::cache::PruneOptions;
use crate::cache::RefOptions;
use crate::cache::tests::fixture::Fixture;
use crate::cache::tests::fixture::repository;
use crate::ctx::Ctx;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::ops::op::CopyFiles;
use crate::ops::op::FileAction;
use crate::ops::op::FileChange;
use crate::ops::op::FileInput;
use crate::ops::op::FileOp;
use crate::ops::op::MakeDir;
use crate::ops::op::MakeFile;
use crate::ops::op::Owner;
use crate::ops::op::Principal;
use crate::ops::op::Remove;
use crate::ops::op::Symlink;
use crate::ops::op::Wildcard;
use crate::ops::operate::OpError;

const BASE: FileInput = FileInput::Input(0);
const SOURCE: FileInput = FileInput::Input(1);

/// Path and what is there: a directory's path ends in a slash, `-> x` is a link, `gone` a whiteout.
type Item = (&'static str, &'static str);

fn layer(f: &Fixture, items: &[Item], salt: &str) -> Layer {
    let salt = (Entry::new(format!("salt-{salt}"), EntryKind::File), &b""[..]);
    let entries = items.iter().map(|(path, what)| {
        let clean = path.trim_end_matches('/');
        let (mut entry, data) = match what.strip_prefix("-> ") {
            Some(target) => (Entry::new(clean, EntryKind::Symlink { target: target.into() }), ""),
            None if path.ends_with('/') => (Entry::new(clean, EntryKind::Dir), ""),
            None if *what == "gone" => {
                let hidden = match clean.rsplit_once('/') {
                    Some((parent, name)) => format!("{parent}/.wh.{name}"),
                    None => format!(".wh.{clean}"),
                };
                (Entry::new(hidden, EntryKind::File), "")
            }
            None => (Entry::new(clean, EntryKind::File), *what),
        };
        entry.mode = if entry.kind == EntryKind::Dir { 0o750 } else { 0o640 };
        entry.mtime = (1000, 0);
        (entry, data.as_bytes())
    });
    f.layer_of(std::iter::once(salt).chain(entries))
}

/// Layers that nobody has seen, the lowest first.
fn layers_of(f: &Fixture, layers: &[&[Item]]) -> Vec<Layer> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let salt = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    layers.iter().enumerate().map(|(n, items)| layer(f, items, &format!("{salt}-{n}"))).collect()
}

async fn image(f: &Fixture, layers: &[Layer]) -> ImmutableRef {
    let handlers = f.handlers(layers, &repository("app"));
    f.cache.get_by_layers(layers.to_vec(), None, &handlers, RefOptions::default()).await.unwrap()
}

/// Each action on the one before it, the first on the base.
fn op(changes: Vec<FileChange>) -> FileOp {
    let last = changes.len() - 1;
    let base = |n: usize| if n == 0 { BASE } else { FileInput::Action(n - 1) };
    let actions = changes.into_iter().enumerate().map(|(n, change)| FileAction { base: base(n), change });
    FileOp { actions: actions.collect(), outputs: vec![last], key: Digest::sha256("") }
}

/// The change set that an op makes, with all that is new of one time; the layers that it opened.
async fn run(f: &Fixture, op: &FileOp, inputs: &[ImmutableRef]) -> (Result<DiffId, String>, u64) {
    let ctx = Ctx::background();
    let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
    let before = f.opens();
    let made = op.run(&f.cache, f.tasks(), &ctx, "", &inputs).await;
    let opened = f.opens() - before;
    let made = match made {
        Ok(made) => made.into_iter().next().flatten().unwrap(),
        Err(OpError::Failed { source, .. }) => return (Err(source.to_string()), opened),
        Err(error) => return (Err(error.to_string()), opened),
    };
    let epoch = Some(jiff::Timestamp::from_second(100_000).unwrap());
    let layers = made.layers(&ctx, &LayerOptions { epoch, ..LayerOptions::default() }).await.unwrap();
    (Ok(layers.last().unwrap().diff_id), opened)
}

/// The change set of an op on a base that is elsewhere, and was here before if it is `known`; it has to be that on the same base when all of it is here.
async fn both(
    f: &Fixture,
    base: &[&[Item]],
    source: &[&[Item]],
    op: &FileOp,
    known: bool,
) -> (Result<DiffId, String>, u64, Result<DiffId, String>) {
    let (base, source) = (layers_of(f, base), layers_of(f, source));
    if known {
        image(f, &base).await.extract(&Ctx::background()).await.unwrap();
        f.cache.prune(PruneOptions::default()).try_collect::<Vec<_>>().await.unwrap();
    }
    let inputs = [image(f, &base).await, image(f, &source).await];
    inputs[1].extract(&Ctx::background()).await.unwrap();
    let (few, opened) = run(f, op, &inputs).await;
    inputs[0].extract(&Ctx::background()).await.unwrap();
    let (whole, _) = run(f, op, &inputs).await;
    (few, opened, whole)
}

#[track_caller]
fn assert_opens(base: &[&[Item]], source: &[Item], changes: Vec<FileChange>, count: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (few, opened, whole) = runtime.block_on(async {
        let f = Fixture::new();
        both(&f, base, &[source], &op(changes), false).await
    });
    assert_eq!(few, whole);
    assert_eq!(opened, count, "{few:?}");
}

fn mkfile(path: &str) -> FileChange {
    let owner = None;
    FileChange::MakeFile(MakeFile {
        path: path.into(),
        mode: 0o600,
        data: "new".into(),
        owner,
        timestamp: None,
    })
}

fn mkdir(path: &str) -> FileChange {
    FileChange::MakeDir(MakeDir {
        path: path.into(),
        mode: 0o711,
        parents: true,
        owner: None,
        timestamp: None,
    })
}

fn remove(path: &str) -> FileChange {
    FileChange::Remove(Remove { path: path.into(), allow_not_found: true, wildcard: true })
}

fn symlink(target: &str, path: &str) -> FileChange {
    FileChange::Symlink(Symlink { target: target.into(), path: path.into(), owner: None, timestamp: None })
}

fn copy(src: &str, dest: &str) -> FileChange {
    let copied = CopyFiles { wildcard: Wildcard::Required, ..CopyFiles::plain(SOURCE, src, dest) };
    FileChange::Copy(Box::new(copied))
}

fn owned(user: &str, change: FileChange) -> FileChange {
    let user = Some(Principal::Name { name: user.into(), input: BASE });
    let owner = Some(Owner { user, group: None });
    match change {
        FileChange::MakeFile(file) => FileChange::MakeFile(MakeFile { owner, ..file }),
        other => other,
    }
}

#[test]
fn a_change_below_a_directory_opens_the_layers_that_cover_its_path() {
    let lowest: [Item; 2] = [("z/", ""), ("z/f", "z")];
    let middle: [Item; 3] = [("etc/", ""), ("etc/app/", ""), ("etc/app/f", "middle")];
    let top: [Item; 4] = [("etc/", ""), ("etc/f", "top"), ("etc/passwd", "app:x:7:8:::\n"), ("d/", "")];
    let base: [&[Item]; 3] = [&lowest, &middle, &top];
    let source: [Item; 3] = [("f", "copied"), ("s/", ""), ("s/f", "in s")];
    assert_opens(&base, &source, vec![mkfile("/etc/f")], 1);
    assert_opens(&base, &source, vec![mkfile("/etc/app/f")], 2);
    assert_opens(&base, &source, vec![mkdir("/etc")], 1);
    assert_opens(&base, &source, vec![mkdir("/d/../etc/app")], 2);
    assert_opens(&base, &source, vec![copy("/f", "/etc/")], 1);
    assert_opens(&base, &source, vec![copy("/s", "/etc/app/")], 3);
    assert_opens(&base, &source, vec![copy("/s/*", "/etc/app/")], 2);
    assert_opens(&base, &source, vec![mkfile("/etc/f"), copy("/f", "/etc/app/"), mkfile("/etc/passwd")], 2);
    assert_opens(&base, &source, vec![owned("app", mkfile("/etc/f"))], 1);
    assert_opens(&base, &source, vec![owned("app", mkfile("/new"))], 1);
    // Whether something is new, only all layers together tell.
    assert_opens(&base, &source, vec![mkfile("/etc/new")], 3);
    assert_opens(&base, &source, vec![mkfile("/new")], 0);
    assert_opens(&base, &source, vec![remove("/etc/f")], 1);
    // What was made may lead anywhere.
    assert_opens(&base, &source, vec![symlink("/z", "/etc/l"), mkfile("/etc/l/f")], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_in_the_root_is_the_same_change_whether_the_base_is_known_or_not() {
    let f = Fixture::new();
    let lowest: [Item; 3] = [("d/", ""), ("d/f", "old"), ("other", "o")];
    let base: [&[Item]; 2] = [&lowest, &[("e/", "")]];
    let source: [Item; 1] = [("f", "copied")];
    for change in [mkfile("/f"), mkfile("f"), copy("/f", "/"), copy("/f", "")] {
        let op = op(vec![change]);
        let (unknown, opened, whole) = both(&f, &base, &[&source], &op, false).await;
        assert_eq!((&unknown, opened), (&whole, 0), "{op:?}");
        let (known, opened, whole) = both(&f, &base, &[&source], &op, true).await;
        assert_eq!((&known, opened), (&whole, 0), "{op:?}");
        assert_eq!(known.unwrap(), unknown.unwrap().clone(), "{op:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_root_of_a_base_that_is_known_opens_what_it_depends_on() {
    let f = Fixture::new();
    let lowest: [Item; 4] = [("file", "old"), ("d/", ""), ("d/f", "old"), ("link", "-> d/f")];
    let base: [&[Item]; 3] = [&lowest, &[("d/", ""), ("dangling", "-> d/new")], &[("top", "")]];
    let source: [Item; 3] = [("file", "copied"), ("link", "copied"), ("d", "a file")];
    for (change, opens, fails) in [
        (mkfile("/file"), 1, false),
        (mkfile("/link"), 1, false),
        (mkfile("/dangling"), 0, false),
        (mkfile("/d"), 0, true),
        // What gives way may be anything but a directory.
        (copy("/file", "/"), 0, false),
        (copy("/link", "/"), 0, false),
        (copy("/d", "/"), 0, true),
    ] {
        let op = op(vec![change]);
        let (known, opened, whole) = both(&f, &base, &[&source], &op, true).await;
        assert_eq!(known, whole, "{op:?}");
        assert_eq!((opened, known.is_err()), (opens, fails), "{op:?}: {known:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_on_an_unknown_base_is_known() {
    let f = Fixture::new();
    let base = image(&f, &layers_of(&f, &[&[("x", "")]])).await;
    let inputs = [Some(base)];
    let made = op(vec![mkfile("/f")]).run(&f.cache, f.tasks(), &Ctx::background(), "", &inputs).await;
    let made = made.unwrap().remove(0).unwrap();
    let second = FileChange::MakeFile(MakeFile {
        path: "/f".into(),
        mode: 0o777,
        data: "second".into(),
        owner: None,
        timestamp: None,
    });
    let again = op(vec![second]).run(&f.cache, f.tasks(), &Ctx::background(), "", &[Some(made)]).await;
    let again = again.unwrap().remove(0).unwrap();
    assert_eq!(f.opens(), 0);
    let tree = again.mount(&Ctx::background()).await.unwrap();
    let meta = std::fs::metadata(tree.path().join("f")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
    assert_eq!(std::fs::read(tree.path().join("f")).unwrap(), b"second");
}

/// What was in a directory that is replaced is gone, in the layers that nobody had to open as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_removed_and_made_anew_hides_all_that_was_in_it() {
    let f = Fixture::new();
    let base: [&[Item]; 3] =
        [&[("a/", ""), ("a/b/", ""), ("a/b/x", "x"), ("a/y", "y")], &[("z", "z")], &[("a/", "")]];
    let source: [Item; 3] = [("a/", ""), ("a/b/", ""), ("a/b/new", "new")];
    for changes in [
        vec![remove("/a"), mkdir("/a")],
        vec![remove("/a/b"), mkfile("/other"), mkdir("/a/b/c")],
        vec![remove("/a"), copy("/a", "/")],
        vec![remove("/a"), mkfile("/a"), remove("/a"), mkdir("/a/b")],
        vec![remove("/a/*"), mkdir("/a/b")],
    ] {
        for known in [false, true] {
            let (few, _, whole) = both(&f, &base, &[&source], &op(changes.clone()), known).await;
            assert_eq!(few, whole, "{changes:?}, known: {known}");
        }
        let inputs = [image(&f, &layers_of(&f, &base)).await, image(&f, &layers_of(&f, &[&source])).await];
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let made = op(changes.clone()).run(&f.cache, f.tasks(), &Ctx::background(), "", &inputs).await;
        let made = made.unwrap().remove(0).unwrap();
        let tree = made.mount(&Ctx::background()).await.unwrap();
        for gone in ["a/b/x", "a/y"] {
            let stays =
                gone == "a/y" && matches!(&changes[0], FileChange::Remove(removed) if removed.path == "/a/b");
            assert_eq!(tree.path().join(gone).exists(), stays, "{gone} after {changes:?}");
        }
    }
}

const PATHS: [&str; 9] = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "b/a/b", "c", "c/a"];

fn items() -> impl Strategy<Value = Vec<Item>> {
    let what = prop_oneof![
        4 => prop::sample::select(vec!["one", "two"]),
        4 => Just("/"),
        2 => prop::sample::select(vec!["-> a", "-> b", "-> ../b", "-> /a/b", "-> none"]),
        2 => Just("gone"),
    ];
    let item = (prop::sample::select(PATHS.to_vec()), what);
    prop::collection::vec(item, 0..5).prop_map(|mut items| {
        items.sort_unstable();
        items.dedup_by_key(|(path, _)| *path);
        let mut whole: Vec<Item> = Vec::new();
        for (path, what) in items {
            // Directories of what is there are there.
            for (at, _) in path.match_indices('/') {
                let parent: &'static str = &path[..=at];
                whole.retain(|(path, _)| path.trim_end_matches('/') != parent.trim_end_matches('/'));
                whole.push((parent, ""));
            }
            match what {
                "/" => whole.push((DIRS[PATHS.iter().position(|p| *p == path).unwrap_or(0)], "")),
                what => whole.push((path, what)),
            }
        }
        whole.sort_unstable();
        whole
    })
}

const DIRS: [&str; 9] = ["a/", "b/", "a/a/", "a/b/", "b/a/", "a/a/a/", "b/a/b/", "c/", "c/a/"];

fn changes() -> impl Strategy<Value = Vec<FileChange>> {
    let path = || prop::sample::select(PATHS.iter().chain(&["a/../b/a", "n/n"]).copied().collect::<Vec<_>>());
    let source = prop::sample::select(vec!["/a", "/b", "/*", "/a/*", "/a/"]);
    let change = prop_oneof![
        path().prop_map(mkfile),
        path().prop_map(mkdir),
        path().prop_map(remove),
        Just(remove("/a/*")),
        (path(), path()).prop_map(|(target, path)| symlink(target, path)),
        (source, path(), prop::bool::ANY, prop::bool::ANY).prop_map(|(src, dest, slash, contents)| {
            let dest = if dest == "n/n" { "" } else { dest };
            let FileChange::Copy(mut copied) = copy(src, &format!("/{dest}{}", if slash { "/" } else { "" }))
            else {
                unreachable!("it is a copy")
            };
            copied.contents_only = contents;
            FileChange::Copy(copied)
        }),
    ];
    prop::collection::vec(change, 1..4)
}

#[test]
fn a_change_onto_a_base_that_is_elsewhere_is_that_onto_one_that_is_here() {
    changes_agree(false);
}

#[test]
fn a_change_onto_a_base_that_was_pruned_is_that_onto_one_that_is_here() {
    changes_agree(true);
}

fn changes_agree(known: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let f = runtime.block_on(async { Fixture::new() });
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let cases = (prop::collection::vec(items(), 1..5), items(), changes());
    let result = runner.run(&cases, |(base, source, changes)| {
        let base: Vec<&[Item]> = base.iter().map(Vec::as_slice).collect();
        let blind = !known && changes.iter().all(super::super::blind::may_be);
        let (few, _, whole) = runtime.block_on(both(&f, &base, &[&source], &op(changes), known));
        // Where nobody knows, nothing is taken to be there; see `blind`.
        if !blind {
            prop_assert_eq!(few, whole);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
