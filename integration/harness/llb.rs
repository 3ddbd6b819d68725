//! Builds LLB definitions as BuildKit's Go client does: operations by digest of their bytes,
//! dependencies first, a last one without a kind that names the result.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use prost::Message as _;
use thunk::proto::pb;

use super::digest::sha256;
use super::image::Platform;

/// An output of an operation with all that it depends on. Cheap enough to clone.
#[derive(Clone, Debug)]
pub struct State {
    /// Dependencies first; the last one is this state's.
    operations: Vec<Arc<Operation>>,
    output: i64,
}

#[derive(Clone, Debug)]
struct Operation {
    digest: String,
    bytes: Vec<u8>,
    metadata: pb::OpMetadata,
}

/// An image from a registry: `docker-image://<reference>`.
pub fn image(reference: impl AsRef<str>) -> State {
    image_with(reference, &[])
}

/// The same with attributes, such as `("image.resolvemode", "pull")`.
pub fn image_with(reference: impl AsRef<str>, attributes: &[(&str, &str)]) -> State {
    source(&format!("docker-image://{}", reference.as_ref()), attributes)
}

/// An image in a client's OCI layout: `oci-layout://<name>@<digest>`, where the name is a reference
/// with a host (`example.com/base`), from the client's store `store`.
pub fn oci_layout(name: &str, digest: &str, store: &str, attributes: &[(&str, &str)]) -> State {
    let attributes = [&[("oci.store", store)], attributes].concat();
    source(&format!("oci-layout://{name}@{digest}"), &attributes)
}

/// Any source.
pub fn source(identifier: &str, attributes: &[(&str, &str)]) -> State {
    let attrs = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let source = pb::SourceOp { identifier: identifier.to_owned(), attrs };
    State::from_op(pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }, &[])
}

/// The inputs over each other, the lowest first.
pub fn merge(inputs: impl IntoIterator<Item = State>) -> State {
    let inputs: Vec<_> = inputs.into_iter().collect();
    let edges = (0..inputs.len() as i64).map(|input| pb::MergeInput { input }).collect();
    let merge = pb::op::Op::Merge(pb::MergeOp { inputs: edges });
    State::from_op(pb::Op { op: Some(merge), ..pb::Op::default() }, &inputs)
}

/// What makes `upper` of `lower`.
pub fn diff(lower: &State, upper: &State) -> State {
    let diff = pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: 0 }),
        upper: Some(pb::UpperDiffInput { input: 1 }),
    };
    let op = pb::op::Op::Diff(diff);
    State::from_op(pb::Op { op: Some(op), ..pb::Op::default() }, &[lower.clone(), upper.clone()])
}

/// What a file operation does, on its first input.
#[derive(Clone, Debug)]
pub enum Action<'a> {
    MkFile {
        path: &'a str,
        data: &'a [u8],
    },
    MkDir {
        path: &'a str,
    },
    Rm {
        path: &'a str,
    },
    /// From the operation's second input.
    Copy {
        from: &'a str,
        to: &'a str,
    },
}

/// One action on `base`, which may be nothing; `source` is what a copy copies from.
pub fn file(base: Option<&State>, source: Option<&State>, action: &Action<'_>) -> State {
    let inputs: Vec<State> = base.into_iter().chain(source).cloned().collect();
    let action = match *action {
        Action::MkFile { path, data } => pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: path.to_owned(),
            mode: 0o644,
            data: data.to_vec().into(),
            timestamp: -1,
            ..Default::default()
        }),
        Action::MkDir { path } => pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: path.to_owned(),
            mode: 0o755,
            make_parents: true,
            timestamp: -1,
            ..Default::default()
        }),
        Action::Rm { path } => {
            pb::file_action::Action::Rm(pb::FileActionRm { path: path.to_owned(), ..Default::default() })
        }
        Action::Copy { from, to } => pb::file_action::Action::Copy(pb::FileActionCopy {
            src: from.to_owned(),
            dest: to.to_owned(),
            mode: -1,
            create_dest_path: true,
            timestamp: -1,
            ..Default::default()
        }),
    };
    let secondary = if source.is_some() { inputs.len() as i64 - 1 } else { -1 };
    let action = pb::FileAction {
        input: if base.is_some() { 0 } else { -1 },
        secondary_input: secondary,
        output: 0,
        action: Some(action),
    };
    let file = pb::op::Op::File(pb::FileOp { actions: vec![action] });
    State::from_op(pb::Op { op: Some(file), ..pb::Op::default() }, &inputs)
}

/// `sh -c script` in `root`, whose changes are the result.
pub fn sh(root: &State, script: &str) -> State {
    sh_with(root, script, Vec::new())
}

