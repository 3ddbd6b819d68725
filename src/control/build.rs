//! [`Builds`]: one solve from its request to its record.
//!
//! ```text
//! job created -> shown as running -> result (definition, frontend or Return) -> evaluated
//!   -> exported -> pushed -> job ended, its status too -> recorded -> answered
//! ```
//!
//! # Invariants
//!
//! - The job is there before anything slow: calls on its bridge and readers of its status may come
//!   before the solve.
//! - Whatever goes wrong, the status of the build ends, and then the record is written.
//!
//! # Cancellation
//!
//! A build is an owned task: dropping [`Builds::run`] cancels it and lets it write its record. It is
//! cancelled as well by [`Builds::shutdown`].

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;

use super::history::ActiveBuild;
use super::history::Completion;
use super::history::History;
use super::history::Record;
use super::history::RecordedError;
use super::history::RecordedExporter;
use super::status;
use super::status::StepCount;
use crate::cache::ImmutableRef;
use crate::content::FetchError;
use crate::ctx::Ctx;
use crate::export::Attestation;
use crate::export::Export;
use crate::export::ExportError;
use crate::export::ExportRefs;
use crate::export::ExportSource;
use crate::export::ExportTarget;
use crate::export::Exported;
use crate::export::Exporters;
use crate::export::PushFailure;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::ops::Worker;
use crate::ops::llb::Definition;
use crate::progress::Journal;
use crate::progress::Vertex;
use crate::progress::VertexProgress;
use crate::registry::PushError;
use crate::session::Code;
use crate::session::SessionError;
use crate::session::SessionGroup;
use crate::session::SessionId;
use crate::session::Sessions;
use crate::solver::Job;
use crate::solver::JobExists;
use crate::solver::JobId;
use crate::solver::JobSpec;
use crate::solver::Jobs;
use crate::solver::LazyResult;
use crate::solver::Refs;
use crate::solver::Rejected;
use crate::solver::RunningJob;
use crate::solver::SolveError;
use crate::solver::SolveReply;
use crate::solver::SolveRequest;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// Attribute of an exporter for the time that everything in an image is given.
const EPOCH_ATTRIBUTE: &str = "source-date-epoch";
/// Attribute of a frontend from which exporters take it, if it is a time or says that there is none. A frontend may
/// have other words for what it finds the time in, and states that with its result.
const EPOCH_ARGUMENT: &str = "build-arg:SOURCE_DATE_EPOCH";

