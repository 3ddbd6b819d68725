//! Registry credentials of a client (`moby.filesync.v1.Auth`).

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use ring::signature::ED25519;
use ring::signature::UnparsedPublicKey;
use tonic::Code;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::tunnel::Wire;
use crate::proto::auth::CredentialsRequest;
use crate::proto::auth::CredentialsResponse;
use crate::proto::auth::FetchTokenRequest;
use crate::proto::auth::GetTokenAuthorityRequest;
use crate::proto::auth::GetTokenAuthorityResponse;
use crate::proto::auth::VerifyTokenAuthorityRequest;
use crate::proto::auth::VerifyTokenAuthorityResponse;
use crate::proto::auth::auth_client::AuthClient;
use crate::session::Session;
use crate::session::SessionError;

/// A client may have to run a credential helper, or ask its user.
const LIMIT: Duration = Duration::from_secs(60);
/// What a token without a stated life is good for.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// By which registries know clients of this protocol.
const CLIENT_ID: &str = "buildkit-client";
const SIGNATURE_BYTES: usize = 64;

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
    pub async fn credentials(&self, host: &str) -> Result<Credentials, SessionError> {
        const METHOD: &str = "/moby.filesync.v1.Auth/Credentials";
        let mut client = self.auth();
        let request = CredentialsRequest { host: host.to_owned() };
        let answer = self.call(METHOD, Some(LIMIT), client.credentials(request)).await;
        match answer {
            Ok(CredentialsResponse { secret, .. }) if secret.is_empty() => Ok(Credentials::Anonymous),
            Ok(CredentialsResponse { username, secret }) if username.is_empty() => {
                Ok(Credentials::IdentityToken(Secret(secret)))
            }
            Ok(CredentialsResponse { username, secret }) => {
                Ok(Credentials::Basic { username, password: Secret(secret) })
            }
            Err(error) if error.refusal() == Some(Code::Unimplemented) => Ok(Credentials::Anonymous),
            Err(error) => Err(error),
        }
    }

    /// The client's token authority for `host`; none if it fetches no tokens itself, and
    /// [`Session::credentials`] is to be asked.
    pub async fn token_authority(&self, host: &str) -> Result<Option<TokenAuthority>, SessionError> {
        const METHOD: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
        let mut client = self.auth();
        let request = GetTokenAuthorityRequest { host: host.to_owned(), salt: self.salt() };
        match self.call(METHOD, Some(LIMIT), client.get_token_authority(request)).await {
            Ok(GetTokenAuthorityResponse { public_key }) => match <[u8; 32]>::try_from(&*public_key) {
                Ok(key) => Ok(Some(TokenAuthority(key))),
                Err(_) => Err(self.nonsense(METHOD, format!("a key of {} bytes", public_key.len()))),
            },
            Err(error) => match error.refusal() {
                Some(Code::Unimplemented | Code::Unavailable) => Ok(None),
                _ => Err(error),
            },
        }
    }

    pub async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, SessionError> {
        const METHOD: &str = "/moby.filesync.v1.Auth/FetchToken";
        let mut client = self.auth();
        let request = FetchTokenRequest {
            client_id: CLIENT_ID.to_owned(),
            host: request.host.clone(),
            realm: request.realm.clone(),
            service: request.service.clone(),
            scopes: request.scopes.clone(),
        };
        let answer = self.call(METHOD, Some(LIMIT), client.fetch_token(request)).await?;
        let seconds = u64::try_from(answer.expires_in).unwrap_or(0);
        Ok(FetchedToken {
            token: Secret(answer.token),
            expires_in: if seconds == 0 { SHORTEST_LIFE } else { Duration::from_secs(seconds) },
            issued_at: u64::try_from(answer.issued_at)
                .ok()
                .filter(|&at| at != 0)
                .and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at))),
        })
    }

    /// True if the client proves that it holds `authority` for `host`: it signs bytes that it has not
    /// seen before. A client without this call proves nothing.
    pub async fn verify_token_authority(
        &self,
        host: &str,
        authority: &TokenAuthority,
    ) -> Result<bool, SessionError> {
        const METHOD: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";
        let mut client = self.auth();
        let challenge: [u8; 32] = rand::random();
        let request = VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: Bytes::copy_from_slice(&challenge),
            salt: self.salt(),
        };
        match self.call(METHOD, Some(LIMIT), client.verify_token_authority(request)).await {
            Ok(VerifyTokenAuthorityResponse { signed }) => Ok(opens(&signed, &challenge, authority)),
            Err(error) if error.refusal() == Some(Code::Unimplemented) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn auth(&self) -> AuthClient<Wire> {
        AuthClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT)
    }
}

/// NaCl's `crypto_sign_open`: the signature stands before the message.
fn opens(signed: &[u8], message: &[u8], authority: &TokenAuthority) -> bool {
    let Some((signature, carried)) = signed.split_at_checked(SIGNATURE_BYTES) else { return false };
    carried == message && UnparsedPublicKey::new(&ED25519, authority.0).verify(message, signature).is_ok()
}
