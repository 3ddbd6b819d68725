//! What `TestRegistry` does, docker-registry does too: each claim is checked against both.

use reqwest::Client;
use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;

use crate::harness::DockerRegistry;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Options;
use crate::harness::TestRegistry;
use crate::harness::http_client;
use crate::harness::sha256;

/// Speaks to one registry.
struct Peer {
    name: &'static str,
    url: String,
    client: Client,
}

impl Peer {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with('/') { format!("{}{path}", self.url) } else { path.to_owned() };
        self.client.request(method, url)
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Response {
        self.request(method, path).body(body).send().await.expect("a reply")
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("a reply")
    }

    async fn range(&self, path: &str, range: &str) -> Response {
        self.request(Method::GET, path).header("range", range).send().await.expect("a reply")
    }

    async fn head(&self, path: &str) -> Response {
        self.request(Method::HEAD, path).send().await.expect("a reply")
    }

    async fn delete(&self, path: &str) -> Response {
        self.request(Method::DELETE, path).send().await.expect("a reply")
    }

    /// The `Location` of a new upload.
    async fn begin(&self, repository: &str) -> String {
        let reply = self.send(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), "").await;
        assert_eq!(reply.status(), StatusCode::ACCEPTED, "{}", self.name);
        assert!(reply.headers().contains_key("docker-upload-uuid"), "{}", self.name);
        location(&reply)
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let put = with_digest(&self.begin(repository).await, &digest);
        let reply = self.send(Method::PUT, &put, bytes.to_vec()).await;
        assert_eq!(reply.status(), StatusCode::CREATED, "{}", self.name);
        assert_eq!(header(&reply, "docker-content-digest"), digest, "{}", self.name);
        assert!(location(&reply).ends_with(&digest), "{}", self.name);
        digest
    }

    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        body: &[u8],
    ) -> Response {
        let request = self.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        let request = request.header("content-type", media_type).body(body.to_vec());
        request.send().await.expect("a reply")
    }

    async fn push_image(&self, repository: &str, tag: &str, image: &Image) {
        for (_, source) in image.blobs() {
            self.push_blob(repository, &source.to_bytes()).await;
        }
        for (descriptor, manifest) in image.manifests() {
            let reference = if descriptor.digest == image.digest() { tag } else { &descriptor.digest };
            let reply = self.put_manifest(repository, reference, &descriptor.media_type, manifest).await;
            assert_eq!(reply.status(), StatusCode::CREATED, "{}", self.name);
            assert_eq!(header(&reply, "docker-content-digest"), descriptor.digest, "{}", self.name);
        }
    }
}

fn header(reply: &Response, name: &str) -> String {
    let value = reply.headers().get(name).unwrap_or_else(|| panic!("no {name} in {reply:?}"));
    value.to_str().expect("text").to_owned()
}

/// The `Location`, resolved as a client must.
fn location(reply: &Response) -> String {
    reply.url().join(&header(reply, "location")).expect("a URL").to_string()
}

fn with_digest(location: &str, digest: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}

async fn code(reply: Response) -> String {
    let body: Value = reply.json().await.expect("an error document");
    body["errors"][0]["code"].as_str().expect("a code").to_owned()
}

/// Runs `claim` against every kind of registry that is there.
async fn each_registry(claim: impl AsyncFn(&Peer)) {
    let ours = TestRegistry::open();
    claim(&Peer { name: "TestRegistry", url: ours.url().to_owned(), client: http_client(None) }).await;
    ours.until_idle().await;
    let secure = TestRegistry::start(Options { tls: true, absolute_locations: true, ..Options::default() });
    let client = http_client(secure.ca_pem());
    claim(&Peer { name: "TestRegistry over TLS", url: secure.url().to_owned(), client }).await;
    secure.until_idle().await;
    if let Some(referee) = DockerRegistry::start() {
        claim(&Peer { name: "docker-registry", url: referee.url(), client: http_client(None) }).await;
    }
}

