use futures::StreamExt as _;
use futures::poll;

use super::super::*;
use super::harness::*;

const SIZE: u64 = 1 << 20;
const HALF: u64 = SIZE / 2;

/// Reads a stream to its end: the bytes that came, and how it ended.
async fn drain(mut stream: BlobStream) -> (Vec<u8>, Result<(), FetchError>) {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => all.extend_from_slice(&chunk),
            Err(error) => return (all, Err(error)),
        }
    }
    (all, Ok(()))
}

#[tokio::test]
async fn a_remote_blob_passes_through_without_touching_the_disk() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let fsyncs = f.store.stats().fsyncs;
    let stream = f.store.stream(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    assert_eq!((stream.size(), stream.source()), (SIZE, StreamSource::PassThrough));
    let (passed, end) = drain(stream).await;
    end.unwrap();
    assert_eq!(passed, all);
    assert_eq!((fake.opens(), f.bytes_on_disk(), f.store.stats().fsyncs), (1, 0, fsyncs));
    assert!(!f.store.is_resident(&blob));
    assert_eq!(f.store.origins(&blob.digest).unwrap(), [KnownOrigin { origin: origin("a"), proven: true }]);
    assert!(f.store.leases().is_empty());
}

#[tokio::test]
async fn a_corrupt_blob_never_passes_whole() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    for flip in [0, HALF, SIZE - 1] {
        let fake = Fake::with(origin("a"), &all, Script { flip_at: Some((flip, 1)), ..Script::default() });
        let stream = f.store.stream(&ctx, &blob, &fake.handlers(&blob)).await.unwrap();
        let (passed, end) = drain(stream).await;
        assert!(matches!(end, Err(FetchError::Corrupt { origin: Some(_), .. })), "{end:?}");
        assert!((passed.len() as u64) < SIZE, "a reader that counts bytes would be content");
    }
}

#[tokio::test]
async fn a_pass_through_that_breaks_goes_on_at_the_same_byte() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let breaks = Fake::with(origin("a"), &all, Script { break_at: Some((HALF, 9)), ..Script::default() });
    let ignores = Fake::with(
        origin("b"),
        &all,
        Script { ignores_offset: true, end_at: Some(HALF + 9), ..Script::default() },
    );
    let good = Fake::new(origin("c"), &all);
    let mut handlers = breaks.handlers(&blob);
    handlers.extend(&ignores.handlers(&blob));
    handlers.extend(&good.handlers(&blob));
    let (passed, end) = drain(f.store.stream(&ctx, &blob, &handlers).await.unwrap()).await;
    end.unwrap();
    assert_eq!(passed, all);
    assert_eq!(*good.offsets.lock().unwrap(), [HALF + 9]);
}

#[tokio::test]
async fn a_refusal_is_an_error_before_the_stream() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let fake = Fake::with(origin("a"), &all, Script { strangers: vec!["bob"], ..Script::default() });
    let error = f.store.stream(&client("bob"), &blob, &fake.handlers(&blob)).await.unwrap_err();
    assert!(matches!(error, FetchError::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_here_or_on_its_way_is_read_from_its_file() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let handlers = fake.handlers(&blob);
    let mut fetch = Box::pin(f.store.fetch(&ctx, &blob, &handlers));
    assert!(poll!(&mut fetch).is_pending());
    fake.has_served(HALF).await;
    let mut stream = Box::pin(f.store.stream(&ctx, &blob, &handlers));
    assert!(poll!(&mut stream).is_pending());
    drop(fetch);
    fake.gate.add_permits(1);
    let stream = stream.await.unwrap();
    assert_eq!(stream.source(), StreamSource::File);
    let (read, end) = drain(stream).await;
    end.unwrap();
    assert_eq!(read, all);
    assert_eq!((fake.opens(), fake.served()), (1, SIZE));
}

#[tokio::test]
async fn readers_beyond_the_first_share_one_more_download() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let fake = Fake::new(origin("a"), &all);
    let handlers = fake.handlers(&blob);
    let first = f.store.stream(&ctx, &blob, &handlers).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(f.store.stream(&ctx, &blob, &handlers).await.unwrap());
    }
    assert_eq!(first.source(), StreamSource::PassThrough);
    assert!(others.iter().all(|s| s.source() == StreamSource::File));
    for stream in others.into_iter().chain([first]) {
        let (read, end) = drain(stream).await;
        end.unwrap();
        assert_eq!(read, all);
    }
    assert_eq!(fake.opens(), 2);
}

#[tokio::test]
async fn a_stream_ends_with_its_request() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, alice) = (layer(&all), client("alice"));
    let fake = Fake::with(origin("a"), &all, Script { stall_at: Some(HALF), ..Script::default() });
    let stream = f.store.stream(&alice, &blob, &fake.handlers(&blob)).await.unwrap();
    let drained = drain(stream);
    let cancel = async {
        fake.has_served(HALF).await;
        alice.cancel().cancel();
    };
    let ((_, end), ()) = tokio::join!(drained, cancel);
    assert!(matches!(end, Err(FetchError::Cancelled { .. })), "{end:?}");
}

#[tokio::test]
async fn ranges_of_a_file_are_cut_to_its_size() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, _lease) = f.store.write("m", all.clone()).await.unwrap();
    let reader = f.store.reader(&Ctx::background(), &blob, &DescHandlers::new()).await.unwrap();
    for range in [0..SIZE, 5..HALF, HALF..u64::MAX, SIZE..u64::MAX, 0..0] {
        let read: Vec<u8> = reader.stream(range.clone()).map(|c| c.unwrap().to_vec()).concat().await;
        let (start, end) = (range.start as usize, range.end.min(SIZE) as usize);
        assert_eq!(read, all[start..end], "{range:?}");
    }
}
