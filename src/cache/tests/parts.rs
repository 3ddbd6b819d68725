//! Looks into layers that were here once: only parts of them are read, and what is seen is what the layer has.

use std::sync::atomic::Ordering;

use super::fixture::Fixture;
use super::fixture::OfParts;
use super::fixture::Registries;
use super::fixture::repository;
use super::paths::both;
use super::paths::image_at;
use super::paths::prune;
use super::paths::seen;
use super::paths::seen_before;
use super::paths::tree;
use crate::archive::Compression;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::cache::Layer;
use crate::cache::Look;
use crate::cache::Tree;
use crate::cache::UsageOptions;
use crate::ctx::Ctx;
use crate::fs::Last;
use crate::fs::Root;
use crate::oci::DiffId;
use crate::snapshot::SnapshotKind;

/// Bytes that don't get smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    word.flatten().take(length).collect()
}

/// A layer with one of each kind between two large files.
fn large(f: &Fixture, compression: Compression, length: usize) -> Layer {
    let padding = noise(length / 2);
    let middle = noise(5 << 18);
    let mut entries: Vec<(Entry, &[u8])> = Vec::new();
    let mut put = |path: &str, kind: EntryKind, mode: u32, data: &'static [u8]| {
        let mut entry = Entry::new(path, kind);
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (mode, 12, 34, (1_600_000_000, 123_456_789));
        entries.push((entry, data));
    };
    let link = |target: &str| EntryKind::Hardlink { target: target.as_bytes().to_vec() };
    put("etc", EntryKind::Dir, 0o2750, b"");
    put("etc/small", EntryKind::File, 0o4711, b"8 bytes\n");
    put("etc/empty", EntryKind::File, 0o600, b"");
    put("etc/link", EntryKind::Symlink { target: b"small".to_vec() }, 0o777, b"");
    put("etc/pipe", EntryKind::Fifo, 0o640, b"");
    put("etc/null", EntryKind::CharDevice { major: 1, minor: 3 }, 0o666, b"");
    put("etc/.wh.gone", EntryKind::File, 0, b"");
    put("etc/hides", EntryKind::Dir, 0o755, b"");
    put("etc/hides/.wh..wh..opq", EntryKind::File, 0, b"");
    put("etc/hides/again", EntryKind::File, 0o644, b"again");
    put("names", EntryKind::Dir, 0o755, b"");
    put("names/first", EntryKind::File, 0o644, b"of the first name");
    put("names/replaced", link("names/first"), 0o644, b"");
    put("other", EntryKind::Dir, 0o700, b"");
    put("other/second", link("names/replaced"), 0o644, b"");
    put("names/first", EntryKind::File, 0o644, b"of another file");
    put("many", EntryKind::Dir, 0o755, b"");
    for n in 0..100 {
        put(&format!("many/{n}"), EntryKind::File, 0o644, b"one of a hundred");
    }
    let attribute = (b"user.thunk".to_vec(), vec![0, 255, 7]);
    entries[1].0.xattrs.insert(attribute.0, attribute.1);
    let mut large = Entry::new("middle", EntryKind::File);
    large.mode = 0o644;
    entries.insert(2, (large, &middle));
    let ends = ["first", "last"].map(|name| (Entry::new(name, EntryKind::File), padding.as_slice()));
    let [first, last] = ends;
    f.compressed_layer_of(std::iter::once(first).chain(entries).chain([last]), compression)
}

/// What is below it: one of the things that it hides, and one that it does not.
fn lower(f: &Fixture) -> Layer {
    let entries = [
        ("etc", ""),
        ("etc/gone", "gone"),
        ("etc/hides", ""),
        ("etc/hides/below", "below"),
        ("etc/stays", "stays"),
    ];
    let entries = entries.map(|(path, text)| {
        let kind = if text.is_empty() { EntryKind::Dir } else { EntryKind::File };
        let mut entry = Entry::new(path, kind);
        entry.mode = 0o755;
        (entry, text.as_bytes())
    });
    f.layer_of(entries)
}