/// What a client wants built.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    pub build: String,
    /// The session of the client; none if it offers nothing.
    pub session: Option<SessionId>,
    /// None of these two: the client is the frontend and returns the result itself.
    pub definition: Option<Arc<Definition>>,
    pub frontend: String,
    pub attributes: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Arc<Definition>>,
    pub exporters: Vec<ExporterRequest>,
    /// The client names more exporters when the result is there.
    pub session_exporter: bool,
    pub entitlements: Vec<String>,
    /// Leaves no record.
    pub internal: bool,
    /// 0 stands for the newest.
    pub compatibility_version: i64,
    /// What is asked for and can't be done; the build fails with the first.
    pub unsupported: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExporterRequest {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

/// A build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a build needs a ref")]
    NoRef,
    #[error(transparent)]
    Exists(#[from] JobExists),
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("compatibility version {version} is not known: use 10, 20 or 30")]
    CompatibilityVersion { version: i64 },
    #[error("granting entitlement {name} is not allowed by build daemon configuration")]
    Entitlement { name: String },
    #[error(transparent)]
    Solve(#[from] SolveError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("the client could not be asked for its exporters: {0}")]
    Session(#[from] SessionError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

impl BuildError {
    pub fn is_cancelled(&self) -> bool {
        match self {
            BuildError::Solve(error) => error.is_cancelled(),
            BuildError::Export(error) => error.is_cancelled(),
            _ => false,
        }
    }
}

/// Runs builds. Clones share what they run with.
#[derive(Clone)]
pub struct Builds(Arc<Parts>);

struct Parts {
    jobs: Jobs<Worker>,
    sessions: Sessions,
    exporters: Exporters,
    history: History,
    /// Entitlements that the daemon's configuration allows.
    entitlements: BTreeSet<String>,
    tasks: Tasks,
}

/// What a build left behind.
#[derive(Debug, Default)]
struct Built {
    response: BTreeMap<String, String>,
    results: BTreeMap<usize, Descriptor>,
}

impl Builds {
    /// `tasks` owns the builds, and is shut down with them.
    pub fn new(
        jobs: Jobs<Worker>,
        sessions: Sessions,
        exporters: Exporters,
        history: History,
        entitlements: BTreeSet<String>,
        tasks: Tasks,
    ) -> Builds {
        Builds(Arc::new(Parts { jobs, sessions, exporters, history, entitlements, tasks }))
    }

    pub fn jobs(&self) -> &Jobs<Worker> {
        &self.0.jobs
    }

    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Cancels every build, and waits until each has answered and is recorded.
    pub async fn shutdown(&self) {
        self.0.tasks.shutdown().await;
    }

    /// Builds what `request` says, and gives the keys for the client.
    pub async fn run(&self, request: BuildRequest) -> Result<BTreeMap<String, String>, BuildError> {
        if request.build.is_empty() {
            return Err(BuildError::NoRef);
        }
        let job = self.0.jobs.create(JobSpec {
            id: JobId(request.build.clone()),
            sessions: SessionGroup::new(&self.0.sessions, request.session.clone()),
            inputs: request.inputs.clone(),
            // Those that are not known are refused before anything is solved.
            entitlements: request.entitlements.iter().filter_map(|name| name.parse().ok()).collect(),
        })?;
        let given_up = self.0.tasks.token().child_token();
        let guard = given_up.clone().drop_guard();
        let build = Build { parts: Arc::clone(&self.0), request };
        let built = self.0.tasks.spawn("build", build.run(job, given_up)).await?;
        drop(guard);
        built.map(|built| built.response)
    }
}

/// One build under way.
struct Build {
    parts: Arc<Parts>,
    request: BuildRequest,
}

impl Build {
    async fn run(self, job: RunningJob<Worker>, given_up: CancellationToken) -> Result<Built, BuildError> {
        let active = (!self.request.internal).then(|| self.parts.history.begin(self.record())).flatten();
        let ended = job.cancel().clone();
        let built = tokio::select! {
            biased;
            () = given_up.cancelled() => Err(SolveError::Cancelled.into()),
            () = ended.cancelled() => Err(SolveError::Cancelled.into()),
            built = self.build(&job) => built,
        };
        let journal = job.journal().clone();
        // Ends the status as well, after whatever is open in it.
        drop(job);
        if let Some(active) = active {
            record(active, &journal, &built).await;
        }
        built
    }

    fn record(&self) -> Record {
        let exporters = self.request.exporters.iter().map(|exporter| RecordedExporter {
            kind: exporter.kind.clone(),
            attributes: exporter.attributes.clone(),
        });
        Record {
            frontend: self.request.frontend.clone(),
            frontend_attributes: self.request.attributes.clone(),
            exporters: exporters.collect(),
            ..Record::new(self.request.build.clone())
        }
    }

    async fn build(&self, job: &Job<Worker>) -> Result<Built, BuildError> {
        let mut exports = self.check()?;
        let reply = self.solve(job).await?;
        let mut source = evaluate(&reply).await?;
        if self.request.session_exporter {
            exports.extend(self.session_exports(job, &reply, &source).await?);
        }
        loop {
            let error = match self.export(job, &exports, &source).await {
                Err(error) => error,
                Ok(mut built) => {
                    built.response.extend(source.frontend_response());
                    if self.request.session_exporter {
                        self.tell_session(job, &built.response).await?;
                    }
                    return Ok(built);
                }
            };
            let Some(gone) = lost_blob(&error) else { return Err(error.into()) };
            tracing::info!(build = self.request.build, %error, "bytes of a result are lost");
            match elsewhere(&reply, gone).await {
                Ok(Some(other)) => source = other,
                Err(again) if again.is_cancelled() => return Err(again.into()),
                // What could not be had is what the build failed for, whatever else went wrong then.
                Ok(None) | Err(_) => return Err(error.into()),
            }
        }
    }

    /// Refuses what can't be done, and plans the exports, before anything is built.
    fn check(&self) -> Result<Vec<Export>, BuildError> {
        let request = &self.request;
        if let Some(what) = request.unsupported.first() {
            return Err(BuildError::Unsupported { what: what.clone() });
        }
        if !matches!(request.compatibility_version, 0 | 10 | 20 | 30) {
            return Err(BuildError::CompatibilityVersion { version: request.compatibility_version });
        }
        let denied = request.entitlements.iter().find(|name| !self.parts.entitlements.contains(*name));
        if let Some(name) = denied {
            return Err(BuildError::Entitlement { name: name.clone() });
        }
        let epoch = request.attributes.get(EPOCH_ARGUMENT).filter(|text| is_epoch(text));
        let plans = request.exporters.iter().map(|exporter| {
            let mut attributes = exporter.attributes.clone();
            if let Some(epoch) = epoch {
                attributes.entry(EPOCH_ATTRIBUTE.to_owned()).or_insert_with(|| epoch.clone());
            }
            Ok(self.parts.exporters.plan(&exporter.kind, attributes)?)
        });
        plans.collect()
    }

    async fn solve(&self, job: &Job<Worker>) -> Result<SolveReply<Worker>, SolveError> {
        let request = &self.request;
        if request.definition.is_none() && request.frontend.is_empty() {
            return job.bridge().returned().await?.map_err(SolveError::Frontend);
        }
        let solve = SolveRequest {
            definition: request.definition.clone(),
            frontend: request.frontend.clone(),
            options: request.attributes.clone(),
            inputs: request.inputs.clone(),
            evaluate: false,
        };
        job.bridge().solve(solve).await
    }

    /// Exports to each target at the same time, then pushes at the same time. Later targets override
    /// the response keys of earlier ones.
    async fn export(
        &self,
        job: &Job<Worker>,
        exports: &[Export],
        source: &ExportSource,
    ) -> Result<Built, ExportError> {
        let version = u32::try_from(self.request.compatibility_version).unwrap_or_default();
        let vertices: Vec<ExportVertex> =
            exports.iter().enumerate().map(|(index, export)| self.vertex(job, index, export)).collect();
        let run = exports.iter().zip(&vertices).enumerate().map(|(index, (export, vertex))| async move {
            let target = ExportTarget { index, compatibility_version: version };
            vertex.report(run_boxed(export, &vertex.ctx, source, target).await)
        });
        let exported: Vec<Exported> = try_join_all(run).await?;
        let push = exported.iter().zip(&vertices).map(|(exported, vertex)| async move {
            vertex.report(finish_boxed(exported, &vertex.ctx).await)?;
            vertex.progress.complete(None);
            Ok::<_, ExportError>(())
        });
        try_join_all(push).await?;
        let mut built = Built::default();
        for (index, exported) in exported.into_iter().enumerate() {
            built.response.extend(exported.response);
            if let Some(descriptor) = exported.descriptor {
                built.results.insert(index, descriptor);
            }
        }
        Ok(built)
    }

    fn vertex(&self, job: &Job<Worker>, index: usize, export: &Export) -> ExportVertex {
        let session = self.request.session.as_ref().map_or("", SessionId::as_str);
        let digest = Digest::sha256(format!("{session}-export-{index}"));
        let sink = Arc::new(job.journal().clone());
        let progress = VertexProgress::new(Vertex::new(digest, export.name()), sink);
        progress.start();
        ExportVertex { ctx: job.ctx().with_progress(progress.clone()), progress }
    }

    /// The exporters that the client names now, which may look into the refs first. A client without that service names
    /// none.
    async fn session_exports(
        &self,
        job: &Job<Worker>,
        reply: &SolveReply<Worker>,
        source: &ExportSource,
    ) -> Result<Vec<Export>, BuildError> {
        let refs: Vec<String> = reply.refs.iter().map(|one| one.id.to_string()).collect();
        let asked = job.sessions().any(|session| {
            let (metadata, refs) = (source.metadata.clone(), refs.clone());
            async move { session.find_exporters(metadata, refs).await }
        });
        let named = unless_missing(asked.await)?.unwrap_or_default();
        let plans = named.into_iter().map(|e| Ok(self.parts.exporters.plan(&e.kind, e.attributes)?));
        plans.collect()
    }

    async fn tell_session(
        &self,
        job: &Job<Worker>,
        response: &BTreeMap<String, String>,
    ) -> Result<(), BuildError> {
        let told = job.sessions().any(|session| {
            let response = response.clone();
            async move { session.finalize_export(response).await }
        });
        unless_missing(told.await)?;
        Ok(())
    }
}

// Boxed, since the compiler can't see by itself that these futures are `Send` for every lifetime.

fn run_boxed<'a>(
    export: &'a Export,
    ctx: &'a Ctx,
    source: &'a ExportSource,
    target: ExportTarget,
) -> BoxFuture<'a, Result<Exported, ExportError>> {
    export.run(ctx, source, target).boxed()
}

fn finish_boxed<'a>(exported: &'a Exported, ctx: &'a Ctx) -> BoxFuture<'a, Result<(), ExportError>> {
    exported.finish(ctx).boxed()
}

fn evaluate_boxed(one: &LazyResult<Worker>) -> BoxFuture<'_, Result<Option<ImmutableRef>, SolveError>> {
    one.evaluate().boxed()
}

