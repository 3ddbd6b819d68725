//! [`Scheduler`]: the state of all vertices, changed by one event at a time.
//!
//! # Invariants
//!
//! Events that come together may be applied together: what comes of them is what would come of them in
//! some order.
//!
//! [`Scheduler::apply`] waits for nothing and asks nobody: whatever it needs to know comes as an event,
//! whatever it needs done leaves as an effect. It is deterministic, so that a test can drive every
//! interleaving.
//!
//! A node lives while a job has it, or a consumer or a joiner that lives, or a task that runs for it. A
//! task that nobody wants is cancelled at once and ends with its event.
//!
//! The work of one event is linear in what changes: a node is looked at when one of its inputs, its
//! consumers' wants or its own task changed, each of which happens a bounded number of times; it
//! compares itself with the inputs that changed, not with all.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::Index;
use std::ops::IndexMut;
use std::sync::Arc;

use super::event::Effect;
use super::event::Ending;
use super::event::Event;
use super::event::Interest;
use super::event::JobNumber;
use super::event::Reply;
use super::event::TaskNumber;
use super::event::WaiterNumber;
use super::executions::Executions;
use super::state::Content;
use super::state::Level;
use super::state::Node;
use super::state::NodeId;
use super::state::Seen;
use super::state::Slot;
use super::state::VertexState;
use crate::oci::QuickMap;
use crate::oci::QuickSet;
use crate::ops::CacheOptGetter;
use crate::ops::Edge;
use crate::ops::Graph;
use crate::ops::Lineage;
use crate::ops::Vertex;
use crate::ops::VertexDigest;
use crate::progress::Fanout;
use crate::progress::VertexProgress;
use crate::session::SessionGroup;
use crate::session::Sessions;

/// What an effect needs of the vertex it works for.
#[derive(Debug)]
pub struct Shell {
    pub vertex: Arc<Vertex>,
    /// Those of the jobs that have the vertex, or wait for its run; they come and go.
    pub sessions: SessionGroup,
    pub fanout: Fanout,
    pub progress: VertexProgress,
    pub lineage: Arc<Lineage>,
}

/// The state of all vertices. `R` is a result.
pub struct Scheduler<R> {
    pub(super) nodes: Nodes<R>,
    /// By digest and whether the cache is ignored.
    by_digest: QuickMap<(VertexDigest, bool), NodeId>,
    jobs: QuickMap<JobNumber, Mine>,
    waiters: BTreeMap<WaiterNumber, Waiter<R>>,
    pub(super) tasks: QuickMap<TaskNumber, (NodeId, TaskKind)>,
    pub(super) executions: Executions,
    /// Nodes to look at.
    queue: VecDeque<NodeId>,
    /// Nodes that may have to go.
    unwanted: Vec<NodeId>,
    pub(super) effects: Vec<Effect<R>>,
    /// Nodes with a run whose record others could have missed have gone so many times.
    pub(super) departed: u64,
    /// Nodes and slots looked at, for tests of linearity.
    pub(super) steps: u64,
    next: u64,
    sessions: Sessions,
    pub(super) endow: Endow<R>,
}

/// [`Operate::endow`](crate::ops::Operate::endow): makes another vertex's result one's own.
pub type Endow<R> = Arc<dyn Fn(R, &CacheOptGetter) -> R + Send + Sync>;

/// The nodes of a job.
#[derive(Default)]
struct Mine {
    /// The one that a vertex was last given.
    by_digest: QuickMap<VertexDigest, NodeId>,
    /// All that it was ever given: one that failed may have been replaced for another job.
    all: QuickSet<NodeId>,
}

/// A caller that waits.
struct Waiter<R> {
    job: JobNumber,
    node: NodeId,
    reply: Reply<R>,
}

/// What a task does for its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskKind {
    Map,
    Look,
    Hash { slot: u32 },
    Load,
    Run,
}

/// The nodes by ID.
pub struct Nodes<R>(QuickMap<NodeId, Box<Node<R>>>);

