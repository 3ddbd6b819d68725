//! [`Gate`]: the way from the sockets to the services, which opens when the stores are open.
//!
//! Opening them takes as long as a crash left work for: the metadata store is read from end to end then. A
//! client that comes meanwhile is told at once whom it talks to; whatever else it asks waits, and is
//! refused as unavailable if the stores can't be opened. Health waits as well, so that it is never told of a
//! daemon that can't build yet.
//!
//! On the way back no error says more than fits into headers, whoever made it.

use std::convert::Infallible;
use std::task::Context;
use std::task::Poll;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderMap;
use http::Request;
use http::Response;
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;
use tower_service::Service;

use crate::control::Greeting;
use crate::solver::MAX_WORDS;
use crate::solver::brief;

/// What an error says.
const MESSAGE: &str = "grpc-message";

/// Answers calls; see the module. Clones are the same gate.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    greeting: Greeting,
    routes: watch::Receiver<Option<Routes>>,
}

/// Opens the gate. If it is dropped before, what waits is refused.
#[derive(Debug)]
pub(super) struct Opener(watch::Sender<Option<Routes>>);

impl Gate {
    pub(super) fn new(greeting: Greeting) -> (Opener, Gate) {
        let (sender, routes) = watch::channel(None);
        (Opener(sender), Gate { greeting, routes })
    }

    async fn answer(mut self, request: Request<Body>) -> Response<Body> {
        let open = self.routes.borrow().clone();
        let routes = match open {
            Some(routes) => routes,
            None if Greeting::answers(request.uri().path()) => return self.greeting.answer(request).await,
            None => match self.routes.wait_for(Option::is_some).await.map(|routes| routes.clone()) {
                Ok(Some(routes)) => routes,
                Ok(None) | Err(_) => return Greeting::no_more(),
            },
        };
        match routes.oneshot(request).await {
            Ok(response) => told(response),
            Err(never) => match never {},
        }
    }
}

/// The answer with no longer an error than can be told: in its headers, or behind its body.
fn told(mut response: Response<Body>) -> Response<Body> {
    shorten(response.headers_mut());
    response.map(|body| {
        Body::new(body.map_frame(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                shorten(trailers);
            }
            frame
        }))
    })
}

fn shorten(headers: &mut HeaderMap) {
    if headers.get(MESSAGE).is_none_or(|message| message.len() <= MAX_WORDS) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let details = status.details().to_vec().into();
    let brief = Status::with_details(status.code(), brief(status.message()), details);
    // Metadata of the old one stays where it is.
    if let Err(error) = brief.add_header(headers) {
        tracing::error!(%error, "an error can't be told");
    }
}

impl Opener {
    pub(super) fn open(self, routes: Routes) {
        self.0.send_replace(Some(routes.prepare()));
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::poll;
    use http_body_util::Full;
    use tonic::Code;

    use super::*;
    use crate::identity::Identity;
    use crate::identity::Version;

    const WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";

    fn gate() -> (Opener, Gate) {
        let identity = Identity {
            worker: "the-worker".to_owned(),
            labels: Default::default(),
            platforms: Vec::new(),
            gc: Vec::new(),
            version: Version::default(),
        };
        Gate::new(Greeting::new(identity))
    }

    /// A call with the empty message.
    fn call(gate: &Gate, path: &str) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let empty = Bytes::from_static(&[0; 5]);
        let request = Request::post(format!("http://thunkd{path}"))
            .header("content-type", "application/grpc")
            .body(Body::new(Full::new(empty)));
        gate.clone().call(request.unwrap())
    }

    fn code(response: &Response<Body>) -> Option<Code> {
        Some(Code::from_bytes(response.headers().get("grpc-status")?.as_bytes()))
    }

    #[tokio::test]
    async fn who_the_daemon_is_is_told_before_its_stores_are_open_and_all_else_waits_for_them() {
        let (opener, gate) = gate();
        let response = call(&gate, WORKERS).await.unwrap();
        assert_eq!(code(&response), None, "the code of a success is behind the message");
        let body = response.into_body().collect().await.unwrap();
        let ended = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        assert_eq!(ended.unwrap(), "0");
        assert!(body.to_bytes().windows(10).any(|window| window == b"the-worker"));

        let mut waits = call(&gate, HEALTH);
        assert!(poll!(&mut waits).is_pending());
        // Routes that know no service.
        opener.open(Routes::default());
        assert_eq!(code(&waits.await.unwrap()), Some(Code::Unimplemented), "it reached them");
        assert_eq!(code(&call(&gate, WORKERS).await.unwrap()), Some(Code::Unimplemented), "theirs by now");
    }

    #[tokio::test]
    async fn an_error_that_is_long_is_told_in_short_before_and_behind_a_body() {
        let long = Status::with_details(Code::NotFound, "ü".repeat(1 << 20), Bytes::from_static(b"more"));
        let mut trailers = HeaderMap::new();
        long.add_header(&mut trailers).unwrap();
        let body = Full::new(Bytes::new()).with_trailers(async move { Some(Ok(trailers)) });
        let behind = told(Response::new(Body::new(body))).into_body().collect().await.unwrap();
        let before = told(long.into_http::<Body>());
        for headers in [behind.trailers().unwrap(), before.headers()] {
            let status = Status::from_header_map(headers).unwrap();
            assert_eq!((status.code(), status.details()), (Code::NotFound, &b"more"[..]));
            assert!(status.message().len() <= MAX_WORDS && status.message().starts_with("üü"));
        }
    }

    #[tokio::test]
    async fn what_waits_is_refused_if_the_stores_do_not_open() {
        let (opener, gate) = gate();
        let mut waits = call(&gate, HEALTH);
        assert!(poll!(&mut waits).is_pending());
        drop(opener);
        assert_eq!(code(&waits.await.unwrap()), Some(Code::Unavailable));
        assert_eq!(code(&call(&gate, HEALTH).await.unwrap()), Some(Code::Unavailable));
    }
}
