//! What all clones of a client share, and one request of it from the first try to the answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use reqwest::Response;
use tokio::time::Instant;

use super::CredentialSource;
use super::Place;
use super::RegistryConfig;
use super::RegistryError;
use super::Repository;
use super::auth::Auth;
use super::auth::Refusals;
use super::auth::Verdict;
use super::begun::Begun;
use super::begun::UploadSession;
use super::endpoint::Endpoint;
use super::endpoint::Endpoints;
use super::endpoint::Purpose;
use super::lanes::Lane;
use super::lanes::Lanes;
use super::lanes::Pass;
use super::route::Route;
use super::scope::Scopes;
use super::tls::Clients;
use super::token::Tokens;
use super::transport::Breach;
use super::transport::Broken;
use super::transport::Outgoing;
use crate::ctx::Ctx;
use crate::oci::Digest;
use crate::task::Tasks;

/// How long an endpoint that served wrong bytes is asked last for them.
const CONDEMNED_FOR: Duration = Duration::from_secs(600);

pub(super) struct Shared {
    pub config: RegistryConfig,
    pub credentials: Arc<dyn CredentialSource>,
    pub tasks: Tasks,
    pub endpoints: Endpoints,
    pub clients: Clients,
    pub lanes: Lanes,
    pub tokens: Tokens,
    /// Who served bytes that were not the blob's, until when.
    condemned: Mutex<HashMap<(String, Digest), Instant>>,
}

/// A request to an endpoint.
pub(super) struct Ask<'a> {
    pub place: &'a Arc<Place>,
    pub method: Method,
    /// As the host knows it; the endpoint may know it by another.
    pub repository: &'a str,
    /// Behind the repository, encoded.
    pub path: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    pub lane: Lane,
    /// What a token must allow, by the names of the endpoint.
    pub wanted: Scopes,
    pub refusals: Refusals,
    /// As in [`Outgoing::verified`].
    pub verified: bool,
}

/// The head of a reply, and the place in its lane that it keeps until it is dropped. A refusal has given
/// its place back.
pub(super) struct Answer {
    pub response: Response,
    pub pass: Option<Pass>,
    /// The upload that a POST began.
    pub session: Option<UploadSession>,
}

impl Shared {
    pub fn new(config: RegistryConfig, credentials: Arc<dyn CredentialSource>, tasks: &Tasks) -> Arc<Shared> {
        Arc::new(Shared {
            endpoints: Endpoints::new(&config),
            clients: Clients::new(config.patience, tasks.clone()),
            lanes: Lanes::new(config.lanes),
            tokens: Tokens::default(),
            condemned: Mutex::default(),
            tasks: tasks.clone(),
            credentials,
            config,
        })
    }

    /// Sends `ask` to `endpoint`, as somebody that it takes. Whatever is not about who we are is an
    /// answer, refusals included.
    ///
    /// Cancellation safe, as far as the request itself is.
    pub async fn ask(
        self: &Arc<Self>,
        ctx: &Ctx,
        endpoint: &Arc<Endpoint>,
        ask: Ask<'_>,
    ) -> Result<Answer, RegistryError> {
        let place = ask.place;
        let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(place) };
        let mut auth = Auth::new(endpoint, place, ask.wanted, ask.refusals);
        loop {
            let scout = endpoint.scout(ctx).await.map_err(cancelled)?;
            let authorization = auth.authorization(self, ctx).await?;
            let pass = self.lanes.enter(ctx, endpoint.authority(), ask.lane).await.map_err(cancelled)?;
            let Some(url) = endpoint.url(ask.repository, ask.path, ask.query) else {
                let problem = "its host or repository can't be part of a URL".to_owned();
                return Err(RegistryError::Protocol { place: Arc::clone(place), problem });
            };
            let request = Outgoing {
                method: ask.method.clone(),
                url,
                headers: ask.headers.clone(),
                authorization,
                body: ask.body.clone(),
                verified: ask.verified,
                confidential: false,
            };
            let sent = match ask.method {
                Method::POST => self.begin(ctx, endpoint, place, ask.repository, request).await,
                _ => {
                    let sent = self.send(ctx, endpoint.tls(), place, request).await;
                    sent.map(|response| Begun { response, session: None })
                }
            };
            let Begun { response, session } = match sent {
                Ok(begun) => begun,
                Err(error) if Broken::kind_of(&error) == Breach::NotTls && endpoint.fall_back_to_plain() => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            endpoint.answered();
            // Who we are is found out without a place that others wait for.
            let pass = Some(pass).filter(|_| !response.status().is_client_error());
            // Another address was asked in our place and said nothing about who we are here.
            if !endpoint.owns(response.url()) {
                endpoint.learn_open();
                return Ok(Answer { response, pass, session });
            }
            match auth.judge(self, ctx, &response).await? {
                Verdict::Final => return Ok(Answer { response, pass, session }),
                Verdict::Again => {
                    drop(scout);
                    self.drain(ctx, response).await;
                }
            }
        }
    }

    /// The way over the endpoints of a repository's host.
    pub fn route(&self, repository: &Repository, trusting: bool, purpose: Purpose) -> Route {
        Route::new(self.config.retry, self.endpoints.of(&repository.host, trusting, purpose))
    }

    /// The same for a blob: who served wrong bytes for it is asked last.
    pub fn route_to_blob(&self, repository: &Repository, trusting: bool, digest: &Digest) -> Route {
        let mut endpoints = self.endpoints.of(&repository.host, trusting, Purpose::Read);
        let condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        if !condemned.is_empty() {
            let now = Instant::now();
            let is_condemned = |endpoint: &Arc<Endpoint>| {
                let until = condemned.get(&(endpoint.authority().to_owned(), *digest));
                until.is_some_and(|until| *until > now)
            };
            endpoints.sort_by_key(is_condemned);
        }
        Route::new(self.config.retry, endpoints).outliving_the_host()
    }

    pub fn condemn(&self, authority: &str, digest: &Digest) {
        let now = Instant::now();
        let mut condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        condemned.retain(|_, until| *until > now);
        condemned.insert((authority.to_owned(), *digest), now + CONDEMNED_FOR);
    }
}

/// Where a request goes, for its errors.
pub(super) fn place(repository: &Repository, subject: String, endpoint: Option<&Endpoint>) -> Arc<Place> {
    let mirror = endpoint.filter(|e| e.is_mirror()).map(|e| e.authority().to_owned());
    Arc::new(Place {
        host: repository.host.clone(),
        repository: repository.name.clone(),
        subject,
        mirror: mirror.unwrap_or_default(),
    })
}