impl<R> Nodes<R> {
    pub fn get(&self, id: NodeId) -> Option<&Node<R>> {
        self.0.get(&id).map(|node| &**node)
    }
}

impl<R> Index<NodeId> for Nodes<R> {
    type Output = Node<R>;

    /// Invariant: an ID is kept only by those who keep the node.
    fn index(&self, id: NodeId) -> &Node<R> {
        &self.0[&id]
    }
}

impl<R> IndexMut<NodeId> for Nodes<R> {
    fn index_mut(&mut self, id: NodeId) -> &mut Node<R> {
        self.0.get_mut(&id).expect("an ID is kept only by those who keep the node")
    }
}

impl<R: Clone> Scheduler<R> {
    pub fn new(sessions: Sessions, endow: Endow<R>) -> Scheduler<R> {
        Scheduler {
            nodes: Nodes(QuickMap::default()),
            by_digest: QuickMap::default(),
            jobs: QuickMap::default(),
            waiters: BTreeMap::new(),
            tasks: QuickMap::default(),
            executions: Executions::default(),
            queue: VecDeque::new(),
            unwanted: Vec::new(),
            effects: Vec::new(),
            departed: 0,
            steps: 0,
            next: 0,
            sessions,
            endow,
        }
    }

    /// Changes the state as the events say, in their order, and gives what is to be done. Nodes are looked at
    /// when all have been heard: one that several events are about decides once.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event<R>>) -> Vec<Effect<R>> {
        for event in events {
            let is_leave = matches!(event, Event::Leave { .. });
            self.hear(event);
            // Who comes after a job does not find what was that job's alone.
            if is_leave {
                self.settle();
            }
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    fn hear(&mut self, event: Event<R>) {
        match event {
            Event::Load { interest, graph } => self.load(&interest, &graph),
            Event::Want { job, waiter, edge, reply } => self.wait(job, waiter, edge, reply),
            Event::Unwant { waiter } => {
                // Nobody is there to be answered.
                drop(self.withdraw(waiter));
            }
            Event::Lost { job, edge, is_gone, reply } => {
                let mine = self.jobs.get(&job);
                let node = mine.and_then(|mine| mine.by_digest.get(&edge.vertex)).copied();
                let given_up = node.is_some_and(|node| self.lose_all(node, edge.output, &is_gone));
                self.effects.push(Effect::Told { reply, given_up });
            }
            Event::Leave { job } => self.leave(job),
            Event::Ended { task, ending } => self.ended(task, ending),
        }
    }

    /// Nodes and slots looked at so far.
    #[cfg(test)]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// True if nothing is known, wanted or under way.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.nodes.0.is_empty()
            && self.by_digest.is_empty()
            && self.jobs.is_empty()
            && self.waiters.is_empty()
            && self.tasks.is_empty()
            && self.executions.is_empty()
    }

    /// Looks at every node that something happened to, until nothing happens any more.
    fn settle(&mut self) {
        loop {
            while let Some(id) = self.queue.pop_front() {
                if let Some(node) = self.nodes.0.get_mut(&id) {
                    node.queued = false;
                    self.steps += 1;
                    self.advance(id);
                }
            }
            let Some(id) = self.unwanted.pop() else { return };
            self.remove_unwanted(id);
        }
    }

