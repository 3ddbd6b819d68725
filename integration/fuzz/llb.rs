//! Build definitions as clients send them.
//!
//! # Statements
//!
//! Of a definition that is accepted:
//!
//! - Its vertices are those that the result needs, each once, under the digest of an op of the definition, after all of
//!   its inputs. Each edge leads to an output that there is.
//! - An op holds what its type promises (see [`promises`](crate::promises)).
//! - The order of its ops makes no difference, and neither does how they are encoded, but for their digests.
//! - The same limits that it is within refuse it if they are lower, and what is accepted is within them.
//!
//! Of one that is refused:
//!
//! - It is refused in any order of its ops.
//! - The reason fits into the trailer of an answer, and the op that it names is one of the definition.
//!
//! Of each: what is allocated on the way is linear in its ops and bytes, and places in files can be looked up.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use prost::Message as _;
use thunk::oci::Digest;
use thunk::ops::Graph;
use thunk::ops::Vertex;
use thunk::ops::VertexDigest;
use thunk::ops::llb::Definition;
use thunk::ops::llb::Limits;
use thunk::ops::llb::LlbError;
use thunk::proto::pb;

use crate::Target;
use crate::definitions;
use crate::memory;
use crate::ops;
use crate::promises;

pub(crate) const TARGET: Target = Target { name: "llb", run, mutate: definitions::mutate, seeds: ops::seeds };

/// Bytes that are allocated for a definition at most: for each, for each op of it, and for each byte.
const SPENT: (usize, usize, usize) = (64 << 10, 4 << 10, 400);
/// Bytes of a reason at most: a server sends it within the headers of an answer.
const REASON: usize = 4096;
/// Bytes of a name at most.
const NAME: usize = 1024;

const LOW: Limits = Limits { vertices: 8, bytes: 4096, depth: 4, inputs: 3, mounts: 2 };

fn run(data: &[u8]) {
    let (read, spent) = memory::spent(|| read(data, &Limits::default()));
    let ops = pb::Definition::decode(data).map_or(0, |definition| definition.def.len());
    let most = SPENT.0 + SPENT.1 * ops + SPENT.2 * data.len();
    assert!(spent <= most, "{spent} bytes are allocated for {ops} ops in {} bytes", data.len());
    let other_way = definitions::reversed(data).map(|data| self::read(&data, &Limits::default()));
    match read {
        Ok((_, None)) => {}
        Ok((definition, Some(graph))) => {
            graph_is_one(&definition, &graph);
            graph.inputs_first().for_each(|vertex| promises::hold(vertex));
            let (_, other) = other_way.expect("it is one").expect("it is accepted in any order");
            same(&graph, &other.expect("it has ops"));
            again(&definition, &graph);
            within_limits(&definition, &graph);
            look_up(&definition, &graph);
        }
        Err(Refused { definition, error }) => {
            if let Some(other) = other_way {
                assert!(other.is_err(), "it is accepted in another order, but not so: {error}");
            }
            let reason = error.to_string();
            assert!(reason.len() <= REASON, "{} bytes of a reason", reason.len());
            if let Some(vertex) = error.vertex() {
                assert!(definition.expect("it has an op").op(&vertex).is_some(), "{reason}");
            }
        }
    }
}

#[derive(Debug)]
struct Refused {
    definition: Option<Arc<Definition>>,
    error: LlbError,
}

type Read = Result<(Arc<Definition>, Option<Graph>), Refused>;

fn read(data: &[u8], limits: &Limits) -> Read {
    let definition = Definition::from_protobuf(data).map_err(|error| Refused { definition: None, error })?;
    let definition = Arc::new(definition);
    match definition.decode(limits) {
        Ok(graph) => Ok((definition, graph)),
        Err(error) => Err(Refused { definition: Some(definition), error }),
    }
}

fn graph_is_one(definition: &Definition, graph: &Graph) {
    let ops: HashSet<_> = definition.message().def.iter().map(Digest::sha256).collect();
    let mut outputs = HashMap::new();
    let mut edges = 0;
    for vertex in graph.inputs_first() {
        assert!(ops.contains(&vertex.digest.0));
        for input in &vertex.inputs {
            assert!(input.output < outputs[&input.vertex], "{input:?} of {}", vertex.name);
        }
        edges += vertex.inputs.len();
        assert!(outputs.insert(vertex.digest, promises::outputs(vertex)).is_none());
        assert!(vertex.name.len() <= NAME, "{} bytes of a name", vertex.name.len());
        assert!(Arc::ptr_eq(graph.vertex(&vertex.digest).expect("it is there"), vertex));
    }
    assert_eq!((graph.len(), graph.petgraph().edge_count()), (outputs.len(), edges));
    assert!(graph.result().output < outputs[&graph.result().vertex]);
    let mut needed = HashSet::from([graph.result().vertex]);
    let mut stack = vec![graph.result().vertex];
    while let Some(digest) = stack.pop() {
        let inputs = &graph.vertex(&digest).expect("it is there").inputs;
        stack.extend(inputs.iter().map(|input| input.vertex).filter(|input| needed.insert(*input)));
    }
    assert_eq!(needed.len(), graph.len(), "nobody needs some of them");
}

