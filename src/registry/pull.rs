//! [`BlobBody`]: the bytes of a blob, from wherever they can be had.
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

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use bytes::BytesMut;
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
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
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::auth::Refusals;
use super::client::Answer;
use super::client::Ask;
use super::client::Shared;
use super::client::place;
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

/// Bytes of a blob from an offset to its end, exactly as many as its descriptor says; fewer or more
/// are an error. Retries, resumption and fall-back happen inside. Unverified.
///
/// Keeps a place in the host's download lane while it is open and not between two tries.
#[must_use]
pub struct BlobBody {
    offset: u64,
    stream: BoxStream<'static, Result<Bytes, RegistryError>>,
    served: Arc<Served>,
}

impl BlobBody {
    /// Offset of the first byte, the one that was asked for.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// To be called when the bytes did not have the blob's digest: those who served them are asked
    /// last from now on, so that another endpoint gets a chance.
    pub fn condemn(&self) {
        self.served.condemn();
    }

    /// The same after the stream was taken apart.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBody(from {})", self.offset)
    }
}

/// Who served the bytes of a [`BlobBody`].
pub struct Served {
    shared: Arc<Shared>,
    digest: Digest,
    by: Mutex<Vec<String>>,
}

impl Served {
    /// As [`BlobBody::condemn`].
    pub fn condemn(&self) {
        for authority in self.by.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            self.shared.condemn(authority, &self.digest);
        }
    }

    fn add(&self, authority: &str) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        if !by.iter().any(|known| known == authority) {
            by.push(authority.to_owned());
        }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({})", self.digest)
    }
}

impl RegistryClient {
    /// Opens a blob at `offset`, of a foreign layer at its own URLs first. The first reply is in when
    /// this returns, so that a refusal is an error here.
    pub async fn open_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobBody, RegistryError> {
        let shared = Arc::clone(&self.shared);
        let served =
            Arc::new(Served { shared: Arc::clone(&shared), digest: descriptor.digest, by: Mutex::default() });
        let trusting = self.trusts(&repository.host);
        let urls = if descriptor.is_foreign_layer() { descriptor.urls.iter() } else { [].iter() };
        let mut download = Download {
            ctx: ctx.clone(),
            repository: repository.clone(),
            digest: descriptor.digest,
            at: offset,
            end: descriptor.size,
            urls: urls.rev().filter_map(|url| url.parse().ok()).collect(),
            route: shared.route_to_blob(repository, trusting, &descriptor.digest),
            whole: false,
            open: None,
            served: Arc::clone(&served),
            shared,
        };
        if offset == 0 || offset < descriptor.size {
            download.reopen().await?;
        }
        let stream = stream::try_unfold(download, |mut download| async move {
            Ok(download.next().await?.map(|bytes| (bytes, download)))
        });
        Ok(BlobBody { offset, stream: stream.boxed(), served })
    }