    /// Gives a job nodes for a graph. What comes of a source that the job was told of, and that no other node can
    /// stand for, is apart from what other jobs have.
    fn load(&mut self, interest: &Arc<Interest>, graph: &Graph) {
        let mut mine = self.jobs.remove(&interest.job).unwrap_or_default();
        mine.by_digest.reserve(graph.len());
        mine.all.reserve(graph.len());
        let mut apart = QuickSet::default();
        for vertex in graph.inputs_first() {
            self.steps += 1 + vertex.inputs.len() as u64;
            let inputs = || vertex.inputs.iter().map(|edge| mine.by_digest[&edge.vertex]);
            let has_apart = !apart.is_empty() && inputs().any(|input| apart.contains(&input));
            let shared = self.shareable(vertex, interest.job).filter(|id| {
                let theirs = self.nodes[*id].slots.iter().map(|slot| slot.input);
                !has_apart || inputs().eq(theirs)
            });
            let id = match shared {
                Some(id) => {
                    vertex.op.follow(&self.nodes[id].shell.vertex.op);
                    id
                }
                None => {
                    let id = self.create(vertex, &mine.by_digest);
                    if has_apart || vertex.op.is_told() {
                        apart.insert(id);
                    }
                    id
                }
            };
            self.attach(id, interest);
            mine.by_digest.insert(vertex.digest, id);
            mine.all.insert(id);
        }
        self.jobs.insert(interest.job, mine);
    }

    /// The node that a vertex of a job can share: one that ignores the cache serves everybody, one that
    /// does not serves those who don't either. A node that failed for others serves only them, and one of a source
    /// only those who were not told that it is something else.
    fn shareable(&self, vertex: &Vertex, job: JobNumber) -> Option<NodeId> {
        let usable = |id: &&NodeId| {
            let node = &self.nodes[**id];
            let failed = |node: &Node<R>| node.error().is_some() && !node.jobs.contains_key(&job);
            let stuck = !node.is_done() && node.slots.iter().any(|s| failed(&self.nodes[s.input]));
            !failed(node) && !stuck && vertex.op.agrees_with(&node.shell.vertex.op)
        };
        let find = |ignoring| self.by_digest.get(&(vertex.digest, ignoring)).filter(usable);
        let shared = find(true).or_else(|| if vertex.options.ignore_cache { None } else { find(false) });
        shared.copied()
    }

    fn create(&mut self, vertex: &Arc<Vertex>, mine: &QuickMap<VertexDigest, NodeId>) -> NodeId {
        self.next += 1;
        let id = NodeId(self.next);
        let mut slots = Vec::with_capacity(vertex.inputs.len());
        let mut ancestors = Vec::with_capacity(vertex.inputs.len());
        for (index, edge) in vertex.inputs.iter().enumerate() {
            let input = mine[&edge.vertex];
            ancestors.push(Arc::clone(&self.nodes[input].shell.lineage));
            self.nodes[input].consumers.insert((id, index as u32));
            slots.push(Slot {
                input,
                output: edge.output,
                ask: Level::Nothing,
                queried: 0,
                content: Content::Ignored,
                matched: QuickSet::default(),
                links: QuickSet::default(),
                seen: Seen::default(),
            });
        }
        let fanout = Fanout::new();
        let announced = crate::progress::Vertex {
            inputs: vertex.inputs.iter().map(|edge| edge.vertex.0).collect(),
            group: vertex.options.progress_group.clone(),
            ..crate::progress::Vertex::new(vertex.digest.0, Arc::clone(&vertex.name))
        };
        let shell = Arc::new(Shell {
            vertex: Arc::clone(vertex),
            sessions: SessionGroup::new(&self.sessions, []),
            progress: VertexProgress::new(announced, Arc::new(fanout.clone())),
            fanout,
            lineage: Lineage::new(ancestors),
        });
        let mut node = Node::new(shell, slots);
        node.touched = (0..node.slots.len() as u32).collect();
        node.fresh = vertex.options.ignore_cache;
        self.nodes.0.insert(id, Box::new(node));
        self.by_digest.insert((vertex.digest, vertex.options.ignore_cache), id);
        id
    }

    /// Gives a job a share in a node and in what it depends on.
    fn attach(&mut self, id: NodeId, interest: &Arc<Interest>) {
        let mut stack = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.take().or_else(|| stack.pop()) {
            let node = &mut self.nodes[id];
            if node.jobs.insert(interest.job, Arc::clone(interest)).is_some() {
                continue;
            }
            self.steps += 1;
            node.shell.fanout.attach(&interest.journal);
            for session in &interest.sessions {
                node.shell.sessions.add(session.clone());
            }
            if let VertexState::Joined { to } = node.state {
                self.refresh_sessions(to);
            }
            let inputs = self.nodes[id].slots.iter().map(|slot| slot.input);
            stack.extend(inputs.filter(|input| !self.nodes[*input].jobs.contains_key(&interest.job)));
        }
    }

