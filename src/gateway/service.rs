//! `moby.buildkit.v1.frontend.LLBBridge`.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::metadata::MetadataMap;

use super::CAPS;
use super::convert;
use super::convert::MetaRequest;
use super::convert::Understands;
use super::files;
use super::files::FilesError;
use super::files::ReadRange;
use crate::cache::CacheError;
use crate::cache::Look;
use crate::cache::MutableOptions;
use crate::cache::RecordId;
use crate::cache::Tree;
use crate::cache::Want;
use crate::ctx::Ctx;
use crate::fs::Root;
use crate::identity::Identity;
use crate::identity::convert::worker_record;
use crate::ops::FailedMounts;
use crate::ops::HttpFile;
use crate::ops::HttpSource;
use crate::ops::ImageMeta;
use crate::ops::LeftFiles;
use crate::ops::Op;
use crate::ops::Worker;
use crate::ops::llb;
use crate::progress::Vertex;
use crate::progress::VertexProgress;
use crate::proto::gateway as wire;
use crate::proto::gateway::llb_bridge_server::LlbBridge;
use crate::proto::gateway::llb_bridge_server::LlbBridgeServer;
use crate::session::fsutil::FileStat;
use crate::solver::Job;
use crate::solver::JobId;
use crate::solver::Jobs;
use crate::solver::Rejected;
use crate::solver::SolveError;
use crate::solver::SolveReply;
use crate::solver::code_of;
use crate::solver::convert::FailedRefs;
use crate::solver::convert::unsupported_cap;

/// Names the build of a call.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// Messages from clients at most, in bytes.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Answers frontends. Clones are the same service.
#[derive(Clone)]
pub struct GatewayService {
    jobs: Jobs<Worker>,
    worker: Worker,
    identity: Identity,
}

impl GatewayService {
    pub fn new(jobs: Jobs<Worker>, worker: Worker, identity: Identity) -> GatewayService {
        GatewayService { jobs, worker, identity }
    }

