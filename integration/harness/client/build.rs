//! One build: a session, a solve and its status, as BuildKit's client runs them.

use std::collections::BTreeMap;
use std::time::Duration;

use thunk::proto::control::Exporter;
use thunk::proto::control::SolveRequest;
use thunk::proto::control::SolveResponse;
use thunk::proto::control::StatusRequest;
use thunk::proto::control::StatusResponse;
use thunk::proto::control::Vertex;
use thunk::proto::control::VertexStatus;
use thunk::proto::pb;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;
use tonic::Response;
use tonic::Status;

use super::Client;
use super::session::Attachables;
use super::session::Session;
use crate::harness::llb::State;

/// How long a build may take before the test fails.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the status may go on after the solve has answered: clients give up then.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// What to build.
#[derive(Clone, Default)]
pub struct Build {
    /// Everything but the reference and the session, which are filled in.
    pub request: SolveRequest,
    pub attach: Attachables,
}

impl Build {
    /// A build of an LLB definition.
    pub fn of(state: &State) -> Self {
        Self::of_definition(state.definition())
    }

    pub fn of_definition(definition: pb::Definition) -> Self {
        let request = SolveRequest { definition: Some(definition), ..SolveRequest::default() };
        Self { request, attach: Attachables::default() }
    }

    /// A build that waits for its result from the gateway: see [`Client::bridge`].
    pub fn gateway() -> Self {
        Self::default()
    }

