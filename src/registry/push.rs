//! Blobs and manifests on their way to a registry.
//!
//! # A blob's way
//!
//! ```text
//!   HEAD ──there──► existed
//!     └─► mount from each repository that has it ──201──► mounted
//!            └─ every refusal ─► POST (or the session that the refusal began) ─► one PUT ─► uploaded
//! ```
//!
//! The bytes of a PUT have a known length and are never sent in chunks of HTTP. A try that failed
//! begins anew with a look whether the blob has arrived: a reply that was lost costs no second upload.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use http_body::SizeHint;
use reqwest::Response;
use reqwest::Url;

use super::Cause;
use super::Place;
use super::PushError;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::Selector;
use super::auth::Auth;
use super::auth::Refusals;
use super::auth::Verdict;
use super::client::Ask;
use super::client::place;
use super::endpoint::Endpoint;
use super::endpoint::Purpose;
use super::endpoint::is_repository;
use super::lanes::Lane;
use super::manifest::digest_header;
use super::scope::Scopes;
use super::transport::location;
use super::transport::unreachable;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;

/// Redirects of one upload at most.
const MAX_REDIRECTS: usize = 10;

/// An error of the bytes to push.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// The bytes to upload. An error of the stream ends the upload with [`PushError::Body`].
pub type UploadBody = BoxStream<'static, Result<Bytes, BodyError>>;

/// Opens the body of an upload from its start; called again for each try.
pub type OpenBody<'a> = &'a mut (dyn FnMut() -> BoxFuture<'static, Result<UploadBody, BodyError>> + Send);

/// An upload that a registry is ready for.
#[derive(Clone, Debug)]
pub struct UploadSession {
    endpoint: Arc<Endpoint>,
    location: Url,
}

/// What a registry answered when it was asked to mount a blob from another repository.
#[derive(Debug)]
pub enum Mount {
    /// The blob is there.
    Mounted,
    /// The blob has to be uploaded; some registries begin the upload with the refusal.
    Refused { session: Option<UploadSession> },
}

/// How a blob or manifest came to be at its target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was mounted from this repository of the same host.
    Mounted { from: String },
    /// It was sent.
    Uploaded,
}

