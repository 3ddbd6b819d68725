//! [`CredentialSource`]: who we are to a registry, asked at the moment it is needed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use sha2::Digest as _;
use sha2::Sha256;

use crate::ctx::Ctx;
use crate::session::FetchedToken;
use crate::session::Secret;
use crate::session::SessionError;
use crate::session::TokenRequest;

/// Where credentials come from.
///
/// Guarantee: an identity is one that the asker in `ctx` may use. Nothing that was obtained with one
/// [`IdentityId`] is ever used for an asker whose source does not give that identity.
#[async_trait]
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// The first identity of the asker for `host` (as addressed: `registry-1.docker.io`) that is not
    /// among `refused`; `None` if there is no other. Nothing to show is [`Identity::anonymous`].
    async fn identity(
        &self,
        ctx: &Ctx,
        host: &str,
        wanted: Wanted,
        refused: &[IdentityId],
    ) -> Result<Option<Identity>, CredentialError>;

    /// Drops what is remembered of `identity`: a registry refused it, the secret may have changed.
    fn forget(&self, host: &str, identity: &IdentityId);
}

/// What a registry asks to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wanted {
    /// Name and password, on every request.
    Password,
    /// A token from its token server.
    Token,
}

/// Names a secret without telling it. Equal IDs are equal rights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId([u8; 32]);

impl IdentityId {
    /// The ID of what `parts` make up; `kind` keeps different kinds apart.
    pub fn of(kind: &str, parts: &[&[u8]]) -> IdentityId {
        let mut hasher = Sha256::new();
        for part in std::iter::once(kind.as_bytes()).chain(parts.iter().copied()) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        IdentityId(hasher.finalize().into())
    }
}

impl fmt::Debug for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityId({})", HEXLOWER.encode(&self.0[..4]))
    }
}

/// Somebody that a registry may know.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: IdentityId,
    pub proof: Proof,
}

/// How an identity is shown.
#[derive(Clone)]
pub enum Proof {
    /// Nothing is shown.
    Anonymous,
    Password {
        username: String,
        password: Secret,
    },
    /// An OAuth2 refresh token, to be exchanged for access tokens.
    RefreshToken(Secret),
    /// A bearer token that somebody else obtained.
    AccessToken(Secret),
    /// The owner of the secret obtains the tokens.
    Delegated(Arc<dyn TokenFetcher>),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Anonymous => "Anonymous",
            Proof::Password { .. } => "Password(..)",
            Proof::RefreshToken(_) => "RefreshToken(..)",
            Proof::AccessToken(_) => "AccessToken(..)",
            Proof::Delegated(_) => "Delegated(..)",
        })
    }
}

impl Identity {
    pub fn anonymous() -> Identity {
        Identity { id: IdentityId::of("anonymous", &[]), proof: Proof::Anonymous }
    }

    pub fn password(username: &str, password: &Secret) -> Identity {
        let id = IdentityId::of("password", &[username.as_bytes(), password.reveal().as_bytes()]);
        Identity { id, proof: Proof::Password { username: username.to_owned(), password: password.clone() } }
    }

    pub fn refresh_token(token: &Secret) -> Identity {
        let id = IdentityId::of("refresh token", &[token.reveal().as_bytes()]);
        Identity { id, proof: Proof::RefreshToken(token.clone()) }
    }

    pub fn access_token(token: &Secret) -> Identity {
        let id = IdentityId::of("access token", &[token.reveal().as_bytes()]);
        Identity { id, proof: Proof::AccessToken(token.clone()) }
    }
}

/// Obtains tokens with a secret that stays where it is.
#[async_trait]
pub trait TokenFetcher: Send + Sync {
    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, CredentialError>;
}

/// Credentials could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the client did not give credentials for {host}: {cause}")]
    Session {
        host: String,
        #[source]
        cause: SessionError,
    },
    #[error("credential helper {helper} failed for {host}: {problem}")]
    Helper { helper: String, host: String, problem: String },
    #[error("Docker's configuration {path} can't be used: {problem}")]
    DockerConfig { path: String, problem: String },
}

/// Nobody is known: every request is anonymous.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

#[async_trait]
impl CredentialSource for NoCredentials {
    async fn identity(
        &self,
        _ctx: &Ctx,
        _host: &str,
        _wanted: Wanted,
        refused: &[IdentityId],
    ) -> Result<Option<Identity>, CredentialError> {
        Ok(Some(Identity::anonymous()).filter(|anonymous| !refused.contains(&anonymous.id)))
    }

    fn forget(&self, _host: &str, _identity: &IdentityId) {}
}
