//! A private blob that is here already is for those who may have it: whoever merely knows its digest
//! gets nothing, whatever registry tells for him.

use super::*;
use crate::harness::BlobSource;
use crate::harness::Callback;
use crate::harness::client::ContentStore;

/// `alice` has fetched a private image; `bob` knows its digests and has a registry of his own.
struct Theft {
    daemon: Daemon,
    private: TestRegistry,
    evil: TestRegistry,
    image: Image,
}

impl Theft {
    async fn prepare(seed: u64) -> Self {
        let (daemon, private, evil) = (Daemon::start(), bearer(), TestRegistry::open());
        let image = Image::incompressible(seed, 2, 200 << 10);
        private.allow("alice", "team/secret", Right::Pull);
        private.allow("bob", "bobs/own", Right::Push);
        private.put_image("team/secret", "v1", &image);
        let theft = Self { daemon, private, evil, image };
        let hers = archive(&theft.private.reference("team/secret", "v1"), of("alice", &[&theft.private]));
        assert!(has_archive(&build(&theft.daemon, hers).await.success()));
        theft.private.forget();
        // His manifest names her layers, which he does not have.
        theft.evil.put_image("loot", "v1", &theft.image);
        theft.private.put_image("bobs/own", "v1", &theft.image);
        for layer in theft.image.layer_digests() {
            assert!(theft.evil.remove_blob("loot", layer));
            assert!(theft.private.remove_blob("bobs/own", layer));
        }
        theft
    }

    /// His registry says that it has the layers.
    fn lie(&self) {
        for layer in &self.image.layers {
            let size = usize::try_from(layer.size()).expect("a small layer");
            let nothing: &'static [u8] = vec![0; size].leak();
            self.evil.fail(Op::BlobHead.of(layer.digest()), How::Garbage(nothing));
        }
    }

    /// Bob's build gives him nothing.
    #[track_caller]
    fn fails(&self, outcome: &Outcome) {
        let refusal = outcome.failure().message();
        assert!(self.image.layer_digests().iter().any(|layer| refusal.contains(layer)), "{refusal}");
        // The layers are asked for where she has them as well, which is not for him to know.
        let told = format!("{:?} {:?}", outcome.response, outcome.progress);
        assert!(!told.contains("team/secret") && !told.contains("alice"), "{told}");
        let received = outcome.session.received(0).unwrap_or_default();
        for layer in &self.image.layers {
            let bytes = layer.source.as_ref().expect("a layer with bytes").to_bytes();
            let start = &bytes[..1000];
            assert!(!received.bytes.windows(start.len()).any(|window| window == start), "bytes of hers");
            assert!(!self.evil.has_blob("loot", layer.digest()));
        }
        let hers = of_others(&self.private.requests(), "bob").len();
        assert_eq!(hers, 0, "requests with her token: {}", self.private.story());
    }

