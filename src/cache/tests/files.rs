//! States as files: made, unpacked, mounted, packed, compared and removed.

use std::fs;
use std::path::Path;

use futures::TryStreamExt;
use futures::future::try_join_all;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::archive::Compression;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::LayerOptions;
use crate::cache::MutableOptions;
use crate::cache::PruneOptions;
use crate::cache::RefOptions;
use crate::cache::UsageOptions;
use crate::cache::record::ChangeSet;
use crate::cache::record::Part;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::MountPoint;
use crate::snapshot::Parents;
use crate::snapshot::PointKind;

pub(super) fn ctx() -> Ctx {
    Ctx::background()
}

/// An image whose layers have one file each, of the layer's name.
pub(super) async fn image(f: &Fixture, names: &[&str]) -> ImmutableRef {
    let layers: Vec<_> = names.iter().map(|name| f.tar_layer(&[(name, name)])).collect();
    let handlers = f.handlers(&layers, &repository("app"));
    f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap()
}

/// A state with `name` written on `parent`.
pub(super) async fn written(
    f: &Fixture,
    parent: Option<&ImmutableRef>,
    name: &str,
    options: MutableOptions,
) -> ImmutableRef {
    let made = f.cache.create(&ctx(), parent, options).await.unwrap();
    let tree = made.mount().await.unwrap();
    let path = tree.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, name).unwrap();
    drop(tree);
    made.commit().await.unwrap()
}

pub(super) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn prune_all(f: &Fixture) {
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    f.cache.prune(all).try_collect::<Vec<_>>().await.unwrap();
}

