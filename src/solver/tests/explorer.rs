//! Drives the scheduler through interleavings: at every point, any task may end and any caller may act.
//!
//! The order is chosen by [`Choices`]: at random, or by walking the whole tree of them.
//!
//! What is held at every step: the run of one key is never under way twice, unless one ignores the
//! cache. At the end: every caller that waited got the value of the reference model or an error that was
//! injected, every key ran to its end at most once, and nothing is left in the scheduler.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::oneshot;

use super::model;
use super::model::Behaviour;
use super::model::Dice;
use super::model::Plan;
use super::model::Tally;
use crate::ctx::Ctx;
use crate::ops::Edge;
use crate::ops::LoadError;
use crate::ops::OpError;
use crate::ops::Presence;
use crate::ops::ResultId;
use crate::ops::VertexDigest;
use crate::progress::Journal;
use crate::session::SessionId;
use crate::session::Sessions;
use crate::solver::error::Cause;
use crate::solver::error::VertexError;
use crate::solver::event::Effect;
use crate::solver::event::Ending;
use crate::solver::event::Event;
use crate::solver::event::Interest;
use crate::solver::event::JobNumber;
use crate::solver::event::TaskNumber;
use crate::solver::event::WaiterNumber;
use crate::solver::index::Answer;
use crate::solver::index::Query;
use crate::solver::index::Record;
use crate::solver::index::Stored;
use crate::solver::key::EdgeKey;
use crate::solver::key::Key;
use crate::solver::key::Link;
use crate::solver::scheduler::Scheduler;
use crate::task::Tasks;

/// What happens next.
pub trait Choices {
    /// One of `options` alternatives.
    fn choose(&mut self, options: usize) -> usize;
}

impl Choices for Dice {
    fn choose(&mut self, options: usize) -> usize {
        self.roll(options)
    }
}

/// Walks the tree of all choices, one path a run.
#[derive(Default)]
struct Tree {
    path: Vec<(usize, usize)>,
    at: usize,
}

impl Tree {
    /// Goes to the next path; false after the last.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, options)) = self.path.pop() {
            if choice + 1 < options {
                self.path.push((choice + 1, options));
                return true;
            }
        }
        false
    }
}

impl Choices for Tree {
    fn choose(&mut self, options: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, options));
        }
        let (choice, recorded) = self.path[self.at];
        assert_eq!(options, recorded, "the scheduler is not deterministic");
        self.at += 1;
        choice
    }
}

/// What goes wrong in a run of the explorer.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Percent of runs that fail.
    failing: usize,
    /// Percent of loads that fail.
    unloadable: usize,
    /// Percent of runs whose input has lost its bytes.
    gone: usize,
}

impl Faults {
    fn none(&self) -> bool {
        self.failing + self.unloadable + self.gone == 0
    }
}

