//! A web server of small files that notes every request, and changes, fails and waits on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::ETAG;
use http::header::IF_NONE_MATCH;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::digest::sha256;
use super::gate::Gate;

/// A server for as long as it lives. An ETag is the digest of a file's bytes.
pub struct TestWeb {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Ends with it.
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, String>,
    /// Each with the status of its answer: `GET /path 200`.
    requests: Vec<String>,
    failing: Option<StatusCode>,
    gate: Option<Arc<Gate>>,
}

impl TestWeb {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback address");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::<Mutex<State>>::default();
        let (shared, mut accepting) = (Arc::clone(&state), JoinSet::new());
        accepting.spawn(async move {
            let mut conversations = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                conversations.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state, _accepting: accepting }
    }

    /// The address of a file, by its path with a slash before it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts a file in the place of another.
    pub fn put(&self, path: &str, text: &str) {
        lock(&self.state).files.insert(path.to_owned(), text.to_owned());
    }

    /// Every request is answered so until [`TestWeb::heal`].
    pub fn fail(&self, status: StatusCode) {
        lock(&self.state).failing = Some(status);
    }

    pub fn heal(&self) {
        lock(&self.state).failing = None;
    }

    /// Every request from now on waits for the gate.
    pub fn hold(&self) -> Arc<Gate> {
        let gate = Arc::new(Gate::closed());
        lock(&self.state).gate = Some(Arc::clone(&gate));
        gate
    }

    /// What it was asked since the last look.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).requests)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no request panics")
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let gate = lock(&state).gate.clone();
    if let Some(gate) = gate {
        gate.pass().await;
    }
    let mut state = lock(&state);
    let path = request.uri().path();
    let file = state.files.get(path).cloned();
    let etag = file.as_ref().map(|text| format!("\"{}\"", sha256(text)));
    let known = request.headers().get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let status = match (&etag, state.failing) {
        (_, Some(status)) => status,
        (None, _) => StatusCode::NOT_FOUND,
        (Some(etag), _) if known.is_some_and(|known| known.contains(etag)) => StatusCode::NOT_MODIFIED,
        _ => StatusCode::OK,
    };
    state.requests.push(format!("{} {path} {}", request.method(), status.as_u16()));
    let has_body = status == StatusCode::OK && request.method() == Method::GET;
    let mut response = Response::new(Full::from(file.filter(|_| has_body).unwrap_or_default()));
    *response.status_mut() = status;
    if let Some(etag) = etag.filter(|_| status != StatusCode::NOT_FOUND) {
        response.headers_mut().insert(ETAG, etag.parse().expect("a header"));
    }
    Ok(response)
}
