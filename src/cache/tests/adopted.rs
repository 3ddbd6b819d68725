//! Layers that imply directories: unpacked once, unless a link below leads their files elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::cache::Layer;
use crate::cache::RefOptions;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::fs::Last;
use crate::fs::Owner;
use crate::fs::Root;
use crate::progress::TransferProgress;

/// Counts how often a layer is unpacked.
#[derive(Default, Debug)]
struct Unpackings(AtomicU64);

impl TransferProgress for Unpackings {
    fn start(&self, _total: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn update(&self, _current: u64) {}

    fn complete(&self) {}
}

impl Unpackings {
    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Handlers that count the unpackings of the last layer.
fn counting(f: &Fixture, layers: &[Layer]) -> (DescHandlers, Arc<Unpackings>) {
    let counter = Arc::new(Unpackings::default());
    let mut handlers = DescHandlers::new();
    for (at, layer) in layers.iter().enumerate() {
        let provider = f.handlers(std::slice::from_ref(layer), &repository("base"));
        let handler = provider.get(&layer.blob.digest)[0].clone();
        let handler = if at + 1 == layers.len() { handler.with_extraction(counter.clone()) } else { handler };
        handlers.add(layer.blob.digest, handler);
    }
    (handlers, counter)
}

fn entry(path: &str, kind: EntryKind, mode: u32, owner: u64) -> Entry {
    Entry { mode, uid: owner, gid: owner, mtime: (77, 0), ..Entry::new(path, kind) }
}

fn dir(path: &str, mode: u32, owner: u64) -> (Entry, &'static [u8]) {
    (entry(path, EntryKind::Dir, mode, owner), b"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_implies_directories_is_unpacked_once_and_leaves_them_as_they_are() {
    let f = Fixture::new();
    let lower = f.layer_of([dir("etc", 0o700, 7), dir("etc/app", 0o2755, 8)]);
    let upper = f.tar_layer(&[("etc/app/conf", "new"), ("opt/tool/run", "x")]);
    let layers = [f.tar_layer(&[("low", "l")]), lower, upper];
    let (handlers, unpackings) = counting(&f, &layers);
    let image = f.cache.get_by_layers(layers.to_vec(), None, &handlers, RefOptions::default()).await.unwrap();
    let ctx = Ctx::background();
    image.extract(&ctx).await.unwrap();
    assert_eq!(unpackings.count(), 1);
    let tree = image.mount(&ctx).await.unwrap();
    let root = Root::open(tree.path()).unwrap();
    let stat = |path: &str| root.stat(Path::new(path), Last::Keep).unwrap().unwrap();
    for (path, mode, owner, mtime) in
        [("etc", 0o700, 7, 77), ("etc/app", 0o2755, 8, 77), ("opt", 0o755, 0, 0), ("opt/tool", 0o755, 0, 0)]
    {
        let meta = stat(path);
        assert_eq!(meta.mode, mode, "{path}");
        assert_eq!(meta.owner, Owner { uid: owner, gid: owner }, "{path}");
        assert_eq!(meta.mtime.seconds, mtime, "{path}");
    }
    assert_eq!(std::fs::read(tree.path().join("etc/app/conf")).unwrap(), b"new");
    drop((root, tree));
    image.extract(&ctx).await.unwrap();
    assert_eq!(unpackings.count(), 1, "what was laid over others stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_below_leads_the_files_of_an_implied_directory_elsewhere() {
    let f = Fixture::new();
    let link = EntryKind::Symlink { target: b"usr/lib".to_vec() };
    let linked = entry("lib", link, 0o777, 0);
    let lower = f.layer_of([dir("usr", 0o755, 0), dir("usr/lib", 0o711, 3), (linked, &b""[..])]);
    let layers = [lower, f.tar_layer(&[("lib/f", "found")])];
    let (handlers, unpackings) = counting(&f, &layers);
    let image = f.cache.get_by_layers(layers.to_vec(), None, &handlers, RefOptions::default()).await.unwrap();
    let ctx = Ctx::background();
    image.extract(&ctx).await.unwrap();
    assert_eq!(unpackings.count(), 2);
    let tree = image.mount(&ctx).await.unwrap();
    assert_eq!(std::fs::read(tree.path().join("usr/lib/f")).unwrap(), b"found");
    assert!(tree.path().join("lib").is_symlink());
    drop(tree);
    // Two layers, and no files that wait.
    f.snapshots_settle(2).await;
}