/// Nothing is left of any state.
pub(super) async fn assert_empty(f: &Fixture) {
    // What is dropped is let go of behind, and then goes with the next prune.
    for _ in 0..600 {
        prune_all(f).await;
        let listed = f.cache.usage(&UsageOptions::default()).await.unwrap();
        if listed.is_empty() && f.snapshotter.walk().await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("left: {:?}", f.snapshotter.walk().await.unwrap());
}

/// The kernel mounts no directory twice in one overlay, so that a step on an image with two equal layers, or on a merge
/// of merges, failed with "Too many levels of symbolic links".
#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_a_layer_twice_and_a_merge_a_state() {
    let f = Fixture::new();
    let twice = image(&f, &["a", "b", "a"]).await;
    let made = written(&f, None, "c", MutableOptions::default()).await;
    let merged = f.cache.merge(&[twice.clone(), made], RefOptions::default()).await.unwrap();
    let merged = f.cache.merge(&[merged.clone(), twice, merged], RefOptions::default()).await.unwrap();
    assert_eq!(names(merged.mount(&ctx()).await.unwrap().path()), ["a", "b", "c"]);
    let above = written(&f, Some(&merged), "d", MutableOptions::default()).await;
    assert_eq!(names(above.mount(&ctx()).await.unwrap().path()), ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_has_its_files_and_gets_a_blob_when_somebody_asks() {
    let f = Fixture::new();
    let made =
        written(&f, None, "a", MutableOptions { description: "write a".into(), ..Default::default() }).await;
    let tree = made.mount(&ctx()).await.unwrap();
    assert_eq!(fs::read(tree.path().join("a")).unwrap(), b"a");
    assert!(fs::write(tree.path().join("b"), "b").is_err(), "it is read-only");
    drop(tree);
    let gzip = made.layers(&ctx(), &LayerOptions::default()).await.unwrap();
    assert_eq!(gzip[0].created_by.as_deref(), Some("write a"));
    assert!(f.content.is_resident(&gzip[0].blob));
    let commits = f.db.commits();
    assert_eq!(made.layers(&ctx(), &LayerOptions::default()).await.unwrap(), gzip);
    assert_eq!(f.db.commits(), commits, "it was there");
    let zstd = LayerOptions { compression: Compression::Zstd, ..LayerOptions::default() };
    let zstd = made.layers(&ctx(), &zstd).await.unwrap();
    assert_eq!(zstd[0].diff_id, gzip[0].diff_id);
    assert_ne!(zstd[0].blob.digest, gzip[0].blob.digest);
    let id = made.id();
    drop(made);
    f.content.collect(std::time::Duration::ZERO).await.unwrap();
    assert!(f.content.is_resident(&gzip[0].blob), "its record keeps it");
    let f = f.restart().await;
    let found = f.cache.get(&id, &DescHandlers::new()).unwrap();
    assert_eq!(found.layers(&ctx(), &LayerOptions::default()).await.unwrap(), gzip);
    assert_eq!(names(found.mount(&ctx()).await.unwrap().path()), ["a"]);
    drop(found);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_fetched_and_unpacked_once_whatever_asks() {
    let f = Fixture::new();
    let image = image(&f, &["a", "b", "c"]).await;
    let context = ctx();
    let trees = try_join_all((0..16).map(|_| image.mount(&context))).await.unwrap();
    assert_eq!(f.opens(), 3);
    assert_eq!(names(trees[0].path()), ["a", "b", "c"]);
    assert!(trees.iter().all(|tree| tree.path() == trees[0].path()), "one mount for all");
    drop(trees);
    image.extract(&ctx()).await.unwrap();
    assert_eq!(f.opens(), 3);
    drop(image);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_config_says_is_refused_and_leaves_nothing() {
    let f = Fixture::new();
    let mut layer = f.tar_layer(&[("a", "a")]);
    layer.diff_id = DiffId(Digest::sha256("other"));
    let handlers = f.handlers(std::slice::from_ref(&layer), &repository("app"));
    let image = f.cache.get_by_layers(vec![layer], None, &handlers, RefOptions::default()).await.unwrap();
    let refused = image.extract(&ctx()).await;
    assert!(matches!(refused, Err(CacheError::WrongDiffId { .. })), "{refused:?}");
    f.snapshots_settle(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_look_at_its_base_leaves_it_lazy() {
    let f = Fixture::new();
    let base = image(&f, &["a", "b"]).await;
    let made = written(
        &f,
        Some(&base),
        "c",
        MutableOptions { looks: Some(Vec::new()), ..MutableOptions::default() },
    )
    .await;
    let layers = made.layers(&ctx(), &LayerOptions::default()).await.unwrap();
    assert_eq!(layers.len(), 3);
    assert_eq!(f.opens(), 0, "no byte of the base was read");
    assert_eq!(names(made.mount(&ctx()).await.unwrap().path()), ["a", "b", "c"]);
    assert_eq!(f.opens(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn merges_and_differences_have_the_files_of_their_parts() {
    let f = Fixture::new();
    let base = image(&f, &["a", "b"]).await;
    let one = written(&f, Some(&base), "c", MutableOptions::default()).await;
    let two = written(&f, None, "d", MutableOptions::default()).await;
    let merged = f.cache.merge(&[one.clone(), two.clone()], RefOptions::default()).await.unwrap();
    assert_eq!(names(merged.mount(&ctx()).await.unwrap().path()), ["a", "b", "c", "d"]);

    let above = f.cache.diff(&ctx(), Some(&base), Some(&one), RefOptions::default()).await.unwrap().unwrap();
    assert_eq!(above.parts().len(), 1);
    assert_eq!(names(above.mount(&ctx()).await.unwrap().path()), ["c"]);
    let nothing = f.cache.diff(&ctx(), Some(&one), Some(&one), RefOptions::default()).await.unwrap();
    assert!(nothing.is_none());

    // No chain leads from the one to the other: they are compared.
    let compared =
        f.cache.diff(&ctx(), Some(&two), Some(&merged), RefOptions::default()).await.unwrap().unwrap();
    assert_eq!(names(compared.mount(&ctx()).await.unwrap().path()), ["a", "b", "c"]);
    let removed =
        f.cache.diff(&ctx(), Some(&merged), Some(&base), RefOptions::default()).await.unwrap().unwrap();
    let applied = f.cache.merge(&[merged.clone(), removed], RefOptions::default()).await.unwrap();
    assert_eq!(names(applied.mount(&ctx()).await.unwrap().path()), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_has_one_user_at_a_time_and_survives_a_restart() {
    let f = Fixture::new();
    let options =
        MutableOptions { keep: true, keys: vec!["cache-mount:x".into()], ..MutableOptions::default() };
    let kept = f.cache.create(&ctx(), None, options).await.unwrap();
    let id = kept.id();
    fs::write(kept.mount().await.unwrap().path().join("a"), "a").unwrap();
    assert_eq!(f.cache.find_by_key("cache-mount:x").unwrap(), [id]);
    let busy = f.cache.get_mutable(&ctx(), &id).await;
    assert!(matches!(busy, Err(CacheError::Locked { .. })), "{busy:?}");
    drop(kept);
    let f = f.restart().await;
    let kept = f.cache.get_mutable(&ctx(), &id).await.unwrap();
    assert_eq!(names(kept.mount().await.unwrap().path()), ["a"]);
    assert!(f.cache.get(&id, &DescHandlers::new()).is_err(), "it is no finished state");
    drop(kept);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_or_was_left_by_a_crash_is_removed() {
    let f = Fixture::new();
    let made = f.cache.create(&ctx(), None, MutableOptions::default()).await.unwrap();
    let tree = made.mount().await.unwrap();
    fs::write(tree.path().join("a"), "a").unwrap();
    drop(tree);
    drop(made);
    f.snapshots_settle(0).await;
    for name in ["active-00000000-1", "layer-00", "made-00"] {
        let key = name.parse().unwrap();
        f.snapshotter.prepare(&key, &Parents::default()).await.unwrap();
    }
    f.snapshotter.commit(&"made-01".parse().unwrap(), &"made-00".parse().unwrap()).await.unwrap();
    let f = f.restart().await;
    f.cache.recover().await.unwrap();
    f.snapshots_settle(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_state_is_not_committed_under_its_user() {
    let f = Fixture::new();
    let made = f.cache.create(&ctx(), None, MutableOptions::default()).await.unwrap();
    let tree = made.mount().await.unwrap();
    assert!(matches!(made.commit().await, Err(CacheError::Busy { .. })));
    drop(tree);
    f.snapshots_settle(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_in_files_is_not_committed_with_them() {
    let f = Fixture::new();
    let base = written(&f, None, "etc/conf", MutableOptions::default()).await;
    let files = f.cache.create(&ctx(), Some(&base), MutableOptions::default()).await.unwrap();
    let points = ["/etc/hosts", "/b"].map(|path| MountPoint { path: path.into(), kind: PointKind::File });
    let tree = files.mount_with(points.to_vec()).await.unwrap();
    assert_eq!(names(tree.path()), ["b", "etc"]);
    assert_eq!(names(&tree.path().join("etc")), ["conf", "hosts"]);
    fs::write(tree.path().join("ran"), "").unwrap();
    drop(tree);
    let made = files.commit().await.unwrap();
    let Some(Part { set: ChangeSet::Made(of), .. }) = made.parts().pop() else { panic!("it was made") };
    assert_eq!(names(&f.snapshotter.upper(&of.snapshot).unwrap()), ["ran"]);
    assert_eq!(names(made.mount(&ctx()).await.unwrap().path()), ["etc", "ran"]);
}
