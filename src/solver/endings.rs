//! What follows when a task of a node ends: the other half of the [`Scheduler`]'s transitions.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::Arc;

use super::error::Cause;
use super::error::Phase;
use super::error::VertexError;
use super::event::Effect;
use super::event::IsGone;
use super::event::RunOutputs;
use super::index::Answer;
use super::index::Stored;
use super::key::EdgeKey;
use super::key::Key;
use super::scheduler::Nodes;
use super::scheduler::Scheduler;
use super::state::Content;
use super::state::Level;
use super::state::NodeId;
use super::state::Origin;
use super::state::Stage;
use super::state::VertexState;
use crate::oci::Digest;
use crate::ops::CacheMap;
use crate::ops::LoadError;
use crate::ops::OpError;

/// A result of a run that was lost is made again this often at most.
const MAX_REMADE: u32 = 1;

impl<R: Clone> Scheduler<R> {
    pub(super) fn mapped(&mut self, id: NodeId, result: Result<CacheMap<R>, Cause>) {
        let node = &self.nodes[id];
        let first = node.maps.is_empty();
        match (&node.state, result) {
            (VertexState::Mapping { .. }, Err(cause)) => {
                let error = self.own_error(id, Phase::CacheMap, cause);
                self.fail(id, error);
            }
            (VertexState::Mapping { .. }, Ok(map)) => self.learn(id, map),
            // Cancelled, but it was done.
            (VertexState::Stopping { .. }, Ok(map)) if first => self.learn(id, map),
            (VertexState::Stopping { back, .. }, _) => {
                let back = back.state();
                self.become_(id, back);
            }
            _ => {}
        }
    }

    fn learn(&mut self, id: NodeId, map: CacheMap<R>) {
        let node = &mut self.nodes[id];
        if map.inputs.len() != node.slots.len() {
            let cause = Cause::CacheMap { found: map.inputs.len(), inputs: node.slots.len() };
            let error = self.own_error(id, Phase::Result, cause);
            return self.fail(id, error);
        }
        node.shell.lineage.learn(map.opts.clone());
        if node.maps.is_empty() {
            for (slot, input) in node.slots.iter_mut().zip(&map.inputs) {
                if let Some(hash) = &input.content {
                    slot.content = Content::Unknown(Arc::clone(hash));
                }
            }
            node.maps.push(map);
            self.become_(id, VertexState::Mapped);
            for slot in 0..self.nodes[id].slots.len() as u32 {
                self.compare(id, slot);
            }
            return;
        }
        let key = Key::of(&map.digest, &[]);
        node.maps.push(map);
        if !node.keys.contains(&key) {
            node.keys.push(key);
            if !node.fresh {
                node.look.keys.push(key);
            }
        }
        self.become_(id, VertexState::Looking { then: Stage::Fast });
    }

    pub(super) fn looked(&mut self, id: NodeId, answer: Answer) {
        let node = &mut self.nodes[id];
        node.look.task = None;
        let asked = std::mem::take(&mut node.look.asked);
        self.steps += asked.len() as u64;
        for ((slot, from), keys) in asked.iter().zip(answer.links) {
            for key in keys {
                let through = &mut node.slots[*slot as usize];
                through.links.insert((*from, key));
                if !through.matched.insert(key) {
                    continue;
                }
                let reached = node.reached.entry(key).or_insert(0);
                *reached += 1;
                if *reached as usize == node.slots.len() && !node.keys.contains(&key) {
                    node.keys.push(key);
                    node.look.keys.push(key);
                }
            }
        }
        for record in answer.records {
            if !node.records.iter().any(|(r, _)| r.key == record.key && r.id == record.id) {
                node.records.push((record, false));
            }
        }
        for (slot, _) in asked {
            self.compare(id, slot);
        }
        self.touch_consumers(id);
    }