    /// The service to add to a server.
    pub fn into_server(self) -> LlbBridgeServer<GatewayService> {
        LlbBridgeServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// The job of a call. A job that has ended answers nobody.
    async fn job(&self, metadata: &MetadataMap) -> Result<Job<Worker>, Status> {
        let id = metadata.get(BUILD_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        let Some(id) = id else {
            return Err(Status::invalid_argument(format!("a bridge call names its build in {BUILD_ID}")));
        };
        let job = self.jobs.get(&JobId(id.to_owned())).await?;
        if job.cancel().is_cancelled() {
            return Err(Status::not_found(format!("no such job {id}")));
        }
        Ok(job)
    }

    async fn image_meta(&self, job: &Job<Worker>, request: &MetaRequest) -> Result<ImageMeta, Status> {
        job.resolutions().share(&request.op);
        let vertex = Vertex::new(request.vertex, request.name.clone());
        let progress = VertexProgress::new(vertex, Arc::new(job.journal().clone()));
        progress.start();
        let ctx = job.ctx().with_progress(progress.clone());
        let asked = async {
            match &request.op {
                Op::Image(source) => self.worker.image_meta(&ctx, source, &request.platform).await,
                Op::OciLayout(source) => self.worker.layout_meta(&ctx, source, &request.platform).await,
                Op::Local(_) | Op::Http(_) | Op::Exec(_) | Op::File(_) | Op::Merge(_) | Op::Diff(_) => {
                    unreachable!("it is no image")
                }
            }
        };
        let answer = match ctx.run(asked).await {
            Ok(answer) => answer.map_err(|error| Status::new(code_of(&error), error.to_string())),
            Err(_) => Err(SolveError::Cancelled.into()),
        };
        progress.complete(answer.as_ref().err().map(|status| status.message().to_owned()));
        answer
    }

    async fn http_meta(
        &self,
        job: &Job<Worker>,
        request: &MetaRequest,
        source: &HttpSource,
    ) -> Result<HttpFile, Status> {
        job.resolutions().share(&request.op);
        let vertex = Vertex::new(request.vertex, request.name.clone());
        let progress = VertexProgress::new(vertex, Arc::new(job.journal().clone()));
        progress.start();
        let ctx = job.ctx().with_progress(progress.clone());
        let answer = match ctx.run(Box::pin(self.worker.web_meta(&ctx, source))).await {
            Ok(answer) => answer.map_err(|error| Status::new(code_of(&error), error.to_string())),
            Err(_) => Err(SolveError::Cancelled.into()),
        };
        progress.complete(answer.as_ref().err().map(|status| status.message().to_owned()));
        answer
    }
}

impl GatewayService {
    /// The files of the empty result: a root with nothing in it.
    async fn nothing(&self, ctx: &Ctx) -> Result<Arc<Tree>, CacheError> {
        self.worker.cache().create(ctx, None, MutableOptions::default()).await?.mount().await
    }

    /// Looks into the files of a ref, of which only those `at` a path are made.
    async fn with_files<T: Send + 'static>(
        &self,
        job: &Job<Worker>,
        reference: &str,
        at: Look,
        look: impl FnOnce(&Root) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<T, Status> {
        let found = match job.bridge().left(reference) {
            Some(left) => {
                let state = left.state().await;
                Some(state.map_err(|error| Status::new(code_of(&error), error.to_string()))?)
            }
            None => match job.bridge().reference(reference)? {
                Some(found) => within(job, Box::pin(found.result.evaluate())).await?,
                None => None,
            },
        };
        let ctx = job.ctx();
        let looked = async {
            let tree = match found {
                Some(found) => Box::pin(found.mount_paths(&ctx, &[at])).await,
                None => Box::pin(self.nothing(&ctx)).await,
            };
            let tree = tree.map_err(|error| Status::new(code_of(&error), error.to_string()))?;
            let looked = self.worker.tasks().spawn_blocking("read files", move || {
                let root = Root::open(tree.path())?;
                look(&root)
            });
            match looked.await {
                Ok(looked) => looked.map_err(convert::files_status),
                Err(error) => Err(Status::new(code_of(&error), error.to_string())),
            }
        };
        match ctx.run(looked).await {
            Ok(looked) => looked,
            Err(_) => Err(SolveError::Cancelled.into()),
        }
    }
}

/// Runs a call until its job ends.
async fn within<T>(
    job: &Job<Worker>,
    call: impl Future<Output = Result<T, SolveError>>,
) -> Result<T, Status> {
    match job.cancel().run_until_cancelled(call).await {
        Some(answer) => answer.map_err(|error| refused(job, error)),
        None => Err(SolveError::Cancelled.into()),
    }
}

/// What the frontend gets for an error. It may look into what a failed process had and left.
fn refused(job: &Job<Worker>, error: SolveError) -> Status {
    let Some(FailedMounts { inputs, mounts }) = error.failed_mounts().cloned() else { return error.into() };
    let bridge = job.bridge();
    let mut named: HashMap<RecordId, String> = HashMap::new();
    let mut name = |files: LeftFiles| match &files {
        // One that is mounted twice, or is as it was, has one name.
        LeftFiles::Untouched(state) => {
            let id = state.id();
            named.entry(id).or_insert_with(|| bridge.keep_left(files).to_string()).clone()
        }
        LeftFiles::Written(_) => bridge.keep_left(files).to_string(),
    };
    let inputs = inputs.into_iter().map(|state| state.map(LeftFiles::Untouched));
    let inputs = inputs.map(|files| files.map(&mut name).unwrap_or_default()).collect();
    let mounts = mounts.into_iter().map(|files| files.map(&mut name).unwrap_or_default()).collect();
    let refs = FailedRefs { inputs, mounts };
    Rejected::with_refs(error, refs).into()
}

fn no_containers<T>() -> Result<Response<T>, Status> {
    Err(unsupported_cap("gateway.exec", "running containers for a frontend is not supported"))
}

#[tonic::async_trait]
impl LlbBridge for GatewayService {
    async fn ping(
        &self,
        request: Request<wire::PingRequest>,
    ) -> Result<Response<wire::PongResponse>, Status> {
        self.job(request.metadata()).await?;
        Ok(Response::new(wire::PongResponse {
            frontend_api_caps: convert::caps(CAPS),
            llb_caps: convert::caps(llb::CAPS),
            workers: vec![worker_record(&self.identity)],
        }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<wire::ResolveImageConfigRequest>,
    ) -> Result<Response<wire::ResolveImageConfigResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let request = request.into_inner();
        let reference = request.r#ref.clone();
        let meta = self.image_meta(&job, &MetaRequest::of_image(request)?).await?;
        Ok(Response::new(wire::ResolveImageConfigResponse {
            digest: meta.digest.to_string(),
            config: meta.config,
            r#ref: reference,
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<wire::ResolveSourceMetaRequest>,
    ) -> Result<Response<wire::ResolveSourceMetaResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let request = request.into_inner();
        convert::no_policies(&request.source_policies)?;
        let Some(source) = request.source else {
            return Err(Status::invalid_argument("source is required"));
        };
        let image = request.image.unwrap_or_default();
        if image.attestation_chain || !image.resolve_attestations.is_empty() {
            let cap = "source.metaresolver.image.attestations";
            return Err(unsupported_cap(cap, "resolving attestations is not supported"));
        }
        let platform = request.platform.as_ref();
        let asked = MetaRequest::of_source(&source, platform, &request.resolve_mode, request.log_name)?;
        let answer = wire::ResolveSourceMetaResponse { source: Some(source), ..Default::default() };
        match &asked.op {
            // Nothing is known of a directory before it is sent.
            Op::Local(_) => return Ok(Response::new(answer)),
            Op::Http(http) => {
                if request.http.is_some_and(|http| http.checksum_request.is_some()) {
                    return Err(Status::unimplemented("checksums with a suffix are not supported"));
                }
                let file = self.http_meta(&job, &asked, http).await?;
                let http = Some(convert::http_meta(&file));
                return Ok(Response::new(wire::ResolveSourceMetaResponse { http, ..answer }));
            }
            _ => {}
        }
        let meta = self.image_meta(&job, &asked).await?;
        Ok(Response::new(wire::ResolveSourceMetaResponse {
            image: Some(wire::ResolveSourceImageResponse {
                digest: meta.digest.to_string(),
                config: if image.no_config { Default::default() } else { meta.config },
                attestation_chain: None,
            }),
            ..answer
        }))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let request = request.into_inner();
        let understands =
            Understands { refs: request.allow_result_array_ref, results: request.allow_result_return };
        let last = match request.r#final {
            true => Some(convert::exporter_attributes(&request.exporter_attr)?),
            false => None,
        };
        let bridge = job.bridge();
        let mut reply = within(&job, bridge.solve(convert::solve_request(request)?)).await?;
        let response = convert::solve_response(&reply, understands)?;
        if let Some(mut metadata) = last {
            metadata.extend(std::mem::take(&mut reply.metadata));
            bridge.return_(Ok(SolveReply { metadata, ..reply }))?;
        }
        Ok(Response::new(response))
    }

    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        if let Some(one) = job.bridge().reference(&request.into_inner().r#ref)? {
            within(&job, one.result.evaluate()).await?;
        }
        Ok(Response::new(wire::EvaluateResponse {}))
    }

    async fn r#return(
        &self,
        request: Request<wire::ReturnRequest>,
    ) -> Result<Response<wire::ReturnResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let wire::ReturnRequest { result, error } = request.into_inner();
        let bridge = job.bridge();
        let outcome = match error {
            Some(error) => Err(Rejected::from(error)),
            None => Ok(convert::returned(&bridge, result.unwrap_or_default())?),
        };
        bridge.return_(outcome)?;
        Ok(Response::new(wire::ReturnResponse {}))
    }

    async fn inputs(
        &self,
        request: Request<wire::InputsRequest>,
    ) -> Result<Response<wire::InputsResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let inputs = job.inputs().iter();
        let definitions = inputs.map(|(name, definition)| (name.clone(), definition.message().clone()));
        Ok(Response::new(wire::InputsResponse { definitions: definitions.collect() }))
    }

