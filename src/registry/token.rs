//! [`Tokens`]: bearer tokens, each fetched once for all that wait for it.
//!
//! Invariant: a token is found only by the [`IdentityId`] that it was obtained with. Sharing a token
//! therefore takes the same secret, or the proof of holding it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::Identity;
use super::IdentityId;
use super::Place;
use super::Proof;
use super::RegistryError;
use super::client::Shared;
use super::endpoint::Endpoint;
use super::lanes::Lane;
use super::scope::Scopes;
use super::transport::Outgoing;
use super::transport::authority;
use crate::ctx::Ctx;
use crate::session::TokenRequest;
use crate::task::Flights;

/// What token servers and clients know us as; the name that access rules in the field are written for.
const CLIENT_ID: &str = "buildkit-client";

/// The specification's default, when a token server does not say how long a token lives.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

const MAX_TOKEN_ANSWER: u64 = 1 << 20;

/// Tokens kept at most; the ones that end first go first.
const MAX_TOKENS: usize = 4096;

/// For whom a token is, apart from its scopes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Audience {
    authority: String,
    realm: String,
    service: String,
    identity: IdentityId,
}

#[derive(Clone)]
struct Token {
    /// The whole header.
    authorization: HeaderValue,
    expires: Instant,
}

type Fetched = Result<Token, RegistryError>;

#[derive(Default)]
pub(super) struct Tokens {
    held: Mutex<HashMap<Audience, Vec<(Scopes, Token)>>>,
    flights: Flights<(Audience, Scopes), (), Fetched>,
}

/// What a token is needed for.
pub(super) struct Need<'a> {
    pub endpoint: &'a Arc<Endpoint>,
    pub realm: &'a str,
    pub service: &'a str,
    pub identity: &'a Identity,
    pub scopes: &'a Scopes,
    pub place: &'a Arc<Place>,
}

impl Need<'_> {
    fn audience(&self) -> Audience {
        Audience {
            authority: self.endpoint.authority().to_owned(),
            realm: self.realm.to_owned(),
            service: self.service.to_owned(),
            identity: self.identity.id,
        }
    }
}

impl Tokens {
    fn find(&self, audience: &Audience, scopes: &Scopes) -> Option<HeaderValue> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let tokens = held.get(audience)?.iter();
        let mut fit = tokens.filter(|(own, token)| token.expires > now && own.cover(scopes));
        fit.next().map(|(_, token)| token.authorization.clone())
    }

    fn keep(&self, audience: Audience, scopes: Scopes, token: Token) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if held.values().map(Vec::len).sum::<usize>() >= MAX_TOKENS {
            let mut ends: Vec<Instant> = held.values().flatten().map(|(_, token)| token.expires).collect();
            ends.sort();
            let limit = ends[ends.len() / 2].max(now);
            held.retain(|_, tokens| {
                tokens.retain(|(_, token)| token.expires > limit);
                !tokens.is_empty()
            });
        }
        let tokens = held.entry(audience).or_default();
        tokens.retain(|(own, token)| *own != scopes && token.expires > now);
        tokens.push((scopes, token));
    }

    /// Drops a token that was refused, whatever its scopes.
    pub fn refuse(&self, authorization: &HeaderValue) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for tokens in held.values_mut() {
            tokens.retain(|(_, token)| token.authorization != authorization);
        }
    }
}