#[tokio::test]
async fn a_ping_says_which_api_it_is() {
    each_registry(async |peer| {
        let reply = peer.get("/v2/").await;
        assert_eq!(reply.status(), StatusCode::OK, "{}", peer.name);
        assert_eq!(header(&reply, "docker-distribution-api-version"), "registry/2.0", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_blob_that_was_put_is_read_back() {
    each_registry(async |peer| {
        let bytes = b"some bytes".repeat(20_000);
        let digest = peer.push_blob("a/b", &bytes).await;
        let path = format!("/v2/a/b/blobs/{digest}");
        let head = peer.head(&path).await;
        assert_eq!(head.status(), StatusCode::OK, "{}", peer.name);
        assert_eq!(header(&head, "content-length"), bytes.len().to_string(), "{}", peer.name);
        assert_eq!(header(&head, "docker-content-digest"), digest, "{}", peer.name);
        let reply = peer.get(&path).await;
        assert_eq!(header(&reply, "content-length"), bytes.len().to_string(), "{}", peer.name);
        assert!(reply.bytes().await.expect("a body") == bytes, "{}", peer.name);
        let elsewhere = peer.get(&format!("/v2/other/blobs/{digest}")).await;
        assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND, "{}", peer.name);
        assert_eq!(code(elsewhere).await, "BLOB_UNKNOWN", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn ranges_of_a_blob_are_read() {
    each_registry(async |peer| {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let path = format!("/v2/ranges/blobs/{}", peer.push_blob("ranges", &bytes).await);
        for (range, first, last) in [
            ("bytes=0-9", 0, 9),
            ("bytes=70000-", 70_000, 99_999),
            ("bytes=65530-65545", 65_530, 65_545),
            ("bytes=99990-200000", 99_990, 99_999),
            ("bytes=-5", 99_995, 99_999),
        ] {
            let reply = peer.range(&path, range).await;
            assert_eq!(reply.status(), StatusCode::PARTIAL_CONTENT, "{} {range}", peer.name);
            assert_eq!(
                header(&reply, "content-range"),
                format!("bytes {first}-{last}/100000"),
                "{}",
                peer.name
            );
            assert_eq!(header(&reply, "content-length"), (last - first + 1).to_string(), "{}", peer.name);
            assert!(reply.bytes().await.expect("a body") == bytes[first..=last], "{} {range}", peer.name);
        }
        let beyond = peer.range(&path, "bytes=100000-").await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_blob_with_the_wrong_digest_is_refused_and_not_there() {
    each_registry(async |peer| {
        let wrong = sha256("other bytes");
        let put = with_digest(&peer.begin("wrong").await, &wrong);
        let reply = peer.send(Method::PUT, &put, "bytes").await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{}", peer.name);
        assert_eq!(code(reply).await, "DIGEST_INVALID", "{}", peer.name);
        let head = peer.head(&format!("/v2/wrong/blobs/{wrong}")).await;
        assert_eq!(head.status(), StatusCode::NOT_FOUND, "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn an_upload_in_pieces_can_be_asked_for_its_progress() {
    each_registry(async |peer| {
        let (first, second, third) = (vec![1; 1 << 20], vec![2; 1 << 20], vec![3; 1000]);
        let whole = [first.clone(), second.clone(), third.clone()].concat();
        let digest = sha256(&whole);
        let begun = peer.begin("pieces").await;
        let patch = |at: String, start: usize, piece: Vec<u8>| {
            let range = format!("{start}-{}", start + piece.len() - 1);
            let request = peer.request(Method::PATCH, &at).header("content-range", range);
            request.header("content-type", "application/octet-stream").body(piece).send()
        };
        let reply = patch(begun, 0, first).await.expect("a reply");
        assert_eq!(reply.status(), StatusCode::ACCEPTED, "{}", peer.name);
        assert_eq!(header(&reply, "range"), "0-1048575", "{}", peer.name);
        let reply = patch(location(&reply), 1 << 20, second).await.expect("a reply");
        assert_eq!(header(&reply, "range"), "0-2097151", "{}", peer.name);
        let at = location(&reply);
        let status = peer.get(&at).await;
        assert_eq!(status.status(), StatusCode::NO_CONTENT, "{}", peer.name);
        assert_eq!(header(&status, "range"), "0-2097151", "{}", peer.name);
        let reply = peer.send(Method::PUT, &with_digest(&at, &digest), third).await;
        assert_eq!(reply.status(), StatusCode::CREATED, "{}", peer.name);
        let back = peer.get(&format!("/v2/pieces/blobs/{digest}")).await;
        assert!(back.bytes().await.expect("a body") == whole, "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    each_registry(async |peer| {
        let at = peer.begin("cancelled").await;
        assert_eq!(peer.delete(&at).await.status(), StatusCode::NO_CONTENT, "{}", peer.name);
        let status = peer.get(&at).await;
        assert_eq!(status.status(), StatusCode::NOT_FOUND, "{}", peer.name);
        assert_eq!(code(status).await, "BLOB_UPLOAD_UNKNOWN", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_blob_in_one_post_is_taken_or_becomes_an_upload() {
    each_registry(async |peer| {
        let digest = sha256("posted");
        let post = format!("/v2/posted/blobs/uploads/?digest={digest}");
        let reply = peer.send(Method::POST, &post, "posted").await;
        if reply.status() == StatusCode::ACCEPTED {
            let reply = peer.send(Method::PUT, &with_digest(&location(&reply), &digest), "posted").await;
            assert_eq!(reply.status(), StatusCode::CREATED, "{}", peer.name);
        } else {
            assert_eq!(reply.status(), StatusCode::CREATED, "{}", peer.name);
        }
        let head = peer.head(&format!("/v2/posted/blobs/{digest}")).await;
        assert_eq!(head.status(), StatusCode::OK, "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_mount_needs_no_bytes_and_an_unknown_blob_becomes_an_upload() {
    each_registry(async |peer| {
        let digest = peer.push_blob("from/here", b"mounted").await;
        let mount = |digest: &str| format!("/v2/to/there/blobs/uploads/?mount={digest}&from=from/here");
        let reply = peer.send(Method::POST, &mount(&digest), "").await;
        assert_eq!(reply.status(), StatusCode::CREATED, "{}", peer.name);
        assert_eq!(header(&reply, "docker-content-digest"), digest, "{}", peer.name);
        let back = peer.get(&format!("/v2/to/there/blobs/{digest}")).await;
        assert_eq!(back.text().await.expect("a body"), "mounted", "{}", peer.name);

        let unknown = sha256("never put");
        let reply = peer.send(Method::POST, &mount(&unknown), "").await;
        assert_eq!(reply.status(), StatusCode::ACCEPTED, "{}", peer.name);
        let reply = peer.send(Method::PUT, &with_digest(&location(&reply), &unknown), "never put").await;
        assert_eq!(reply.status(), StatusCode::CREATED, "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn an_image_is_read_back_by_tag_and_by_digest() {
    each_registry(async |peer| {
        let oci = Image::of([Layer::files([("a", "1")]), Layer::files([("b", "2")])]);
        let docker = Image::builder().docker().layer(Layer::files([("a", "1")])).build();
        for image in [&oci, &docker] {
            peer.push_image("app", "v1", image).await;
            for reference in ["v1", image.digest()] {
                let request = peer.request(Method::GET, &format!("/v2/app/manifests/{reference}"));
                let reply =
                    request.header("accept", &image.descriptor.media_type).send().await.expect("a reply");
                assert_eq!(reply.status(), StatusCode::OK, "{}", peer.name);
                assert_eq!(header(&reply, "content-type"), image.descriptor.media_type, "{}", peer.name);
                assert_eq!(header(&reply, "docker-content-digest"), image.digest(), "{}", peer.name);
                assert!(reply.bytes().await.expect("a body") == image.manifest, "{}", peer.name);
            }
            let request = peer.request(Method::HEAD, "/v2/app/manifests/v1");
            let reply = request.header("accept", &image.descriptor.media_type).send().await.expect("a reply");
            assert_eq!(header(&reply, "content-length"), image.manifest.len().to_string(), "{}", peer.name);
        }
    })
    .await;
}

#[tokio::test]
async fn a_foreign_layer_need_not_be_there() {
    each_registry(async |peer| {
        let foreign = Layer::files([("w", "x")]).foreign(["https://example.invalid/layer"]);
        let image = Image::of([foreign, Layer::files([("a", "1")])]);
        peer.push_image("foreign", "v1", &image).await;
    })
    .await;
}

#[tokio::test]
async fn an_index_is_taken_once_its_manifests_are_there() {
    each_registry(async |peer| {
        let child =
            |platform| Image::builder().platform(platform).layer(Layer::files([("a", platform)])).build();
        let index = Image::index([child("linux/amd64"), child("linux/arm64/v8")]);
        let media_type = &index.descriptor.media_type;
        let early = peer.put_manifest("multi", "v1", media_type, &index.manifest).await;
        assert_eq!(early.status(), StatusCode::BAD_REQUEST, "{}", peer.name);
        peer.push_image("multi", "v1", &index).await;
    })
    .await;
}

#[tokio::test]
async fn a_manifest_whose_blobs_are_missing_is_refused() {
    each_registry(async |peer| {
        let image = Image::of([Layer::files([("a", "1")])]);
        peer.push_blob("missing", &image.config).await;
        let reply = peer.put_manifest("missing", "v1", &image.descriptor.media_type, &image.manifest).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{}", peer.name);
        assert_eq!(code(reply).await, "MANIFEST_BLOB_UNKNOWN", "{}", peer.name);
        let reply = peer.get("/v2/missing/manifests/v1").await;
        assert_eq!(reply.status(), StatusCode::NOT_FOUND, "{}", peer.name);
        assert_eq!(code(reply).await, "MANIFEST_UNKNOWN", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn a_manifest_under_another_digest_is_refused() {
    each_registry(async |peer| {
        let image = Image::of([]);
        peer.push_blob("digest", &image.config).await;
        let media_type = &image.descriptor.media_type;
        let reply = peer.put_manifest("digest", &sha256("other"), media_type, &image.manifest).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{}", peer.name);
        assert_eq!(code(reply).await, "DIGEST_INVALID", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn all_tags_are_listed() {
    each_registry(async |peer| {
        let image = Image::of([]);
        for tag in ["b", "a", "c"] {
            peer.push_image("tags", tag, &image).await;
        }
        let mut list: Value = peer.get("/v2/tags/tags/list").await.json().await.expect("a list");
        // docker-registry 2.8 has an order of its own.
        list["tags"].as_array_mut().expect("tags").sort_by_key(Value::to_string);
        assert_eq!(list, json!({"name": "tags", "tags": ["a", "b", "c"]}), "{}", peer.name);
        let unknown = peer.get("/v2/nothing/tags/list").await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND, "{}", peer.name);
        assert_eq!(code(unknown).await, "NAME_UNKNOWN", "{}", peer.name);
    })
    .await;
}

#[tokio::test]
async fn what_is_deleted_is_gone() {
    each_registry(async |peer| {
        let image = Image::of([Layer::files([("a", "1")])]);
        peer.push_image("deleted", "v1", &image).await;
        let manifest = format!("/v2/deleted/manifests/{}", image.digest());
        assert_eq!(peer.delete(&manifest).await.status(), StatusCode::ACCEPTED, "{}", peer.name);
        for gone in [manifest.as_str(), "/v2/deleted/manifests/v1"] {
            assert_eq!(peer.get(gone).await.status(), StatusCode::NOT_FOUND, "{} {gone}", peer.name);
        }
        let blob = format!("/v2/deleted/blobs/{}", image.layers[0].digest());
        assert_eq!(peer.delete(&blob).await.status(), StatusCode::ACCEPTED, "{}", peer.name);
        assert_eq!(peer.head(&blob).await.status(), StatusCode::NOT_FOUND, "{}", peer.name);
    })
    .await;
}

/// docker-registry 2.8 has no referrers API and no pages of tags, so the specification is the referee.
#[tokio::test]
async fn referrers_and_pages_of_tags_are_as_the_specification_says() {
    let registry = TestRegistry::open();
    let client = http_client(None);
    let peer = Peer { name: "TestRegistry", url: registry.url().to_owned(), client };
    let image = Image::of([Layer::files([("a", "1")])]);
    let referrer = Image::builder().subject(&image.descriptor).artifact_type("application/x.note").build();
    peer.push_image("app", "v1", &image).await;
    peer.push_image("app", "v2", &image).await;
    for (_, source) in referrer.blobs() {
        peer.push_blob("app", &source.to_bytes()).await;
    }
    let descriptor = &referrer.descriptor;
    let reply =
        peer.put_manifest("app", &descriptor.digest, &descriptor.media_type, &referrer.manifest).await;
    assert_eq!(header(&reply, "oci-subject"), image.digest());

    let path = format!("/v2/app/referrers/{}", image.digest());
    let index: Value = peer.get(&path).await.json().await.expect("an index");
    assert_eq!(index["manifests"][0]["digest"], referrer.digest());
    assert_eq!(index["manifests"][0]["artifactType"], "application/x.note");
    let filtered = peer.get(&format!("{path}?artifactType=application/x.other")).await;
    assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
    let filtered: Value = filtered.json().await.expect("an index");
    assert_eq!(filtered["manifests"], json!([]));

    let page = peer.get("/v2/app/tags/list?n=1").await;
    let link = header(&page, "link");
    let next = link.strip_prefix('<').and_then(|link| link.split_once('>')).expect("a link").0;
    let rest = peer.get(next).await;
    assert!(!rest.headers().contains_key("link"));
    let rest: Value = rest.json().await.expect("a list");
    assert_eq!(rest["tags"], json!(["v2"]));
}
