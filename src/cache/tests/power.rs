//! What a power cut takes of states, and what it leaves.
//!
//! A boot ends with another name for the next one, and with any part of the files that nobody had synced gone.

use std::fs;
use std::path::Path;

use super::files::assert_empty;
use super::files::ctx;
use super::files::image;
use super::files::names;
use super::files::written;
use super::fixture::Fixture;
use super::fixture::repository;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::LayerOptions;
use crate::cache::MutableOptions;
use crate::cache::RecordId;
use crate::cache::RefOptions;
use crate::cache::UsageOptions;
use crate::content::DescHandlers;
use crate::snapshot::Parents;

/// Empties every file below a directory, as a file system does with what was not written yet.
fn lose_files(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            lose_files(&entry.path());
        } else {
            fs::write(entry.path(), "").unwrap();
        }
    }
}

async fn found_files(f: &Fixture, id: &RecordId) -> Option<Vec<String>> {
    let found = f.cache.get(id, &DescHandlers::new()).ok()?;
    let tree = found.mount(&ctx()).await.unwrap();
    let files = names(tree.path()).into_iter();
    Some(files.map(|name| fs::read_to_string(tree.path().join(&name)).unwrap()).collect())
}

/// The record is not given out, before and after the rest of the start.
async fn assert_lost(f: &Fixture, id: &RecordId) {
    assert!(matches!(f.cache.get(id, &DescHandlers::new()), Err(CacheError::NotFound { .. })));
    f.cache.recover().await.unwrap();
    let listed = f.cache.usage(&UsageOptions::default()).await.unwrap();
    assert!(listed.iter().all(|usage| usage.id != *id), "{listed:?}");
}

