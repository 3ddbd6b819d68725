//! Carries out one request: who, what, which fault, which reply.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request as HttpRequest;
use http::Response;
use http::StatusCode;
use http::Uri;
use http::Version;
use http::header::ACCEPT;
use http::header::AUTHORIZATION;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_RANGE;
use http::header::HeaderName;
use http::header::LOCATION;
use http::header::RANGE;
use http::header::RETRY_AFTER;
use http::header::USER_AGENT;
use http::header::WWW_AUTHENTICATE;
use http_body_util::BodyExt;
use http_body_util::Empty;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use super::Options;
use super::access::Access;
use super::access::Auth;
use super::access::Caller;
use super::access::Right;
use super::blobs;
use super::body::Aborted;
use super::body::RequestBody;
use super::body::reply_body;
use super::connection::Connection;
use super::fault::How;
use super::fault::Plan;
use super::fault::Rules;
use super::journal::Entry;
use super::journal::Journal;
use super::journal::Request;
use super::manifests;
use super::point::Op;
use super::reply::DOCKER_CONTENT_DIGEST;
use super::reply::Reply;
use super::reply::error_for;
use super::store::Store;
use super::target::Target;
use super::target::is_repository;
use super::token;
use super::uploads;
use crate::harness::blob::BlobSource;
use crate::harness::digest::sha256;

type Body = UnsyncBoxBody<Bytes, Aborted>;

/// What all connections of one registry share. Locks are never held across an `.await`.
pub(super) struct Shared {
    pub options: Options,
    pub url: String,
    pub cdn_url: Option<String>,
    pub journal: Arc<Journal>,
    pub rules: Arc<Rules>,
    pub store: Mutex<Store>,
    pub access: Mutex<Access>,
    pub signatures: Mutex<HashSet<String>>,
}

impl Shared {
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("store")
    }

    pub fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().expect("access")
    }

    /// A new signature for a redirected URL.
    pub fn sign(&self) -> String {
        let signature = format!("{:016x}", rand::random::<u64>());
        self.signatures.lock().expect("signatures").insert(signature.clone());
        signature
    }

    pub fn is_signature(&self, signature: &str) -> bool {
        self.signatures.lock().expect("signatures").contains(signature)
    }
}

/// One request on its way through.
pub(super) struct Exchange {
    pub shared: Arc<Shared>,
    pub connection: Arc<Connection>,
    pub entry: Arc<Entry>,
    pub plan: Plan,
    pub caller: Caller,
    pub target: Target,
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: RequestBody,
}

pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    request: HttpRequest<Incoming>,
) -> Result<Response<Body>, Aborted> {
    let (parts, incoming) = request.into_parts();
    let target = Target::parse(connection.listener, &parts.method, &parts.uri);
    let caller = shared.access().caller(header(&parts.headers, AUTHORIZATION).as_deref());
    let record = record(&connection, &parts, &target, &caller);
    let plan = shared.rules.plan(&record);
    let fault = plan.fault.as_ref().map(|how| format!("{how:?}"));
    let entry = Arc::new(shared.journal.begin(Request { fault, ..record }));
    for (after, gate) in &plan.holds {
        if after.is_none() {
            gate.pass().await;
        }
    }
    let body_plan = if has_body(target.op) { plan.clone() } else { Plan::default() };
    let body = RequestBody::new(incoming, entry.clone(), &body_plan, connection.clone(), parts.version);
    let mut exchange = Exchange {
        shared,
        connection,
        entry,
        plan,
        caller,
        target,
        method: parts.method,
        uri: parts.uri,
        version: parts.version,
        headers: parts.headers,
        body,
    };
    let mut reply = match exchange.fail_early().await? {
        Some(reply) => reply,
        None => exchange.dispatch().await?,
    };
    if exchange.plan.fault == Some(How::LoseReply) {
        return Err(exchange.reset());
    }
    exchange.bend(&mut reply);
    Ok(exchange.finish(reply))
}

impl Exchange {
    /// The upload that the path names.
    pub fn upload_id(&self) -> Option<String> {
        self.uri.path().rsplit('/').next().map(str::to_owned)
    }

