//! Every fault and every pause does what it says, at the request that was chosen and at no other.

use std::time::Duration;
use std::time::Instant;

use reqwest::Client;
use reqwest::Response;
use reqwest::StatusCode;

use crate::harness::How;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::Options;
use crate::harness::TestRegistry;
use crate::harness::http_client;
use crate::harness::sha256;

const SIZE: u64 = 1 << 20;

fn with_image(options: Options) -> (TestRegistry, Image, Client) {
    let registry = TestRegistry::start(options);
    let image = Image::of([Layer::incompressible(21, SIZE), Layer::incompressible(22, SIZE)]);
    registry.put_image("app", "v1", &image);
    let client = http_client(registry.ca_pem());
    (registry, image, client)
}

async fn get_blob(registry: &TestRegistry, client: &Client, digest: &str) -> reqwest::Result<Response> {
    client.get(format!("{}/v2/app/blobs/{digest}", registry.url())).send().await
}

async fn read(reply: reqwest::Result<Response>) -> (Vec<u8>, Option<reqwest::Error>) {
    let mut bytes = Vec::new();
    let mut reply = match reply {
        Ok(reply) => reply,
        Err(error) => return (bytes, Some(error)),
    };
    loop {
        match reply.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, None),
            Err(error) => return (bytes, Some(error)),
        }
    }
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionReset
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[tokio::test]
async fn only_the_chosen_request_fails() {
    let (registry, image, client) = with_image(Options::default());
    let [first, second] = [image.layers[0].digest(), image.layers[1].digest()];
    let fault = registry.fail(Op::BlobGet.of(first).nth(2).times(2), How::Status(503));
    for (digest, expected) in
        [(first, 200), (second, 200), (first, 503), (first, 503), (second, 200), (first, 200)]
    {
        let reply = get_blob(&registry, &client, digest).await.expect("a reply");
        assert_eq!(reply.status().as_u16(), expected);
    }
    assert_eq!(fault.fired(), 2);
    assert_eq!(registry.count(Op::BlobGet), 6);
    assert_eq!(registry.gets_of(first), 2);
    assert_eq!(registry.gets_of(second), 2);
}

#[tokio::test]
async fn a_status_comes_with_what_belongs_to_it() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let _later = registry.fail(Op::BlobGet.once(), How::RetryAfter { status: 429, seconds: 7 });
    let reply = get_blob(&registry, &client, digest).await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(reply.headers()["retry-after"], "7");
    let gone = registry.fail(Op::ManifestGet, How::Status(404));
    let manifest = format!("{}/v2/app/manifests/v1", registry.url());
    assert_eq!(client.get(&manifest).send().await.expect("a reply").status(), StatusCode::NOT_FOUND);
    gone.lift();
    assert_eq!(client.get(&manifest).send().await.expect("a reply").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_reset_is_a_reset_with_and_without_bytes_before_it() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    registry.fail(Op::BlobGet.once(), How::Reset);
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert!(bytes.is_empty());
    assert!(is_reset(&error.expect("an error")));
    registry.fail(Op::BlobGet.once(), How::ResetAfter(5000));
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert!(bytes.len() <= 5000, "{} bytes", bytes.len());
    assert!(is_reset(&error.expect("an error")));
    let sent: Vec<u64> = registry.at(Op::BlobGet).iter().map(|request| request.bytes_out).collect();
    assert_eq!(sent, [0, 5000]);
}

#[tokio::test]
async fn a_truncated_body_brings_exactly_the_bytes_before_the_cut() {
    for tls in [false, true] {
        let (registry, image, client) = with_image(Options { tls, ..Options::default() });
        let digest = image.layers[0].digest();
        let whole = image.layers[0].source.as_ref().expect("a blob").to_bytes();
        for cut in [0, 1, 65_536, 100_000, SIZE] {
            registry.fail(Op::BlobGet.once(), How::Truncate(cut));
            let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
            if !tls {
                assert_eq!(bytes.len() as u64, cut);
            }
            assert!(bytes == whole[..bytes.len()]);
            assert!(error.is_some(), "a cut at {cut} went unnoticed");
        }
        let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
        assert!(error.is_none() && bytes == whole);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_the_only_difference_and_belongs_to_the_blob() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let whole = image.layers[0].source.as_ref().expect("a blob").to_bytes();
    registry.fail(Op::BlobGet, How::FlipByte(70_000));
    let (bytes, _) = read(get_blob(&registry, &client, digest).await).await;
    let different: Vec<usize> = (0..whole.len()).filter(|&at| bytes[at] != whole[at]).collect();
    assert_eq!(different, [70_000]);
    let part = |range: &'static str| {
        let request = client.get(format!("{}/v2/app/blobs/{digest}", registry.url())).header("range", range);
        async { read(request.send().await).await.0 }
    };
    assert!(part("bytes=0-69999").await == whole[..70_000]);
    assert!(part("bytes=70001-").await == whole[70_001..]);
    assert_ne!(part("bytes=70000-70000").await, whole[70_000..70_001]);
}