    /// Takes a job's share in everything.
    fn leave(&mut self, job: JobNumber) {
        let waiting: Vec<_> =
            self.waiters.iter().filter(|(_, w)| w.job == job).map(|(number, _)| *number).collect();
        for waiter in waiting {
            if let Some(reply) = self.withdraw(waiter) {
                self.effects.push(Effect::Reply { reply, answer: Err(None) });
            }
        }
        let Some(mine) = self.jobs.remove(&job) else { return };
        let mut stack: Vec<NodeId> = mine.all.into_iter().collect();
        stack.sort_unstable();
        while let Some(id) = stack.pop() {
            let Some(node) = self.nodes.0.get_mut(&id) else { continue };
            let Some(interest) = node.jobs.remove(&job) else { continue };
            node.shell.fanout.detach(&interest.journal);
            stack.extend(node.slots.iter().map(|slot| slot.input));
            let joined = match node.state {
                VertexState::Joined { to } => Some(to),
                _ => None,
            };
            self.refresh_sessions(id);
            if let Some(to) = joined {
                self.refresh_sessions(to);
            }
            self.unwanted.push(id);
        }
    }

    /// Makes the sessions of a node those of its jobs and of the jobs that wait for its run.
    pub(super) fn refresh_sessions(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let joiners = node.joiners.iter().filter_map(|joiner| self.nodes.get(*joiner));
        let jobs = std::iter::once(node).chain(joiners).flat_map(|node| node.jobs.values());
        let wanted: Vec<_> = jobs.flat_map(|interest| &interest.sessions).collect();
        let group = &node.shell.sessions;
        for there in group.ids() {
            if !wanted.contains(&&there) {
                group.remove(&there);
            }
        }
        for session in wanted {
            group.add(session.clone());
        }
    }

    fn wait(&mut self, job: JobNumber, waiter: WaiterNumber, edge: Edge, reply: Reply<R>) {
        let Some(&node) = self.jobs.get(&job).and_then(|mine| mine.by_digest.get(&edge.vertex)) else {
            self.effects.push(Effect::Reply { reply, answer: Err(None) });
            return;
        };
        self.waiters.insert(waiter, Waiter { job, node, reply });
        self.nodes[node].waiters.insert(waiter, edge.output);
        self.nodes[node].wants.add(Level::Result, edge.output);
        self.enqueue(node);
    }

    /// Forgets a waiter and what it wants.
    fn withdraw(&mut self, waiter: WaiterNumber) -> Option<Reply<R>> {
        let Waiter { node, reply, .. } = self.waiters.remove(&waiter)?;
        if let Some(output) = self.nodes[node].waiters.remove(&waiter) {
            self.nodes[node].wants.remove(Level::Result, output);
        }
        self.enqueue(node);
        Some(reply)
    }

    /// Answers the waiters of a node that can be answered.
    pub(super) fn answer_waiters(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        if node.waiters.is_empty() {
            return;
        }
        let error = node.error().cloned();
        let ready: BTreeMap<WaiterNumber, _> = node
            .waiters
            .iter()
            .filter_map(|(waiter, output)| match (&error, node.outputs.get(output)) {
                (Some(error), _) => Some((*waiter, Err(Some(Arc::clone(error))))),
                (None, Some((result, _))) => Some((*waiter, Ok(result.clone()))),
                (None, None) => None,
            })
            .collect();
        for (waiter, answer) in ready {
            if let Some(reply) = self.withdraw(waiter) {
                self.effects.push(Effect::Reply { reply, answer });
            }
        }
    }

