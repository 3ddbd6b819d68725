//! [`ChunkedUpload`]: a blob on its way to a registry before anybody knows how long it is, or its digest.
//!
//! POST, a PATCH for each chunk, and a PUT with the digest (OCI distribution specification, "Pushing a blob in chunks").
//! Nothing is tried twice here: whoever has the bytes can upload them in the other way (`upload.rs`).
//!
//! # Cancellation
//!
//! Dropped before its end, or after a failure, the upload is cancelled at the registry in the background: see
//! [`UploadSession`].

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_RANGE;
use http::header::CONTENT_TYPE;
use reqwest::Response;
use reqwest::Url;

use super::Place;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::auth::Auth;
use super::auth::Refusals;
use super::auth::Verdict;
use super::begun::UploadSession;
use super::begun::upload_location;
use super::client::place;
use super::endpoint::Purpose;
use super::lanes::Lane;
use super::manifest::digest_header;
use super::scope::Scopes;
use super::transport::Outgoing;
use crate::ctx::Ctx;
use crate::oci::Digest;

/// Bytes of a chunk, unless the registry wants more.
const CHUNK_BYTES: u64 = 4 << 20;
/// A registry that wants more in one chunk gets the blob in one piece.
const MAX_CHUNK_BYTES: u64 = 16 << 20;

/// An upload of unknown length.
#[derive(Debug)]
pub struct ChunkedUpload {
    client: RegistryClient,
    session: UploadSession,
    place: Arc<Place>,
    repository: Repository,
    /// Bytes that the registry has taken.
    sent: u64,
}

impl RegistryClient {
    /// Begins an upload of unknown length.
    ///
    /// Cancellation safe: what the registry begins for nobody is cancelled there.
    pub async fn begin_chunked(
        &self,
        ctx: &Ctx,
        repository: &Repository,
    ) -> Result<ChunkedUpload, RegistryError> {
        let place = place(repository, " (a blob that is being made)".to_owned(), None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Write);
        let endpoint = route.next(ctx, &place).await?;
        let session = self.begin_upload(ctx, &place, repository, &endpoint).await?;
        if session.least_chunk() > MAX_CHUNK_BYTES {
            let problem = format!("it wants chunks of {} bytes at least", session.least_chunk());
            return Err(RegistryError::Protocol { place, problem });
        }
        Ok(ChunkedUpload { client: self.clone(), session, place, repository: repository.clone(), sent: 0 })
    }
}

impl ChunkedUpload {
    /// Bytes that the registry has.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that each chunk but the last one has to have.
    pub fn chunk_bytes(&self) -> u64 {
        CHUNK_BYTES.max(self.session.least_chunk())
    }

    /// Sends the next bytes. After an error the upload is of no use.
    ///
    /// Not cancellation safe: nobody knows what the registry has then.
    pub async fn send(&mut self, ctx: &Ctx, bytes: Bytes) -> Result<(), RegistryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let range = format!("{}-{}", self.sent, self.sent + length - 1);
        headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).map_err(|_| self.malformed())?);
        let url = self.session.location().clone();
        let response = self.request(ctx, Method::PATCH, url, headers, bytes).await?;
        // Each reply says where the next bytes go.
        if let Some(next) = upload_location(&response, self.session.endpoint()) {
            self.session.moved(next);
        }
        self.client.shared.drain(ctx, response).await;
        self.sent += length;
        Ok(())
    }

    /// Ends the upload: the bytes that were sent are the blob `digest`.
    ///
    /// Not cancellation safe, as [`ChunkedUpload::send`].
    pub async fn complete(self, ctx: &Ctx, digest: &Digest) -> Result<(), RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let mut url = self.session.location().clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let response = self.request(ctx, Method::PUT, url, headers, Bytes::new()).await?;
        if let Some(got) = digest_header(&response).filter(|got| got != digest) {
            return Err(RegistryError::Corrupt { place: self.place, got });
        }
        self.session.settle();
        Ok(())
    }

    async fn request(
        &self,
        ctx: &Ctx,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, RegistryError> {
        let (shared, place, endpoint) = (&self.client.shared, &self.place, self.session.endpoint());
        let wanted = Scopes::push(&endpoint.repository(&self.repository.name));
        let mut auth = Auth::new(endpoint, place, wanted, Refusals::Told);
        loop {
            let authorization = match endpoint.owns(&url) {
                true => auth.authorization(shared, ctx).await?,
                false => None,
            };
            let pass = shared.lanes.enter(ctx, endpoint.authority(), Lane::Upload).await;
            let pass = pass.map_err(|_| RegistryError::Cancelled { place: Arc::clone(place) })?;
            let request = Outgoing {
                method: method.clone(),
                url: url.clone(),
                headers: headers.clone(),
                authorization,
                body: Some(body.clone()),
                verified: false,
                confidential: false,
            };
            let response = shared.send(ctx, endpoint.tls(), place, request).await?;
            drop(pass);
            if response.status().is_success() {
                return Ok(response);
            }
            if matches!(response.status().as_u16(), 401 | 403)
                && endpoint.owns(&url)
                && auth.judge(shared, ctx, &response).await? == Verdict::Again
            {
                shared.drain(ctx, response).await;
                continue;
            }
            return Err(shared.refusal(ctx, place, response).await);
        }
    }

    fn malformed(&self) -> RegistryError {
        RegistryError::Protocol {
            place: Arc::clone(&self.place),
            problem: "a range can't be a header".to_owned(),
        }
    }
}
