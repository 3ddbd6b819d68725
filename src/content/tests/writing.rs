use std::time::Duration;

use super::super::*;
use super::harness::*;
use crate::lease::Owner;
use crate::lease::hold_rows;

#[tokio::test]
async fn several_blobs_cost_one_sync_each_and_one_for_all() {
    let f = Fixture::new();
    let blobs = |seeds: Range<u64>| {
        seeds.map(|s| NewBlob { media_type: "m".into(), bytes: bytes(s, 100) }).collect::<Vec<_>>()
    };
    let _first = f.store.write_all(blobs(9..10)).await.unwrap();
    assert_eq!(f.store.stats().fsyncs, 1 + 4, "the first blob syncs the store's directories");
    let before = f.store.stats().fsyncs;
    let written = f.store.write_all(blobs(0..5)).await.unwrap();
    assert_eq!(f.store.stats().fsyncs - before, 6);
    let again = f.store.write_all(blobs(0..5)).await.unwrap();
    assert_eq!(f.store.stats().fsyncs - before, 6, "what is here is not written again");
    assert_eq!(written.len(), again.len());
    for ((descriptor, _), seed) in written.iter().zip(0..) {
        let stat = f.store.stat(&descriptor.digest).unwrap().unwrap();
        assert_eq!((stat.size, stat.media_type.as_str(), stat.residency), (100, "m", Residency::Resident));
        let read = f.store.read(&Ctx::background(), descriptor, &DescHandlers::new(), 100).await.unwrap();
        assert_eq!(read, bytes(seed, 100));
    }
}

#[tokio::test]
async fn registering_an_image_is_one_commit_whatever_its_number_of_layers() {
    let f = Fixture::new();
    f.store.register(&layer(&bytes(1, 8)), &[]).await.unwrap();
    let mut costs = Vec::new();
    for layers in [1, 10, 125] {
        let blobs: Vec<_> = (0..layers).map(|n| layer(&bytes(1000 * layers + n, 8))).collect();
        let db = f.store.db();
        let (commits, fsyncs) = (db.commits(), db.fsyncs());
        db.write(move |tx| {
            hold_rows(tx, &Owner::Record(format!("image of {layers}")), blobs.iter().map(|b| &b.digest))?;
            blobs.iter().try_for_each(|blob| register(tx, blob, &[origin("a")]))
        })
        .await
        .unwrap();
        costs.push((db.commits() - commits, db.fsyncs() - fsyncs));
    }
    assert_eq!(costs, [(1, 1); 3]);
}

#[tokio::test]
async fn a_registered_blob_is_remote_and_knows_its_sources_across_restarts() {
    let f = Fixture::new();
    let mut blob = layer(&bytes(1, 10));
    blob.annotations.insert("containerd.io/distribution.source.r.example".into(), "base,other".into());
    f.store.register(&blob, &[origin("a")]).await.unwrap();
    f.store.record_origin(&blob.digest, origin("pushed"));
    f.store.record_origin(&blob.digest, origin("a"));
    let f = f.restart().await;
    let stat = f.store.stat(&blob.digest).unwrap().unwrap();
    assert_eq!((stat.size, stat.residency), (10, Residency::Remote));
    let known: Vec<_> = stat.origins.into_iter().map(|k| (k.origin.to_string(), k.proven)).collect();
    let expected = [("a", true), ("base", false), ("other", false), ("pushed", true)];
    assert_eq!(known, expected.map(|(name, proven)| (format!("r.example/{name}"), proven)));
    assert_eq!(f.store.stats().opens, 0);
}

#[tokio::test]
async fn a_blob_pushed_everywhere_keeps_its_newest_origins() {
    let f = Fixture::new();
    let blob = layer(&bytes(1, 10));
    f.store.register(&blob, &[origin("said")]).await.unwrap();
    for n in 0..100 {
        f.store.record_origin(&blob.digest, origin(&format!("pushed-{n}")));
    }
    let f = f.restart().await;
    let known = f.store.origins(&blob.digest).unwrap();
    assert_eq!(known.len(), 64);
    assert_eq!(known.last().unwrap().origin, origin("pushed-99"));
    assert!(known.iter().all(|k| k.proven));
}

#[tokio::test]
async fn the_store_is_an_oci_layout() {
    let f = Fixture::new();
    let (blob, _lease) = f.store.write("m", "{}").await.unwrap();
    let root = f.blob_path(&blob.digest).ancestors().nth(3).unwrap().to_path_buf();
    let layout: serde_json::Value =
        serde_json::from_slice(&std::fs::read(root.join("oci-layout")).unwrap()).unwrap();
    assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    let index: crate::oci::Index =
        serde_json::from_slice(&std::fs::read(root.join("index.json")).unwrap()).unwrap();
    assert!(index.manifests.is_empty());
}

/// Whoever read a blob that had just been made here waited for a fetch of the same bytes, and failed with it.
#[tokio::test]
async fn a_blob_that_is_made_while_it_is_fetched_is_there_whatever_comes_of_the_fetch() {
    const SIZE: u64 = 1 << 20;
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, alice, bob) = (layer(&all), client("alice"), client("bob"));
    let script = Script { stall_at: Some(SIZE / 2), break_at: Some((SIZE / 2, 9)), ..Script::default() };
    let fake = Fake::with(origin("a"), &all, script);
    let handlers = fake.handlers(&blob);
    let mut first = Box::pin(f.store.fetch(&alice, &blob, &handlers));
    assert!(futures::poll!(&mut first).is_pending());
    fake.has_served(SIZE / 2).await;
    let (written, _lease) = f.store.write(blob.media_type.clone(), all.clone()).await.unwrap();
    assert_eq!(written.digest, blob.digest);
    assert_eq!(f.store.read(&bob, &blob, &handlers, SIZE).await.unwrap(), all);
    fake.gate.add_permits(1);
    let _lease = first.await.unwrap();
    assert_eq!(fake.opens(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_made_while_an_older_one_is_evicted_is_not_taken_for_it() {
    let (f, all) = (Fixture::new(), bytes(1, 1000));
    let (blob, old) = f.store.write("m", all.clone()).await.unwrap();
    drop(old);
    let inner = Arc::clone(&f.store.inner);
    assert!(inner.table.begin_eviction(&blob.digest, blob.size, &inner.leases));
    let made = all.clone();
    let make = f.store.produce("m", move |to| to.write_all(&made));
    let mut make = Box::pin(make);
    while !inner.leases.is_held(&blob.digest) {
        assert!(futures::poll!(&mut make).is_pending());
        tokio::task::yield_now().await;
    }
    // All of it is made now, and it must come no further.
    let waits = tokio::time::timeout(Duration::from_millis(100), &mut make).await;
    assert!(waits.is_err(), "its file is beside the one that is being deleted");
    inner.disk.remove_blob(&blob.digest).unwrap();
    inner.table.end_eviction(&blob.digest, false);
    let (new, _lease, ()) = make.await.unwrap().unwrap();
    assert_eq!(new.digest, blob.digest);
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
}
