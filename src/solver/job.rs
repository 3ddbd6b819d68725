//! [`Job`]: one build, and the results that it asks for.
//!
//! What its frontend is told of a source, its vertices stand for: both go by the job's [`Resolutions`].
//!
//! # Cancellation
//!
//! A job ends when its [`RunningJob`] is dropped: its token is cancelled, its interest in every vertex
//! goes, and its journal is closed after whatever is open in it was completed as cancelled. Work that
//! other jobs need as well goes on for them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::Solver;
use super::bridge::Bridge;
use super::bridge::BridgeState;
use super::bridge::locations;
use super::error::FailedOp;
use super::error::FrontendAsked;
use super::error::Phase;
use super::error::SolveError;
use super::error::VertexError;
use super::event::Interest;
use super::event::JobNumber;
use super::frontend::Frontend;
use super::frontend::Frontends;
use crate::ctx::Ctx;
use crate::oci::Digest;
use crate::ops::Edge;
use crate::ops::Entitlement;
use crate::ops::Graph;
use crate::ops::Operate;
use crate::ops::Resolutions;
use crate::ops::llb::Definition;
use crate::ops::llb::Limits;
use crate::progress::Journal;
use crate::progress::Sink;
use crate::progress::Update;
use crate::progress::Vertex;
use crate::session::SessionGroup;

/// Option of a frontend that asks for something else than a solve.
const REQUEST_OPTION: &str = "requestid";
/// Option of a frontend that lists what it must be able to do.
const CAPS_OPTION: &str = "frontend.caps";
/// Capabilities that an error lists.
const MAX_CAPS_TOLD: usize = 16;

/// The ref of a build, chosen by its client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What a job is made from.
#[derive(Clone, Debug)]
pub struct JobSpec {
    pub id: JobId,
    pub sessions: SessionGroup,
    /// Definitions for the frontend, by name.
    pub inputs: BTreeMap<String, Arc<Definition>>,
    /// What its vertices may do beside the usual.
    pub entitlements: BTreeSet<Entitlement>,
}

/// One build. Clones are the same job.
pub struct Job<O: Operate>(Arc<JobInner<O>>);

struct JobInner<O: Operate> {
    number: JobNumber,
    spec: JobSpec,
    journal: Journal,
    cancel: CancellationToken,
    limits: Limits,
    frontends: Arc<Frontends<O>>,
    solver: Solver<O>,
    bridge: BridgeState<O>,
    resolutions: Resolutions,
}

impl<O: Operate> Clone for Job<O> {
    fn clone(&self) -> Self {
        Job(Arc::clone(&self.0))
    }
}

impl<O: Operate> fmt::Debug for Job<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.0.spec.id)
    }
}

impl<O: Operate> Job<O> {
    pub(super) fn new(
        spec: JobSpec,
        solver: Solver<O>,
        frontends: Arc<Frontends<O>>,
        limits: Limits,
    ) -> Job<O> {
        Job(Arc::new(JobInner {
            number: solver.number(),
            spec,
            journal: Journal::new(),
            cancel: solver.child_token(),
            limits,
            frontends,
            solver,
            bridge: BridgeState::default(),
            resolutions: Resolutions::default(),
        }))
    }

    pub fn id(&self) -> &JobId {
        &self.0.spec.id
    }

    /// The sessions of the job's client.
    pub fn sessions(&self) -> &SessionGroup {
        &self.0.spec.sessions
    }

    /// Everything that happens in the job.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Cancelled when the job ends.
    pub fn cancel(&self) -> &CancellationToken {
        &self.0.cancel
    }

    /// For work of the job that is no vertex: exports, pushes.
    pub fn ctx(&self) -> Ctx {
        Ctx::new(self.sessions().clone(), self.cancel().clone())
    }

    /// What its sources stand for.
    pub fn resolutions(&self) -> &Resolutions {
        &self.0.resolutions
    }

