use futures::future::join_all;
use futures::poll;

use super::super::*;
use super::harness::*;

const SIZE: u64 = 1 << 20;
const HALF: u64 = SIZE / 2;

#[tokio::test]
async fn thirty_two_askers_share_one_open_and_one_file() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let handlers = fake.handlers(&blob);
    let _other = f.store.write("m", "the first blob syncs the store's directories").await.unwrap();
    let fsyncs = f.store.stats().fsyncs;
    let leases = join_all((0..32).map(|_| f.store.fetch(&ctx, &blob, &handlers))).await;
    assert!(leases.iter().all(Result::is_ok));
    assert_eq!((fake.opens(), fake.served(), fake.probes()), (1, SIZE, 0));
    let stats = f.store.stats();
    assert_eq!((stats.fetches, stats.fetched_bytes, stats.waited_bytes), (1, SIZE, 31 * SIZE));
    assert_eq!(stats.fsyncs - fsyncs, 2, "one for the file, one for its directory");
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
    assert_eq!(f.bytes_on_disk(), SIZE + 44);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(f.blob_path(&blob.digest)).unwrap());
    assert_eq!(mode & 0o7777, 0o444);
}

#[tokio::test]
async fn a_resident_blob_is_not_asked_for() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let first = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    let read = f.store.read(&ctx, &blob, &fake.handlers(&blob), SIZE).await.unwrap();
    assert_eq!(read, all);
    assert_eq!((fake.opens(), f.store.stats().cached_bytes), (1, SIZE));
    drop(first);
}

/// A command waited until the blobs of its base were synced, though it needed their files only.
#[tokio::test]
async fn who_reads_along_has_all_once_the_digest_held_whatever_becomes_of_the_file() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    // Something is where the file belongs.
    std::fs::create_dir(f.blob_path(&blob.digest)).unwrap();
    let mut followers = Vec::new();
    let mut follow = |follower| followers.push(follower);
    let held = f.store.follow(&ctx, &blob, &fake.handlers(&blob), &mut follow).await.unwrap();
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut followers.pop().unwrap(), &mut read).unwrap();
    assert_eq!(read, all);
    let file = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await;
    assert!(matches!(file, Err(FetchError::Store { .. })), "{file:?}");
    assert!(!f.store.is_resident(&blob));
    drop(held);
}

/// Syncing the layers of a base took a tenth of the time that a command on it waited.
#[tokio::test]
async fn a_file_that_nobody_waits_for_is_synced_later() {
    let (f, ctx, all) = (Fixture::new(), Ctx::background(), bytes(1, SIZE));
    let _other = f.store.write("m", "the first blob syncs the store's directories").await.unwrap();
    let blob = layer(&all);
    let fake = Fake::new(origin("a"), &all);
    let fsyncs = f.store.stats().fsyncs;
    let began = std::time::Instant::now();
    let held = f.store.follow(&ctx, &blob, &fake.handlers(&blob), &mut drop).await.unwrap();
    assert!(f.store.is_resident(&blob), "its bytes are here");
    while f.store.stats().fsyncs - fsyncs < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(began.elapsed().as_millis() > 1900);
    assert!(f.blob_path(&blob.digest).exists());
    assert_eq!(fake.opens(), 1);
    drop(held);
}

/// As a kill leaves it before its file was synced.
#[tokio::test]
async fn a_blob_that_is_whole_under_its_first_name_is_hashed_and_not_fetched() {
    let (f, ctx, all) = (Fixture::new(), Ctx::background(), bytes(1, SIZE));
    let blob = layer(&all);
    let fake = Fake::new(origin("a"), &all);
    f.leave_partial(&blob.digest, &all, origin("a"));
    let held = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!((fake.served(), f.store.stats().fetched_bytes), (0, 0));
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
    drop(held);
}

#[tokio::test]
async fn a_collection_waits_for_the_file_of_a_fetch_that_nobody_waits_for() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    drop(f.store.follow(&ctx, &blob, &fake.handlers(&blob), &mut drop).await.unwrap());
    f.store.collect(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(f.bytes_on_disk(), 0);
}

