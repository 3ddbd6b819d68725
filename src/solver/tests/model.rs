//! The model: ops that compute numbers, and what each vertex must come to.
//!
//! A vertex has a *behaviour*: an op digest, and per input whether its content counts (its number
//! modulo a small number) or the number itself. Two vertices of one behaviour over inputs of the same
//! contents are one cache key, whatever their digests are.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use crate::oci::Digest;
use crate::oci::Platform;
use crate::ops::CacheMap;
use crate::ops::CacheOpts;
use crate::ops::Edge;
use crate::ops::Graph;
use crate::ops::InputKey;
use crate::ops::Merge;
use crate::ops::Op;
use crate::ops::Vertex;
use crate::ops::VertexDigest;
use crate::ops::VertexOptions;

/// Contents are told apart by this many values.
const CONTENTS: u64 = 4;

/// What a vertex of the model does.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Names the op: equal names over equal inputs have equal results.
    pub name: String,
    pub inputs: Vec<Input>,
    pub outputs: u32,
    /// Further names of a root.
    pub aliases: Vec<String>,
    pub ignore_cache: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Index of a vertex that comes before.
    pub vertex: usize,
    pub output: u32,
    pub by_content: bool,
}

/// Vertices in order, each after its inputs, by what they do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub vertices: Vec<Behaviour>,
}

impl Plan {
    pub fn root(&mut self, name: &str) -> usize {
        self.push(Behaviour { name: name.to_owned(), outputs: 1, ..Behaviour::default() })
    }

    /// An op whose inputs count by their origin.
    pub fn op(&mut self, name: &str, inputs: &[usize]) -> usize {
        let input = |vertex: &usize| Input { vertex: *vertex, output: 0, by_content: false };
        let inputs = inputs.iter().map(input).collect();
        self.push(Behaviour { name: name.to_owned(), inputs, outputs: 1, ..Behaviour::default() })
    }

    /// An op whose inputs count by their content.
    pub fn copy(&mut self, name: &str, inputs: &[usize]) -> usize {
        let input = |vertex: &usize| Input { vertex: *vertex, output: 0, by_content: true };
        let inputs = inputs.iter().map(input).collect();
        self.push(Behaviour { name: name.to_owned(), inputs, outputs: 1, ..Behaviour::default() })
    }

    pub fn push(&mut self, behaviour: Behaviour) -> usize {
        self.vertices.push(behaviour);
        self.vertices.len() - 1
    }

    /// What each output of each vertex must come to.
    pub fn values(&self) -> Vec<Vec<u64>> {
        let mut values: Vec<Vec<u64>> = Vec::new();
        for behaviour in &self.vertices {
            let inputs: Vec<u64> =
                behaviour.inputs.iter().map(|i| values[i.vertex][i.output as usize]).collect();
            values.push(run(behaviour, &inputs));
        }
        values
    }

    /// Digests of the vertices. `salt` tells apart vertices of one behaviour in two definitions.
    pub fn digests(&self, salt: &str) -> Vec<VertexDigest> {
        let mut digests: Vec<VertexDigest> = Vec::new();
        for (index, behaviour) in self.vertices.iter().enumerate() {
            let inputs: Vec<_> = behaviour.inputs.iter().map(|i| (digests[i.vertex], i.output)).collect();
            let salt = if behaviour.inputs.is_empty() { "" } else { salt };
            let text = format!("{index} {} {inputs:?} {salt}", behaviour.name);
            digests.push(VertexDigest(Digest::sha256(text)));
        }
        digests
    }

