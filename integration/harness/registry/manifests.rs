//! Manifests, tags and referrers.

use http::StatusCode;
use http::header::CONTENT_TYPE;
use http::header::ETAG;
use http::header::HeaderName;
use http::header::LINK;
use http::header::LOCATION;
use serde_json::Value;
use serde_json::json;

use super::body::Aborted;
use super::reply::DOCKER_CONTENT_DIGEST;
use super::reply::Reply;
use super::serve::Exchange;
use super::store::StoredManifest;
use super::store::digest_of;
use crate::harness::blob::BlobSource;
use crate::harness::digest::sha256;
use crate::harness::image::OCI_INDEX;

/// What Docker Hub and docker-registry take at most.
const MANIFEST_LIMIT: usize = 4 << 20;

pub(super) fn read(exchange: &Exchange) -> Reply {
    let target = &exchange.target;
    let store = exchange.shared.store();
    let Some(manifest) = store.manifest(&target.repository, &target.reference) else {
        return unknown(&target.reference);
    };
    Reply::with_body(StatusCode::OK, BlobSource::Bytes(manifest.bytes.clone()))
        .header(CONTENT_TYPE, &manifest.media_type)
        .header(DOCKER_CONTENT_DIGEST, &manifest.digest)
        .header(ETAG, format!("\"{}\"", manifest.digest))
}

pub(super) async fn put(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    let Some(bytes) = exchange.body.collect(MANIFEST_LIMIT).await? else {
        return Ok(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the manifest is too long"));
    };
    let target = &exchange.target;
    let invalid = |why: &str| Ok(Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why));
    let media_type = exchange.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let Some(media_type) = media_type else { return invalid("no Content-Type") };
    let Ok(manifest @ Value::Object(_)) = serde_json::from_slice::<Value>(&bytes) else {
        return invalid("not a JSON object");
    };
    if manifest["mediaType"].as_str().is_some_and(|inner| inner != media_type) {
        return invalid("mediaType and Content-Type differ");
    }
    let by_digest = target.reference.contains(':');
    let digest = if by_digest {
        let computed = digest_of(&BlobSource::Bytes(bytes.clone()), &target.reference);
        if computed.as_ref() != Some(&target.reference) {
            return Ok(Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &target.reference));
        }
        target.reference.clone()
    } else {
        sha256(&bytes)
    };
    let mut store = exchange.shared.store();
    let missing = store.missing(&target.repository, &manifest);
    if !missing.is_empty() {
        let missing = missing.join(" ");
        return Ok(Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", &missing));
    }
    let stored = StoredManifest { digest: digest.clone(), media_type: media_type.to_owned(), bytes };
    store.put_manifest(&target.repository, Some(target.reference.as_str()).filter(|_| !by_digest), stored);
    drop(store);
    let mut reply = Reply::empty(StatusCode::CREATED)
        .header(LOCATION, format!("/v2/{}/manifests/{digest}", target.repository))
        .header(DOCKER_CONTENT_DIGEST, &digest);
    if let (true, Some(subject)) = (exchange.shared.options.referrers, manifest["subject"]["digest"].as_str())
    {
        reply = reply.header(HeaderName::from_static("oci-subject"), subject);
    }
    Ok(reply)
}

pub(super) fn delete(exchange: &Exchange) -> Reply {
    let target = &exchange.target;
    if exchange.shared.store().delete_manifest(&target.repository, &target.reference) {
        Reply::empty(StatusCode::ACCEPTED)
    } else {
        unknown(&target.reference)
    }
}

pub(super) fn referrers(exchange: &Exchange) -> Reply {
    let target = &exchange.target;
    if !exchange.shared.options.referrers {
        return Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no referrers here");
    }
    let wanted = target.query.get("artifactType");
    let store = exchange.shared.store();
    let mut entries = Vec::new();
    for stored in store.manifests(&target.repository) {
        let manifest = stored.json();
        if manifest["subject"]["digest"] != target.reference.as_str() {
            continue;
        }
        let artifact_type = manifest["artifactType"].as_str().or(manifest["config"]["mediaType"].as_str());
        if wanted.is_some() && wanted != artifact_type {
            continue;
        }
        let mut entry = json!({
            "mediaType": stored.media_type,
            "digest": stored.digest,
            "size": stored.bytes.len(),
            "artifactType": artifact_type,
        });
        if !manifest["annotations"].is_null() {
            entry["annotations"] = manifest["annotations"].clone();
        }
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let reply = Reply::json(StatusCode::OK, &index).header(CONTENT_TYPE, OCI_INDEX);
    match wanted {
        Some(_) => reply.header(HeaderName::from_static("oci-filters-applied"), "artifactType"),
        None => reply,
    }
}

pub(super) fn tags(exchange: &Exchange) -> Reply {
    let target = &exchange.target;
    let Some(all) = exchange.shared.store().tags(&target.repository) else {
        return Reply::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &target.repository);
    };
    let after = target.query.get("last").unwrap_or_default();
    let limit = target.query.get("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let mut rest = all.into_iter().filter(|tag| tag.as_str() > after);
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    let reply = Reply::json(StatusCode::OK, &json!({"name": target.repository, "tags": page}));
    match page.last() {
        Some(last) if more => {
            let next = format!("</v2/{}/tags/list?n={limit}&last={last}>; rel=\"next\"", target.repository);
            reply.header(LINK, next)
        }
        _ => reply,
    }
}

fn unknown(reference: &str) -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", reference)
}
