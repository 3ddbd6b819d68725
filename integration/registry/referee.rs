//! The same client against Debian's docker-registry: what holds there is not only our own idea.

use thunk::registry::Pushed;
use thunk::registry::Selector;

use super::*;
use crate::harness::DockerRegistry;

#[tokio::test]
async fn an_image_goes_to_the_referee_is_mounted_there_and_comes_back() {
    let Some(registry) = DockerRegistry::start() else { return };
    let (client, ctx) = (anonymous(patient()), nobody());
    let image = Image::incompressible(0x2ef, 4, 400 << 10);
    let [app, other] = ["team/app", "team/other"].map(|name| Repository::new(registry.host(), name));
    let config = descriptor(image.config_descriptor.as_ref().expect("a config"));
    let known = descriptor(&image.descriptor);
    let tag = Selector::Tag("v1".to_owned());
    let mut opened = 0;
    for (repository, mounts) in [(&app, vec![]), (&other, vec!["team/app".to_owned()]), (&app, vec![])] {
        let mut all = Vec::new();
        for l in &image.layers {
            let mut body = body(bytes_of(l), &mut opened);
            all.push(
                client.push_blob(&ctx, repository, &layer(l), &mounts, &mut body).await.expect("pushed"),
            );
        }
        let mut config_body = body(image.config.clone(), &mut opened);
        all.push(
            client.push_blob(&ctx, repository, &config, &mounts, &mut config_body).await.expect("pushed"),
        );
        let manifest = image.manifest.clone();
        client.push_manifest(&ctx, repository, &tag, &known, manifest).await.expect("pushed");
        let expected = match (all[0].clone(), mounts.is_empty()) {
            (Pushed::Existed, _) => Pushed::Existed,
            (_, true) => Pushed::Uploaded,
            (_, false) => Pushed::Mounted { from: "team/app".to_owned() },
        };
        assert_eq!(all, vec![expected; 5]);
    }
    assert_eq!(opened, 5, "each blob is sent once");

    let pulled =
        Reference { tag: Some("v1".into()), ..registry.reference("team/other", "v1").parse().unwrap() };
    let resolved = client.resolve(&ctx, &pulled).await.expect("resolved");
    assert_eq!(resolved.descriptor, known);
    assert_eq!(client.manifest(&ctx, &other, &known).await.expect("a manifest"), image.manifest);
    for l in &image.layers {
        let all = bytes_of(l);
        assert_eq!(read(&client, &ctx, &other, &layer(l), 0).await.expect("a layer"), all);
        assert_eq!(
            read(&client, &ctx, &other, &layer(l), 12_345).await.expect("a part"),
            all.slice(12_345..)
        );
    }
    assert!(client.referrers(&ctx, &other, &known.digest, None).await.expect("none").is_empty());
    let missing = Descriptor::of("x", b"missing");
    let error = client.probe_blob(&ctx, &other, &missing).await.expect_err("it is not there");
    assert!(matches!(error, RegistryError::NotFound { .. }));
    let error = client.open_blob(&ctx, &other, &missing, 0).await.expect_err("it is not there");
    assert!(error.to_string().contains("BLOB_UNKNOWN"), "{error}");
}

#[tokio::test]
async fn the_referee_refuses_wrong_bytes_and_keeps_nothing_of_them() {
    let Some(registry) = DockerRegistry::start() else { return };
    let (client, ctx) = (anonymous(patient()), nobody());
    let app = Repository::new(registry.host(), "app");
    let l = Layer::incompressible(0x2f0, 100 << 10);
    let mut wrong = bytes_of(&l).to_vec();
    wrong[7] ^= 1;
    let mut opened = 0;
    let error = client.push_blob(&ctx, &app, &layer(&l), &[], &mut body(wrong.into(), &mut opened)).await;
    assert!(error.expect_err("wrong bytes").to_string().contains("DIGEST_INVALID"));
    assert!(!client.has_blob(&ctx, &app, &layer(&l)).await.expect("an answer"));
}