    pub(super) fn hashed(&mut self, id: NodeId, slot: u32, result: Result<Digest, Cause>) {
        let node = &mut self.nodes[id];
        let content = &mut node.slots[slot as usize].content;
        let Content::Hashing { hash, cancelled, .. } = content else { return };
        let (hash, cancelled) = (Arc::clone(hash), *cancelled);
        match result {
            Ok(digest) => {
                let key = Key::of_content(&digest);
                *content = Content::Known(key);
                if !node.fresh {
                    node.look.links.push((slot, EdgeKey { key, output: 0 }));
                }
            }
            Err(cause) => {
                *content = Content::Unknown(hash);
                let gone = matches!(&cause, Cause::Op(OpError::InputGone { .. }));
                let again = cancelled || (gone && self.lose_input(id, slot));
                if !again && self.nodes[id].error().is_none() {
                    let error = self.own_error(id, Phase::Result, cause);
                    self.fail(id, error);
                }
            }
        }
        self.compare(id, slot);
    }

    pub(super) fn loaded(&mut self, id: NodeId, result: Result<Option<R>, LoadError>) {
        let node = &mut self.nodes[id];
        let Some(record) = node.loading.take() else { return };
        match result {
            Ok(result) => {
                let key = node.records[record].0.key;
                node.outputs.insert(key.output, (result, Origin::Record(record)));
                self.adopt(id, key.key);
                self.report_skipped(id);
                match self.nodes[id].state.clone() {
                    VertexState::Loading { back, .. } if self.nodes[id].missing_output().is_some() => {
                        self.rest(id, back);
                    }
                    _ => self.done(id),
                }
            }
            Err(_) => match node.state.clone() {
                VertexState::Loading { back, .. } => {
                    self.rest(id, back);
                }
                VertexState::Stopping { back, .. } => {
                    // It was not the record's fault.
                    node.records[record].1 = false;
                    self.become_(id, back.state());
                }
                _ => {}
            },
        }
    }

    pub(super) fn ran(&mut self, id: NodeId, result: Result<RunOutputs<R>, Cause>) {
        match (self.nodes[id].state.clone(), result) {
            (_, Ok(outputs)) => {
                let node = &mut self.nodes[id];
                node.ran = Some(outputs.len());
                let mut results = Vec::new();
                for (output, (result, name)) in (0..).zip(outputs) {
                    node.outputs.entry(output).or_insert((result, Origin::Run));
                    results.extend(name.map(|name| (output, name)));
                }
                self.store(id, results);
                self.done(id);
            }
            (VertexState::Stopping { back, .. }, Err(_)) => {
                self.executions.remove(id);
                self.become_(id, back.state());
                self.kick_joiners(id);
            }
            (_, Err(cause)) => {
                self.executions.remove(id);
                if let Cause::Op(OpError::InputGone { input, .. }) = &cause
                    && let Ok(slot) = u32::try_from(*input)
                    && (slot as usize) < self.nodes[id].slots.len()
                    && self.lose_input(id, slot)
                {
                    self.rest(id, Stage::Final);
                    return self.kick_joiners(id);
                }
                let error = self.own_error(id, Phase::Result, cause);
                self.fail(id, error);
            }
        }
    }

    /// Records the results of a run, under each key of a root and under the target of others.
    fn store(&mut self, id: NodeId, results: Vec<(u32, crate::ops::ResultId)>) {
        if results.is_empty() {
            return;
        }
        let node = &self.nodes[id];
        let keys = match node.slots.is_empty() {
            true => node.keys.clone(),
            false => node.target().into_iter().collect(),
        };
        for key in keys {
            let links = self.missing_links(id, key);
            let results = results.clone();
            self.effects.push(Effect::Store(Stored { key, links, results, created: 0 }));
        }
    }

    /// Takes on a key under which the result is known elsewhere, and links the inputs' keys to it.
    pub(super) fn adopt(&mut self, id: NodeId, key: Key) {
        let links = self.missing_links(id, key);
        if !links.is_empty() {
            let stored = Stored { key, links, results: Vec::new(), created: 0 };
            self.effects.push(Effect::Store(stored));
        }
        let node = &mut self.nodes[id];
        if !node.keys.contains(&key) {
            node.keys.push(key);
        }
    }

    /// Reports the ancestors that nobody has to run, now that a result below them is known.
    fn report_skipped(&mut self, id: NodeId) {
        self.nodes[id].reported = true;
        let mut stack: Vec<NodeId> = self.nodes[id].slots.iter().map(|slot| slot.input).collect();
        while let Some(id) = stack.pop() {
            let node = &mut self.nodes[id];
            if node.reported || node.want() == Level::Result {
                continue;
            }
            node.reported = true;
            self.steps += 1;
            self.effects.push(Effect::Skipped(Arc::clone(&node.shell)));
            stack.extend(node.slots.iter().map(|slot| slot.input));
        }
    }

