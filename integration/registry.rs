//! The registry client against registries that count, fail and wait: each test asserts what was asked
//! for, not only what came of it.

mod credentials;
mod faults;
mod proxy;
mod pull;
mod push;
mod referee;
mod sessions;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use thunk::ctx::Ctx;
use thunk::oci::Descriptor;
use thunk::oci::Digest;
use thunk::oci::Reference;
use thunk::registry::BodyError;
use thunk::registry::CredentialError;
use thunk::registry::CredentialSource;
use thunk::registry::HostConfig;
use thunk::registry::Identity;
use thunk::registry::IdentityId;
use thunk::registry::LaneLimits;
use thunk::registry::NoCredentials;
use thunk::registry::Patience;
use thunk::registry::RegistryClient;
use thunk::registry::RegistryConfig;
use thunk::registry::RegistryError;
use thunk::registry::Repository;
use thunk::registry::RetryPolicy;
use thunk::registry::UploadBody;
use thunk::registry::Wanted;
use thunk::session::Secret;
use thunk::session::SessionGroup;
use thunk::session::SessionId;
use thunk::session::Sessions;
use thunk::task::Tasks;
use tokio_util::sync::CancellationToken;

use crate::harness::Auth;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::Options;
use crate::harness::Right;
use crate::harness::TestRegistry;

/// Waits short enough for tests of what never comes.
fn impatient() -> RegistryConfig {
    RegistryConfig {
        retry: RetryPolicy {
            retries: 3,
            base: Duration::from_millis(2),
            longest_wait: Duration::from_secs(2),
        },
        patience: Patience {
            connect: Duration::from_secs(5),
            stall: Duration::from_millis(800),
            commit: Duration::from_millis(1600),
        },
        ..RegistryConfig::default()
    }
}

/// A client that waits for nothing in vain but gives a busy machine time.
fn patient() -> RegistryConfig {
    RegistryConfig { patience: Patience::default(), ..impatient() }
}

fn anonymous(config: RegistryConfig) -> RegistryClient {
    RegistryClient::new(config, Arc::new(NoCredentials), &Tasks::new())
}

/// Sessions and the accounts that they have, in the order of preference.
#[derive(Debug, Default)]
struct Accounts(BTreeMap<SessionId, Vec<Identity>>);

impl Accounts {
    fn password(mut self, session: &str, user: &str, password: &str) -> Accounts {
        let identity = Identity::password(user, &Secret::new(password));
        self.0.entry(SessionId::new(session)).or_default().push(identity);
        self
    }

    fn identity(mut self, session: &str, identity: Identity) -> Accounts {
        self.0.entry(SessionId::new(session)).or_default().push(identity);
        self
    }

    fn client(self, config: RegistryConfig) -> RegistryClient {
        RegistryClient::new(config, Arc::new(self), &Tasks::new())
    }
}

#[async_trait]
impl CredentialSource for Accounts {
    async fn identity(
        &self,
        ctx: &Ctx,
        _host: &str,
        _wanted: Wanted,
        refused: &[IdentityId],
    ) -> Result<Option<Identity>, CredentialError> {
        let ids = ctx.sessions().ids();
        if ids.is_empty() {
            return Ok(Some(Identity::anonymous()).filter(|identity| !refused.contains(&identity.id)));
        }
        let mut own = ids.iter().filter_map(|id| self.0.get(id)).flatten();
        Ok(own.find(|identity| !refused.contains(&identity.id)).cloned())
    }

    fn forget(&self, _host: &str, _identity: &IdentityId) {}
}

/// A request by these sessions.
fn by(sessions: &[&str]) -> Ctx {
    let open = Sessions::new(&Tasks::new());
    let ids = sessions.iter().map(|id| SessionId::new(id));
    Ctx::new(SessionGroup::new(&open, ids), CancellationToken::new())
}

fn nobody() -> Ctx {
    Ctx::background()
}

fn repository(registry: &TestRegistry, name: &str) -> Repository {
    Repository::new(registry.host(), name)
}

fn reference(registry: &TestRegistry, name: &str, tag: &str) -> Reference {
    registry.reference(name, tag).parse().expect("a reference")
}

fn descriptor(known: &crate::harness::Descriptor) -> Descriptor {
    Descriptor::new(&known.media_type, digest(&known.digest), known.size)
}

fn digest(text: &str) -> Digest {
    text.parse().expect("a digest")
}

fn layer(layer: &Layer) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", digest(layer.digest()), layer.size())
}

fn bytes_of(layer: &Layer) -> Bytes {
    layer.source.as_ref().expect("a layer with bytes").to_bytes()
}

/// A guarded registry where `alice` may push everywhere.
fn guarded(auth: Auth) -> TestRegistry {
    let registry = TestRegistry::start(Options { auth, ..Options::default() });
    registry.add_user("alice", "open sesame");
    registry.allow("alice", "*", Right::Push);
    registry
}

fn alice() -> Accounts {
    Accounts::default().password("alice", "alice", "open sesame")
}

/// Mirrors before `host`.
fn mirrored(config: RegistryConfig, host: &str, mirrors: &[String]) -> RegistryConfig {
    let mirrors = mirrors.to_vec();
    let hosts = [(host.to_owned(), HostConfig { mirrors, ..HostConfig::default() })].into();
    RegistryConfig { hosts, ..config }
}

/// Reads a blob from `offset` to its end.
async fn read(
    client: &RegistryClient,
    ctx: &Ctx,
    repository: &Repository,
    blob: &Descriptor,
    offset: u64,
) -> Result<Bytes, RegistryError> {
    let mut body = client.open_blob(ctx, repository, blob, offset).await?;
    assert_eq!(body.offset(), offset);
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all.into())
}

type Opened = BoxFuture<'static, Result<UploadBody, BodyError>>;

/// A body of these bytes in pieces, opened as often as it takes; how often is counted.
fn body(bytes: Bytes, opened: &mut usize) -> impl FnMut() -> Opened + Send {
    move || {
        *opened += 1;
        let bytes = bytes.clone();
        let pieces: Vec<_> = (0..bytes.len()).step_by(64 << 10).collect();
        let pieces = pieces.into_iter().map(move |at| Ok(bytes.slice(at..bytes.len().min(at + (64 << 10)))));
        Box::pin(async move { Ok(stream::iter(pieces).boxed()) })
    }
}
