//! Where the bytes of images come from: registries, and the content stores that clients serve.
//!
//! A provider holds no right of its own. Each call asks with those of its [`Ctx`], at that moment.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;

use crate::content::Body;
use crate::content::Connect;
use crate::content::Opened;
use crate::content::Origin;
use crate::content::ProvideError;
use crate::content::Provider;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::media_type;
use crate::registry::BlobBody;
use crate::registry::RegistryClient;
use crate::registry::RegistryError;
use crate::registry::Repository;
use crate::session::ClientContent;
use crate::session::Session;
use crate::session::SessionError;
use crate::session::SessionId;

/// Finds the way to durable origins.
#[derive(Clone, Debug)]
pub struct Origins {
    registry: RegistryClient,
}

impl Origins {
    pub fn new(registry: RegistryClient) -> Origins {
        Origins { registry }
    }
}

impl Connect for Origins {
    fn provider(&self, origin: &Origin) -> Option<Arc<dyn Provider>> {
        match origin {
            Origin::Registry { host, repository } => {
                let repository = Repository::new(host, repository);
                Some(Arc::new(RegistryProvider::new(self.registry.clone(), repository)))
            }
            Origin::SessionStore { store } => Some(Arc::new(SessionProvider::new(store.clone(), None))),
        }
    }
}

/// Blobs and manifests of one repository.
///
/// Several builds may come by one provider, since they share the vertex that made it. It vouches for
/// those of them whose own request the registry answered.
#[derive(Clone)]
pub(super) struct RegistryProvider {
    client: RegistryClient,
    repository: Repository,
    /// The sessions of requests that were answered. Held for a look or an insert.
    readers: Arc<Mutex<HashSet<Vec<SessionId>>>>,
}

impl RegistryProvider {
    pub(super) fn new(client: RegistryClient, repository: Repository) -> RegistryProvider {
        RegistryProvider { client, repository, readers: Arc::default() }
    }

    /// Notes that the registry let `ctx` read. Of a request for several sessions nobody knows whose
    /// rights it was that counted.
    pub(super) fn admit(&self, ctx: &Ctx) {
        let sessions = ctx.sessions().ids();
        if sessions.len() <= 1 {
            self.readers.lock().unwrap_or_else(PoisonError::into_inner).insert(sessions);
        }
    }
}

impl fmt::Debug for RegistryProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryProvider({})", self.repository)
    }
}

#[async_trait]
impl Provider for RegistryProvider {
    async fn open(&self, ctx: &Ctx, descriptor: &Descriptor, offset: u64) -> Result<Opened, ProvideError> {
        if is_manifest(descriptor) {
            let bytes =
                self.client.manifest(ctx, &self.repository, descriptor).await.map_err(provide_error)?;
            return Ok(opened(bytes));
        }
        let body = self.client.open_blob(ctx, &self.repository, descriptor, offset).await;
        let body = body.map_err(provide_error)?;
        self.admit(ctx);
        Ok(Opened { offset: body.offset(), body: Box::pin(RegistryBody(body)) })
    }

    async fn read_range(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<Bytes>, ProvideError> {
        if is_manifest(descriptor) {
            return Ok(None);
        }
        let bytes = self.client.blob_range(ctx, &self.repository, descriptor, range).await;
        let bytes = bytes.map_err(provide_error)?;
        if bytes.is_some() {
            self.admit(ctx);
        }
        Ok(bytes)
    }

    async fn probe(&self, ctx: &Ctx, descriptor: &Descriptor) -> Result<(), ProvideError> {
        let probed = if is_manifest(descriptor) {
            self.client.manifest(ctx, &self.repository, descriptor).await.map(drop)
        } else {
            self.client.probe_blob(ctx, &self.repository, descriptor).await
        };
        probed.map_err(provide_error)?;
        self.admit(ctx);
        Ok(())
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin::registry(&self.repository.host, &self.repository.name))
    }

    fn vouches_for(&self, ctx: &Ctx) -> bool {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).contains(&ctx.sessions().ids())
    }
}

struct RegistryBody(BlobBody);

impl Stream for RegistryBody {
    type Item = Result<Bytes, ProvideError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context).map_err(provide_error)
    }
}

impl Body for RegistryBody {
    fn condemn(&self) {
        self.0.condemn();
    }
}

/// Manifests are at another address than blobs.
fn is_manifest(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}

fn opened(bytes: Bytes) -> Opened {
    Opened::new(0, stream::once(async move { Ok(bytes) }))
}

fn provide_error(error: RegistryError) -> ProvideError {
    match error {
        RegistryError::Cancelled { .. } => ProvideError::Cancelled,
        RegistryError::NotFound { .. } => ProvideError::gone(error),
        RegistryError::Unauthorized { .. }
        | RegistryError::Forbidden { .. }
        | RegistryError::Credentials { .. } => ProvideError::unauthorized(error),
        RegistryError::Corrupt { .. } | RegistryError::WrongLength { .. } => ProvideError::corrupt(error),
        _ => ProvideError::unreachable(error),
    }
}

/// Bytes that were read when the name was resolved, and the provider that they came from.
#[derive(Debug)]
pub(super) struct Prefetched {
    pub(super) bytes: Bytes,
    pub(super) provider: Arc<dyn Provider>,
}

