//! What a node does next: the decisions of the [`Scheduler`], one node at a time.
//!
//! [`Scheduler::advance`] brings a node's slots up to date, then makes transitions until none is due.
//! Every decision is a function of the node's state, its counts and what is wanted of it.

use std::sync::Arc;

use super::event::Effect;
use super::event::TaskNumber;
use super::scheduler::Scheduler;
use super::scheduler::TaskKind;
use super::state::Content;
use super::state::Level;
use super::state::NodeId;
use super::state::Rest;
use super::state::Stage;
use super::state::VertexState;

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
                        self.cancel_hashes(id);
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
        let (shell, opts) = (Arc::clone(&node.shell), node.getter());
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
    pub(super) fn start_hashes(&mut self, id: NodeId) {
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

    /// Cancels a task that nobody wants, and waits for its end.
    fn stop(&mut self, id: NodeId, task: TaskNumber, back: Rest) -> bool {
        self.effects.push(Effect::Cancel { task });
        self.ask_all(id, Level::Nothing);
        self.become_(id, VertexState::Stopping { task, back });
        true
    }
}
