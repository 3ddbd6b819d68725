//! One request over the wire, redirects included.
//!
//! Invariant: `Authorization` is sent to the scheme, host and port that it was made for. The first
//! redirect that changes one of them drops it for the rest of the chain.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::LOCATION;
use http::header::RETRY_AFTER;
use reqwest::Response;
use reqwest::Url;
use serde::Deserialize;

use super::Place;
use super::Reason;
use super::RegistryError;
use super::client::Shared;
use super::tls::TlsError;
use super::tls::TlsSettings;
use crate::ctx::Ctx;

/// Redirects of one request at most.
const MAX_REDIRECTS: usize = 10;

/// Bytes of an error document that are read, and characters of it that are shown.
const MAX_ERROR_BYTES: usize = 16 << 10;
const MAX_REASON_CHARACTERS: usize = 400;

/// The rest of a reply up to this size is read, so that its connection can be used again.
const MAX_DRAIN: u64 = 64 << 10;

/// A request without a streaming body.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub authorization: Option<HeaderValue>,
    pub body: Option<Bytes>,
    /// Whoever reads the reply verifies it by its digest, so that it may come from anywhere, over plain
    /// HTTP as well.
    pub verified: bool,
    /// The body is a secret: no other address may get it.
    pub confidential: bool,
}

impl Shared {
    /// Sends `request` and follows redirects of requests that allow it; the head of the last reply.
    pub async fn send(
        &self,
        ctx: &Ctx,
        tls: &TlsSettings,
        place: &Arc<Place>,
        request: Outgoing,
    ) -> Result<Response, RegistryError> {
        let Outgoing { mut method, mut url, headers, mut authorization, mut body, verified, confidential } =
            request;
        let mut seen = vec![url.clone()];
        loop {
            let client = self.client_for(tls, place, &url).await?;
            let mut outgoing = client.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(authorization) = &authorization {
                outgoing = outgoing.header(AUTHORIZATION, authorization);
            }
            if let Some(body) = &body {
                outgoing = outgoing.body(body.clone());
            }
            let patience = self.config.patience.stall;
            let response = match ctx.run(tokio::time::timeout(patience, outgoing.send())).await {
                Err(_) => return Err(RegistryError::Cancelled { place: Arc::clone(place) }),
                Ok(Err(_)) => return Err(stalled(place, &url, patience)),
                Ok(Ok(Err(error))) => return Err(unreachable(place, &url, error)),
                Ok(Ok(Ok(response))) => response,
            };
            let Some(next) = redirect(&response) else { return Ok(response) };
            let lost = |address: &Url| RegistryError::RedirectLoop {
                place: Arc::clone(place),
                address: authority(address),
                limit: MAX_REDIRECTS,
            };
            if seen.len() > MAX_REDIRECTS || seen.contains(&next) {
                return Err(lost(&next));
            }
            match response.status() {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
                _ if matches!(method, Method::GET | Method::HEAD) => {}
                StatusCode::SEE_OTHER => (method, body) = (Method::GET, None),
                status => {
                    let problem = format!("status {status} for a {method} is not a redirect that keeps it");
                    return Err(RegistryError::Protocol { place: Arc::clone(place), problem });
                }
            }
            let downgraded = url.scheme() == "https" && next.scheme() != "https";
            if !matches!(next.scheme(), "http" | "https") || (downgraded && !verified) {
                let problem = format!("it redirects to {}://{}", next.scheme(), authority(&next));
                return Err(RegistryError::Protocol { place: Arc::clone(place), problem });
            }
            if next.origin() != url.origin() {
                authorization = None;
                if confidential && body.is_some() {
                    let problem = format!("it redirects a secret to {}", authority(&next));
                    return Err(RegistryError::Protocol { place: Arc::clone(place), problem });
                }
            }
            self.drain(ctx, response).await;
            seen.push(next.clone());
            url = next;
        }
    }

    /// The pool for `url`. `tls` is for the host of `place`: it may be trusted for this request alone. Another one has its
    /// own settings, or else these.
    pub async fn client_for(
        &self,
        tls: &TlsSettings,
        place: &Arc<Place>,
        url: &Url,
    ) -> Result<reqwest::Client, RegistryError> {
        let authority = authority(url);
        let is_meant = place.mirror.is_empty() && place.host == authority;
        let own = if is_meant { None } else { self.endpoints.tls_of(&authority) };
        let client = self.clients.get(own.as_ref().unwrap_or(tls), url).await;
        client.map_err(|cause| RegistryError::Tls { place: Arc::clone(place), cause })
    }

    /// As [`Shared::client_for`], for a server that is no registry.
    pub async fn web_client(&self, url: &Url) -> Result<reqwest::Client, TlsError> {
        let own = self.endpoints.tls_of(&authority(url));
        self.clients.get(&own.unwrap_or_default(), url).await
    }

