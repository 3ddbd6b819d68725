//! Decodes LLB: a definition as a client sends it into a [`Graph`].
//!
//! # Invariants
//!
//! A vertex is named by the SHA-256 of its op's bytes *as they came*; an op is never encoded again. The
//! last op has no kind: its first input is the result. Time and memory are linear in the bytes, whatever
//! the shape of the graph, and nothing recurses: names of merges, which contain the names of their
//! inputs, are clipped, since in a graph of diamonds they would double with each level.
//!
//! What the daemon can't do is told from what nobody can: [`LlbError::Unsupported`] names a feature of
//! LLB, every other error is a definition that is not one.

mod exec;
mod file;
mod invalid;
mod parsed;
mod parts;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde::Serialize;

use super::graph::Edge;
use super::graph::Graph;
use super::graph::Vertex;
use super::graph::VertexDigest;
use super::graph::VertexOptions;
use super::op::Op;
use crate::oci::Digest;
use crate::oci::InvalidDigest;
use crate::oci::Quick;
use crate::oci::QuickMap;
use crate::progress::ProgressGroup;
use crate::progress::SourceFile;
use crate::progress::SourcePosition;
use crate::progress::SourceRange;
use crate::proto::json;
use crate::proto::pb;
use crate::task::map_on_cores;

use parsed::Input;
use parsed::Parsed;

pub use invalid::InvalidOp;

/// Capabilities of LLB that definitions may ask for.
pub const CAPS: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.image.layerlimit",
    "source.image.checksum",
    "source.ocilayout",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "source.http",
    "source.http.checksum",
    "source.http.perm",
    // Spelled so by everybody.
    "soruce.http.uidgid",
    "source.http.auth",
    "source.http.header",
    "file.base",
    "file.rm.wildcard",
    "file.rm.nofollowsymlink",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.modestring",
    "file.symlink.create",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.removemountstubs.recursive",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.content",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.cgroup",
    "exec.secretenv",
    "exec.validexitcode",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "mergeop",
    "diffop",
    // What exporters and the rest of the API can do is among them too: `docker buildx` asks for these. Of
    // `exporter.image.attestations` it concludes that a daemon makes attestations by itself.
    "exporter.image.annotations",
    "exporter.multiple",
    "exporter.session",
    "exporter.sourcedateepoch",
    "gc.freespacefilter",
    "history.filter",
];

/// Bytes of a vertex's name at most.
const MAX_NAME: usize = 1024;

/// How large a definition may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub vertices: usize,
    /// Of all ops together.
    pub bytes: usize,
    /// Vertices on the longest way from the result to a source.
    pub depth: usize,
    /// Inputs of one op, and its actions or merged inputs.
    pub inputs: usize,
    /// Mounts of one op: each takes a moment to be made.
    pub mounts: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { vertices: 100_000, bytes: 64 << 20, depth: 20_000, inputs: 20_000, mounts: 2000 }
    }
}

/// A definition can't be solved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LlbError {
    #[error("not an LLB definition: {reason}")]
    Encoding { reason: String },
    #[error("op {index} of the definition can't be decoded: {reason}")]
    Op { index: usize, reason: String },
    #[error("invalid LLB with {count} vertices: it needs an op and the result that follows it")]
    TooFew { count: usize },
    #[error("the definition has {found} {what}, {limit} are allowed")]
    TooLarge { what: &'static str, found: usize, limit: usize },
    #[error("the definition has op {digest} twice")]
    Duplicate { digest: VertexDigest },
    #[error("the last op must have an input, which is the result, and no kind")]
    NoResult,
    #[error("input {input} of op {op} is no digest: {source}")]
    InputDigest { op: VertexDigest, input: usize, source: InvalidDigest },
    #[error("input {input} of op {op} is {digest}, which is not in the definition")]
    Dangling { op: VertexDigest, input: usize, digest: VertexDigest },
    #[error("input {input} of op {op} is output {output} of {digest}, which has no such output")]
    Output { op: VertexDigest, input: usize, digest: VertexDigest, output: i64 },
    #[error("op {op} is its own ancestor")]
    Cycle { op: VertexDigest },
    #[error("op {op} is of a kind that is not known here: is the client newer than the daemon?")]
    UnknownKind { op: VertexDigest },
    #[error("op {op} is not valid: {reason}")]
    Invalid { op: VertexDigest, reason: InvalidOp },
    #[error("{what} is not supported")]
    Unsupported { op: VertexDigest, what: String },
}

