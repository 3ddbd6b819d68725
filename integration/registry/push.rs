//! Blobs and manifests on their way to a registry.

use thunk::registry::Mount;
use thunk::registry::PushError;
use thunk::registry::Pushed;
use thunk::registry::Selector;

use super::*;
use crate::harness::How;
use crate::harness::Op;
use crate::harness::registry::Point;

#[tokio::test]
async fn a_new_blob_costs_a_head_a_post_and_a_put_and_a_known_one_a_head() {
    let l = Layer::incompressible(0x7b01, 300 << 10);
    let registry = guarded(Auth::Bearer);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "team/app"));
    let mut opened = 0;
    let pushed = client.push_blob(&ctx, &app, &layer(&l), &[], &mut body(bytes_of(&l), &mut opened)).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
    assert_eq!(opened, 1);
    assert_eq!(registry.blob("team/app", l.digest()).expect("the blob").to_bytes(), bytes_of(&l));
    let ops: Vec<_> = registry.requests().iter().map(|request| request.op).collect();
    assert_eq!(ops, [Op::BlobHead, Op::Token, Op::BlobHead, Op::UploadStart, Op::UploadPut]);
    assert_eq!(registry.at(Op::UploadPut)[0].bytes_in, l.size());

    registry.forget();
    let pushed = client.push_blob(&ctx, &app, &layer(&l), &[], &mut body(bytes_of(&l), &mut opened)).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Existed);
    assert_eq!(registry.requests().len(), 1);
    assert_eq!(opened, 1, "what is there is not read");
}

#[tokio::test]
async fn an_empty_blob_and_a_location_that_is_a_url_are_no_exceptions() {
    let registry = TestRegistry::start(Options { absolute_locations: true, ..Options::default() });
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    for content in ["", "x"] {
        let blob = Descriptor::of("application/octet-stream", content.as_bytes());
        let mut opened = 0;
        let bytes = Bytes::from_static(content.as_bytes());
        let pushed = client.push_blob(&nobody(), &app, &blob, &[], &mut body(bytes, &mut opened)).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
        assert!(registry.has_blob("app", blob.digest));
    }
}

#[tokio::test]
async fn a_mount_costs_one_post_and_a_token_for_both_repositories() {
    let image = Image::incompressible(0x7b02, 12, 120 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("base", "v1", &image);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let mut opened = 0;
    for l in &image.layers {
        let mut body = body(bytes_of(l), &mut opened);
        let pushed = client.push_blob(&ctx, &app, &layer(l), &["base".to_owned()], &mut body).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Mounted { from: "base".to_owned() });
    }
    assert_eq!(opened, 0);
    assert_eq!((registry.mounts_ok(), registry.count(Op::Mount)), (12, 12), "{}", registry.story());
    assert_eq!(registry.count(Op::BlobHead), 13, "one is the challenge");
    let scopes: Vec<_> = registry.at(Op::Token).into_iter().map(|token| token.scopes).collect();
    let push = "repository:app:pull,push".to_owned();
    assert_eq!(scopes, [vec![push.clone()], vec![push, "repository:base:pull".to_owned()]]);
}

#[tokio::test]
async fn every_refusal_of_a_mount_means_upload() {
    let l = Layer::incompressible(0x7b03, 100 << 10);
    for status in [202, 400, 401, 403, 404, 405, 500] {
        let registry = guarded(Auth::Bearer);
        registry.put_blob("base", l.digest(), l.source.clone().expect("bytes"));
        match status {
            202 => assert!(registry.remove_blob("base", l.digest())),
            status => drop(registry.fail(Op::Mount, How::Status(status))),
        }
        let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
        let mut opened = 0;
        let mounts = ["base".to_owned()];
        let pushed =
            client.push_blob(&ctx, &app, &layer(&l), &mounts, &mut body(bytes_of(&l), &mut opened)).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{status}");
        assert!(registry.has_blob("app", l.digest()));
        assert_eq!(registry.count(Op::Mount), 1, "{status}: {}", registry.story());
        let begun = if status == 202 { 0 } else { 1 };
        assert_eq!(registry.count(Op::UploadStart), begun, "{status}: the refusal's own session is used");
        assert_eq!(registry.count(Op::UploadPut), 1);
        assert_eq!(registry.open_uploads(), 0);
    }
}

