//! Every fault at every step: success, or a typed error that names the place; nothing half-written.

use thunk::registry::PushError;
use thunk::registry::Selector;

use super::*;
use crate::harness::How;
use crate::harness::Op;

fn faults() -> Vec<How> {
    vec![
        How::Status(401),
        How::Status(403),
        How::Status(404),
        How::Status(405),
        How::Status(429),
        How::RetryAfter { status: 429, seconds: 1 },
        How::Status(500),
        How::RetryAfter { status: 503, seconds: 0 },
        How::Reset,
        How::ResetAfter(10),
        How::Stall,
        How::StallAfter(10),
        How::Truncate(10),
        How::FlipByte(12),
        How::IgnoreRange,
        How::WrongContentRange,
        How::WrongLength(1),
        How::WrongLength(-1),
        How::WrongDigest,
        How::RedirectLoop,
        How::Garbage(b"garbage"),
        How::Garbage(b""),
        How::LoseReply,
    ]
}

/// What a fault may come to when it happens once: these pass, the others are final answers.
fn passes_when_once(how: &How) -> bool {
    !matches!(
        how,
        How::Status(403..=405) | How::RedirectLoop | How::Garbage(_) | How::WrongDigest | How::FlipByte(_)
    )
}

struct Setting {
    registry: TestRegistry,
    client: RegistryClient,
    ctx: Ctx,
    image: Image,
}

fn setting() -> Setting {
    let image = Image::incompressible(0xfa17, 1, 50 << 10);
    let registry = guarded(Auth::Bearer);
    registry.put_image("from", "v1", &image);
    Setting { registry, client: alice().client(impatient()), ctx: by(&["alice"]), image }
}

impl Setting {
    async fn pull(&self) -> Result<(), RegistryError> {
        let Setting { registry, client, ctx, image } = self;
        let from = repository(registry, "from");
        let resolved = client.resolve(ctx, &reference(registry, "from", "v1")).await?;
        let manifest = client.manifest(ctx, &from, &resolved.descriptor).await?;
        assert_eq!(manifest, image.manifest, "a manifest is right or not there");
        let blob = layer(&image.layers[0]);
        // A part first, as a resumed fetch would ask for it.
        let tail = read(client, ctx, &from, &blob, 20_000).await?;
        let head = read(client, ctx, &from, &blob, 0).await?;
        assert_eq!((tail.len() as u64, head.len() as u64), (blob.size - 20_000, blob.size));
        Ok(())
    }

    async fn push(&self, mounts: &[String]) -> Result<(), PushError> {
        let Setting { registry, client, ctx, image } = self;
        let to = repository(registry, "to");
        let mut opened = 0;
        let l = &image.layers[0];
        client.push_blob(ctx, &to, &layer(l), mounts, &mut body(bytes_of(l), &mut opened)).await?;
        let config = descriptor(image.config_descriptor.as_ref().expect("a config"));
        let mut config_body = body(image.config.clone(), &mut opened);
        client.push_blob(ctx, &to, &config, &[], &mut config_body).await?;
        let known = descriptor(&image.descriptor);
        let selector = Selector::Tag("v1".to_owned());
        client.push_manifest(ctx, &to, &selector, &known, image.manifest.clone()).await?;
        Ok(())
    }

    /// What is at the target is whole.
    fn check_target(&self) {
        let Setting { registry, image, .. } = self;
        for (digest, source) in image.blobs() {
            if let Some(blob) = registry.blob("to", &digest) {
                assert_eq!(blob.to_bytes(), source.to_bytes());
            }
        }
        if let Some(manifest) = registry.manifest("to", "v1") {
            assert_eq!(manifest.bytes, image.manifest);
            assert!(image.blobs().iter().all(|(digest, _)| registry.has_blob("to", digest)));
        }
    }

    fn check_error(&self, error: &str, case: &str) {
        assert!(error.contains(&self.registry.host()), "{case}: {error}");
        assert!(error.contains("/from") || error.contains("/to"), "{case}: {error}");
        assert!(!error.contains("open sesame") && !error.contains("token-"), "{case}: {error}");
        // By digest where one is known: a HEAD may have told a wrong one.
        assert!(error.contains("@sha256:") || error.contains(":v1"), "{case}: {error}");
    }
}

/// Runs each fault at each of `ops`, all at the same time: the waits are the longest part.
async fn run_all(ops: &[Op], work: impl AsyncFn(&Setting) -> Result<(), String>) {
    let mut cases = Vec::new();
    for op in ops {
        for how in faults() {
            for always in [false, true] {
                cases.push((*op, how.clone(), always));
            }
        }
    }
    let work = &work;
    let runs = cases.into_iter().map(async |(op, how, always)| {
        let case = format!("{op:?} {how:?} {}", if always { "always" } else { "once" });
        let setting = setting();
        let fault = match always {
            true => setting.registry.fail(op, how.clone()),
            false => setting.registry.fail(op.once(), how.clone()),
        };
        let result = tokio::time::timeout(Duration::from_secs(60), work(&setting)).await;
        let result = result.unwrap_or_else(|_| panic!("{case} hangs:\n{}", setting.registry.story()));
        if let Err(error) = &result {
            setting.check_error(error, &case);
            let must_pass = !always && passes_when_once(&how);
            assert!(!must_pass, "{case}: {error}\n{}", setting.registry.story());
        }
        let asked = setting.registry.requests().len();
        assert!(asked < 60, "{case}: {asked} requests");
        setting.registry.heal();
        setting.check_target();
        // A fault that is over leaves nothing behind in the client.
        let after = work(&setting).await;
        assert!(after.is_ok(), "{case}, then healed: {after:?}\n{}", setting.registry.story());
        setting.check_target();
        fault.fired()
    });
    let fired = stream::iter(runs).buffer_unordered(16).collect::<Vec<_>>().await;
    assert!(fired.iter().filter(|fired| **fired > 0).count() * 10 > fired.len() * 7, "most faults were met");
}