    /// 401, and what it takes to get in.
    pub fn challenge(&self) -> Reply {
        let Self { target, shared, caller, .. } = self;
        let reply = Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        let challenge = match shared.access().auth {
            Auth::Open => return reply,
            Auth::Basic => "Basic realm=\"test registry\"".to_owned(),
            Auth::Bearer => {
                let scope = match (required(target.op), target.query.get("from")) {
                    (None, _) => String::new(),
                    (Some(right), from) => {
                        let actions = if right == Right::Push { "pull,push" } else { right.action() };
                        let scope = format!("repository:{}:{actions}", target.repository);
                        match from {
                            Some(from) => format!(",scope=\"{scope} repository:{from}:pull\""),
                            None => format!(",scope=\"{scope}\""),
                        }
                    }
                };
                let error = match caller {
                    Caller::Refused => ",error=\"invalid_token\"",
                    Caller::Token { .. } => ",error=\"insufficient_scope\"",
                    Caller::Nobody | Caller::User(_) => "",
                };
                format!("Bearer realm=\"{}/token\",service=\"{}\"{scope}{error}", shared.url, super::SERVICE)
            }
        };
        reply.header(WWW_AUTHENTICATE, challenge)
    }

    async fn fail_early(&mut self) -> Result<Option<Reply>, Aborted> {
        let reply = match self.plan.fault.clone() {
            Some(How::EarlyStatus(status)) => self.refusal(status),
            Some(How::Status(status)) => {
                while self.body.next().await?.is_some() {}
                self.refusal(status)
            }
            Some(How::RetryAfter { status, seconds }) => {
                while self.body.next().await?.is_some() {}
                self.refusal(status).header(RETRY_AFTER, seconds.to_string())
            }
            Some(How::Reset) => return Err(self.reset()),
            Some(How::Stall) => {
                if let Some(gate) = &self.plan.lifted {
                    gate.pass().await;
                }
                return Ok(None);
            }
            Some(How::RedirectLoop) => {
                let turn = self.target.query.get("turn").and_then(|turn| turn.parse().ok()).unwrap_or(0u32);
                self.redirect(&format!("{}?turn={}", self.uri.path(), turn + 1))
            }
            Some(How::RedirectTo(location)) => self.redirect(&location),
            Some(How::Garbage(bytes)) => {
                Reply::with_body(StatusCode::OK, BlobSource::Bytes(Bytes::from_static(bytes)))
            }
            _ => return Ok(None),
        };
        Ok(Some(reply))
    }

    fn refusal(&self, status: u16) -> Reply {
        let status = StatusCode::from_u16(status).expect("a status");
        if status == StatusCode::UNAUTHORIZED { self.challenge() } else { error_for(status) }
    }

    fn redirect(&self, location: &str) -> Reply {
        Reply::empty(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, location)
    }

    fn reset(&self) -> Aborted {
        self.connection.reset_on_close(self.version);
        Aborted
    }

    async fn dispatch(&mut self) -> Result<Reply, Aborted> {
        if let Some(refused) = self.authorize() {
            return Ok(refused);
        }
        Ok(match self.target.op {
            Op::Ping => Reply::json(StatusCode::OK, &serde_json::json!({})),
            Op::Token => token::serve(self).await?,
            Op::ManifestHead | Op::ManifestGet => manifests::read(self),
            Op::ManifestPut => manifests::put(self).await?,
            Op::ManifestDelete => manifests::delete(self),
            Op::BlobHead | Op::BlobGet => blobs::read(self),
            Op::BlobDelete => blobs::delete(self),
            Op::UploadStart => uploads::start(self).await?,
            Op::UploadPatch => uploads::patch(self).await?,
            Op::UploadPut => uploads::put(self).await?,
            Op::UploadStatus => uploads::status(self),
            Op::UploadCancel => uploads::cancel(self),
            Op::Mount => uploads::mount(self),
            Op::Referrers => manifests::referrers(self),
            Op::Tags => manifests::tags(self),
            Op::Unknown => Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", self.uri.path()),
        })
    }

