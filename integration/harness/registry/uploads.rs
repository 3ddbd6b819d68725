//! Uploads: whole in one POST, POST and PUT, POST and PATCHes and PUT, and mounts.

use std::sync::Arc;

use http::StatusCode;
use http::header::CONTENT_RANGE;
use http::header::HeaderName;
use http::header::LOCATION;
use http::header::RANGE;

use super::access::Right;
use super::body::Aborted;
use super::reply::DOCKER_CONTENT_DIGEST;
use super::reply::Reply;
use super::serve::Exchange;
use super::serve::Shared;
use super::store::Upload;
use super::store::digest_of;
use crate::harness::blob::BlobSource;
use crate::harness::digest::Hasher;

/// `POST …/uploads/`, with the blob in its body if there is a `digest`.
pub(super) async fn start(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    if let (true, Some(digest)) = (exchange.shared.options.single_post, exchange.target.query.get("digest")) {
        let digest = digest.to_owned();
        return receive(exchange, Upload::default(), &digest).await;
    }
    Ok(begin(exchange))
}

/// `POST …/uploads/?mount=<digest>&from=<repository>`: mounts, or begins an upload instead.
pub(super) fn mount(exchange: &Exchange) -> Reply {
    let Exchange { target, shared, .. } = exchange;
    let (digest, from) = (&target.reference, target.query.get("from"));
    let Some(from) = from.filter(|_| shared.options.mounts) else { return begin(exchange) };
    if !shared.access().permits(&exchange.caller, from, Right::Pull) {
        return exchange.challenge();
    }
    if shared.store().mount(&target.repository, digest, from) {
        return created(exchange, digest);
    }
    begin(exchange)
}

/// `PATCH …/uploads/<id>`: more bytes.
pub(super) async fn patch(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    let Some(mut taken) = Taken::take(exchange) else { return Ok(unknown()) };
    let offset = exchange
        .headers
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok()?.split('-').next()?.parse().ok());
    if offset.is_some_and(|offset: u64| offset != taken.upload.len()) {
        let range = range_of(taken.upload.len());
        return Ok(Reply::error(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", "out of order")
            .header(RANGE, range));
    }
    while let Some(piece) = exchange.body.next().await? {
        taken.upload.append(&piece);
    }
    Ok(progress(StatusCode::ACCEPTED, exchange, &taken.id, taken.upload.len()))
}

/// `PUT …/uploads/<id>?digest=<digest>`: the last bytes.
pub(super) async fn put(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    let Some(digest) = exchange.target.query.get("digest").map(str::to_owned) else {
        return Ok(Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no digest"));
    };
    let Some(mut taken) = Taken::take(exchange) else { return Ok(unknown()) };
    let upload = std::mem::take(&mut taken.upload);
    taken.finished = true;
    receive(exchange, upload, &digest).await
}

/// `GET …/uploads/<id>`
pub(super) fn status(exchange: &Exchange) -> Reply {
    match Taken::take(exchange) {
        Some(taken) => progress(StatusCode::NO_CONTENT, exchange, &taken.id, taken.upload.len()),
        None => unknown(),
    }
}

/// `DELETE …/uploads/<id>`
pub(super) fn cancel(exchange: &Exchange) -> Reply {
    match Taken::take(exchange) {
        Some(mut taken) => {
            taken.finished = true;
            Reply::empty(StatusCode::NO_CONTENT)
        }
        None => unknown(),
    }
}

/// Reads the body to its end, and links the blob if its digest holds.
async fn receive(exchange: &mut Exchange, mut upload: Upload, digest: &str) -> Result<Reply, Aborted> {
    let invalid = || Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", digest);
    let Some(mut hasher) = Hasher::for_digest(digest) else { return Ok(invalid()) };
    // What is known already is compared, not stored again: large images cost no disk.
    let known = exchange.shared.store().any_blob(digest).or_else(|| BlobSource::known(digest));
    let source = if let (Some(known), 0) = (known, upload.len()) {
        while let Some(piece) = exchange.body.next().await? {
            hasher.update(&piece);
        }
        (hasher.finish() == digest).then_some(known)
    } else {
        while let Some(piece) = exchange.body.next().await? {
            upload.append(&piece);
        }
        let source = upload.into_source();
        (digest_of(&source, digest).as_deref() == Some(digest)).then_some(source)
    };
    let Some(source) = source else { return Ok(invalid()) };
    exchange.shared.store().put_blob(&exchange.target.repository, digest, source);
    Ok(created(exchange, digest))
}

fn begin(exchange: &Exchange) -> Reply {
    let id = exchange.shared.store().begin_upload(&exchange.target.repository);
    progress(StatusCode::ACCEPTED, exchange, &id, 0)
}

fn created(exchange: &Exchange, digest: &str) -> Reply {
    Reply::empty(StatusCode::CREATED)
        .header(LOCATION, format!("/v2/{}/blobs/{digest}", exchange.target.repository))
        .header(DOCKER_CONTENT_DIGEST, digest)
}

fn progress(status: StatusCode, exchange: &Exchange, id: &str, len: u64) -> Reply {
    // A query in the location is what real registries have, and clients must keep.
    let path = format!("/v2/{}/blobs/uploads/{id}?_state={len}", exchange.target.repository);
    let absolute = exchange.shared.options.absolute_locations;
    let location = if absolute { format!("{}{path}", exchange.shared.url) } else { path };
    Reply::empty(status)
        .header(LOCATION, location)
        .header(RANGE, range_of(len))
        .header(HeaderName::from_static("docker-upload-uuid"), id)
}

/// The last position, inclusive; `0-0` for nothing as well, as docker-registry has it.
fn range_of(len: u64) -> String {
    format!("0-{}", len.saturating_sub(1))
}

fn unknown() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload")
}

/// An upload that this request works on. It goes back with what it has, unless finished.
struct Taken {
    shared: Arc<Shared>,
    repository: String,
    id: String,
    upload: Upload,
    finished: bool,
}

impl Taken {
    fn take(exchange: &Exchange) -> Option<Self> {
        let repository = exchange.target.repository.clone();
        let id = exchange.upload_id()?;
        let upload = exchange.shared.store().take_upload(&repository, &id)?;
        Some(Self { shared: exchange.shared.clone(), repository, id, upload, finished: false })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.finished {
            let upload = std::mem::take(&mut self.upload);
            self.shared.store().return_upload(&self.repository, &self.id, upload);
        }
    }
}