    /// The bytes of a part of a blob; `None` if who has the blob gives no parts of it, and for foreign layers. The
    /// caller has found `range` to be within the blob, and to fit into memory. Unverified.
    pub async fn blob_range(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<Bytes>, RegistryError> {
        let Ok(length) = usize::try_from(range.end.saturating_sub(range.start)) else { return Ok(None) };
        if length == 0 || descriptor.is_foreign_layer() {
            return Ok((length == 0).then(Bytes::new));
        }
        let shared = &self.shared;
        let (subject, path) = (format!("@{}", descriptor.digest), format!("blobs/{}", descriptor.digest));
        let whole = place(repository, subject.clone(), None);
        let mut route = shared.route_to_blob(repository, self.trusts(&repository.host), &descriptor.digest);
        loop {
            let endpoint = route.next(ctx, &whole).await?;
            let place = place(repository, subject.clone(), Some(&endpoint));
            let mut ask = ask_for_blob(&place, repository, &endpoint, &path);
            let wanted = format!("bytes={}-{}", range.start, range.end - 1);
            ask.headers.extend(HeaderValue::from_str(&wanted).ok().map(|wanted| (RANGE, wanted)));
            let error = match shared.ask(ctx, &endpoint, ask).await {
                Ok(Answer { mut response, pass: _pass, .. }) => match response.status() {
                    StatusCode::PARTIAL_CONTENT if is_answer(&response, range, descriptor.size) => {
                        match self.collect(ctx, &place, &mut response, length).await {
                            Ok(bytes) => return Ok(Some(bytes)),
                            Err(error) => error,
                        }
                    }
                    // What comes instead is not read.
                    StatusCode::PARTIAL_CONTENT | StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => {
                        return Ok(None);
                    }
                    _ => shared.refusal(ctx, &place, response).await,
                },
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }

    /// The body of a reply that must have `length` bytes.
    async fn collect(
        &self,
        ctx: &Ctx,
        place: &Arc<Place>,
        response: &mut Response,
        length: usize,
    ) -> Result<Bytes, RegistryError> {
        let mut bytes = BytesMut::with_capacity(length);
        let address = authority(response.url());
        let cause: Box<dyn std::error::Error + Send + Sync> = loop {
            match self.shared.chunk(ctx, place, response).await {
                Ok(Some(chunk)) if chunk.len() > length - bytes.len() => {
                    let (expected, got) = (length as u64, (bytes.len() + chunk.len()) as u64);
                    return Err(RegistryError::WrongLength { place: Arc::clone(place), expected, got });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) if bytes.len() == length => return Ok(bytes.freeze()),
                Ok(None) => break "it ended early".into(),
                Err(Interrupted::Broken(broken)) => break broken.into(),
                Err(Interrupted::Error(error)) => return Err(error),
            }
        };
        let (got, expected) = (bytes.len() as u64, length as u64);
        Err(RegistryError::Truncated {
            place: Arc::clone(place),
            address,
            got,
            expected,
            cause: Arc::from(cause),
        })
    }

    /// The verified bytes of a small blob such as an image's config; [`RegistryError::TooLarge`]
    /// beyond `limit`.
    pub async fn small_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let place = place(repository, format!("@{}", descriptor.digest), None);
        if descriptor.size > limit {
            return Err(RegistryError::TooLarge { place, size: descriptor.size, limit });
        }
        let mut last_try = false;
        loop {
            let mut body = self.open_blob(ctx, repository, descriptor, 0).await?;
            let mut bytes = BytesMut::with_capacity(descriptor.size as usize);
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk?);
            }
            let mut hasher = descriptor.digest.hasher();
            hasher.update(&bytes);
            let got = hasher.finish();
            if got == descriptor.digest {
                return Ok(bytes.freeze());
            }
            if last_try {
                return Err(RegistryError::Corrupt { place, got });
            }
            body.condemn();
            last_try = true;
        }
    }

    /// Succeeds if the asker may read the blob: one HEAD.
    pub async fn probe_blob(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<(), RegistryError> {
        let shared = &self.shared;
        let (subject, path) = (format!("@{}", descriptor.digest), format!("blobs/{}", descriptor.digest));
        let whole = place(repository, subject.clone(), None);
        let mut route = shared.route_to_blob(repository, self.trusts(&repository.host), &descriptor.digest);
        loop {
            let endpoint = route.next(ctx, &whole).await?;
            let place = place(repository, subject.clone(), Some(&endpoint));
            let ask = Ask {
                lane: Lane::Metadata,
                method: Method::HEAD,
                ..ask_for_blob(&place, repository, &endpoint, &path)
            };
            let error = match shared.ask(ctx, &endpoint, ask).await {
                Ok(answer) if answer.response.status().is_success() => return Ok(()),
                Ok(answer) => shared.refusal(ctx, &place, answer.response).await,
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }
}

fn ask_for_blob<'a>(
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

/// One blob on its way.
struct Download {
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

/// True if a reply has just the part that was asked for.
fn is_answer(response: &Response, range: &Range<u64>, size: u64) -> bool {
    let header = response.headers().get(CONTENT_RANGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let length = response.content_length();
    parse_content_range(&String::from_utf8_lossy(header)).is_some_and(|(first, last, total)| {
        first == range.start
            && last == range.end - 1
            && total.is_none_or(|total| total == size)
            && length.is_none_or(|length| length == range.end - range.start)
    })
}

/// `bytes first-last/total` (RFC 9110 section 14.4); the total may be `*`.
fn parse_content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = header.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (unit.eq_ignore_ascii_case("bytes") && first <= last && total.is_none_or(|total| last < total))
        .then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges_are_read_by_the_rules() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_content_range("Bytes 0-0/*"), Some((0, 0, None)));
        for bad in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "items 5-9/10",
            "bytes 5-9",
            "5-9/10",
            "bytes -5-9/10",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_panics(first in any::<u64>(), length in 0u64..1000, text in "\\PC{0,40}") {
            let last = first.saturating_add(length);
            if last < u64::MAX {
                let header = format!("bytes {first}-{last}/{}", u64::MAX);
                prop_assert_eq!(parse_content_range(&header), Some((first, last, Some(u64::MAX))));
            }
            let _ = parse_content_range(&text);
        }
    }
}
