//! TLS: who is trusted, HTTP/2, and falling back to plain HTTP where that was asked for.

use super::*;
use crate::harness::How;
use crate::harness::Op;

fn secure(auth: Auth) -> TestRegistry {
    let registry = TestRegistry::start(Options { auth, tls: true, ..Options::default() });
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Push);
    registry
}

fn configured(registry: &TestRegistry, config: HostConfig) -> RegistryConfig {
    RegistryConfig { hosts: [(registry.host(), config)].into(), ..patient() }
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_http2_is_spoken() {
    let image = Image::incompressible(0x715, 6, 3 << 20);
    let registry = secure(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let directory = tempfile::tempdir().expect("a directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, registry.ca_pem().expect("a certificate")).expect("written");
    let app = repository(&registry, "app");
    let https = HostConfig { http: Some(false), ..HostConfig::default() };
    let with_ca = HostConfig { ca: vec![ca.clone()], ..https.clone() };
    let client = alice().client(configured(&registry, with_ca));
    let ctx = by(&["alice"]);
    registry.fail(Op::BlobGet.once(), How::ResetAfter(100_000));
    let reads = image.layers.iter().map(|l| {
        let (client, ctx, app) = (&client, &ctx, &app);
        async move { read(client, ctx, app, &layer(l), 0).await.expect("a layer") == bytes_of(l) }
    });
    assert!(futures::future::join_all(reads).await.into_iter().all(|same| same));
    assert!(registry.requests().iter().all(|request| request.version == http::Version::HTTP_2));
    assert_eq!(registry.connections().accepted, 1, "one connection carries all");
    let mut opened = 0;
    let to = repository(&registry, "to");
    let l = &image.layers[0];
    client.push_blob(&ctx, &to, &layer(l), &[], &mut body(bytes_of(l), &mut opened)).await.expect("pushed");
    assert!(registry.has_blob("to", l.digest()));

    let error =
        anonymous(configured(&registry, https)).resolve(&ctx, &reference(&registry, "app", "v1")).await;
    let error = error.expect_err("unknown authority").to_string();
    assert!(error.contains("certificate"), "{error}");
    let directories = vec![directory.path().to_owned()];
    std::fs::rename(&ca, directory.path().join("ca.crt")).expect("renamed");
    let with_directory =
        HostConfig { http: Some(false), tls_config_dirs: directories, ..HostConfig::default() };
    let client = alice().client(configured(&registry, with_directory));
    client.resolve(&ctx, &reference(&registry, "app", "v1")).await.expect("resolved");
}

#[tokio::test]
async fn insecure_takes_any_certificate_and_with_http_falls_back_to_plain() {
    let image = Image::incompressible(0x716, 1, 1000);
    let registry = secure(Auth::Open);
    registry.put_image("app", "v1", &image);
    let name = reference(&registry, "app", "v1");
    let client = anonymous(patient());
    client.resolve(&nobody(), &name).await.expect_err("loopback is plain HTTP unless told otherwise");
    client.trusting(&registry.host()).resolve(&nobody(), &name).await.expect("any certificate will do");

    let plain = TestRegistry::open();
    plain.put_image("app", "v1", &image);
    let client = anonymous(patient()).trusting(&plain.host());
    let name = reference(&plain, "app", "v1");
    for _ in 0..3 {
        client.resolve(&nobody(), &name).await.expect("it falls back");
    }
    assert_eq!(plain.count(Op::ManifestHead), 3);
    assert!(plain.connections().accepted <= 2, "TLS was tried once");
}