#[tokio::test]
async fn a_source_that_the_asker_may_not_read_is_not_mounted_and_the_next_candidate_is() {
    let l = Layer::incompressible(0x7b04, 100 << 10);
    let registry = TestRegistry::start(Options { auth: Auth::Bearer, ..Options::default() });
    registry.add_user("bob", "pw");
    registry.allow("bob", "app", Right::Push);
    registry.allow("bob", "public", Right::Pull);
    for name in ["secret", "public"] {
        registry.put_blob(name, l.digest(), l.source.clone().expect("bytes"));
    }
    let client = Accounts::default().password("bob", "bob", "pw").client(patient());
    let mounts = ["secret", "public"].map(str::to_owned);
    let mut opened = 0;
    let app = repository(&registry, "app");
    let mut body = body(bytes_of(&l), &mut opened);
    let pushed = client.push_blob(&by(&["bob"]), &app, &layer(&l), &mounts, &mut body).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Mounted { from: "public".to_owned() });
    assert_eq!((registry.count(Op::Mount), registry.mounts_ok()), (2, 1), "{}", registry.story());
}

#[tokio::test]
async fn sessions_that_refusals_began_are_cancelled_when_another_mount_is_granted() {
    let l = Layer::incompressible(0x7b05, 100 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_blob("third", l.digest(), l.source.clone().expect("bytes"));
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let mounts = ["first", "second", "third"].map(str::to_owned);
    let mut opened = 0;
    let pushed =
        client.push_blob(&ctx, &app, &layer(&l), &mounts, &mut body(bytes_of(&l), &mut opened)).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Mounted { from: "third".to_owned() });
    registry.until(|registry| registry.open_uploads() == 0).await;
    assert_eq!(registry.count(Op::UploadCancel), 2);
}

#[tokio::test]
async fn an_upload_whose_reply_was_lost_is_found_and_not_sent_again() {
    let l = Layer::incompressible(0x7b06, 100 << 10);
    let registry = TestRegistry::open();
    registry.fail(Op::UploadPut.once(), How::LoseReply);
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    let mut opened = 0;
    client
        .upload_blob(&nobody(), &app, &layer(&l), None, &mut body(bytes_of(&l), &mut opened))
        .await
        .expect("pushed");
    assert_eq!((registry.count(Op::UploadPut), registry.count(Op::BlobHead)), (1, 1), "{}", registry.story());
    assert_eq!(opened, 1);
}

#[tokio::test]
async fn a_cancelled_upload_leaves_nothing_at_the_registry() {
    let l = Layer::incompressible(0x7b07, 600 << 10);
    let registry = guarded(Auth::Bearer);
    let (client, app) = (alice().client(patient()), repository(&registry, "app"));
    let ctx = by(&["alice"]).child();
    let hold = registry.hold_after(Op::UploadPut, 100_000);
    let part = bytes_of(&l).slice(..300 << 10);
    // The rest never comes.
    let mut body = || -> Opened {
        let part = part.clone();
        Box::pin(async move { Ok(stream::iter([Ok(part)]).chain(stream::pending()).boxed()) })
    };
    let blob = layer(&l);
    let push = client.upload_blob(&ctx, &app, &blob, None, &mut body);
    let cancel = async {
        hold.reached().await;
        ctx.cancel().cancel();
    };
    let (pushed, ()) = tokio::join!(push, cancel);
    assert!(pushed.expect_err("cancelled").is_cancelled());
    hold.release();
    registry.until(|registry| registry.count(Op::UploadCancel) == 1).await;
    registry.until_idle().await;
    assert!(!registry.has_blob("app", l.digest()));
}

