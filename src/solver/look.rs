//! How a node learns what is known: its slots compared with its inputs, its keys, and the lookups of
//! links and records by them.

use super::event::Effect;
use super::index::Query;
use super::key::EdgeKey;
use super::key::Key;
use super::key::Link;
use super::scheduler::Scheduler;
use super::scheduler::TaskKind;
use super::state::Content;
use super::state::Level;
use super::state::Look;
use super::state::NodeId;
use super::state::Seen;
use super::state::Slot;
use super::state::Stage;
use super::state::VertexState;
use crate::oci::Digest;

impl<R: Clone> Scheduler<R> {
    /// Compares the slots that were touched with their inputs.
    pub(super) fn compare_touched(&mut self, id: NodeId) {
        let touched = std::mem::take(&mut self.nodes[id].touched);
        self.steps += touched.len() as u64;
        for slot in touched {
            self.compare(id, slot);
        }
    }

    /// Brings one slot, the counts and the keys to look up in line with the input.
    pub(super) fn compare(&mut self, id: NodeId, index: u32) {
        let slot = &self.nodes[id].slots[index as usize];
        let input = &self.nodes[slot.input];
        let level = input.level();
        // Until the op has said whether the content of the input counts, nothing is settled.
        let settled = match slot.content {
            Content::Ignored => level >= Level::Slow && !self.nodes[id].maps.is_empty(),
            Content::Known(_) => true,
            Content::Unknown(_) | Content::Hashing { .. } => false,
        };
        let settled = settled || slot.seen.settled;
        let unmatched = slot.matched.is_empty();
        let seen = Seen {
            fast: level >= Level::Fast,
            settled,
            dead: settled && unmatched,
            open: !settled && unmatched,
            result: input.outputs.contains_key(&slot.output),
            unhashed: matches!(slot.content, Content::Unknown(_) | Content::Hashing { .. }),
            failed: input.error().is_some(),
        };
        let fresh = input.fresh;
        let new_keys: Vec<EdgeKey> = input
            .keys
            .get(slot.queried..)
            .unwrap_or_default()
            .iter()
            .map(|key| EdgeKey { key: *key, output: slot.output })
            .collect();
        let node = &mut self.nodes[id];
        let old = std::mem::replace(&mut node.slots[index as usize].seen, seen);
        node.counts.replace(old, seen);
        // Keys are looked up once the op is known, and where a result that ignores the cache does not
        // count by its origin.
        if node.maps.is_empty() || node.fresh || fresh || !seen.fast {
            return;
        }
        node.slots[index as usize].queried += new_keys.len();
        node.look.links.extend(new_keys.into_iter().map(|key| (index, key)));
    }

    /// Computes the first key and looks up what is known of it and of the inputs' keys. False if the content of an
    /// input has to be known first.
    pub(super) fn start_looking(&mut self, id: NodeId) -> bool {
        // An input whose content counts is as good as another of the same content.
        let stale = |slot: &Slot<R>| matches!(slot.content, Content::Ignored) && self.nodes[slot.input].fresh;
        let fresh = self.nodes[id].fresh || self.nodes[id].slots.iter().any(stale);
        if self.nodes[id].keys.is_empty() {
            if !fresh && self.await_fresh_content(id) {
                return false;
            }
            let mut inputs = Vec::with_capacity(self.nodes[id].slots.len());
            for index in 0..self.nodes[id].slots.len() {
                let slot = &self.nodes[id].slots[index];
                let input = &self.nodes[slot.input];
                inputs.push(match slot.content {
                    Content::Known(key) if !fresh && input.fresh => (EdgeKey { key, output: 0 }, None),
                    _ => {
                        let key = EdgeKey { key: input.keys[0], output: slot.output };
                        (key, self.nodes[id].selector(index as u32))
                    }
                });
            }
            let node = &mut self.nodes[id];
            let op = node.maps[0].digest;
            node.keys.push(Key::of(&op, &inputs));
        }
        let node = &mut self.nodes[id];
        node.departed = self.departed;
        node.fresh = fresh;
        if fresh {
            node.has_fast = true;
            node.look = Look::default();
            return self.rest(id, Stage::Final);
        }
        node.look.keys = node.keys.clone();
        self.become_(id, VertexState::Looking { then: Stage::Fast });
        for slot in 0..self.nodes[id].slots.len() as u32 {
            self.compare(id, slot);
        }
        true
    }

