//! Calls of a frontend: they belong to a build, which is to go on after them.

use thunk::proto::control::SolveRequest;
use thunk::proto::gateway;
use thunk::proto::pb;
use thunk::proto::rpc;
use tokio::task::JoinSet;
use tonic::Code;

use super::check;
use super::definitions::Ops;
use super::request;
use super::soon;
use super::with_daemon;
use crate::harness::Client;
use crate::harness::client::BuildId;

type Bridge = gateway::llb_bridge_client::LlbBridgeClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, BuildId>,
>;

/// A build that waits for its frontend.
struct Frontend {
    bridge: Bridge,
    build: JoinSet<Result<(), tonic::Status>>,
}

impl Frontend {
    async fn start(client: &Client) -> Frontend {
        let request = SolveRequest { definition: None, ..request(pb::Definition::default()) };
        let bridge = client.bridge(&request.r#ref);
        let mut control = client.control();
        let mut build = JoinSet::new();
        build.spawn(async move { control.solve(request).await.map(drop) });
        Frontend { bridge, build }
    }

    /// The ref of a file system with a file.
    async fn solved(&mut self) -> String {
        let mut ops = Ops::default();
        let make = pb::FileActionMkFile {
            path: "/file".to_owned(),
            data: "text".into(),
            timestamp: -1,
            ..Default::default()
        };
        let action = pb::FileAction {
            input: -1,
            secondary_input: -1,
            output: 0,
            action: Some(pb::file_action::Action::Mkfile(make)),
        };
        let file = ops.op(pb::op::Op::File(pb::FileOp { actions: vec![action] }), &[]);
        let solve = gateway::SolveRequest {
            definition: Some(ops.finish(&file)),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let result = self.bridge.solve(solve).await.expect("it is solved").into_inner().result;
        match result.and_then(|result| result.result) {
            Some(gateway::result::Result::Ref(one)) => one.id,
            other => panic!("no ref: {other:?}"),
        }
    }

    async fn ends(mut self) {
        self.bridge.r#return(gateway::ReturnRequest::default()).await.expect("it is taken");
        self.ended().await.expect("it ends well");
    }

    /// How the build has ended.
    async fn ended(&mut self) -> Result<(), tonic::Status> {
        let ended = soon("the build", self.build.join_next()).await.expect("it was started");
        ended.expect("it does not panic")
    }
}

fn image(reference: &str) -> gateway::ResolveImageConfigRequest {
    gateway::ResolveImageConfigRequest { r#ref: reference.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_can_not_be_resolved_is_refused_with_the_reason() {
    with_daemon(async |client| {
        let mut frontend = Frontend::start(client).await;
        let long = "A".repeat(1 << 20);
        let layout = gateway::ResolveImageConfigRequest { resolver_type: 1, ..image("a.example/b") };
        let nobodys = gateway::ResolveImageConfigRequest {
            session_id: "ffffffffffffffffffffffff".to_owned(),
            resolver_type: 1,
            ..image(&format!("a.example/b@sha256:{:064}", 0))
        };
        let mode = gateway::ResolveImageConfigRequest { resolve_mode: "sometimes".to_owned(), ..image("a") };
        let cases = [
            (image(""), ("no name", Code::InvalidArgument, "")),
            (image("../../etc/passwd"), ("a path", Code::InvalidArgument, "../../etc/passwd")),
            (image("a@sha256:12"), ("a digest that is cut", Code::InvalidArgument, "sha256")),
            (image(&long), ("a long name", Code::InvalidArgument, "AAA")),
            (image("127.0.0.1:1/a/b:c"), ("a registry that is none", Code::Unavailable, "127.0.0.1:1")),
            (layout, ("a layout without a digest", Code::InvalidArgument, "a.example/b")),
            (nobodys, ("a layout of nobody", Code::Unavailable, "session")),
            (mode, ("an unknown mode", Code::InvalidArgument, "sometimes")),
        ];
        for (request, refusal) in cases {
            let answer = soon(refusal.0, frontend.bridge.resolve_image_config(request)).await;
            check(&refusal, &answer);
        }
        let source = |identifier: &str| gateway::ResolveSourceMetaRequest {
            source: Some(pb::SourceOp { identifier: identifier.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let cases = [
            (Default::default(), ("no source", Code::InvalidArgument, "source is required")),
            (source("a"), ("no scheme", Code::InvalidArgument, "no scheme")),
            (source("git://a.example/b"), ("an unknown scheme", Code::Unimplemented, "git")),
            (source("http://127.0.0.1:1/a"), ("a server that is none", Code::Unavailable, "127.0.0.1:1")),
            (source(&long), ("a long source", Code::InvalidArgument, "no scheme")),
        ];
        for (request, refusal) in cases {
            let answer = soon(refusal.0, frontend.bridge.resolve_source_meta(request)).await;
            check(&refusal, &answer);
        }
        frontend.ends().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_what_is_not_there_is_refused_with_its_name() {
    with_daemon(async |client| {
        let mut other = Frontend::start(client).await;
        let (strange, long) = (other.solved().await, "x".repeat(1 << 20));
        let mut frontend = Frontend::start(client).await;
        let own = frontend.solved().await;
        for name in [&strange, &long] {
            let says = &name[..20];
            let evaluate = gateway::EvaluateRequest { r#ref: name.clone() };
            let answer = soon("evaluate", frontend.bridge.evaluate(evaluate)).await;
            check(&("a ref of another build", Code::NotFound, says), &answer);
            let read = gateway::ReadFileRequest { r#ref: name.clone(), ..Default::default() };
            let answer = soon("read", frontend.bridge.read_file(read)).await;
            check(&("a file of another build", Code::NotFound, says), &answer);
        }
        let read = |path: &str, range| gateway::ReadFileRequest {
            r#ref: own.clone(),
            file_path: path.to_owned(),
            range,
            mount_index: -1,
        };
        let range = |offset, length| Some(gateway::FileRange { offset, length });
        let outside = "../../../../../../etc/hostname";
        let cases = [
            (read(outside, None), ("a path to the outside", Code::NotFound, "no such file")),
            (read("", None), ("the root", Code::Unknown, "is not a regular file")),
            (read("/a\0b", None), ("a path with a NUL", Code::Unknown, "")),
            (read(&long, None), ("a long path", Code::Unknown, "")),
            (read("/file", range(-1, 4)), ("a range before", Code::InvalidArgument, "-1")),
            (read("/file", range(0, i64::MIN)), ("a range backwards", Code::InvalidArgument, "-922")),
        ];
        for (request, refusal) in cases {
            let answer = soon(refusal.0, frontend.bridge.read_file(request)).await;
            check(&refusal, &answer);
        }
        let beyond = frontend.bridge.read_file(read("/file", range(i64::MAX, i64::MAX))).await;
        assert_eq!(beyond.expect("nothing is there").into_inner().data, "");
        let list =
            gateway::ReadDirRequest { r#ref: own, include_pattern: "[".to_owned(), ..Default::default() };
        let answer = soon("list", frontend.bridge.read_dir(list)).await;
        check(&("a pattern that is none", Code::InvalidArgument, "["), &answer);
        other.ends().await;
        frontend.ends().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_on_the_bridge_is_refused_as_that_of_a_client_is() {
    with_daemon(async |client| {
        let mut frontend = Frontend::start(client).await;
        let long = "x".repeat(1 << 20);
        let single = pb::Definition { def: vec!["".into()], ..Default::default() };
        let cases = [
            (
                gateway::SolveRequest { definition: Some(single), ..Default::default() },
                ("a single op", Code::InvalidArgument, "it needs an op and the result"),
            ),
            (
                gateway::SolveRequest { frontend: long.clone(), ..Default::default() },
                ("a long frontend", Code::Unimplemented, "xxx"),
            ),
            (
                gateway::SolveRequest {
                    frontend: "gateway.v0".to_owned(),
                    definition: Some(Default::default()),
                    ..Default::default()
                },
                ("a definition and a frontend", Code::InvalidArgument, "not both"),
            ),
            (
                gateway::SolveRequest { r#final: true, exporter_attr: "{".into(), ..Default::default() },
                ("attributes that are cut", Code::InvalidArgument, "exporter attributes"),
            ),
            (
                gateway::SolveRequest {
                    cache_imports: vec![gateway::CacheOptionsEntry { r#type: long, ..Default::default() }],
                    ..Default::default()
                },
                ("a long cache", Code::Unimplemented, "xxx"),
            ),
        ];
        for (request, refusal) in cases {
            let answer = soon(refusal.0, frontend.bridge.solve(request)).await;
            check(&refusal, &answer);
        }
        frontend.ends().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_one_result_and_it_is_its_own() {
    with_daemon(async |client| {
        let mut other = Frontend::start(client).await;
        let strange = other.solved().await;
        let mut frontend = Frontend::start(client).await;
        let result = |id: &str| gateway::Result {
            result: Some(gateway::result::Result::Ref(gateway::Ref { id: id.to_owned(), def: None })),
            ..Default::default()
        };
        let returned = gateway::ReturnRequest { result: Some(result(&strange)), error: None };
        let answer = soon("return", frontend.bridge.r#return(returned)).await;
        check(&("a result of another build", Code::NotFound, &strange), &answer);
        other.ends().await;
        // A frontend may fail with anything.
        let error = rpc::Status {
            code: -77,
            message: "m".repeat(1 << 20),
            details: vec![prost_types::Any { type_url: "\u{0}".to_owned(), value: vec![0xff; 1 << 20] }],
        };
        let failed = gateway::ReturnRequest { result: None, error: Some(error) };
        soon("fail", frontend.bridge.r#return(failed)).await.expect("it is taken");
        let answer = frontend.ended().await;
        check(&("a long failure", Code::Unknown, "mmm"), &answer);
        let answer = soon("return", frontend.bridge.r#return(gateway::ReturnRequest::default())).await;
        check(&("a result of a build that is over", Code::NotFound, "no such job"), &answer);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_build_is_refused() {
    with_daemon(async |client| {
        let mut nobody = client.bridge("ffffffffffffffffffffffff");
        let answer = soon("ping", nobody.ping(gateway::PingRequest {})).await;
        check(&("a build that is not there", Code::NotFound, "no such job ffff"), &answer);
        let mut bare = gateway::llb_bridge_client::LlbBridgeClient::new(client.channel());
        let answer = soon("ping", bare.ping(gateway::PingRequest {})).await;
        check(&("no build at all", Code::InvalidArgument, "names its build"), &answer);
        let long = "f".repeat(8 << 10);
        let answer = soon("ping", client.bridge(&long).ping(gateway::PingRequest {})).await;
        check(&("a build with a long name", Code::NotFound, "no such job"), &answer);
        let mut frontend = Frontend::start(client).await;
        let container =
            soon("container", frontend.bridge.new_container(gateway::NewContainerRequest::default())).await;
        check(&("a container", Code::Unimplemented, "containers"), &container);
        let warning = gateway::WarnRequest { digest: "nothing".to_owned(), ..Default::default() };
        let answer = soon("warn", frontend.bridge.warn(warning)).await;
        check(&("a warning about nothing", Code::InvalidArgument, "nothing"), &answer);
        frontend.ends().await;
    })
    .await;
}
