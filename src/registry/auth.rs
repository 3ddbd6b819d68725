//! [`Auth`]: who a request says it is, over all its tries at one endpoint.
//!
//! # States
//!
//! ```text
//!   nothing shown ──401──► shown ──401──► shown anew (secret or token asked for again)
//!                            ▲                 │ 401, or 403
//!                            └── next identity ┘ of the asker, until there is none
//! ```
//!
//! A 401 about the scope of a token costs a new token and no new secret: rights may have been granted
//! since, and registries that check them in several places are not always of one mind. The second one
//! is the answer.
//!
//! A request by several sessions tries their identities one after another, so that a session whose
//! account is refused does not fail the one whose account is not.

use std::sync::Arc;

use http::HeaderValue;
use http::StatusCode;
use http::header::WWW_AUTHENTICATE;
use reqwest::Response;

use super::Identity;
use super::IdentityId;
use super::Place;
use super::Proof;
use super::RegistryError;
use super::Wanted;
use super::challenge::Challenge;
use super::challenge::choose;
use super::client::Shared;
use super::endpoint::Endpoint;
use super::endpoint::Mode;
use super::scope::Scopes;
use super::token::Need;
use super::token::basic;
use crate::ctx::Ctx;

/// Tries of one request at most, however a registry answers.
const MAX_TRIES: u32 = 16;

/// How a challenge says that the token is good, but not for this (RFC 6750 section 3.1).
const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// What a refusal means to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusals {
    /// 401 and 403: another identity is tried.
    Told,
    /// 404 as well may be how a registry refuses somebody who may not know.
    Concealed,
    /// It is as good an answer as any, of somebody who was taken before: no other try is made for it.
    Expected,
}

/// What to do after a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is the answer.
    Final,
    /// The same request, with a new [`Auth::authorization`].
    Again,
}

enum Sent {
    Nothing,
    Password,
    Token { scopes: Scopes, authorization: HeaderValue },
}

/// The identity of one request at one endpoint.
pub(super) struct Auth {
    endpoint: Arc<Endpoint>,
    place: Arc<Place>,
    wanted: Scopes,
    refusals: Refusals,
    identity: Option<(Wanted, Identity)>,
    refused: Vec<IdentityId>,
    sent: Sent,
    /// The present identity's secret or token was asked for again.
    renewed: bool,
    tries: u32,
}

impl Auth {
    pub fn new(endpoint: &Arc<Endpoint>, place: &Arc<Place>, wanted: Scopes, refusals: Refusals) -> Auth {
        Auth {
            endpoint: Arc::clone(endpoint),
            place: Arc::clone(place),
            wanted,
            refusals,
            identity: None,
            refused: Vec::new(),
            sent: Sent::Nothing,
            renewed: false,
            tries: 0,
        }
    }