/// What the callers do, each in the given order.
#[derive(Clone, Debug)]
enum Act {
    Load { job: u64, salt: &'static str, vertex: usize, output: u32 },
    Want { job: u64, waiter: u64, salt: &'static str, vertex: usize, output: u32 },
    Unwant { waiter: u64 },
    Lose { job: u64, salt: &'static str, vertex: usize, output: u32 },
    Leave { job: u64 },
}

type Answered = oneshot::Receiver<Result<Option<u64>, Option<Arc<VertexError>>>>;

pub struct World {
    pub scheduler: Scheduler<u64>,
    behaviours: HashMap<VertexDigest, Behaviour>,
    pending: BTreeMap<TaskNumber, Effect<u64>>,
    cancelled: HashSet<TaskNumber>,
    waiting: HashMap<u64, (Answered, u64)>,
    links: HashMap<Link, Vec<Key>>,
    records: HashMap<Key, Vec<Record>>,
    clock: u64,
    faults: Faults,
    dice: Dice,
    /// Runs under way by the value they make, with whether they ignore the cache.
    running: HashMap<TaskNumber, (u64, bool)>,
    ran: Tally<u64>,
    pub runs: usize,
    errors: usize,
    journals: HashMap<u64, Journal>,
    pub max_pending: usize,
    /// What the scheduler has not heard yet.
    unheard: Vec<Event<u64>>,
    /// Percent of events that come together with the next one.
    together: usize,
}

impl World {
    pub fn new(seed: u64) -> World {
        World {
            scheduler: Scheduler::new(Sessions::new(&Tasks::new()), Arc::new(|result, _| result)),
            behaviours: HashMap::new(),
            pending: BTreeMap::new(),
            cancelled: HashSet::new(),
            waiting: HashMap::new(),
            links: HashMap::new(),
            records: HashMap::new(),
            clock: 0,
            faults: Faults::default(),
            dice: Dice(seed),
            running: HashMap::new(),
            ran: Tally::new(),
            runs: 0,
            errors: 0,
            journals: HashMap::new(),
            max_pending: 0,
            unheard: Vec::new(),
            together: 0,
        }
    }

    pub fn load(&mut self, plan: &Plan, job: u64, salt: &str, vertex: usize, output: u32) {
        let (graph, behaviours) = plan.graph(salt, vertex, output);
        self.behaviours.extend(behaviours);
        let journal = self.journals.entry(job).or_default().clone();
        let sessions = vec![SessionId::new(&format!("session-{job}"))];
        let interest = Arc::new(Interest { job: JobNumber(job), sessions, journal });
        self.tell(Event::Load { interest, graph });
    }

    pub fn want(&mut self, plan: &Plan, job: u64, waiter: u64, salt: &str, vertex: usize, output: u32) {
        let (reply, answer) = oneshot::channel();
        let edge = Edge { vertex: plan.digests(salt)[vertex], output };
        self.waiting.insert(waiter, (answer, plan.values()[vertex][output as usize]));
        self.tell(Event::Want { job: JobNumber(job), waiter: WaiterNumber(waiter), edge, reply });
    }

    fn act(&mut self, plan: &Plan, act: &Act) {
        match *act {
            Act::Load { job, salt, vertex, output } => self.load(plan, job, salt, vertex, output),
            Act::Want { job, waiter, salt, vertex, output } => {
                self.want(plan, job, waiter, salt, vertex, output);
            }
            Act::Unwant { waiter } => {
                self.waiting.remove(&waiter);
                self.tell(Event::Unwant { waiter: WaiterNumber(waiter) });
            }
            Act::Lose { job, salt, vertex, output } => {
                let edge = Edge { vertex: plan.digests(salt)[vertex], output };
                // Every other time its inputs have lost the same.
                let (value, all) = (plan.values()[vertex][output as usize], self.dice.chance(50));
                let is_gone = Arc::new(move |result: &u64| all || *result == value);
                let (reply, _) = oneshot::channel();
                self.tell(Event::Lost { job: JobNumber(job), edge, is_gone, reply });
            }
            Act::Leave { job } => self.leave(job),
        }
    }

    pub fn leave(&mut self, job: u64) {
        self.tell(Event::Leave { job: JobNumber(job) });
    }

    fn tell(&mut self, event: Event<u64>) {
        self.unheard.push(event);
        if !self.dice.chance(self.together) {
            self.hear();
        }
    }

    /// Lets the scheduler hear all that it was told.
    fn hear(&mut self) {
        for effect in self.scheduler.apply(std::mem::take(&mut self.unheard)) {
            match effect {
                Effect::Cancel { task } => {
                    self.running.remove(&task);
                    self.cancelled.insert(task);
                }
                Effect::Store(stored) => self.store(stored),
                Effect::Reply { reply, answer } => {
                    let _ = reply.send(answer);
                }
                Effect::Told { .. } | Effect::Skipped(_) | Effect::Joined { .. } => {}
                Effect::Run { task, shell, inputs } => {
                    self.begin_run(task, shell.vertex.digest, &inputs);
                    self.pending.insert(task, Effect::Run { task, shell, inputs });
                }
                effect => {
                    let task = effect.task().expect("only these end");
                    self.pending.insert(task, effect);
                }
            }
        }
        self.max_pending = self.max_pending.max(self.pending.len());
    }

    fn begin_run(&mut self, task: TaskNumber, vertex: VertexDigest, inputs: &[Option<u64>]) {
        let behaviour = &self.behaviours[&vertex];
        let inputs: Vec<u64> = inputs.iter().map(|i| i.expect("the model has no empty results")).collect();
        let value = model::run(behaviour, &inputs)[0];
        // A vertex below one that ignores the cache does so too, and a shared run may be either.
        let ignores = self.behaviours.values().any(|b| b.ignore_cache);
        let twice = self.running.values().any(|(other, i)| *other == value && !(*i || ignores));
        assert!(!twice, "{} runs twice at the same time", behaviour.name);
        self.running.insert(task, (value, ignores));
    }

    fn store(&mut self, stored: Stored) {
        self.clock += 1;
        for link in stored.links {
            let keys = self.links.entry(link).or_default();
            if !keys.contains(&stored.key) {
                keys.push(stored.key);
            }
        }
        for (output, id) in stored.results {
            let record = Record {
                key: EdgeKey { key: stored.key, output },
                id,
                created: self.clock,
                presence: if self.clock.is_multiple_of(2) { Presence::Local } else { Presence::Remote },
            };
            let records = self.records.entry(stored.key).or_default();
            records.retain(|r| r.key != record.key || r.id != record.id);
            records.push(record);
        }
    }

    fn look(&self, query: &Query) -> Answer {
        let links = query.links.iter().map(|link| self.links.get(link).cloned().unwrap_or_default());
        let records = query.keys.iter().filter_map(|key| self.records.get(key)).flatten().cloned();
        Answer { links: links.collect(), records: records.collect() }
    }

    /// Ends the task that is at `index` among those under way. A cancelled one may be done all the same.
    fn end(&mut self, index: usize, choices: &mut dyn Choices) {
        let task = *self.pending.keys().nth(index).expect("the index is below the number of tasks");
        let effect = self.pending.remove(&task).expect("it was there");
        let cancelled = self.cancelled.remove(&task);
        let stopped = cancelled && choices.choose(2) == 0;
        self.running.remove(&task);
        let failing = self.dice.chance(self.faults.failing);
        let ending = match effect {
            Effect::Look { query, .. } => Ending::Looked(self.look(&query)),
            Effect::Load { .. } if stopped => Ending::Loaded(Err(OpError::Cancelled.into())),
            Effect::Load { id, .. } => match self.dice.chance(self.faults.unloadable) {
                true => Ending::Loaded(Err(LoadError::NeedsRemoteProvider { digests: Vec::new() })),
                false => Ending::Loaded(Ok(Some(id.0.parse().expect("a result is a number")))),
            },
            Effect::Map { .. } if stopped => Ending::Mapped(Err(Cause::Op(OpError::Cancelled))),
            Effect::Map { shell, index, .. } => {
                Ending::Mapped(Ok(model::cache_map(&self.behaviours[&shell.vertex.digest], index)))
            }
            Effect::Hash { .. } if stopped => Ending::Hashed(Err(Cause::Op(OpError::Cancelled))),
            Effect::Hash { hash, input, .. } => {
                let digest =
                    hash(Ctx::background(), input).now_or_never().expect("the model waits for nothing");
                Ending::Hashed(digest.map_err(Cause::Op))
            }
            Effect::Run { .. } if stopped => Ending::Ran(Err(Cause::Op(OpError::Cancelled))),
            Effect::Run { .. } if failing && !cancelled => {
                self.errors += 1;
                Ending::Ran(Err(Cause::Op(OpError::failed(std::io::Error::other("injected")))))
            }
            Effect::Run { shell, inputs, .. } => {
                let behaviour = self.behaviours[&shell.vertex.digest].clone();
                if !inputs.is_empty() && self.dice.chance(self.faults.gone) {
                    let input = self.dice.roll(inputs.len());
                    self.errors += 1;
                    let source = Arc::new(std::io::Error::other("gone"));
                    let error = OpError::InputGone { input, digests: Vec::new(), source };
                    Ending::Ran(Err(Cause::Op(error)))
                } else {
                    let inputs: Vec<u64> = inputs.into_iter().flatten().collect();
                    let values = model::run(&behaviour, &inputs);
                    *self.ran.entry(values[0]).or_insert(0) += 1;
                    self.runs += 1;
                    let named = |value: u64| (Some(value), Some(ResultId(value.to_string())));
                    Ending::Ran(Ok(values.into_iter().map(named).collect()))
                }
            }
            _ => unreachable!("it does not end"),
        };
        self.tell(Event::Ended { task, ending });
    }

    /// Checks what has been answered.
    fn check_answers(&mut self) {
        let faults = self.faults;
        self.waiting.retain(|waiter, (answer, expected)| match answer.try_recv() {
            Ok(Ok(value)) => {
                assert_eq!(value, Some(*expected), "waiter {waiter} got the wrong result");
                false
            }
            Ok(Err(Some(error))) => {
                assert!(faults.failing + faults.gone > 0, "waiter {waiter} got {error}");
                false
            }
            Ok(Err(None)) | Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
    }

    /// Lets everything under way end, oldest first.
    pub fn drain(&mut self) {
        while !self.pending.is_empty() {
            self.end(0, &mut Dice(1));
            self.check_answers();
        }
    }

    /// Plays the scripts in an order that `choices` gives, until nothing is left to do.
    fn play(&mut self, plan: &Plan, scripts: &[Vec<Act>], choices: &mut dyn Choices) {
        let mut next = vec![0; scripts.len()];
        for step in 0.. {
            assert!(step < 5_000, "it does not end");
            let ready: Vec<usize> = (0..scripts.len()).filter(|s| next[*s] < scripts[*s].len()).collect();
            let options = self.pending.len() + ready.len();
            if options == 0 {
                if self.unheard.is_empty() {
                    break;
                }
                self.hear();
                self.check_answers();
                continue;
            }
            let choice = if options == 1 { 0 } else { choices.choose(options) };
            if choice < self.pending.len() {
                self.end(choice, choices);
            } else {
                let script = ready[choice - self.pending.len()];
                self.act(plan, &scripts[script][next[script]]);
                next[script] += 1;
            }
            self.check_answers();
        }
        assert!(self.waiting.is_empty(), "somebody waits and nothing happens");
    }

    /// What must hold when all jobs have left.
    fn check_end(&self, plan: &Plan, scripts: &[Vec<Act>]) {
        assert!(self.scheduler.is_empty(), "something is left");
        let ignores = plan.vertices.iter().any(|b| b.ignore_cache);
        if self.faults.none() && !ignores && !scripts.iter().flatten().any(|a| matches!(a, Act::Lose { .. }))
        {
            for (value, times) in &self.ran {
                assert_eq!(*times, 1, "what makes {value} ran {times} times");
            }
        }
    }
}

/// What one caller does: a job with one or two results, given up now and then.
fn random_script(job: u64, plan: &Plan, dice: &mut Dice, losing: bool) -> Vec<Act> {
    let salt = ["", "", "a"][dice.roll(3)];
    let mut script = Vec::new();
    for result in 0..1 + dice.roll(2) as u64 {
        let vertex = plan.vertices.len() - 1 - dice.roll(2.min(plan.vertices.len()));
        let output = dice.roll(plan.vertices[vertex].outputs as usize) as u32;
        let waiter = job * 100 + result * 10;
        script.push(Act::Load { job, salt, vertex, output });
        script.push(Act::Want { job, waiter, salt, vertex, output });
        if dice.chance(25) {
            script.push(Act::Unwant { waiter });
        }
        if dice.chance(25) {
            script.push(Act::Want { job, waiter: waiter + 1, salt, vertex, output });
        }
        if losing && dice.chance(30) {
            script.push(Act::Lose { job, salt, vertex, output });
            script.push(Act::Want { job, waiter: waiter + 2, salt, vertex, output });
        }
    }
    script
}

/// Plays random jobs over a random plan, with events that come one by one and with events that come together. Jobs
/// leave at any time, or when all results have come.
fn explore(seed: u64, faults: Faults, ignore_cache: bool, losing: bool) {
    let together = if seed.is_multiple_of(2) { 50 } else { 90 };
    explore_told(0, seed, faults, ignore_cache, losing);
    explore_told(together, seed, faults, ignore_cache, losing);
}

fn explore_told(together: usize, seed: u64, faults: Faults, ignore_cache: bool, losing: bool) {
    let mut dice = Dice(seed);
    let plan = model::random_plan(&mut dice, ignore_cache);
    let jobs = 1 + dice.roll(3) as u64;
    let mut scripts: Vec<Vec<Act>> =
        (1..=jobs).map(|job| random_script(job, &plan, &mut dice, losing)).collect();
    let leaves: Vec<Vec<Act>> = (1..=jobs).map(|job| vec![Act::Leave { job }]).collect();
    let patient = dice.chance(60);
    if !patient {
        scripts.iter_mut().zip(&leaves).for_each(|(script, leave)| script.extend(leave.iter().cloned()));
    }
    let mut world = World::new(seed ^ 0x5eed);
    world.faults = faults;
    world.together = together;
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.play(&plan, &scripts, &mut dice);
        if patient {
            world.play(&plan, &leaves, &mut dice);
        }
        world.check_end(&plan, &scripts);
    }));
    report((seed, together), &plan, &scripts, played);
}

/// Says what to play again.
fn report(seed: (u64, usize), plan: &Plan, scripts: &[Vec<Act>], played: std::thread::Result<()>) {
    if let Err(panic) = played {
        eprintln!("seed {seed:?}\n{plan:#?}\n{scripts:#?}");
        std::panic::resume_unwind(panic);
    }
}

/// Enough for each mistake that was ever found here, and quick.
const SEEDS: u64 = 500;

#[test]
fn in_every_order_results_are_right_and_each_key_runs_once() {
    (0..SEEDS).for_each(|seed| explore(seed, Faults::default(), false, false));
}

#[test]
fn in_every_order_what_ignores_the_cache_is_right_and_leaves_nothing() {
    (0..SEEDS).for_each(|seed| explore(seed, Faults::default(), true, false));
}

#[test]
fn in_every_order_failures_end_and_leave_nothing() {
    let faults = Faults { failing: 20, unloadable: 30, gone: 0 };
    (0..SEEDS).for_each(|seed| explore(seed, faults, true, false));
}

#[test]
fn in_every_order_lost_bytes_are_got_from_elsewhere() {
    let faults = Faults { failing: 0, unloadable: 20, gone: 20 };
    (0..SEEDS).for_each(|seed| explore(seed, faults, false, true));
}

/// Two jobs over two definitions of one chain, the first of which gives up: the tree of orders from its
/// first branch on, up to a number of paths.
#[test]
fn all_orders_of_two_jobs_over_one_chain_are_right() {
    let mut plan = Plan::default();
    let root = plan.root("root");
    let copy = plan.copy("copy", &[root]);
    let scripts = vec![
        vec![
            Act::Load { job: 1, salt: "", vertex: copy, output: 0 },
            Act::Want { job: 1, waiter: 1, salt: "", vertex: copy, output: 0 },
            Act::Unwant { waiter: 1 },
            Act::Leave { job: 1 },
        ],
        vec![
            Act::Load { job: 2, salt: "a", vertex: copy, output: 0 },
            Act::Want { job: 2, waiter: 2, salt: "a", vertex: copy, output: 0 },
        ],
    ];
    let (mut tree, mut paths) = (Tree::default(), 0);
    loop {
        let mut world = World::new(0);
        world.play(&plan, &scripts, &mut tree);
        world.play(&plan, &[vec![Act::Leave { job: 2 }]], &mut tree);
        world.check_end(&plan, &scripts);
        paths += 1;
        if paths == 10_000 || !tree.next() {
            break;
        }
    }
    assert!(paths > 1_000, "only {paths} orders");
}
