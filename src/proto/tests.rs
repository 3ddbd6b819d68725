use prost::Message;
use tonic::server::NamedService;

use super::errdefs;
use super::json;
use super::pb;

#[test]
fn services_have_the_names_that_clients_call() {
    fn name<S: NamedService>() -> &'static str {
        S::NAME
    }
    type Unserved = ();

    let names = [
        name::<super::control::control_server::ControlServer<Unserved>>(),
        name::<super::gateway::llb_bridge_server::LlbBridgeServer<Unserved>>(),
        name::<super::health::health_server::HealthServer<Unserved>>(),
        name::<super::content::content_server::ContentServer<Unserved>>(),
        name::<super::auth::auth_server::AuthServer<Unserved>>(),
        name::<super::filesync::file_sync_server::FileSyncServer<Unserved>>(),
        name::<super::filesync::file_send_server::FileSendServer<Unserved>>(),
        name::<super::upload::upload_server::UploadServer<Unserved>>(),
        name::<super::secrets::secrets_server::SecretsServer<Unserved>>(),
        name::<super::sshforward::ssh_server::SshServer<Unserved>>(),
        name::<super::exporter::exporter_server::ExporterServer<Unserved>>(),
        name::<super::policysession::policy_verifier_server::PolicyVerifierServer<Unserved>>(),
    ];

    assert_eq!(
        names,
        [
            "moby.buildkit.v1.Control",
            "moby.buildkit.v1.frontend.LLBBridge",
            "grpc.health.v1.Health",
            "containerd.services.content.v1.Content",
            "moby.filesync.v1.Auth",
            "moby.filesync.v1.FileSync",
            "moby.filesync.v1.FileSend",
            "moby.upload.v1.Upload",
            "moby.buildkit.secrets.v1.Secrets",
            "moby.sshforward.v1.SSH",
            "moby.exporter.v1.Exporter",
            "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier",
        ]
    );
}

#[test]
fn a_source_location_has_the_json_that_clients_print_from() {
    let source = errdefs::Source {
        info: Some(pb::SourceInfo {
            filename: "Dockerfile".to_owned(),
            data: "FROM x\n".into(),
            language: "Dockerfile".to_owned(),
            ..Default::default()
        }),
        ranges: vec![pb::Range {
            start: Some(pb::Position { line: 3, character: 0 }),
            end: Some(pb::Position { line: 3, character: 7 }),
        }],
    };

    let text = serde_json::to_string(&source).unwrap();

    assert_eq!(
        text,
        r#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4Cg==","language":"Dockerfile"},"#.to_owned()
            + r#""ranges":[{"start":{"line":3},"end":{"line":3,"character":7}}]}"#
    );
    assert_eq!(json::read::<errdefs::Source>(text.as_bytes()).unwrap(), source);
}

#[test]
fn a_vertex_of_an_error_has_the_json_that_clients_know() {
    let vertex = errdefs::Vertex { digest: "sha256:00".to_owned() };

    assert_eq!(serde_json::to_string(&vertex).unwrap(), r#"{"digest":"sha256:00"}"#);
}

#[test]
fn an_op_is_read_from_the_json_of_dump_llb() {
    let op: pb::Op = json::read(
        br#"{"inputs":[{"digest":"sha256:11","index":1},{"digest":"sha256:22"}],
            "Op":{"merge":{"inputs":[{},{"input":1}]}},
            "platform":{"Architecture":"amd64","OS":"linux"},"constraints":{}}"#,
    )
    .unwrap();

    let expected = pb::Op {
        inputs: vec![
            pb::Input { digest: "sha256:11".to_owned(), index: 1 },
            pb::Input { digest: "sha256:22".to_owned(), index: 0 },
        ],
        op: Some(pb::op::Op::Merge(pb::MergeOp {
            inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
        })),
        platform: Some(pb::Platform {
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            ..Default::default()
        }),
        constraints: Some(pb::WorkerConstraints::default()),
    };
    assert_eq!(op, expected);
}

#[test]
fn an_empty_oneof_has_no_value_except_user_zero() {
    let last: pb::Op = json::read(br#"{"inputs":[{"digest":"sha256:11"}],"Op":{}}"#).unwrap();
    let root: pb::ChownOpt =
        json::read(br#"{"user":{"User":{}},"group":{"User":{"byName":{"name":"staff","input":-1}}}}"#)
            .unwrap();

    assert_eq!(last.op, None);
    assert_eq!(root.user.unwrap().user, Some(pb::user_opt::User::ById(0)));
    assert_eq!(
        root.group.unwrap().user,
        Some(pb::user_opt::User::ByName(pb::NamedUserOpt { name: "staff".to_owned(), input: -1 }))
    );
}

#[test]
fn bytes_that_are_not_base64_are_refused() {
    json::read::<pb::SourceInfo>(br#"{"data":"%"}"#).unwrap_err();
}

#[test]
fn an_op_survives_its_own_json() {
    let op = pb::Op {
        op: Some(pb::op::Op::File(pb::FileOp {
            actions: vec![pb::FileAction {
                input: -1,
                secondary_input: -1,
                output: 0,
                action: Some(pb::file_action::Action::Mkfile(pb::FileActionMkFile {
                    path: "/a".to_owned(),
                    mode: 0o644,
                    data: vec![0, 255].into(),
                    timestamp: -1,
                    owner: Some(pb::ChownOpt {
                        user: Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(7)) }),
                        group: None,
                    }),
                })),
            }],
        })),
        ..Default::default()
    };

    let text = serde_json::to_vec(&op).unwrap();

    assert_eq!(json::read::<pb::Op>(&text).unwrap(), op);
}

#[test]
fn equal_messages_encode_equally() {
    let attrs = |names: [&str; 3]| pb::SourceOp {
        identifier: "docker-image://a".to_owned(),
        attrs: names.map(|name| (name.to_owned(), String::new())).into(),
    };

    assert_eq!(attrs(["a", "b", "c"]).encode_to_vec(), attrs(["c", "a", "b"]).encode_to_vec());
}

#[test]
fn protojson_has_the_set_field_of_a_oneof_in_its_message() {
    let user = pb::UserOpt { user: Some(pb::user_opt::User::ById(7)) };
    let mkdir = pb::FileActionMkDir {
        path: "/x".to_owned(),
        owner: Some(pb::ChownOpt { user: Some(user), group: None }),
        ..Default::default()
    };
    let action = pb::FileAction {
        input: 1,
        action: Some(pb::file_action::Action::Mkdir(mkdir)),
        ..Default::default()
    };
    let file = pb::FileOp { actions: vec![action, pb::FileAction::default()] };
    let solve = errdefs::Solve {
        mount_ids: vec!["m".to_owned()],
        op: Some(pb::Op { op: Some(pb::op::Op::File(file)), ..Default::default() }),
        subject: Some(errdefs::solve::Subject::File(errdefs::FileAction { index: 1 })),
        ..Default::default()
    };

    let expected = serde_json::json!({
        "mountIDs": ["m"],
        "op": {"file": {"actions": [
            {"input": 1, "mkdir": {"path": "/x", "owner": {"user": {"byID": 7}}}},
            {},
        ]}},
        "file": {"index": 1},
    });
    assert_eq!(json::protojson(&solve).unwrap(), expected);
}
