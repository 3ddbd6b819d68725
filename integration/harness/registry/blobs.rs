//! Reading and deleting blobs, at the registry and at the host that it redirects to.

use http::HeaderMap;
use http::StatusCode;
use http::header::ACCEPT_RANGES;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_RANGE;
use http::header::CONTENT_TYPE;
use http::header::LOCATION;
use http::header::RANGE;

use super::fault::How;
use super::journal::Listener;
use super::point::Op;
use super::reply::DOCKER_CONTENT_DIGEST;
use super::reply::Reply;
use super::serve::Exchange;
use crate::harness::blob::BlobSource;

pub(super) fn read(exchange: &Exchange) -> Reply {
    let digest = &exchange.target.reference;
    let repository = &exchange.target.repository;
    let found = exchange.shared.store().blob(repository, digest);
    let Some(source) = found else { return unknown(digest) };
    if exchange.connection.listener == Listener::Cdn {
        let signature = exchange.target.query.get("signature").unwrap_or_default();
        if exchange.headers.contains_key(http::header::AUTHORIZATION) {
            return Reply::error(StatusCode::BAD_REQUEST, "DENIED", "two ways of authorization");
        }
        if !exchange.shared.is_signature(signature) {
            return Reply::error(StatusCode::FORBIDDEN, "DENIED", "the signature is not one of ours");
        }
    } else if let Some(cdn) = &exchange.shared.cdn_url
        && exchange.target.op == Op::BlobGet
    {
        let location = format!("{cdn}/cdn/{repository}/blobs/{digest}?signature={}", exchange.shared.sign());
        return Reply::empty(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, location);
    }
    let ignore_range = exchange.plan.fault == Some(How::IgnoreRange) || !exchange.shared.options.ranges;
    let reply = if ignore_range { whole(source) } else { ranged(source, &exchange.headers) };
    reply
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(DOCKER_CONTENT_DIGEST, digest)
        .header(ACCEPT_RANGES, if exchange.shared.options.ranges { "bytes" } else { "none" })
}

pub(super) fn delete(exchange: &Exchange) -> Reply {
    let target = &exchange.target;
    if exchange.shared.store().delete_blob(&target.repository, &target.reference) {
        Reply::empty(StatusCode::ACCEPTED)
    } else {
        unknown(&target.reference)
    }
}

fn unknown(digest: &str) -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", digest)
}

fn whole(source: BlobSource) -> Reply {
    Reply::with_body(StatusCode::OK, source)
}

/// RFC 9110, 14.2: one satisfiable byte range gets 206, an unsatisfiable one 416; anything else is
/// ignored.
fn ranged(source: BlobSource, headers: &HeaderMap) -> Reply {
    let len = source.len();
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let Some((first, last)) = range.and_then(|range| parse_range(range, len)) else { return whole(source) };
    if first >= len || first > last {
        return Reply::error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", range.unwrap_or_default())
            .header(CONTENT_RANGE, format!("bytes */{len}"));
    }
    let mut reply = Reply::with_body(StatusCode::PARTIAL_CONTENT, source);
    (reply.start, reply.end) = (first, last + 1);
    reply.headers.insert(CONTENT_LENGTH, (reply.end - reply.start).into());
    reply.header(CONTENT_RANGE, format!("bytes {first}-{last}/{len}"))
}

/// First and last position of `bytes=first-[last]` or `bytes=-suffix`.
fn parse_range(range: &str, len: u64) -> Option<(u64, u64)> {
    let end = len.saturating_sub(1);
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", suffix) => {
            let suffix: u64 = suffix.parse().ok()?;
            if suffix == 0 { Some((len, end)) } else { Some((len.saturating_sub(suffix), end)) }
        }
        (first, "") => Some((first.parse().ok()?, end)),
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last.min(end)))
        }
    }
}
