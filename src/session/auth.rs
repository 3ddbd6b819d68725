//! Registry credentials of a client (`moby.filesync.v1.Auth`).

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use crate::session::Session;
use crate::session::SessionError;

/// A text that stays out of logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    /// The secret itself: not for messages.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a client knows for a registry host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Credentials {
    /// Nothing, or the client offers no credentials at all.
    Anonymous,
    Basic {
        username: String,
        password: Secret,
    },
    /// An OAuth refresh token.
    IdentityToken(Secret),
}

/// Asks a client to fetch a token for us, so that the secret stays with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenRequest {
    pub host: String,
    pub realm: String,
    pub service: String,
    pub scopes: Vec<String>,
}

/// A token that a client fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchedToken {
    pub token: Secret,
    /// From the time of issue.
    pub expires_in: Duration,
    pub issued_at: Option<SystemTime>,
}

/// The Ed25519 key of a client's right to tokens of one host. Two sessions with the same key have the
/// same secret for it and may share a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TokenAuthority(pub [u8; 32]);

impl Session {
    /// What the client knows for `host`. A client without this service is anonymous.
    pub async fn credentials(&self, _host: &str) -> Result<Credentials, SessionError> {
        todo!()
    }

    /// The client's token authority for `host`; none if it fetches no tokens itself, and
    /// [`Session::credentials`] is to be asked.
    pub async fn token_authority(&self, _host: &str) -> Result<Option<TokenAuthority>, SessionError> {
        todo!()
    }

    pub async fn fetch_token(&self, _request: &TokenRequest) -> Result<FetchedToken, SessionError> {
        todo!()
    }

    /// True if the client proves that it holds `authority` for `host`.
    pub async fn verify_token_authority(
        &self,
        _host: &str,
        _authority: &TokenAuthority,
    ) -> Result<bool, SessionError> {
        todo!()
    }
}