#[tokio::test]
async fn ranges_can_be_ignored_or_mislabelled() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let request =
        || client.get(format!("{}/v2/app/blobs/{digest}", registry.url())).header("range", "bytes=100-199");
    registry.fail(Op::BlobGet.once(), How::IgnoreRange);
    let reply = request().send().await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.bytes().await.expect("a body").len() as u64, image.layers[0].size());
    registry.fail(Op::BlobGet.once(), How::WrongContentRange);
    let reply = request().send().await.expect("a reply");
    let expected = format!("bytes 101-200/{}", image.layers[0].size());
    assert_eq!(reply.headers()["content-range"].to_str().expect("text"), expected);
    assert_eq!(reply.bytes().await.expect("a body").len(), 100);
}

#[tokio::test]
async fn a_wrong_length_is_told_and_kept() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let size = image.layers[0].size();
    registry.fail(Op::BlobGet.once(), How::WrongLength(-10));
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert_eq!(bytes.len() as u64, size - 10);
    assert!(error.is_none());
    registry.fail(Op::BlobGet.once(), How::WrongLength(10));
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert_eq!(bytes.len() as u64, size);
    assert!(error.is_some());
    registry.fail(Op::BlobHead.once(), How::WrongLength(3));
    let head =
        client.head(format!("{}/v2/app/blobs/{digest}", registry.url())).send().await.expect("a reply");
    assert_eq!(head.headers()["content-length"].to_str().expect("text"), (size + 3).to_string());
    registry.fail(Op::ManifestHead.once(), How::WrongDigest);
    let head = client.head(format!("{}/v2/app/manifests/v1", registry.url())).send().await.expect("a reply");
    assert_ne!(head.headers()["docker-content-digest"], image.digest());
}

#[tokio::test]
async fn redirects_lead_to_the_other_host_or_nowhere() {
    let (registry, image, client) = with_image(Options { redirect_blobs: true, ..Options::default() });
    let digest = image.layers[0].digest();
    let reply = get_blob(&registry, &client, digest).await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::TEMPORARY_REDIRECT);
    let location = reply.headers()["location"].to_str().expect("text").to_owned();
    assert!(location.starts_with("http://127.0.0.2:"), "{location}");
    let reply = client.get(&location).send().await.expect("a reply");
    assert_eq!(sha256(reply.bytes().await.expect("a body")), digest);
    assert_eq!(registry.gets_of(digest), 1);
    assert_eq!(registry.leaked_credentials(), 0);
    let reply = client.get(&location).bearer_auth("x").send().await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    assert_eq!(registry.leaked_credentials(), 1);
    let unsigned = location.split('?').next().expect("a path");
    assert_eq!(client.get(unsigned).send().await.expect("a reply").status(), StatusCode::FORBIDDEN);

    registry.fail(Op::BlobGet, How::RedirectLoop);
    let mut url = format!("{}/v2/app/blobs/{digest}", registry.url());
    for _ in 0..12 {
        let reply = client.get(&url).send().await.expect("a reply");
        assert_eq!(reply.status(), StatusCode::TEMPORARY_REDIRECT);
        url =
            reply.url().join(reply.headers()["location"].to_str().expect("text")).expect("a URL").to_string();
    }
}

#[tokio::test]
async fn a_stalled_reply_ends_when_the_client_leaves_or_the_fault_is_lifted() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest().to_owned();
    let fault = registry.fail(Op::BlobGet, How::StallAfter(1000));
    let mut reply = get_blob(&registry, &client, &digest).await.expect("a reply");
    let mut got = 0;
    while got < 1000 {
        got += reply.chunk().await.expect("bytes").expect("more bytes").len();
    }
    assert_eq!(got, 1000);
    let silence = tokio::time::timeout(Duration::from_millis(50), reply.chunk()).await;
    assert!(silence.is_err());
    drop(reply);
    registry.until_idle().await;
    let reply = get_blob(&registry, &client, &digest).await.expect("a reply");
    fault.lift();
    assert_eq!(sha256(reply.bytes().await.expect("a body")), digest);
}

#[tokio::test]
async fn an_upload_can_break_before_within_and_after_it_counts() {
    let (registry, _, client) = with_image(Options::default());
    let bytes = vec![9; 2_000_000];
    let digest = sha256(&bytes);
    let upload = || async {
        let begun = client.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await?;
        let location = begun.headers()["location"].to_str().expect("text").to_owned();
        let put = format!("{}{location}&digest={digest}", registry.url());
        client.put(put).body(bytes.clone()).send().await
    };
    registry.fail(Op::UploadPut.of(&digest).once(), How::ResetAfter(100_000));
    assert!(upload().await.is_err());
    assert!(!registry.has_blob("app", &digest));
    assert_eq!(registry.at(Op::UploadPut)[0].bytes_in, 100_000);
    registry.fail(Op::UploadPut.once(), How::Status(500));
    assert_eq!(upload().await.expect("a reply").status(), 500);
    assert_eq!(registry.at(Op::UploadPut)[1].bytes_in, 2_000_000);
    assert!(!registry.has_blob("app", &digest));
    registry.fail(Op::UploadPut.once(), How::LoseReply);
    assert!(upload().await.is_err());
    assert!(registry.has_blob("app", &digest));
    assert_eq!(registry.uploads(), 0);
    assert_eq!(upload().await.expect("a reply").status(), StatusCode::CREATED);
    assert_eq!(registry.uploads(), 1);
}

