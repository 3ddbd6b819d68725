//! Who keeps a record, what removing one takes along, and what is counted.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::TryStreamExt;
use redb::TableDefinition;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::cache::CacheError;
use crate::cache::Filter;
use crate::cache::ImageList;
use crate::cache::ImmutableRef;
use crate::cache::MutableOptions;
use crate::cache::PruneOptions;
use crate::cache::RecordId;
use crate::cache::RecordListener;
use crate::cache::RecordType;
use crate::cache::RefOptions;
use crate::cache::UsageOptions;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::db::DbError;
use crate::db::WriteTx;
use crate::lease;
use crate::oci::Descriptor;
use crate::oci::Digest;

async fn image(f: &Fixture, names: &[&str], options: RefOptions) -> ImmutableRef {
    let layers = f.layers(names);
    let handlers = f.handlers(&layers, &repository("app"));
    f.cache.get_by_layers(layers, None, &handlers, options).await.unwrap()
}

async fn prune(f: &Fixture, options: PruneOptions) -> Vec<RecordId> {
    f.cache.prune(options).map_ok(|usage| usage.id).try_collect().await.unwrap()
}

fn is_leased(f: &Fixture, digest: &Digest) -> bool {
    f.db.read(|tx| Ok(lease::has_row(tx, digest)?)).unwrap()
}

const NOTES: TableDefinition<'_, &str, ()> = TableDefinition::new("test_notes");

/// Keeps a row per removed record, and fails where it is told to.
#[derive(Default)]
struct Listener {
    refuse: Mutex<Option<RecordId>>,
}

impl RecordListener for Listener {
    fn removed(&self, tx: &WriteTx, id: &RecordId) -> Result<(), DbError> {
        tx.table(NOTES)?.insert(id.to_string().as_str(), ())?;
        if *self.refuse.lock().unwrap() == Some(*id) {
            return Err(DbError::Row { key: id.to_string(), reason: "the test says so".to_owned() });
        }
        Ok(())
    }
}

#[tokio::test]
async fn removing_a_record_takes_its_leases_and_tells_the_listener_in_one_transaction() {
    let f = Fixture::new();
    let listener = Arc::new(Listener::default());
    f.cache.set_listener(listener.clone());
    let manifest = Descriptor::of("m", b"manifest");
    let companions = vec![manifest.digest];
    let made = image(&f, &["a", "b"], RefOptions { companions, ..RefOptions::default() }).await;
    let (id, top) = (made.id(), made.blobs().nth(1).unwrap().blob.digest);
    assert!(is_leased(&f, &top) && is_leased(&f, &manifest.digest));
    assert!(prune(&f, PruneOptions::default()).await.is_empty(), "it is in use");
    drop(made);
    *listener.refuse.lock().unwrap() = Some(id);
    let refused = f.cache.prune(PruneOptions::default()).try_collect::<Vec<_>>().await;
    assert!(refused.is_err());
    let noted = |id: &RecordId| {
        let key = id.to_string();
        f.db.read(|tx| match tx.table(NOTES)? {
            Some(table) => Ok(table.get(key.as_str())?.is_some()),
            None => Ok(false),
        })
        .unwrap()
    };
    assert!(!noted(&id) && is_leased(&f, &top), "all of it or nothing");
    assert!(f.cache.get(&id, &DescHandlers::new()).is_ok(), "a failed removal absolves");
    *listener.refuse.lock().unwrap() = None;
    let pruned = prune(&f, PruneOptions::default()).await;
    assert_eq!(pruned[0], id);
    assert_eq!(pruned.len(), 2);
    assert!(noted(&id) && !is_leased(&f, &top) && !is_leased(&f, &manifest.digest));
    assert!(matches!(f.cache.get(&id, &DescHandlers::new()), Err(CacheError::NotFound { .. })));
    assert!(f.content.stat(&top).unwrap().is_none(), "the blob was collected as well");
}

#[tokio::test]
async fn a_clone_is_a_hold_and_what_stands_on_a_record_keeps_it() {
    let f = Fixture::new();
    let base = image(&f, &["a"], RefOptions::default()).await;
    let clone = base.clone();
    let merged = {
        let other = image(&f, &["b"], RefOptions::default()).await;
        f.cache.merge(&[base.clone(), other], RefOptions::default()).await.unwrap()
    };
    drop(base);
    assert!(prune(&f, PruneOptions::default()).await.is_empty());
    drop(clone);
    assert!(prune(&f, PruneOptions::default()).await.is_empty(), "the merge stands on both");
    drop(merged);
    assert_eq!(prune(&f, PruneOptions::default()).await.len(), 3);
}

