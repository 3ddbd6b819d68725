//! Solves whose definition is one: everything else in them makes no sense, or is as large as it gets.

use std::collections::BTreeMap;

use thunk::proto::control::CacheOptions;
use thunk::proto::control::CacheOptionsEntry;
use thunk::proto::control::Exporter;
use thunk::proto::control::SolveRequest;
use thunk::proto::pb;
use tokio::task::JoinSet;
use tonic::Code;

use super::Refusal;
use super::check;
use super::definitions::Ops;
use super::definitions::exec;
use super::definitions::mount;
use super::refused;
use super::request;
use super::soon;
use super::with_daemon;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::llb;

fn directory() -> pb::Definition {
    let mut ops = Ops::default();
    let base = ops.directory("/d");
    ops.finish(&base)
}

fn exporting(kind: &str, attributes: &[(&str, &str)]) -> SolveRequest {
    let attrs = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let exporters = vec![Exporter { r#type: kind.to_owned(), attrs }];
    SolveRequest { exporters, ..request(directory()) }
}

fn requests() -> Vec<(SolveRequest, Refusal<'static>)> {
    let attribute = |(key, value): (&str, &str)| exporting("image", &[("name", "a.example/b"), (key, value)]);
    let cache = CacheOptions {
        exports: vec![CacheOptionsEntry { r#type: "cloud".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let both = SolveRequest { frontend: "dockerfile.v0".to_owned(), ..request(directory()) };
    let frontend = SolveRequest { definition: None, ..both.clone() };
    let entitled = SolveRequest { entitlements: vec!["all.of.them".to_owned()], ..request(directory()) };
    let attested = BTreeMap::from([("attest:sbom".to_owned(), String::new())]);
    let nobody = "ffffffffffffffffffffffff";
    let local = |attributes: &[(&str, &str)]| SolveRequest {
        session: nobody.to_owned(),
        ..request(llb::local("context", attributes).definition())
    };
    vec![
        (SolveRequest::default(), ("a build without a ref", Code::InvalidArgument, "a build needs a ref")),
        (both, ("a definition and a frontend", Code::Unimplemented, "both a definition and a frontend")),
        (frontend, ("an unknown frontend", Code::Unimplemented, "dockerfile.v0")),
        (entitled, ("an unknown right", Code::PermissionDenied, "all.of.them")),
        (
            SolveRequest { frontend_attrs: attested, ..request(directory()) },
            ("an attestation", Code::Unimplemented, "attest:sbom"),
        ),
        (
            SolveRequest { cache: Some(cache), ..request(directory()) },
            ("an unknown cache", Code::Unimplemented, "cloud"),
        ),
        (
            SolveRequest { compatibility_version: -4, ..request(directory()) },
            ("a version that never was", Code::InvalidArgument, "-4"),
        ),
        (exporting("floppy", &[]), ("an unknown exporter", Code::Unimplemented, "floppy")),
        (exporting("", &[]), ("an exporter without a type", Code::Unimplemented, "exporter")),
        (
            exporting("image", &[("name", "a b"), ("push", "true")]),
            ("a name that is none", Code::InvalidArgument, "a b"),
        ),
        (attribute(("push", "maybe")), ("a word that is no bool", Code::InvalidArgument, "maybe")),
        (attribute(("compression", "zip")), ("an unknown compression", Code::InvalidArgument, "zip")),
        (
            attribute(("compression-level", "99999999999")),
            ("a level that is no number", Code::InvalidArgument, "99999999999"),
        ),
        (
            attribute(("source-date-epoch", "9223372036854775808")),
            ("a time after all", Code::InvalidArgument, "9223372036854775808"),
        ),
        (
            attribute(("annotation-planet.a", "b")),
            ("an annotation of what is not there", Code::InvalidArgument, "planet"),
        ),
        (exporting("local", &[("mode", "burn")]), ("an unknown mode", Code::InvalidArgument, "burn")),
        (exporting("tar", &[]), ("an export to nobody", Code::Unavailable, "session")),
        (exporting("oci", &[]), ("an archive for nobody", Code::Unavailable, "session")),
        (local(&[]), ("files of nobody", Code::Unavailable, "session")),
        (local(&[("local.session", "another")]), ("files of another nobody", Code::Unavailable, "session")),
        (
            SolveRequest {
                session: nobody.to_owned(),
                ..request(llb::oci_layout("a.example/b", &format!("sha256:{:064}", 0), "s", &[]).definition())
            },
            ("a layout of nobody", Code::Unavailable, "session"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused_with_the_reason() {
    with_daemon(async |client| {
        for (request, refusal) in requests() {
            refused(client, request, &refusal).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ref_is_of_one_build_at_a_time() {
    with_daemon(async |client| {
        // It waits for what its client returns.
        let waiting = SolveRequest { definition: None, ..request(pb::Definition::default()) };
        let (mut control, first) = (client.control(), waiting.clone());
        let mut running = JoinSet::new();
        running.spawn(async move { control.solve(first).await });
        let mut bridge = client.bridge(&waiting.r#ref);
        bridge.ping(thunk::proto::gateway::PingRequest {}).await.expect("the build runs");
        let again = SolveRequest { r#ref: waiting.r#ref.clone(), ..request(directory()) };
        refused(client, again.clone(), &("a ref of a build", Code::AlreadyExists, &waiting.r#ref)).await;
        bridge.r#return(thunk::proto::gateway::ReturnRequest::default()).await.expect("it is taken");
        let ended = soon("the first build", running.join_next()).await.expect("it was started");
        ended.expect("it does not panic").expect("it ends");
        soon("the next build", client.control().solve(again)).await.expect("the ref is free");
    })
    .await;
}

/// Bytes of a text that are more than a person reads, and more than fits into a header.
const LONG: usize = 1 << 20;

fn long_words() -> Vec<(SolveRequest, Refusal<'static>)> {
    let long = "x".repeat(LONG);
    let source = |identifier: String| request(llb::source(&identifier, &[]).definition());
    let run = |change: &dyn Fn(&mut pb::ExecOp)| {
        let pb::op::Op::Exec(mut command) = exec(vec![mount("/", -1, 0)]) else { unreachable!("it is one") };
        change(&mut command);
        let mut ops = Ops::default();
        let run = ops.op(pb::op::Op::Exec(command), &[]);
        request(ops.finish(&run))
    };
    let limit = pb::Ulimit { name: long.clone(), soft: -2, hard: 0 };
    let mut cap = directory();
    let metadata = pb::OpMetadata { caps: [(long.clone(), true)].into(), ..Default::default() };
    let digest = crate::harness::digest::sha256(&cap.def[0]);
    cap.metadata.insert(digest, metadata);
    let mut digest = Ops::default();
    let base = digest.directory("/d");
    digest.add(pb::Op { inputs: vec![pb::Input { digest: long.clone(), index: 0 }], ..Default::default() });
    let image = format!("docker-image://{}", "A".repeat(LONG));
    vec![
        (source(long.clone()), ("a long source", Code::InvalidArgument, "no scheme")),
        (source(format!("{long}://a")), ("a long scheme", Code::Unimplemented, "a source")),
        (source(image), ("a long image", Code::InvalidArgument, "AAA")),
        (source(format!("oci-layout://a@{long}")), ("a long digest", Code::InvalidArgument, "xxx")),
        (source(format!("https://{long}\n/")), ("a long address", Code::InvalidArgument, "address")),
        (request(digest.finish(&base)), ("a long input", Code::InvalidArgument, "is no digest")),
        (request(cap), ("a long capability", Code::Unimplemented, "capability xxx")),
        (
            run(&|op| op.meta.get_or_insert_default().ulimit.push(limit.clone())),
            ("a long limit", Code::InvalidArgument, "ulimit"),
        ),
        (exporting(&long, &[]), ("a long exporter", Code::Unimplemented, "xxx")),
        (exporting("image", &[("push", &long)]), ("a long word", Code::InvalidArgument, "push")),
        (
            exporting("image", &[("name", &long), ("push", "true")]),
            ("a long name", Code::InvalidArgument, "xxx"),
        ),
        (exporting("image", &[("compression", &long)]), ("a long compression", Code::InvalidArgument, "xxx")),
        (
            SolveRequest { frontend: long.clone(), definition: None, ..request(Default::default()) },
            ("a long frontend", Code::Unimplemented, "xxx"),
        ),
        (
            SolveRequest { entitlements: vec![long.clone()], ..request(directory()) },
            ("a long right", Code::PermissionDenied, "xxx"),
        ),
        (
            SolveRequest {
                frontend_attrs: [(format!("attest:{long}"), String::new())].into(),
                ..request(directory())
            },
            ("a long attestation", Code::Unimplemented, "attest:xxx"),
        ),
        (
            SolveRequest { session: long.clone(), ..request(llb::local("a", &[]).definition()) },
            ("a long session", Code::Unavailable, "session"),
        ),
    ]
}

/// A text that is larger than a header ended the connection, so that all who were on it learned nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_about_something_long_is_short() {
    with_daemon(async |client| {
        for (request, refusal) in long_words() {
            refused(client, request, &refusal).await;
        }
    })
    .await;
}

/// What is said of an op travels with its error.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_told_however_much_is_said_of_its_op() {
    with_daemon(async |client| {
        let mut definition = llb::local("nowhere", &[]).definition();
        let op = crate::harness::digest::sha256(&definition.def[0]);
        let location = pb::Location { source_index: 0, ranges: vec![Default::default(); 100] };
        definition.source = Some(pb::Source {
            locations: [(op.clone(), pb::Locations { locations: vec![location; 1000] })].into(),
            infos: vec![pb::SourceInfo {
                filename: "Dockerfile".to_owned(),
                data: vec![b'#'; 8 << 20].into(),
                ..Default::default()
            }],
        });
        let metadata = definition.metadata.entry(op).or_default();
        metadata.description.insert("llb.customname".to_owned(), "y".repeat(LONG));
        metadata.description.insert("comment".to_owned(), "z".repeat(LONG));
        metadata.progress_group = Some(pb::ProgressGroup { id: "g".repeat(LONG), ..Default::default() });
        refused(client, request(definition), &("all that can be said", Code::Unavailable, "session")).await;
    })
    .await;
}

/// Platforms that nothing is for.
#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_platform_is_refused_with_its_name() {
    let registry = TestRegistry::open();
    let layer = Layer::files([("file", "text")]);
    let children =
        ["linux/amd64", "linux/arm64"].map(|p| Image::builder().platform(p).layer(layer.clone()).build());
    registry.put_image("both", "v1", &Image::index(children));
    with_daemon(async |client| {
        let long = "q".repeat(LONG);
        for (os, says) in [("plan9\u{0}\n/../", "plan9"), ("", "plan"), (&long, "qqq")] {
            let image = llb::image(registry.reference("both", "v1"));
            let mut definition = image.definition();
            let mut op: pb::Op = prost::Message::decode(&definition.def[0][..]).expect("our own");
            let os = if os.is_empty() { "plan" } else { os };
            op.platform = Some(pb::Platform {
                os: os.to_owned(),
                architecture: "vax".to_owned(),
                ..Default::default()
            });
            let mut ops = Ops::default();
            let image = ops.add(op);
            definition = ops.finish(&image);
            let answer = soon("a platform", client.control().solve(request(definition))).await;
            check(&("a platform", Code::NotFound, says), &answer);
        }
    })
    .await;
}

/// As many mounts as a definition may have.
#[tokio::test(flavor = "multi_thread")]
async fn as_many_mounts_as_are_allowed_are_mounted_soon() {
    with_daemon(async |client| {
        let mounts = (0..1999).map(|n| pb::Mount { mount_type: 4, ..mount(&format!("/m{n}"), -1, -1) });
        let mut ops = Ops::default();
        let run = ops.op(exec(std::iter::once(mount("/", -1, 0)).chain(mounts).collect()), &[]);
        // There is nothing to run.
        let refusal = ("as many mounts as are allowed", Code::Unknown, "exit code: ");
        refused(client, request(ops.finish(&run)), &refusal).await;
    })
    .await;
}
