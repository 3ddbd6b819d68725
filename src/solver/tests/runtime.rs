//! The solver with its loop, tasks and index, over ops that wait to be released.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use tokio::sync::Semaphore;

use super::model;
use super::model::Behaviour;
use super::model::Plan;
use crate::ctx::Ctx;
use crate::db::Db;
use crate::ops::CacheMap;
use crate::ops::CacheOptGetter;
use crate::ops::LoadError;
use crate::ops::OpError;
use crate::ops::Operate;
use crate::ops::Presence;
use crate::ops::ResultId;
use crate::ops::Vertex;
use crate::ops::VertexDigest;
use crate::ops::llb::Definition;
use crate::ops::llb::Limits;
use crate::progress::Update;
use crate::session::SessionGroup;
use crate::session::Sessions;
use crate::solver::Cause;
use crate::solver::Job;
use crate::solver::JobId;
use crate::solver::JobSpec;
use crate::solver::Jobs;
use crate::solver::KeyIndex;
use crate::solver::LazyResult;
use crate::solver::RunningJob;
use crate::solver::SolveError;
use crate::solver::Solver;
use crate::task::Tasks;

/// Ops of the model, counted, and held back where a test says so.
#[derive(Default)]
struct Ops {
    /// Cache maps follow from the vertex alone.
    own_maps: AtomicBool,
    behaviours: Mutex<HashMap<VertexDigest, Behaviour>>,
    log: Mutex<Vec<String>>,
    /// Results by the name of their record.
    results: Mutex<HashMap<String, u64>>,
    /// Ops that wait for a permit before they run.
    held: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Ops that fail this many times.
    failing: Mutex<HashMap<String, usize>>,
    /// Records that need a provider, and the name of the ancestor that offers it.
    remote: Mutex<HashMap<String, String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ops {
    fn behaviour(&self, vertex: &Vertex) -> Behaviour {
        locked(&self.behaviours)[&vertex.digest].clone()
    }

    fn count(&self, what: &str) -> usize {
        locked(&self.log).iter().filter(|entry| *entry == what).count()
    }

    fn hold(&self, name: &str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        locked(&self.held).insert(name.to_owned(), Arc::clone(&gate));
        gate
    }

    async fn saw(&self, what: &str) {
        while self.count(what) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

impl Operate for Ops {
    type Output = u64;

    fn own_cache_map(&self, vertex: &Vertex) -> Option<CacheMap<u64>> {
        let behaviour = self.behaviour(vertex);
        self.own_maps.load(Ordering::Relaxed).then(|| model::cache_map(&behaviour, 0))
    }

    async fn cache_map(&self, _: &Ctx, vertex: &Vertex, index: usize) -> Result<CacheMap<u64>, OpError> {
        let behaviour = self.behaviour(vertex);
        locked(&self.log).push(format!("map {}", behaviour.name));
        Ok(model::cache_map(&behaviour, index))
    }

    async fn run(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        inputs: &[Option<u64>],
    ) -> Result<Vec<Option<u64>>, OpError> {
        let behaviour = self.behaviour(vertex);
        locked(&self.log).push(format!("run {}", behaviour.name));
        let gate = locked(&self.held).get(&behaviour.name).cloned();
        if let Some(gate) = gate {
            match ctx.run(gate.acquire()).await {
                Ok(permit) => permit.unwrap().forget(),
                Err(cancelled) => {
                    locked(&self.log).push(format!("cancelled {}", behaviour.name));
                    return Err(cancelled.into());
                }
            }
        }
        if let Some(times) = locked(&self.failing).get_mut(&behaviour.name).filter(|times| **times > 0) {
            *times -= 1;
            return Err(OpError::failed(std::io::Error::other("no luck")));
        }
        let inputs: Vec<u64> = inputs.iter().map(|i| i.unwrap_or_default()).collect();
        Ok(model::run(&behaviour, &inputs).into_iter().map(Some).collect())
    }

    async fn forget_kept(&self, vertex: &Vertex) -> Result<(), OpError> {
        let behaviour = self.behaviour(vertex);
        locked(&self.log).push(format!("forget {}", behaviour.name));
        Ok(())
    }

    async fn load(&self, _: &Ctx, id: &ResultId, opts: &CacheOptGetter) -> Result<Option<u64>, LoadError> {
        locked(&self.log).push(format!("load {id}"));
        if let Some(provider) = locked(&self.remote).get(&id.0) {
            let found = opts.all::<String>().any(|offered| offered == provider);
            if !found {
                return Err(LoadError::NeedsRemoteProvider { digests: Vec::new() });
            }
        }
        locked(&self.results).get(&id.0).copied().map(Some).ok_or(LoadError::Missing)
    }

    fn endow(&self, output: u64, _: &CacheOptGetter) -> u64 {
        output
    }

    fn have(&self, ids: &[&ResultId]) -> Vec<bool> {
        let results = locked(&self.results);
        ids.iter().map(|id| results.contains_key(&id.0)).collect()
    }

    fn presence(&self, id: &ResultId) -> Presence {
        locked(&self.log).push("compare".to_owned());
        match locked(&self.results).contains_key(&id.0) {
            true => Presence::Local,
            false => Presence::Missing,
        }
    }

    fn result_id(&self, output: &Option<u64>) -> Option<ResultId> {
        let value = (*output)?;
        let id = format!("{value:x}");
        locked(&self.results).insert(id.clone(), value);
        Some(ResultId(id))
    }
}

/// A solver over [`Ops`] with its index in a directory of its own.
struct House {
    ops: Arc<Ops>,
    jobs: Jobs<Ops>,
    tasks: Tasks,
    db: Db,
    directory: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        House::at(tempfile::tempdir().unwrap(), Arc::default())
    }

    fn at(directory: tempfile::TempDir, ops: Arc<Ops>) -> House {
        let tasks = Tasks::new();
        let db = Db::open(directory.path().join("db")).unwrap();
        let index = KeyIndex::open(db.clone()).unwrap();
        let sessions = Sessions::new(&tasks);
        let solver = Solver::new(Arc::clone(&ops), index, sessions, tasks.clone());
        let jobs = Jobs::new(solver, Default::default(), Limits::default(), tasks.clone());
        House { ops, jobs, tasks, db, directory }
    }

    /// Stops everything and starts again on the same directory.
    async fn restart(self) -> House {
        let House { ops, jobs, tasks, db, directory } = self;
        tasks.shutdown().await;
        drop(jobs);
        db.close();
        drop(db);
        House::at(directory, ops)
    }

    fn job(&self, id: &str) -> RunningJob<Ops> {
        let spec = JobSpec {
            id: JobId(id.to_owned()),
            sessions: SessionGroup::empty(),
            inputs: Default::default(),
            entitlements: Default::default(),
        };
        self.jobs.create(spec).unwrap()
    }

    fn lazy(&self, job: &Job<Ops>, plan: &Plan, salt: &str, vertex: usize) -> LazyResult<Ops> {
        let (graph, behaviours) = plan.graph(salt, vertex, 0);
        locked(&self.ops.behaviours).extend(behaviours);
        job.solve_graph(graph)
    }

    /// Solves in a job of its own.
    async fn solve(&self, plan: &Plan, salt: &str, vertex: usize) -> Result<Option<u64>, SolveError> {
        let job = self.job("one");
        self.lazy(&job, plan, salt, vertex).evaluate().await
    }
}

fn chain() -> Plan {
    let mut plan = Plan::default();
    let base = plan.root("base");
    let middle = plan.op("middle", &[base]);
    plan.op("top", &[middle]);
    plan
}

#[tokio::test]
async fn a_result_is_computed_once_and_then_known_across_jobs_and_restarts() {
    let (house, plan) = (House::new(), chain());
    let value = plan.values()[2][0];
    assert_eq!(house.solve(&plan, "", 2).await.unwrap(), Some(value));
    assert_eq!(house.solve(&plan, "another definition", 2).await.unwrap(), Some(value));
    let house = house.restart().await;
    assert_eq!(house.solve(&plan, "", 2).await.unwrap(), Some(value));
    for op in ["base", "middle", "top"] {
        assert_eq!(house.ops.count(&format!("run {op}")), 1, "{op}");
    }
    assert_eq!(house.ops.count(&format!("load {value:x}")), 2, "nothing but the top is loaded");
}

/// A cached chain took the square of its length: at each step a look at all that it stands on.
#[tokio::test]
async fn a_result_without_a_rival_is_not_compared() {
    let (house, plan) = (House::new(), chain());
    house.solve(&plan, "", 2).await.unwrap();
    let house = house.restart().await;
    house.solve(&plan, "", 2).await.unwrap();
    assert_eq!(house.ops.count("run top"), 1);
    assert_eq!(house.ops.count("compare"), 0);
}

/// There was a task and a snapshot for each vertex.
#[tokio::test]
async fn a_known_merge_of_a_thousand_takes_a_few_tasks_and_snapshots() {
    let mut plan = Plan::default();
    let roots: Vec<usize> = (0..1_000).map(|n| plan.root(&format!("root {n}"))).collect();
    let merge = plan.op("merge", &roots);
    let house = House::new();
    house.ops.own_maps.store(true, Ordering::Relaxed);
    house.solve(&plan, "", merge).await.unwrap();
    let house = house.restart().await;
    let (tasks, reads) = (house.tasks.spawned(), house.db.reads());
    assert_eq!(house.solve(&plan, "", merge).await.unwrap(), Some(plan.values()[merge][0]));
    assert_eq!(house.ops.count("run merge"), 1);
    // What is known of the roots, and of the merge, which is loaded; and the job that is over.
    assert_eq!(house.tasks.spawned() - tasks, 4);
    assert_eq!(house.db.reads() - reads, 2);
}

#[tokio::test]
async fn a_build_of_what_is_known_writes_nothing() {
    let (house, plan) = (House::new(), chain());
    house.solve(&plan, "", 2).await.unwrap();
    let house = house.restart().await;
    let commits = house.db.commits();
    house.solve(&plan, "", 2).await.unwrap();
    house.db.write(|_| Ok(())).await.unwrap();
    assert_eq!(house.db.commits(), commits + 1, "only the write of this test");
}

#[tokio::test]
async fn jobs_share_a_run_which_ends_when_the_last_of_them_leaves() {
    let (house, plan) = (House::new(), chain());
    let gate = house.ops.hold("top");
    let (one, two) = (house.job("one"), house.job("two"));
    let first = house.lazy(&one, &plan, "", 2);
    let second = house.lazy(&two, &plan, "of another digest", 2);
    let mut first = Box::pin(async move { first.evaluate().await });
    let mut second = Box::pin(async move { second.evaluate().await });
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending());
    house.ops.saw("run top").await;
    drop(first);
    drop(one);
    gate.add_permits(1);
    assert_eq!(second.await.unwrap(), Some(plan.values()[2][0]));
    assert_eq!(house.ops.count("run top"), 1);
    assert_eq!(house.ops.count("cancelled top"), 0);

    let mut plan = Plan::default();
    let alone = plan.root("alone");
    house.ops.hold("alone");
    let three = house.job("three");
    let third = house.lazy(&three, &plan, "", alone);
    let mut third = Box::pin(async move { third.evaluate().await });
    assert!(futures::poll!(&mut third).is_pending());
    house.ops.saw("run alone").await;
    drop(three);
    house.ops.saw("cancelled alone").await;
    assert!(third.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_caller_that_stops_waiting_ends_the_work_and_the_next_one_starts_it_anew() {
    let house = House::new();
    let mut plan = Plan::default();
    let root = plan.root("root");
    let gate = house.ops.hold("root");
    let job = house.job("one");
    let lazy = house.lazy(&job, &plan, "", root);
    {
        let mut wait = Box::pin(lazy.evaluate());
        assert!(futures::poll!(&mut wait).is_pending());
        house.ops.saw("run root").await;
    }
    house.ops.saw("cancelled root").await;
    gate.add_permits(1);
    assert_eq!(lazy.evaluate().await.unwrap(), Some(plan.values()[root][0]));
    assert_eq!(lazy.evaluate().await.unwrap(), Some(plan.values()[root][0]));
    assert_eq!(house.ops.count("run root"), 2);
}

#[tokio::test]
async fn an_error_names_its_vertex_and_does_not_poison_later_jobs() {
    let (house, plan) = (House::new(), chain());
    locked(&house.ops.failing).insert("middle".to_owned(), 1);
    let one = house.job("one");
    let lazy = house.lazy(&one, &plan, "", 2);
    for _ in 0..2 {
        let error = lazy.evaluate().await.unwrap_err();
        assert_eq!(error.vertex(), Some(plan.digests("")[1]));
        let SolveError::Vertex { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(source.cause, Cause::Op(OpError::Failed { .. })), "{source}");
    }
    assert_eq!(house.ops.count("run middle"), 1, "within a job an error stands");
    let two = house.job("two");
    let value = house.lazy(&two, &plan, "", 2).evaluate().await.unwrap();
    assert_eq!(value, Some(plan.values()[2][0]));
    assert!(lazy.evaluate().await.is_err());
}

#[tokio::test]
async fn a_record_that_does_not_load_is_passed_over_and_the_op_runs() {
    let (house, plan) = (House::new(), chain());
    let value = house.solve(&plan, "", 2).await.unwrap().unwrap();
    let id = format!("{value:x}");
    locked(&house.ops.remote).insert(id.clone(), "nobody".to_owned());
    assert_eq!(house.solve(&plan, "", 2).await.unwrap(), Some(value));
    assert_eq!(house.ops.count("run top"), 2);
    assert_eq!(house.ops.count("run middle"), 1, "its input is loaded");
}

#[tokio::test]
async fn a_record_finds_its_provider_among_the_ancestors_of_its_vertex() {
    let (house, plan) = (House::new(), chain());
    let value = house.solve(&plan, "", 2).await.unwrap().unwrap();
    locked(&house.ops.remote).insert(format!("{value:x}"), "base".to_owned());
    assert_eq!(house.solve(&plan, "", 2).await.unwrap(), Some(value));
    assert_eq!(house.ops.count("run top"), 1);
}

#[tokio::test]
async fn a_record_that_is_gone_is_forgotten() {
    let (house, plan) = (House::new(), chain());
    let value = house.solve(&plan, "", 2).await.unwrap().unwrap();
    locked(&house.ops.results).remove(&format!("{value:x}"));
    assert_eq!(house.solve(&plan, "", 2).await.unwrap(), Some(value));
    assert_eq!(house.ops.count("run top"), 2);
    assert_eq!(house.ops.count(&format!("load {value:x}")), 0);
}

#[tokio::test]
async fn a_panic_of_an_op_is_the_error_of_its_vertex() {
    let house = House::new();
    let mut plan = Plan::default();
    let root = plan.root("root");
    let job = house.job("one");
    let (graph, _) = plan.graph("", root, 0);
    // The model has not heard of the vertex, and panics.
    let error = job.solve_graph(graph).evaluate().await.unwrap_err();
    let SolveError::Vertex { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(source.cause, Cause::Panicked(_)), "{source}");
}

/// The last state of each vertex in a job's journal, by name: `-` announced, `s` started, `c` completed,
/// `C` cached, `x` failed.
async fn states(job: &Job<Ops>) -> String {
    let mut reader = job.journal().reader();
    let mut last: Vec<(String, char)> = Vec::new();
    while let Some(updates) = reader.next().await {
        for update in updates {
            let Update::Vertex(v) = &*update else { continue };
            let state = match (v.started, v.completed, v.cached, &v.error) {
                (_, _, _, Some(_)) => 'x',
                (_, Some(_), true, None) => 'C',
                (_, Some(_), false, None) => 'c',
                (Some(_), None, _, None) => 's',
                (None, None, _, None) => '-',
            };
            match last.iter_mut().find(|(name, _)| **name == *v.name) {
                Some((_, old)) => *old = state,
                None => last.push((v.name.to_string(), state)),
            }
        }
    }
    last.into_iter().map(|(name, state)| format!("{name}:{state} ")).collect::<String>().trim().to_owned()
}

#[tokio::test]
async fn every_vertex_is_shown_and_ends_as_run_as_cached_or_as_cancelled() {
    let (house, plan) = (House::new(), chain());
    let one = house.job("one");
    house.lazy(&one, &plan, "", 2).evaluate().await.unwrap();
    let journal = Job::clone(&one);
    drop(one);
    assert_eq!(states(&journal).await, "base:c middle:c top:c");

    let two = house.job("two");
    house.lazy(&two, &plan, "", 2).evaluate().await.unwrap();
    let journal = Job::clone(&two);
    drop(two);
    assert_eq!(states(&journal).await, "base:c middle:C top:C");

    let mut plan = chain();
    let slow = plan.op("slow", &[2]);
    house.ops.hold("slow");
    let three = house.job("three");
    let lazy = house.lazy(&three, &plan, "", slow);
    let mut wait = Box::pin(lazy.evaluate());
    assert!(futures::poll!(&mut wait).is_pending());
    house.ops.saw("run slow").await;
    let journal = Job::clone(&three);
    drop(three);
    assert_eq!(states(&journal).await, "base:c middle:C top:C slow:x");
}

#[tokio::test(start_paused = true)]
async fn a_call_may_come_before_its_job_and_waits_for_it_only_so_long() {
    let house = House::new();
    let id = JobId("one".to_owned());
    let start = tokio::time::Instant::now();
    let missing = house.jobs.get(&id).await.unwrap_err();
    assert_eq!(missing.to_string(), "no such job one");
    assert_eq!(start.elapsed().as_secs(), 3);
    assert!(house.jobs.follow(&id).await.is_err());
    assert_eq!(start.elapsed().as_secs(), 9);
    let mut early = Box::pin(house.jobs.get(&id));
    assert!(futures::poll!(&mut early).is_pending());
    let job = house.job("one");
    assert_eq!(early.await.unwrap().id(), &id);
    let spec = JobSpec {
        id: id.clone(),
        sessions: SessionGroup::empty(),
        inputs: Default::default(),
        entitlements: Default::default(),
    };
    assert!(house.jobs.create(spec.clone()).is_err(), "it is live");
    drop(job);
    assert!(house.jobs.journal(&id).is_some(), "its status can still be read");
    assert!(house.jobs.get(&id).await.is_err(), "nothing else can be asked of it");
    let again = house.jobs.create(spec).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert!(house.jobs.journal(&id).is_some(), "the first one's end does not remove the second");
    drop(again);
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert!(house.jobs.journal(&id).is_none());
}

/// The definitions of all builds of the last ten seconds, with what they were decoded from, were kept.
#[tokio::test]
async fn of_a_job_that_has_ended_the_journal_is_kept_and_nothing_else() {
    let house = House::new();
    let (id, definition) = (JobId("one".to_owned()), Arc::<Definition>::default());
    let spec = JobSpec {
        id: id.clone(),
        sessions: SessionGroup::empty(),
        inputs: [("input".to_owned(), Arc::clone(&definition))].into(),
        entitlements: Default::default(),
    };
    let job = house.jobs.create(spec).unwrap();
    assert_eq!(Arc::strong_count(&definition), 2);
    drop(job);
    assert_eq!(Arc::strong_count(&definition), 1);
    assert!(house.jobs.journal(&id).is_some());
}

/// Prints the time of a build that finds everything, through the loop, its tasks and the index.
#[tokio::test]
#[ignore = "prints figures, asserts nothing about time"]
async fn curves_of_a_build_of_what_is_known() {
    let mut plans: Vec<(String, Plan)> = Vec::new();
    for length in [10, 100, 1_000] {
        let mut plan = Plan::default();
        let mut top = plan.root("root");
        for n in 1..length {
            top = plan.op(&format!("op {n}"), &[top]);
        }
        plans.push((format!("chain of {length}"), plan));
    }
    let mut plan = Plan::default();
    let roots: Vec<usize> = (0..1_000).map(|n| plan.root(&format!("root {n}"))).collect();
    plan.op("top", &roots);
    plans.push(("wide 1000".to_owned(), plan));
    for depth in [30, 60] {
        let mut plan = Plan::default();
        let mut top = plan.root("root");
        for n in 0..depth {
            let sides = [plan.op(&format!("left {n}"), &[top]), plan.op(&format!("right {n}"), &[top])];
            top = plan.op(&format!("join {n}"), &sides);
        }
        plans.push((format!("diamonds of depth {depth}"), plan));
    }
    for (name, plan) in plans {
        let (house, top) = (House::new(), plan.vertices.len() - 1);
        house.solve(&plan, "", top).await.unwrap();
        let start = std::time::Instant::now();
        for _ in 0..5 {
            house.solve(&plan, "", top).await.unwrap();
        }
        println!("{name}: {:?}", start.elapsed() / 5);
        let runs = locked(&house.ops.log).iter().filter(|entry| entry.starts_with("run ")).count();
        assert_eq!(runs, plan.vertices.len(), "each op ran once, in the first build");
    }
}