fn kept() -> MutableOptions {
    MutableOptions { keep: true, keys: vec!["cache-mount:x".into()], ..MutableOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_cost_no_sync_and_a_checkpoint_costs_one_for_all() {
    let f = Fixture::new();
    let mut below: Option<ImmutableRef> = None;
    for n in 0..8 {
        below = Some(written(&f, below.as_ref(), &n.to_string(), MutableOptions::default()).await);
    }
    image(&f, &["a", "b"]).await.extract(&ctx()).await.unwrap();
    assert_eq!((f.cache.syncs(), f.cache.unsynced()), (0, 10));
    assert_eq!(f.cache.checkpoint().await.unwrap(), 10);
    assert_eq!((f.cache.syncs(), f.cache.unsynced()), (1, 0));
    assert_eq!(f.cache.checkpoint().await.unwrap(), 0);
    assert_eq!(f.cache.syncs(), 1, "there was nothing to sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_synced_is_there_after_a_restart_in_the_same_boot() {
    let f = Fixture::new();
    let id = written(&f, None, "a", MutableOptions::default()).await.id();
    let f = f.restart().await;
    f.cache.recover().await.unwrap();
    assert_eq!(found_files(&f, &id).await.unwrap(), ["a"]);
    assert_eq!(f.cache.unsynced(), 1, "the next checkpoint is for it as well");
    f.cache.checkpoint().await.unwrap();
    let f = f.restart_in("second", |_| {}).await;
    assert_eq!(found_files(&f, &id).await.unwrap(), ["a"]);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_synced_is_there_in_the_next_boot() {
    let f = Fixture::new();
    let base = image(&f, &["a", "b"]).await;
    let id = written(&f, Some(&base), "c", MutableOptions::default()).await.id();
    drop(base);
    f.cache.checkpoint().await.unwrap();
    let f = f.restart_in("second", |_| {}).await;
    f.cache.recover().await.unwrap();
    assert_eq!(found_files(&f, &id).await.unwrap(), ["a", "b", "c"]);
    assert_eq!(f.opens(), 2, "each layer once");
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_synced_is_lost_with_the_boot_and_with_it_what_stands_on_it() {
    let f = Fixture::new();
    let synced = written(&f, None, "a", MutableOptions::default()).await;
    f.cache.checkpoint().await.unwrap();
    let lost = written(&f, Some(&synced), "b", MutableOptions::default()).await;
    let above = f.cache.merge(&[synced.clone(), lost.clone()], RefOptions::default()).await.unwrap();
    let ids = [synced.id(), lost.id(), above.id()];
    drop((synced, lost, above));
    // That the rows are durable is what a power cut would prove wrong: closing makes them so.
    let f = f.restart_in("second", |_| {}).await;
    assert_lost(&f, &ids[1]).await;
    assert_lost(&f, &ids[2]).await;
    assert_eq!(found_files(&f, &ids[0]).await.unwrap(), ["a"]);
    f.snapshots_settle(1).await;
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_were_not_synced_are_unpacked_anew_from_their_blobs() {
    let f = Fixture::new();
    let base = image(&f, &["a", "b"]).await;
    base.extract(&ctx()).await.unwrap();
    let id = base.id();
    drop(base);
    let f = f.restart_in("second", |root| lose_files(&root.join("committed"))).await;
    // Both before and after the start has cleared up.
    assert_eq!(found_files(&f, &id).await.unwrap(), ["a", "b"]);
    f.cache.recover().await.unwrap();
    assert_eq!(found_files(&f, &id).await.unwrap(), ["a", "b"]);
    assert_eq!(f.opens(), 2, "their blobs are synced whenever they come");
    assert_empty(&f).await;
}

/// What was visible and not yet durable is lost when the file of the database fails. The files of such rows stayed until
/// the next start.
#[tokio::test(flavor = "multi_thread")]
async fn files_whose_rows_went_with_a_failure_of_the_database_go_soon() {
    let f = Fixture::new();
    f.cache.start_upkeep(std::time::Duration::from_secs(24 * 3600));
    let made = f.cache.create(&ctx(), None, MutableOptions::default()).await.unwrap();
    fs::write(made.mount().await.unwrap().path().join("a"), "a").unwrap();
    let mut failures = f.db.failures();
    f.db.fill_the_disk().unwrap();
    // Noted behind, or refused at once: where the store has room for a row is its affair.
    let committed = made.commit().await.map(|state| state.id());
    failures.changed().await.unwrap();
    f.snapshots_settle(0).await;
    if let Ok(id) = committed {
        assert!(matches!(f.cache.get(&id, &DescHandlers::new()), Err(CacheError::NotFound { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_row_does_not_stand_in_the_way_of_its_layer() {
    let f = Fixture::new();
    let layer = f.tar_layer(&[("a", "a")]);
    let (active, name) =
        ("new-00000000-1".parse().unwrap(), super::super::snapshots::layer_key(layer.diff_id));
    f.snapshotter.prepare(&active, &Parents::default()).await.unwrap();
    f.snapshotter.commit(&name, &active).await.unwrap();
    let handlers = f.handlers(std::slice::from_ref(&layer), &repository("app"));
    let image = f.cache.get_by_layers(vec![layer], None, &handlers, RefOptions::default()).await.unwrap();
    assert_eq!(names(image.mount(&ctx()).await.unwrap().path()), ["a"]);
    drop(image);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_believed_if_it_was_synced_after_the_last_who_could_write() {
    let f = Fixture::new();
    let made = f.cache.create(&ctx(), None, kept()).await.unwrap();
    let id = made.id();
    fs::write(made.mount().await.unwrap().path().join("a"), "a").unwrap();
    assert_eq!(f.cache.checkpoint().await.unwrap(), 0, "somebody may be writing");
    drop(made);
    assert_eq!(f.cache.checkpoint().await.unwrap(), 1);
    let f = f.restart_in("second", |_| {}).await;
    let fsyncs = f.db.fsyncs();
    let again = f.cache.get_mutable(&ctx(), &id).await.unwrap();
    assert!(f.db.fsyncs() > fsyncs, "that it may be written to is durable");
    assert_eq!(names(again.mount().await.unwrap().path()), ["a"]);
    drop(again);
    let f = f.restart_in("third", |_| {}).await;
    let lost = f.cache.get_mutable(&ctx(), &id).await;
    assert!(matches!(lost, Err(CacheError::NotFound { .. })), "{lost:?}");
    f.cache.recover().await.unwrap();
    assert_eq!(f.cache.find_by_key("cache-mount:x").unwrap(), []);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_again_while_it_is_synced_is_not_said_to_be_synced() {
    let f = Fixture::new();
    let id = f.cache.create(&ctx(), None, kept()).await.unwrap().id();
    // In every order of a checkpoint and of somebody who comes and goes.
    for _ in 0..50 {
        let context = ctx();
        let taken = async {
            let taken = f.cache.get_mutable(&context, &id).await.unwrap();
            let tree = taken.mount().await.unwrap();
            fs::write(tree.path().join("a"), "a").unwrap();
            (taken, tree)
        };
        let (checkpoint, taken) = tokio::join!(f.cache.checkpoint(), taken);
        checkpoint.unwrap();
        let row = f.cache.0.snapshots.stored(&super::super::snapshots::kept_key(&id)).unwrap().unwrap();
        assert!(row.unsynced.is_some(), "somebody may be writing");
        drop(taken);
        f.cache.checkpoint().await.unwrap();
        let row = f.cache.0.snapshots.stored(&super::super::snapshots::kept_key(&id)).unwrap().unwrap();
        assert!(row.unsynced.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_listed_with_its_size() {
    let f = Fixture::new();
    let made = f.cache.create(&ctx(), None, kept()).await.unwrap();
    let listed = async || f.cache.usage(&UsageOptions::default()).await.unwrap()[0].size;
    let empty = listed().await;
    let tree = made.mount().await.unwrap();
    fs::write(tree.path().join("a"), vec![7; 1 << 20]).unwrap();
    assert!(listed().await >= empty + (1 << 20), "also while it is used");
    fs::write(tree.path().join("b"), vec![7; 1 << 20]).unwrap();
    drop((tree, made));
    assert!(listed().await >= empty + (2 << 20));
    assert_eq!(listed().await, listed().await);
    assert_empty(&f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_were_made_of_a_lost_state_go_with_it() {
    let f = Fixture::new();
    let made = written(&f, None, "a", MutableOptions::default()).await;
    let blob = made.layers(&ctx(), &LayerOptions::default()).await.unwrap()[0].blob.clone();
    let id = made.id();
    drop(made);
    let f = f.restart_in("second", |_| {}).await;
    assert_lost(&f, &id).await;
    f.content.collect(std::time::Duration::ZERO).await.unwrap();
    assert!(!f.content.is_resident(&blob));
}
