//! How nodes of the same key share a run.
//!
//! A node that is about to run joins one that runs, has run, or is being cancelled, if their keys or
//! the links to them meet. It waits for that run only: if the run ends without a result, each of those
//! who waited decides anew, and the first of them runs.

use std::sync::Arc;

use super::event::Effect;
use super::scheduler::Scheduler;
use super::state::Level;
use super::state::NodeId;
use super::state::Origin;
use super::state::Stage;
use super::state::VertexState;

impl<R: Clone> Scheduler<R> {
    /// Joins a run of another vertex with the same key.
    pub(super) fn join_run(&mut self, id: NodeId) -> bool {
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
    pub(super) fn follow(&mut self, id: NodeId, to: NodeId, want: Level) -> bool {
        let other = &self.nodes[to];
        let shell = Arc::clone(&self.nodes[id].shell);
        match &other.state {
            VertexState::Done if other.ran.is_some() => {
                let (outputs, ran, key) = (other.outputs.clone(), other.ran, other.target());
                let endow = Arc::clone(&self.endow);
                let node = &mut self.nodes[id];
                let opts = node.getter();
                for (output, (result, _)) in outputs {
                    let result = result.map(|result| endow(result, &opts));
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
                let error = self.own_error(id, error.phase, error.cause.clone());
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
}