    fn ended(&mut self, task: TaskNumber, ending: Ending<R>) {
        let Some((id, kind)) = self.tasks.remove(&task) else { return };
        if self.nodes.get(id).is_none() {
            return;
        }
        match (kind, ending) {
            (TaskKind::Map, Ending::Mapped(result)) => self.mapped(id, result),
            (TaskKind::Look, Ending::Looked(result)) => self.looked(id, result),
            (TaskKind::Hash { slot }, Ending::Hashed(result)) => self.hashed(id, slot, result),
            (TaskKind::Load, Ending::Loaded(result)) => self.loaded(id, result),
            (TaskKind::Run, Ending::Ran(result)) => self.ran(id, result),
            (kind, _) => unreachable!("a task ends as what it was started as: {kind:?}"),
        }
        self.enqueue(id);
        self.unwanted.push(id);
    }

    /// A number for a task that works for a node.
    pub(super) fn task(&mut self, id: NodeId, kind: TaskKind) -> TaskNumber {
        self.next += 1;
        let task = TaskNumber(self.next);
        self.tasks.insert(task, (id, kind));
        task
    }

    pub(super) fn enqueue(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.0.get_mut(&id)
            && !node.queued
        {
            node.queued = true;
            self.queue.push_back(id);
        }
    }

    /// Tells the consumers of a node that it changed.
    pub(super) fn touch_consumers(&mut self, id: NodeId) {
        let consumers = std::mem::take(&mut self.nodes[id].consumers);
        for (consumer, slot) in &consumers {
            self.nodes[*consumer].touched.push(*slot);
            self.enqueue(*consumer);
        }
        self.steps += consumers.len() as u64;
        self.nodes[id].consumers = consumers;
    }

    /// Sets what a node asks of one of its inputs.
    pub(super) fn ask(&mut self, id: NodeId, slot: u32, level: Level) {
        let slot = &mut self.nodes[id].slots[slot as usize];
        let (input, output, old) = (slot.input, slot.output, slot.ask);
        if old != level {
            slot.ask = level;
            self.nodes[id].asks_all = None;
            let wants = &mut self.nodes[input].wants;
            wants.add(level, output);
            wants.remove(old, output);
            self.enqueue(input);
        }
    }

    /// Asks the same of all inputs.
    pub(super) fn ask_all(&mut self, id: NodeId, level: Level) {
        if self.nodes[id].asks_all == Some(level) {
            return;
        }
        let slots = self.nodes[id].slots.len();
        self.steps += slots as u64;
        for slot in 0..slots as u32 {
            self.ask(id, slot, level);
        }
        self.nodes[id].asks_all = Some(level);
    }

    /// Looks later whether anybody still has the node.
    pub(super) fn unwant(&mut self, id: NodeId) {
        self.unwanted.push(id);
    }

    /// Changes the state of a node.
    pub(super) fn become_(&mut self, id: NodeId, next: VertexState) {
        let node = &mut self.nodes[id];
        debug_assert!(node.state.may_become(&next), "{:?} -> {next:?}", node.state);
        node.state = next;
        self.enqueue(id);
        self.touch_consumers(id);
    }

    /// Removes a node that nobody has, and then those that it had.
    fn remove_unwanted(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let kept = !node.jobs.is_empty() || !node.consumers.is_empty() || !node.joiners.is_empty();
        if kept || !node.is_idle() {
            return;
        }
        if self.executions.remove(id) && node.is_done() {
            self.departed += 1;
        }
        self.ask_all(id, Level::Nothing);
        if let VertexState::Joined { to } = self.nodes[id].state {
            self.unjoin(id, to);
        }
        let Some(node) = self.nodes.0.remove(&id) else { return };
        let vertex = &node.shell.vertex;
        for (digest, ignoring) in [(vertex.digest, false), (vertex.digest, true)] {
            if self.by_digest.get(&(digest, ignoring)) == Some(&id) {
                self.by_digest.remove(&(digest, ignoring));
            }
        }
        for (index, slot) in node.slots.iter().enumerate() {
            self.nodes[slot.input].consumers.remove(&(id, index as u32));
            self.unwanted.push(slot.input);
        }
    }
}
