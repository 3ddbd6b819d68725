//! `moby.buildkit.v1.Control`.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use futures::Stream;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Routes;

use super::build::Builds;
use super::content::HistoryContent;
use super::convert;
use super::greeting::Greeting;
use super::health::Healthy;
use super::history::HistoryError;
use super::status;
use super::status::Frames;
use crate::cache::Cache;
use crate::progress::Reader;
use crate::proto::content::content_server::ContentServer;
use crate::proto::control as wire;
use crate::proto::control::control_server::Control;
use crate::proto::control::control_server::ControlServer;
use crate::proto::health::health_server::HealthServer;
use crate::session::Sessions;
use crate::solver::JobId;

/// When a stream began, so that clients can tell their clock from ours.
const TIMESTAMP: &str = "buildkit-current-timestamp";

/// How long updates of a build are gathered before more of them are told, unless the build ends before. A thousand steps
/// that are known take about as long.
const PAUSE: Duration = Duration::from_millis(20);

/// Messages at most, in bytes, both ways.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Answers clients. Clones are the same service.
#[derive(Clone)]
pub struct ControlService {
    builds: Builds,
    sessions: Sessions,
    cache: Cache,
    greeting: Greeting,
    stop: CancellationToken,
}

impl ControlService {
    /// `stop` ends streams that have no end of their own.
    pub fn new(
        builds: Builds,
        sessions: Sessions,
        cache: Cache,
        greeting: Greeting,
        stop: CancellationToken,
    ) -> ControlService {
        ControlService { builds, sessions, cache, greeting, stop }
    }

    /// The services to add to a server.
    pub fn into_routes(self) -> Routes {
        let content = HistoryContent::new(self.builds.history().clone());
        let health = Healthy::new(self.stop.clone());
        let control = ControlServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Routes::new(control).add_service(HealthServer::new(health)).add_service(ContentServer::new(content))
    }

    /// The status of a build: of its job while there is one, else what the history keeps.
    async fn follow(self, build: String) -> Result<Followed, Status> {
        let id = JobId(build);
        if let Some(journal) = self.builds.jobs().journal(&id) {
            return Ok(Followed::live(journal.reader()));
        }
        if let Some(kept) = self.builds.history().logs(&id.0).await? {
            let kept = kept.read_all().await.map_err(HistoryError::from)?;
            return Ok(Followed { reader: None, kept: Frames(kept), ready: VecDeque::new(), is_told: false });
        }
        Ok(Followed::live(self.builds.jobs().follow(&id).await?.reader()))
    }
}

/// A place in the status of a build.
struct Followed {
    /// None for a build that is over and kept.
    reader: Option<Reader>,
    kept: Frames,
    ready: VecDeque<status::Response>,
    /// Something was told before.
    is_told: bool,
}

impl Followed {
    fn live(reader: Reader) -> Followed {
        let (kept, ready) = (Frames(Default::default()), VecDeque::new());
        Followed { reader: Some(reader), kept, ready, is_told: false }
    }

    async fn next(&mut self) -> Result<Option<status::Response>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            let Some(reader) = &mut self.reader else { return Ok(self.kept.next().transpose()?) };
            if std::mem::replace(&mut self.is_told, true) {
                reader.gather(PAUSE).await;
            }
            match reader.next().await {
                Some(batch) => self.ready.extend(status::responses(&batch)),
                None => return Ok(None),
            }
        }
    }
}

/// A response whose headers leave at once, with the time in them.
fn timed<S>(stream: S) -> Response<S> {
    let mut response = Response::new(stream);
    if let Ok(now) = AsciiMetadataValue::try_from(Timestamp::now().to_string()) {
        response.metadata_mut().insert(TIMESTAMP, now);
    }
    response
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn disk_usage(
        &self,
        request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let options = convert::usage_options(request.get_ref())?;
        let usages = self.cache.usage(&options).await.map_err(|error| convert::cache_status(&error))?;
        let record = usages.iter().map(convert::usage_record).collect();
        Ok(Response::new(wire::DiskUsageResponse { record }))
    }

    type PruneStream = Answers<wire::UsageRecord>;

    async fn prune(
        &self,
        request: Request<wire::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let options = convert::prune_options(request.get_ref())?;
        let pruned = self.cache.prune(options);
        let records = pruned
            .map_ok(|usage| convert::usage_record(&usage))
            .map_err(|error| convert::cache_status(&error));
        Ok(Response::new(records.boxed()))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let exporter_response = self.builds.run(convert::build_request(request.into_inner())).await?;
        Ok(Response::new(wire::SolveResponse { exporter_response }))
    }

    type StatusStream = Answers<wire::StatusResponse>;

    /// The job may still have to come, and headers must not wait for it.
    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let follow = self.clone().follow(request.into_inner().r#ref);
        let messages = stream::once(follow).map_ok(|followed| {
            stream::try_unfold(followed, |mut followed| async move {
                Ok(followed.next().await?.map(|response| (response, followed)))
            })
        });
        Ok(timed(messages.try_flatten().boxed()))
    }

    type SessionStream = Answers<wire::BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let opening = convert::opening(request.metadata());
        let inbound = request.into_inner().map_ok(|message| message.data).map_err(io::Error::other);
        let outbound = self.sessions.open(opening, inbound.boxed()).await?;
        Ok(Response::new(outbound.map(|data| Ok(wire::BytesMessage { data })).boxed()))
    }

    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        self.greeting.list_workers(request.get_ref()).map(Response::new)
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        Ok(Response::new(self.greeting.info()))
    }

    type ListenBuildHistoryStream = Answers<wire::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let query = convert::history_query(request.into_inner())?;
        let history = self.builds.history().clone();
        let listen = async move { history.listen(query).await };
        let events = stream::once(listen).try_flatten();
        let messages = events.map_ok(|event| convert::history_event(&event)).map_err(Status::from);
        Ok(timed(until(messages, &self.stop).boxed()))
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        let request = request.into_inner();
        let history = self.builds.history();
        if request.delete {
            history.delete(&request.r#ref).await?;
        } else if !request.finalize {
            // A record is final when it is written: there is no trace to wait for.
            history.pin(&request.r#ref, request.pinned).await?;
        }
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}

fn until<S: Stream>(stream: S, stop: &CancellationToken) -> impl Stream<Item = S::Item> + use<S> {
    stream.take_until(stop.clone().cancelled_owned())
}