    /// Definitions for the frontend, by name.
    pub fn inputs(&self) -> &BTreeMap<String, Arc<Definition>> {
        &self.0.spec.inputs
    }

    /// What the frontend of this job talks to.
    pub fn bridge(&self) -> Bridge<'_, O> {
        Bridge { job: self, state: &self.0.bridge }
    }

    /// The frontend of that name; `options` say what it is to be asked for.
    pub(super) fn frontend(
        &self,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Arc<dyn Frontend<O>>, SolveError> {
        if let Some(frontend) = self.0.frontends.get(name) {
            return Ok(Arc::clone(frontend));
        }
        let clip = |text: &str| text.chars().take(160).collect::<String>();
        let given = |key: &str| options.get(key).map(String::as_str).filter(|text| !text.is_empty());
        let caps = given(CAPS_OPTION).map(|list| list.split(',').take(MAX_CAPS_TOLD)).into_iter().flatten();
        let asked =
            FrontendAsked { request: given(REQUEST_OPTION).map(clip), caps: caps.map(clip).collect() };
        Err(SolveError::NoSuchFrontend { name: clip(name), asked })
    }

    /// Decodes a definition and shows its vertices, but runs nothing. `None` is the empty file system.
    ///
    /// Cancellation safe: what was forgotten for vertices that ignore the cache stays forgotten.
    pub async fn solve(&self, definition: &Arc<Definition>) -> Result<Option<LazyResult<O>>, SolveError> {
        let graph = definition.decode(&self.0.limits).map_err(|source| {
            let locations = source.vertex().map(|v| locations(definition, &v)).unwrap_or_default();
            SolveError::Definition { source, locations }
        })?;
        let Some(graph) = graph else { return Ok(None) };
        self.check_entitlements(&graph)?;
        self.forget_kept(&graph).await?;
        Ok(Some(self.solve_graph(graph)))
    }

    async fn forget_kept(&self, graph: &Graph) -> Result<(), SolveError> {
        for vertex in graph.inputs_first().filter(|vertex| vertex.options.ignore_cache) {
            let forgotten = self.0.solver.operate().forget_kept(vertex).await;
            forgotten.map_err(|cause| {
                let (digest, phase) = (vertex.digest, Phase::Result);
                let source = Arc::new(VertexError { vertex: digest, phase, cause: cause.into() });
                let locations = locations(&graph.definition, &digest);
                SolveError::Vertex { source, locations, op: None }
            })?;
        }
        Ok(())
    }

    fn check_entitlements(&self, graph: &Graph) -> Result<(), SolveError> {
        let granted = &self.0.spec.entitlements;
        for vertex in graph.inputs_first() {
            let denied = vertex.op.entitlements().find(|entitlement| !granted.contains(entitlement));
            if let Some(entitlement) = denied {
                let (vertex, locations) = (vertex.digest, locations(&graph.definition, &vertex.digest));
                return Err(SolveError::NotEntitled { entitlement, vertex, locations });
            }
        }
        Ok(())
    }

    /// Shows the vertices of a graph, but runs nothing.
    pub(super) fn solve_graph(&self, graph: Graph) -> LazyResult<O> {
        for vertex in graph.inputs_first() {
            self.0.resolutions.share(&vertex.op);
        }
        let lazy = Lazy {
            edge: graph.result(),
            definition: Arc::clone(&graph.definition),
            job: self.0.number,
            cancel: self.0.cancel.clone(),
            solver: self.0.solver.clone(),
        };
        let interest =
            Interest { job: self.0.number, sessions: self.sessions().ids(), journal: self.0.journal.clone() };
        self.0.solver.load(interest, graph);
        LazyResult(Arc::new(lazy))
    }

    /// See [`RunningJob`].
    fn end(&self) {
        self.0.cancel.cancel();
        self.0.solver.leave(self.0.number);
        complete_open(&self.0.journal);
        self.0.journal.close();
    }
}

