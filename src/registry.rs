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

mod config;
mod credential;
mod error;

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde::Serialize;

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
pub use error::Cause;
pub use error::Place;
pub use error::PushError;
pub use error::Reason;
pub use error::RegistryError;

use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::task::Tasks;

/// The TLS settings of a host can't be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct TlsError {
    pub problem: String,
}

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

/// Bytes of a blob from an offset to its end, exactly as many as its descriptor says; fewer or more
/// are an error. Retries, resumption and fall-back happen inside. Unverified.
pub struct BlobBody {
    offset: u64,
    stream: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl BlobBody {
    /// Offset of the first byte, the one that was asked for.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// To be called when the bytes did not have the blob's digest: those who served them are asked
    /// last from now on, so that another endpoint gets a chance.
    pub fn condemn(&self) {
        todo!()
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBody(from {})", self.offset)
    }
}

/// The bytes to upload. An error of the stream ends the upload with [`PushError::Body`].
pub type UploadBody = BoxStream<'static, Result<Bytes, Box<dyn Error + Send + Sync>>>;

/// Opens the body of an upload from its start; called again for each try.
pub type OpenBody<'a> =
    &'a mut (dyn FnMut() -> BoxFuture<'static, Result<UploadBody, Box<dyn Error + Send + Sync>>> + Send);

/// An upload that a registry is ready for.
#[derive(Debug)]
pub struct UploadSession {
    _todo: (),
}

/// What a registry answered when it was asked to mount a blob from another repository.
#[derive(Debug)]
pub enum Mount {
    /// The blob is there.
    Mounted,
    /// The blob has to be uploaded; some registries begin the upload with the refusal.
    Refused { session: Option<UploadSession> },
}

/// How a blob or manifest came to be at its target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was mounted from this repository of the same host.
    Mounted { from: String },
    /// It was sent.
    Uploaded,
}

/// The client of all registries. Clones share connections, tokens and limits.
#[derive(Clone)]
pub struct RegistryClient {
    _shared: Arc<()>,
}

impl RegistryClient {
    /// `tasks` runs what outlives a caller: token requests that others wait for, and clean-up.
    pub fn new(_config: RegistryConfig, _credentials: Arc<dyn CredentialSource>, _tasks: &Tasks) -> Self {
        todo!()
    }

    /// The same client that takes any certificate of `host`, or plain HTTP (`registry.insecure`).
    pub fn trusting(&self, _host: &str) -> RegistryClient {
        todo!()
    }

    /// The descriptor of what `reference` names: by HEAD for a tag, by GET if HEAD does not tell it
    /// or if the reference has a digest (its bytes are wanted next).
    pub async fn resolve(&self, _ctx: &Ctx, _reference: &Reference) -> Result<Resolved, RegistryError> {
        todo!()
    }

    /// The verified bytes of a manifest.
    pub async fn manifest(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        todo!()
    }

    /// The verified bytes of a small blob such as an image's config; [`RegistryError::TooLarge`]
    /// beyond `limit`.
    pub async fn small_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _limit: u64,
    ) -> Result<Bytes, RegistryError> {
        todo!()
    }

    /// Opens a blob at `offset`. The first reply is in when this returns, so that a refusal is an
    /// error here.
    pub async fn open_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _offset: u64,
    ) -> Result<BlobBody, RegistryError> {
        todo!()
    }

    /// Succeeds if the asker may read the blob: one HEAD.
    pub async fn probe_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
    ) -> Result<(), RegistryError> {
        todo!()
    }

    /// Descriptors of the manifests whose subject is `digest`, by the referrers API or its tag schema.
    pub async fn referrers(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _digest: &Digest,
        _artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        todo!()
    }

    /// Makes sure that a blob is in `repository`: HEAD, then a mount from each of `mounts` (other
    /// repositories of the same host), then an upload.
    pub async fn push_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _mounts: &[String],
        _body: OpenBody<'_>,
    ) -> Result<Pushed, PushError> {
        todo!()
    }

    /// True if the push target has the blob. Mirrors are not asked.
    pub async fn has_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        todo!()
    }

    /// Asks the registry to take the blob from its repository `from`. Every refusal is a
    /// [`Mount::Refused`].
    pub async fn mount_blob(
        &self,
        _ctx: &Ctx,
        _to: &Repository,
        _from: &str,
        _descriptor: &Descriptor,
    ) -> Result<Mount, RegistryError> {
        todo!()
    }

    /// Uploads a blob, in `session` if there is one: one PUT of known length.
    pub async fn upload_blob(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _session: Option<UploadSession>,
        _body: OpenBody<'_>,
    ) -> Result<(), PushError> {
        todo!()
    }

    /// Cancels an upload that will not be used, in the background.
    pub fn abandon(&self, _ctx: &Ctx, _repository: &Repository, _session: UploadSession) {
        todo!()
    }

    /// The digest that the push target has under `selector`; `None` if it has nothing or does not say.
    pub async fn head_manifest(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _selector: &Selector,
    ) -> Result<Option<Digest>, RegistryError> {
        todo!()
    }

    /// Makes sure that `selector` names the manifest at the push target: HEAD, then PUT.
    pub async fn push_manifest(
        &self,
        _ctx: &Ctx,
        _repository: &Repository,
        _selector: &Selector,
        _descriptor: &Descriptor,
        _bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        todo!()
    }
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryClient")
    }
}