    /// Reads what is left of a reply that nobody wants, if that is little.
    pub async fn drain(&self, ctx: &Ctx, response: Response) {
        if response.content_length().is_some_and(|length| length <= MAX_DRAIN) {
            let _ = ctx.run(tokio::time::timeout(Duration::from_millis(200), response.bytes())).await;
        }
    }

    /// Reads a whole small reply.
    pub async fn read(
        &self,
        ctx: &Ctx,
        place: &Arc<Place>,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let (url, expected) = (response.url().clone(), response.content_length());
        let too_large = |size| RegistryError::TooLarge { place: Arc::clone(place), size, limit };
        if let Some(size) = expected.filter(|size| *size > limit) {
            return Err(too_large(size));
        }
        let mut bytes = BytesMut::new();
        loop {
            match self.chunk(ctx, place, &mut response).await {
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Err(Interrupted::Error(error)) => return Err(error),
                Err(Interrupted::Broken(cause)) => {
                    return Err(RegistryError::Truncated {
                        place: Arc::clone(place),
                        address: authority(&url),
                        got: bytes.len() as u64,
                        expected: expected.unwrap_or_default(),
                        cause: Arc::new(cause),
                    });
                }
            }
            if bytes.len() as u64 > limit {
                return Err(too_large(bytes.len() as u64));
            }
        }
    }

    /// The next bytes of a reply; `None` at its end. Cancellation safe.
    pub async fn chunk(
        &self,
        ctx: &Ctx,
        place: &Arc<Place>,
        response: &mut Response,
    ) -> Result<Option<Bytes>, Interrupted> {
        let patience = self.config.patience.stall;
        match ctx.run(tokio::time::timeout(patience, response.chunk())).await {
            Err(_) => Err(Interrupted::Error(RegistryError::Cancelled { place: Arc::clone(place) })),
            Ok(Err(_)) => Err(Interrupted::Error(stalled(place, response.url(), patience))),
            Ok(Ok(Err(error))) => Err(Interrupted::Broken(Broken::of(error))),
            Ok(Ok(Ok(chunk))) => Ok(chunk),
        }
    }

    /// The error that a reply's status stands for, with what the registry says about it.
    pub async fn refusal(&self, ctx: &Ctx, place: &Arc<Place>, response: Response) -> RegistryError {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let reason = self.reason(ctx, place, response).await;
        refusal(place, status, retry_after, reason)
    }

    /// What a reply says about an error; empty if it can't be read.
    pub async fn reason(&self, ctx: &Ctx, place: &Arc<Place>, mut response: Response) -> Reason {
        let mut bytes = BytesMut::new();
        let short = ctx.with_cancel(ctx.cancel().clone());
        let read = async {
            while bytes.len() < MAX_ERROR_BYTES
                && let Ok(Some(chunk)) = self.chunk(&short, place, &mut response).await
            {
                bytes.extend_from_slice(&chunk);
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
        bytes.truncate(MAX_ERROR_BYTES);
        Reason(explain(&bytes))
    }
}

/// Why a reply's body ended before its end.
#[derive(Debug)]
pub(super) enum Interrupted {
    Broken(Broken),
    Error(RegistryError),
}

/// A connection failed. Holds the texts of all causes, without the URL, which may have a signature.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    text: String,
    pub kind: Breach,
}

/// What a failed connection tells of the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Breach {
    /// What answered does not speak TLS, or nothing listens at the default port for it.
    NotTls,
    /// Its name stands for no address.
    NoSuchName,
    /// Nobody listens.
    Refused,
    Other,
}

/// How the resolvers of glibc and musl say that a name does not exist, and not that they could not find out.
const NO_SUCH_NAME: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
];

impl Broken {
    pub fn of(error: reqwest::Error) -> Broken {
        let error = error.without_url();
        let (mut texts, mut kind) = (Vec::<String>::new(), Breach::Other);
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !texts.iter().any(|known| known.contains(&text)) {
                texts.push(text);
            }
            if kind == Breach::Other {
                kind = Breach::of(error);
            }
            cause = error.source();
        }
        Broken { text: texts.join(": "), kind }
    }

    /// What the cause of an unreachable registry tells.
    pub fn kind_of(error: &RegistryError) -> Breach {
        let RegistryError::Unreachable { cause, .. } = error else { return Breach::Other };
        cause.downcast_ref::<Broken>().map_or(Breach::Other, |broken| broken.kind)
    }
}

impl Breach {
    fn of(error: &(dyn Error + 'static)) -> Breach {
        if is_not_tls(error) {
            return Breach::NotTls;
        }
        match error.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => Breach::Refused,
            Some(error) if NO_SUCH_NAME.iter().any(|text| error.to_string().ends_with(text)) => {
                Breach::NoSuchName
            }
            _ => Breach::Other,
        }
    }
}

