//! What the scheduler knows of one vertex: [`Node`], with its [`VertexState`] and one [`Slot`] per input.
//!
//! # States
//!
//! ```text
//!  New ──▶ Mapping ──▶ Mapped ──▶ Looking ──▶ Keyed(Fast) ──▶ Growing ──▶ Keyed(Final)
//!            ▲  │         │          ▲  │       │  ▲   │          │         │  ▲  │
//!            │  └─(next map of a root)──┼───────┘  │   │          │         │  │  │
//!            │                          │          └───┼──────────┘         │  │  │
//!            │                          │              ▼                    ▼  │  ▼
//!            │                          │           Loading ◀───────────────┘  │ Gathering
//!            │                          │           │  │  │                    │  │  │
//!            │                          └───────────┼──┼──┼── (a run departed) ┼──┘  │
//!            │                                      │  │  └──(next record)────▶┤     ▼
//!         Stopping ◀── Mapping, Loading, Running    │  │                       │  Running ──▶ Done
//!                                                   ▼  ▼                       │     │
//!                                                 Done Keyed          Joined ──┴─────┴──▶ Done
//! ```
//!
//! - *Fast* keys follow from cache maps alone. *Final* keys include those that follow from content.
//! - `Keyed` is where a vertex rests that nobody wants more of. A vertex that nobody wants at all
//!   returns to the last state of rest; a task that runs for it is cancelled, and `Stopping` waits for
//!   its end, so that two runs of one op never overlap.
//! - `Failed` is reached from every state with a task, and from every state that waits for inputs. It
//!   is final: a later job gets a new node.
//!
//! [`VertexState::may_become`] is the table; every change goes through it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::VertexError;
use super::event::Interest;
use super::event::JobNumber;
use super::event::TaskNumber;
use super::event::WaiterNumber;
use super::index::Record;
use super::key::EdgeKey;
use super::key::Key;
use super::scheduler::Shell;
use crate::oci::Digest;
use crate::oci::QuickMap;
use crate::oci::QuickSet;
use crate::ops::CacheMap;
use crate::ops::CacheOptGetter;
use crate::ops::ContentDigest;

/// Names a node for as long as the solver lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

/// How much is asked of a vertex, or known of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Level {
    #[default]
    Nothing,
    /// The keys that follow from cache maps.
    Fast,
    /// All of its keys, or a result that can be loaded.
    Slow,
    /// The result.
    Result,
}

/// How complete the keys of a vertex are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Fast,
    Final,
}

/// See the drawing in the module.
#[derive(Clone, Debug)]
pub enum VertexState {
    /// Nothing is known.
    New,
    /// The op is asked for a cache map.
    Mapping {
        task: TaskNumber,
    },
    /// The cache map is known; inputs have to get their keys.
    Mapped,
    /// Keys are looked up; then they are as complete as `then` says.
    Looking {
        then: Stage,
    },
    /// At rest.
    Keyed {
        stage: Stage,
    },
    /// Inputs get their further keys, and content is hashed.
    Growing,
    /// A record is loaded.
    Loading {
        task: TaskNumber,
        back: Stage,
    },
    /// No record loads: inputs have to get their results.
    Gathering,
    /// Another vertex of the same key runs.
    Joined {
        to: NodeId,
    },
    /// The op runs.
    Running {
        task: TaskNumber,
    },
    /// A task that nobody wants any more has been cancelled.
    Stopping {
        task: TaskNumber,
        back: Rest,
    },
    /// Every output that was wanted is known.
    Done,
    Failed {
        error: Arc<VertexError>,
    },
}

/// The state of rest that a cancelled task returns to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    New,
    Keyed(Stage),
}

impl Rest {
    pub fn state(self) -> VertexState {
        match self {
            Rest::New => VertexState::New,
            Rest::Keyed(stage) => VertexState::Keyed { stage },
        }
    }
}