impl Shared {
    /// The `Authorization` header for `need`: one held, or one fetched together with all that wait for
    /// the same. Cancellation safe.
    pub async fn token(self: &Arc<Self>, ctx: &Ctx, need: Need<'_>) -> Result<HeaderValue, RegistryError> {
        if let Proof::AccessToken(token) = &need.identity.proof {
            return bearer(token.reveal(), need.place);
        }
        let audience = need.audience();
        loop {
            if let Some(authorization) = self.tokens.find(&audience, need.scopes) {
                return Ok(authorization);
            }
            let started = AtomicBool::new(false);
            let start = |cancel| {
                started.store(true, Ordering::Relaxed);
                let (shared, audience, scopes) = (Arc::clone(self), audience.clone(), need.scopes.clone());
                let (endpoint, place) = (Arc::clone(need.endpoint), Arc::clone(need.place));
                let proof = need.identity.proof.clone();
                let work = async move {
                    let ctx = Ctx::background().with_cancel(cancel);
                    let token =
                        shared.fetch_token(&ctx, &endpoint, &audience, &proof, &scopes, &place).await?;
                    shared.tokens.keep(audience, scopes, token.clone());
                    Ok(token)
                };
                (Arc::new(()), work)
            };
            let key = (audience.clone(), need.scopes.clone());
            let flight = self.tokens.flights.join(&self.tasks, key, start, |()| ());
            let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(need.place) };
            let result = ctx.run(flight).await.map_err(cancelled)?.unwrap_or_else(|failed| {
                Err(RegistryError::Protocol { place: Arc::clone(need.place), problem: failed.to_string() })
            });
            match result {
                Ok(token) => return Ok(token.authorization),
                // The one that fetched it asked with its own session, which may have ended.
                Err(RegistryError::Credentials { .. } | RegistryError::Cancelled { .. })
                    if !started.load(Ordering::Relaxed) && ctx.check().is_ok() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn fetch_token(
        &self,
        ctx: &Ctx,
        endpoint: &Endpoint,
        audience: &Audience,
        proof: &Proof,
        scopes: &Scopes,
        place: &Arc<Place>,
    ) -> Fetched {
        let (token, life) = match proof {
            Proof::Delegated(fetcher) => {
                let request = TokenRequest {
                    host: audience.authority.clone(),
                    realm: audience.realm.clone(),
                    service: audience.service.clone(),
                    scopes: scopes.texts(),
                };
                let credentials = |cause| RegistryError::Credentials { place: Arc::clone(place), cause };
                let fetched = ctx.run(fetcher.fetch_token(&request)).await;
                let fetched = fetched.map_err(|_| RegistryError::Cancelled { place: Arc::clone(place) })?;
                let fetched = fetched.map_err(credentials)?;
                (fetched.token.reveal().to_owned(), fetched.expires_in)
            }
            proof => self.request_token(ctx, endpoint, audience, proof, scopes, place).await?,
        };
        // Our own clock counts from the reply, and a tenth is kept for the way of the last request.
        let life = if life.is_zero() { DEFAULT_LIFE } else { life };
        Ok(Token { authorization: bearer(&token, place)?, expires: Instant::now() + life.mul_f32(0.9) })
    }

    /// Asks the token server (Docker token specification; its OAuth2 form for refresh tokens, and for
    /// passwords where the server does not know the other).
    async fn request_token(
        &self,
        ctx: &Ctx,
        endpoint: &Endpoint,
        audience: &Audience,
        proof: &Proof,
        scopes: &Scopes,
        place: &Arc<Place>,
    ) -> Result<(String, Duration), RegistryError> {
        let realm = realm(endpoint, &audience.realm, place)?;
        let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(place) };
        let _pass = self.lanes.enter(ctx, &authority(&realm), Lane::Metadata).await.map_err(cancelled)?;
        let get = |authorization| {
            let mut url = realm.clone();
            {
                let mut query = url.query_pairs_mut();
                if !audience.service.is_empty() {
                    query.append_pair("service", &audience.service);
                }
                for scope in scopes.texts() {
                    query.append_pair("scope", &scope);
                }
                if let Proof::Password { username, .. } = proof {
                    query.append_pair("account", username);
                }
                query.append_pair("client_id", CLIENT_ID);
            }
            outgoing(Method::GET, url, authorization, None)
        };
        let post = |grant: &[(&str, &str)]| {
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("service", &audience.service)
                .append_pair("client_id", CLIENT_ID)
                .append_pair("scope", &scopes.texts().join(" "))
                .extend_pairs(grant)
                .finish();
            outgoing(Method::POST, realm.clone(), None, Some(Bytes::from(form)))
        };
        let response = match proof {
            Proof::RefreshToken(token) => {
                let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                self.send(ctx, endpoint.tls(), place, post(&grant)).await?
            }
            Proof::Password { username, password } => {
                let basic = basic(username, password.reveal());
                let response = self.send(ctx, endpoint.tls(), place, get(Some(basic))).await?;
                match response.status() {
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNAUTHORIZED => {
                        self.drain(ctx, response).await;
                        let grant = [
                            ("grant_type", "password"),
                            ("username", username.as_str()),
                            ("password", password.reveal()),
                        ];
                        self.send(ctx, endpoint.tls(), place, post(&grant)).await?
                    }
                    _ => response,
                }
            }
            _ => self.send(ctx, endpoint.tls(), place, get(None)).await?,
        };
        if !response.status().is_success() {
            return Err(match self.refusal(ctx, place, response).await {
                // The token server says that it does not know us, not that the content is missing.
                RegistryError::NotFound { place, reason } => RegistryError::Protocol {
                    place,
                    problem: format!("its token server is not there{reason}"),
                },
                error => error,
            });
        }
        let bytes = self.read(ctx, place, response, MAX_TOKEN_ANSWER).await?;
        parse_answer(&bytes).map_err(|problem| RegistryError::Garbled { place: Arc::clone(place), problem })
    }
}

fn outgoing(method: Method, url: Url, authorization: Option<HeaderValue>, form: Option<Bytes>) -> Outgoing {
    let mut headers = HeaderMap::new();
    if form.is_some() {
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, kind);
    }
    Outgoing { method, url, headers, authorization, body: form, verified: false, confidential: true }
}

