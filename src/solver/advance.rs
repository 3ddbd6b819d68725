//! What a node does next: the decisions of the [`Scheduler`], one node at a time.
//!
//! [`Scheduler::advance`] brings a node's slots up to date, then makes transitions until none is due.
//! Every decision is a function of the node's state, its counts and what is wanted of it.

use std::sync::Arc;

use super::event::Effect;
use super::event::TaskNumber;
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
use super::state::Origin;
use super::state::Rest;
use super::state::Seen;
use super::state::Slot;
use super::state::Stage;
use super::state::VertexState;
use crate::oci::Digest;
use crate::ops::CacheOptGetter;

impl<R: Clone> Scheduler<R> {
    /// Makes every transition of the node that is due.
    pub(super) fn advance(&mut self, id: NodeId) {
        self.compare_touched(id);
        self.answer_waiters(id);
        // A step may ask an input that has failed long ago.
        while !self.fail_with_input(id) && self.step(id) {
            self.steps += 1;
        }
        self.fail_with_input(id);
    }

    /// Makes one transition; false if none is due.
    fn step(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        let want = node.want();
        match node.state.clone() {
            VertexState::New => match want {
                Level::Nothing => false,
                _ => {
                    self.ask_all(id, Level::Fast);
                    self.start_map(id)
                }
            },
            VertexState::Mapping { task } if want == Level::Nothing => {
                let back = if node.has_fast { Rest::Keyed(Stage::Fast) } else { Rest::New };
                self.stop(id, task, back)
            }
            VertexState::Mapped => {
                let all_fast = node.counts.fast as usize == node.slots.len();
                match want {
                    Level::Nothing => {
                        self.ask_all(id, Level::Nothing);
                        false
                    }
                    _ if all_fast => self.start_looking(id),
                    _ => {
                        self.ask_all(id, Level::Fast);
                        false
                    }
                }
            }
            VertexState::Looking { then } => {
                self.pump_look(id);
                if !self.nodes[id].look.is_quiet() {
                    return false;
                }
                self.nodes[id].has_fast = true;
                self.rest(id, then)
            }
            VertexState::Keyed { stage } => self.leave_rest(id, stage, want),
            VertexState::Growing => self.grow(id, want),
            VertexState::Loading { task, back, .. } if node.missing_output().is_none() => {
                self.stop(id, task, Rest::Keyed(back))
            }
            VertexState::Gathering => self.gather(id, want),
            VertexState::Joined { to } => self.follow(id, to, want),
            VertexState::Running { task } if want < Level::Result => {
                self.stop(id, task, Rest::Keyed(Stage::Final))
            }
            VertexState::Done if node.missing_output().is_some() => self.rest(id, Stage::Fast),
            VertexState::Mapping { .. }
            | VertexState::Loading { .. }
            | VertexState::Running { .. }
            | VertexState::Stopping { .. }
            | VertexState::Done
            | VertexState::Failed { .. } => false,
        }
    }

