use std::time::Duration;

use futures::poll;

use super::super::*;
use super::harness::*;
use crate::lease::Owner;
use crate::lease::hold_rows;
use crate::lease::release_rows;

const SIZE: u64 = 1 << 20;

async fn held_by_a_record(f: &Fixture, digest: Digest) {
    let hold = f.store.db().write(move |tx| Ok(hold_rows(tx, &Owner::Record("1".into()), [&digest])?));
    hold.await.unwrap();
}

#[tokio::test]
async fn what_nobody_holds_is_deleted_and_the_rest_stays() {
    let f = Fixture::new();
    let (leased, lease) = f.store.write("m", bytes(1, 10)).await.unwrap();
    let (recorded, dropped) = f.store.write("m", bytes(2, 20)).await.unwrap();
    held_by_a_record(&f, recorded.digest).await;
    let (unneeded, also_dropped) = f.store.write("m", bytes(3, 30)).await.unwrap();
    let remote = layer(&bytes(4, 40));
    f.store.register(&remote, &[origin("a")]).await.unwrap();
    drop((dropped, also_dropped));
    let collected = f.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(collected, Collected { blobs: 2, bytes: 30, partials: 0 });
    assert_eq!(f.store.stat(&unneeded.digest).unwrap(), None);
    assert_eq!(f.store.stat(&remote.digest).unwrap(), None);
    assert!(!f.blob_path(&unneeded.digest).exists());
    assert!(f.store.is_resident(&leased) && f.store.is_resident(&recorded));
    drop(lease);
    f.store.db().write(|tx| Ok(release_rows(tx, &Owner::Record("1".into()))?)).await.unwrap();
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap().blobs, 2);
    assert_eq!(f.bytes_on_disk(), 0);
    assert_eq!(f.store.stats().collected_bytes, 60);
}

#[tokio::test]
async fn a_lazy_blob_that_a_record_holds_survives_restart_and_collection_with_its_origins() {
    let f = Fixture::new();
    let blob = layer(&bytes(1, 10));
    f.store.register(&blob, &[origin("a")]).await.unwrap();
    held_by_a_record(&f, blob.digest).await;
    let f = f.restart().await;
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap(), Collected::default());
    assert_eq!(f.store.origins(&blob.digest).unwrap().len(), 1);
}

#[tokio::test]
async fn evicting_while_open_waits_for_the_reader() {
    let f = Fixture::new();
    let all = bytes(1, SIZE);
    let (blob, lease) = f.store.write("m", all.clone()).await.unwrap();
    let reader = f.store.reader(&Ctx::background(), &blob, &DescHandlers::new()).await.unwrap();
    drop(lease);
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap(), Collected::default());
    assert_eq!(reader.read_all().await.unwrap(), all);
    drop(reader);
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap().bytes, SIZE);
}

#[tokio::test]
async fn who_comes_during_an_eviction_waits_and_fetches_again() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let handlers = fake.handlers(&blob);
    drop(f.store.fetch(&ctx, &blob, &handlers).await.unwrap());
    let table = &f.store.inner.table;
    assert!(table.begin_eviction(&blob.digest, SIZE, f.store.leases()));
    let mut asker = Box::pin(f.store.fetch(&ctx, &blob, &handlers));
    let mut writer = Box::pin(f.store.write(blob.media_type.as_str(), all.clone()));
    assert!(poll!(&mut asker).is_pending() && poll!(&mut writer).is_pending());
    f.store.inner.disk.remove_blob(&blob.digest).unwrap();
    table.end_eviction(&blob.digest, false);
    let _lease = asker.await.unwrap();
    let _written = writer.await.unwrap();
    assert_eq!(fake.opens(), 2);
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
}