/// The token server's URL. Secrets go over plain HTTP only where the registry itself is reached so.
fn realm(endpoint: &Endpoint, realm: &str, place: &Arc<Place>) -> Result<Url, RegistryError> {
    let protocol = |problem| RegistryError::Protocol { place: Arc::clone(place), problem };
    let url: Url = realm
        .parse()
        .map_err(|_| protocol(format!("its token server {realm:.200?} is not an absolute URL")))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.allows_plain() => Ok(url),
        _ => Err(protocol(format!(
            "its token server {}://{} is not reached over TLS",
            url.scheme(),
            authority(&url)
        ))),
    }
}

fn parse_answer(bytes: &[u8]) -> Result<(String, Duration), String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        /// A number; some servers write it as text.
        #[serde(default)]
        expires_in: Option<serde_json::Value>,
    }
    let answer: Answer =
        serde_json::from_slice(bytes).map_err(|error| format!("the token is not in valid JSON: {error}"))?;
    let some = |text: Option<String>| text.filter(|t| !t.is_empty());
    let token =
        some(answer.access_token).or_else(|| some(answer.token)).ok_or("there is no token in the answer")?;
    let seconds = match answer.expires_in {
        Some(serde_json::Value::String(text)) => text.parse().unwrap_or(0.0),
        Some(value) => value.as_f64().unwrap_or(0.0),
        None => 0.0,
    };
    // A year is for ever, and a float out of range would panic below.
    Ok((token, Duration::from_secs_f64(seconds.clamp(0.0, 31_536_000.0))))
}

pub(super) fn basic(username: &str, password: &str) -> HeaderValue {
    let value = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let mut value = HeaderValue::from_str(&value).expect("base64 is a header's value");
    value.set_sensitive(true);
    value
}

