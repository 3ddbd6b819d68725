//! [`SessionCredentials`]: credentials asked of the sessions of the request at hand.
//!
//! A client that offers it keeps its secret and fetches tokens for us; what it shows instead is a key
//! that is derived from the secret. The key names the identity only once the session has proved that it
//! holds it. Two sessions with the same proven key share tokens; without a proof a session shares with
//! nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::CredentialError;
use super::CredentialSource;
use super::Identity;
use super::IdentityId;
use super::Proof;
use super::TokenFetcher;
use super::Wanted;
use crate::ctx::Ctx;
use crate::session::Credentials;
use crate::session::FetchedToken;
use crate::session::Session;
use crate::session::SessionError;
use crate::session::SessionId;
use crate::session::TokenRequest;

/// How long an answer is used before the session is asked again: short-lived passwords (cloud
/// registries) live for five minutes and more.
const FRESH_FOR: Duration = Duration::from_secs(240);

/// Answers kept at most.
const MAX_KNOWN: usize = 4096;

/// Who was asked, for which host and for what.
type Question = (SessionId, String, Wanted);

/// The answers of sessions.
#[derive(Debug, Default)]
pub struct SessionCredentials {
    known: Mutex<HashMap<Question, (Identity, Instant)>>,
}

impl SessionCredentials {
    pub fn new() -> SessionCredentials {
        SessionCredentials::default()
    }

    async fn identity_of(
        &self,
        session: &Session,
        host: &str,
        wanted: Wanted,
    ) -> Result<Identity, SessionError> {
        let key = (session.id().clone(), host.to_owned(), wanted);
        if let Some(identity) = self.remembered(&key) {
            return Ok(identity);
        }
        let authority = match wanted {
            Wanted::Token => session.token_authority(host).await?,
            Wanted::Password => None,
        };
        let identity = match authority {
            Some(authority) => {
                let proven = session.verify_token_authority(host, &authority).await.unwrap_or(false);
                let id = match proven {
                    true => IdentityId::of("token authority", &[&authority.0]),
                    false => IdentityId::of("session", &[session.id().as_str().as_bytes()]),
                };
                Identity { id, proof: Proof::Delegated(Arc::new(ByClient(session.clone()))) }
            }
            None => match session.credentials(host).await? {
                Credentials::Anonymous => Identity::anonymous(),
                Credentials::Basic { username, password } => Identity::password(&username, &password),
                Credentials::IdentityToken(token) => Identity::refresh_token(&token),
            },
        };
        self.remember(key, identity.clone());
        Ok(identity)
    }

    fn remembered(&self, key: &Question) -> Option<Identity> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, until) = known.get(key)?;
        (*until > Instant::now()).then(|| identity.clone())
    }

    fn remember(&self, key: Question, identity: Identity) {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() < MAX_KNOWN {
            known.insert(key, (identity, now + FRESH_FOR));
        }
    }
}

#[async_trait]
impl CredentialSource for SessionCredentials {
    async fn identity(
        &self,
        ctx: &Ctx,
        host: &str,
        wanted: Wanted,
        refused: &[IdentityId],
    ) -> Result<Option<Identity>, CredentialError> {
        enum NotThis {
            Refused,
            Error(SessionError),
        }
        impl From<SessionError> for NotThis {
            fn from(error: SessionError) -> NotThis {
                NotThis::Error(error)
            }
        }
        let found = ctx.sessions().any(async |session| {
            let identity = self.identity_of(&session, host, wanted).await?;
            if refused.contains(&identity.id) { Err(NotThis::Refused) } else { Ok(identity) }
        });
        match found.await {
            Ok(identity) => Ok(Some(identity)),
            Err(NotThis::Refused) => Ok(None),
            // What is public can be had without its asker.
            Err(NotThis::Error(
                SessionError::NoActiveSessions | SessionError::NotFound { .. } | SessionError::Lost { .. },
            )) => Ok(Some(Identity::anonymous()).filter(|anonymous| !refused.contains(&anonymous.id))),
            Err(NotThis::Error(_)) if !refused.is_empty() => Ok(None),
            Err(NotThis::Error(cause)) => Err(CredentialError::Session { host: host.to_owned(), cause }),
        }
    }

    fn forget(&self, host: &str, identity: &IdentityId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, known_host, _), (known, _)| known_host != host || known.id != *identity);
    }
}

/// Tokens that the client of a session fetches.
struct ByClient(Session);

#[async_trait]
impl TokenFetcher for ByClient {
    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, CredentialError> {
        let fetched = self.0.fetch_token(request).await;
        fetched.map_err(|cause| CredentialError::Session { host: request.host.clone(), cause })
    }
}