/// Completes every vertex of `journal` that is open, as cancelled.
fn complete_open(journal: &Journal) {
    let past = journal.reader().next().now_or_never().flatten().unwrap_or_default();
    let mut open: HashMap<Digest, &Vertex> = HashMap::new();
    let mut order = Vec::new();
    for update in &past {
        if let Update::Vertex(vertex) = &**update {
            if vertex.started.is_some() && vertex.completed.is_none() {
                order.push(vertex.digest);
                open.insert(vertex.digest, vertex);
            } else {
                open.remove(&vertex.digest);
            }
        }
    }
    for digest in order {
        if let Some(vertex) = open.remove(&digest) {
            journal.send(Update::Vertex(Vertex {
                completed: Some(SystemTime::now()),
                error: Some("context canceled".to_owned()),
                ..Vertex::clone(vertex)
            }));
        }
    }
}

/// The owner's end of a job: dropping it ends the job.
#[must_use = "the job ends when this is dropped"]
pub struct RunningJob<O: Operate> {
    job: Job<O>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl<O: Operate> RunningJob<O> {
    pub(super) fn new(job: Job<O>, ended: impl FnOnce() + Send + Sync + 'static) -> RunningJob<O> {
        RunningJob { job, ended: Some(Box::new(ended)) }
    }
}

impl<O: Operate> fmt::Debug for RunningJob<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.job, f)
    }
}

impl<O: Operate> Deref for RunningJob<O> {
    type Target = Job<O>;

    fn deref(&self) -> &Job<O> {
        &self.job
    }
}

impl<O: Operate> Drop for RunningJob<O> {
    fn drop(&mut self) {
        self.job.end();
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

/// One output of a vertex, not computed until somebody asks. Clones are the same result.
pub struct LazyResult<O: Operate>(Arc<Lazy<O>>);

struct Lazy<O: Operate> {
    edge: Edge,
    definition: Arc<Definition>,
    job: JobNumber,
    cancel: CancellationToken,
    solver: Solver<O>,
}

impl<O: Operate> Clone for LazyResult<O> {
    fn clone(&self) -> Self {
        LazyResult(Arc::clone(&self.0))
    }
}

impl<O: Operate> fmt::Debug for LazyResult<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LazyResult({}, output {})", self.0.edge.vertex, self.0.edge.output)
    }
}

impl<O: Operate> LazyResult<O> {
    /// What it is the result of, as it was sent.
    pub fn definition(&self) -> &Arc<Definition> {
        &self.0.definition
    }

    /// The result, computed now if nobody has. `None` is the empty file system.
    ///
    /// Cancellation safe: dropping it gives up this caller's interest; the work ends with the last one.
    pub async fn evaluate(&self) -> Result<Option<O::Output>, SolveError> {
        let work = self.0.solver.want(self.0.job, self.0.edge);
        match self.0.cancel.run_until_cancelled(work).await {
            None => Err(SolveError::Cancelled),
            Some(Ok(output)) => Ok(output),
            Some(Err(None)) => Err(SolveError::Cancelled),
            Some(Err(Some(source))) => {
                let locations = locations(&self.0.definition, &source.vertex);
                let op = self.0.definition.op(&source.vertex);
                let op = op.map(|(bytes, description)| FailedOp { bytes, description });
                Err(SolveError::Vertex { source, locations, op })
            }
        }
    }

    /// Says that bytes of the result can't be had, so that the next evaluation comes from another
    /// record, or from running the op. So do those of its inputs' results that are gone as well. False
    /// if there is nowhere left for it to come from.
    ///
    /// Cancellation safe: what is given up is given up.
    pub async fn lost(&self, is_gone: impl Fn(&O::Output) -> bool + Send + Sync + 'static) -> bool {
        self.0.solver.lost(self.0.job, self.0.edge, Arc::new(is_gone)).await
    }
}