#[tokio::test]
async fn usage_says_who_uses_what_and_counts_the_bytes_of_a_blob_once() {
    let f = Fixture::new();
    let first =
        image(&f, &["a", "shared"], RefOptions { description: "one".into(), ..RefOptions::default() }).await;
    let second = image(&f, &["b", "shared"], RefOptions::default()).await;
    let usage = f.cache.usage(&UsageOptions::default()).await.unwrap();
    assert_eq!(usage.len(), 4);
    assert_eq!(usage.iter().map(|u| u.size).sum::<u64>(), 0, "what is remote takes no room");
    first.unlazy(&Ctx::background()).await.unwrap();
    second.unlazy(&Ctx::background()).await.unwrap();
    let distinct: u64 = f.layers(["a", "b", "shared"]).iter().map(|l| l.blob.size).sum();
    let id = second.id();
    drop(second);
    let usage = f.cache.usage(&UsageOptions::default()).await.unwrap();
    assert_eq!(usage.iter().map(|u| u.size).sum::<u64>(), distinct);
    assert_eq!(usage.iter().filter(|u| u.in_use).count(), 2, "the first image and its base");
    let dropped = usage.iter().find(|u| u.id == id).unwrap();
    assert_eq!(dropped.usage_count, 1);
    assert!(dropped.last_used_at.is_some() && !dropped.in_use);
    for (filter, count) in [
        ("inuse", 2),
        ("type==regular", 4),
        ("description==one", 2),
        ("parents", 2),
        ("shared", 0),
        ("immutable,private", 4),
        ("mutable", 0),
    ] {
        let options = UsageOptions { filter: Filter::parse(&[filter]).unwrap(), ..UsageOptions::default() };
        assert_eq!(f.cache.usage(&options).await.unwrap().len(), count, "{filter}");
    }
    let options = UsageOptions { age_limit: Duration::from_secs(3600), ..UsageOptions::default() };
    assert_eq!(f.cache.usage(&options).await.unwrap().len(), 3, "one was used lately");
}

#[tokio::test]
async fn uses_survive_a_restart() {
    let f = Fixture::new();
    let id = image(&f, &["a"], RefOptions::default()).await.id();
    for _ in 0..3 {
        drop(f.cache.get(&id, &DescHandlers::new()).unwrap());
    }
    let f = f.restart().await;
    drop(f.cache.get(&id, &DescHandlers::new()).unwrap());
    let usage = f.cache.usage(&UsageOptions::default()).await.unwrap();
    assert_eq!(usage[0].usage_count, 5);
}

#[tokio::test]
async fn frontends_stay_unless_all_is_asked_for() {
    let f = Fixture::new();
    let options = RefOptions { record_type: RecordType::Frontend, ..RefOptions::default() };
    drop(image(&f, &["frontend"], options).await);
    drop(image(&f, &["plain"], RefOptions::default()).await);
    assert_eq!(prune(&f, PruneOptions::default()).await.len(), 1);
    assert_eq!(prune(&f, PruneOptions { all: true, ..PruneOptions::default() }).await.len(), 1);
}

/// Every build that names its result filled the disk for 60 days, whatever was pruned.
#[tokio::test]
async fn a_name_keeps_nothing_from_being_pruned() {
    for collected in [false, true] {
        let f = Fixture::new();
        let named = image(&f, &["named"], RefOptions::default()).await;
        named.unlazy(&Ctx::background()).await.unwrap();
        let blob = named.blobs().next().unwrap().blob.clone();
        let (manifest, lease) = f.content.write("application/json", &b"{}"[..]).await.unwrap();
        let images = ImageList::new(f.db.clone());
        let set = images.set(
            "x",
            manifest.clone(),
            vec![manifest.digest],
            vec![blob.digest],
            jiff::Timestamp::UNIX_EPOCH,
        );
        set.await.unwrap();
        drop(lease);
        assert!(prune(&f, PruneOptions::default()).await.is_empty(), "it is in use");
        assert!(images.get("x").unwrap().is_some());
        drop(named);
        match collected {
            false => assert_eq!(prune(&f, PruneOptions::default()).await.len(), 1),
            true => drop(f.cache.collect_garbage(&[PruneOptions::default()]).await.unwrap()),
        }
        assert_eq!(images.get("x").unwrap(), None);
        for gone in [&blob, &manifest] {
            assert!(!is_leased(&f, &gone.digest));
            assert!(!f.content.is_resident(gone));
        }
    }
}