    async fn warn(
        &self,
        request: Request<wire::WarnRequest>,
    ) -> Result<Response<wire::WarnResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        job.bridge().warn(convert::warning(request.into_inner())?);
        Ok(Response::new(wire::WarnResponse {}))
    }

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let wire::ReadFileRequest { r#ref, file_path, range, .. } = request.into_inner();
        let range = range.map(|range| ReadRange { offset: range.offset, length: range.length });
        let at = Look::at(&file_path);
        let read = move |root: &Root| files::read_file(root, &file_path, range);
        let data = self.with_files(&job, &r#ref, at, read).await?.into();
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let wire::ReadDirRequest { r#ref, dir_path, include_pattern, .. } = request.into_inner();
        let at = Look { want: Want::Tree, ..Look::at(&dir_path) };
        let list = move |root: &Root| files::read_dir(root, &dir_path, &include_pattern);
        let entries = self.with_files(&job, &r#ref, at, list).await?;
        let entries = entries.iter().map(FileStat::encode).collect();
        Ok(Response::new(wire::ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let job = self.job(request.metadata()).await?;
        let wire::StatFileRequest { r#ref, path, .. } = request.into_inner();
        let at = Look::at(&path);
        let stat = self.with_files(&job, &r#ref, at, move |root| files::stat_file(root, &path)).await?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(stat.encode()) }))
    }

    async fn new_container(
        &self,
        _: Request<wire::NewContainerRequest>,
    ) -> Result<Response<wire::NewContainerResponse>, Status> {
        no_containers()
    }

    async fn release_container(
        &self,
        _: Request<wire::ReleaseContainerRequest>,
    ) -> Result<Response<wire::ReleaseContainerResponse>, Status> {
        no_containers()
    }

    type ExecProcessStream = BoxStream<'static, Result<wire::ExecMessage, Status>>;

    async fn exec_process(
        &self,
        _: Request<Streaming<wire::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        no_containers()
    }

    async fn read_file_container(
        &self,
        _: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        no_containers()
    }

    async fn read_dir_container(
        &self,
        _: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        no_containers()
    }

    async fn stat_file_container(
        &self,
        _: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        no_containers()
    }
}