impl LlbError {
    /// The op at fault, where it is one.
    pub fn vertex(&self) -> Option<VertexDigest> {
        match self {
            LlbError::Encoding { .. }
            | LlbError::Op { .. }
            | LlbError::TooFew { .. }
            | LlbError::TooLarge { .. }
            | LlbError::NoResult => None,
            LlbError::Duplicate { digest } => Some(*digest),
            LlbError::InputDigest { op, .. }
            | LlbError::Dangling { op, .. }
            | LlbError::Output { op, .. }
            | LlbError::Cycle { op }
            | LlbError::UnknownKind { op }
            | LlbError::Invalid { op, .. }
            | LlbError::Unsupported { op, .. } => Some(*op),
        }
    }
}

/// A definition as it was sent. Keeps the message, since clients get it back with each result.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Definition(pb::Definition);

impl Definition {
    /// Wraps the message. Places of a vertex that are none are left out: as the value of a map they
    /// would not be on the wire, and Go's client has a nil then where it expects a list.
    pub fn new(mut message: pb::Definition) -> Definition {
        leave_out_empty_places(&mut message);
        Definition(message)
    }

    /// Reads the protobuf form, as `buildctl build` takes it on stdin.
    pub fn from_protobuf(bytes: &[u8]) -> Result<Definition, LlbError> {
        match pb::Definition::decode(bytes) {
            Ok(message) => Ok(Definition::new(message)),
            Err(error) => Err(LlbError::Encoding { reason: error.to_string() }),
        }
    }

    /// The message.
    pub fn message(&self) -> &pb::Definition {
        &self.0
    }

    /// True if it has no op: then its result is the empty file system.
    pub fn is_empty(&self) -> bool {
        self.0.def.is_empty()
    }

    /// The places in files that a vertex comes from, for errors; unusable entries are left out.
    pub fn places(&self, vertex: &VertexDigest) -> Vec<(Arc<SourceFile>, Vec<SourceRange>)> {
        let Some(source) = &self.0.source else { return Vec::new() };
        let locations = source.locations.get(&vertex.to_string());
        // Of any number of places in a file, one copy of it.
        let mut files = BTreeMap::new();
        let place = |location: &pb::Location| {
            let index = usize::try_from(location.source_index).ok()?;
            let info = source.infos.get(index)?;
            let file = files.entry(index).or_insert_with(|| Arc::new(file(info)));
            Some((Arc::clone(file), location.ranges.iter().map(range).collect()))
        };
        locations.map(|locations| locations.locations.iter().filter_map(place).collect()).unwrap_or_default()
    }

    /// The op of a vertex, encoded, and its description. Hashes every op: for errors.
    pub fn op(&self, vertex: &VertexDigest) -> Option<(Bytes, BTreeMap<String, String>)> {
        let bytes = self.0.def.iter().find(|bytes| Digest::sha256(bytes) == vertex.0)?;
        let metadata = self.0.metadata.get(&vertex.to_string());
        Some((bytes.clone(), metadata.map(|metadata| metadata.description.clone()).unwrap_or_default()))
    }

    /// Decodes the graph. `None` if the definition is empty.
    pub fn decode(self: &Arc<Self>, limits: &Limits) -> Result<Option<Graph>, LlbError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut ops = Ops::decode(&self.0.def, limits)?;
        let order = ops.order(limits)?;
        let mut vertices = Vertices::with_capacity(ops.ops.len(), order.len());
        for index in order {
            let metadata = self.0.metadata.get(&ops.ops[index].digest.to_string());
            let vertex = vertex(&mut ops, index, metadata, &vertices)?;
            vertices.push(index, vertex);
        }
        let mut graph = Graph::new(vertices.all, ops.result);
        graph.definition = Arc::clone(self);
        Ok(Some(graph))
    }
}