    /// A reply for those who may not. The redirect target checks signatures instead.
    fn authorize(&self) -> Option<Reply> {
        let Self { target, shared, .. } = self;
        if self.connection.listener == super::Listener::Cdn || target.op == Op::Token {
            return None;
        }
        let access = shared.access();
        let permitted = match required(target.op) {
            None => access.admits(&self.caller),
            Some(_) if !is_repository(&target.repository) => {
                return Some(Reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", &target.repository));
            }
            Some(right) => access.permits(&self.caller, &target.repository, right),
        };
        drop(access);
        (!permitted).then(|| self.challenge())
    }

    /// Faults of the reply's head.
    fn bend(&self, reply: &mut Reply) {
        match self.plan.fault {
            Some(How::WrongDigest) => {
                let wrong = sha256("something else").parse().expect("a digest is a header value");
                reply.headers.insert(DOCKER_CONTENT_DIGEST, wrong);
            }
            Some(How::WrongLength(by)) => {
                let told = (reply.end - reply.start).saturating_add_signed(by);
                reply.headers.insert(CONTENT_LENGTH, told.into());
                reply.end = reply.end.min(reply.start + told);
            }
            Some(How::WrongContentRange) => {
                if let Some(range) = reply.headers.get_mut(CONTENT_RANGE) {
                    let (first, last, len) = (reply.start + 1, reply.end, reply.body.len());
                    *range =
                        format!("bytes {first}-{last}/{len}").parse().expect("a range is a header value");
                }
            }
            _ => {}
        }
    }

    fn finish(self, reply: Reply) -> Response<Body> {
        let Self { entry, plan, connection, version, .. } = self;
        entry.update(|request| request.status = Some(reply.status.as_u16()));
        let mut response = Response::builder().status(reply.status);
        if let Some(headers) = response.headers_mut() {
            *headers = reply.headers.clone();
            headers.insert(HeaderName::from_static("docker-distribution-api-version"), API_VERSION);
        }
        let plan = if has_body(self.target.op) { Plan::default() } else { plan };
        let body = if self.method == Method::HEAD {
            Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
        } else {
            StreamBody::new(reply_body(reply, entry, &plan, connection, version)).boxed_unsync()
        };
        response.body(body).expect("a reply is a response")
    }
}

const API_VERSION: http::HeaderValue = http::HeaderValue::from_static("registry/2.0");

/// The right that an operation takes; `None` where being known is enough.
fn required(op: Op) -> Option<Right> {
    match op {
        Op::Ping | Op::Token | Op::Unknown => None,
        Op::ManifestHead | Op::ManifestGet | Op::BlobHead | Op::BlobGet | Op::Referrers | Op::Tags => {
            Some(Right::Pull)
        }
        Op::ManifestDelete | Op::BlobDelete => Some(Right::Delete),
        Op::ManifestPut
        | Op::UploadStart
        | Op::UploadPatch
        | Op::UploadPut
        | Op::UploadStatus
        | Op::UploadCancel
        | Op::Mount => Some(Right::Push),
    }
}

/// Whether faults of bodies are meant for the request's body.
fn has_body(op: Op) -> bool {
    matches!(op, Op::ManifestPut | Op::UploadStart | Op::UploadPatch | Op::UploadPut)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn record(
    connection: &Connection,
    parts: &http::request::Parts,
    target: &Target,
    caller: &Caller,
) -> Request {
    let accept = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    Request {
        id: 0,
        listener: connection.listener,
        connection: connection.number,
        version: parts.version,
        method: parts.method.clone(),
        uri: parts.uri.to_string(),
        op: target.op,
        repository: target.repository.clone(),
        reference: target.reference.clone(),
        from: target.query.get("from").map(str::to_owned),
        authorization: header(&parts.headers, AUTHORIZATION),
        user: caller.user().map(str::to_owned),
        scopes: Vec::new(),
        range: header(&parts.headers, RANGE),
        accept: accept.flat_map(|value| value.split(',')).map(|value| value.trim().to_owned()).collect(),
        user_agent: header(&parts.headers, USER_AGENT),
        status: None,
        bytes_in: 0,
        bytes_out: 0,
        fault: None,
        ended: false,
    }
}
