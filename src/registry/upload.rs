//! One blob on its way to a registry: POST (unless a refused mount began it), then one PUT.
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
use http::HeaderValue;
use http::Method;
use http::header::AUTHORIZATION;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use http_body::SizeHint;
use reqwest::Response;
use reqwest::Url;
use tokio::time::Instant;

use super::Cause;
use super::Place;
use super::PushError;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::auth::Auth;
use super::auth::Refusals;
use super::auth::Verdict;
use super::begun::UploadSession;
use super::begun::upload_location;
use super::client::place;
use super::endpoint::Endpoint;
use super::endpoint::Purpose;
use super::lanes::Lane;
use super::manifest::digest_header;
use super::push::ask_to_push;
use super::push::is_about_content;
use super::scope::Scopes;
use super::transport::authority;
use super::transport::unreachable;
use crate::ctx::Ctx;
use crate::oci::Descriptor;

/// Redirects of one upload at most.
const MAX_REDIRECTS: usize = 10;

/// An error of the bytes to push.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// The bytes to upload. An error of the stream ends the upload with [`PushError::Body`].
pub type UploadBody = BoxStream<'static, Result<Bytes, BodyError>>;

/// Opens the body of an upload from its start; called again for each try.
pub type OpenBody<'a> = &'a mut (dyn FnMut() -> BoxFuture<'static, Result<UploadBody, BodyError>> + Send);

impl RegistryClient {
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
        // Content that has the wrong digest there may have been damaged on the way, once.
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
                let sent = upload.put(&session, body).await;
                // What the registry answered ended the session there; anything else leaves it behind.
                if matches!(sent, Ok(()) | Err(PushError::Refused { .. })) {
                    session.settle();
                }
                sent
            };
            let error = match pushed.await {
                Ok(()) => return Ok(()),
                Err(PushError::Registry(error)) => error,
                Err(PushError::Refused { place, status: status @ 400, reason }) if !refused_before => {
                    refused_before = true;
                    RegistryError::Server { place, status, retry_after: None, reason }
                }
                Err(error) => return Err(error),
            };
            route.failed(error)?;
        }
    }

    pub(super) async fn begin_upload(
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
        answer.session.ok_or_else(|| RegistryError::Protocol {
            place: Arc::clone(place),
            problem: "it began an upload without saying where".to_owned(),
        })
    }
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
    async fn put(&self, session: &UploadSession, open: OpenBody<'_>) -> Result<(), PushError> {
        let Upload { client, ctx, place, repository, descriptor } = self;
        let shared = &client.shared;
        let (endpoint, mut location) = (session.endpoint(), session.location().clone());
        let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(place) };
        let wanted = Scopes::push(&endpoint.repository(&repository.name));
        let mut auth = Auth::new(endpoint, place, wanted, Refusals::Told);
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
            let response = self.send(endpoint, &location, authorization, stream).await?;
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
                    if let Some(next) = upload_location(&response, endpoint) {
                        location = next;
                        shared.drain(ctx, response).await;
                        continue;
                    }
                }
                301..=308 => {
                    let address = authority(&location);
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
            let mut since = Instant::now();
            loop {
                // The body's own source has its own patience.
                let all = state.sent.load(Ordering::Relaxed) == descriptor.size;
                let limit = if all { patience.commit.max(patience.stall) } else { patience.stall };
                tokio::time::sleep_until(since + limit).await;
                let now = state.sent.load(Ordering::Relaxed);
                let grew_to_all = now == descriptor.size && !all;
                if now != sent || grew_to_all || state.waits_for_source.load(Ordering::Relaxed) {
                    (sent, since) = (now, Instant::now());
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
                let address = authority(location);
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
