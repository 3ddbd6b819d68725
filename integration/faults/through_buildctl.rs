//! What a person at `buildctl` sees of a fault.

use super::impatient;
use super::matrix::SOURCE;
use super::matrix::TAG;
use super::matrix::TARGET;
use crate::harness::Buildctl;
use crate::harness::Daemon;
use crate::harness::How;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::llb;
use crate::harness::registry::Op;
use crate::harness::registry::Point;
use crate::harness::verify_blobs;

/// Where it goes wrong, how, and what an error must name.
type Case = (fn(&Image) -> Point, How, fn(&Image) -> String);

fn layer(image: &Image) -> String {
    image.layers[0].digest().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_place_and_the_next_try_succeeds() {
    let daemon = Daemon::start_with(impatient(""));
    let Some(buildctl) = Buildctl::of(&daemon) else { return };
    let cases: [Case; 7] = [
        (|_| Op::ManifestHead.into(), How::Status(404), |_| ":v1".to_owned()),
        (|_| Op::ManifestGet.into(), How::FlipByte(10), |image| image.digest().to_owned()),
        (|image| Op::BlobGet.of(layer(image)), How::Status(404), layer),
        (|image| Op::BlobGet.of(layer(image)), How::FlipByte(1000), layer),
        (|image| Op::BlobGet.of(layer(image)), How::Truncate(1000), layer),
        (|image| Op::UploadPut.of(layer(image)), How::Status(500), layer),
        (|_| Op::ManifestPut.into(), How::Status(403), |_| ":v1".to_owned()),
    ];
    for (n, (spot, how, subject)) in cases.into_iter().enumerate() {
        let (from, to) = (TestRegistry::open(), TestRegistry::open());
        let image = Image::incompressible(0xfc_0000 + n as u64, 1, 50 << 10);
        from.put_image(SOURCE, TAG, &image);
        let point = spot(&image);
        for registry in [&from, &to] {
            // The target is asked for its tag, too, which is not there.
            if n > 0 || registry.host() == from.host() {
                registry.fail(point.clone(), how.clone());
            }
        }
        let name = to.reference(TARGET, TAG);
        let push = format!("type=image,name={name},push=true");
        let definition = llb::image(from.reference(SOURCE, TAG)).marshal();
        let said = buildctl.build(&definition, &[&push]).await.failure();
        let error = said.lines().rev().find(|line| line.starts_with("error:")).unwrap_or(&said);
        let host = if n < 5 { from.host() } else { to.host() };
        for part in [&host, "team/", &subject(&image)] {
            assert!(error.contains(part), "case {n} does not name {part}:\n{said}");
        }
        assert!(to.manifest(TARGET, TAG).is_none());
        verify_blobs(&daemon.root());
        from.heal();
        to.heal();
        buildctl.build(&definition, &[&push]).await.success();
        assert!(to.manifest(TARGET, TAG).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_pass_are_not_noticed() {
    let daemon = Daemon::start_with(impatient(""));
    let Some(buildctl) = Buildctl::of(&daemon) else { return };
    let (from, to) = (TestRegistry::open(), TestRegistry::open());
    let image = Image::incompressible(0xfc_1000, 2, 100 << 10);
    from.put_image(SOURCE, TAG, &image);
    for (op, how) in [
        (Op::ManifestHead, How::Reset),
        (Op::ManifestGet, How::Status(503)),
        (Op::BlobGet, How::Truncate(100)),
    ] {
        from.fail(op.once(), how);
    }
    for (op, how) in [
        (Op::BlobHead, How::Status(500)),
        (Op::UploadStart, How::Status(429)),
        (Op::UploadPut, How::ResetAfter(1000)),
        (Op::ManifestPut, How::LoseReply),
    ] {
        to.fail(op.once(), how);
    }
    let push = format!("type=image,name={},push=true", to.reference(TARGET, TAG));
    let definition = llb::image(from.reference(SOURCE, TAG)).marshal();
    buildctl.build(&definition, &[&push]).await.success();
    assert!(to.manifest(TARGET, TAG).is_some());
    to.until(|to| to.open_uploads() == 0).await;
}
