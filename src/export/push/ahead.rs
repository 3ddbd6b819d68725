//! [`Ahead`]: a layer on its way to a registry while it is being made.
//!
//! ```text
//!   packing:   |-- compressed, hashed, written --------------|-- synced, named --|
//!   registry:                 POST  PATCH  PATCH  PATCH  PATCH                   PUT
//!                             ^ THRESHOLD is passed                              ^ the digest is known
//! ```
//!
//! Nobody knows before its end whether the target has the layer, or can mount it. So only one that turns out large is
//! sent ahead; a small one takes the way of all blobs. The bytes are read from the store's file, and hashed once, by
//! whoever writes it.
//!
//! # Invariants
//!
//! - One stream per layer and repository, whatever number of pushes want it there; and its end is the one run of that
//!   blob to that repository ([`super`]), which others join.
//! - An upload is completed only once the blob is in the store. If the packing fails, it is cancelled.
//! - A stream that fails ends no push: the blob is uploaded from the store, with everybody's rights in turn.
//! - At most one chunk is in memory for each stream.
//!
//! # Cancellation
//!
//! Dropping every [`Ahead`] of a stream cancels its upload at the registry. The packing goes on.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use super::Asker;
use super::Askers;
use super::BlobKey;
use super::Destination;
use super::Push;
use super::PushFailure;
use super::Refused;
use super::Source;
use super::Transfer;
use super::record;
use crate::content::DescHandlers;
use crate::content::GrowingBlob;
use crate::content::GrowingError;
use crate::ctx::Ctx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::oci::Digest;
use crate::registry::ChunkedUpload;
use crate::registry::Pushed;
use crate::registry::RegistryClient;
use crate::registry::RegistryError;
use crate::registry::Repository;
use crate::task::Task;

/// A layer with more packed bytes than this is sent before it is whole.
const THRESHOLD: u64 = 8 << 20;

/// Someone's interest in a stream.
#[derive(Debug)]
#[must_use = "what nobody waits for is cancelled"]
pub(in crate::export) struct Ahead {
    task: Task<Option<Digest>>,
    leaving: DropGuard,
}

/// A layer that is being made, on its way to a repository.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct StreamKey {
    host: String,
    repository: String,
    insecure: bool,
    layer: u64,
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Growing(#[from] GrowingError),
}

impl Ahead {
    /// Waits for the stream. The digest of the layer if it is at its target now.
    async fn arrived(self) -> Option<Digest> {
        let Ahead { task, leaving } = self;
        let arrived = task.await.ok().flatten();
        drop(leaving);
        arrived
    }

    /// Waits for all of them. The digests of those layers that are at their target now.
    pub(in crate::export) async fn all(aheads: Vec<Ahead>) -> HashSet<Digest> {
        let mut arrived = HashSet::new();
        for ahead in aheads {
            arrived.extend(ahead.arrived().await);
        }
        arrived
    }
}

impl Push {
    /// Sends a layer that is being made, if it becomes large.
    pub(in crate::export) fn ahead(&self, ctx: &Ctx, layer: GrowingBlob, to: &Destination) -> Ahead {
        let token = ctx.cancel().child_token();
        let leaving = token.clone().drop_guard();
        let (push, ctx, to) = (self.clone(), ctx.with_cancel(token), to.clone());
        let task = self.tasks.spawn("layer ahead", async move {
            let stream = push.stream(&ctx, layer, &to);
            ctx.run(stream).await.ok().flatten()
        });
        Ahead { task, leaving }
    }

    async fn stream(&self, ctx: &Ctx, layer: GrowingBlob, to: &Destination) -> Option<Digest> {
        // Nobody's run before it is worth one.
        if !layer.outgrows(THRESHOLD).await {
            return None;
        }
        let repository = Repository::from(&to.reference);
        let key = StreamKey {
            host: repository.host.clone(),
            repository: repository.name.clone(),
            insecure: to.insecure,
            layer: layer.number(),
        };
        let registry = self.registry_of(to);
        let start = |token: CancellationToken| {
            let ctx = ctx.with_cancel(token);
            let stream =
                Stream { push: self.clone(), ctx, registry, repository, insecure: to.insecure, layer };
            (Arc::new(()), stream.run())
        };
        self.streams.join(&self.tasks, key, start, |()| ()).await.ok().flatten()
    }
}

/// One layer's way to one repository, with the rights of whoever asked first.
struct Stream {
    push: Push,
    ctx: Ctx,
    registry: RegistryClient,
    repository: Repository,
    insecure: bool,
    layer: GrowingBlob,
}

impl Stream {
    async fn run(self) -> Option<Digest> {
        // An earlier run may have ended since its joiner looked: then there is nothing to be ahead of.
        if !self.layer.outgrows(THRESHOLD).await {
            return None;
        }
        let ctx = self.ctx.clone();
        let sent = match ctx.run(Box::pin(self.send())).await.ok()? {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, repository = %self.repository.name, "a layer was not sent ahead");
                return None;
            }
        };
        ctx.run(Box::pin(self.complete(sent))).await.ok().flatten()
    }

    /// Sends all bytes, as they come.
    async fn send(&self) -> Result<ChunkedUpload, StreamError> {
        let mut upload = self.registry.begin_chunked(&self.ctx, &self.repository).await?;
        loop {
            let wanted = upload.chunk_bytes();
            let bytes = self.layer.read(upload.sent(), wanted).await?;
            let is_last = (bytes.len() as u64) < wanted;
            upload.send(&self.ctx, bytes).await?;
            if is_last {
                return Ok(upload);
            }
        }
    }

    /// Makes what was sent a blob there, unless somebody else is about to bring it.
    async fn complete(&self, upload: ChunkedUpload) -> Option<Digest> {
        let descriptor = self.layer.made().await.ok()?;
        let digest = descriptor.digest;
        let key = BlobKey {
            host: self.repository.host.clone(),
            repository: self.repository.name.clone(),
            digest,
            insecure: self.insecure,
        };
        let source = Source::Stored(Arc::new(DescHandlers::new()));
        let asker = Asker { ctx: self.ctx.clone(), descriptor, source };
        let transfer = Transfer {
            content: self.push.content.clone(),
            registry: self.registry.clone(),
            repository: self.repository.clone(),
        };
        let first = asker.clone();
        let start = |token: CancellationToken| {
            let askers = Arc::new(Askers::default());
            askers.add(first);
            (Arc::clone(&askers), transfer.complete(upload, digest, askers, token))
        };
        let meet = |askers: &Askers| {
            askers.add(asker);
        };
        let there = self.push.blobs.join(&self.push.tasks, key, start, meet).await;
        matches!(there, Ok(Ok(()))).then_some(digest)
    }
}

impl Transfer {
    /// Ends an upload that has all bytes, or begins anew in the usual way.
    async fn complete(
        self,
        upload: ChunkedUpload,
        digest: Digest,
        askers: Arc<Askers>,
        token: CancellationToken,
    ) -> Result<(), Refused> {
        if let Some(asker) = askers.get(0) {
            let ctx = asker.ctx.with_cancel(token.clone());
            match upload.complete(&ctx, &digest).await {
                Ok(()) => {
                    if let Err(injected) = failpoint::hit(Failpoint::BlobPushed) {
                        return Err(Arc::new(vec![PushFailure::from(injected)]));
                    }
                    record(&self.content, &digest, &self.repository, &Pushed::Uploaded);
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, %digest, "a layer that was sent ahead was not taken"),
            }
        }
        self.run(askers, token).await
    }
}