impl VertexState {
    /// The transition table.
    pub fn may_become(&self, next: &VertexState) -> bool {
        use VertexState as S;
        match (self, next) {
            (S::Failed { .. }, _) | (_, S::New) if !matches!(self, S::Stopping { .. }) => false,
            (_, S::Failed { .. }) => !matches!(self, S::New | S::Done),
            (S::New, next) => matches!(next, S::Mapping { .. }),
            (S::Mapping { .. }, next) => {
                matches!(next, S::Mapped | S::Looking { .. } | S::Stopping { .. })
            }
            (S::Mapped, next) => matches!(next, S::Looking { .. } | S::Keyed { .. }),
            (S::Looking { .. }, next) => matches!(next, S::Keyed { .. }),
            (S::Keyed { stage }, next) => match next {
                S::Loading { .. } | S::Joined { .. } => true,
                S::Mapping { .. } | S::Growing => *stage == Stage::Fast,
                S::Gathering => *stage == Stage::Final,
                // All that is wanted is known already: another output, or the run of another vertex.
                S::Done => true,
                _ => false,
            },
            (S::Growing, next) => matches!(next, S::Keyed { .. }),
            (S::Loading { .. }, next) => {
                matches!(next, S::Keyed { .. } | S::Done | S::Stopping { .. })
            }
            (S::Gathering, next) => {
                matches!(next, S::Keyed { .. } | S::Looking { .. } | S::Joined { .. } | S::Running { .. })
            }
            (S::Joined { .. }, next) => matches!(next, S::Keyed { .. } | S::Done),
            (S::Running { .. }, next) => {
                matches!(next, S::Keyed { .. } | S::Done | S::Stopping { .. })
            }
            (S::Stopping { back, .. }, next) => match (back, next) {
                // What was cancelled may have been done all the same.
                (_, S::Done) => true,
                (Rest::New, next) => matches!(next, S::New | S::Mapped),
                (Rest::Keyed(_), next) => matches!(next, S::Keyed { .. } | S::Looking { .. }),
            },
            (S::Done, next) => matches!(next, S::Keyed { .. }),
            (S::Failed { .. }, _) => false,
        }
    }

    /// The task that the state waits for.
    pub fn task(&self) -> Option<TaskNumber> {
        match self {
            VertexState::Mapping { task }
            | VertexState::Loading { task, .. }
            | VertexState::Running { task }
            | VertexState::Stopping { task, .. } => Some(*task),
            _ => None,
        }
    }
}

/// A vertex, for all jobs that have it.
pub struct Node<R> {
    pub shell: Arc<Shell>,
    pub state: VertexState,
    /// Jobs whose graphs have the vertex.
    pub jobs: BTreeMap<JobNumber, Arc<Interest>>,
    /// Who has this vertex as which input.
    pub consumers: BTreeSet<(NodeId, u32)>,
    /// Vertices that wait for this one's run.
    pub joiners: Vec<NodeId>,
    pub waiters: BTreeMap<WaiterNumber, u32>,
    pub wants: Wants,
    pub slots: Vec<Slot<R>>,
    pub counts: Counts,
    /// What is asked of every input, if it is the same.
    pub asks_all: Option<Level>,
    /// Whether all growing inputs were asked to grow, or those first that nothing is known of.
    pub phase: Option<bool>,
    /// Slots that have to be compared with their inputs again.
    pub touched: Vec<u32>,
    pub queued: bool,

    /// Known cache maps. Only a root can have more than one.
    pub maps: Vec<CacheMap<R>>,
    /// Ignores what is cached, itself or through an input whose content does not count.
    pub fresh: bool,
    /// The first is computed from the first map, the others are of further maps or found by links.
    pub keys: Vec<Key>,
    /// The fast keys were looked up.
    pub has_fast: bool,
    /// From how many inputs each key is reached.
    pub reached: QuickMap<Key, u32>,
    /// With whether it was tried.
    pub records: Vec<(Record, bool)>,
    /// The record that a task loads.
    pub loading: Option<usize>,
    pub look: Look,
    /// Runs that had departed when keys were last looked up.
    pub departed: u64,
    pub getter: Option<Arc<CacheOptGetter>>,

    /// Results by output, with the record they came from.
    pub outputs: BTreeMap<u32, (Option<R>, Origin)>,
    /// Number of outputs, once the op has run.
    pub ran: Option<usize>,
    /// Times that a result of a run was lost and made again.
    pub remade: u32,
    /// Something was reported of the vertex.
    pub reported: bool,
}

/// Where a result comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The record of that index.
    Record(usize),
    Run,
}

/// A lookup under way, and what it leaves for the next one.
#[derive(Debug, Default)]
pub struct Look {
    pub task: Option<TaskNumber>,
    /// Asked now, in order.
    pub asked: Vec<(u32, EdgeKey)>,
    /// Keys of inputs to ask for.
    pub links: Vec<(u32, EdgeKey)>,
    /// Keys whose records are to be read.
    pub keys: Vec<Key>,
}

impl Look {
    pub fn is_quiet(&self) -> bool {
        self.task.is_none() && self.links.is_empty() && self.keys.is_empty()
    }
}

/// Number of consumers and waiters that want something, by what they want.
#[derive(Debug, Default)]
pub struct Wants {
    pub fast: u32,
    pub slow: u32,
    /// By output.
    pub results: BTreeMap<u32, u32>,
}

