//! `grpc.health.v1.Health`. A daemon that answers is well: its stores open before it serves.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::proto::health::HealthCheckRequest;
use crate::proto::health::HealthCheckResponse;
use crate::proto::health::HealthListRequest;
use crate::proto::health::HealthListResponse;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::Health;

/// The services by name; the empty name is the daemon as a whole.
const SERVICES: [&str; 4] = [
    "",
    "containerd.services.content.v1.Content",
    "moby.buildkit.v1.Control",
    "moby.buildkit.v1.frontend.LLBBridge",
];

/// Answers health checks.
#[derive(Clone, Debug)]
pub struct Healthy {
    stop: CancellationToken,
}

impl Healthy {
    /// `stop` ends the streams of watchers.
    pub fn new(stop: CancellationToken) -> Healthy {
        Healthy { stop }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match SERVICES.contains(&service.as_str()) {
            true => Ok(Response::new(answer(ServingStatus::Serving))),
            false => Err(Status::not_found("unknown service")),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses: BTreeMap<String, HealthCheckResponse> =
            SERVICES.iter().map(|&service| (service.to_owned(), answer(ServingStatus::Serving))).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// The status now, and its change when the daemon stops.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let now = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let stop = self.stop.clone().cancelled_owned();
        let stopped = stream::once(async move {
            stop.await;
            Ok(answer(ServingStatus::NotServing))
        });
        Ok(Response::new(stream::iter([Ok(answer(now))]).chain(stopped).boxed()))
    }
}