    /// The graph up to output `output` of vertex `result`, and what its vertices do.
    pub fn graph(&self, salt: &str, result: usize, output: u32) -> (Graph, HashMap<VertexDigest, Behaviour>) {
        let digests = self.digests(salt);
        let mut needed = vec![false; self.vertices.len()];
        needed[result] = true;
        for index in (0..self.vertices.len()).rev() {
            if needed[index] {
                self.vertices[index].inputs.iter().for_each(|i| needed[i.vertex] = true);
            }
        }
        let mut vertices = Vec::new();
        let mut behaviours = HashMap::new();
        for (index, behaviour) in self.vertices.iter().enumerate().filter(|(index, _)| needed[*index]) {
            let edge = |i: &Input| Edge { vertex: digests[i.vertex], output: i.output };
            vertices.push(Arc::new(Vertex {
                digest: digests[index],
                name: behaviour.name.clone().into(),
                op: Op::Merge(Merge { inputs: (0..behaviour.inputs.len()).collect() }),
                platform: Platform::host(),
                inputs: behaviour.inputs.iter().map(edge).collect(),
                options: VertexOptions { ignore_cache: behaviour.ignore_cache, ..VertexOptions::default() },
            }));
            behaviours.insert(digests[index], behaviour.clone());
        }
        (Graph::new(vertices, Edge { vertex: digests[result], output }), behaviours)
    }
}

/// What the content of a result hashes to.
pub fn content(value: u64) -> Digest {
    Digest::sha256(format!("content {}", value % CONTENTS))
}

/// Runs an op of the model.
pub fn run(behaviour: &Behaviour, inputs: &[u64]) -> Vec<u64> {
    let inputs: Vec<u64> = behaviour
        .inputs
        .iter()
        .zip(inputs)
        .map(|(input, value)| if input.by_content { value % CONTENTS } else { *value })
        .collect();
    let result = |output: u32| {
        let digest = Digest::sha256(format!("{} {inputs:?} {output}", behaviour.name));
        u64::from_be_bytes(digest.raw()[..8].try_into().expect("a digest has 8 bytes"))
    };
    (0..behaviour.outputs).map(result).collect()
}

/// The cache map number `index` of a vertex of the model.
pub fn cache_map(behaviour: &Behaviour, index: usize) -> CacheMap<u64> {
    let name = match index {
        0 => &behaviour.name,
        index => &behaviour.aliases[index - 1],
    };
    let key = |input: &Input| InputKey {
        selector: input.by_content.then(|| Digest::sha256("selector")),
        content: input.by_content.then(|| {
            let hash: crate::ops::ContentDigest<u64> =
                Arc::new(|_, value| Box::pin(async move { Ok(content(value.unwrap_or_default())) }));
            hash
        }),
    };
    CacheMap {
        digest: Digest::sha256(name),
        inputs: behaviour.inputs.iter().map(key).collect(),
        opts: CacheOpts::new().with(behaviour.name.clone()),
        complete: index >= behaviour.aliases.len(),
    }
}

/// A number generator for plans, from a seed.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides.max(1)
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

/// A plan of a few vertices, whose roots partly have the same content and whose ops partly are the same.
pub fn random_plan(dice: &mut Dice, ignore_cache: bool) -> Plan {
    let mut plan = Plan::default();
    let roots = 1 + dice.roll(3);
    for root in 0..roots {
        let aliases = if dice.chance(30) { vec![format!("alias {root}")] } else { Vec::new() };
        plan.push(Behaviour { name: format!("root {root}"), outputs: 1, aliases, ..Behaviour::default() });
    }
    for _ in 0..dice.roll(6) {
        let inputs = 1 + dice.roll(3);
        let inputs = (0..inputs)
            .map(|_| {
                let vertex = dice.roll(plan.vertices.len());
                let output = dice.roll(plan.vertices[vertex].outputs as usize) as u32;
                Input { vertex, output, by_content: dice.chance(40) }
            })
            .collect::<Vec<_>>();
        // The kinds of inputs are part of what an op is.
        let kinds: Vec<bool> = inputs.iter().map(|i| i.by_content).collect();
        let outputs = 1 + dice.roll(2) as u32;
        let name = format!("op {} {kinds:?} {outputs}", dice.roll(2));
        let ignore_cache = ignore_cache && dice.chance(20);
        plan.push(Behaviour { name, inputs, outputs, ignore_cache, ..Behaviour::default() });
    }
    plan
}

/// Counts by some key.
pub type Tally<K> = BTreeMap<K, usize>;