#[tokio::test]
async fn the_first_asker_may_leave_and_no_byte_comes_twice() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let handlers = fake.handlers(&blob);
    let (alice, bob) = (client("alice"), client("bob"));
    let mut first = Box::pin(f.store.fetch(&alice, &blob, &handlers));
    let mut second = Box::pin(f.store.fetch(&bob, &blob, &handlers));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    fake.has_served(HALF).await;
    alice.cancel().cancel();
    assert!(matches!(first.await, Err(FetchError::Cancelled { .. })));
    fake.gate.add_permits(1);
    let _lease = second.await.unwrap();
    assert_eq!((fake.opens(), fake.served()), (1, SIZE));
}

#[tokio::test]
async fn when_all_leave_the_bytes_stay_and_the_next_one_gets_only_the_rest() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let handlers = fake.handlers(&blob);
    let mut askers: Vec<_> = (0..3).map(|_| Box::pin(f.store.fetch(&ctx, &blob, &handlers))).collect();
    for asker in &mut askers {
        assert!(poll!(asker).is_pending());
    }
    fake.has_served(HALF).await;
    drop(askers);
    fake.script.lock().unwrap().stall_at = None;
    // Comes while the other winds down, and waits for that.
    let _lease = f.store.fetch(&ctx, &blob, &handlers).await.unwrap();
    assert_eq!(*fake.offsets.lock().unwrap(), [0, HALF]);
    assert_eq!(fake.served(), SIZE);
    assert_eq!(f.store.stats().fetches, 2);
}

#[tokio::test]
async fn a_restart_resumes_what_was_left() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    f.ways.add(&fake);
    f.store.register(&blob, &[origin("a")]).await.unwrap();
    {
        let handlers = DescHandlers::new();
        let mut asker = Box::pin(f.store.fetch(&ctx, &blob, &handlers));
        assert!(poll!(&mut asker).is_pending());
        fake.has_served(HALF).await;
    }
    let f = f.restart().await;
    assert_eq!(f.partial_size(&blob.digest), HALF);
    fake.script.lock().unwrap().stall_at = None;
    let _lease = f.store.fetch(&ctx, &blob, &DescHandlers::new()).await.unwrap();
    assert_eq!(*fake.offsets.lock().unwrap(), [0, HALF]);
    let known = f.store.origins(&blob.digest).unwrap();
    assert_eq!(known, [KnownOrigin { origin: origin("a"), proven: true }]);
}

#[tokio::test]
async fn garbage_left_by_a_power_cut_is_found_and_nobody_is_blamed() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    f.leave_partial(&blob.digest, &[0; HALF as usize], origin("a"));
    let _lease = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!(*fake.offsets.lock().unwrap(), [HALF, 0]);
}

#[tokio::test]
async fn a_partial_blob_that_is_whole_needs_no_request() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    std::fs::write(f.partial_path(&blob.digest), &all).unwrap();
    let _lease = f.store.fetch(&ctx, &blob, &DescHandlers::new()).await.unwrap();
    assert_eq!(f.store.stats().opens, 0);
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
}

#[tokio::test]
async fn a_torn_file_is_not_taken_for_the_blob() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    std::fs::write(f.blob_path(&blob.digest), &all[..HALF as usize]).unwrap();
    let _lease = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
}

#[tokio::test]
async fn a_descriptor_with_a_wrong_size_is_refused_and_costs_others_nothing() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let wrong = Descriptor { size: 10, ..blob.clone() };
    f.store.register(&wrong, &[]).await.unwrap();
    let handlers = fake.handlers(&blob);
    let (early, right) =
        tokio::join!(f.store.fetch(&ctx, &wrong, &handlers), f.store.fetch(&ctx, &blob, &handlers));
    assert!(matches!(early, Err(FetchError::Corrupt { .. })), "{early:?}");
    let _lease = right.unwrap();
    let late = f.store.fetch(&ctx, &wrong, &handlers).await;
    assert!(matches!(late, Err(FetchError::WrongSize { expected: 10, actual: SIZE, .. })), "{late:?}");
    assert_eq!(f.store.stat(&blob.digest).unwrap().unwrap().size, SIZE, "the row was put right");
    let f = f.restart().await;
    let after = f.store.fetch(&ctx, &wrong, &handlers).await;
    assert!(matches!(after, Err(FetchError::WrongSize { .. })), "{after:?}");
    assert!(f.store.is_resident(&blob));
}