/// The same with a cache mount of this ID at `/cache`.
pub fn sh_caching(root: &State, id: &str, script: &str) -> State {
    let mount = pb::Mount {
        input: -1,
        dest: "/cache".to_owned(),
        output: -1,
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(pb::CacheOpt { id: id.to_owned(), sharing: pb::CacheSharingOpt::Shared.into() }),
        ..Default::default()
    };
    sh_with(root, script, vec![mount])
}

fn sh_with(root: &State, script: &str, mounts: Vec<pb::Mount>) -> State {
    let meta = pb::Meta {
        args: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).into(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        ..Default::default()
    };
    let mount = pb::Mount { input: 0, dest: "/".to_owned(), output: 0, ..Default::default() };
    let mounts = std::iter::once(mount).chain(mounts).collect();
    let exec = pb::ExecOp { meta: Some(meta), mounts, ..Default::default() };
    let op = pb::op::Op::Exec(exec);
    State::from_op(pb::Op { op: Some(op), ..pb::Op::default() }, std::slice::from_ref(root))
}

/// A directory of the client, by the name that it gave it.
pub fn local(name: &str, attributes: &[(&str, &str)]) -> State {
    source(&format!("local://{name}"), attributes)
}

impl State {
    /// Any operation over `inputs`, whose edges are filled in; the platform is the host's if none is set.
    pub fn from_op(mut op: pb::Op, inputs: &[State]) -> Self {
        op.inputs = inputs.iter().map(State::edge).collect();
        if op.platform.is_none() {
            op.platform = Some(platform(&super::image::host_platform()));
        }
        op.constraints.get_or_insert_default();
        let mut operations = match inputs {
            [only] => only.operations.clone(),
            inputs => {
                let mut seen = HashSet::new();
                let all = inputs.iter().flat_map(|input| &input.operations);
                all.filter(|operation| seen.insert(&operation.digest)).cloned().collect()
            }
        };
        operations.push(Arc::new(Operation::new(encode(op), pb::OpMetadata::default())));
        Self { operations, output: 0 }
    }

    /// The same for another platform, `os/architecture[/variant]`.
    pub fn platform(self, text: &str) -> Self {
        self.rebuild(|op| op.platform = Some(platform(text)))
    }

    /// The digest of the operation, which is the vertex's.
    pub fn digest(&self) -> &str {
        &self.last().digest
    }

    /// Changes the operation's metadata: description, `ignore_cache` and so on. No digest changes.
    pub fn metadata(mut self, change: impl FnOnce(&mut pb::OpMetadata)) -> Self {
        let last = self.operations.last_mut().expect("a state has an operation");
        change(&mut Arc::make_mut(last).metadata);
        self
    }

    /// Does not use the cache for this operation.
    pub fn ignore_cache(self) -> Self {
        self.metadata(|metadata| metadata.ignore_cache = true)
    }

    pub fn definition(&self) -> pb::Definition {
        let last = pb::Op { inputs: vec![self.edge()], ..pb::Op::default() };
        let last = last.encode_to_vec();
        let mut metadata: BTreeMap<_, _> =
            self.operations.iter().map(|one| (one.digest.clone(), one.metadata.clone())).collect();
        metadata.insert(sha256(&last), pb::OpMetadata::default());
        let operations = self.operations.iter().map(|one| one.bytes.clone().into());
        pb::Definition { def: operations.chain([last.into()]).collect(), metadata, source: None }
    }

    /// The definition's bytes, as `buildctl build` reads them from stdin.
    pub fn marshal(&self) -> Vec<u8> {
        self.definition().encode_to_vec()
    }

    fn edge(&self) -> pb::Input {
        pb::Input { digest: self.digest().to_owned(), index: self.output }
    }

    fn last(&self) -> &Operation {
        self.operations.last().expect("a state has an operation")
    }

    fn rebuild(mut self, change: impl FnOnce(&mut pb::Op)) -> Self {
        let last = self.operations.pop().expect("a state has an operation");
        let mut op = pb::Op::decode(&last.bytes[..]).expect("our own bytes");
        change(&mut op);
        self.operations.push(Arc::new(Operation::new(encode(op), last.metadata.clone())));
        self
    }
}

impl Operation {
    fn new(bytes: Vec<u8>, metadata: pb::OpMetadata) -> Self {
        Self { digest: sha256(&bytes), bytes, metadata }
    }
}

/// As Go encodes it, with the kind of the operation last: `buildkitd` encodes what it read again, and
/// would come to another digest.
fn encode(mut op: pb::Op) -> Vec<u8> {
    let kind = pb::Op { op: op.op.take(), ..pb::Op::default() };
    [op.encode_to_vec(), kind.encode_to_vec()].concat()
}

fn platform(text: &str) -> pb::Platform {
    let Platform { os, architecture, variant } = Platform::parse(text);
    pb::Platform { os, architecture, variant: variant.unwrap_or_default(), ..pb::Platform::default() }
}
