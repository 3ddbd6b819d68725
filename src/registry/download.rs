//! One blob on its way.
//!
//! # States
//!
//! ```text
//!   asking ──206 or 200──► reading ──end──► done
//!     ▲                       │ reset, truncation, stall: go on at the byte reached
//!     └──────── route ◄───────┘ (next endpoint, or a pause)
//! ```
//!
//! While the route pauses, the connection and the place in the download lane are given back.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::ACCEPT_ENCODING;
use http::header::CONTENT_RANGE;
use http::header::RANGE;
use reqwest::Response;
use reqwest::Url;

use super::Place;
use super::RegistryError;
use super::Repository;
use super::auth::Refusals;
use super::blob_body::BlobBody;
use super::blob_body::Served;
use super::client::Answer;
use super::client::Ask;
use super::client::Shared;
use super::client::place;
use super::content_range::parse_content_range;
use super::endpoint::Endpoint;
use super::lanes::Lane;
use super::lanes::Pass;
use super::route::Route;
use super::scope::Scopes;
use super::tls::TlsSettings;
use super::transport::Interrupted;
use super::transport::Outgoing;
use super::transport::authority;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;

/// One blob on its way.
pub(super) struct Download {
    shared: Arc<Shared>,
    ctx: Ctx,
    repository: Repository,
    digest: Digest,
    /// The byte that comes next.
    at: u64,
    end: u64,
    /// Where a foreign layer is to be had, the next one last.
    urls: Vec<Url>,
    route: Route,
    /// Range was answered wrongly: ask for all and skip.
    whole: bool,
    open: Option<Open>,
    served: Arc<Served>,
}

struct Open {
    response: Response,
    place: Arc<Place>,
    /// Bytes to throw away first: the reply begins before `at`.
    skip: u64,
    /// The byte behind the last one that this reply has.
    until: u64,
    /// From one of the blob's own URLs, which is not on the route.
    from_url: bool,
    _pass: Option<Pass>,
}