#[tokio::test]
async fn corrupt_bytes_are_never_visible_and_the_next_candidate_is_tried() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let bad = Fake::with(origin("bad"), &all, Script { flip_at: Some((HALF, 9)), ..Script::default() });
    let good = Fake::new(origin("good"), &all);
    let mut handlers = bad.handlers(&blob);
    handlers.extend(&good.handlers(&blob));
    let _lease = f.store.fetch(&ctx, &blob, &handlers).await.unwrap();
    assert_eq!((bad.opens(), good.opens()), (2, 1), "a second try may meet another mirror");
    assert_eq!(bad.condemned.load(std::sync::atomic::Ordering::SeqCst), 2);
    let proven = f.store.origins(&blob.digest).unwrap();
    assert_eq!(proven, [KnownOrigin { origin: origin("good"), proven: true }]);
}

#[tokio::test]
async fn bytes_that_are_corrupt_once_are_fetched_again() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { flip_at: Some((HALF, 1)), ..Script::default() });
    let _lease = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!(fake.opens(), 2);
}

#[tokio::test]
async fn a_blob_that_is_corrupt_everywhere_is_a_typed_error_and_leaves_nothing() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let bad = Fake::with(origin("bad"), &all, Script { flip_at: Some((0, 9)), ..Script::default() });
    let error = f.store.fetch(&ctx, &blob, &bad.handlers(&blob)).await.unwrap_err();
    assert!(matches!(&error, FetchError::Corrupt { origin: Some(o), .. } if *o == origin("bad")));
    assert!(error.cannot_be_had());
    let text = error.to_string();
    assert!(text.contains("r.example/bad") && text.contains(&blob.digest.to_string()), "{text}");
    assert_eq!(f.bytes_on_disk(), 0);
    assert!(!f.store.is_resident(&blob));
    assert!(f.store.leases().is_empty());
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_with_the_next_candidate_at_the_same_byte() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let breaks = Fake::with(origin("a"), &all, Script { break_at: Some((HALF, 9)), ..Script::default() });
    let ends = Fake::with(origin("b"), &all, Script { end_at: Some(HALF + 5), ..Script::default() });
    let good = Fake::new(origin("c"), &all);
    let mut handlers = breaks.handlers(&blob);
    handlers.extend(&ends.handlers(&blob));
    handlers.extend(&good.handlers(&blob));
    let _lease = f.store.fetch(&ctx, &blob, &handlers).await.unwrap();
    assert_eq!(*ends.offsets.lock().unwrap(), [HALF]);
    assert_eq!(*good.offsets.lock().unwrap(), [HALF + 5]);
    assert_eq!(breaks.served() + ends.served() + good.served(), SIZE);
}

#[tokio::test]
async fn a_provider_that_cannot_start_in_the_middle_is_read_from_its_start() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { ignores_offset: true, ..Script::default() });
    f.leave_partial(&blob.digest, &all[..HALF as usize + 7], origin("a"));
    let _lease = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!(std::fs::read(f.blob_path(&blob.digest)).unwrap(), all);
    assert_eq!(fake.opens(), 1);
}

#[tokio::test]
async fn a_provider_that_does_not_stop_is_stopped() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { surplus: 64 << 20, ..Script::default() });
    let error = f.store.fetch(&ctx, &blob, &fake.handlers(&blob)).await.unwrap_err();
    assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
    assert!(fake.served() < 2 * SIZE + (1 << 20), "read on after {} bytes", fake.served());
}