/// Files have definitions of their own; how deep that goes is limited where messages are decoded.
fn leave_out_empty_places(message: &mut pb::Definition) {
    let Some(source) = &mut message.source else { return };
    source.locations.retain(|_, places| !places.locations.is_empty());
    source.infos.iter_mut().filter_map(|info| info.definition.as_mut()).for_each(leave_out_empty_places);
}

fn file(info: &pb::SourceInfo) -> SourceFile {
    SourceFile {
        filename: info.filename.clone(),
        language: info.language.clone(),
        data: info.data.clone(),
        definition: info.definition.as_ref().map(|definition| Bytes::from(definition.encode_to_vec())),
    }
}

fn range(range: &pb::Range) -> SourceRange {
    let position = |p: &Option<pb::Position>| {
        let p = p.unwrap_or_default();
        SourcePosition { line: p.line, character: p.character }
    };
    SourceRange { start: position(&range.start), end: position(&range.end) }
}

/// The ops in the order of the definition, their structure checked.
struct Ops {
    ops: Vec<Parsed>,
    /// Per op, the indices of its inputs.
    inputs: Vec<Vec<usize>>,
    result: Edge,
}

impl Ops {
    fn decode(def: &[Bytes], limits: &Limits) -> Result<Ops, LlbError> {
        at_most("vertices", def.len(), limits.vertices)?;
        at_most("bytes", def.iter().map(Bytes::len).sum(), limits.bytes)?;
        if def.len() < 2 {
            return Err(LlbError::TooFew { count: def.len() });
        }
        let parsed = map_on_cores(def, |index, bytes| Parsed::decode(index, bytes, limits));
        let mut ops = Vec::with_capacity(def.len());
        let mut index_of = QuickMap::with_capacity_and_hasher(def.len(), Quick::default());
        for (index, op) in parsed.into_iter().enumerate() {
            let op = op?;
            if index_of.insert(op.digest, index).is_some() {
                return Err(LlbError::Duplicate { digest: op.digest });
            }
            ops.push(op);
        }
        let last = def.len() - 1;
        if ops[last].does.is_some() || ops[last].inputs.is_empty() {
            return Err(LlbError::NoResult);
        }
        let mut inputs = Vec::with_capacity(def.len());
        for Parsed { digest: op, inputs: sent, .. } in &ops {
            let resolve = |(input, Input { digest, output }): (usize, &Input)| {
                let digest =
                    digest.clone().map_err(|source| LlbError::InputDigest { op: *op, input, source })?;
                let index = index_of.get(&digest).copied().filter(|index| *index != last);
                let index = index.ok_or(LlbError::Dangling { op: *op, input, digest })?;
                if *output < 0 || ops[index].outputs.is_some_and(|n| *output >= n) {
                    return Err(LlbError::Output { op: *op, input, digest, output: *output });
                }
                Ok(index)
            };
            inputs.push(sent.iter().enumerate().map(resolve).collect::<Result<Vec<_>, _>>()?);
        }
        let result = edge(ops[inputs[last][0]].digest, &ops[last].inputs[0]);
        Ok(Ops { ops, inputs, result })
    }