impl RegistryClient {
    /// Makes sure that a blob is in `repository`: HEAD, then a mount from each of `mounts` (other
    /// repositories of the same host), then an upload.
    pub async fn push_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
        mounts: &[String],
        body: OpenBody<'_>,
    ) -> Result<Pushed, PushError> {
        match self.has_blob(ctx, repository, descriptor).await {
            Ok(true) => return Ok(Pushed::Existed),
            // Who may push need not be allowed to look.
            Ok(false) | Err(RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut begun = None;
        for from in mounts.iter().filter(|from| **from != repository.name) {
            match self.mount_blob(ctx, repository, from, descriptor).await? {
                Mount::Mounted => {
                    if let Some(session) = begun {
                        self.abandon(ctx, repository, session);
                    }
                    return Ok(Pushed::Mounted { from: from.clone() });
                }
                Mount::Refused { session: Some(session) } => match &begun {
                    Some(_) => self.abandon(ctx, repository, session),
                    None => begun = Some(session),
                },
                Mount::Refused { session: None } => {}
            }
        }
        self.upload_blob(ctx, repository, descriptor, begun, body).await?;
        Ok(Pushed::Uploaded)
    }

    /// True if the push target has the blob. Mirrors are not asked.
    pub async fn has_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let subject = format!("@{}", descriptor.digest);
        let place = place(repository, subject, None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Write);
        loop {
            let endpoint = route.next(ctx, &place).await?;
            match self.look(ctx, &place, repository, &endpoint, descriptor).await {
                Ok(there) => return Ok(there),
                Err(error) => route.failed(error)?,
            }
        }
    }

    async fn look(
        &self,
        ctx: &Ctx,
        place: &Arc<Place>,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let ask = ask_to_push(place, Method::HEAD, repository, endpoint, &path);
        let answer = self.shared.ask(ctx, endpoint, ask).await?;
        match answer.response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.shared.refusal(ctx, place, answer.response).await),
        }
    }

    /// Asks the registry to take the blob from its repository `from`. Every refusal is a
    /// [`Mount::Refused`], and so is a failure of the registry: an upload is always an answer.
    pub async fn mount_blob(
        &self,
        ctx: &Ctx,
        to: &Repository,
        from: &str,
        descriptor: &Descriptor,
    ) -> Result<Mount, RegistryError> {
        // Candidates may come from annotations, which anybody writes.
        if !is_repository(from) {
            return Ok(Mount::Refused { session: None });
        }
        let digest = descriptor.digest.to_string();
        let place = place(to, format!("@{digest}"), None);
        let mut route = self.shared.route(to, self.trusts(&to.host), Purpose::Write);
        loop {
            let endpoint = route.next(ctx, &place).await?;
            let query = [("mount", digest.as_str()), ("from", from)];
            let mut ask = ask_to_push(&place, Method::POST, to, &endpoint, "blobs/uploads/");
            ask.query = &query;
            ask.wanted = ask.wanted.and(&Scopes::pull(&endpoint.repository(from)));
            ask.refusals = Refusals::Expected;
            let refused = |session| Ok(Mount::Refused { session });
            let error = match self.shared.ask(ctx, &endpoint, ask).await {
                Ok(answer) => match answer.response.status() {
                    StatusCode::CREATED => return Ok(Mount::Mounted),
                    StatusCode::ACCEPTED => {
                        let location = upload_location(&answer.response, &endpoint);
                        return refused(location.map(|location| UploadSession { endpoint, location }));
                    }
                    StatusCode::TOO_MANY_REQUESTS => self.shared.refusal(ctx, &place, answer.response).await,
                    _ => {
                        self.shared.drain(ctx, answer.response).await;
                        return refused(None);
                    }
                },
                // The token server gives no token for both: one for the target may still be had.
                Err(RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }) => {
                    return refused(None);
                }
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }

    /// Uploads a blob, in `session` if there is one: one PUT of known length.
    pub async fn upload_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
        mut session: Option<UploadSession>,
        body: OpenBody<'_>,
    ) -> Result<(), PushError> {
        let place = place(repository, format!("@{}", descriptor.digest), None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Write);
        // Content that was refused may have been damaged on the way, once.
        let mut refused_before = false;
        loop {
            let endpoint = route.next(ctx, &place).await?;
            let pushed = async {
                if route.has_failed() && self.look(ctx, &place, repository, &endpoint, descriptor).await? {
                    return Ok(());
                }
                let session = match session.take() {
                    Some(session) => session,
                    None => self.begin_upload(ctx, &place, repository, &endpoint).await?,
                };
                let upload = Upload { client: self, ctx, place: &place, repository, descriptor };
                let mut guard = Unfinished { client: self, ctx, repository, session: Some(session.clone()) };
                let sent = upload.put(session, body).await;
                // What the registry answered ended the session there; anything else leaves it behind.
                if matches!(sent, Ok(()) | Err(PushError::Refused { .. })) {
                    guard.session = None;
                }
                sent
            };
            let error = match pushed.await {
                Ok(()) => return Ok(()),
                Err(PushError::Registry(error)) => error,
                Err(PushError::Refused { place, status, reason }) if !refused_before => {
                    refused_before = true;
                    RegistryError::Server { place, status, retry_after: None, reason }
                }
                Err(error) => return Err(error),
            };
            route.failed(error)?;
        }
    }

    async fn begin_upload(
        &self,
        ctx: &Ctx,
        place: &Arc<Place>,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
    ) -> Result<UploadSession, RegistryError> {
        let ask = ask_to_push(place, Method::POST, repository, endpoint, "blobs/uploads/");
        let answer = self.shared.ask(ctx, endpoint, ask).await?;
        if !answer.response.status().is_success() {
            return Err(self.shared.refusal(ctx, place, answer.response).await);
        }
        let location =
            upload_location(&answer.response, endpoint).ok_or_else(|| RegistryError::Protocol {
                place: Arc::clone(place),
                problem: "it began an upload without saying where".to_owned(),
            })?;
        Ok(UploadSession { endpoint: Arc::clone(endpoint), location })
    }

    /// Cancels an upload that will not be used, in the background.
    pub fn abandon(&self, ctx: &Ctx, repository: &Repository, session: UploadSession) {
        if self.shared.tasks.token().is_cancelled() {
            return;
        }
        let (client, repository) = (self.clone(), repository.clone());
        // The asker may be leaving; its sessions still say who we are.
        let ctx = ctx.with_cancel(self.shared.tasks.token().child_token());
        drop(self.shared.tasks.spawn("upload clean-up", async move {
            let place = place(&repository, String::new(), None);
            let shared = &client.shared;
            let wanted = Scopes::push(&session.endpoint.repository(&repository.name));
            let mut auth = Auth::new(&session.endpoint, &place, wanted, Refusals::Told);
            let authorization = match session.endpoint.owns(&session.location) {
                true => auth.authorization(shared, &ctx).await.unwrap_or_default(),
                false => None,
            };
            let request = super::transport::Outgoing {
                method: Method::DELETE,
                url: session.location.clone(),
                headers: HeaderMap::new(),
                authorization,
                body: None,
                verified: true,
                confidential: false,
            };
            // Best effort: registries drop what is left on their own, in time.
            if let Ok(response) = shared.send(&ctx, session.endpoint.tls(), &place, request).await {
                shared.drain(&ctx, response).await;
            }
        }));
    }

    /// The digest that the push target has under `selector`; `None` if it has nothing or does not say.
    pub async fn head_manifest(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        selector: &Selector,
    ) -> Result<Option<Digest>, RegistryError> {
        let place = place(repository, selector.subject(), None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Write);
        loop {
            let endpoint = route.next(ctx, &place).await?;
            let path = selector.path();
            let mut ask = ask_to_push(&place, Method::HEAD, repository, &endpoint, &path);
            let accept = format!("{}, */*", crate::oci::media_type::MANIFESTS.join(", "));
            if let Ok(accept) = HeaderValue::from_str(&accept) {
                ask.headers.insert(http::header::ACCEPT, accept);
            }
            let error = match self.shared.ask(ctx, &endpoint, ask).await {
                Ok(answer) => match (answer.response.status(), selector) {
                    (StatusCode::OK, Selector::Digest(digest)) => return Ok(Some(*digest)),
                    (StatusCode::OK, Selector::Tag(_)) => return Ok(digest_header(&answer.response)),
                    (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => return Ok(None),
                    _ => self.shared.refusal(ctx, &place, answer.response).await,
                },
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }

    /// Makes sure that `selector` names the manifest at the push target: HEAD, then PUT.
    pub async fn push_manifest(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        selector: &Selector,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        match self.head_manifest(ctx, repository, selector).await {
            Ok(Some(digest)) if digest == descriptor.digest => return Ok(Pushed::Existed),
            Ok(_) | Err(RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.put_manifest(ctx, repository, selector, descriptor, bytes).await?;
        Ok(Pushed::Uploaded)
    }

    /// Puts a manifest under `selector`, whatever was there.
    pub async fn put_manifest(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        selector: &Selector,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), PushError> {
        let place = place(repository, selector.subject(), None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Write);
        let kind = HeaderValue::from_str(&descriptor.media_type).map_err(|_| RegistryError::Protocol {
            place: Arc::clone(&place),
            problem: format!("{:.100?} can't be a content type", descriptor.media_type),
        })?;
        let mut refused_before = false;
        loop {
            let endpoint = route.next(ctx, &place).await?;
            let path = selector.path();
            let mut ask = ask_to_push(&place, Method::PUT, repository, &endpoint, &path);
            ask.headers.insert(CONTENT_TYPE, kind.clone());
            ask.body = Some(bytes.clone());
            let error = match self.shared.ask(ctx, &endpoint, ask).await {
                Ok(answer) if answer.response.status().is_success() => {
                    match digest_header(&answer.response).filter(|got| *got != descriptor.digest) {
                        None => return Ok(()),
                        Some(got) => RegistryError::Corrupt { place: Arc::clone(&place), got },
                    }
                }
                Ok(answer) if is_about_content(answer.response.status()) => {
                    let status = answer.response.status().as_u16();
                    let reason = self.shared.reason(ctx, &place, answer.response).await;
                    if refused_before || !reason.0.contains("DIGEST_INVALID") {
                        return Err(PushError::Refused { place, status, reason });
                    }
                    refused_before = true;
                    RegistryError::Server { place: Arc::clone(&place), status, retry_after: None, reason }
                }
                Ok(answer) => self.shared.refusal(ctx, &place, answer.response).await,
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }
}

/// 400 and 413 to 422 speak of what was sent, not of who sent it.
fn is_about_content(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 409 | 412..=415 | 422)
}

fn ask_to_push<'a>(
    place: &'a Arc<Place>,
    method: Method,
    repository: &'a Repository,
    endpoint: &Endpoint,
    path: &'a str,
) -> Ask<'a> {
    Ask {
        place,
        method,
        repository: &repository.name,
        path,
        query: &[],
        headers: HeaderMap::new(),
        body: None,
        lane: Lane::Metadata,
        wanted: Scopes::push(&endpoint.repository(&repository.name)),
        refusals: Refusals::Told,
        verified: false,
    }
}

/// Where an upload goes. A registry behind a TLS proxy may call itself `http`: its own host keeps TLS.
fn upload_location(response: &Response, endpoint: &Endpoint) -> Option<Url> {
    let mut url = location(response)?;
    if url.scheme() == "http" && endpoint.scheme() == "https" {
        let mut secure = url.clone();
        if secure.set_scheme("https").is_ok() && endpoint.owns(&secure) {
            url = secure;
        }
    }
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// One PUT and whatever it takes to have it accepted.
struct Upload<'a> {
    client: &'a RegistryClient,
    ctx: &'a Ctx,
    place: &'a Arc<Place>,
    repository: &'a Repository,
    descriptor: &'a Descriptor,
}

impl Upload<'_> {
    async fn put(&self, session: UploadSession, open: OpenBody<'_>) -> Result<(), PushError> {
        let Upload { client, ctx, place, repository, descriptor } = self;
        let shared = &client.shared;
        let UploadSession { endpoint, mut location } = session;
        let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(place) };
        let wanted = Scopes::push(&endpoint.repository(&repository.name));
        let mut auth = Auth::new(&endpoint, place, wanted, Refusals::Told);
        location.query_pairs_mut().append_pair("digest", &descriptor.digest.to_string());
        let mut redirects = 0;
        loop {
            let authorization = match endpoint.owns(&location) {
                true => auth.authorization(shared, ctx).await?,
                false => None,
            };
            let pass =
                shared.lanes.enter(ctx, endpoint.authority(), Lane::Upload).await.map_err(cancelled)?;
            let stream =
                ctx.run(open()).await.map_err(cancelled)?.map_err(|cause| self.body_failed(cause.into()))?;
            let response = self.send(&endpoint, &location, authorization, stream).await?;
            drop(pass);
            match response.status().as_u16() {
                200..=299 => {
                    return match digest_header(&response).filter(|got| *got != descriptor.digest) {
                        None => Ok(()),
                        Some(got) => Err(RegistryError::Corrupt { place: Arc::clone(place), got }.into()),
                    };
                }
                307 | 308 if redirects < MAX_REDIRECTS => {
                    redirects += 1;
                    if let Some(next) = super::transport::location(&response) {
                        location = next;
                        shared.drain(ctx, response).await;
                        continue;
                    }
                }
                301..=308 => {
                    let address = super::transport::authority(&location);
                    let place = Arc::clone(place);
                    return Err(RegistryError::RedirectLoop { place, address, limit: MAX_REDIRECTS }.into());
                }
                401 | 403
                    if endpoint.owns(&location)
                        && auth.judge(shared, ctx, &response).await? == Verdict::Again =>
                {
                    shared.drain(ctx, response).await;
                    continue;
                }
                // The session is not known any more; a new one may be.
                404 => {
                    let reason = shared.reason(ctx, place, response).await;
                    let place = Arc::clone(place);
                    return Err(
                        RegistryError::Server { place, status: 404, retry_after: None, reason }.into()
                    );
                }
                _ => {}
            }
            let status = response.status();
            if is_about_content(status) {
                let reason = shared.reason(ctx, place, response).await;
                return Err(PushError::Refused { place: Arc::clone(place), status: status.as_u16(), reason });
            }
            return Err(shared.refusal(ctx, place, response).await.into());
        }
    }

    /// Sends the bytes and waits for the head of the reply, as long as something moves.
    async fn send(
        &self,
        endpoint: &Endpoint,
        location: &Url,
        authorization: Option<HeaderValue>,
        stream: UploadBody,
    ) -> Result<Response, PushError> {
        let Upload { client, ctx, place, descriptor, .. } = self;
        let shared = &client.shared;
        let state = Arc::new(BodyState::default());
        let body = LengthBody {
            stream: Mutex::new(stream),
            left: descriptor.size,
            last: Bytes::new(),
            state: Arc::clone(&state),
        };
        let client = shared.client_for(endpoint.tls(), place, location).await?;
        let mut request = client
            .put(location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, descriptor.size)
            .body(reqwest::Body::wrap(body));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let patience = shared.config.patience;
        let watch = async {
            let mut sent = 0;
            let mut since = tokio::time::Instant::now();
            loop {
                // The body's own source has its own patience.
                let all = state.sent.load(Ordering::Relaxed) == descriptor.size;
                let limit = if all { patience.commit.max(patience.stall) } else { patience.stall };
                tokio::time::sleep_until(since + limit).await;
                let now = state.sent.load(Ordering::Relaxed);
                let grew_to_all = now == descriptor.size && !all;
                if now != sent || grew_to_all || state.waits_for_source.load(Ordering::Relaxed) {
                    (sent, since) = (now, tokio::time::Instant::now());
                } else {
                    return limit;
                }
            }
        };
        let sent = ctx.run(async {
            tokio::select! {
                biased;
                sent = request.send() => Ok(sent),
                after = watch => Err(after),
            }
        });
        let response = match sent.await {
            Err(_) => return Err(RegistryError::Cancelled { place: Arc::clone(place) }.into()),
            Ok(Err(after)) => {
                let address = super::transport::authority(location);
                return Err(RegistryError::Stalled { place: Arc::clone(place), address, after }.into());
            }
            Ok(Ok(response)) => response,
        };
        // Whatever the registry made of it, our own failure is the reason.
        match state.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(BodyFailure::Source(cause)) => return Err(self.body_failed(cause)),
            Some(BodyFailure::Length(got)) => {
                return Err(PushError::BodyLength {
                    place: Arc::clone(place),
                    expected: descriptor.size,
                    got,
                });
            }
            None => {}
        }
        response.map_err(|error| unreachable(place, location, error).into())
    }

    fn body_failed(&self, cause: Cause) -> PushError {
        PushError::Body { place: Arc::clone(self.place), cause }
    }
}