fn bearer(token: &str, place: &Arc<Place>) -> Result<HeaderValue, RegistryError> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| RegistryError::Protocol {
            place: Arc::clone(place),
            problem: "the token has characters that a header can't have".to_owned(),
        })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience(identity: &str) -> Audience {
        Audience {
            authority: "r".into(),
            realm: "https://r/t".into(),
            service: "s".into(),
            identity: IdentityId::of("password", &[identity.as_bytes()]),
        }
    }

    fn token(text: &str, life: u64) -> Token {
        let authorization = HeaderValue::from_str(text).unwrap();
        Token { authorization, expires: Instant::now() + Duration::from_secs(life) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_serves_its_identity_and_what_its_scopes_cover_until_it_ends() {
        let tokens = Tokens::default();
        tokens.keep(audience("a"), Scopes::push("x"), token("one", 60));
        let find =
            |who: &str, scopes| tokens.find(&audience(who), &scopes).map(|t| t.to_str().unwrap().to_owned());
        assert_eq!(find("a", Scopes::push("x")).as_deref(), Some("one"));
        assert_eq!(find("a", Scopes::pull("x")).as_deref(), Some("one"));
        assert_eq!(find("a", Scopes::pull("y")), None);
        assert_eq!(find("b", Scopes::pull("x")), None, "another identity");
        let elsewhere = Audience { authority: "r2".into(), ..audience("a") };
        assert_eq!(tokens.find(&elsewhere, &Scopes::pull("x")), None, "another host");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(find("a", Scopes::pull("x")), None, "it ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_dropped_and_a_new_one_takes_its_place() {
        let tokens = Tokens::default();
        tokens.keep(audience("a"), Scopes::pull("x"), token("one", 60));
        tokens.refuse(&HeaderValue::from_static("one"));
        assert_eq!(tokens.find(&audience("a"), &Scopes::pull("x")), None);
        tokens.keep(audience("a"), Scopes::pull("x"), token("two", 60));
        tokens.keep(audience("a"), Scopes::pull("x"), token("three", 60));
        assert_eq!(tokens.find(&audience("a"), &Scopes::pull("x")).unwrap(), "three");
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_stays_within_its_bound() {
        let tokens = Tokens::default();
        for n in 0..3 * MAX_TOKENS {
            tokens.keep(audience(&n.to_string()), Scopes::pull("x"), token("t", n as u64));
        }
        assert!(tokens.held.lock().unwrap().values().map(Vec::len).sum::<usize>() <= MAX_TOKENS);
        let newest = audience(&(3 * MAX_TOKENS - 1).to_string());
        assert!(tokens.find(&newest, &Scopes::pull("x")).is_some());
    }

    #[test]
    fn secrets_go_to_a_token_server_over_tls_unless_the_registry_itself_is_plain() {
        let place =
            super::super::client::place(&super::super::Repository::new("r", "a"), String::new(), None);
        let allowed = |host: &str, url: &str| realm(&Endpoint::for_test(host, false), url, &place).is_ok();
        assert!(allowed("r.example", "https://auth.example/token"));
        assert!(allowed("localhost:5000", "http://localhost:5000/token"));
        for url in ["http://auth.example/token", "http://r.example/token", "/token", "file:///etc/passwd", ""]
        {
            assert!(!allowed("r.example", url), "{url}");
        }
        assert!(!allowed("localhost:5000", "ftp://localhost/token"));
    }

    #[test]
    fn answers_of_token_servers_are_read() {
        let seconds = Duration::from_secs;
        for (answer, read) in [
            (r#"{"token":"t"}"#, Ok(("t", seconds(0)))),
            (r#"{"token":"","access_token":"a","expires_in":300}"#, Ok(("a", seconds(300)))),
            (r#"{"token":"t","expires_in":"90","issued_at":"x"}"#, Ok(("t", seconds(90)))),
            (r#"{"token":"t","expires_in":-5}"#, Ok(("t", seconds(0)))),
            (r#"{"token":"t","expires_in":1e300}"#, Ok(("t", seconds(31_536_000)))),
            (r#"{"expires_in":5}"#, Err("there is no token")),
            ("[]x", Err("not in valid JSON")),
        ] {
            match (parse_answer(answer.as_bytes()), read) {
                (Ok((token, life)), Ok(read)) => assert_eq!((token.as_str(), life), read),
                (Err(problem), Err(part)) => assert!(problem.contains(part), "{problem}"),
                (got, _) => panic!("{answer}: {got:?}"),
            }
        }
    }
}