/// True for what a TLS client reads from somebody who speaks something else.
fn is_not_tls(error: &(dyn Error + 'static)) -> bool {
    match (error.downcast_ref::<rustls::Error>(), error.downcast_ref::<io::Error>()) {
        (Some(error), _) => matches!(error, rustls::Error::InvalidMessage(_)),
        // The error inside is not among the sources of an I/O error.
        (None, Some(error)) => error.get_ref().is_some_and(|inner| is_not_tls(inner)),
        (None, None) => false,
    }
}

#[cfg(test)]
impl Broken {
    pub fn for_test(kind: Breach) -> Broken {
        Broken { text: "broken".to_owned(), kind }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Broken {}

pub(super) fn unreachable(place: &Arc<Place>, url: &Url, error: reqwest::Error) -> RegistryError {
    let (place, address) = (Arc::clone(place), authority(url));
    RegistryError::Unreachable { place, address, cause: Arc::new(Broken::of(error)) }
}

fn stalled(place: &Arc<Place>, url: &Url, after: Duration) -> RegistryError {
    RegistryError::Stalled { place: Arc::clone(place), address: authority(url), after }
}

/// Host and port, without anything that may be secret.
pub(super) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

/// Where a reply sends us on.
fn redirect(response: &Response) -> Option<Url> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => location(response),
        _ => None,
    }
}

/// The `Location` of a reply, which may be relative.
pub(super) fn location(response: &Response) -> Option<Url> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(location).ok()?;
    url.has_host().then_some(url)
}

/// `Retry-After` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

pub(super) fn refusal(
    place: &Arc<Place>,
    status: StatusCode,
    retry_after: Option<Duration>,
    reason: Reason,
) -> RegistryError {
    let place = Arc::clone(place);
    match status.as_u16() {
        404 | 410 => RegistryError::NotFound { place, reason },
        401 => RegistryError::Unauthorized { place, reason },
        403 => RegistryError::Forbidden { place, reason },
        429 => RegistryError::RateLimited { place, retry_after, reason },
        status @ (408 | 425 | 500..=599) => RegistryError::Server { place, status, retry_after, reason },
        status => RegistryError::Protocol { place, problem: format!("status {status}{reason}") },
    }
}

/// The errors of an error document (distribution specification, "Error Codes"), else its first line.
fn explain(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Entry>,
        /// Token servers have only this, or OAuth2's two fields.
        #[serde(default)]
        details: String,
        #[serde(default)]
        error: String,
        #[serde(default)]
        error_description: String,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Document>(bytes) {
        Ok(document) => {
            let entries = document.errors.into_iter().map(|e| [e.code, e.message]);
            let all = entries
                .chain([[document.error, document.error_description], [document.details, String::new()]]);
            let text = |[code, message]: [String; 2]| match (code.is_empty(), message.is_empty()) {
                (true, true) => None,
                (false, false) => Some(format!("{code}: {message}")),
                _ => Some(code + &message),
            };
            all.filter_map(text).collect::<Vec<_>>().join(", ")
        }
        Err(_) => {
            let text = String::from_utf8_lossy(bytes);
            let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            // A page for people says nothing in its first line.
            if line.starts_with('<') || line.starts_with('{') { String::new() } else { line.to_owned() }
        }
    };
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_documents_are_told_in_short() {
        for (document, reason) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#,
                "MANIFEST_UNKNOWN: manifest unknown",
            ),
            (r#"{"errors":[{"code":"A"},{"message":"b"}]}"#, "A, b"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"error":"invalid_grant","error_description":"no"}"#, "invalid_grant: no"),
            ("\n  404 page not found\nmore\n", "404 page not found"),
            ("<html>…", ""),
            ("", ""),
        ] {
            assert_eq!(explain(document.as_bytes()), reason);
        }
        assert_eq!(explain(&[b'x'; 5000]).len(), MAX_REASON_CHARACTERS);
    }

    #[test]
    fn a_resolver_says_whether_it_knows_that_there_is_no_such_name() {
        let of = |text: &str| {
            Breach::of(&io::Error::other(format!("failed to lookup address information: {text}")))
        };
        assert_eq!(of("Name or service not known"), Breach::NoSuchName);
        assert_eq!(of("Name does not resolve"), Breach::NoSuchName);
        assert_eq!(of("Temporary failure in name resolution"), Breach::Other);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_refuses() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url: Url = format!("http://127.0.0.1:{port}/").parse().unwrap();
        let clients = super::super::tls::Clients::new(Default::default(), crate::task::Tasks::new());
        let client = clients.get(&TlsSettings::default(), &url).await.unwrap();
        assert_eq!(Broken::of(client.get(url).send().await.unwrap_err()).kind, Breach::Refused);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        let future = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(after(&future).is_some_and(|d| (90..=100).contains(&d.as_secs())));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }

    proptest! {
        #[test]
        fn no_error_document_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(explain(&bytes).chars().count() <= MAX_REASON_CHARACTERS);
        }
    }
}
