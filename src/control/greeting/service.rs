//! The calls of `moby.buildkit.v1.Control` that ask who the daemon is.
//!
//! They are answered from the configuration, by [`super::super::ControlService`] and, while its stores
//! are still being opened, by [`Greeting::answer`] without it.

use http::Request as HttpRequest;
use http::Response as HttpResponse;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;

use crate::control::convert;
use crate::identity::Identity;
use crate::identity::convert::version;
use crate::identity::convert::worker_record;
use crate::proto::control as wire;

const LIST_WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";
const INFO: &str = "/moby.buildkit.v1.Control/Info";

/// Says who the daemon is.
#[derive(Clone, Debug)]
pub struct Greeting {
    identity: Identity,
}

impl Greeting {
    pub fn new(identity: Identity) -> Greeting {
        Greeting { identity }
    }

    /// True if [`Greeting::answer`] knows the call at this path.
    pub fn answers(path: &str) -> bool {
        matches!(path, LIST_WORKERS | INFO)
    }

    /// Answers a call that [`Greeting::answers`], and refuses any other.
    pub async fn answer(&self, request: HttpRequest<Body>) -> HttpResponse<Body> {
        match request.uri().path() {
            LIST_WORKERS => {
                let call = tower::service_fn(async |request: Request<_>| {
                    self.list_workers(request.get_ref()).map(Response::new)
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            INFO => {
                let call = tower::service_fn(async |_: Request<wire::InfoRequest>| {
                    Ok::<_, Status>(Response::new(self.info()))
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            path => Status::unimplemented(format!("{path} is no greeting")).into_http(),
        }
    }

    /// The answer to all else if the daemon could not start.
    pub fn no_more() -> HttpResponse<Body> {
        Status::unavailable("the daemon could not start").into_http()
    }

    pub(in crate::control) fn list_workers(
        &self,
        request: &wire::ListWorkersRequest,
    ) -> Result<wire::ListWorkersResponse, Status> {
        let selected = convert::selects(&request.filter, &self.identity)?;
        let record = selected.then(|| worker_record(&self.identity)).into_iter().collect();
        Ok(wire::ListWorkersResponse { record })
    }

    pub(in crate::control) fn info(&self) -> wire::InfoResponse {
        wire::InfoResponse { buildkit_version: Some(version(&self.identity.version)) }
    }
}
