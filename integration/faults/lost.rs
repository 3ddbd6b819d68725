//! Blobs that are deleted after a build knew them: the next record, then the op, and only then an error.

use super::impatient;
use super::matrix::SOURCE;
use super::matrix::TAG;
use super::matrix::TARGET;
use crate::harness::Archive;
use crate::harness::Attachables;
use crate::harness::Build;
use crate::harness::Callback;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::client::Outcome;
use crate::harness::layer::tar_of;
use crate::harness::llb;
use crate::harness::llb::State;

/// A daemon, a registry with images, and one that is pushed to.
struct Scene {
    client: Client,
    from: TestRegistry,
    to: TestRegistry,
    _daemon: Daemon,
}

impl Scene {
    async fn new() -> Scene {
        let daemon = Daemon::start_with(impatient(""));
        let client = Client::connect(&daemon).await;
        Scene { client, from: TestRegistry::open(), to: TestRegistry::open(), _daemon: daemon }
    }

    fn image(&self) -> State {
        llb::image(self.from.reference(SOURCE, TAG))
    }

    /// Makes the tag stand for `image`, and has the daemon know it without its layers.
    async fn know(&self, image: &Image, state: &State) {
        self.from.put_image(SOURCE, TAG, image);
        self.run(Build::of(state)).await.success();
        for layer in image.layer_digests() {
            assert_eq!(self.asked(layer), 0, "{}", self.from.story());
        }
    }

    /// How often the registry was asked for a layer, whatever it answered.
    fn asked(&self, layer: &str) -> usize {
        self.from.count(Op::BlobGet.of(layer))
    }

    fn delete_layers(&self, image: &Image) {
        for layer in image.layer_digests() {
            assert!(self.from.remove_blob(SOURCE, layer));
        }
    }

    async fn run(&self, build: Build) -> Outcome {
        self.client.start(build.attach(Attachables::default().files())).await.finish().await
    }

    async fn archive(&self, state: &State) -> Outcome {
        self.run(Build::of(state).export("oci", &[])).await
    }

    async fn push(&self, state: &State) -> Outcome {
        self.run(Build::of(state).push(&self.to.reference(TARGET, TAG))).await
    }

    /// Both ways out of the daemon give an image of these layers.
    async fn gives(&self, state: &State, layers: &[&str]) {
        let archived = self.archive(state).await.success();
        assert_eq!(archived.session.count(Callback::FileSend), 1, "a client takes one archive");
        let archive = Archive::parse(&archived.session.received(0).expect("an archive").bytes);
        archive.verify();
        assert!(layers.iter().all(|layer| archive.has_blob(layer)), "{}", self.from.story());
        self.push(state).await.success();
        let pushed = self.to.manifest(TARGET, TAG).expect("a manifest").json();
        let pushed: Vec<_> =
            pushed["layers"].as_array().expect("layers").iter().map(|l| &l["digest"]).collect();
        assert_eq!(pushed, layers);
    }
}

