//! Credentials: handed over, or kept and used to fetch tokens for the daemon.

use std::sync::Arc;

use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair;
use serde_json::Value;
use sha2::Digest as _;
use sha2::Sha256;
use thunk::proto::auth::CredentialsRequest;
use thunk::proto::auth::CredentialsResponse;
use thunk::proto::auth::FetchTokenRequest;
use thunk::proto::auth::FetchTokenResponse;
use thunk::proto::auth::GetTokenAuthorityRequest;
use thunk::proto::auth::GetTokenAuthorityResponse;
use thunk::proto::auth::VerifyTokenAuthorityRequest;
use thunk::proto::auth::VerifyTokenAuthorityResponse;
use thunk::proto::auth::auth_server::Auth;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use super::callback::Callback;
use super::callback::Calls;
use crate::harness::http::http_client;

/// What a client knows for one host. A login without a user is an identity token.
#[derive(Clone, Debug)]
pub struct Login {
    pub host: String,
    pub user: String,
    pub secret: String,
}

pub(super) struct AuthService {
    pub calls: Arc<Calls>,
    pub logins: Vec<Login>,
    /// Tokens are fetched here, and secrets never leave.
    pub fetches_tokens: bool,
}

impl AuthService {
    fn login(&self, host: &str) -> Option<&Login> {
        self.logins.iter().find(|login| login.host == host)
    }

    /// The Ed25519 key of whoever knows the secret of `host`; anonymous clients have one as well.
    fn key(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        if !self.fetches_tokens {
            return Err(Status::unavailable("this client hands out credentials"));
        }
        let mut seed = Sha256::new_with_prefix(salt);
        if let Some(login) = self.login(host) {
            seed.update(&login.user);
            seed.update([0]);
            seed.update(&login.secret);
        }
        let key = Ed25519KeyPair::from_seed_unchecked(&seed.finalize());
        Ok(key.expect("a seed of 32 bytes"))
    }

    /// As Docker does it: the OAuth2 form for identity tokens, GET for everybody else.
    async fn fetch(&self, request: &FetchTokenRequest) -> reqwest::Result<Value> {
        let mut url = reqwest::Url::parse(&request.realm).expect("a realm is a URL");
        let scopes = request.scopes.iter().map(|scope| ("scope", scope.as_str()));
        url.query_pairs_mut().append_pair("service", &request.service).extend_pairs(scopes);
        let client = http_client(None);
        let send = match self.login(&request.host) {
            None => client.get(url),
            Some(login) if !login.user.is_empty() => {
                client.get(url).basic_auth(&login.user, Some(&login.secret))
            }
            Some(login) => {
                let form = [("grant_type", "refresh_token"), ("refresh_token", &login.secret)];
                url.query_pairs_mut().extend_pairs(form).append_pair("client_id", &request.client_id);
                let body = url.query().unwrap_or_default().to_owned();
                url.set_query(None);
                client.post(url).header("content-type", "application/x-www-form-urlencoded").body(body)
            }
        };
        send.send().await?.error_for_status()?.json().await
    }
}

#[async_trait]
impl Auth for AuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        self.calls.enter(Callback::Credentials, &host).await?;
        let login = self.login(&host).cloned();
        let (username, secret) = login.map(|login| (login.user, login.secret)).unwrap_or_default();
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let request = request.into_inner();
        self.calls.enter(Callback::FetchToken, &request.host).await?;
        let answer =
            self.fetch(&request).await.map_err(|error| Status::unauthenticated(error.to_string()))?;
        Ok(Response::new(FetchTokenResponse {
            token: answer["token"].as_str().unwrap_or_default().to_owned(),
            expires_in: answer["expires_in"].as_i64().unwrap_or_default(),
            issued_at: 0,
        }))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        self.calls.enter(Callback::GetTokenAuthority, &request.host).await?;
        let key = self.key(&request.host, &request.salt)?;
        let public_key = key.public_key().as_ref().to_vec().into();
        Ok(Response::new(GetTokenAuthorityResponse { public_key }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        self.calls.enter(Callback::VerifyTokenAuthority, &request.host).await?;
        let key = self.key(&request.host, &request.salt)?;
        // NaCl's form: the signature, then what was signed.
        let signed = [key.sign(&request.payload).as_ref(), &request.payload].concat();
        Ok(Response::new(VerifyTokenAuthorityResponse { signed: signed.into() }))
    }
}