fn lost_boxed(
    one: &LazyResult<Worker>,
    is_gone: impl Fn(&ImmutableRef) -> bool + Send + Sync + 'static,
) -> BoxFuture<'_, bool> {
    one.lost(is_gone).boxed()
}

/// A number of seconds, or empty for none.
fn is_epoch(text: &str) -> bool {
    text.is_empty() || text.parse::<i64>().is_ok()
}

/// The vertex under which an export is reported.
struct ExportVertex {
    ctx: Ctx,
    progress: VertexProgress,
}

impl ExportVertex {
    /// Ends the vertex if its export failed.
    fn report<T>(&self, outcome: Result<T, ExportError>) -> Result<T, ExportError> {
        if let Err(error) = &outcome {
            self.progress.complete(Some(error.to_string()));
        }
        outcome
    }
}

/// Evaluates all refs of a result at the same time.
async fn evaluate(reply: &SolveReply<Worker>) -> Result<ExportSource, SolveError> {
    let refs = match &reply.refs {
        Refs::Single(None) => ExportRefs::Single(None),
        Refs::Single(Some(one)) => ExportRefs::Single(evaluate_boxed(&one.result).await?),
        Refs::Many(many) => {
            let all = many.iter().map(|(id, one)| async move {
                let state = match one {
                    Some(one) => evaluate_boxed(&one.result).await?,
                    None => None,
                };
                Ok::<_, SolveError>((id.clone(), state))
            });
            ExportRefs::Platforms(try_join_all(all).await?.into_iter().collect())
        }
    };
    let mut attestations: BTreeMap<String, Vec<Attestation<ImmutableRef>>> = BTreeMap::new();
    for (platform, stated) in &reply.attestations {
        let stated = stated.iter().map(|one| async move {
            let files = match &one.files {
                Some(files) => evaluate_boxed(&files.result).await?,
                None => None,
            };
            Ok::<_, SolveError>(one.with_files(files))
        });
        attestations.insert(platform.clone(), try_join_all(stated).await?);
    }
    Ok(ExportSource { refs, metadata: reply.metadata.clone(), attestations })
}

