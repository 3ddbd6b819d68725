//! The health service that keeps a session alive.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use thunk::proto::health::HealthCheckRequest;
use thunk::proto::health::HealthCheckResponse;
use thunk::proto::health::HealthListRequest;
use thunk::proto::health::HealthListResponse;
use thunk::proto::health::health_check_response::ServingStatus;
use thunk::proto::health::health_server::Health;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use super::callback::Callback;
use super::callback::Calls;

pub(super) struct HealthService(pub Arc<Calls>);

#[async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.enter(Callback::Health, request.into_inner().service).await?;
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Ok(Response::new(HealthListResponse { statuses: BTreeMap::new() }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("nobody watches a session"))
    }
}
