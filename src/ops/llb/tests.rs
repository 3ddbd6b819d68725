use proptest::prelude::*;

use super::*;
use crate::ops::op::DiffOp;
use crate::ops::op::Merge;
use crate::ops::op::RecordType;
use crate::ops::op::ResolveMode;

fn limits() -> Limits {
    Limits::default()
}

/// A definition under construction: ops in order, and metadata.
#[derive(Default)]
struct Builder {
    message: pb::Definition,
}

impl Builder {
    fn op(&mut self, op: Option<pb::op::Op>, inputs: &[VertexDigest]) -> VertexDigest {
        let inputs = inputs.iter().map(|d| pb::Input { digest: d.to_string(), index: 0 }).collect();
        self.raw(pb::Op { inputs, op, ..Default::default() })
    }

    fn raw(&mut self, op: pb::Op) -> VertexDigest {
        let bytes = Bytes::from(op.encode_to_vec());
        let digest = VertexDigest(Digest::sha256(&bytes));
        self.message.def.push(bytes);
        digest
    }

    fn image(&mut self, name: &str) -> VertexDigest {
        self.source(&format!("docker-image://{name}"), &[])
    }

    fn source(&mut self, identifier: &str, attrs: &[(&str, &str)]) -> VertexDigest {
        let attrs = attrs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        self.op(Some(pb::op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs })), &[])
    }

    fn merge(&mut self, inputs: &[VertexDigest]) -> VertexDigest {
        let merged = (0..inputs.len()).map(|input| pb::MergeInput { input: input as i64 }).collect();
        self.op(Some(pb::op::Op::Merge(pb::MergeOp { inputs: merged })), inputs)
    }

    fn metadata(&mut self, of: VertexDigest) -> &mut pb::OpMetadata {
        self.message.metadata.entry(of.to_string()).or_default()
    }

    /// Adds the last op, for `result`.
    fn definition(mut self, result: VertexDigest) -> Arc<Definition> {
        self.op(None, &[result]);
        self.build()
    }

    fn build(self) -> Arc<Definition> {
        Arc::new(Definition::new(self.message))
    }

    fn decode(self, result: VertexDigest) -> Result<Graph, LlbError> {
        self.definition(result).decode(&limits()).map(|graph| graph.expect("there are ops"))
    }
}