fn moved(f: &Fixture) -> (u64, u64) {
    let Registries { parts, part_bytes, .. } = &*f.registries;
    (parts.swap(0, Ordering::SeqCst), part_bytes.swap(0, Ordering::SeqCst))
}

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_look_into_a_known_layer_reads_the_parts_that_have_the_bytes() {
    let f = Fixture::new();
    for (compression, most) in [
        (Compression::Uncompressed, 20 << 10),
        (Compression::Gzip, MIB + MIB / 8),
        (Compression::Zstd, 2 * MIB + MIB / 8),
    ] {
        let layers = [lower(&f), large(&f, compression, 18 << 20)];
        let cases = [
            (vec![Look::at("/etc/small")], 0, 1, most),
            (vec![Look::at("/etc/link")], 0, 1, most),
            (vec![Look { last: Last::Keep, ..Look::at("/etc/link") }], 0, 0, 0),
            (vec![Look::at("/etc/empty"), Look::at("/etc/pipe"), Look::at("/etc/null")], 0, 0, 0),
            (vec![Look::at("/etc/gone"), Look::at("/etc/hides/below"), Look::at("/none")], 0, 0, 0),
            (vec![Look { to_change: true, ..Look::at("/etc/hides/new") }], 0, 0, 0),
            (vec![Look::at("/etc/stays")], 1, 0, 0),
            (vec![tree("/many")], 0, 1, most + MIB / 4),
            (vec![tree("/other"), Look::at("/names/first")], 0, 1, most),
            (vec![tree("/names")], 0, 1, most),
            (vec![Look::at("/middle")], 0, 1, most + 2 * MIB),
            (vec![Look::at("/first")], 1, 0, 0),
        ];
        let (ctx, origin) = (Ctx::background(), repository("app"));
        let see = |tree: &Tree, looks: &[Look]| {
            let root = Root::open(tree.path()).unwrap();
            looks.iter().map(|look| seen(&root, look)).collect::<String>()
        };
        let whole = image_at(&f, &layers, &origin).await.mount(&ctx).await.unwrap();
        let wholes: Vec<String> = cases.iter().map(|(looks, ..)| see(&whole, looks)).collect();
        drop(whole);
        for ((looks, opens, parts, most), whole) in cases.into_iter().zip(wholes) {
            prune(&f, false).await;
            let image = image_at(&f, &layers, &origin).await;
            moved(&f);
            let before = f.opens();
            let few = image.mount_paths(&ctx, &looks).await.unwrap();
            let (given, bytes) = moved(&f);
            assert_eq!(f.opens() - before, opens, "{compression} {looks:?}");
            assert_eq!(given, parts, "{compression} {looks:?}");
            assert!(bytes <= most, "{compression} {looks:?}: {bytes} bytes");
            assert_eq!(see(&few, &looks), whole, "{compression} {looks:?}");
            // What is here is not read again.
            let again = image.mount_paths(&ctx, &looks).await.unwrap();
            assert_eq!((f.opens() - before, moved(&f)), (opens, (0, 0)), "{compression} {looks:?}");
            assert_eq!(see(&again, &looks), whole, "{compression} {looks:?}");
        }
        prune(&f, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_layer_count_for_its_record_and_go_with_it() {
    let f = Fixture::new();
    let layers = [lower(&f), large(&f, Compression::Uncompressed, 18 << 20)];
    seen_before(&f, &layers).await.unwrap();
    let image = image_at(&f, &layers, &repository("app")).await;
    let sizes = async || {
        let usages = f.cache.usage(&UsageOptions::default()).await.unwrap();
        let mut sizes: Vec<u64> = usages.into_iter().map(|usage| usage.size).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes().await, [0, 0]);
    let mut parts = Vec::new();
    for look in [tree("/many"), Look::at("/etc/small")] {
        drop(image.mount_paths(&Ctx::background(), &[look]).await.unwrap());
        let mut bytes = Vec::new();
        for snapshot in f.snapshotter.walk().await.unwrap() {
            if snapshot.kind == SnapshotKind::Committed {
                bytes.push(f.snapshotter.usage(&snapshot.key).await.unwrap().bytes);
            }
        }
        parts.push(bytes.len());
        assert_eq!(sizes().await, [0, bytes.iter().sum()]);
    }
    assert_eq!(parts, [1, 2]);
    drop(image);
    prune(&f, false).await;
    assert_eq!(sizes().await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_layer_is_not_taken_for_the_layer() {
    let f = Fixture::new();
    let layers = [large(&f, Compression::Uncompressed, 1 << 20)];
    seen_before(&f, &layers).await.unwrap();
    let image = image_at(&f, &layers, &repository("app")).await;
    let ctx = Ctx::background();
    let before = f.opens();
    let part = image.mount_paths(&ctx, &[Look::at("/etc/small")]).await.unwrap();
    let root = Root::open(part.path()).unwrap();
    assert!(root.stat("/etc/small", Last::Keep).unwrap().is_some());
    assert!(root.stat("/etc/empty", Last::Keep).unwrap().is_none());
    assert_eq!(f.opens(), before);
    let whole = image.mount(&ctx).await.unwrap();
    assert!(Root::open(whole.path()).unwrap().stat("/etc/empty", Last::Keep).unwrap().is_some());
    assert_eq!(f.opens(), before + 1);
    drop((part, whole, root));
    // It goes although the image stays.
    for _ in 0..1000 {
        f.cache.collect_garbage(&[]).await.unwrap();
        if f.snapshotter
            .walk()
            .await
            .unwrap()
            .iter()
            .all(|snapshot| snapshot.key.as_str().starts_with("layer-"))
        {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("left: {:?}", f.snapshotter.walk().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_wrong_or_not_to_be_had_are_the_whole_layer_instead() {
    let f = Fixture::new();
    let layers = [large(&f, Compression::Gzip, 18 << 20)];
    seen_before(&f, &layers).await.unwrap();
    for of_parts in [OfParts::Ignored, OfParts::Damaged, OfParts::Refused] {
        *f.registries.of_parts.lock().unwrap() = of_parts;
        let image = image_at(&f, &layers, &repository("app")).await;
        let (few, opened, whole) = both(&f, &image, &[Look::at("/etc/small")]).await.unwrap();
        assert_eq!(few, whole, "{of_parts:?}");
        assert_eq!(opened, 1, "{of_parts:?}");
        drop(image);
        prune(&f, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_blob_of_a_known_layer_has_no_known_parts() {
    let f = Fixture::new();
    let gzip = large(&f, Compression::Gzip, 18 << 20);
    let zstd = Layer::new(large(&f, Compression::Zstd, 18 << 20).blob, gzip.diff_id);
    let plain = large(&f, Compression::Uncompressed, 18 << 20);
    assert_eq!(DiffId(plain.blob.digest), gzip.diff_id);
    for layer in [&gzip, &plain, &zstd] {
        seen_before(&f, std::slice::from_ref(layer)).await.unwrap();
    }
    for (layer, opens) in [(gzip, 1), (zstd, 0), (plain, 0)] {
        let image = image_at(&f, std::slice::from_ref(&layer), &repository("app")).await;
        let before = f.opens();
        image.mount_paths(&Ctx::background(), &[Look::at("/etc/small")]).await.unwrap();
        assert_eq!(f.opens() - before, opens, "{}", layer.blob.media_type);
        if opens == 0 {
            continue;
        }
        drop(image);
        prune(&f, false).await;
        // The one that was opened last is the one that is known.
        seen_before(&f, &[Layer::new(large(&f, Compression::Zstd, 18 << 20).blob, layer.diff_id)])
            .await
            .unwrap();
    }
}
