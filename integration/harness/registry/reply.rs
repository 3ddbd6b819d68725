//! Replies, before anything is done to them on purpose.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use serde_json::json;

use crate::harness::blob::BlobSource;

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A status, headers and a range of a blob for a body.
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: BlobSource,
    /// The part of `body` that is sent.
    pub start: u64,
    pub end: u64,
}

impl Reply {
    pub fn empty(status: StatusCode) -> Self {
        Self::with_body(status, BlobSource::from(Vec::new()))
    }

    pub fn with_body(status: StatusCode, body: BlobSource) -> Self {
        let end = body.len();
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, end.into())]);
        Self { status, headers, body, start: 0, end }
    }

    pub fn json(status: StatusCode, value: &Value) -> Self {
        let body = serde_json::to_vec(value).expect("a value is JSON");
        Self::with_body(status, body.into()).header(CONTENT_TYPE, "application/json")
    }

    /// Source: OCI distribution specification, "Error Codes".
    pub fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::json(status, &json!({"errors": [{"code": code, "message": message, "detail": null}]}))
    }

    pub fn header(mut self, name: HeaderName, value: impl AsRef<str>) -> Self {
        self.headers.insert(name, HeaderValue::from_str(value.as_ref()).expect("a header's value"));
        self
    }

    /// The same headers without the body, as `HEAD` has it.
    pub fn without_body(mut self) -> Self {
        self.end = self.start;
        self
    }
}

/// The error document for a status that was asked for by a fault.
pub(super) fn error_for(status: StatusCode) -> Reply {
    let code = match status.as_u16() {
        401 => "UNAUTHORIZED",
        403 => "DENIED",
        404 => "BLOB_UNKNOWN",
        405 => "UNSUPPORTED",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    Reply::error(status, code, "an injected fault")
}