    /// Gets the content of inputs that ignore the cache, if it counts: their keys are those of what was there before,
    /// and lead to what was made of that. False if all of it is known.
    fn await_fresh_content(&mut self, id: NodeId) -> bool {
        let slots = self.nodes[id].slots.len();
        self.steps += slots as u64;
        let mut awaited = false;
        for index in 0..slots as u32 {
            let slot = &self.nodes[id].slots[index as usize];
            let known = matches!(slot.content, Content::Ignored | Content::Known(_));
            if !known && self.nodes[slot.input].fresh {
                awaited = true;
                self.ask(id, index, Level::Result);
            }
        }
        if awaited {
            self.start_hashes(id);
        }
        awaited
    }

    /// Starts a lookup if there is something to look up and none is under way.
    pub(super) fn pump_look(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if node.look.task.is_some() || node.look.is_quiet() {
            return;
        }
        let Some(op) = node.op() else { return };
        let asked = std::mem::take(&mut node.look.links);
        let keys = std::mem::take(&mut node.look.keys);
        let links = asked.iter().map(|(slot, key)| self.link(id, *slot, *key, &op)).collect();
        let task = self.task(id, TaskKind::Look);
        let look = &mut self.nodes[id].look;
        look.asked = asked;
        look.task = Some(task);
        self.effects.push(Effect::Look { task, query: Query { links, keys } });
    }

    /// A run of the same key may have ended, and its node gone, since the last lookup.
    pub(super) fn look_again(&mut self, id: NodeId) -> bool {
        let node = &mut self.nodes[id];
        node.departed = self.departed;
        node.reached.clear();
        node.look.keys = node.keys.clone();
        for slot in &mut node.slots {
            slot.queried = 0;
            slot.matched.clear();
            slot.links.clear();
        }
        self.steps += node.slots.len() as u64;
        self.become_(id, VertexState::Looking { then: Stage::Final });
        for slot in 0..self.nodes[id].slots.len() as u32 {
            self.compare(id, slot);
            if let Content::Known(key) = self.nodes[id].slots[slot as usize].content {
                self.nodes[id].look.links.push((slot, EdgeKey { key, output: 0 }));
            }
        }
        true
    }

    /// The link from a key of an input through the op. The hash of content stands for itself: a
    /// selector says what is hashed, and so is in it.
    fn link(&self, id: NodeId, slot: u32, key: EdgeKey, op: &Digest) -> Link {
        let node = &self.nodes[id];
        let content = matches!(node.slots[slot as usize].content, Content::Known(known) if known == key.key);
        let selector = if content { None } else { node.selector(slot) };
        Link::new(key, slot, op, selector.as_ref())
    }

    /// All keys of an input, the first one first; the hash of its content last.
    fn input_keys(&self, id: NodeId, slot: u32) -> impl Iterator<Item = EdgeKey> {
        let slot = &self.nodes[id].slots[slot as usize];
        let content = match slot.content {
            Content::Known(key) => Some(EdgeKey { key, output: 0 }),
            _ => None,
        };
        let output = slot.output;
        self.nodes[slot.input].keys.iter().map(move |key| EdgeKey { key: *key, output }).chain(content)
    }

    /// Every link that leads to the vertex, slot by slot.
    pub(super) fn links(&self, id: NodeId) -> Vec<Vec<Link>> {
        let Some(op) = self.nodes[id].op() else { return Vec::new() };
        (0..self.nodes[id].slots.len() as u32)
            .map(|slot| self.input_keys(id, slot).map(|key| self.link(id, slot, key, &op)).collect())
            .collect()
    }

    /// The links to `key` that the index does not have.
    pub(super) fn missing_links(&self, id: NodeId, key: Key) -> Vec<Link> {
        let node = &self.nodes[id];
        let Some(op) = node.op() else { return Vec::new() };
        let mut missing = Vec::new();
        for slot in 0..node.slots.len() as u32 {
            for from in self.input_keys(id, slot) {
                if !node.slots[slot as usize].links.contains(&(from, key)) {
                    missing.push(self.link(id, slot, from, &op));
                }
            }
        }
        missing
    }
}