/// Only the reply says where the upload is that the request began.
#[tokio::test]
async fn an_upload_that_is_cancelled_before_it_was_begun_is_cancelled_once_it_is() {
    let l = Layer::incompressible(0x7b0f, 10 << 10);
    for dropped in [false, true] {
        for op in [Op::UploadStart, Op::Mount] {
            let registry = guarded(Auth::Bearer);
            let (client, app) = (alice().client(patient()), repository(&registry, "app"));
            let (ctx, blob) = (by(&["alice"]).child(), layer(&l));
            let mounts = if op == Op::Mount { vec!["other".to_owned()] } else { Vec::new() };
            let (hold, mut opened) = (registry.hold(op), 0);
            let mut open = body(bytes_of(&l), &mut opened);
            let push = client.push_blob(&ctx, &app, &blob, &mounts, &mut open);
            let leave = async {
                hold.reached().await;
                if !dropped {
                    ctx.cancel().cancel();
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                pushed = push => assert!(pushed.expect_err("cancelled").is_cancelled()),
                () = leave => {}
            }
            hold.release();
            registry.until(|registry| registry.count(Op::UploadCancel) == 1).await;
            registry.until(|registry| registry.open_uploads() == 0).await;
            assert_eq!(registry.count(Op::UploadPut), 0, "{}", registry.story());
        }
    }
}

#[tokio::test]
async fn a_body_that_fails_or_lies_about_its_length_pushes_nothing_and_is_named() {
    let l = Layer::incompressible(0x7b08, 100 << 10);
    let registry = TestRegistry::open();
    let (client, app, blob) = (anonymous(patient()), repository(&registry, "app"), layer(&l));
    let all = bytes_of(&l);
    let mut failing = {
        let all = all.clone();
        move || -> Opened {
            let pieces: Vec<Result<Bytes, BodyError>> = vec![Ok(all.clone()), Err("wrong digest".into())];
            Box::pin(async move { Ok(stream::iter(pieces).boxed()) })
        }
    };
    let error = client.upload_blob(&nobody(), &app, &blob, None, &mut failing).await.expect_err("a bad body");
    assert!(
        matches!(&error, PushError::Body { cause, .. } if cause.to_string() == "wrong digest"),
        "{error}"
    );
    assert!(error.to_string().contains(l.digest()) && error.to_string().contains(&app.host));
    let mut opened = 0;
    let short = all.slice(1..);
    let error = client.upload_blob(&nobody(), &app, &blob, None, &mut body(short, &mut opened)).await;
    assert!(matches!(error, Err(PushError::BodyLength { .. })));
    let mut none = || -> Opened { Box::pin(async { Err("it is gone".into()) }) };
    let error = client.upload_blob(&nobody(), &app, &blob, None, &mut none).await.expect_err("no body");
    assert!(matches!(&error, PushError::Body { cause, .. } if cause.to_string() == "it is gone"), "{error}");
    registry.until(|registry| registry.open_uploads() == 0).await;
    assert!(!registry.has_blob("app", l.digest()));
    assert_eq!(registry.uploads(), 0);
}

#[tokio::test]
async fn bytes_that_are_not_the_blob_are_refused_after_one_more_try() {
    let l = Layer::incompressible(0x7b09, 100 << 10);
    let registry = TestRegistry::open();
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    let mut wrong = bytes_of(&l).to_vec();
    wrong[77] ^= 1;
    let mut opened = 0;
    let error =
        client.upload_blob(&nobody(), &app, &layer(&l), None, &mut body(wrong.into(), &mut opened)).await;
    let error = error.expect_err("wrong bytes");
    assert!(matches!(&error, PushError::Refused { status: 400, .. }), "{error}");
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    assert_eq!(opened, 2);
    assert!(!registry.has_blob("app", l.digest()));
}

#[tokio::test]
async fn a_manifest_that_is_there_costs_a_head_and_a_new_one_a_put() {
    let image = Image::incompressible(0x7b0a, 1, 1000);
    let registry = guarded(Auth::Bearer);
    registry.put_image("app", "old", &image);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let (known, bytes) = (descriptor(&image.descriptor), image.manifest.clone());
    for (selector, pushed) in [
        (Selector::Tag("old".to_owned()), Pushed::Existed),
        (Selector::Digest(known.digest), Pushed::Existed),
        (Selector::Tag("new".to_owned()), Pushed::Uploaded),
        (Selector::Tag("new".to_owned()), Pushed::Existed),
    ] {
        let how = client.push_manifest(&ctx, &app, &selector, &known, bytes.clone()).await.expect("pushed");
        assert_eq!(how, pushed, "{selector:?}");
    }
    assert_eq!(registry.count(Op::ManifestPut), 1);
    let stored = registry.manifest("app", "new").expect("a manifest");
    assert_eq!(stored.media_type, known.media_type);
    let other = Image::incompressible(0x7b0b, 1, 1000);
    let error = client
        .push_manifest(
            &ctx,
            &app,
            &Selector::Tag("new".into()),
            &descriptor(&other.descriptor),
            other.manifest.clone(),
        )
        .await;
    assert!(matches!(error, Err(PushError::Refused { .. })), "its blobs are not there");
    assert_eq!(registry.manifest("app", "new").expect("a manifest").bytes, image.manifest);
}

#[tokio::test]
async fn who_may_push_but_not_look_pushes() {
    let image = Image::incompressible(0x7b0f, 1, 1000);
    let registry = TestRegistry::open();
    registry.fail([Op::BlobHead, Op::ManifestHead], How::Status(403));
    let (client, app) = (anonymous(patient()), repository(&registry, "app"));
    let mut opened = 0;
    for (digest, source) in image.blobs() {
        let blob = Descriptor::new("x", super::digest(&digest), source.len());
        let mut body = body(source.to_bytes(), &mut opened);
        let pushed = client.push_blob(&nobody(), &app, &blob, &[], &mut body).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
    }
    let (known, tag) = (descriptor(&image.descriptor), Selector::Tag("v1".to_owned()));
    let pushed = client.push_manifest(&nobody(), &app, &tag, &known, image.manifest.clone()).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
}

/// Registries that have no HEAD for blobs, and accounts that may push and not pull, ended a push.
#[tokio::test]
async fn a_look_that_is_not_answered_costs_one_request_and_ends_no_push() {
    let image = Image::incompressible(0x7b11, 1, 1000);
    for status in [400, 401, 403, 405, 501] {
        let registry = TestRegistry::open();
        registry.fail([Op::BlobHead, Op::ManifestHead], How::Status(status));
        let (client, app) = (anonymous(patient()), repository(&registry, "app"));
        let mut opened = 0;
        for (digest, source) in image.blobs() {
            let blob = Descriptor::new("x", super::digest(&digest), source.len());
            assert!(!client.has_blob(&nobody(), &app, &blob).await.expect("an answer"), "{status}");
            let mut body = body(source.to_bytes(), &mut opened);
            let pushed = client.push_blob(&nobody(), &app, &blob, &[], &mut body).await;
            assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{status}");
        }
        let (known, tag) = (descriptor(&image.descriptor), Selector::Tag("v1".to_owned()));
        assert_eq!(client.head_manifest(&nobody(), &app, &tag).await.expect("an answer"), None, "{status}");
        let pushed = client.push_manifest(&nobody(), &app, &tag, &known, image.manifest.clone()).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
        let counts =
            [Op::BlobHead, Op::ManifestHead, Op::UploadPut, Op::ManifestPut].map(|op| registry.count(op));
        assert_eq!(counts, [4, 2, 2, 1], "{status}: {}", registry.story());
    }
}

/// A registry that never answers a mount, by silence or by a reset, failed the push of a blob that it
/// would have taken.
#[tokio::test]
async fn a_mount_that_is_never_answered_means_the_next_candidate_and_then_an_upload() {
    let l = Layer::incompressible(0x7b12, 100 << 10);
    let tries = 1 + impatient().retry.retries as usize;
    for (how, mounts) in [
        (How::Reset, 3 * tries),
        (How::LoseReply, 3 * tries),
        (How::Status(429), 3 * tries),
        (How::RetryAfter { status: 429, seconds: 60 }, 3),
        // Silence is waited for twice, whatever the number of candidates.
        (How::Stall, 2),
    ] {
        let registry = guarded(Auth::Bearer);
        registry.fail(Op::Mount, how.clone());
        let (client, ctx, app) = (alice().client(impatient()), by(&["alice"]), repository(&registry, "app"));
        let candidates = ["first", "second", "third"].map(str::to_owned);
        let mut opened = 0;
        let pushed =
            client.push_blob(&ctx, &app, &layer(&l), &candidates, &mut body(bytes_of(&l), &mut opened)).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{how:?}");
        let counts = [Op::Mount, Op::UploadStart, Op::UploadPut].map(|op| registry.count(op));
        assert_eq!(counts, [mounts, 1, 1], "{how:?}: {}", registry.story());
        assert_eq!(opened, 1, "{how:?}");
    }
}

#[tokio::test]
async fn a_candidate_that_is_not_answered_does_not_hide_one_that_is() {
    let l = Layer::incompressible(0x7b13, 100 << 10);
    for how in [How::Reset, How::Stall] {
        let registry = guarded(Auth::Bearer);
        registry.put_blob("good", l.digest(), l.source.clone().expect("bytes"));
        // Tries of the first candidate, at which it is not answered.
        let tries = if how == How::Stall { 1 } else { 1 + impatient().retry.retries as usize };
        registry.fail(Point::from(Op::Mount).times(tries), how.clone());
        let (client, ctx, app) = (alice().client(impatient()), by(&["alice"]), repository(&registry, "app"));
        let mounts = ["bad", "good"].map(str::to_owned);
        let mut opened = 0;
        let pushed =
            client.push_blob(&ctx, &app, &layer(&l), &mounts, &mut body(bytes_of(&l), &mut opened)).await;
        assert_eq!(pushed.expect("pushed"), Pushed::Mounted { from: "good".to_owned() }, "{how:?}");
        assert_eq!(registry.count(Op::Mount), tries + 1, "{how:?}: {}", registry.story());
        assert_eq!(opened, 0);
    }
}

#[tokio::test]
async fn a_candidate_that_is_no_repository_is_not_even_asked_for() {
    let l = Layer::incompressible(0x7b10, 10 << 10);
    let registry = guarded(Auth::Bearer);
    let (client, ctx, app) = (alice().client(patient()), by(&["alice"]), repository(&registry, "app"));
    let mounts = ["../base", "a:pull repository:b", "", "app"].map(str::to_owned);
    let mut opened = 0;
    let pushed =
        client.push_blob(&ctx, &app, &layer(&l), &mounts, &mut body(bytes_of(&l), &mut opened)).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
    assert_eq!(registry.count(Op::Mount), 0);
}

#[tokio::test]
async fn mirrors_are_never_pushed_to() {
    let l = Layer::incompressible(0x7b0c, 10 << 10);
    let (host, mirror) = (TestRegistry::open(), TestRegistry::open());
    mirror.put_blob("app", l.digest(), l.source.clone().expect("bytes"));
    let client = anonymous(mirrored(patient(), &host.host(), &[mirror.host()]));
    let mut opened = 0;
    let app = repository(&host, "app");
    let pushed =
        client.push_blob(&nobody(), &app, &layer(&l), &[], &mut body(bytes_of(&l), &mut opened)).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
    assert!(host.has_blob("app", l.digest()));
    assert_eq!(mirror.requests().len(), 0);
}

#[tokio::test]
async fn a_body_pulled_from_another_registry_streams_through() {
    let l = Layer::incompressible(0x7b0d, 2 << 20);
    let (from, to) = (TestRegistry::open(), TestRegistry::open());
    from.put_blob("base", l.digest(), l.source.clone().expect("bytes"));
    let lanes = LaneLimits { metadata: 1, download: 1, upload: 1 };
    let client = anonymous(RegistryConfig { lanes, ..patient() });
    let (base, app, blob) = (repository(&from, "base"), repository(&to, "app"), layer(&l));
    from.fail(Op::BlobGet.once(), How::Truncate(1 << 20));
    let mut source = || -> Opened {
        let (client, base, blob) = (client.clone(), base.clone(), blob.clone());
        Box::pin(async move {
            let body = client.open_blob(&nobody(), &base, &blob, 0).await?;
            Ok(body.map(|chunk| chunk.map_err(BodyError::from)).boxed())
        })
    };
    let pushed = client.push_blob(&nobody(), &app, &blob, &[], &mut source).await;
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded);
    assert_eq!(to.blob("app", l.digest()).expect("the blob").to_bytes(), bytes_of(&l));
    assert_eq!((from.count(Op::BlobGet), to.count(Op::UploadPut)), (2, 1));
}

#[tokio::test]
async fn a_mount_tells_a_refusal_from_a_grant() {
    let l = Layer::incompressible(0x7b0e, 10 << 10);
    let registry = TestRegistry::open();
    registry.put_blob("base", l.digest(), l.source.clone().expect("bytes"));
    let (client, app, blob) = (anonymous(patient()), repository(&registry, "app"), layer(&l));
    let refused = client.mount_blob(&nobody(), &app, "other", &blob).await.expect("an answer");
    let Mount::Refused { session: Some(session) } = refused else { panic!("{refused:?}") };
    drop(session);
    registry.until(|registry| registry.open_uploads() == 0).await;
    let granted = client.mount_blob(&nobody(), &app, "base", &blob).await.expect("an answer");
    assert!(matches!(granted, Mount::Mounted));
}