fn same(one: &Graph, other: &Graph) {
    assert_eq!((one.result(), one.len()), (other.result(), other.len()));
    for vertex in one.inputs_first() {
        let found = other.vertex(&vertex.digest).expect("it is the same graph");
        assert_eq!(vertex.inputs, found.inputs);
        same_vertex(vertex, found);
    }
}

/// The same but for digests.
fn same_vertex(one: &Vertex, other: &Vertex) {
    assert_eq!((&one.name, &one.op), (&other.name, &other.op));
    assert_eq!((&one.platform, &one.options), (&other.platform, &other.options));
}

/// What is not known is left out when an op is encoded again: two of them may be one then.
fn again(definition: &Definition, graph: &Graph) {
    let data = encoded_again(definition, graph).encode_to_vec();
    let (definition, other) = match read(&data, &Limits::default()) {
        Ok((definition, other)) => (definition, other.expect("it has ops")),
        Err(Refused { error: LlbError::Duplicate { .. }, .. }) => return,
        Err(Refused { error, .. }) => panic!("it is not accepted once encoded by us: {error}"),
    };
    graph_is_one(&definition, &other);
    // From the result on, input by input.
    let ends = (graph.result(), other.result());
    let mut known: BTreeMap<VertexDigest, VertexDigest> = BTreeMap::new();
    let mut stack = vec![ends];
    while let Some((one, two)) = stack.pop() {
        assert_eq!(one.output, two.output);
        if let Some(before) = known.insert(one.vertex, two.vertex) {
            assert_eq!(before, two.vertex);
            continue;
        }
        let one = graph.vertex(&one.vertex).expect("it is there");
        let two = other.vertex(&two.vertex).expect("it is there");
        same_vertex(one, two);
        assert_eq!(one.inputs.len(), two.inputs.len());
        stack.extend(one.inputs.iter().copied().zip(two.inputs.iter().copied()));
    }
}

/// The ops that are needed, encoded by us and with the names that they have then.
fn encoded_again(definition: &Definition, graph: &Graph) -> pb::Definition {
    let message = definition.message();
    let mut names: HashMap<String, String> = HashMap::new();
    let mut again = pb::Definition { source: message.source.clone(), ..Default::default() };
    for vertex in graph.inputs_first() {
        let (bytes, _) = definition.op(&vertex.digest).expect("it is there");
        let bytes = renamed(&bytes, &names);
        let name = Digest::sha256(&bytes).to_string();
        again.def.push(bytes.into());
        if let Some(metadata) = message.metadata.get(&vertex.digest.to_string()) {
            again.metadata.insert(name.clone(), metadata.clone());
        }
        names.insert(vertex.digest.to_string(), name);
    }
    again.def.push(renamed(message.def.last().expect("it has a result"), &names).into());
    again
}

/// An op with the new names of its inputs. The last one may have inputs that nobody needs.
fn renamed(op: &[u8], names: &HashMap<String, String>) -> Vec<u8> {
    let mut op = pb::Op::decode(op).expect("it was decoded");
    op.inputs.retain(|input| names.contains_key(&input.digest));
    op.inputs.iter_mut().for_each(|input| input.digest.clone_from(&names[&input.digest]));
    op.encode_to_vec()
}

fn within_limits(definition: &Arc<Definition>, graph: &Graph) {
    match definition.decode(&LOW) {
        Ok(low) => {
            same(graph, &low.expect("it has ops"));
            let mut depth = HashMap::new();
            for vertex in graph.inputs_first() {
                let below = vertex.inputs.iter().map(|input| depth[&input.vertex]).max();
                depth.insert(vertex.digest, below.unwrap_or(0) + 1);
                assert!(vertex.inputs.len() <= LOW.inputs);
            }
            assert!(depth.values().all(|depth| *depth <= LOW.depth));
            assert!(definition.message().def.len() <= LOW.vertices);
        }
        Err(LlbError::TooLarge { found, limit, .. }) => assert!(found > limit),
        Err(error) => panic!("it is refused for something else once the limits are lower: {error}"),
    }
}

fn look_up(definition: &Definition, graph: &Graph) {
    let source = definition.message().source.as_ref();
    for vertex in graph.inputs_first() {
        let said = source.and_then(|source| source.locations.get(&vertex.digest.to_string()));
        let said = said.map_or(0, |locations| locations.locations.len());
        assert!(definition.places(&vertex.digest).len() <= said);
        let (bytes, _) = definition.op(&vertex.digest).expect("it is there");
        assert_eq!(Digest::sha256(&bytes), vertex.digest.0);
    }
}