/// The blob whose bytes can't be had from anywhere, if that is why an export failed: another record may
/// have others.
fn lost_blob(error: &ExportError) -> Option<Digest> {
    let error = match error {
        ExportError::Fetch(error) => error,
        ExportError::Push { source: PushFailure::Push(error), .. } => match error.as_ref() {
            PushError::Body { cause, .. } => cause.downcast_ref()?,
            _ => return None,
        },
        _ => return None,
    };
    FetchError::cannot_be_had(error).then(|| error.digest())
}

/// The result without the blob that is `gone`: from the next records, or by running ops again. None if
/// there is no such result, which is found out without asking for the blob again.
async fn elsewhere(reply: &SolveReply<Worker>, gone: Digest) -> Result<Option<ExportSource>, SolveError> {
    let has_it = move |state: &ImmutableRef| state.blobs().any(|layer| layer.blob.digest == gone);
    loop {
        let source = evaluate(reply).await?;
        if !source.all_states().any(has_it) {
            return Ok(Some(source));
        }
        let mut given_up = false;
        for one in reply.refs() {
            given_up |= lost_boxed(&one.result, has_it).await;
        }
        if !given_up {
            return Ok(None);
        }
    }
}

/// None if the client does not have the service that was called.
fn unless_missing<T>(answer: Result<T, SessionError>) -> Result<Option<T>, SessionError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.refusal(), Some(Code::Unimplemented | Code::Unavailable)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Records how a build ended. A record that can't be written is no reason to fail a build.
async fn record(active: ActiveBuild, journal: &Journal, built: &Result<Built, BuildError>) {
    let mut count = StepCount::default();
    let mut logs = BytesMut::new();
    let mut reader = journal.reader();
    while let Some(batch) = reader.next().await {
        batch.iter().for_each(|update| count.see(update));
        for response in status::responses(&batch) {
            status::frame(&response, &mut logs);
        }
    }
    let mut completion = Completion { logs: logs.freeze(), steps: count.steps(), ..Completion::default() };
    match built {
        Ok(built) => {
            completion.exporter_response = built.response.clone();
            completion.results = built.results.clone();
        }
        Err(error) => {
            let rejected = Rejected::from(error);
            completion.external_error = Some(super::convert::encode_status(&rejected));
            completion.error = Some(RecordedError { code: rejected.code, message: rejected.message });
        }
    }
    if let Err(error) = active.complete(completion).await {
        tracing::error!(%error, "a build could not be recorded");
    }
}