#[test]
fn vertices_come_after_their_inputs_under_the_digests_of_their_bytes() {
    let mut b = Builder::default();
    let one = b.image("docker.io/library/one:latest");
    let two = b.image(
        "docker.io/library/two@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    );
    let merge = b.merge(&[one, two, one]);
    let definition = b.definition(merge);
    let graph = definition.decode(&limits()).unwrap().unwrap();
    assert_eq!(graph.result(), Edge { vertex: merge, output: 0 });
    assert_eq!(graph.len(), 3);
    let order: Vec<_> = graph.inputs_first().map(|v| v.digest).collect();
    assert_eq!(order.last(), Some(&merge));
    let vertex = graph.vertex(&merge).unwrap();
    assert_eq!(vertex.op, Op::Merge(Merge { inputs: vec![0, 1, 2] }));
    assert_eq!(vertex.inputs.iter().map(|e| e.vertex).collect::<Vec<_>>(), [one, two, one]);
    assert_eq!(graph.petgraph().edge_count(), 3);
    assert_eq!(graph.definition, definition);
}

#[test]
fn names_are_those_that_clients_know() {
    let mut b = Builder::default();
    let one = b.image("one");
    let two = b.image("two:tag");
    b.metadata(two).description.insert("llb.customname".into(), "[base] second".into());
    let merge = b.merge(&[one, two]);
    let graph = b.decode(merge).unwrap();
    assert_eq!(&*graph.vertex(&one).unwrap().name, "docker-image://one");
    assert_eq!(&*graph.vertex(&merge).unwrap().name, "merge (docker-image://one, [base] second)");
}

#[test]
fn metadata_becomes_options() {
    let mut b = Builder::default();
    let one = b.image("one");
    let metadata = b.metadata(one);
    metadata.ignore_cache = true;
    metadata.export_cache = Some(pb::ExportCache { value: false });
    metadata.progress_group = Some(pb::ProgressGroup { id: "g".into(), name: "group".into(), weak: true });
    metadata.caps.insert("source.image".into(), true);
    let graph = b.decode(one).unwrap();
    let options = &graph.vertex(&one).unwrap().options;
    assert!(options.ignore_cache);
    assert_eq!(options.export_cache, Some(false));
    assert!(options.progress_group.as_ref().unwrap().weak);
}

#[test]
fn an_empty_definition_is_the_empty_result() {
    assert!(Arc::new(Definition::default()).decode(&limits()).unwrap().is_none());
}

#[test]
fn every_attribute_of_an_image_is_parsed() {
    let digest = Digest::sha256("x");
    let attrs = [
        ("image.resolvemode", "pull"),
        ("image.recordtype", "frontend"),
        ("image.layerlimit", "3"),
        ("image.checksum", &digest.to_string()),
        ("image.of.the.future", "1"),
    ];
    let mut b = Builder::default();
    let vertex = b.source("docker-image://localhost:5000/a/b", &attrs);
    let graph = b.decode(vertex).unwrap();
    let Op::Image(image) = &graph.vertex(&vertex).unwrap().op else { panic!() };
    assert_eq!(image.reference.to_string(), "localhost:5000/a/b:latest");
    assert_eq!(image.resolve_mode, ResolveMode::ForcePull);
    assert_eq!(image.record_type, RecordType::Frontend);
    assert_eq!((image.layer_limit, image.checksum), (Some(3), Some(digest)));
}

#[test]
fn every_attribute_of_a_layout_is_parsed() {
    let digest = Digest::sha256("x");
    let mut b = Builder::default();
    let attrs = [("oci.session", "s"), ("oci.store", "base"), ("oci.layerlimit", "1")];
    let vertex = b.source(&format!("oci-layout://some/name:tag@{digest}"), &attrs);
    let graph = b.decode(vertex).unwrap();
    let Op::OciLayout(layout) = &graph.vertex(&vertex).unwrap().op else { panic!() };
    assert_eq!((layout.name.as_str(), layout.tag.as_deref()), ("some/name", Some("tag")));
    assert_eq!(layout.digest, Some(digest));
    assert_eq!((layout.session.as_deref(), layout.store.as_deref()), (Some("s"), Some("base")));
    assert_eq!(layout.layer_limit, Some(1));
}

#[test]
fn what_lbb_knows_and_the_daemon_does_not_is_named() {
    let decode = |kind: pb::op::Op| {
        let mut b = Builder::default();
        let one = b.image("one");
        let op = b.op(Some(kind), &[one]);
        let error = b.decode(op).unwrap_err();
        assert_eq!(error.vertex(), Some(op));
        error.to_string()
    };
    assert_eq!(decode(pb::op::Op::Build(Default::default())), "the build operation is not supported");
    let error = decode(pb::op::Op::Passthrough(Default::default()));
    assert_eq!(error, "the passthrough operation is not supported");

    let mut b = Builder::default();
    let git = b.source("git://example.com/a#b", &[]);
    assert_eq!(b.decode(git).unwrap_err().to_string(), "a source git:// is not supported");

    let mut b = Builder::default();
    let one = b.image("one");
    b.metadata(one).caps.insert("exec.teleport".into(), true);
    assert_eq!(b.decode(one).unwrap_err().to_string(), "capability exec.teleport is not supported");
}

#[test]
fn names_of_steps_are_those_that_clients_know() {
    use pb::file_action::Action;
    let mut b = Builder::default();
    let one = b.image("one");
    let meta = pb::Meta { args: vec!["sh".into(), "-c".into(), "x y".into()], ..Default::default() };
    let root = pb::Mount { dest: "/".into(), ..Default::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts: vec![root], ..Default::default() };
    let run = b.op(Some(pb::op::Op::Exec(exec)), &[one]);
    let action =
        |input, output, action| pb::FileAction { input, output, secondary_input: -1, action: Some(action) };
    let mkdir = Action::Mkdir(pb::FileActionMkDir { path: "/d".into(), ..Default::default() });
    let rm = Action::Rm(pb::FileActionRm { path: "/e".into(), ..Default::default() });
    let actions = vec![action(0, -1, mkdir), action(1, 0, rm)];
    let file = b.op(Some(pb::op::Op::File(pb::FileOp { actions })), &[run]);
    let diff = |lower, upper| {
        pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: lower }),
            upper: Some(pb::UpperDiffInput { input: upper }),
        })
    };
    let changed = b.op(Some(diff(0, 1)), &[one, file]);
    let top = b.op(Some(diff(-1, 0)), &[changed]);
    let graph = b.decode(top).unwrap();
    let name = |digest| graph.vertex(&digest).unwrap().name.to_string();
    assert_eq!(name(run), "sh -c x y");
    assert_eq!(name(file), "mkdir /d, rm /e");
    assert_eq!(name(changed), "diff (docker-image://one) -> (mkdir /d, rm /e)");
    assert!(name(top).starts_with("diff scratch -> (diff (docker-image://one)"), "{}", name(top));
    assert_eq!(graph.vertex(&top).unwrap().op, Op::Diff(DiffOp { lower: None, upper: Some(0) }));
}

