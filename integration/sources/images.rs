//! Images of registries.

use super::Frontend;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::llb;

fn image(text: &str) -> Image {
    Image::of([Layer::files([("file".to_owned(), text.to_owned())])])
}

async fn digest(frontend: &Frontend, identifier: &str) -> String {
    let resolved = frontend.resolve(identifier, &[]).await.expect("it resolves");
    resolved.image.expect("it is an image").digest
}

/// A tag that a frontend had resolved was asked for again by the build, and could have moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_the_image_that_its_frontend_was_told_of_and_the_next_one_the_new_one() {
    let (daemon, registry) = (Daemon::start(), TestRegistry::open());
    let client = Client::connect(&daemon).await;
    registry.put_image("app", "v1", &image("first"));
    let tagged = registry.reference("app", "v1");
    let name = format!("docker-image://{tagged}");

    let one = Frontend::start(&client).await;
    let first = digest(&one, &name).await;
    assert_eq!(registry.count(Op::ManifestHead), 1, "{}", registry.story());
    registry.put_image("app", "v1", &image("second"));
    let forms =
        [tagged.clone(), format!("{tagged}@{first}"), format!("{}@{first}", &tagged[..tagged.len() - 3])];
    for form in &forms {
        assert_eq!(one.read(&llb::image(form), "/file").await, "first", "{form}");
    }
    assert_eq!(digest(&one, &name).await, first);
    assert_eq!(registry.count(Op::ManifestHead), 1, "{}", registry.story());
    assert_eq!(registry.count(Op::ManifestGet), 1, "{}", registry.story());
    assert_eq!(registry.count(Op::BlobGet), 2, "the config and the layer\n{}", registry.story());
    one.finish().await;

    registry.forget();
    let two = Frontend::start(&client).await;
    assert_ne!(digest(&two, &name).await, first);
    assert_eq!(two.read(&llb::image(&tagged), "/file").await, "second");
    assert_eq!(registry.count(Op::ManifestHead), 1, "{}", registry.story());
    assert_eq!(registry.count(Op::ManifestGet), 1, "{}", registry.story());
    two.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_were_told_of_different_images_have_different_images() {
    let (daemon, registry) = (Daemon::start(), TestRegistry::open());
    let client = Client::connect(&daemon).await;
    registry.put_image("app", "v1", &image("first"));
    let tagged = registry.reference("app", "v1");
    let (name, source) = (format!("docker-image://{tagged}"), llb::image(&tagged));
    let (one, two) = (Frontend::start(&client).await, Frontend::start(&client).await);
    digest(&one, &name).await;
    assert_eq!(one.read(&source, "/file").await, "first");
    registry.put_image("app", "v1", &image("second"));
    digest(&two, &name).await;
    assert_eq!(two.read(&source, "/file").await, "second");
    assert_eq!(one.read(&source, "/file").await, "first");
    assert_eq!(registry.count(Op::ManifestHead), 2, "{}", registry.story());
    one.finish().await;
    two.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_after_it_was_asked_fails_no_build_that_needs_no_bytes() {
    let (daemon, registry) = (Daemon::start(), TestRegistry::open());
    let client = Client::connect(&daemon).await;
    registry.put_image("app", "v1", &image("first"));
    let tagged = registry.reference("app", "v1");
    let frontend = Frontend::start(&client).await;
    registry.go_down();
    assert!(frontend.resolve(&format!("docker-image://{tagged}"), &[]).await.is_err());
    registry.come_back();
    digest(&frontend, &format!("docker-image://{tagged}")).await;
    registry.go_down();
    frontend.solve(&llb::image(&tagged)).await.expect("it is solved");
    registry.come_back();
    frontend.finish().await;
}