    /// Compares the slots that were touched with their inputs.
    fn compare_touched(&mut self, id: NodeId) {
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

    /// Fails a node that needs an input which failed.
    fn fail_with_input(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        let waits = matches!(
            node.state,
            VertexState::Mapping { .. } | VertexState::Mapped | VertexState::Growing | VertexState::Gathering
        );
        if !waits || node.counts.failed == 0 {
            return false;
        }
        let asked = node.slots.iter().filter(|slot| slot.ask > Level::Nothing);
        let failed = asked.filter_map(|slot| self.nodes[slot.input].error()).next().cloned();
        let Some(error) = failed else { return false };
        self.fail(id, error);
        true
    }

    fn start_map(&mut self, id: NodeId) -> bool {
        let task = self.task(id, TaskKind::Map);
        let node = &mut self.nodes[id];
        node.reported |= node.slots.is_empty();
        let (shell, index) = (Arc::clone(&node.shell), node.maps.len());
        self.effects.push(Effect::Map { task, shell, index });
        self.become_(id, VertexState::Mapping { task });
        true
    }

    /// Computes the first key and looks up what is known of it and of the inputs' keys.
    fn start_looking(&mut self, id: NodeId) -> bool {
        let node = &mut self.nodes[id];
        if node.keys.is_empty() {
            let mut inputs = Vec::with_capacity(node.slots.len());
            for index in 0..self.nodes[id].slots.len() {
                let slot = &self.nodes[id].slots[index];
                let first = self.nodes[slot.input].keys[0];
                let key = EdgeKey { key: first, output: slot.output };
                inputs.push((key, self.nodes[id].selector(index as u32)));
            }
            let node = &mut self.nodes[id];
            let op = node.maps[0].digest;
            node.keys.push(Key::of(&op, &inputs));
        }
        // An input whose content counts is as good as another of the same content.
        let stale = |slot: &Slot<R>| matches!(slot.content, Content::Ignored) && self.nodes[slot.input].fresh;
        let fresh = self.nodes[id].fresh || self.nodes[id].slots.iter().any(stale);
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

    /// Goes to rest with its keys as complete as `stage` says, or, for a root, as its maps are.
    pub(super) fn rest(&mut self, id: NodeId, stage: Stage) -> bool {
        let node = &mut self.nodes[id];
        node.phase = None;
        let stage = match (node.slots.is_empty(), node.maps.last()) {
            (true, Some(map)) if map.complete => Stage::Final,
            (true, _) => Stage::Fast,
            (false, _) => stage,
        };
        self.become_(id, VertexState::Keyed { stage });
        true
    }

    /// Leaves rest for whatever is wanted.
    fn leave_rest(&mut self, id: NodeId, stage: Stage, want: Level) -> bool {
        if want < Level::Slow {
            // Inputs have given what they were asked for.
            self.ask_all(id, Level::Nothing);
            return false;
        }
        if want == Level::Result {
            let Some(output) = self.nodes[id].missing_output() else {
                // A joiner waits for a run; there is none, so it has to see for itself.
                self.kick_joiners(id);
                return false;
            };
            if let Some(record) = self.nodes[id].best_record_of(output) {
                return self.start_load(id, record, stage);
            }
            if self.join_run(id) {
                return true;
            }
        } else if self.nodes[id].best_record().is_some() {
            return false;
        }
        match stage {
            Stage::Fast if self.nodes[id].slots.is_empty() => self.start_map(id),
            Stage::Fast => {
                self.become_(id, VertexState::Growing);
                true
            }
            Stage::Final if want == Level::Result => {
                self.become_(id, VertexState::Gathering);
                true
            }
            Stage::Final => false,
        }
    }

    fn start_load(&mut self, id: NodeId, record: usize, back: Stage) -> bool {
        self.ask_all(id, Level::Nothing);
        let task = self.task(id, TaskKind::Load);
        let node = &mut self.nodes[id];
        node.records[record].1 = true;
        node.loading = Some(record);
        let lineage = &node.shell.lineage;
        let getter = node.getter.get_or_insert_with(|| Arc::new(CacheOptGetter::new(Arc::clone(lineage))));
        let (shell, opts) = (Arc::clone(&node.shell), Arc::clone(getter));
        let record_id = node.records[record].0.id.clone();
        self.effects.push(Effect::Load { task, shell, id: record_id, opts });
        self.become_(id, VertexState::Loading { task, back });
        true
    }

    /// Lets the inputs get further keys and their content, as far as a record can still follow from it.
    fn grow(&mut self, id: NodeId, want: Level) -> bool {
        let record = self.nodes[id].best_record().is_some();
        if want < Level::Slow || (record && want == Level::Slow) {
            return self.park(id, Stage::Fast);
        }
        if let Some(output) = self.nodes[id].missing_output()
            && let Some(record) = self.nodes[id].best_record_of(output)
        {
            self.cancel_hashes(id);
            self.rest(id, Stage::Fast);
            return self.start_load(id, record, Stage::Fast);
        }
        self.pump_look(id);
        let (node, counts) = (&self.nodes[id], self.nodes[id].counts);
        if node.look.is_quiet() {
            if counts.dead > 0 || counts.settled as usize == node.slots.len() {
                self.cancel_hashes(id);
                return self.rest(id, Stage::Final);
            }
            // First those that nothing is known of: they may settle it without the others.
            let all = counts.open == 0;
            if self.nodes[id].phase != Some(all) {
                self.nodes[id].phase = Some(all);
                self.ask_open(id, all);
            }
        }
        self.start_hashes(id);
        false
    }

    /// Asks the inputs that are not settled: all, or those from which no key leads on.
    fn ask_open(&mut self, id: NodeId, all: bool) {
        let slots = self.nodes[id].slots.len();
        self.steps += slots as u64;
        for index in 0..slots as u32 {
            let slot = &self.nodes[id].slots[index as usize];
            if slot.seen.settled || !(all || slot.seen.open) {
                continue;
            }
            let level = match slot.content {
                Content::Ignored => Level::Slow,
                _ => Level::Result,
            };
            self.ask(id, index, level);
        }
    }

    /// Hashes the content of inputs that count by it and have their result.
    fn start_hashes(&mut self, id: NodeId) {
        if self.nodes[id].counts.unhashed == 0 {
            return;
        }
        let slots = self.nodes[id].slots.len();
        self.steps += slots as u64;
        for index in 0..slots {
            let slot = &self.nodes[id].slots[index];
            let Content::Unknown(hash) = &slot.content else { continue };
            if slot.ask < Level::Result {
                continue;
            }
            let Some((result, _)) = self.nodes[slot.input].outputs.get(&slot.output) else { continue };
            let (hash, input) = (Arc::clone(hash), result.clone());
            let task = self.task(id, TaskKind::Hash { slot: index as u32 });
            let node = &mut self.nodes[id];
            node.slots[index].content = Content::Hashing { task, hash: Arc::clone(&hash), cancelled: false };
            let shell = Arc::clone(&node.shell);
            self.effects.push(Effect::Hash { task, shell, hash, input });
        }
    }

    pub(super) fn cancel_hashes(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if node.counts.unhashed == 0 {
            return;
        }
        for slot in &mut node.slots {
            if let Content::Hashing { task, cancelled, .. } = &mut slot.content
                && !std::mem::replace(cancelled, true)
            {
                self.effects.push(Effect::Cancel { task: *task });
            }
        }
    }

    /// Stops waiting for inputs.
    fn park(&mut self, id: NodeId, stage: Stage) -> bool {
        self.cancel_hashes(id);
        self.ask_all(id, Level::Nothing);
        self.rest(id, stage)
    }

    /// Gets every input's result, then runs the op or joins a run of it.
    fn gather(&mut self, id: NodeId, want: Level) -> bool {
        if want < Level::Result {
            return self.park(id, Stage::Final);
        }
        self.ask_all(id, Level::Result);
        self.start_hashes(id);
        let (node, counts) = (&self.nodes[id], self.nodes[id].counts);
        if (counts.result as usize) < node.slots.len() || counts.unhashed > 0 {
            return false;
        }
        if node.departed != self.departed && !node.fresh {
            return self.look_again(id);
        }
        if self.join_run(id) {
            return true;
        }
        self.start_run(id)
    }

    /// A run of the same key may have ended, and its node gone, since the last lookup.
    fn look_again(&mut self, id: NodeId) -> bool {
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

    fn start_run(&mut self, id: NodeId) -> bool {
        let inputs: Option<Vec<Option<R>>> = self.nodes[id]
            .slots
            .iter()
            .map(|slot| Some(self.nodes[slot.input].outputs.get(&slot.output)?.0.clone()))
            .collect();
        // The counts say that every input has its result.
        let Some(inputs) = inputs else { return false };
        self.ask_all(id, Level::Nothing);
        let links = self.links(id).into_iter().flatten().collect();
        self.executions.insert(id, self.nodes[id].keys.clone(), links);
        let task = self.task(id, TaskKind::Run);
        let node = &mut self.nodes[id];
        node.reported = true;
        let shell = Arc::clone(&node.shell);
        self.effects.push(Effect::Run { task, shell, inputs });
        self.become_(id, VertexState::Running { task });
        true
    }

    /// Joins a run of another vertex with the same key.
    fn join_run(&mut self, id: NodeId) -> bool {
        let fresh = self.nodes[id].fresh;
        // One that ignores the cache serves everybody; one that does not serves those who don't either.
        let fits = |other: NodeId| {
            let Some(node) = self.nodes.get(other) else { return false };
            // A run that was cancelled is waited for as well, so that two never overlap.
            let runs = matches!(node.state, VertexState::Running { .. } | VertexState::Stopping { .. })
                || (node.is_done() && node.ran.is_some());
            other != id && runs && (node.fresh || !fresh)
        };
        let links = self.links(id).into_iter();
        let Some(to) = self.executions.find(&self.nodes[id].keys, links, fits) else { return false };
        self.ask_all(id, Level::Nothing);
        self.nodes[to].joiners.push(id);
        self.become_(id, VertexState::Joined { to });
        self.refresh_sessions(to);
        self.enqueue(to);
        let node = &mut self.nodes[id];
        node.reported = true;
        self.effects.push(Effect::Joined { shell: Arc::clone(&self.nodes[id].shell), ended: None });
        true
    }

    /// Takes the outcome of the run that was joined.
    fn follow(&mut self, id: NodeId, to: NodeId, want: Level) -> bool {
        let other = &self.nodes[to];
        let shell = Arc::clone(&self.nodes[id].shell);
        match &other.state {
            VertexState::Done if other.ran.is_some() => {
                let (outputs, ran, key) = (other.outputs.clone(), other.ran, other.target());
                let node = &mut self.nodes[id];
                for (output, (result, _)) in outputs {
                    node.outputs.entry(output).or_insert((result, Origin::Run));
                }
                node.ran = ran;
                self.effects.push(Effect::Joined { shell, ended: Some(Ok(())) });
                self.unjoin(id, to);
                if let Some(key) = key {
                    self.adopt(id, key);
                }
                self.done(id);
                true
            }
            VertexState::Failed { error } => {
                let error = self.own_error(id, error.cause.clone());
                let ended = Some(Err(Arc::clone(&error)));
                self.effects.push(Effect::Joined { shell, ended });
                self.unjoin(id, to);
                self.fail(id, error);
                true
            }
            VertexState::Running { .. } | VertexState::Stopping { .. } if want == Level::Result => false,
            _ => {
                self.effects.push(Effect::Joined { shell, ended: Some(Ok(())) });
                self.unjoin(id, to);
                self.rest(id, Stage::Fast)
            }
        }
    }

    /// Forgets that `id` waits for the run of `to`.
    pub(super) fn unjoin(&mut self, id: NodeId, to: NodeId) {
        self.nodes[to].joiners.retain(|joiner| *joiner != id);
        self.refresh_sessions(to);
        self.enqueue(to);
        self.unwant(to);
    }

    /// Makes those who wait for the node's run look at it again.
    pub(super) fn kick_joiners(&mut self, id: NodeId) {
        for joiner in self.nodes[id].joiners.clone() {
            self.enqueue(joiner);
        }
    }

    /// Cancels a task that nobody wants, and waits for its end.
    fn stop(&mut self, id: NodeId, task: TaskNumber, back: Rest) -> bool {
        self.effects.push(Effect::Cancel { task });
        self.ask_all(id, Level::Nothing);
        self.become_(id, VertexState::Stopping { task, back });
        true
    }
}