/// Abandons its session when it is dropped with it: by an error, or by a caller that left.
struct Unfinished<'a> {
    client: &'a RegistryClient,
    ctx: &'a Ctx,
    repository: &'a Repository,
    session: Option<UploadSession>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.client.abandon(self.ctx, self.repository, session);
        }
    }
}

#[derive(Default)]
struct BodyState {
    sent: AtomicU64,
    waits_for_source: AtomicBool,
    failure: Mutex<Option<BodyFailure>>,
}

enum BodyFailure {
    Source(Cause),
    Length(u64),
}

/// A body of exactly the length that was promised.
///
/// Its last bytes are given away only once the stream has ended well, so that a stream which verifies
/// what passes through it can still prevent that wrong bytes become a whole blob.
struct LengthBody {
    /// Never locked: it makes the body `Sync`, as the client asks for.
    stream: Mutex<UploadBody>,
    /// Bytes that were not given away.
    left: u64,
    /// The bytes that complete the body.
    last: Bytes,
    state: Arc<BodyState>,
}

impl LengthBody {
    fn fail(&self, failure: BodyFailure) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        *self.state.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        Poll::Ready(Some(Err("the body failed".into())))
    }

    fn give(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.left -= bytes.len() as u64;
        self.state.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl http_body::Body for LengthBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            let polled = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(cx);
            self.state.waits_for_source.store(polled.is_pending(), Ordering::Relaxed);
            let sent = self.state.sent.load(Ordering::Relaxed) + self.last.len() as u64;
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(cause))) => return self.fail(BodyFailure::Source(cause.into())),
                Poll::Ready(None) if self.last.is_empty() => return self.fail(BodyFailure::Length(sent)),
                Poll::Ready(None) => {
                    let last = std::mem::take(&mut self.last);
                    return self.give(last);
                }
                Poll::Ready(Some(Ok(bytes))) if bytes.is_empty() => {}
                Poll::Ready(Some(Ok(bytes))) => {
                    let length = bytes.len() as u64;
                    if !self.last.is_empty() || length > self.left {
                        return self.fail(BodyFailure::Length(sent.saturating_add(length)));
                    }
                    if length < self.left {
                        return self.give(bytes);
                    }
                    self.last = bytes;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    type Piece = Result<Bytes, BodyError>;

    async fn send(length: u64, pieces: Vec<Piece>) -> (Vec<Bytes>, Option<BodyFailure>) {
        let state = Arc::new(BodyState::default());
        let stream = stream::iter(pieces).boxed();
        let mut body = LengthBody {
            stream: Mutex::new(stream),
            left: length,
            last: Bytes::new(),
            state: Arc::clone(&state),
        };
        let mut given = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            given.push(frame.into_data().unwrap());
        }
        let failure = state.failure.lock().unwrap().take();
        (given, failure)
    }

    fn piece(text: &'static str) -> Piece {
        Ok(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn a_body_of_the_promised_length_goes_through() {
        for pieces in [vec![piece("ab"), piece("cd")], vec![piece(""), piece("abcd"), piece("")]] {
            let (given, failure) = send(4, pieces).await;
            assert_eq!(given.concat(), b"abcd");
            assert!(failure.is_none());
        }
        assert!(send(0, vec![]).await.0.is_empty());
    }

    #[tokio::test]
    async fn the_last_bytes_wait_for_the_end_of_the_stream() {
        let (given, failure) = send(4, vec![piece("ab"), piece("cd"), Err("wrong digest".into())]).await;
        assert_eq!(given.concat(), b"ab");
        assert!(matches!(failure, Some(BodyFailure::Source(cause)) if cause.to_string() == "wrong digest"));
    }

    #[tokio::test]
    async fn a_body_that_is_too_short_or_too_long_never_completes() {
        for (pieces, got) in [
            (vec![piece("abc")], 3),
            (vec![piece("ab"), piece("cde")], 5),
            (vec![piece("abcd"), piece("e")], 5),
        ] {
            let (given, failure) = send(4, pieces).await;
            assert!(given.concat().len() < 4);
            assert!(matches!(failure, Some(BodyFailure::Length(length)) if length == got));
        }
    }
}