#[test]
fn an_output_that_a_step_does_not_have_is_refused() {
    let meta = pb::Meta { args: vec!["true".into()], ..Default::default() };
    let root = pb::Mount { dest: "/".into(), ..Default::default() };
    let secret =
        pb::Mount { dest: "/s".into(), mount_type: pb::MountType::Secret.into(), ..Default::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts: vec![root, secret], ..Default::default() };
    let mut b = Builder::default();
    let one = b.image("one");
    let run = b.op(Some(pb::op::Op::Exec(exec)), &[one]);
    b.raw(pb::Op { inputs: vec![pb::Input { digest: run.to_string(), index: 1 }], ..Default::default() });
    let error = b.build().decode(&limits()).unwrap_err();
    assert!(matches!(error, LlbError::Output { output: 1, .. }), "{error}");
}

#[test]
fn a_diff_of_what_is_not_there_is_refused() {
    let side = |lower: Option<i64>, upper: Option<i64>| {
        let diff = pb::DiffOp {
            lower: lower.map(|input| pb::LowerDiffInput { input }),
            upper: upper.map(|input| pb::UpperDiffInput { input }),
        };
        let mut b = Builder::default();
        let one = b.image("one");
        let op = b.op(Some(pb::op::Op::Diff(diff)), &[one]);
        match b.decode(op).unwrap_err() {
            LlbError::Invalid { reason, .. } => reason.to_string(),
            error => panic!("{error}"),
        }
    };
    assert_eq!(side(None, Some(0)), "there is no lower");
    assert_eq!(side(Some(0), None), "there is no upper");
    assert_eq!(side(Some(0), Some(1)), "upper is 1, and there are 1");
    assert_eq!(side(Some(-2), Some(0)), "lower is -2, and there are 1");
}

#[test]
fn ops_that_the_result_does_not_need_may_be_anything() {
    let mut b = Builder::default();
    let one = b.image("one");
    b.op(Some(pb::op::Op::Exec(Default::default())), &[one]);
    assert_eq!(b.decode(one).unwrap().len(), 1);
}