#[tokio::test]
async fn an_early_status_does_not_wait_for_the_body() {
    let (registry, _, client) = with_image(Options::default());
    let begun =
        client.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.expect("a reply");
    let location = begun.headers()["location"].to_str().expect("text").to_owned();
    registry.fail(Op::UploadPut, How::EarlyStatus(403));
    let put = format!("{}{location}&digest={}", registry.url(), sha256("x"));
    // The connection may be closed before the client has sent all of it.
    let reply = client.put(put).body(vec![7; 8 << 20]).send().await;
    assert!(reply.map_or(true, |reply| reply.status() == StatusCode::FORBIDDEN));
    let request = registry.at(Op::UploadPut).remove(0);
    assert_eq!((request.status, request.bytes_in), (Some(403), 0));
}

#[tokio::test]
async fn a_slow_body_takes_its_time_and_garbage_is_garbage() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    registry.fail(Op::BlobGet.once(), How::BytesPerSecond(4 << 20));
    let begun = Instant::now();
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert!(error.is_none());
    assert_eq!(sha256(bytes), digest);
    assert!(begun.elapsed() >= Duration::from_millis(240), "{:?}", begun.elapsed());
    registry.fail(Op::ManifestGet.once(), How::Garbage(b"<html>sign in</html>"));
    let reply = client.get(format!("{}/v2/app/manifests/v1", registry.url())).send().await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.text().await.expect("a body"), "<html>sign in</html>");
}

#[tokio::test]
async fn a_hold_stops_requests_at_the_byte_and_lets_them_go() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let hold = registry.hold_after(Op::BlobGet.of(digest), 10_000);
    let one = async { read(get_blob(&registry, &client, digest).await).await.0 };
    let two = async { read(get_blob(&registry, &client, digest).await).await.0 };
    let watch = async {
        hold.reached_by(2).await;
        assert_eq!(registry.bytes_of(digest), 20_000);
        assert_eq!(registry.peak_concurrent(Op::BlobGet), 2);
        hold.release();
    };
    let (one, two, ()) = tokio::join!(one, two, watch);
    assert_eq!(sha256(one), digest);
    assert_eq!(sha256(two), digest);

    let hold = registry.hold(Op::ManifestGet);
    let pull = async { client.get(format!("{}/v2/app/manifests/v1", registry.url())).send().await };
    let watch = async {
        hold.reached().await;
        let request = registry.at(Op::ManifestGet).remove(0);
        assert_eq!(request.status, None);
        drop(hold);
    };
    let (reply, ()) = tokio::join!(pull, watch);
    assert_eq!(reply.expect("a reply").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_registry_that_is_down_refuses_and_comes_back_with_all_it_had() {
    let (registry, image, client) = with_image(Options::default());
    let digest = image.layers[0].digest();
    let hold = registry.hold_after(Op::BlobGet, 10_000);
    let reply = get_blob(&registry, &client, digest).await;
    hold.reached().await;
    registry.go_down();
    let (_, error) = read(reply).await;
    assert!(error.is_some());
    assert!(get_blob(&registry, &client, digest).await.is_err());
    hold.release();
    registry.come_back();
    let (bytes, error) = read(get_blob(&registry, &client, digest).await).await;
    assert!(error.is_none());
    assert_eq!(sha256(bytes), digest);
}

#[tokio::test]
async fn connections_and_their_peak_are_counted() {
    let (registry, _, _) = with_image(Options::default());
    let ping = format!("{}/v2/", registry.url());
    let one = http_client(None);
    for _ in 0..3 {
        assert!(one.get(&ping).send().await.expect("a reply").bytes().await.is_ok());
    }
    let two = http_client(None);
    assert!(two.get(&ping).send().await.expect("a reply").bytes().await.is_ok());
    let connections = registry.connections();
    assert_eq!((connections.accepted, connections.peak), (2, 2));
    drop((one, two));
    registry.until(|registry| registry.connections().open == 0).await;
}

#[tokio::test]
async fn http2_is_spoken_over_tls_and_in_the_clear() {
    let (secure, image, client) = with_image(Options { tls: true, ..Options::default() });
    let reply = get_blob(&secure, &client, image.layers[0].digest()).await.expect("a reply");
    assert_eq!(reply.version(), reqwest::Version::HTTP_2);
    assert_eq!(sha256(reply.bytes().await.expect("a body")), image.layers[0].digest());
    secure.fail(Op::BlobGet.once(), How::Reset);
    assert!(read(get_blob(&secure, &client, image.layers[0].digest()).await).await.1.is_some());
    assert_eq!(secure.connections().accepted, 1);

    let (plain, _, _) = with_image(Options::default());
    let client =
        Client::builder().http2_prior_knowledge().no_proxy().tls_certs_only([]).build().expect("a client");
    let reply = client.get(format!("{}/v2/", plain.url())).send().await.expect("a reply");
    assert_eq!(reply.version(), reqwest::Version::HTTP_2);
}