#[tokio::test]
async fn an_owner_whose_transaction_comes_before_the_collections_keeps_its_blob() {
    let f = Fixture::new();
    let (blob, lease) = f.store.write("m", bytes(1, 10)).await.unwrap();
    drop(lease);
    // Queued together, so that the collector has listed the blob before it sees the lease row.
    let digest = blob.digest;
    let table = &f.store.inner.table;
    assert!(table.begin_eviction(&digest, 10, f.store.leases()));
    table.end_eviction(&digest, true);
    let (held, collected) = tokio::join!(held_by_a_record(&f, digest), f.store.collect(Duration::ZERO));
    let ((), collected) = (held, collected.unwrap());
    let kept = f.store.is_resident(&blob);
    assert_eq!(kept, collected.blobs == 0, "either it was kept, or it was deleted before it was held");
}

#[tokio::test]
async fn young_blobs_stay() {
    let f = Fixture::new();
    drop(f.store.write("m", bytes(1, 10)).await.unwrap());
    assert_eq!(f.store.collect(Duration::from_secs(3600)).await.unwrap(), Collected::default());
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap().blobs, 1);
}

#[tokio::test]
async fn a_file_without_a_row_is_an_orphan_and_goes() {
    let f = Fixture::new();
    let all = bytes(1, 10);
    std::fs::write(f.blob_path(&Digest::sha256(&all)), &all).unwrap();
    assert_eq!(
        f.store.collect(Duration::ZERO).await.unwrap(),
        Collected { blobs: 1, bytes: 10, partials: 0 }
    );
}

#[tokio::test]
async fn partial_blobs_go_with_their_rows_and_not_under_a_fetch() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(SIZE / 2), ..Script::default() });
    f.store.register(&blob, &[]).await.unwrap();
    held_by_a_record(&f, blob.digest).await;
    let handlers = fake.handlers(&blob);
    let mut asker = Box::pin(f.store.fetch(&ctx, &blob, &handlers));
    assert!(poll!(&mut asker).is_pending());
    fake.has_served(SIZE / 2).await;
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap(), Collected::default());
    drop(asker);
    let f = f.restart().await;
    assert_eq!(f.store.collect(Duration::ZERO).await.unwrap(), Collected::default(), "the record wants it");
    f.store.db().write(|tx| Ok(release_rows(tx, &Owner::Record("1".into()))?)).await.unwrap();
    let collected = f.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(collected, Collected { blobs: 1, bytes: SIZE / 2, partials: 1 });
    assert_eq!(f.bytes_on_disk(), 0);
}

#[tokio::test]
async fn a_recorded_deletion_is_finished_at_the_next_start() {
    let f = Fixture::new();
    let (blob, lease) = f.store.write("m", bytes(1, 10)).await.unwrap();
    drop(lease);
    let digest = blob.digest;
    f.store.db().write(move |tx| rows::intend_deletion(tx, &digest)).await.unwrap();
    let f = f.restart().await;
    assert!(!f.blob_path(&digest).exists());
    let f = f.restart().await;
    assert_eq!(f.store.db().read(rows::deletions).unwrap(), []);
}

#[tokio::test]
async fn a_blob_that_is_known_again_outlives_its_unfinished_deletion() {
    let f = Fixture::new();
    let (blob, _lease) = f.store.write("m", bytes(1, 10)).await.unwrap();
    let digest = blob.digest;
    f.store.db().write(move |tx| rows::intend_deletion(tx, &digest)).await.unwrap();
    f.store.register(&blob, &[]).await.unwrap();
    let f = f.restart().await;
    assert!(f.store.is_resident(&blob));
}

#[tokio::test]
async fn fsck_deletes_what_is_not_what_its_name_says() {
    let f = Fixture::new();
    let (good, _lease) = f.store.write("m", bytes(1, 10)).await.unwrap();
    let (held, _lease) = f.store.write("m", bytes(2, 10)).await.unwrap();
    let (bad, lease) = f.store.write("m", bytes(3, 10)).await.unwrap();
    drop(lease);
    for blob in [&held, &bad] {
        let path = f.blob_path(&blob.digest);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [0; 10]).unwrap();
    }
    let fsck = f.store.fsck().await.unwrap();
    assert_eq!(fsck, Fsck { checked: 3, deleted: vec![bad.digest], held: vec![held.digest] });
    assert!(f.store.is_resident(&good) && !f.store.is_resident(&bad));
}