    /// Every wanted output is known.
    pub(super) fn done(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        if let (Some(output), Some(outputs)) = (node.missing_output(), node.ran) {
            let error = self.own_error(id, Phase::Result, Cause::Output { output, outputs });
            return self.fail(id, error);
        }
        self.become_(id, VertexState::Done);
        self.ask_all(id, Level::Nothing);
        self.answer_waiters(id);
        self.kick_joiners(id);
    }

    pub(super) fn own_error(&self, id: NodeId, phase: Phase, cause: Cause) -> Arc<VertexError> {
        Arc::new(VertexError { vertex: self.nodes[id].shell.vertex.digest, phase, cause })
    }

    pub(super) fn fail(&mut self, id: NodeId, error: Arc<VertexError>) {
        let node = &mut self.nodes[id];
        if let Some(task) = node.state.task().filter(|task| self.tasks.contains_key(task)) {
            self.effects.push(Effect::Cancel { task });
        }
        node.shell.lineage.forget();
        self.cancel_hashes(id);
        self.executions.remove(id);
        self.become_(id, VertexState::Failed { error });
        self.ask_all(id, Level::Nothing);
        self.answer_waiters(id);
        self.kick_joiners(id);
        self.unwant(id);
    }

    /// The bytes of an input can't be had: it has to come from elsewhere.
    fn lose_input(&mut self, id: NodeId, slot: u32) -> bool {
        let slot = &self.nodes[id].slots[slot as usize];
        let (input, output) = (slot.input, slot.output);
        self.lose(input, output)
    }

    /// Gives up a result, and with it the inputs' results that have what is gone: the op would only make
    /// the same of them again. False if nothing is left to try, or if the result does not have it.
    pub(super) fn lose_all(&mut self, id: NodeId, output: u32, is_gone: &IsGone<R>) -> bool {
        let is_gone = |nodes: &Nodes<R>, (id, output): (NodeId, u32)| match nodes[id].outputs.get(&output) {
            Some((result, _)) => result.as_ref().is_some_and(&**is_gone),
            None => false,
        };
        if !self.nodes[id].outputs.contains_key(&output) {
            // It was given up already.
            return true;
        }
        if !is_gone(&self.nodes, (id, output)) {
            return false;
        }
        // In the order of their numbers inputs come before what they are inputs of.
        let mut lost = BTreeSet::from([(id, output)]);
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            self.steps += 1 + self.nodes[id].slots.len() as u64;
            for slot in &self.nodes[id].slots {
                let input = (slot.input, slot.output);
                if is_gone(&self.nodes, input) && lost.insert(input) {
                    stack.push(slot.input);
                }
            }
        }
        let mut given_up = HashSet::new();
        for (id, output) in lost {
            let node = &mut self.nodes[id];
            if node.slots.iter().any(|slot| given_up.contains(&slot.input)) {
                // Of other inputs it makes something else.
                node.remade = 0;
            }
            if self.lose(id, output) {
                given_up.insert(id);
            }
        }
        given_up.contains(&id)
    }

    /// Gives up a result, so that the next record is tried, or the op run. False if it was made anew
    /// already and lost again.
    pub(super) fn lose(&mut self, id: NodeId, output: u32) -> bool {
        let node = &mut self.nodes[id];
        let Some((_, origin)) = node.outputs.get(&output) else { return true };
        match *origin {
            Origin::Record(record) => {
                let lost = node.records[record].0.id.clone();
                for (record, tried) in &mut node.records {
                    *tried |= record.id == lost;
                }
                node.outputs.remove(&output);
            }
            Origin::Run if node.remade < MAX_REMADE => {
                node.remade += 1;
                node.ran = None;
                node.outputs.retain(|_, (_, origin)| *origin != Origin::Run);
                self.executions.remove(id);
            }
            Origin::Run => return false,
        }
        if self.nodes[id].is_done() {
            self.rest(id, Stage::Fast);
        }
        self.touch_consumers(id);
        true
    }
}
