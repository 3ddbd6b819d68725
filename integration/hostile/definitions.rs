//! Definitions that make no sense, and those that are as large as they get.

use prost::Message as _;
use thunk::proto::pb;
use thunk::proto::pb::file_action::Action;
use thunk::proto::pb::op::Op;
use tonic::Code;

use super::Refusal;
use super::refused;
use super::request;
use super::soon;
use super::with_daemon;
use crate::harness::digest::sha256;

/// A definition that need not be one.
#[derive(Default)]
pub(super) struct Ops(pub(super) pb::Definition);

impl Ops {
    pub(super) fn add(&mut self, op: pb::Op) -> String {
        let bytes = op.encode_to_vec();
        let digest = sha256(&bytes);
        self.0.def.push(bytes.into());
        digest
    }

    pub(super) fn op(&mut self, op: Op, inputs: &[&str]) -> String {
        let inputs = inputs.iter().map(|digest| input(digest, 0)).collect();
        self.add(pb::Op { inputs, op: Some(op), ..Default::default() })
    }

    /// A directory in an empty file system.
    pub(super) fn directory(&mut self, path: &str) -> String {
        self.op(Op::File(pb::FileOp { actions: vec![make(path, -1, 0)] }), &[])
    }

    pub(super) fn finish(mut self, result: &str) -> pb::Definition {
        self.add(pb::Op { inputs: vec![input(result, 0)], ..Default::default() });
        self.0
    }
}

fn input(digest: &str, index: i64) -> pb::Input {
    pb::Input { digest: digest.to_owned(), index }
}

fn make(path: &str, input: i64, output: i64) -> pb::FileAction {
    let mkdir =
        pb::FileActionMkDir { path: path.to_owned(), mode: 0o755, timestamp: -1, ..Default::default() };
    pb::FileAction { input, secondary_input: -1, output, action: Some(Action::Mkdir(mkdir)) }
}

/// One op on a directory.
fn one(op: Op) -> pb::Definition {
    let mut ops = Ops::default();
    let base = ops.directory("/d");
    let op = ops.op(op, &[&base]);
    ops.finish(&op)
}

fn files(actions: Vec<pb::FileAction>) -> pb::Definition {
    one(Op::File(pb::FileOp { actions }))
}

pub(super) fn exec(mounts: Vec<pb::Mount>) -> Op {
    let meta = pb::Meta { args: vec!["true".to_owned()], ..Default::default() };
    Op::Exec(pb::ExecOp { meta: Some(meta), mounts, ..Default::default() })
}

pub(super) fn mount(dest: &str, input: i64, output: i64) -> pb::Mount {
    pb::Mount { dest: dest.to_owned(), input, output, ..Default::default() }
}

fn merge(inputs: impl IntoIterator<Item = i64>) -> Op {
    Op::Merge(pb::MergeOp { inputs: inputs.into_iter().map(|input| pb::MergeInput { input }).collect() })
}

/// Inputs that lead in a circle or nowhere. A circle of true digests can't be made.
fn edges() -> Vec<(pb::Definition, Refusal<'static>)> {
    let nowhere = sha256(b"nowhere");
    let mut circle = Ops::default();
    let second = circle.op(merge([0]), &[&nowhere]);
    circle.op(merge([0, 0]), &[&second]);
    let mut none = Ops::default();
    none.directory("/d");
    let mut twice = Ops::default();
    let base = twice.directory("/d");
    twice.directory("/d");
    let output = |index| {
        let mut ops = Ops::default();
        let base = ops.directory("/d");
        ops.add(pb::Op { inputs: vec![input(&base, index)], ..Default::default() });
        ops.0
    };
    let mut text = Ops::default();
    let base_of_text = text.directory("/d");
    text.op(merge([0]), &["sha256:../../etc"]);
    let mut bytes = Ops::default();
    let base_of_bytes = bytes.directory("/d");
    bytes.0.def.push(vec![0xff; 9].into());
    let mut new = Ops::default();
    new.0.def.push(vec![0x7a, 0].into());
    let unknown = sha256([0x7a, 0]);
    vec![
        (circle.finish(&second), ("a circle", Code::InvalidArgument, "which is not in the definition")),
        (one(merge([1])), ("a merge of what is not there", Code::InvalidArgument, "is 1, and there are 1")),
        (none.0, ("a single op", Code::InvalidArgument, "it needs an op and the result")),
        (twice.finish(&base), ("an op that is there twice", Code::InvalidArgument, "twice")),
        (output(-1), ("a negative output", Code::InvalidArgument, "output -1")),
        (output(i64::MAX), ("an output that is not there", Code::InvalidArgument, "has no such output")),
        (text.finish(&base_of_text), ("an input that is no digest", Code::InvalidArgument, "is no digest")),
        (bytes.finish(&base_of_bytes), ("bytes that are no op", Code::InvalidArgument, "can't be decoded")),
        (new.finish(&unknown), ("an op of the future", Code::Unimplemented, "not known here")),
    ]
}

