//! A client in memory, for tests: any gRPC services on the far end of a tunnel.

use std::io;

use futures::StreamExt as _;
use futures::stream;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::service::Routes;
use tonic::service::RoutesBuilder;

use crate::proto::health::HealthCheckRequest;
use crate::proto::health::HealthCheckResponse;
use crate::proto::health::HealthListRequest;
use crate::proto::health::HealthListResponse;
use crate::proto::health::health_server::Health;
use crate::proto::health::health_server::HealthServer;
use crate::session::Opening;
use crate::session::Session;
use crate::session::SessionId;
use crate::session::Sessions;
use crate::task::Tasks;

struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = stream::BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }
}

/// Services that can be served, health included.
pub(crate) fn services() -> RoutesBuilder {
    let mut routes = Routes::builder();
    routes.add_service(HealthServer::new(Healthy));
    routes
}

/// Opens session `id` of a client that serves `services` and announces `methods`. It lasts as long as
/// `tasks`.
pub(crate) async fn open(
    tasks: &Tasks,
    sessions: &Sessions,
    id: &str,
    methods: &[&str],
    services: RoutesBuilder,
) -> Session {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (read, mut write) = tokio::io::split(near);
    let opening = Opening {
        id: SessionId::new(id),
        name: "test".into(),
        shared_key: "key".into(),
        methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        health: None,
    };
    let mut outbound = sessions.open(opening, ReaderStream::new(read).boxed()).await.unwrap();
    drop(tasks.spawn("outer", async move {
        while let Some(bytes) = outbound.next().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
    }));
    let incoming = stream::once(async { Ok::<_, io::Error>(far) }).chain(stream::pending());
    let server = tonic::transport::Server::builder().add_routes(services.routes());
    drop(tasks.spawn("client", async move {
        server.serve_with_incoming(incoming).await.unwrap();
    }));
    sessions.find(&SessionId::new(id)).await.unwrap()
}
