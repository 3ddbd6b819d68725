//! [`Graph`]: a decoded build definition.
//!
//! # Invariants
//!
//! Every vertex is reachable from the result. An edge of the petgraph goes from a vertex to its input.
//! [`Graph::inputs_first`] lists each vertex after all of its inputs, so that nobody has to recurse:
//! graphs are as deep as a client makes them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use petgraph::graph::DiGraph;
use petgraph::graph::NodeIndex;

use super::llb::Definition;
use super::op::LinuxResources;
use super::op::Op;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::oci::Quick;
use crate::oci::QuickMap;
use crate::progress::ProgressGroup;

/// Names a vertex: the digest of its op as it was sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexDigest(pub Digest);

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One output of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Edge {
    pub vertex: VertexDigest,
    pub output: u32,
}

/// A step of a build.
#[derive(Clone, Debug)]
pub struct Vertex {
    pub digest: VertexDigest,
    /// For people.
    pub name: Arc<str>,
    pub op: Op,
    /// In normal form.
    pub platform: Platform,
    /// In the order in which the op counts them.
    pub inputs: Vec<Edge>,
    pub options: VertexOptions,
}

/// What is said about a vertex without being part of its digest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VertexOptions {
    /// The result is made anew whatever is known.
    pub ignore_cache: bool,
    pub description: BTreeMap<String, String>,
    /// Overrides whether a cache export takes the result.
    pub export_cache: Option<bool>,
    pub progress_group: Option<ProgressGroup>,
    /// Limits of the step.
    pub resources: Option<LinuxResources>,
}

/// A build definition: vertices, how they depend on each other, and which output is wanted.
#[derive(Clone, Debug)]
pub struct Graph {
    graph: DiGraph<Arc<Vertex>, u32>,
    nodes: QuickMap<VertexDigest, NodeIndex>,
    result: Edge,
    /// What the graph was decoded from; empty if it was not.
    pub definition: Arc<Definition>,
}

impl Graph {
    /// Builds a graph of `vertices`, each after its inputs, with `result` as what is wanted.
    ///
    /// # Panics
    ///
    /// If an edge names a vertex that does not come before: the caller has checked that.
    pub fn new(vertices: Vec<Arc<Vertex>>, result: Edge) -> Graph {
        let mut graph = DiGraph::with_capacity(vertices.len(), vertices.len());
        let mut nodes = QuickMap::with_capacity_and_hasher(vertices.len(), Quick::default());
        for vertex in vertices {
            let (digest, inputs) = (vertex.digest, vertex.inputs.clone());
            let node = graph.add_node(vertex);
            for input in inputs {
                graph.add_edge(node, nodes[&input.vertex], input.output);
            }
            nodes.insert(digest, node);
        }
        assert!(nodes.contains_key(&result.vertex), "the result is one of the vertices");
        Graph { graph, nodes, result, definition: Arc::default() }
    }

    /// The edge that the definition is for.
    pub fn result(&self) -> Edge {
        self.result
    }

    pub fn vertex(&self, digest: &VertexDigest) -> Option<&Arc<Vertex>> {
        self.nodes.get(digest).map(|node| &self.graph[*node])
    }

    /// All vertices, each after all of its inputs.
    pub fn inputs_first(&self) -> impl Iterator<Item = &Arc<Vertex>> {
        self.graph.node_indices().map(|node| &self.graph[node])
    }

    /// Number of vertices.
    pub fn len(&self) -> usize {
        self.graph.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The graph with one arrow per input, for algorithms.
    pub fn petgraph(&self) -> &DiGraph<Arc<Vertex>, u32> {
        &self.graph
    }
}
