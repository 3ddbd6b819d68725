//! [`UploadSession`]: an upload that a registry began for us, which is completed or cancelled.
//!
//! # Invariants
//!
//! - What a reply began is owned from the moment that the reply is here: whoever drops the session without
//!   having settled it cancels it, in the background.
//! - A POST that was sent is heard to its end, by a task if its asker has left: only the reply says where
//!   the upload is that it began.
//!
//! A registry that never answers keeps what it began; registries drop that on their own, in time.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::Method;
use http::StatusCode;
use reqwest::Response;
use reqwest::Url;
use tokio::sync::oneshot;

use super::Place;
use super::RegistryError;
use super::auth::Auth;
use super::auth::Refusals;
use super::client::Shared;
use super::endpoint::Endpoint;
use super::scope::Scopes;
use super::transport::Outgoing;
use super::transport::location;
use crate::ctx::Ctx;

const CHUNK_MINIMUM: &str = "oci-chunk-min-length";

/// An upload that a registry is ready for. Dropped, it is cancelled there in the background.
pub struct UploadSession {
    endpoint: Arc<Endpoint>,
    location: Url,
    /// Bytes that a chunk but the last must have (`OCI-Chunk-Min-Length`).
    least_chunk: u64,
    /// None once the registry knows how the upload ended.
    left: Option<Left>,
}

/// What it takes to cancel an upload.
struct Left {
    shared: Arc<Shared>,
    /// With the rights of who began it and the life of the client.
    ctx: Ctx,
    place: Arc<Place>,
    repository: String,
}

/// A reply, and the upload that it began.
pub(super) struct Begun {
    pub response: Response,
    pub session: Option<UploadSession>,
}

impl UploadSession {
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(super) fn location(&self) -> &Url {
        &self.location
    }

    pub(super) fn least_chunk(&self) -> u64 {
        self.least_chunk
    }

    /// The upload goes on there.
    pub(super) fn moved(&mut self, location: Url) {
        self.location = location;
    }

    /// The registry has ended the upload, well or not.
    pub(super) fn settle(mut self) {
        self.left = None;
    }
}

impl Drop for UploadSession {
    fn drop(&mut self) {
        let Some(left) = self.left.take() else { return };
        let tasks = left.shared.tasks.clone();
        if tasks.token().is_cancelled() {
            return;
        }
        let (endpoint, location) = (Arc::clone(&self.endpoint), self.location.clone());
        drop(tasks.spawn("upload clean-up", left.cancel(endpoint, location)));
    }
}

impl Left {
    async fn cancel(self, endpoint: Arc<Endpoint>, url: Url) {
        let Left { shared, ctx, place, repository } = self;
        let wanted = Scopes::push(&endpoint.repository(&repository));
        let mut auth = Auth::new(&endpoint, &place, wanted, Refusals::Told);
        let authorization = match endpoint.owns(&url) {
            true => auth.authorization(&shared, &ctx).await.unwrap_or_default(),
            false => None,
        };
        let request = Outgoing {
            method: Method::DELETE,
            url,
            headers: HeaderMap::new(),
            authorization,
            body: None,
            verified: true,
            confidential: false,
        };
        // Best effort, like the registry's own.
        if let Ok(response) = shared.send(&ctx, endpoint.tls(), &place, request).await {
            shared.drain(&ctx, response).await;
        }
    }
}

impl fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadSession({})", self.location)
    }
}

impl Shared {
    /// Sends a POST for an upload in `repository` and hears the reply, whoever leaves meanwhile.
    pub(super) async fn begin(
        self: &Arc<Self>,
        ctx: &Ctx,
        endpoint: &Arc<Endpoint>,
        place: &Arc<Place>,
        repository: &str,
        request: Outgoing,
    ) -> Result<Begun, RegistryError> {
        let (told, reply) = oneshot::channel();
        let (shared, endpoint, place_of) = (Arc::clone(self), Arc::clone(endpoint), Arc::clone(place));
        let ctx_of = ctx.with_cancel(self.tasks.token().child_token());
        let repository = repository.to_owned();
        drop(self.tasks.spawn("upload begin", async move {
            let sent = shared.send(&ctx_of, endpoint.tls(), &place_of, request).await;
            let begun = sent.map(|response| {
                let left = Left { shared, ctx: ctx_of, place: place_of, repository };
                Begun { session: session_of(&response, &endpoint, left), response }
            });
            // Nobody there: what was begun is dropped, and cancelled by that.
            drop(told.send(begun));
        }));
        match ctx.run(reply).await {
            Ok(Ok(begun)) => begun,
            _ => Err(RegistryError::Cancelled { place: Arc::clone(place) }),
        }
    }
}

/// What a reply began. 201 is a mount that went well.
fn session_of(response: &Response, endpoint: &Arc<Endpoint>, left: Left) -> Option<UploadSession> {
    if !response.status().is_success() || response.status() == StatusCode::CREATED {
        return None;
    }
    let location = upload_location(response, endpoint)?;
    let least_chunk =
        response.headers().get(CHUNK_MINIMUM).and_then(|value| value.to_str().ok()?.parse().ok());
    let (endpoint, least_chunk) = (Arc::clone(endpoint), least_chunk.unwrap_or(0));
    Some(UploadSession { endpoint, location, least_chunk, left: Some(left) })
}

/// Where an upload goes. A registry behind a TLS proxy may call itself `http`: its own host keeps TLS.
pub(super) fn upload_location(response: &Response, endpoint: &Endpoint) -> Option<Url> {
    let mut url = location(response)?;
    if url.scheme() == "http" && endpoint.scheme() == "https" {
        let mut secure = url.clone();
        if secure.set_scheme("https").is_ok() && endpoint.owns(&secure) {
            url = secure;
        }
    }
    matches!(url.scheme(), "http" | "https").then_some(url)
}