/// Images of the same files in three encodings, so that they are one key and different blobs.
fn encodings(seed: &str) -> [Image; 3] {
    let tars: Vec<_> = (0..2).map(|n| tar_of([(format!("file-{n}"), format!("{seed} {n}"))])).collect();
    let gzip = Image::of(tars.iter().cloned().map(Layer::gzip));
    let plain = Image::of(tars.iter().cloned().map(Layer::uncompressed));
    // A second member of gzip that holds nothing.
    let empty = Layer::gzip(Vec::new()).source.expect("bytes").to_bytes();
    let longer = tars.iter().cloned().map(|tar| {
        let layer = Layer::gzip(tar);
        let mut blob = layer.source.expect("bytes").to_bytes().to_vec();
        blob.extend_from_slice(&empty);
        Layer::with_blob(&layer.descriptor.media_type, blob, layer.diff_id)
    });
    [gzip, plain, Image::of(longer)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_blobs_are_deleted_gives_way_to_the_op() {
    let scene = Scene::new().await;
    let [old, new, _] = encodings("run");
    scene.know(&old, &scene.image()).await;
    scene.delete_layers(&old);
    scene.from.put_image(SOURCE, TAG, &new);
    scene.gives(&scene.image(), &new.layer_digests()).await;
    assert!(old.layer_digests().iter().any(|layer| scene.asked(layer) > 0), "the record was tried first");
}

/// As a push alone, which reads nothing before it has begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_a_record_whose_blobs_are_deleted_is_made_again_from_the_op() {
    let scene = Scene::new().await;
    let [old, new, _] = encodings("push");
    scene.know(&old, &scene.image()).await;
    scene.delete_layers(&old);
    scene.from.put_image(SOURCE, TAG, &new);
    scene.push(&scene.image()).await.success();
    let pushed = scene.to.manifest(TARGET, TAG).expect("a manifest").json();
    assert_eq!(pushed["layers"][0]["digest"], new.layers[0].digest());
    for layer in new.layer_digests() {
        assert_eq!((scene.asked(layer), scene.to.has_blob(TARGET, layer)), (1, true));
    }
    scene.to.until(|to| to.open_uploads() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_blobs_are_deleted_gives_way_to_the_next_record() {
    let scene = Scene::new().await;
    let [first, second, third] = encodings("next");
    scene.know(&first, &scene.image()).await;
    scene.from.put_image(SOURCE, TAG, &second);
    // A push that the first record fails makes the second one, and keeps no byte.
    scene.delete_layers(&first);
    scene.push(&scene.image()).await.success();
    scene.from.put_image(SOURCE, TAG, &first);
    // Nor can the op be run: its own blobs never were there.
    scene.from.put_image(SOURCE, TAG, &third);
    scene.delete_layers(&third);
    scene.delete_layers(&second);
    assert!(second.layer_digests().iter().all(|layer| scene.to.remove_blob(TARGET, layer)));
    scene.from.forget();
    scene.gives(&scene.image(), &first.layer_digests()).await;
    assert!(second.layer_digests().iter().any(|layer| scene.asked(layer) > 0), "the newest comes first");
    assert!(third.layer_digests().iter().all(|layer| scene.asked(layer) == 0), "{}", scene.from.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_input_has_lost_is_given_up_there_and_made_from_its_other_record() {
    let scene = Scene::new().await;
    let [old, new, _] = encodings("merge");
    let other = Image::incompressible(0xfd_0003, 1, 10 << 10);
    scene.from.put_image("team/other", TAG, &other);
    let merge = llb::merge([scene.image(), llb::image(scene.from.reference("team/other", TAG))]);
    scene.know(&old, &merge).await;
    scene.delete_layers(&old);
    scene.from.put_image(SOURCE, TAG, &new);
    let layers: Vec<_> = new.layer_digests().into_iter().chain(other.layer_digests()).collect();
    scene.gives(&merge, &layers).await;
}

/// The source was run again for the very same blobs, and they were asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_nowhere_is_asked_for_once_and_named() {
    let scene = Scene::new().await;
    let image = Image::incompressible(0xfd_0004, 1, 10 << 10);
    scene.know(&image, &scene.image()).await;
    scene.delete_layers(&image);
    let layer = image.layers[0].digest();
    for n in 0..2 {
        let state = scene.image();
        let outcome = if n == 0 { scene.archive(&state).await } else { scene.push(&state).await };
        let refusal = outcome.failure();
        assert_eq!(refusal.code(), tonic::Code::NotFound, "{refusal:?}");
        for part in [layer, &scene.from.host(), SOURCE] {
            assert!(refusal.message().contains(part), "{part}: {refusal:?}");
        }
        assert_eq!(scene.asked(layer), n + 1, "{}", scene.from.story());
    }
    assert!(scene.to.manifest(TARGET, TAG).is_none());
    scene.to.until(|to| to.open_uploads() == 0).await;
}