#[async_trait]
impl Provider for Prefetched {
    async fn open(&self, _: &Ctx, _: &Descriptor, _: u64) -> Result<Opened, ProvideError> {
        Ok(opened(self.bytes.clone()))
    }

    /// Whoever has this provider got the bytes by itself.
    async fn probe(&self, _: &Ctx, _: &Descriptor) -> Result<(), ProvideError> {
        Ok(())
    }

    fn origin(&self) -> Option<Origin> {
        self.provider.origin()
    }

    fn vouches_for(&self, ctx: &Ctx) -> bool {
        self.provider.vouches_for(ctx)
    }
}

/// Stands for nobody: what an image of this node consists of is here, or where its blobs are known to
/// be, and whoever wants it needs rights of its own there.
#[derive(Debug)]
pub(super) struct Nowhere;

#[async_trait]
impl Provider for Nowhere {
    async fn open(&self, _: &Ctx, descriptor: &Descriptor, _: u64) -> Result<Opened, ProvideError> {
        Err(ProvideError::gone(format!("no registry was asked for {}", descriptor.digest)))
    }

    async fn probe(&self, _: &Ctx, descriptor: &Descriptor) -> Result<(), ProvideError> {
        Err(ProvideError::gone(format!("no registry was asked for {}", descriptor.digest)))
    }

    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// A content store that a client serves in its session.
#[derive(Clone, Debug)]
pub(super) struct SessionProvider {
    /// Name of the store within the session.
    store: String,
    /// The session that has it; any of the asker's if absent.
    session: Option<SessionId>,
}

impl SessionProvider {
    pub(super) fn new(store: String, session: Option<SessionId>) -> SessionProvider {
        SessionProvider { store, session }
    }

    /// Makes `call` on the store of the first session of `ctx` that succeeds.
    pub(super) async fn with<T, F, Fut>(&self, ctx: &Ctx, call: F) -> Result<T, ProvideError>
    where
        F: Fn(ClientContent) -> Fut,
        Fut: Future<Output = Result<T, ProvideError>>,
    {
        let sessions = ctx.sessions();
        let answer = sessions.any(|session: Session| {
            let wanted = self.session.as_ref().is_none_or(|wanted| wanted == session.id());
            let called = wanted.then(|| call(session.content(&self.store)));
            async move {
                match called {
                    Some(called) => called.await.map_err(CallError),
                    None => Err(CallError(ProvideError::unreachable(SessionError::NoActiveSessions))),
                }
            }
        });
        match ctx.run(answer).await {
            Ok(answer) => answer.map_err(|CallError(error)| error),
            Err(_) => Err(ProvideError::Cancelled),
        }
    }
}

/// Lets [`ProvideError`] be the error of a call to a group of sessions.
struct CallError(ProvideError);

impl From<SessionError> for CallError {
    fn from(error: SessionError) -> CallError {
        CallError(ProvideError::unreachable(error))
    }
}

#[async_trait]
impl Provider for SessionProvider {
    async fn open(&self, ctx: &Ctx, descriptor: &Descriptor, offset: u64) -> Result<Opened, ProvideError> {
        let digest = descriptor.digest;
        let read = move |content: ClientContent| async move {
            content.read(&digest, offset).await.map_err(session_error)
        };
        let stream = Box::pin(self.with(ctx, read)).await?;
        Ok(Opened::new(offset, stream.map_err(session_error)))
    }

    async fn probe(&self, ctx: &Ctx, descriptor: &Descriptor) -> Result<(), ProvideError> {
        let digest = descriptor.digest;
        let info =
            move |content: ClientContent| async move { content.info(&digest).await.map_err(session_error) };
        let found = Box::pin(self.with(ctx, info)).await?;
        match found {
            Some(_) => Ok(()),
            None => {
                Err(ProvideError::gone(format!("the client's store {} does not have {digest}", self.store)))
            }
        }
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin::SessionStore { store: self.store.clone() })
    }
}

pub(super) fn session_error(error: SessionError) -> ProvideError {
    ProvideError::unreachable(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::NoCredentials;
    use crate::registry::RegistryConfig;
    use crate::session::SessionGroup;
    use crate::session::Sessions;
    use crate::task::Tasks;

    #[tokio::test]
    async fn a_provider_vouches_only_for_those_whose_own_request_was_answered() {
        let tasks = Tasks::new();
        let sessions = Sessions::new(&tasks);
        let of = |ids: &[&str]| {
            let ids = ids.iter().map(|id| SessionId::new(id));
            Ctx::background().with_sessions(SessionGroup::new(&sessions, ids))
        };
        let client = RegistryClient::new(RegistryConfig::default(), Arc::new(NoCredentials), &tasks);
        let provider = RegistryProvider::new(client, Repository::new("r.example", "app"));
        assert!(!provider.vouches_for(&of(&["a"])));
        provider.admit(&of(&["a", "b"]));
        assert!(!provider.vouches_for(&of(&["a"])), "nobody knows whose rights it was");
        assert!(!provider.vouches_for(&of(&["a", "b"])));
        provider.admit(&of(&["a"]));
        assert!(provider.vouches_for(&of(&["a"])));
        assert!(!provider.vouches_for(&of(&["b"])) && !provider.vouches_for(&Ctx::background()));
    }
}
