//! A request to a web server, redirects included.

use std::time::Duration;
use std::time::SystemTime;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::IF_NONE_MATCH;
use http::header::LOCATION;
use reqwest::Response;
use reqwest::Url;

use super::HttpError;
use super::shown;
use crate::ctx::Ctx;
use crate::ops::op::HttpSource;
use crate::registry::RegistryClient;
use crate::session::SecretBytes;
use crate::session::Session;
use crate::session::SessionError;

const MAX_REDIRECTS: usize = 10;
/// A server that sends nothing for so long is gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Secrets that clients may have for a host.
const HEADER_SECRET: &str = "HTTP_AUTH_HEADER_";
const TOKEN_SECRET: &str = "HTTP_AUTH_TOKEN_";

/// What a server tells a file's versions apart by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Validators {
    /// In its strong form.
    pub(super) etag: Option<String>,
    pub(super) modified: Option<SystemTime>,
}

/// The head of a reply.
#[derive(Debug)]
pub(super) struct Answer(pub(super) Response);

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.0.status()
    }

    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok().filter(|text| !text.is_empty())
    }
}

/// The time that a header says, in any of the three forms of RFC 9110. Some servers call GMT by its other name.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let parse = |text: &str| httpdate::parse_http_date(text).ok();
    parse(text).or_else(|| parse(&format!("{}GMT", text.strip_suffix("UTC")?)))
}

/// An ETag for a comparison in which weak ones count as well.
pub(super) fn strong(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).to_owned()
}

/// The headers that the source asks for, and those of the client's secrets.
pub(super) async fn headers(ctx: &Ctx, source: &HttpSource, url: &Url) -> Result<HeaderMap, HttpError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &source.headers {
        let invalid =
            || HttpError::Address { address: format!("{} with header {name:?}", shown(&source.url)) };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| invalid())?);
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let (secret, prefix) = match &source.auth_header_secret {
        Some(name) => {
            let secret = secret(ctx, name).await;
            let missing = |reason: String| HttpError::Secret { name: name.clone(), reason };
            let secret = secret.map_err(|error| missing(error.to_string()))?;
            (Some(secret.ok_or_else(|| missing("no client has it".to_owned()))?), "")
        }
        None if ctx.sessions().is_empty() => (None, ""),
        // A token goes before a header.
        None => match secret(ctx, &format!("{TOKEN_SECRET}{host}")).await {
            Ok(Some(token)) => (Some(token), "Bearer "),
            _ => (secret(ctx, &format!("{HEADER_SECRET}{host}")).await.unwrap_or_default(), ""),
        },
    };
    if let Some(secret) = secret {
        let value = [prefix.as_bytes(), secret.reveal()].concat();
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| HttpError::Secret {
            name: source.auth_header_secret.clone().unwrap_or_else(|| format!("of {host}")),
            reason: "it can't be the value of a header".to_owned(),
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// The secret of the first session that has it.
async fn secret(ctx: &Ctx, name: &str) -> Result<Option<SecretBytes>, SessionError> {
    // A session without it is no answer yet, so it counts as a failure until the last one.
    enum Not {
        There,
        Asked(SessionError),
    }
    impl From<SessionError> for Not {
        fn from(error: SessionError) -> Not {
            Not::Asked(error)
        }
    }
    let found =
        ctx.sessions().any(async |session: Session| session.secret(name).await?.ok_or(Not::There)).await;
    match found {
        Ok(secret) => Ok(Some(secret)),
        Err(Not::There) => Ok(None),
        Err(Not::Asked(error)) => Err(error),
    }
}

/// Sends a request and follows redirects. `known` are ETags whose files need not be sent.
pub(super) async fn send(
    registry: &RegistryClient,
    ctx: &Ctx,
    method: Method,
    url: &Url,
    headers: &HeaderMap,
    known: &[&str],
) -> Result<Answer, HttpError> {
    let (mut headers, mut at) = (headers.clone(), url.clone());
    if let Ok(known) = HeaderValue::from_str(&known.join(", "))
        && !known.is_empty()
    {
        headers.insert(IF_NONE_MATCH, known);
    }
    let unreachable = |reason: String| HttpError::Unreachable { address: shown(url.as_str()), reason };
    for _ in 0..=MAX_REDIRECTS {
        let client = registry.web_client(&at).await?;
        let request = client.request(method.clone(), at.clone()).headers(headers.clone()).send();
        let response = ctx
            .run(tokio::time::timeout(PATIENCE, request))
            .await?
            .map_err(|_| unreachable(format!("no answer within {PATIENCE:?}")))?
            .map_err(|error| unreachable(root_cause(&error.without_url())))?;
        let location = response.status().is_redirection().then(|| response.headers().get(LOCATION)).flatten();
        let Some(location) = location else { return Ok(Answer(response)) };
        let next = location.to_str().ok().and_then(|text| at.join(text).ok());
        let next = next.filter(|next| matches!(next.scheme(), "http" | "https")).ok_or_else(|| {
            let to = shown(&String::from_utf8_lossy(location.as_bytes()));
            HttpError::Redirect { address: shown(url.as_str()), to, limit: MAX_REDIRECTS }
        })?;
        if next.origin() != at.origin() {
            headers.remove(AUTHORIZATION);
        }
        at = next;
    }
    let (address, to) = (shown(url.as_str()), shown(at.as_str()));
    Err(HttpError::Redirect { address, to, limit: MAX_REDIRECTS })
}

/// An error with what it was caused by.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_in_each_form_and_by_each_name_of_its_zone() {
        let expected = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sunday, 06-Nov-94 08:49:37 UTC",
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
        for text in ["", "UTC", "yesterday UTC", "Sun, 06 Nov 1994 08:49:37 CET"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