#[test]
fn a_definition_that_is_none_is_refused_with_the_reason() {
    let mut b = Builder::default();
    b.image("one");
    assert_eq!(b.build().decode(&limits()).unwrap_err(), LlbError::TooFew { count: 1 });

    let mut b = Builder::default();
    b.image("one");
    b.image("two");
    assert_eq!(b.build().decode(&limits()).unwrap_err(), LlbError::NoResult);

    let mut b = Builder::default();
    let digest = b.image("one");
    b.image("one");
    assert_eq!(b.decode(digest).unwrap_err(), LlbError::Duplicate { digest });

    let absent = VertexDigest(Digest::sha256("absent"));
    let mut b = Builder::default();
    b.image("one");
    let op = b.merge(&[absent]);
    let error = b.decode(op).unwrap_err();
    assert_eq!(error, LlbError::Dangling { op, input: 0, digest: absent });

    let mut b = Builder::default();
    let one = b.image("one");
    b.raw(pb::Op { inputs: vec![pb::Input { digest: "sha256:xyz".into(), index: 0 }], ..Default::default() });
    assert!(matches!(b.decode(one).unwrap_err(), LlbError::InputDigest { input: 0, .. }));

    for output in [-1, 1] {
        let mut b = Builder::default();
        let one = b.image("one");
        b.raw(pb::Op {
            inputs: vec![pb::Input { digest: one.to_string(), index: output }],
            ..Default::default()
        });
        let error = b.build().decode(&limits()).unwrap_err();
        assert!(matches!(error, LlbError::Output { output: o, .. } if o == output), "{error}");
    }

    let mut b = Builder::default();
    let one = b.image("one");
    // Field 15 of an op does not exist yet.
    b.message.def.push(Bytes::from_static(&[0x7a, 0x02, 0x08, 0x01]));
    let op = VertexDigest(Digest::sha256([0x7a, 0x02, 0x08, 0x01]));
    let merge = b.merge(&[one, op]);
    assert_eq!(b.decode(merge).unwrap_err(), LlbError::UnknownKind { op });

    let mut b = Builder::default();
    b.message.def.push(Bytes::from_static(b"\xff\xff"));
    b.image("one");
    assert!(matches!(b.build().decode(&limits()).unwrap_err(), LlbError::Op { index: 0, .. }));
}

#[test]
fn attributes_that_make_no_sense_are_refused_with_the_vertex() {
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (identifier, attrs) in [
        ("no scheme", [("", "")]),
        ("docker-image://UPPER", [("", "")]),
        ("docker-image://a", [("image.resolvemode", "maybe")]),
        ("docker-image://a", [("image.recordtype", "maybe")]),
        ("docker-image://a", [("image.layerlimit", "0")]),
        ("docker-image://a", [("image.checksum", "md5:1")]),
        ("oci-layout://a", [("", "")]),
        (&format!("oci-layout://a@{digest}"), [("oci.layerlimit", "-1")]),
    ] {
        let mut b = Builder::default();
        let vertex = b.source(identifier, &attrs);
        let error = b.decode(vertex).unwrap_err();
        assert!(matches!(error, LlbError::Invalid { op, .. } if op == vertex), "{identifier}: {error}");
    }
    let mut b = Builder::default();
    let one = b.image("one");
    let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 1 }] };
    let vertex = b.op(Some(pb::op::Op::Merge(merge)), &[one]);
    assert!(matches!(b.decode(vertex).unwrap_err(), LlbError::Invalid { .. }));
}

#[test]
fn each_limit_holds() {
    let chain = |n: usize| {
        let mut b = Builder::default();
        let mut top = b.image("one");
        for _ in 1..n {
            top = b.merge(&[top]);
        }
        b.definition(top)
    };
    let refused = |limits: Limits, what: &str| match chain(10).decode(&limits).unwrap_err() {
        LlbError::TooLarge { what: found, .. } => assert_eq!(found, what),
        error => panic!("{error}"),
    };
    let limits = Limits { vertices: 11, bytes: 2000, depth: 10, inputs: 1, mounts: 0 };
    assert_eq!(chain(10).decode(&limits).unwrap().unwrap().len(), 10);
    refused(Limits { vertices: 10, ..limits }, "vertices");
    refused(Limits { bytes: 100, ..limits }, "bytes");
    refused(Limits { depth: 9, ..limits }, "vertices in a row");
    refused(Limits { inputs: 0, ..limits }, "inputs of one op");
}

