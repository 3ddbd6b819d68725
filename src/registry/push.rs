//! Blobs and manifests that a registry is to have.
//!
//! # A blob's way
//!
//! ```text
//!   HEAD ──there──► existed
//!     └─ not there, or not told ─► mount from each repository that has it ──201──► mounted
//!            └─ every refusal and failure ─► upload (in the session that a refusal began, if one did)
//! ```
//!
//! # Invariants
//!
//! - A registry that does not answer a look-up (403, 405 and the like: it gives the right to push and
//!   not the one to look, or has no HEAD) knows nothing, which ends no push. A token server that refuses
//!   the token does: it is the one that the upload would need.
//! - Nothing that happens to a mount ends a push, except its cancellation.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::ACCEPT;
use http::header::CONTENT_TYPE;

use super::Place;
use super::PushError;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::Selector;
use super::auth::Refusals;
use super::begun::UploadSession;
use super::client::Ask;
use super::client::place;
use super::endpoint::Endpoint;
use super::endpoint::Purpose;
use super::endpoint::is_repository;
use super::lanes::Lane;
use super::manifest::digest_header;
use super::scope::Scopes;
use super::upload::OpenBody;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::media_type;

/// Candidates of one blob that may be silent until the rest is not asked any more: each costs the time
/// that a registry is given to say anything, and an upload is always an answer.
const MAX_STALLED_MOUNTS: u32 = 2;

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
        if self.has_blob(ctx, repository, descriptor).await? {
            return Ok(Pushed::Existed);
        }
        let mut begun = None;
        let mut stalls = 0;
        for from in mounts.iter().filter(|from| **from != repository.name) {
            match self.mount_blob(ctx, repository, from, descriptor).await {
                Ok(Mount::Mounted) => return Ok(Pushed::Mounted { from: from.clone() }),
                // One is enough; another is cancelled.
                Ok(Mount::Refused { session }) => begun = begun.or(session),
                Err(error @ RegistryError::Cancelled { .. }) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "a mount failed");
                    stalls += u32::from(matches!(error, RegistryError::Stalled { .. }));
                    if stalls == MAX_STALLED_MOUNTS {
                        break;
                    }
                }
            }
        }
        self.upload_blob(ctx, repository, descriptor, begun, body).await?;
        Ok(Pushed::Uploaded)
    }

    /// True if the push target says that it has the blob. Mirrors are not asked.
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

    pub(super) async fn look(
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
            status if says_nothing(status) => Ok(false),
            _ => Err(self.shared.refusal(ctx, place, answer.response).await),
        }
    }

    /// Asks the registry to take the blob from its repository `from`. Every answer that is not the blob
    /// is a [`Mount::Refused`], also one that the registry failed. One that does not come is an error
    /// after the usual tries, and after the first if the registry is silent.
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
                    StatusCode::ACCEPTED => return refused(answer.session),
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
                Err(error @ RegistryError::Stalled { .. }) => return Err(error),
                Err(error) => error,
            };
            route.failed(error)?;
        }
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
            let accept = format!("{}, */*", media_type::MANIFESTS.join(", "));
            if let Ok(accept) = HeaderValue::from_str(&accept) {
                ask.headers.insert(ACCEPT, accept);
            }
            let error = match self.shared.ask(ctx, &endpoint, ask).await {
                Ok(answer) => match (answer.response.status(), selector) {
                    (StatusCode::OK, Selector::Digest(digest)) => return Ok(Some(*digest)),
                    (StatusCode::OK, Selector::Tag(_)) => return Ok(digest_header(&answer.response)),
                    (status, _) if says_nothing(status) => return Ok(None),
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
        if self.head_manifest(ctx, repository, selector).await? == Some(descriptor.digest) {
            return Ok(Pushed::Existed);
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

/// True for a reply to a look-up that leaves open what is there: the thing is missing, not for us to see,
/// or not to be looked up. What may be another answer soon is none of these.
fn says_nothing(status: StatusCode) -> bool {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => false,
        StatusCode::NOT_IMPLEMENTED => true,
        status => status.is_client_error(),
    }
}

/// 400 and 413 to 422 speak of what was sent, not of who sent it.
pub(super) fn is_about_content(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 409 | 412..=415 | 422)
}

pub(super) fn ask_to_push<'a>(
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
