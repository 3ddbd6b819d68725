//! Talks to OCI and Docker registries (OCI distribution specification 1.1).
//!
//! [`RegistryClient`] does one thing per method: resolve a name, read a manifest, open a blob at an
//! offset, look whether a blob is there, mount, upload, put a manifest. It keeps no content and knows
//! nothing of what the bytes are for.
//!
//! # Invariants
//!
//! - A credential is asked of the request's own sessions at the moment it is needed. Tokens are
//!   remembered by (host, [`IdentityId`], scopes), so a token obtained with one identity is never sent
//!   for an asker that does not have it.
//! - `Authorization` goes to the address that asked for it and to no other: redirects are followed
//!   here, and a change of scheme, host or port drops it for the rest of the chain.
//! - Bytes of a manifest are verified before they are returned; bytes of a blob are not, since whoever
//!   stores or forwards them hashes them. Their length is verified here.
//! - No request that the answer does not need: no `/v2/` ping, no second challenge of a host that
//!   explained itself once, one token for all that wait for the same.
//!
//! # Retries
//!
//! A request goes to the mirrors of its host in order and to the host itself last; whatever fails at a
//! mirror is asked of the next. Transient failures of all of them are tried again after 1, 2 and 4
//! seconds or what `Retry-After` says. A blob goes on with Range at the byte where it broke off, at the
//! next endpoint if there is one.
//!
//! # Locking
//!
//! Memory is guarded by `std` mutexes that are held for a look or a change. Waits are for permits of a
//! host's lane; they honour cancellation, and while a caller waits for one (or for its next try) it
//! holds no other. The exception is a body that an upload pulls from a download: the upload's permit
//! is taken first, always, so that the two can't wait for each other.
//!
//! # Cancellation
//!
//! Every method is cancellation safe and ends with its `Ctx`. An upload that is given up leaves nothing
//! visible; its session is cancelled at the registry in the background.

mod auth;
mod begun;
mod blob_body;
mod challenge;
mod chunked;
mod client;
mod config;
mod content_range;
mod credential;
mod docker_config;
mod download;
mod endpoint;
mod error;
mod lanes;
mod manifest;
mod pull;
mod push;
mod route;
mod scope;
mod session_credentials;
mod tls;
mod token;
mod transport;
mod upload;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

pub use begun::UploadSession;
pub use blob_body::BlobBody;
pub use blob_body::Served;
pub use chunked::ChunkedUpload;
pub use config::HostConfig;
pub use config::KeyPair;
pub use config::LaneLimits;
pub use config::Patience;
pub use config::RegistryConfig;
pub use config::RetryPolicy;
pub use credential::CredentialError;
pub use credential::CredentialSource;
pub use credential::Identity;
pub use credential::IdentityId;
pub use credential::NoCredentials;
pub use credential::Proof;
pub use credential::TokenFetcher;
pub use credential::Wanted;
pub use docker_config::DockerConfig;
pub use error::Cause;
pub use error::Place;
pub use error::PushError;
pub use error::Reason;
pub use error::RegistryError;
pub use push::Mount;
pub use push::Pushed;
pub use session_credentials::SessionCredentials;
pub use tls::TlsError;
pub use upload::BodyError;
pub use upload::OpenBody;
pub use upload::UploadBody;

use self::client::Shared;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::task::Tasks;

/// A repository of a registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Repository {
    /// As image names spell it: `docker.io`, `r.example:5000`.
    pub host: String,
    /// Path in the registry: `library/busybox`.
    pub name: String,
}

impl Repository {
    pub fn new(host: impl Into<String>, name: impl Into<String>) -> Repository {
        Repository { host: host.into(), name: name.into() }
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Repository {
        Repository::new(&reference.host, &reference.repository)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// What names a manifest in a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    Tag(String),
    Digest(Digest),
}

/// What a name stands for now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    pub descriptor: Descriptor,
    /// The manifest itself, if it had to be read to know its descriptor. Verified.
    pub bytes: Option<Bytes>,
}

/// The client of all registries. Clones share connections, tokens and limits.
#[derive(Clone)]
pub struct RegistryClient {
    shared: Arc<Shared>,
    /// The host of [`RegistryClient::trusting`].
    trusted: Option<Arc<str>>,
}

impl RegistryClient {
    /// Opens nothing yet: connections, certificates and credentials are had when they are needed.
    ///
    /// `tasks` runs what outlives a caller: token requests that others wait for, and clean-up.
    pub fn new(
        config: RegistryConfig,
        credentials: Arc<dyn CredentialSource>,
        tasks: &Tasks,
    ) -> RegistryClient {
        RegistryClient { shared: Shared::new(config, credentials, tasks), trusted: None }
    }

    /// The same client that takes any certificate of `host`, or plain HTTP (`registry.insecure`).
    pub fn trusting(&self, host: &str) -> RegistryClient {
        RegistryClient { shared: Arc::clone(&self.shared), trusted: Some(host.into()) }
    }

    /// Connections to the web server of `url`: with the certificates and proxies that this node is configured
    /// with, and without redirects.
    ///
    /// Cancellation safe.
    pub async fn web_client(&self, url: &reqwest::Url) -> Result<reqwest::Client, TlsError> {
        self.shared.web_client(url).await
    }

    fn trusts(&self, host: &str) -> bool {
        self.trusted.as_deref() == Some(host)
    }
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryClient")
    }
}
