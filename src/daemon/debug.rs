//! The debug page: counters as JSON on `/debug/counters`, and as Prometheus text on `/metrics`.
//!
//! It has no authentication and changes nothing. It listens only if an address is configured.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio_stream::StreamExt as _;

use super::address::Address;
use super::address::DebugAddress;
use super::config::SocketOwner;
use super::listen;
use super::listen::Connection;
use super::listen::ListenError;
use crate::task::Tasks;

/// Name and value of every counter and gauge at this moment.
pub type Counters = BTreeMap<&'static str, u64>;

/// Serves what `counters` says until `tasks` is shut down. Returns the address.
pub(super) async fn serve(
    address: &DebugAddress,
    tasks: &Tasks,
    counters: Arc<dyn Fn() -> Counters + Send + Sync>,
) -> Result<String, ListenError> {
    let address = match address {
        DebugAddress::Tcp(host) => Address::Tcp(host.clone()),
        DebugAddress::Unix(path) => Address::Unix(path.clone()),
    };
    let listener = listen::listen(&address, SocketOwner::default()).await?;
    let address = listener.address().to_owned();
    let (_, mut connections) = listen::accept(vec![listener], None, tasks);
    let owner = tasks.clone();
    tasks.spawn("debug page", async move {
        while let Some(connection) = connections.next().await {
            if let Ok(connection) = connection {
                let counters = counters.clone();
                let stop = owner.token().clone();
                owner.spawn("debug connection", async move {
                    stop.run_until_cancelled(answer(connection, counters)).await;
                });
            }
        }
    });
    Ok(address)
}

async fn answer(connection: Connection, counters: Arc<dyn Fn() -> Counters + Send + Sync>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&request, &*counters);
        async move { Ok::<_, Infallible>(response) }
    });
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await {
        tracing::debug!(%error, "a debug connection broke");
    }
}

fn respond<B>(request: &Request<B>, counters: &dyn Fn() -> Counters) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/debug/counters") => {
            (StatusCode::OK, "application/json", serde_json::json!(counters()).to_string())
        }
        (&Method::GET, "/metrics") => (
            StatusCode::OK,
            "text/plain; version=0.0.4",
            counters().into_iter().fold(String::new(), |mut text, (name, value)| {
                let _ = writeln!(text, "thunk_{name} {value}");
                text
            }),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are GET /debug/counters and GET /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// What the process itself uses.
pub(super) fn process(counters: &mut Counters) {
    let resident = std::fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    counters.insert("process_resident_bytes", resident.unwrap_or_default() * 1024);
    let runtime = tokio::runtime::Handle::current();
    let alive = u64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(u64::MAX);
    counters.insert("runtime_tasks", alive);
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn get(path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(()).unwrap();
        let response = respond(&request, &|| Counters::from([("commits", 3)]));
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn counters_come_as_json_and_as_metrics() {
        assert_eq!(get("/debug/counters").await, (StatusCode::OK, "{\"commits\":3}".to_owned()));
        assert_eq!(get("/metrics").await, (StatusCode::OK, "thunk_commits 3\n".to_owned()));
        assert_eq!(get("/").await.0, StatusCode::NOT_FOUND);
    }
}