#[tokio::test]
async fn pruning_under_a_cap_frees_the_oldest_first_and_stops() {
    let f = Fixture::new();
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let one = image(&f, &[name], RefOptions::default()).await;
        one.unlazy(&Ctx::background()).await.unwrap();
        ids.push(one.id());
    }
    let size = f.layer("a").blob.size;
    let options = PruneOptions { max_used_space: 2 * size + 1, ..PruneOptions::default() };
    assert_eq!(prune(&f, options).await, ids[..1]);
    assert_eq!(f.cache.collect_garbage(&[PruneOptions::default()]).await.unwrap(), 2 * size);
    assert!(f.cache.usage(&UsageOptions::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_record_that_is_made_again_while_it_is_removed_is_whole() {
    let f = Fixture::new();
    for _ in 0..50 {
        drop(image(&f, &["a", "b"], RefOptions::default()).await);
        let (pruned, made) =
            tokio::join!(prune(&f, PruneOptions::default()), image(&f, &["a", "b"], RefOptions::default()));
        drop(pruned);
        let found = f.cache.get(&made.id(), &DescHandlers::new()).unwrap();
        assert_eq!(found.parts().len(), 2);
        assert!(made.blobs().all(|l| is_leased(&f, &l.blob.digest)));
    }
}

/// Commits, and tasks of its own that the prune of everything takes.
async fn cost_of_pruning(f: &Fixture, records: usize) -> (u64, u64) {
    // What was written behind comes first.
    f.db.write(|_| Ok(())).await.unwrap();
    let (commits, spawned) = (f.db.commits(), f.tasks().spawned());
    assert_eq!(prune(f, PruneOptions { all: true, ..PruneOptions::default() }).await.len(), records);
    (f.db.commits() - commits, f.tasks().spawned() - spawned)
}

/// Each snapshot was handed to a thread by itself, which took most of ten seconds for 2,000 records.
#[tokio::test]
async fn a_prune_commits_and_hands_over_once_for_hundreds_of_records() {
    let f = Fixture::new();
    let names = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>();
    drop(image(&f, &names.iter().map(String::as_str).collect::<Vec<_>>(), RefOptions::default()).await);
    let (commits, spawned) = cost_of_pruning(&f, 1000).await;
    // Four batches of records, and one of blobs with its two commits.
    assert!(commits <= 6, "{commits} commits");
    assert!(spawned <= 100, "{spawned} tasks");

    // With files.
    let ctx = Ctx::background();
    for n in 0..600 {
        let made = f.cache.create(&ctx, None, MutableOptions::default()).await.unwrap();
        std::fs::write(made.mount().await.unwrap().path().join("file"), n.to_string()).unwrap();
        drop(made.commit().await.unwrap());
    }
    let (commits, spawned) = cost_of_pruning(&f, 600).await;
    assert!(commits <= 3, "{commits} commits");
    assert!(spawned <= 100, "{spawned} tasks");
    assert!(f.snapshotter.walk().await.unwrap().is_empty(), "their files are gone when they are told");
}

#[tokio::test]
async fn a_build_goes_on_between_the_batches_of_a_prune() {
    let f = Fixture::new();
    let names = (0..600).map(|n| n.to_string()).collect::<Vec<_>>();
    drop(image(&f, &names.iter().map(String::as_str).collect::<Vec<_>>(), RefOptions::default()).await);
    let mut pruned = Box::pin(f.cache.prune(PruneOptions::default()).map_ok(|usage| usage.id));
    // Whoever reads slowly keeps nobody from writing.
    let mut gone = vec![pruned.try_next().await.unwrap().unwrap()];
    let made = image(&f, &["new"], RefOptions::default()).await;
    let left = f.cache.usage(&UsageOptions::default()).await.unwrap().len();
    assert_eq!(left, 600 - 256 + 1, "one batch is gone");
    gone.extend(pruned.try_collect::<Vec<_>>().await.unwrap());
    assert_eq!(gone.len(), 600);
    assert!(!gone.contains(&made.id()));
    assert_eq!(f.cache.usage(&UsageOptions::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_prune_that_is_dropped_ends_whole() {
    let f = Fixture::new();
    for n in 0..20 {
        drop(image(&f, &[&format!("a{n}"), &format!("b{n}")], RefOptions::default()).await);
    }
    let mut stream = Box::pin(f.cache.prune(PruneOptions::default()));
    assert!(stream.try_next().await.unwrap().is_some());
    drop(stream);
    for usage in f.cache.usage(&UsageOptions::default()).await.unwrap() {
        assert!(f.cache.get(&usage.id, &DescHandlers::new()).is_ok());
    }
    prune(&f, PruneOptions::default()).await;
    assert!(f.cache.usage(&UsageOptions::default()).await.unwrap().is_empty());
}