#[test]
fn a_diamond_of_depth_60_decodes_with_names_of_bounded_length() {
    let mut b = Builder::default();
    let mut top = b.image("one");
    for _ in 0..60 {
        top = b.merge(&[top, top]);
    }
    let graph = b.decode(top).unwrap();
    assert_eq!(graph.len(), 61);
    assert!(graph.inputs_first().all(|v| v.name.len() <= MAX_NAME));
    assert!(graph.vertex(&top).unwrap().name.ends_with("..."));
}

#[test]
fn locations_are_found_by_vertex() {
    let mut b = Builder::default();
    let one = b.image("one");
    let range = pb::Range {
        start: Some(pb::Position { line: 3, character: 0 }),
        end: Some(pb::Position { line: 3, character: 9 }),
    };
    let location = pb::Location { source_index: 0, ranges: vec![range] };
    let (again, beyond) = (location.clone(), pb::Location { source_index: 7, ranges: vec![] });
    b.message.source = Some(pb::Source {
        infos: vec![pb::SourceInfo { filename: "Dockerfile".into(), ..Default::default() }],
        locations: [(one.to_string(), pb::Locations { locations: vec![location, beyond, again] })].into(),
    });
    let graph = b.decode(one).unwrap();
    let found = graph.definition.places(&one);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].0.filename, "Dockerfile");
    assert!(Arc::ptr_eq(&found[0].0, &found[1].0), "it is copied once, however often it is named");
    assert_eq!(found[0].1[0].start.line, 3);
}

/// `docker buildx bake` made a state again of a target's result and ended with a nil dereference: it had sent
/// an empty list of places for a vertex without any, and got a vertex without a list.
#[test]
fn places_that_are_none_do_not_come_back() {
    let mut b = Builder::default();
    let one = b.image("docker.io/library/one:latest");
    let two = b.image("docker.io/library/two:latest");
    let place = pb::Location { source_index: 0, ranges: vec![] };
    let source = |infos| pb::Source {
        infos,
        locations: [
            (one.to_string(), pb::Locations { locations: vec![] }),
            (two.to_string(), pb::Locations { locations: vec![place.clone()] }),
        ]
        .into(),
    };
    let file = pb::Definition { source: Some(source(vec![])), ..Default::default() };
    let info = pb::SourceInfo { definition: Some(file), ..Default::default() };
    b.message.source = Some(source(vec![info]));
    let bytes = b.message.encode_to_vec();
    for definition in [b.build(), Arc::new(Definition::from_protobuf(&bytes).unwrap())] {
        let outer = definition.message().source.as_ref().unwrap();
        let inner = outer.infos[0].definition.as_ref().unwrap().source.as_ref().unwrap();
        for source in [outer, inner] {
            assert_eq!(source.locations.keys().collect::<Vec<_>>(), [&two.to_string()]);
        }
    }
}

/// Bytes of a definition that is nearly right: real ops with some of their bytes changed.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (1usize..6, changes).prop_map(|(n, changes)| {
        let mut b = Builder::default();
        let mut top = b.image("docker.io/library/one:latest");
        for _ in 0..n {
            top = b.merge(&[top, top]);
        }
        b.op(None, &[top]);
        let mut bytes = b.message.encode_to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(definition) = Definition::from_protobuf(&bytes) {
            let _ = Arc::new(definition).decode(&limits());
        }
    }

    #[test]
    fn changed_bytes_give_a_graph_in_order_or_a_typed_error(bytes in nearly()) {
        if let Ok(definition) = Definition::from_protobuf(&bytes)
            && let Ok(Some(graph)) = Arc::new(definition).decode(&limits())
        {
            let mut seen = std::collections::HashSet::new();
            for vertex in graph.inputs_first() {
                prop_assert!(vertex.inputs.iter().all(|input| seen.contains(&input.vertex)));
                seen.insert(vertex.digest);
            }
            prop_assert!(seen.contains(&graph.result().vertex));
        }
    }
}
