//! Names, manifests and blobs on their way here.

use super::*;
use crate::harness::How;
use crate::harness::Op;
use crate::harness::registry::Listener;
use crate::harness::registry::Point;

#[tokio::test]
async fn a_cold_pull_of_twelve_layers_makes_one_request_for_each_thing() {
    let image = Image::incompressible(0x7e61, 12, 1200 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("team/app", "v1", &image);
    let (client, ctx) = (alice().client(patient()), by(&["alice"]));
    let app = repository(&registry, "team/app");

    let resolved = client.resolve(&ctx, &reference(&registry, "team/app", "v1")).await.expect("resolved");
    assert_eq!(resolved.descriptor, descriptor(&image.descriptor));
    assert_eq!(resolved.bytes, None);
    let manifest = client.manifest(&ctx, &app, &resolved.descriptor).await.expect("a manifest");
    assert_eq!(manifest, image.manifest);
    let config = descriptor(image.config_descriptor.as_ref().expect("a config"));
    assert_eq!(client.small_blob(&ctx, &app, &config, 1 << 20).await.expect("a config"), image.config);
    let reads = image.layers.iter().map(|l| {
        let (client, ctx, app) = (&client, &ctx, &app);
        async move { read(client, ctx, app, &layer(l), 0).await.expect("a layer") == bytes_of(l) }
    });
    assert!(futures::future::join_all(reads).await.into_iter().all(|same| same));

    assert_eq!(registry.count(Op::Token), 1, "{}", registry.story());
    assert_eq!(registry.count(Op::ManifestHead), 2, "one is the challenge: {}", registry.story());
    assert_eq!(registry.count(Op::ManifestGet), 1);
    assert_eq!(registry.count(Op::BlobGet), 13);
    assert_eq!(registry.count(Op::Ping), 0);
    assert_eq!(registry.requests().len(), 17);
}

#[tokio::test]
async fn twelve_blobs_asked_for_at_once_by_a_cold_client_meet_one_challenge_and_one_token() {
    let image = Image::incompressible(0x7e62, 12, 120 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "v1", &image);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let reads = image.layers.iter().map(|l| {
        let (client, ctx, app) = (&client, &ctx, &app);
        async move { read(client, ctx, app, &layer(l), 0).await.map(|_| ()) }
    });
    for result in futures::future::join_all(reads).await {
        result.expect("a layer");
    }
    assert_eq!(registry.count(Op::Token), 1, "{}", registry.story());
    assert_eq!(registry.blob_gets(), 12);
    assert_eq!(registry.count(Op::BlobGet), 13, "one is the challenge");
}

#[tokio::test]
async fn an_open_registry_is_asked_for_no_token_and_a_blob_with_one_get() {
    let image = Image::incompressible(0x7e63, 2, 100 << 10);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    for l in &image.layers {
        assert_eq!(read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
    }
    assert_eq!(registry.requests().len(), 2);
    let agent = registry.requests()[0].user_agent.clone().unwrap_or_default();
    assert!(agent.starts_with("thunk/"), "{agent}");
}

#[tokio::test]
async fn a_head_that_does_not_tell_is_followed_by_one_get() {
    let image = Image::incompressible(0x7e64, 1, 1000);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    registry.fail(Op::ManifestHead, How::Status(405));
    let client = anonymous(patient());
    let resolved = client.resolve(&nobody(), &reference(&registry, "app", "v1")).await.expect("resolved");
    assert_eq!(resolved.descriptor, descriptor(&image.descriptor));
    assert_eq!(resolved.bytes, Some(image.manifest.clone()));
    assert_eq!(registry.requests().len(), 2);

    registry.forget();
    let pinned = reference(&registry, "app", image.digest());
    let resolved = client.resolve(&nobody(), &pinned).await.expect("resolved");
    assert_eq!(resolved.bytes, Some(image.manifest.clone()));
    assert_eq!(registry.requests().len(), 1, "a digest needs no HEAD");
}

#[tokio::test]
async fn a_manifest_is_verified_and_one_of_another_size_is_refused() {
    let image = Image::incompressible(0x7e65, 1, 1000);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    let known = descriptor(&image.descriptor);
    let wrong = Descriptor { size: known.size + 1, ..known.clone() };
    let error = client.manifest(&nobody(), &app, &wrong).await.expect_err("another size");
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    let huge = Descriptor { size: 5 << 20, ..known.clone() };
    registry.forget();
    let error = client.manifest(&nobody(), &app, &huge).await.expect_err("too large");
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
    assert_eq!(registry.requests().len(), 0);
    registry.fail(Op::ManifestGet, How::FlipByte(3));
    let error = client.manifest(&nobody(), &app, &known).await.expect_err("damaged");
    assert!(matches!(error, RegistryError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains(&known.digest.to_string()) && error.to_string().contains(&app.host));
}

#[tokio::test]
async fn a_blob_goes_on_by_range_where_it_broke_off() {
    let image = Image::incompressible(0x7e66, 1, 500 << 10);
    let (l, registry) = (&image.layers[0], TestRegistry::open());
    registry.put_image("app", "v1", &image);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    for how in [How::Truncate(100_000), How::ResetAfter(100_000)] {
        registry.forget();
        registry.fail(Op::BlobGet.once(), how.clone());
        assert_eq!(
            read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"),
            bytes_of(l),
            "{how:?}"
        );
        let gets = registry.at(Op::BlobGet);
        assert_eq!(gets.len(), 2, "{how:?}");
        let range = gets[1].range.clone().expect("a range");
        let from: u64 = range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("an offset");
        assert!((1..=100_000).contains(&from), "{how:?}: {range}");
        assert_eq!(gets[1].bytes_out, l.size() - from);
    }
}

#[tokio::test]
async fn a_blob_is_opened_at_any_offset_whether_the_registry_knows_ranges_or_not() {
    let image = Image::incompressible(0x7e67, 1, 200 << 10);
    let (l, all) = (&image.layers[0], bytes_of(&image.layers[0]));
    for ranges in [true, false] {
        let registry = TestRegistry::start(Options { ranges, ..Options::default() });
        registry.put_image("app", "v1", &image);
        let (client, app) = (anonymous(patient()), repository(&registry, "app"));
        for offset in [0, 1, 150_000, l.size() - 1, l.size()] {
            let read = read(&client, &nobody(), &app, &layer(l), offset).await.expect("a layer");
            assert_eq!(read, all.slice(offset as usize..), "{ranges} {offset}");
        }
        assert_eq!(registry.count(Op::BlobGet), 4, "the end needs no request");
    }
}

#[tokio::test]
async fn a_wrong_content_range_is_not_trusted_again() {
    let image = Image::incompressible(0x7e68, 1, 200 << 10);
    let (l, registry) = (&image.layers[0], TestRegistry::open());
    registry.put_image("app", "v1", &image);
    registry.fail(Op::BlobGet, How::WrongContentRange);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    let read = read(&client, &nobody(), &app, &layer(l), 1000).await.expect("a layer");
    assert_eq!(read, bytes_of(l).slice(1000..));
    let ranges: Vec<_> = registry.at(Op::BlobGet).into_iter().map(|get| get.range).collect();
    assert_eq!(ranges, [Some("bytes=1000-".to_owned()), None]);
}

#[tokio::test]
async fn redirects_are_followed_without_the_credential() {
    let image = Image::incompressible(0x7e69, 2, 200 << 10);
    let options = Options { auth: Auth::Bearer, redirect_blobs: true, ..Options::default() };
    let registry = TestRegistry::start(options);
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Pull);
    registry.put_image("app", "v1", &image);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let l = &image.layers[0];
    registry.fail(Point::from(Op::BlobGet).at(Listener::Cdn).once(), How::Truncate(50_000));
    assert_eq!(read(&client, &ctx, &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
    assert_eq!(registry.leaked_credentials(), 0);
    let cdn = registry.at(Point::from(Op::BlobGet).at(Listener::Cdn));
    assert_eq!(cdn.len(), 2, "{}", registry.story());
    assert!(cdn.iter().all(|get| get.authorization.is_none()));
}

#[tokio::test]
async fn a_mirror_serves_first_and_its_host_takes_over_in_the_middle() {
    let image = Image::incompressible(0x7e6a, 1, 400 << 10);
    let (l, host, mirror) = (&image.layers[0], TestRegistry::open(), TestRegistry::open());
    host.put_image("app", "v1", &image);
    mirror.put_image("app", "v1", &image);
    let client = anonymous(mirrored(patient(), &host.host(), &[mirror.host()]));
    let app = repository(&host, "app");
    let resolved = client.resolve(&nobody(), &reference(&host, "app", "v1")).await.expect("resolved");
    assert_eq!(resolved.descriptor, descriptor(&image.descriptor));
    assert_eq!(host.requests().len(), 0, "the mirror knew");
    assert!(mirror.requests()[0].uri.contains(&format!("ns={}", host.host().replace(':', "%3A"))));

    mirror.fail(Op::BlobGet, How::Truncate(100_000));
    assert_eq!(read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
    assert_eq!((mirror.count(Op::BlobGet), host.count(Op::BlobGet)), (1, 1));
    let range = host.at(Op::BlobGet)[0].range.clone().expect("a range");
    assert!(range.starts_with("bytes=") && range != "bytes=0-", "{range}");
}

#[tokio::test]
async fn a_mirror_that_is_down_lacks_the_blob_or_refuses_is_passed_by() {
    let image = Image::incompressible(0x7e6b, 1, 100 << 10);
    let (l, host) = (&image.layers[0], TestRegistry::open());
    host.put_image("app", "v1", &image);
    let (down, empty, refusing) = (TestRegistry::open(), TestRegistry::open(), guarded(Auth::Bearer));
    down.go_down();
    let mirrors = [down.host(), empty.host(), refusing.host()];
    let client = anonymous(mirrored(patient(), &host.host(), &mirrors));
    let app = repository(&host, "app");
    assert_eq!(read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
    assert_eq!((empty.count(Op::BlobGet), host.count(Op::BlobGet)), (1, 1));
}

#[tokio::test]
async fn a_mirror_keeps_a_blob_alive_that_its_host_lost() {
    let image = Image::incompressible(0x7e6c, 1, 100 << 10);
    let (l, host, mirror) = (&image.layers[0], TestRegistry::open(), TestRegistry::open());
    mirror.put_image("app", "v1", &image);
    mirror.fail(Op::BlobGet.once(), How::Status(503));
    let client = anonymous(mirrored(patient(), &host.host(), &[mirror.host()]));
    let app = repository(&host, "app");
    assert_eq!(read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
    host.go_down();
    assert_eq!(read(&client, &nobody(), &app, &layer(l), 0).await.expect("a layer"), bytes_of(l));
}

#[tokio::test]
async fn whoever_served_wrong_bytes_is_asked_last() {
    let image = Image::incompressible(0x7e6d, 1, 100 << 10);
    let (l, host, mirror) = (&image.layers[0], TestRegistry::open(), TestRegistry::open());
    host.put_image("app", "v1", &image);
    mirror.put_image("app", "v1", &image);
    mirror.fail(Op::BlobGet, How::FlipByte(5));
    let client = anonymous(mirrored(patient(), &host.host(), &[mirror.host()]));
    let (app, blob) = (repository(&host, "app"), layer(l));
    let body = client.open_blob(&nobody(), &app, &blob, 0).await.expect("a body");
    body.condemn();
    drop(body);
    assert_eq!(read(&client, &nobody(), &app, &blob, 0).await.expect("a layer"), bytes_of(l));
    assert_eq!((mirror.count(Op::BlobGet), host.count(Op::BlobGet)), (1, 1));
    let config = descriptor(image.config_descriptor.as_ref().expect("a config"));
    assert_eq!(client.small_blob(&nobody(), &app, &config, 1 << 20).await.expect("a config"), image.config);
}

#[tokio::test]
async fn a_lane_bounds_what_one_host_gets_at_once() {
    let image = Image::incompressible(0x7e6e, 9, 900 << 10);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let lanes = LaneLimits { download: 3, ..LaneLimits::default() };
    let (client, app) = (anonymous(RegistryConfig { lanes, ..patient() }), repository(&registry, "app"));
    let hold = registry.hold_after(Op::BlobGet, 10_000);
    let reads = image.layers.iter().map(|l| {
        let (client, app) = (&client, &app);
        async move { read(client, &nobody(), app, &layer(l), 0).await.map(|_| ()) }
    });
    let all = futures::future::join_all(reads);
    let watch = async {
        hold.reached_by(3).await;
        // A manifest does not wait for blobs.
        let known = descriptor(&image.descriptor);
        client.manifest(&nobody(), &app, &known).await.expect("a manifest");
        assert_eq!(hold.arrived(), 3);
        hold.release();
    };
    let (results, ()) = tokio::join!(all, watch);
    assert!(results.into_iter().all(|result| result.is_ok()));
    assert_eq!(registry.peak_concurrent(Op::BlobGet), 3);
}

#[tokio::test]
async fn a_cancelled_read_ends_at_once_wherever_it_waits() {
    let image = Image::incompressible(0x7e6f, 2, 400 << 10);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let lanes = LaneLimits { download: 1, ..LaneLimits::default() };
    let (client, app) = (anonymous(RegistryConfig { lanes, ..patient() }), repository(&registry, "app"));
    let [first, second] = [layer(&image.layers[0]), layer(&image.layers[1])];
    let hold = registry.hold_after(Op::BlobGet, 10_000);
    let (ctx, waiting) = (nobody().child(), nobody().child());
    let reader = read(&client, &ctx, &app, &first, 0);
    let queued = read(&client, &waiting, &app, &second, 0);
    let cancel = async {
        hold.reached().await;
        waiting.cancel().cancel();
        tokio::task::yield_now().await;
        ctx.cancel().cancel();
    };
    let (reader, queued, ()) = tokio::join!(reader, queued, cancel);
    assert!(matches!(reader, Err(RegistryError::Cancelled { .. })));
    assert!(matches!(queued, Err(RegistryError::Cancelled { .. })));
    assert_eq!(registry.count(Op::BlobGet), 1, "who waited had asked for nothing");
    drop(hold);
    read(&client, &nobody(), &app, &second, 0).await.expect("the lane is free again");
}

#[tokio::test]
async fn an_open_body_that_is_dropped_gives_its_place_back() {
    let image = Image::incompressible(0x7e70, 1, 400 << 10);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let lanes = LaneLimits { download: 1, ..LaneLimits::default() };
    let (client, app) = (anonymous(RegistryConfig { lanes, ..patient() }), repository(&registry, "app"));
    let blob = layer(&image.layers[0]);
    for _ in 0..3 {
        drop(client.open_blob(&nobody(), &app, &blob, 0).await.expect("a body"));
    }
    read(&client, &nobody(), &app, &blob, 0).await.expect("a layer");
}

#[tokio::test]
async fn referrers_are_listed_by_the_api_and_by_the_tag() {
    let image = Image::incompressible(0x7e71, 1, 1000);
    let signature =
        Image::builder().subject(&image.descriptor).artifact_type("application/signature").build();
    let sbom = Image::builder().subject(&image.descriptor).artifact_type("application/sbom").build();
    let registry = TestRegistry::open();
    for (tag, image) in [("v1", &image), ("sig", &signature), ("sbom", &sbom)] {
        registry.put_image("app", tag, image);
    }
    let (client, app, subject) = (anonymous(patient()), repository(&registry, "app"), digest(image.digest()));
    let all = client.referrers(&nobody(), &app, &subject, None).await.expect("referrers");
    assert_eq!(all.len(), 2, "{}", registry.story());
    let some =
        client.referrers(&nobody(), &app, &subject, Some("application/sbom")).await.expect("referrers");
    assert_eq!(some.iter().map(|d| d.digest.to_string()).collect::<Vec<_>>(), [sbom.digest()]);

    let old = TestRegistry::start(Options { referrers: false, ..Options::default() });
    old.put_image("app", "v1", &image);
    let app = repository(&old, "app");
    assert!(client.referrers(&nobody(), &app, &subject, None).await.expect("none").is_empty());
    let index = Image::index([signature, sbom]);
    old.put_image("app", &subject.to_string().replace(':', "-"), &index);
    assert_eq!(client.referrers(&nobody(), &app, &subject, None).await.expect("referrers").len(), 2);
}

#[tokio::test]
async fn a_foreign_layer_comes_from_its_own_urls_without_credentials_or_else_from_the_registry() {
    let elsewhere = TestRegistry::open();
    let plain = Layer::incompressible(0x7e72, 50 << 10);
    elsewhere.put_blob("other", plain.digest(), plain.source.clone().expect("bytes"));
    let url = format!("{}/v2/other/blobs/{}", elsewhere.url(), plain.digest());
    let registry = guarded(Auth::Bearer);
    registry.put_blob("app", plain.digest(), plain.source.clone().expect("bytes"));
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let blob = Descriptor {
        urls: vec!["ftp://x/y".to_owned(), url],
        ..Descriptor::new(media_type, digest(plain.digest()), plain.size())
    };
    elsewhere.fail(Op::BlobGet.once(), How::Truncate(20_000));
    assert_eq!(read(&client, &ctx, &app, &blob, 0).await.expect("a layer"), bytes_of(&plain));
    assert!(elsewhere.requests().iter().all(|request| request.authorization.is_none()));
    assert_eq!((elsewhere.count(Op::BlobGet), registry.blob_gets()), (1, 1));
}

#[tokio::test]
async fn a_probe_is_one_head_and_downloads_nothing() {
    let image = Image::incompressible(0x7e73, 1, 1000);
    let registry = TestRegistry::open();
    registry.put_image("app", "v1", &image);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    client.probe_blob(&nobody(), &app, &layer(&image.layers[0])).await.expect("it is there");
    let missing = Descriptor::of("x", b"missing");
    let error = client.probe_blob(&nobody(), &app, &missing).await.expect_err("it is not there");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert_eq!((registry.count(Op::BlobHead), registry.requests().len()), (2, 2));
}