impl Wants {
    pub fn add(&mut self, level: Level, output: u32) {
        match level {
            Level::Nothing => {}
            Level::Fast => self.fast += 1,
            Level::Slow => self.slow += 1,
            Level::Result => *self.results.entry(output).or_insert(0) += 1,
        }
    }

    pub fn remove(&mut self, level: Level, output: u32) {
        match level {
            Level::Nothing => {}
            Level::Fast => self.fast -= 1,
            Level::Slow => self.slow -= 1,
            Level::Result => {
                if let Some(count) = self.results.get_mut(&output) {
                    *count -= 1;
                    if *count == 0 {
                        self.results.remove(&output);
                    }
                }
            }
        }
    }
}

/// One input of a vertex.
pub struct Slot<R> {
    pub input: NodeId,
    pub output: u32,
    /// What this vertex asks of the input.
    pub ask: Level,
    /// How many of the input's keys were queued for a lookup.
    pub queried: usize,
    pub content: Content<R>,
    /// Keys of this vertex that are reached from a key of the input.
    pub matched: QuickSet<Key>,
    /// By which key of the input each was reached.
    pub links: QuickSet<(EdgeKey, Key)>,
    pub seen: Seen,
}

/// The content of an input, if it counts.
pub enum Content<R> {
    Ignored,
    Unknown(ContentDigest<R>),
    Hashing { task: TaskNumber, hash: ContentDigest<R>, cancelled: bool },
    Known(Key),
}

/// What was seen of an input when its slot was last compared with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// It has its fast keys.
    pub fast: bool,
    /// No further key of it will come. Stays true.
    pub settled: bool,
    /// It is settled, and no key of it leads to this op.
    pub dead: bool,
    /// It is not settled, and no key of it leads to this op yet.
    pub open: bool,
    pub result: bool,
    /// Its content counts and is not known.
    pub unhashed: bool,
    pub failed: bool,
}

/// How many slots are in which situation, so that nobody has to count them again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub fast: u32,
    pub settled: u32,
    pub dead: u32,
    pub open: u32,
    pub result: u32,
    pub unhashed: u32,
    pub failed: u32,
}

impl Counts {
    pub fn replace(&mut self, old: Seen, new: Seen) {
        let change = |count: &mut u32, old: bool, new: bool| match (old, new) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        };
        change(&mut self.fast, old.fast, new.fast);
        change(&mut self.settled, old.settled, new.settled);
        change(&mut self.dead, old.dead, new.dead);
        change(&mut self.open, old.open, new.open);
        change(&mut self.result, old.result, new.result);
        change(&mut self.unhashed, old.unhashed, new.unhashed);
        change(&mut self.failed, old.failed, new.failed);
    }
}

impl<R> Node<R> {
    /// The way to the options of the vertex and its ancestors.
    pub fn getter(&mut self) -> Arc<CacheOptGetter> {
        let lineage = &self.shell.lineage;
        Arc::clone(self.getter.get_or_insert_with(|| Arc::new(CacheOptGetter::new(Arc::clone(lineage)))))
    }

    pub fn new(shell: Arc<Shell>, slots: Vec<Slot<R>>) -> Node<R> {
        Node {
            shell,
            state: VertexState::New,
            jobs: BTreeMap::new(),
            consumers: BTreeSet::new(),
            joiners: Vec::new(),
            waiters: BTreeMap::new(),
            wants: Wants::default(),
            slots,
            counts: Counts::default(),
            asks_all: Some(Level::Nothing),
            phase: None,
            touched: Vec::new(),
            queued: false,
            maps: Vec::new(),
            fresh: false,
            keys: Vec::new(),
            has_fast: false,
            reached: QuickMap::default(),
            records: Vec::new(),
            loading: None,
            look: Look::default(),
            departed: 0,
            getter: None,
            outputs: BTreeMap::new(),
            ran: None,
            remade: 0,
            reported: false,
        }
    }

    /// The most that somebody wants. An output that is known is wanted no more.
    pub fn want(&self) -> Level {
        if self.missing_output().is_some() || (!self.joiners.is_empty() && !self.is_done()) {
            Level::Result
        } else if self.wants.slow > 0 {
            Level::Slow
        } else if self.wants.fast > 0 {
            Level::Fast
        } else {
            Level::Nothing
        }
    }