    /// Adds an exporter.
    pub fn export(mut self, kind: &str, attributes: &[(&str, &str)]) -> Self {
        let attrs = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.request.exporters.push(Exporter { r#type: kind.to_owned(), attrs });
        self
    }

    /// Exports as an image under `name` and pushes it.
    pub fn push(self, name: &str) -> Self {
        self.export("image", &[("name", name), ("push", "true")])
    }

    pub fn attach(mut self, attach: Attachables) -> Self {
        self.attach = attach;
        self
    }

    pub(super) async fn start(self, client: &Client) -> Result<Running, Status> {
        let session = Session::open(client, self.attach).await?;
        let reference = format!("build-{:016x}", rand::random::<u64>());
        let mut request = self.request;
        request.r#ref = reference.clone();
        request.session = session.id().to_owned();
        if let Some(first) = request.exporters.first() {
            // Go clients name the first exporter twice.
            request.exporter_deprecated = first.r#type.clone();
            request.exporter_attrs_deprecated = first.attrs.clone();
        }
        let mut tasks = JoinSet::new();
        let mut control = client.control();
        let solve = async move { Part::Solved(control.solve(request).await.map(Response::into_inner)) };
        let solve = tasks.spawn(solve);
        let (mut control, of) = (client.control(), reference.clone());
        tasks.spawn(async move { read_status(&mut control, of).await });
        Ok(Running { reference, session, solve, tasks })
    }
}

async fn read_status(control: &mut ControlClientOf, reference: String) -> Part {
    let mut progress = Vec::new();
    let mut read = async || {
        let mut stream = control.status(StatusRequest { r#ref: reference.clone() }).await?.into_inner();
        while let Some(message) = stream.message().await? {
            progress.push(message);
        }
        Ok(())
    };
    let ended = read().await;
    Part::Told(progress, ended)
}

type ControlClientOf = thunk::proto::control::control_client::ControlClient<tonic::transport::Channel>;

enum Part {
    Solved(Result<SolveResponse, Status>),
    Told(Vec<StatusResponse>, Result<(), Status>),
}

/// A build under way. Dropping it is a client that was killed.
pub struct Running {
    pub reference: String,
    pub session: Session,
    solve: AbortHandle,
    tasks: JoinSet<Part>,
}

impl Running {
    /// Waits until the solve has answered and the status has ended.
    pub async fn finish(mut self) -> Outcome {
        let (mut response, mut told) = (None, None);
        while response.is_none() || told.is_none() {
            let limit = if response.is_some() { STATUS_LIMIT } else { LIMIT };
            let part = tokio::time::timeout(limit, self.tasks.join_next()).await;
            let part = part.unwrap_or_else(|_| panic!("build {} does not end", self.reference));
            match part.expect("two parts").expect("a part does not panic") {
                Part::Solved(result) => response = Some(result.map(|response| response.exporter_response)),
                Part::Told(progress, ended) => told = Some((progress, ended)),
            }
        }
        let (progress, status_ended) = told.expect("the status was read");
        let response = response.expect("the solve has answered");
        Outcome { reference: self.reference, session: self.session, response, progress, status_ended }
    }

    /// What the solve answers, with a daemon that ends meanwhile: the status may break off.
    pub async fn finish_cut(mut self) -> Result<BTreeMap<String, String>, Status> {
        loop {
            let part = tokio::time::timeout(LIMIT, self.tasks.join_next()).await;
            let part = part.unwrap_or_else(|_| panic!("build {} does not end", self.reference));
            if let Part::Solved(result) = part.expect("two parts").expect("a part does not panic") {
                return result.map(|response| response.exporter_response);
            }
        }
    }

    /// Cancels the solve alone, and reads its status to the end.
    pub async fn cancel_solve(mut self) -> Outcome {
        self.solve.abort();
        loop {
            let part = tokio::time::timeout(STATUS_LIMIT, self.tasks.join_next()).await;
            let part = part.unwrap_or_else(|_| panic!("the status of {} does not end", self.reference));
            if let Ok(Part::Told(progress, status_ended)) = part.expect("the status is read") {
                let response = Err(Status::cancelled("by the client"));
                return Outcome {
                    reference: self.reference,
                    session: self.session,
                    response,
                    progress,
                    status_ended,
                };
            }
        }
    }

    /// Cancels the solve and the status as Ctrl-C does, and closes the session.
    pub async fn cancel(mut self) -> Session {
        self.tasks.shutdown().await;
        self.session.close().await;
        self.session
    }
}

/// How a build ended.
pub struct Outcome {
    pub reference: String,
    /// Still open.
    pub session: Session,
    /// What the exporters said.
    pub response: Result<BTreeMap<String, String>, Status>,
    /// All that the status told, in order.
    pub progress: Vec<StatusResponse>,
    /// How the status ended.
    pub status_ended: Result<(), Status>,
}

impl Outcome {
    /// Panics unless the build and its status ended well.
    #[track_caller]
    pub fn success(self) -> Self {
        if let Err(status) = &self.response {
            panic!("build {} failed: {status:?}", self.reference);
        }
        if let Err(status) = &self.status_ended {
            panic!("the status of build {} failed: {status:?}", self.reference);
        }
        self
    }

    /// Panics if it succeeded; why it didn't otherwise.
    #[track_caller]
    pub fn failure(&self) -> &Status {
        match &self.response {
            Ok(response) => panic!("build {} succeeded: {response:?}", self.reference),
            Err(status) => status,
        }
    }

    /// What the exporters said under `key`.
    #[track_caller]
    pub fn exported(&self, key: &str) -> &str {
        let response = self.response.as_ref().expect("the build succeeded");
        response.get(key).unwrap_or_else(|| panic!("no {key} in {response:?}"))
    }

    /// All that was told about one vertex, in order.
    pub fn vertex(&self, digest: &str) -> Vec<&Vertex> {
        let all = self.progress.iter().flat_map(|message| &message.vertexes);
        all.filter(|vertex| vertex.digest == digest).collect()
    }

    /// The last that was told about each status item of a vertex, by its ID.
    pub fn items(&self, vertex: &str) -> BTreeMap<&str, &VertexStatus> {
        let all = self.progress.iter().flat_map(|message| &message.statuses);
        all.filter(|status| status.vertex == vertex).map(|status| (status.id.as_str(), status)).collect()
    }
}