impl Download {
    pub(super) fn new(
        shared: Arc<Shared>,
        ctx: Ctx,
        repository: &Repository,
        trusting: bool,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Download {
        let urls = if descriptor.is_foreign_layer() { descriptor.urls.iter() } else { [].iter() };
        Download {
            ctx,
            repository: repository.clone(),
            digest: descriptor.digest,
            at: offset,
            end: descriptor.size,
            urls: urls.rev().filter_map(|url| url.parse().ok()).collect(),
            route: shared.route_to_blob(repository, trusting, &descriptor.digest),
            whole: false,
            open: None,
            served: Arc::new(Served::new(Arc::clone(&shared), descriptor.digest)),
            shared,
        }
    }

    /// The body, once the first reply to it is in.
    pub(super) async fn open(mut self) -> Result<BlobBody, RegistryError> {
        let (offset, served) = (self.at, Arc::clone(&self.served));
        if offset == 0 || offset < self.end {
            self.reopen().await?;
        }
        let stream = stream::try_unfold(self, |mut download| async move {
            Ok(download.next().await?.map(|bytes| (bytes, download)))
        });
        Ok(BlobBody::new(offset, stream.boxed(), served))
    }

    /// The next bytes; `None` when all were given.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(open) = &mut self.open else {
                if self.at >= self.end {
                    return Ok(None);
                }
                self.reopen().await?;
                continue;
            };
            let error = match self.shared.chunk(&self.ctx, &open.place, &mut open.response).await {
                Ok(Some(chunk)) => match self.take(chunk) {
                    Ok(Some(chunk)) => return Ok(Some(chunk)),
                    Ok(None) => continue,
                    Err(error) => error,
                },
                // All of a reply to a part of what is left.
                Ok(None) if open.until == self.at && open.until <= self.end => {
                    self.open = None;
                    continue;
                }
                Ok(None) => broke_off(open, self.at, self.end, "it ended early"),
                Err(Interrupted::Broken(cause)) => broke_off(open, self.at, self.end, cause),
                Err(Interrupted::Error(error)) => error,
            };
            match self.open.take() {
                Some(open) if open.from_url && !matches!(error, RegistryError::Cancelled { .. }) => {
                    self.urls.pop();
                }
                _ => self.route.failed(error)?,
            }
        }
    }

    /// Cuts what was asked for out of `chunk`; `None` if nothing of it was.
    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let skipped = open.skip.min(chunk.len() as u64);
        open.skip -= skipped;
        let _ = chunk.split_to(skipped as usize);
        if chunk.is_empty() {
            return Ok(None);
        }
        let length = chunk.len() as u64;
        if self.at + length > open.until {
            let got = self.at + length;
            return Err(RegistryError::WrongLength {
                place: Arc::clone(&open.place),
                expected: self.end,
                got,
            });
        }
        self.at += length;
        self.route.progressed(length);
        Ok(Some(chunk))
    }

    /// Gets a reply with the byte at `at`. Leaves `open` set.
    async fn reopen(&mut self) -> Result<(), RegistryError> {
        while let Some(url) = self.urls.last().cloned() {
            match self.open_url(url).await {
                Ok(open) => {
                    self.open = Some(Open { from_url: true, ..open });
                    return Ok(());
                }
                Err(error @ RegistryError::Cancelled { .. }) => return Err(error),
                // The registry may have it after all, and says the last word.
                Err(_) => {
                    self.urls.pop();
                }
            }
        }
        let whole = place(&self.repository, format!("@{}", self.digest), None);
        loop {
            let endpoint = self.route.next(&self.ctx, &whole).await?;
            match self.open_at(&endpoint).await {
                Ok(open) => {
                    self.served.add(endpoint.authority());
                    self.open = Some(open);
                    return Ok(());
                }
                Err(error) => {
                    self.whole |= matches!(error, RegistryError::BadRange { .. });
                    self.route.failed(error)?;
                }
            }
        }
    }

    async fn open_at(&self, endpoint: &Arc<Endpoint>) -> Result<Open, RegistryError> {
        let place = place(&self.repository, format!("@{}", self.digest), Some(endpoint));
        let path = format!("blobs/{}", self.digest);
        let mut ask = ask_for_blob(&place, &self.repository, endpoint, &path);
        ask.headers.extend(self.range());
        let Answer { response, pass, .. } = self.shared.ask(&self.ctx, endpoint, ask).await?;
        self.check(place, response, pass).await
    }

    /// A foreign layer's own URL, which gets no credentials.
    async fn open_url(&self, url: Url) -> Result<Open, RegistryError> {
        let place = place(&self.repository, format!("@{}", self.digest), None);
        if !matches!(url.scheme(), "http" | "https") {
            let problem = format!("a layer can't be fetched from a URL of {:?}", url.scheme());
            return Err(RegistryError::Protocol { place, problem });
        }
        let pass = self.shared.lanes.enter(&self.ctx, &authority(&url), Lane::Download).await;
        let pass = pass.map_err(|_| RegistryError::Cancelled { place: Arc::clone(&place) })?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.range());
        let request = Outgoing {
            method: Method::GET,
            url,
            headers,
            authorization: None,
            body: None,
            verified: true,
            confidential: false,
        };
        let response = self.shared.send(&self.ctx, &TlsSettings::default(), &place, request).await?;
        self.check(place, response, Some(pass)).await
    }

    fn range(&self) -> Option<(http::HeaderName, HeaderValue)> {
        let wanted = self.at > 0 && !self.whole;
        let value = wanted.then(|| HeaderValue::from_str(&format!("bytes={}-", self.at)).ok());
        value.flatten().map(|value| (RANGE, value))
    }

    /// Finds out which bytes a reply has.
    async fn check(
        &self,
        place: Arc<Place>,
        response: Response,
        pass: Option<Pass>,
    ) -> Result<Open, RegistryError> {
        let length = response.content_length();
        let (skip, until) = match response.status() {
            StatusCode::OK => {
                if let Some(got) = length.filter(|length| *length != self.end) {
                    return Err(RegistryError::WrongLength { place, expected: self.end, got });
                }
                (self.at, self.end)
            }
            StatusCode::PARTIAL_CONTENT => {
                let header = response.headers().get(CONTENT_RANGE).map(HeaderValue::as_bytes);
                let header = String::from_utf8_lossy(header.unwrap_or_default());
                let bad = |place| RegistryError::BadRange {
                    place,
                    offset: self.at,
                    answered: header.chars().take(100).collect(),
                };
                match parse_content_range(&header) {
                    Some((first, last, total))
                        if first == self.at
                            && last < self.end
                            && total.is_none_or(|total| total == self.end)
                            && length.is_none_or(|length| length == last - first + 1) =>
                    {
                        (0, last + 1)
                    }
                    _ => return Err(bad(place)),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let answered = "416 Range Not Satisfiable".to_owned();
                return Err(RegistryError::BadRange { place, offset: self.at, answered });
            }
            _ => return Err(self.shared.refusal(&self.ctx, &place, response).await),
        };
        Ok(Open { response, place, skip, until, from_url: false, _pass: pass })
    }
}

fn broke_off(
    open: &Open,
    at: u64,
    end: u64,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RegistryError {
    RegistryError::Truncated {
        place: Arc::clone(&open.place),
        address: authority(open.response.url()),
        got: at,
        expected: end,
        cause: Arc::from(cause.into()),
    }
}

pub(super) fn ask_for_blob<'a>(
    place: &'a Arc<Place>,
    repository: &'a Repository,
    endpoint: &Endpoint,
    path: &'a str,
) -> Ask<'a> {
    let mut headers = HeaderMap::new();
    // What is hashed are the bytes as they are stored.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ask {
        place,
        method: Method::GET,
        repository: &repository.name,
        path,
        query: &[],
        headers,
        body: None,
        lane: Lane::Download,
        wanted: Scopes::pull(&endpoint.repository(&repository.name)),
        refusals: Refusals::Concealed,
        verified: true,
    }
}