    async fn bob(&self, name: &str) -> Outcome {
        build(&self.daemon, archive(name, of("bob", &[&self.private]))).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_the_registry_refuses_gets_nothing_of_what_another_fetched() {
    let theft = Theft::prepare(0xc0_1001).await;
    let tag = theft.private.reference("team/secret", "v1");
    let digest = theft.private.reference("team/secret", theft.image.digest());
    for name in [&tag, &digest] {
        let his = theft.bob(name).await;
        let refusal = his.failure().message();
        assert!(refusal.contains(&theft.private.host()) && refusal.contains("team/secret"), "{refusal}");
        assert!(!has_archive(&his));
    }
    assert!(of_others(&theft.private.requests(), "bob").is_empty(), "{}", theft.private.story());
    // Nor do those who say nothing about themselves.
    let nobodys = build(&theft.daemon, archive(&digest, Attachables::default().files())).await;
    nobodys.failure();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_another_registry_that_names_a_private_blob_does_not_yield_it() {
    let theft = Theft::prepare(0xc0_1002).await;
    let his = theft.bob(&theft.evil.reference("loot", "v1")).await;
    theft.fails(&his);
    // Nor does one in a repository of the same registry.
    let his = theft.bob(&theft.private.reference("bobs/own", "v1")).await;
    theft.fails(&his);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_private_blob_was_unpacked_to_are_not_handed_on_either() {
    let theft = Theft::prepare(0xc0_1011).await;
    let files = |name: &str, attach| Build::of(&llb::image(name)).export("tar", &[]).attach(attach);
    let tag = theft.private.reference("team/secret", "v1");
    let hers = build(&theft.daemon, files(&tag, of("alice", &[&theft.private]))).await.success();
    assert!(hers.session.received(0).expect("her files").whole);
    theft.private.forget();
    let loot = theft.evil.reference("loot", "v1");
    let his = build(&theft.daemon, files(&loot, of("bob", &[&theft.private]))).await;
    theft.fails(&his);
    assert!(his.session.received(0).is_none_or(|received| received.bytes.is_empty()));
}

/// A registry answers what its owner likes. When a HEAD was proof enough, knowing a digest was enough to
/// get a blob that somebody else had fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_only_says_that_it_has_a_private_blob_does_not_get_it() {
    let theft = Theft::prepare(0xc0_1003).await;
    theft.lie();
    let his = theft.bob(&theft.evil.reference("loot", "v1")).await;
    theft.fails(&his);
}

/// The target of a push says that a blob is there, which made it an origin as good as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_a_registry_that_claims_to_have_the_blobs_proves_nothing() {
    let theft = Theft::prepare(0xc0_1004).await;
    theft.lie();
    let name = theft.evil.reference("loot", "v1");
    let push = Build::of(&llb::image(&name)).push(&theft.evil.reference("loot", "v2"));
    let pushed = build(&theft.daemon, push.attach(of("bob", &[&theft.private]))).await;
    // It is told what it wants to hear, or not; no byte moves.
    drop(pushed.response);
    let his = theft.bob(&name).await;
    theft.fails(&his);
}

/// A build of the image out of a layout that a client serves.
async fn from_layout(theft: &Theft, store: &ContentStore) -> Outcome {
    let state = llb::oci_layout("example.com/loot", theft.image.digest(), "loot", &[]);
    let attach = of("bob", &[&theft.private]).oci_store("loot", store);
    build(&theft.daemon, Build::of(&state).export("oci", &[]).attach(attach)).await
}

/// A client's store answers what the client likes. When its word was proof enough, knowing a digest was
/// enough to get a blob that somebody else had fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_layout_that_only_claims_to_have_a_private_blob_does_not_get_it() {
    let theft = Theft::prepare(0xc0_1008).await;
    let lying = ContentStore::of(&theft.image);
    for layer in &theft.image.layers {
        let size = usize::try_from(layer.size()).expect("a small layer");
        lying.put(layer.digest(), BlobSource::Bytes(vec![0; size].into()));
    }
    let his = from_layout(&theft, &lying).await;
    theft.fails(&his);
    for layer in theft.image.layer_digests() {
        lying.remove(layer);
    }
    theft.fails(&from_layout(&theft, &lying).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_layout_that_has_the_blobs_shows_each_of_them_once() {
    let theft = Theft::prepare(0xc0_1009).await;
    let outcome = from_layout(&theft, &ContentStore::of(&theft.image)).await.success();
    assert!(has_archive(&outcome));
    for layer in theft.image.layer_digests() {
        let calls = outcome.session.calls();
        let shown = calls.iter().filter(|call| call.callback == Callback::ContentRead && call.about == layer);
        assert_eq!(shown.count(), 1, "{layer}: {calls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_a_private_blob_elsewhere_takes_the_right_to_read_it() {
    let theft = Theft::prepare(0xc0_1005).await;
    let name = theft.evil.reference("loot", "v1");
    for to in [theft.evil.reference("stolen", "v1"), theft.private.reference("bobs/own", "v2")] {
        let push = Build::of(&llb::image(&name)).push(&to);
        let his = build(&theft.daemon, push.attach(of("bob", &[&theft.private]))).await;
        theft.fails(&his);
        assert!(theft.evil.tags("stolen").is_empty());
        assert_eq!(theft.private.tags("bobs/own"), ["v1"]);
        for layer in theft.image.layer_digests() {
            assert!(!theft.evil.has_blob("stolen", layer) && !theft.private.has_blob("bobs/own", layer));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_was_taken_back_counts_for_what_is_here() {
    let theft = Theft::prepare(0xc0_1006).await;
    theft.private.deny("alice", "team/secret");
    let name = theft.private.reference("team/secret", theft.image.digest());
    let hers = build(&theft.daemon, archive(&name, of("alice", &[&theft.private]))).await;
    let refusal = hers.failure().message();
    assert!(refusal.contains("team/secret"), "{refusal}");
    assert!(!has_archive(&hers));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_registry_that_does_have_the_blobs_serves_its_own_users() {
    let theft = Theft::prepare(0xc0_1007).await;
    theft.evil.put_image("loot", "v1", &theft.image);
    let name = theft.evil.reference("loot", "v1");
    assert!(has_archive(&theft.bob(&name).await.success()));
    theft.evil.forget();
    assert!(has_archive(&theft.bob(&name).await.success()));
    assert_eq!(theft.evil.blob_gets(), 0, "it was proven before: {}", theft.evil.story());
    // He may have been asked about there, as himself.
    let there = theft.private.requests();
    assert!(of_others(&there, "bob").is_empty(), "{}", theft.private.story());
    assert!(there.iter().all(|r| r.op == Op::Token || !r.succeeded()), "{}", theft.private.story());
}