    /// The header for the next try; `None` where nothing is asked for, or there is nothing to show.
    /// Cancellation safe.
    pub async fn authorization(
        &mut self,
        shared: &Arc<Shared>,
        ctx: &Ctx,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        self.tries += 1;
        self.sent = Sent::Nothing;
        let endpoint = Arc::clone(&self.endpoint);
        match endpoint.mode() {
            Mode::Unknown | Mode::Open => Ok(None),
            Mode::Basic => {
                let identity = self.identity(shared, ctx, Wanted::Password).await?;
                Ok(match identity.proof {
                    Proof::Password { username, password } => {
                        self.sent = Sent::Password;
                        Some(basic(&username, password.reveal()))
                    }
                    _ => None,
                })
            }
            Mode::Bearer { realm, service } => loop {
                let identity = self.identity(shared, ctx, Wanted::Token).await?;
                let scopes = endpoint.scopes_for(&self.wanted);
                let need = Need {
                    endpoint: &endpoint,
                    realm: &realm,
                    service: &service,
                    identity: &identity,
                    scopes: &scopes,
                    place: &self.place,
                };
                match shared.token(ctx, need).await {
                    Ok(authorization) => {
                        self.sent = Sent::Token { scopes, authorization: authorization.clone() };
                        return Ok(Some(authorization));
                    }
                    Err(
                        error @ (RegistryError::Unauthorized { .. }
                        | RegistryError::Forbidden { .. }
                        | RegistryError::Credentials { .. }),
                    ) => {
                        shared.credentials.forget(endpoint.authority(), &identity.id);
                        if !self.take_next(shared, ctx).await? {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
            },
        }
    }

    /// Takes in a reply that came from the endpoint itself. Cancellation safe.
    pub async fn judge(
        &mut self,
        shared: &Arc<Shared>,
        ctx: &Ctx,
        response: &Response,
    ) -> Result<Verdict, RegistryError> {
        match response.status() {
            StatusCode::UNAUTHORIZED => self.challenged(shared, ctx, response).await,
            StatusCode::FORBIDDEN => self.with_next(shared, ctx).await,
            StatusCode::NOT_FOUND if self.refusals == Refusals::Concealed => {
                self.endpoint.learn_open();
                self.with_next(shared, ctx).await
            }
            status => {
                if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                    self.endpoint.learn_open();
                }
                Ok(Verdict::Final)
            }
        }
    }

    async fn challenged(
        &mut self,
        shared: &Arc<Shared>,
        ctx: &Ctx,
        response: &Response,
    ) -> Result<Verdict, RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let Some(challenge) = choose(headers.iter().map(HeaderValue::as_bytes)) else {
            return Ok(Verdict::Final);
        };
        let (mode, asked, error) = match challenge {
            Challenge::Basic => (Mode::Basic, Scopes::default(), String::new()),
            Challenge::Bearer { realm, service, scope, error } => {
                (Mode::Bearer { realm, service }, Scopes::parse(&scope), error)
            }
        };
        let known = self.endpoint.mode() == mode;
        if !known {
            self.endpoint.learn(mode);
        }
        if self.tries >= MAX_TRIES {
            return Ok(Verdict::Final);
        }
        match &self.sent {
            // Nothing to show is an answer only if it was known what to show.
            Sent::Nothing if known && self.identity.is_some() => self.renew(shared, ctx).await,
            Sent::Nothing => Ok(self.again_within(&asked)),
            Sent::Password => self.renew(shared, ctx).await,
            Sent::Token { scopes, authorization } => {
                if !known {
                    return Ok(Verdict::Again);
                }
                if !scopes.cover(&asked) {
                    let scopes = scopes.clone();
                    // The token that comes next is one for what the challenge asks for.
                    self.renewed |= error == INSUFFICIENT_SCOPE;
                    return Ok(self.again_within(&scopes.and(&asked)));
                }
                if self.refusals != Refusals::Expected || error != INSUFFICIENT_SCOPE {
                    // Rights change: the next request asks for a token that knows.
                    shared.tokens.refuse(authorization);
                }
                if error == INSUFFICIENT_SCOPE {
                    return self.renew_token(shared, ctx).await;
                }
                self.renew(shared, ctx).await
            }
        }
    }

    /// Remembers what a challenge asked for beyond what we would.
    fn again_within(&self, asked: &Scopes) -> Verdict {
        let own = self.endpoint.scopes_for(&self.wanted);
        if !own.cover(asked) {
            self.endpoint.learn_scopes(&self.wanted, &own.and(asked));
        }
        Verdict::Again
    }

    /// One more try for the present identity with a fresh secret, then the next identity.
    async fn renew(&mut self, shared: &Arc<Shared>, ctx: &Ctx) -> Result<Verdict, RegistryError> {
        let Some((wanted, identity)) = &self.identity else { return Ok(Verdict::Final) };
        if self.renewed || (matches!(identity.proof, Proof::Anonymous) && *wanted == Wanted::Password) {
            return self.with_next(shared, ctx).await;
        }
        self.renewed = true;
        shared.credentials.forget(self.endpoint.authority(), &identity.id);
        self.identity = None;
        Ok(Verdict::Again)
    }

    /// One more try for the present identity with a token fetched anew, then the next identity.
    async fn renew_token(&mut self, shared: &Arc<Shared>, ctx: &Ctx) -> Result<Verdict, RegistryError> {
        let is_renewable = self.refusals != Refusals::Expected
            && matches!(&self.identity, Some((_, identity)) if !matches!(identity.proof, Proof::AccessToken(_)));
        if self.renewed || !is_renewable {
            return self.with_next(shared, ctx).await;
        }
        self.renewed = true;
        Ok(Verdict::Again)
    }

    async fn with_next(&mut self, shared: &Arc<Shared>, ctx: &Ctx) -> Result<Verdict, RegistryError> {
        Ok(if self.take_next(shared, ctx).await? { Verdict::Again } else { Verdict::Final })
    }

    /// Goes on to the asker's next identity. False if nothing was shown, or there is no other.
    async fn take_next(&mut self, shared: &Arc<Shared>, ctx: &Ctx) -> Result<bool, RegistryError> {
        if self.refusals == Refusals::Expected || self.tries >= MAX_TRIES {
            return Ok(false);
        }
        let Some((wanted, identity)) = self.identity.take() else { return Ok(false) };
        self.refused.push(identity.id);
        self.renewed = false;
        self.identity = self.ask(shared, ctx, wanted).await?.map(|next| (wanted, next));
        Ok(self.identity.is_some())
    }

    async fn identity(
        &mut self,
        shared: &Arc<Shared>,
        ctx: &Ctx,
        wanted: Wanted,
    ) -> Result<Identity, RegistryError> {
        if let Some((_, identity)) = self.identity.as_ref().filter(|(known, _)| *known == wanted) {
            return Ok(identity.clone());
        }
        let identity = self.ask(shared, ctx, wanted).await?.unwrap_or_else(Identity::anonymous);
        self.identity = Some((wanted, identity.clone()));
        Ok(identity)
    }

    async fn ask(
        &self,
        shared: &Arc<Shared>,
        ctx: &Ctx,
        wanted: Wanted,
    ) -> Result<Option<Identity>, RegistryError> {
        let asked = shared.credentials.identity(ctx, self.endpoint.authority(), wanted, &self.refused);
        match ctx.run(asked).await {
            Err(_) => Err(RegistryError::Cancelled { place: Arc::clone(&self.place) }),
            Ok(Err(cause)) => Err(RegistryError::Credentials { place: Arc::clone(&self.place), cause }),
            Ok(Ok(identity)) => Ok(identity),
        }
    }
}