fn ops() -> Vec<(pb::Definition, Refusal<'static>)> {
    let copy = pb::FileActionCopy { src: "/a".to_owned(), dest: "/b".to_owned(), ..Default::default() };
    let copy = pb::FileAction { input: 0, secondary_input: 7, output: 0, action: Some(Action::Copy(copy)) };
    let loops = vec![make("/a", 2, 0), make("/b", 1, -1)];
    let gap = vec![make("/a", 0, 5)];
    let duplicate = vec![make("/a", 0, 0), make("/b", 0, 0)];
    let kindless = vec![pb::FileAction { action: None, ..make("/a", 0, 0) }];
    let nul = vec![make("/a\0b", 0, 0)];
    let diff = pb::DiffOp { lower: None, upper: Some(pb::UpperDiffInput { input: 0 }) };
    let source = pb::SourceOp { identifier: "nothing".to_owned(), ..Default::default() };
    let mut with_inputs = Ops::default();
    let base = with_inputs.directory("/d");
    let sourced = with_inputs.op(Op::Source(source.clone()), &[&base]);
    let tmpfs = pb::Mount { mount_type: pb::MountType::Tmpfs.into(), ..mount("/", -1, -1) };
    let kind = pb::Mount { mount_type: 77, ..mount("/m", -1, -1) };
    let root = || mount("/", 0, 0);
    vec![
        (files(Vec::new()), ("no action", Code::InvalidArgument, "has no such output")),
        (
            files(vec![copy]),
            ("a copy from nowhere", Code::InvalidArgument, "secondaryInput of action 0 is 7"),
        ),
        (files(loops), ("actions in a circle", Code::InvalidArgument, "needs its own result")),
        (files(gap), ("outputs with a gap", Code::InvalidArgument, "there is no output 0")),
        (files(duplicate), ("an output of two actions", Code::InvalidArgument, "output 0 is there twice")),
        (
            files(vec![make("/a", -9, 0)]),
            ("a negative input", Code::InvalidArgument, "input of action 0 is -9"),
        ),
        (
            files(vec![make("/a", 0, 0), make("/b", 0, -9)]),
            ("a negative output", Code::InvalidArgument, "output of action 1 is -9"),
        ),
        (files(kindless), ("an action that does nothing", Code::InvalidArgument, "kind of action 0")),
        (files(nul), ("a path with a NUL", Code::InvalidArgument, "NUL")),
        (one(Op::Diff(diff)), ("a diff of one side", Code::InvalidArgument, "there is no lower")),
        (
            one(Op::Build(Default::default())),
            ("a build in a build", Code::Unimplemented, "the build operation"),
        ),
        (
            with_inputs.finish(&sourced),
            ("a source of something", Code::InvalidArgument, "a source has no inputs"),
        ),
        (
            one(exec(vec![mount("/m", -1, 0)])),
            ("a command without a root", Code::InvalidArgument, "mount at /"),
        ),
        (
            one(Op::Exec(pb::ExecOp { mounts: vec![root()], ..Default::default() })),
            ("a command without one", Code::InvalidArgument, "there is no meta"),
        ),
        (
            one(exec(vec![tmpfs, mount("/m", -1, 0)])),
            ("a root in memory", Code::InvalidArgument, "another kind than bind"),
        ),
        (
            one(exec(vec![mount("/", 3, 0)])),
            ("a root from nowhere", Code::InvalidArgument, "input of mount 0 is 3"),
        ),
        (
            one(exec(vec![root(), kind])),
            ("a mount of the future", Code::InvalidArgument, "mountType of mount 1"),
        ),
        (
            one(exec(vec![root(), mount("", -1, -1)])),
            ("a mount nowhere", Code::InvalidArgument, "dest of mount 1"),
        ),
        (
            one(exec(vec![root(), mount("/m", -1, -7)])),
            ("a negative output", Code::InvalidArgument, "output of mount 1 is -7"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_makes_no_sense_is_refused_with_the_reason() {
    with_daemon(async |client| {
        for (definition, refusal) in edges().into_iter().chain(ops()) {
            refused(client, request(definition), &refusal).await;
        }
        // What is empty is the empty file system.
        let mut control = client.control();
        let empty = control.solve(request(pb::Definition::default()));
        soon("an empty definition", empty).await.expect("it is solved");
    })
    .await;
}

/// Many small things in few bytes.
fn crowds() -> Vec<(pb::Definition, Refusal<'static>)> {
    let crowd = 8_000_000;
    // Fields without a value, of a file op and of a command.
    let tiny = |number: u8| [[number << 3 | 2, 0].repeat(crowd - 16)].concat();
    let whole = |kind: u8, inner: Vec<u8>| {
        let mut op = vec![kind << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut op);
        op.extend(inner);
        let digest = sha256(&op);
        let mut ops = Ops::default();
        ops.0.def.push(op.into());
        ops.finish(&digest)
    };
    let mounts = (0..200_000).map(|n| pb::Mount { mount_type: 4, ..mount(&format!("/m{n}"), -1, -1) });
    let actions = (0..200_000).map(|n| make("/a", if n == 0 { 0 } else { n }, if n == 0 { 0 } else { -1 }));
    vec![
        (whole(4, tiny(2)), ("millions of actions", Code::ResourceExhausted, "are allowed")),
        (whole(2, tiny(2)), ("millions of mounts", Code::ResourceExhausted, "are allowed")),
        (whole(6, tiny(1)), ("millions of merged inputs", Code::ResourceExhausted, "are allowed")),
        (
            one(exec(std::iter::once(mount("/", 0, 0)).chain(mounts).collect())),
            ("many mounts", Code::ResourceExhausted, "mounts of one op"),
        ),
        (files(actions.collect()), ("many actions", Code::ResourceExhausted, "actions of one op")),
        (
            one(merge(vec![0; 200_000])),
            ("many merged inputs", Code::ResourceExhausted, "merged inputs of one op"),
        ),
        (
            {
                let mut ops = Ops::default();
                let base = ops.directory("/d");
                let all = ops.op(merge(0..150_000), &vec![&*base; 150_000]);
                ops.finish(&all)
            },
            ("many inputs", Code::ResourceExhausted, "inputs of one op"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_in_a_definition_is_refused_before_it_takes_memory() {
    with_daemon(async |client| {
        for (definition, refusal) in crowds() {
            refused(client, request(definition), &refusal).await;
        }
    })
    .await;
}

/// Ways that multiply with each level, over many edges: a result all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_graph_with_many_edges_is_solved_soon() {
    with_daemon(async |client| {
        let mut ops = Ops::default();
        let diff = pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: -1 }),
            upper: Some(pb::UpperDiffInput { input: -1 }),
        };
        let mut top = ops.op(Op::Diff(diff), &[]);
        for _ in 0..100 {
            top = ops.op(merge(0..200), &vec![&*top; 200]);
        }
        soon("many edges", client.control().solve(request(ops.finish(&top)))).await.expect("it is solved");
    })
    .await;
}

/// Each level has twice the layers of the one below: no definition is to be worth more than it says.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_double_with_each_level_are_refused() {
    with_daemon(async |client| {
        let mut ops = Ops::default();
        let mut top = ops.directory("/d");
        for _ in 0..50 {
            top = ops.op(merge([0, 1]), &[&top, &top]);
        }
        let refusal = ("2^50 layers", Code::ResourceExhausted, "layers");
        refused(client, request(ops.finish(&top)), &refusal).await;
    })
    .await;
}
