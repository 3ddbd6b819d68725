//! Blobs and parts of them, from wherever they can be had.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use bytes::BytesMut;
use futures::StreamExt as _;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::RANGE;
use reqwest::Response;

use super::Place;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::blob_body::BlobBody;
use super::client::Answer;
use super::client::Ask;
use super::client::place;
use super::content_range::is_answer;
use super::download::Download;
use super::download::ask_for_blob;
use super::lanes::Lane;
use super::transport::Interrupted;
use super::transport::authority;
use crate::ctx::Ctx;
use crate::oci::Descriptor;

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
        let trusting = self.trusts(&repository.host);
        let shared = Arc::clone(&self.shared);
        Download::new(shared, ctx.clone(), repository, trusting, descriptor, offset).open().await
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