#[tokio::test]
async fn every_fault_of_a_pull_ends_in_success_or_a_typed_error() {
    let work = async |setting: &Setting| setting.pull().await.map_err(|error| error.to_string());
    run_all(&[Op::Token, Op::ManifestHead, Op::ManifestGet, Op::BlobGet], work).await;
}

#[tokio::test]
async fn every_fault_of_a_push_ends_in_success_or_a_typed_error() {
    let work = async |setting: &Setting| setting.push(&[]).await.map_err(|error| error.to_string());
    run_all(
        &[Op::Token, Op::BlobHead, Op::UploadStart, Op::UploadPut, Op::ManifestHead, Op::ManifestPut],
        work,
    )
    .await;
}

#[tokio::test]
async fn no_fault_of_a_mount_ends_a_push() {
    let work = async |setting: &Setting| {
        // Whatever happens to a mount, an upload is an answer.
        setting.push(&["from".to_owned()]).await.expect("a push");
        Ok(())
    };
    run_all(&[Op::Mount], work).await;
}

#[tokio::test]
async fn lasting_faults_have_their_own_errors() {
    type Check = fn(&RegistryError) -> bool;
    let cases: [(How, Check); 11] = [
        (How::Status(401), |e| matches!(e, RegistryError::Unauthorized { .. })),
        (How::Status(403), |e| matches!(e, RegistryError::Forbidden { .. })),
        (How::Status(404), |e| matches!(e, RegistryError::NotFound { .. })),
        (How::RetryAfter { status: 429, seconds: 77 }, |e| e.retry_after() == Some(Duration::from_secs(77))),
        (How::Status(503), |e| matches!(e, RegistryError::Server { status: 503, .. })),
        (How::Reset, |e| matches!(e, RegistryError::Unreachable { .. })),
        (How::Stall, |e| matches!(e, RegistryError::Stalled { .. })),
        (How::StallAfter(100), |e| matches!(e, RegistryError::Stalled { .. })),
        (How::Truncate(100), |e| matches!(e, RegistryError::Truncated { .. })),
        (How::WrongLength(-5), |e| matches!(e, RegistryError::WrongLength { .. })),
        (How::RedirectLoop, |e| matches!(e, RegistryError::RedirectLoop { .. })),
    ];
    for (how, check) in cases {
        let Setting { registry, client, ctx, image } = setting();
        registry.fail(Op::BlobGet, how.clone());
        let blob = layer(&image.layers[0]);
        let error = read(&client, &ctx, &repository(&registry, "from"), &blob, 0).await.expect_err("a fault");
        assert!(check(&error), "{how:?}: {error:?}");
    }
    let Setting { registry, client, ctx, image } = setting();
    registry.go_down();
    let blob = layer(&image.layers[0]);
    let error =
        read(&client, &ctx, &repository(&registry, "from"), &blob, 0).await.expect_err("nobody there");
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "the cause is told: {error}");
}

#[tokio::test]
async fn a_registry_that_lets_go_after_each_piece_is_read_to_the_end() {
    let Setting { registry, client, ctx, .. } = setting();
    let l = Layer::incompressible(0xfa18, 9 << 20);
    registry.put_blob("from", l.digest(), l.source.clone().expect("bytes"));
    registry.fail(Op::BlobGet, How::Truncate(3 << 19));
    let all = read(&client, &ctx, &repository(&registry, "from"), &layer(&l), 0).await.expect("a layer");
    assert_eq!(all, bytes_of(&l));
    let gets = registry.count(Op::BlobGet);
    assert!((6..=9).contains(&gets), "each piece is progress: {gets}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_is_heard() {
    let Setting { registry, client, ctx, .. } = setting();
    let l = Layer::incompressible(0xfa19, 4 << 20);
    for status in [403, 413] {
        let fault = registry.fail(Op::UploadPut, How::EarlyStatus(status));
        let mut opened = 0;
        let to = repository(&registry, "to");
        let error =
            client.upload_blob(&ctx, &to, &layer(&l), None, &mut body(bytes_of(&l), &mut opened)).await;
        let error = error.expect_err("refused");
        assert!(error.to_string().contains("injected") || matches!(error, PushError::Registry(_)), "{error}");
        assert!(!registry.has_blob("to", l.digest()));
        fault.lift();
    }
}