#[tokio::test]
async fn what_nobody_has_is_gone_and_says_which_of_the_askers_own_places_was_asked() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let gone = || Script { gone: true, ..Script::default() };
    let (a, b) = (Fake::with(origin("a"), &all, gone()), Fake::with(origin("b"), &all, gone()));
    f.ways.add(&b);
    f.store.register(&blob, &[origin("b")]).await.unwrap();
    let error = f.store.fetch(&ctx, &blob, &a.handlers(&blob)).await.unwrap_err();
    assert!(matches!(&error, FetchError::Gone { tried, .. } if tried.len() == 1), "{error:?}");
    assert!(error.to_string().contains("r.example/a") && !error.to_string().contains("r.example/b"));
    assert_eq!((a.opens(), b.opens()), (1, 1), "both were asked");
    // The state clears: it may come back.
    b.script.lock().unwrap().gone = false;
    let _lease = f.store.fetch(&ctx, &blob, &a.handlers(&blob)).await.unwrap();
    let nowhere = layer(&bytes(2, 10));
    let error = f.store.fetch(&ctx, &nowhere, &DescHandlers::new()).await.unwrap_err();
    assert!(matches!(&error, FetchError::Gone { tried, .. } if tried.is_empty()), "{error:?}");
}

#[tokio::test]
async fn a_full_disk_is_typed_reaches_every_asker_and_gives_its_space_back() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let handlers = fake.handlers(&blob);
    f.store.inner.disk.fill_after(HALF);
    let errors = join_all((0..3).map(|_| f.store.fetch(&ctx, &blob, &handlers))).await;
    for error in errors {
        assert!(matches!(error, Err(FetchError::NoSpace { .. })), "{error:?}");
    }
    assert_eq!(f.bytes_on_disk(), 0);
    f.store.inner.disk.fill_after(u64::MAX);
    let _lease = f.store.fetch(&ctx, &blob, &handlers).await.unwrap();
}

#[tokio::test]
async fn each_asker_has_its_own_progress_from_its_start_to_its_end() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let watched = |watcher: &Arc<Watcher>| {
        let mut handlers = DescHandlers::new();
        let handler = fake.handlers(&blob).get(&blob.digest)[0].clone();
        handlers.add(blob.digest, handler.with_progress(Arc::clone(watcher) as _));
        handlers
    };
    let (alice, bob) = (client("alice"), client("bob"));
    let (early, late) = (Arc::<Watcher>::default(), Arc::<Watcher>::default());
    let (his, hers) = (watched(&late), watched(&early));
    let mut first = Box::pin(f.store.fetch(&alice, &blob, &hers));
    let mut second = Box::pin(f.store.fetch(&bob, &blob, &his));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    fake.has_served(HALF).await;
    drop(first);
    assert_eq!(early.0.lock().unwrap().last(), Some(&Told::Complete), "who leaves is told that it is over");
    fake.gate.add_permits(1);
    let _lease = second.await.unwrap();
    let told = late.0.lock().unwrap().clone();
    assert_eq!(told.first(), Some(&Told::Start(SIZE)));
    assert_eq!(told[told.len() - 2..], [Told::Update(SIZE), Told::Complete]);
}

#[tokio::test]
async fn the_empty_blob_needs_nobody_and_is_only_its_own() {
    let f = Fixture::new();
    let (empty, ctx) = (layer(&Bytes::new()), Ctx::background());
    let _lease = f.store.fetch(&ctx, &empty, &DescHandlers::new()).await.unwrap();
    assert!(f.store.is_resident(&empty));
    let false_claim = Descriptor { size: 0, ..layer(&bytes(1, 5)) };
    let fake = Fake::new(origin("a"), &bytes(1, 5));
    let error = f.store.fetch(&ctx, &false_claim, &fake.handlers(&false_claim)).await.unwrap_err();
    assert!(matches!(error, FetchError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn a_sha512_blob_is_verified_and_kept_as_well() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = Descriptor { digest: Digest::sha512(&all), ..layer(&all) };
    let fake = Fake::new(origin("a"), &all);
    let _lease = f.store.fetch(&Ctx::background(), &blob, &fake.handlers(&blob)).await.unwrap();
    assert!(f.blob_path(&blob.digest).to_string_lossy().contains("blobs/sha512/"));
}

#[tokio::test]
async fn a_daemon_that_stops_ends_its_fetches_and_keeps_their_bytes() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let handlers = fake.handlers(&blob);
    let mut asker = Box::pin(f.store.fetch(&ctx, &blob, &handlers));
    assert!(poll!(&mut asker).is_pending());
    fake.has_served(HALF).await;
    f.store.inner.tasks.shutdown().await;
    assert!(matches!(asker.await, Err(FetchError::Cancelled { .. })));
    assert_eq!(f.partial_size(&blob.digest), HALF);
}