    /// The ops that the result needs, each after its inputs.
    fn order(&self, limits: &Limits) -> Result<Vec<usize>, LlbError> {
        let last = self.ops.len() - 1;
        let start = self.inputs[last][0];
        let mut needed = vec![false; self.ops.len()];
        needed[start] = true;
        let mut stack = vec![start];
        while let Some(index) = stack.pop() {
            for &input in &self.inputs[index] {
                if !std::mem::replace(&mut needed[input], true) {
                    stack.push(input);
                }
            }
        }
        let mut consumers = vec![Vec::new(); self.ops.len()];
        let mut missing: Vec<usize> = self.inputs.iter().map(Vec::len).collect();
        let mut ready = Vec::new();
        for (index, inputs) in self.inputs.iter().enumerate() {
            for &input in inputs {
                consumers[input].push(index);
            }
            if inputs.is_empty() {
                ready.push(index);
            }
        }
        let mut order = Vec::with_capacity(self.ops.len());
        let mut depth = vec![1; self.ops.len()];
        let mut next = 0;
        while next < ready.len() {
            let index = ready[next];
            next += 1;
            if needed[index] {
                at_most("vertices in a row", depth[index], limits.depth)?;
                order.push(index);
            }
            for &consumer in &consumers[index] {
                depth[consumer] = depth[consumer].max(depth[index] + 1);
                missing[consumer] -= 1;
                if missing[consumer] == 0 {
                    ready.push(consumer);
                }
            }
        }
        // Can't be made without breaking SHA-256; it is checked all the same, since a loop here would
        // hang the daemon.
        if let Some(index) = missing.iter().position(|missing| *missing > 0) {
            return Err(LlbError::Cycle { op: self.ops[index].digest });
        }
        Ok(order)
    }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), LlbError> {
    if found > limit { Err(LlbError::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// Callers have checked that the index is no negative number.
fn edge(vertex: VertexDigest, input: &Input) -> Edge {
    Edge { vertex, output: u32::try_from(input.output).unwrap_or(u32::MAX) }
}

/// The vertices so far.
struct Vertices {
    all: Vec<Arc<Vertex>>,
    /// By the place of the op in the definition.
    places: Vec<Option<usize>>,
}

impl Vertices {
    fn with_capacity(ops: usize, needed: usize) -> Vertices {
        Vertices { all: Vec::with_capacity(needed), places: vec![None; ops] }
    }

    fn push(&mut self, op: usize, vertex: Vertex) {
        self.places[op] = Some(self.all.len());
        self.all.push(Arc::new(vertex));
    }

    fn name(&self, op: usize) -> Option<&str> {
        self.places[op].map(|place| &*self.all[place].name)
    }
}

/// Takes what the op does out of `ops`.
fn vertex(
    ops: &mut Ops,
    index: usize,
    metadata: Option<&pb::OpMetadata>,
    before: &Vertices,
) -> Result<Vertex, LlbError> {
    let parsed = &mut ops.ops[index];
    let (digest, platform) = (parsed.digest, std::mem::take(&mut parsed.platform));
    let (op, name) = parsed.does.take().ok_or(LlbError::UnknownKind { op: digest })??;
    let inputs = ops.inputs[index].iter().zip(&ops.ops[index].inputs);
    let inputs: Vec<Edge> = inputs.map(|(i, input)| edge(ops.ops[*i].digest, input)).collect();
    let mut options = VertexOptions::default();
    if let Some(metadata) = metadata {
        let missing = metadata.caps.keys().find(|cap| !CAPS.contains(&cap.as_str()));
        if let Some(cap) = missing {
            return Err(LlbError::Unsupported { op: digest, what: format!("capability {}", clip(cap)) });
        }
        options.ignore_cache = metadata.ignore_cache;
        options.description = metadata.description.clone();
        options.export_cache = metadata.export_cache.as_ref().map(|e| e.value);
        if let Some(resources) = &metadata.linux_resources {
            let resources = exec::resources(resources);
            options.resources = Some(resources.map_err(|reason| LlbError::Invalid { op: digest, reason })?);
        }
        options.progress_group = metadata.progress_group.as_ref().map(|g| ProgressGroup {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        });
    }
    let name = match options.description.get("llb.customname") {
        Some(name) => clip(name),
        None => name.text(|input| before.name(ops.inputs[index][input])),
    };
    Ok(Vertex { digest, name: name.into(), op, platform, inputs, options })
}

/// Cuts a text that comes from outside to a length fit for people.
fn clip(text: &str) -> String {
    if text.len() <= MAX_NAME {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_NAME - "...".len());
    format!("{}...", &text[..end])
}

/// What a source of its own does, as a frontend asks for what it stands for.
pub fn source(source: &pb::SourceOp) -> Result<Op, LlbError> {
    source::source(source, VertexDigest(Digest::sha256(source.encode_to_vec())))
}

/// A value as Go's `encoding/json` writes it.
fn go_json(value: &impl Serialize) -> Vec<u8> {
    // Messages are texts, numbers, bytes and lists of them, which can't fail to be written.
    json::write(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
