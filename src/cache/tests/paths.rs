//! Looks into a state: what is opened for them, and that they see what a look into the whole state sees.

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use futures::TryStreamExt as _;
use proptest::prelude::*;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::archive::Compression;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::Layer;
use crate::cache::Look;
use crate::cache::Pattern;
use crate::cache::PruneOptions;
use crate::cache::RefOptions;
use crate::cache::UsageOptions;
use crate::cache::Want;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::Root;
use crate::oci::Digest;

/// What a layer has, in the order of its archive.
#[derive(Clone, Debug)]
struct Item {
    path: &'static str,
    kind: Kind,
    mode: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    File(&'static str),
    Dir,
    Link(&'static str),
    Hard(&'static str),
    Removed,
    Opaque,
}

fn item(path: &'static str, kind: Kind) -> Item {
    let mode = if matches!(kind, Kind::Dir) { 0o755 } else { 0o644 };
    Item { path, kind, mode }
}

fn file(path: &'static str, text: &'static str) -> Item {
    item(path, Kind::File(text))
}

fn dir(path: &'static str) -> Item {
    item(path, Kind::Dir)
}

fn link(path: &'static str, target: &'static str) -> Item {
    item(path, Kind::Link(target))
}

/// A file of this path keeps layers of one content apart. Nobody looks at it.
fn layer(f: &Fixture, items: &[Item], salt: &str, padding: &[u8], compression: Compression) -> Layer {
    let salt = (Entry::new(format!("salt-{salt}"), EntryKind::File), padding);
    let entries = items.iter().map(|Item { path, kind, mode }| {
        let (parent, name) = path.rsplit_once('/').map_or(("", *path), |(parent, name)| (parent, name));
        let special = |name: String| match parent {
            "" => name,
            parent => format!("{parent}/{name}"),
        };
        let mut data: &[u8] = &[];
        let mut entry = match kind {
            Kind::File(text) => {
                data = text.as_bytes();
                Entry::new(*path, EntryKind::File)
            }
            Kind::Dir => Entry::new(*path, EntryKind::Dir),
            Kind::Link(target) => {
                Entry::new(*path, EntryKind::Symlink { target: target.as_bytes().to_vec() })
            }
            Kind::Hard(target) => {
                Entry::new(*path, EntryKind::Hardlink { target: target.as_bytes().to_vec() })
            }
            Kind::Removed => Entry::new(special(format!(".wh.{name}")), EntryKind::File),
            Kind::Opaque => Entry::new(format!("{path}/.wh..wh..opq"), EntryKind::File),
        };
        entry.mode = *mode;
        entry.mtime = (1_000_000 + i64::from(*mode), 0);
        (entry, data)
    });
    f.compressed_layer_of(std::iter::once(salt).chain(entries), compression)
}

/// Small layers that nobody has seen, the lowest first.
fn layers_of(f: &Fixture, layers: &[&[Item]]) -> Vec<Layer> {
    padded_layers_of(f, layers, &[])
}

/// The same with so many bytes that nobody looks at.
fn padded_layers_of(f: &Fixture, layers: &[&[Item]], padding: &[u8]) -> Vec<Layer> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let salt = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let layers = layers.iter().enumerate().map(|(n, items)| {
        let compression = if padding.is_empty() { Compression::Gzip } else { Compression::Uncompressed };
        layer(f, items, &format!("{salt}-{n}"), padding, compression)
    });
    layers.collect()
}

pub(super) async fn image_at(f: &Fixture, layers: &[Layer], origin: &Origin) -> ImmutableRef {
    let handlers = f.handlers(layers, origin);
    f.cache.get_by_layers(layers.to_vec(), None, &handlers, RefOptions::default()).await.unwrap()
}

/// An image that nobody has seen.
async fn image(f: &Fixture, layers: &[&[Item]]) -> ImmutableRef {
    image_at(f, &layers_of(f, layers), &repository("app")).await
}

/// All layers were here as files, and are gone.
pub(super) async fn seen_before(f: &Fixture, layers: &[Layer]) -> Result<(), CacheError> {
    image_at(f, layers, &repository("app")).await.extract(&Ctx::background()).await?;
    prune(f, false).await;
    Ok(())
}

/// Prunes until no files are left. What was in use a moment ago may be held a moment longer, and then stays until
/// the next time.
pub(super) async fn prune(f: &Fixture, all: bool) {
    for _ in 0..1000 {
        let options = PruneOptions { all, ..PruneOptions::default() };
        f.cache.prune(options).try_collect::<Vec<_>>().await.unwrap();
        if f.snapshotter.walk().await.unwrap().is_empty() {
            assert!(f.cache.usage(&UsageOptions::default()).await.unwrap().is_empty());
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("left: {:?}", f.snapshotter.walk().await.unwrap());
}

pub(super) fn tree(path: &str) -> Look {
    Look { want: Want::Tree, ..Look::at(path) }
}

fn matching(path: &str, pattern: &str) -> Look {
    Look { want: Want::Matching(Pattern::new(pattern).unwrap()), ..Look::at(path) }
}

/// All that a look can tell.
pub(super) fn seen(root: &Root, look: &Look) -> String {
    let mut seen = String::new();
    let resolved = root.resolve(&look.path, look.last);
    writeln!(seen, "{resolved:?}").unwrap();
    match (root.stat(&look.path, look.last), resolved) {
        (Ok(Some(meta)), Ok(resolved)) => match &look.want {
            _ if !meta.is_dir() => one(&mut seen, root, &resolved, &meta),
            Want::Entry if resolved.as_os_str().is_empty() => {}
            Want::Entry | Want::Directory => one(&mut seen, root, &resolved, &meta),
            Want::Tree => all(&mut seen, root, &resolved, |_| true),
            Want::Matching(pattern) => all(&mut seen, root, &resolved, |path| pattern.matches_beneath(path)),
        },
        (stat, _) => writeln!(seen, "{:?}", stat.map(|meta| meta.map(|meta| meta.kind))).unwrap(),
    }
    seen
}

fn all(seen: &mut String, root: &Root, path: &Path, wanted: impl Fn(&[u8]) -> bool) {
    for entry in root.walk(path).unwrap() {
        let entry = entry.unwrap();
        let at = path.join(&entry.path);
        let salt = at.as_os_str().as_bytes().starts_with(b"salt-");
        if !at.as_os_str().is_empty() && !salt && wanted(entry.path.as_os_str().as_bytes()) {
            one(seen, root, &at, &entry.meta);
        }
    }
}

fn one(seen: &mut String, root: &Root, path: &Path, meta: &Meta) {
    let Meta { kind, mode, owner, size, mtime, .. } = meta;
    let size = if meta.is_dir() { &0 } else { size };
    let xattrs = root.xattrs(path, Last::Keep).unwrap();
    write!(seen, "{} {kind:?} {mode:o} {owner:?} {size} {mtime:?} {xattrs:?}", path.display()).unwrap();
    if meta.is_symlink() {
        write!(seen, " -> {}", root.read_link(path).unwrap().display()).unwrap();
    }
    if meta.is_file() {
        let mut bytes = Vec::new();
        root.open_file(path).unwrap().read_to_end(&mut bytes).unwrap();
        match str::from_utf8(&bytes) {
            Ok(text) => write!(seen, " {text:?}").unwrap(),
            Err(_) => write!(seen, " {}", Digest::sha256(&bytes)).unwrap(),
        }
    }
    seen.push('\n');
}

/// What looks see of the layers that are opened for them, and how many these are; and then of all layers.
pub(super) async fn both(
    f: &Fixture,
    image: &ImmutableRef,
    looks: &[Look],
) -> Result<(String, u64, String), CacheError> {
    let ctx = Ctx::background();
    let before = f.opens();
    let see = |root: Root| looks.iter().map(|look| seen(&root, look)).collect::<String>();
    let few = image.mount_paths(&ctx, looks).await;
    let opened = f.opens() - before;
    let few = few.map(|few| see(Root::open(few.path()).unwrap()));
    let whole = image.mount(&ctx).await?;
    Ok((few?, opened, see(Root::open(whole.path())?)))
}

/// Looks into `layers`, the lowest first, open so many of them, and see what is there.
#[track_caller]
fn assert_opens(layers: &[&[Item]], looks: &[Look], count: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (few, opened, whole) = runtime.block_on(async {
        let f = Fixture::new();
        let image = image(&f, layers).await;
        both(&f, &image, looks).await.unwrap()
    });
    assert_eq!(few, whole);
    assert_eq!(opened, count, "{few}");
}

#[test]
fn a_file_opens_the_layers_from_the_top_down_to_it() {
    let lowest = [dir("etc"), file("etc/a", "lowest"), file("etc/b", "b")];
    let middle = [dir("etc"), file("etc/a", "middle")];
    let top = [dir("etc"), file("etc/c", "c")];
    let layers: [&[Item]; 3] = [&lowest, &middle, &top];
    assert_opens(&layers, &[Look::at("/etc/c")], 1);
    assert_opens(&layers, &[Look::at("etc/a")], 2);
    assert_opens(&layers, &[Look::at("/etc/b")], 3);
    assert_opens(&layers, &[Look::at("/etc/c"), Look::at("/etc/a")], 2);
    assert_opens(&layers, &[Look::at("/etc/none")], 3);
    assert_opens(&layers, &[Look::at("/etc/c/none")], 1);
}

#[test]
fn links_lead_elsewhere_and_back_to_the_top() {
    let lowest = [dir("usr"), dir("usr/lib"), file("usr/lib/f", "f"), file("usr/lib/g", "old")];
    let middle = [link("lib", "usr/lib"), link("up", "/usr/../lib/g")];
    let top = [dir("usr"), dir("usr/lib"), file("usr/lib/g", "g")];
    let layers: [&[Item]; 3] = [&lowest, &middle, &top];
    assert_opens(&layers, &[Look::at("/lib/g")], 2);
    assert_opens(&layers, &[Look::at("/lib/f")], 3);
    assert_opens(&layers, &[Look::at("/up")], 2);
    assert_opens(&layers, &[Look { last: Last::Keep, ..Look::at("/lib") }], 2);
    assert_opens(&layers, &[Look::at("/usr/lib/../lib/g")], 1);
}

#[test]
fn what_was_removed_is_not_looked_for_below() {
    let lowest = [dir("d"), file("d/f", "f"), file("g", "g"), dir("e"), file("e/f", "e")];
    let removed = [item("d", Kind::Removed), item("g", Kind::Removed), dir("e"), item("e", Kind::Opaque)];
    let top = [dir("d"), file("d/new", "new")];
    let layers: [&[Item]; 3] = [&lowest, &removed, &top];
    assert_opens(&layers, &[Look::at("/d/f")], 2);
    assert_opens(&layers, &[Look::at("/g")], 2);
    assert_opens(&layers, &[Look::at("/e/f")], 2);
    // What is removed must not show where another look needs the layer that had it.
    assert_opens(&layers, &[Look::at("/d/f"), Look::at("/g"), Look::at("/e/f"), tree("/")], 3);
    let replaced = [file("d", "a file"), file("h", "h")];
    let layers: [&[Item]; 3] = [&lowest, &replaced, &[file("x", "x")]];
    assert_opens(&layers, &[Look::at("/d/f")], 2);
    assert_opens(&layers, &[Look::at("/d/f"), Look::at("/e/f")], 3);
}

#[test]
fn a_directory_opens_all_layers_down_to_where_it_hides_those_below() {
    let lowest = [dir("d"), file("d/a", "a"), file("x", "x")];
    let opaque = [dir("d"), item("d", Kind::Opaque), file("d/b", "b")];
    let top = [dir("d"), file("d/c", "c")];
    let layers: [&[Item]; 3] = [&lowest, &opaque, &top];
    assert_opens(&layers, &[tree("/x")], 3);
    assert_opens(&[&lowest, &opaque], &[tree("/d")], 1);
    assert_opens(&layers, &[matching("/d", "*")], 3);
    assert_opens(&layers, &[tree("/")], 3);
    assert_opens(&layers, &[Look::at("/d")], 1);
}

#[test]
fn a_layer_that_implies_directories_lies_over_what_they_are_below() {
    let private = Item { mode: 0o700, ..dir("d") };
    let lowest = [private, file("d/a", "a"), dir("usr"), dir("usr/lib")];
    let linked = [link("lib", "usr/lib")];
    let implies = [file("d/b", "b"), file("lib/f", "f")];
    let layers: [&[Item]; 4] = [&[file("z", "z")], &lowest, &linked, &implies];
    assert_opens(&layers, &[Look::at("/d")], 3);
    assert_opens(&layers, &[Look::at("/usr/lib/f")], 3);
    assert_opens(&layers, &[Look::at("/lib/f"), tree("/d")], 4);
}

#[test]
fn nothing_that_was_opened_is_opened_again() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let f = Fixture::new();
        let image = image(&f, &[&[file("a", "a")], &[file("b", "b")], &[file("c", "c")]]).await;
        let ctx = Ctx::background();
        for (path, opens) in [("/b", 2), ("/b", 2), ("/c", 2), ("/a", 3)] {
            image.mount_paths(&ctx, &[Look::at(path)]).await.unwrap();
            assert_eq!(f.opens(), opens, "{path}");
        }
        image.extract(&ctx).await.unwrap();
        assert_eq!(f.opens(), 3);
    });
}

/// Paths of which some are in each other.
const PATHS: [&str; 12] =
    ["a", "b", "c", "a/a", "a/b", "b/a", "b/c", "a/a/a", "a/b/a", "b/a/b", "c/a", "c/a/b"];

fn items() -> impl Strategy<Value = Vec<Item>> {
    let kind = prop_oneof![
        4 => prop::sample::select(vec!["one", "two", "three"]).prop_map(Kind::File),
        4 => Just(Kind::Dir),
        2 => prop::sample::select(vec!["a", "b", "../b", "c/a", "/a/b", "a/../b", "none"]).prop_map(Kind::Link),
        1 => prop::sample::select(PATHS.to_vec()).prop_map(Kind::Hard),
        2 => Just(Kind::Removed),
        1 => Just(Kind::Opaque),
    ];
    let item = (prop::sample::select(PATHS.to_vec()), kind, prop::sample::select(vec![0o755, 0o700, 0o644]));
    let item = item.prop_map(|(path, kind, mode)| Item { path, kind, mode });
    // Most layers have entries for the directories of what is in them.
    (prop::collection::vec(item, 0..5), prop::bool::weighted(0.8)).prop_map(|(mut items, explicit)| {
        items.sort_by_key(|item| item.path);
        if explicit {
            let paths: Vec<&str> = items.iter().map(|item| item.path).collect();
            let parents = PATHS.iter().filter(|p| paths.iter().any(|q| q.starts_with(&format!("{p}/"))));
            let parents: Vec<Item> = parents.map(|path| dir(path)).collect();
            items = parents.into_iter().chain(items).collect();
        }
        items
    })
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let more = ["/", "a/..", "b/../a/b", "c/a/../b", "none/a", "none/../a/a"];
    let path = prop::sample::select(PATHS.iter().chain(&more).copied().collect::<Vec<_>>());
    let want = prop_oneof![
        4 => Just(Want::Entry),
        2 => Just(Want::Tree),
        2 => prop::sample::select(vec!["*", "a*", "*/b", "[ab]/a"])
            .prop_map(|pattern| Want::Matching(Pattern::new(pattern).unwrap())),
    ];
    let look = (path, prop::sample::select(vec![Last::Follow, Last::Keep]), want, prop::bool::ANY);
    let look =
        look.prop_map(|(path, last, want, to_change)| Look { path: path.into(), last, want, to_change });
    prop::collection::vec(look, 1..4)
}

/// Looks into many images; layers of those that were `known` were opened before, and have gone.
fn looks_agree(known: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let f = runtime.block_on(async { Fixture::new() });
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let stacks = (prop::collection::vec(items(), 1..5), looks());
    // Enough for parts of layers to be worth while.
    let padding = vec![7; 200 << 10];
    let result = runner.run(&stacks, |(items, looks)| {
        let items: Vec<&[Item]> = items.iter().map(Vec::as_slice).collect();
        let (few, _, whole) = runtime.block_on(async {
            let layers = padded_layers_of(&f, &items, if known { &padding } else { &[] });
            let seen = async {
                if known {
                    seen_before(&f, &layers).await?;
                }
                both(&f, &image_at(&f, &layers, &repository("app")).await, &looks).await
            };
            match seen.await {
                Ok(seen) => Ok(seen),
                // Not every stack is an image.
                Err(CacheError::Unpack { .. }) => Err(TestCaseError::reject("no image")),
                Err(error) => Err(TestCaseError::fail(error.to_string())),
            }
        })?;
        prop_assert_eq!(few, whole);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn looks_see_what_a_look_into_the_whole_state_sees() {
    looks_agree(false);
}

#[test]
fn looks_see_the_same_with_what_is_known_of_layers_that_are_gone() {
    looks_agree(true);
}

/// Directories and a file each, on top of each other; a link to the lowest is in the middle.
const KNOWN: [&[Item]; 4] = [
    &[
        Item { path: "etc", kind: Kind::Dir, mode: 0o755 },
        Item { path: "etc/lowest", kind: Kind::File("lowest"), mode: 0o644 },
    ],
    &[
        Item { path: "etc", kind: Kind::Dir, mode: 0o755 },
        Item { path: "etc/link", kind: Kind::Link("lowest"), mode: 0o777 },
    ],
    &[Item { path: "etc", kind: Kind::Dir, mode: 0o711 }],
    &[Item { path: "other", kind: Kind::File("other"), mode: 0o644 }],
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_layer_outlives_its_files() {
    let f = Fixture::new();
    let layers = layers_of(&f, &KNOWN);
    let changed = Look { to_change: true, ..Look::at("/etc/lowest") };
    for (looks, opens) in [
        // Only the bytes of files are missing.
        (vec![Look::at("/etc/lowest")], 1),
        (vec![Look::at("/etc/link")], 1),
        (vec![Look { last: Last::Keep, ..Look::at("/etc/link") }], 0),
        (vec![Look::at("/etc")], 0),
        (vec![changed], 1),
        (vec![tree("/etc")], 1),
        (vec![matching("/", "etc/l*")], 1),
        (vec![matching("/", "o*")], 1),
        (vec![Look::at("/etc/none")], 0),
        (vec![tree("/")], 2),
    ] {
        seen_before(&f, &layers).await.unwrap();
        let image = image_at(&f, &layers, &repository("app")).await;
        let (few, opened, whole) = both(&f, &image, &looks).await.unwrap();
        assert_eq!(few, whole);
        assert_eq!(opened, opens, "{looks:?}");
    }
    // Pruned with everything, it is gone as well.
    prune(&f, true).await;
    let image = image_at(&f, &layers, &repository("app")).await;
    assert_eq!(both(&f, &image, &[Look::at("/etc/lowest")]).await.unwrap().1, 4);
    drop(image);
    prune(&f, true).await;
    assert_eq!(f.indexes().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_depends_on_those_below_is_known_on_top_of_them() {
    let f = Fixture::new();
    let lowest = [dir("d"), file("d/a", "a"), dir("usr"), dir("usr/lib"), file("usr/lib/g", "g")];
    let (linked, implies) = ([link("lib", "usr/lib")], [file("d/b", "b"), file("lib/f", "f")]);
    let links = [dir("e"), item("e/hard", Kind::Hard("d/a"))];
    let layers = layers_of(&f, &[&lowest, &linked, &implies, &links]);
    for (looks, opens) in [
        (vec![Look::at("/none")], 0),
        (vec![Look::at("/d/none")], 0),
        (vec![Look { last: Last::Keep, ..Look::at("/lib") }], 0),
        (vec![Look::at("/usr/lib/g")], 1),
        (vec![Look::at("/lib/g")], 1),
        (vec![Look::at("/d/a"), Look::at("/e")], 1),
    ] {
        seen_before(&f, &layers).await.unwrap();
        let image = image_at(&f, &layers, &repository("app")).await;
        let (few, opened, whole) = both(&f, &image, &looks).await.unwrap();
        assert_eq!(few, whole);
        assert_eq!(opened, opens, "{looks:?}");
    }
    for looks in [vec![Look::at("/lib/f")], vec![Look::at("/e/hard")], vec![tree("/d")]] {
        seen_before(&f, &layers).await.unwrap();
        let image = image_at(&f, &layers, &repository("app")).await;
        let (few, _, whole) = both(&f, &image, &looks).await.unwrap();
        assert_eq!(few, whole);
    }
    // On top of others, nothing is known of them.
    let others = layers_of(&f, &[&[dir("usr"), dir("usr/lib")], &[link("d", "usr/lib")]]);
    let moved: Vec<Layer> = others.into_iter().chain([layers[2].clone()]).collect();
    seen_before(&f, &layers).await.unwrap();
    let image = image_at(&f, &moved, &repository("app")).await;
    let (few, _, whole) = both(&f, &image, &[Look::at("/usr/lib/b"), Look::at("/d/b")]).await.unwrap();
    assert_eq!(few, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_layer_is_for_those_who_may_have_it() {
    let f = Fixture::new();
    let layers = layers_of(&f, &KNOWN);
    seen_before(&f, &layers).await.unwrap();
    // Another registry says that it has the layers: that has to be seen first.
    let image = image_at(&f, &layers, &Origin::registry("other.example", "app")).await;
    assert_eq!(both(&f, &image, &[Look::at("/etc/lowest")]).await.unwrap().1, 4);
    drop(image);
    // Another repository of the registry is asked, and not for the bytes.
    seen_before(&f, &layers).await.unwrap();
    let probes = f.registries.probes.load(std::sync::atomic::Ordering::SeqCst);
    let image = image_at(&f, &layers, &repository("fork")).await;
    assert_eq!(both(&f, &image, &[Look::at("/etc/lowest")]).await.unwrap().1, 1);
    assert!(f.registries.probes.load(std::sync::atomic::Ordering::SeqCst) >= probes + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_not_whole_is_none() {
    let f = Fixture::new();
    let layers = layers_of(&f, &KNOWN);
    seen_before(&f, &layers).await.unwrap();
    assert_eq!(f.indexes().len(), 4);
    for path in f.indexes() {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let image = image_at(&f, &layers, &repository("app")).await;
    assert_eq!(both(&f, &image, &[Look::at("/etc/lowest")]).await.unwrap().1, 4);
}

#[test]
fn a_loop_of_links_ends() {
    let layers: [&[Item]; 2] = [&[link("a", "b")], &[link("b", "a")]];
    assert_opens(&layers, &[Look::at("/a")], 2);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let f = Fixture::new();
        let image = image(&f, &layers).await;
        let tree = image.mount_paths(&Ctx::background(), &[Look::at("/a")]).await.unwrap();
        let stat = Root::open(tree.path()).unwrap().stat("/a", Last::Follow);
        assert!(matches!(stat, Err(FsError::InvalidPath { .. })), "{stat:?}");
    });
}