    /// The lowest output that is wanted and not known.
    pub fn missing_output(&self) -> Option<u32> {
        self.wants.results.keys().copied().find(|output| !self.outputs.contains_key(output))
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, VertexState::Done)
    }

    pub fn error(&self) -> Option<&Arc<VertexError>> {
        match &self.state {
            VertexState::Failed { error } => Some(error),
            _ => None,
        }
    }

    /// What consumers can build on.
    pub fn level(&self) -> Level {
        match &self.state {
            VertexState::Failed { .. } => Level::Nothing,
            VertexState::Keyed { stage: Stage::Final }
            | VertexState::Looking { then: Stage::Final }
            | VertexState::Loading { .. }
            | VertexState::Gathering
            | VertexState::Joined { .. }
            | VertexState::Running { .. }
            | VertexState::Done => Level::Slow,
            VertexState::Keyed { stage: Stage::Fast } if self.best_record().is_some() => Level::Slow,
            _ if self.has_fast => Level::Fast,
            _ => Level::Nothing,
        }
    }

    /// The best record that was not tried, of any output.
    pub fn best_record(&self) -> Option<usize> {
        self.best(|_| true)
    }

    /// The best record of one output that was not tried: the nearest, then the newest.
    pub fn best_record_of(&self, output: u32) -> Option<usize> {
        self.best(|record| record.key.output == output)
    }

    fn best(&self, fits: impl Fn(&Record) -> bool) -> Option<usize> {
        let untried = self.records.iter().enumerate().filter(|(_, (r, tried))| !tried && fits(r));
        untried.max_by_key(|(_, (r, _))| (r.presence, r.created)).map(|(index, _)| index)
    }

    /// The digest of the op, for links.
    pub fn op(&self) -> Option<Digest> {
        self.maps.first().map(|map| map.digest)
    }

    pub fn selector(&self, slot: u32) -> Option<Digest> {
        self.maps.first()?.inputs.get(slot as usize)?.selector
    }

    /// The key under which a run is recorded: one that is known to others, else the computed one.
    pub fn target(&self) -> Option<Key> {
        self.keys.get(1).or(self.keys.first()).copied()
    }

    /// True if no task works for the vertex.
    pub fn is_idle(&self) -> bool {
        let hashing = |slot: &Slot<R>| matches!(slot.content, Content::Hashing { .. });
        self.state.task().is_none() && self.look.task.is_none() && !self.slots.iter().any(hashing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::ops::VertexDigest;
    use crate::solver::error::Cause;
    use crate::solver::error::Phase;

    #[test]
    fn transitions_are_those_of_the_drawing() {
        let task = TaskNumber(1);
        let vertex = VertexDigest(Digest::sha256("v"));
        let cause = Cause::Output { output: 1, outputs: 1 };
        let error = Arc::new(VertexError { vertex, phase: Phase::Result, cause });
        let states = [
            ("new", VertexState::New),
            ("mapping", VertexState::Mapping { task }),
            ("mapped", VertexState::Mapped),
            ("looking", VertexState::Looking { then: Stage::Fast }),
            ("fast", VertexState::Keyed { stage: Stage::Fast }),
            ("growing", VertexState::Growing),
            ("final", VertexState::Keyed { stage: Stage::Final }),
            ("loading", VertexState::Loading { task, back: Stage::Fast }),
            ("gathering", VertexState::Gathering),
            ("joined", VertexState::Joined { to: NodeId(1) }),
            ("running", VertexState::Running { task }),
            ("unmapping", VertexState::Stopping { task, back: Rest::New }),
            ("stopping", VertexState::Stopping { task, back: Rest::Keyed(Stage::Fast) }),
            ("done", VertexState::Done),
            ("failed", VertexState::Failed { error }),
        ];
        let next = |from: &VertexState| {
            let to = states.iter().filter(|(_, to)| from.may_become(to)).map(|(name, _)| *name);
            to.collect::<Vec<_>>().join(" ")
        };
        let table: Vec<(&str, String)> = states.iter().map(|(name, from)| (*name, next(from))).collect();
        let drawn = [
            ("new", "mapping"),
            ("mapping", "mapped looking unmapping stopping failed"),
            ("mapped", "looking fast final failed"),
            ("looking", "fast final failed"),
            ("fast", "mapping growing loading joined done failed"),
            ("growing", "fast final failed"),
            ("final", "loading gathering joined done failed"),
            ("loading", "fast final unmapping stopping done failed"),
            ("gathering", "looking fast final joined running failed"),
            ("joined", "fast final done failed"),
            ("running", "fast final unmapping stopping done failed"),
            ("unmapping", "new mapped done failed"),
            ("stopping", "looking fast final done failed"),
            ("done", "fast final"),
            ("failed", ""),
        ];
        // Lists are in the order of `states`, which puts growing between fast and final.
        for ((name, found), (drawn_name, drawn)) in table.iter().zip(drawn) {
            assert_eq!(*name, drawn_name);
            assert_eq!(found, drawn, "from {name}");
        }
    }
}
