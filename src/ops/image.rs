//! `docker-image://`: images of registries.
//!
//! Resolving reads the manifests and the config, which are kept by digest, and never a layer. It asks
//! the registry once for each job, with the job's own rights, so that whoever gets a resolution may read
//! what it names. What was answered stays for the job; askers who come at the same time share one request.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::kept::Place;
use super::op::ImageSource;
use super::op::ResolveMode;
use super::provide::Nowhere;
use super::provide::RegistryProvider;
use super::resolution::Origin;
use super::resolution::Resolution;
use super::source_error::SourceError;
use crate::cache::ImageList;
use crate::content::ContentStore;
use crate::content::Provider;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Platform;
use crate::oci::Reference;
use crate::progress::TransferProgress;
use crate::registry::RegistryClient;
use crate::registry::Repository;
use crate::registry::Resolved;
use crate::session::SessionId;
use crate::task::Flights;
use crate::task::Tasks;

/// What one request to a registry is shared by: the name, where what it stands for is kept, which tells jobs apart,
/// and the sessions whose rights it uses.
type ResolveKey = (String, Place<Named>, BTreeSet<SessionId>);

/// Resolves images. Clones share what is under way.
#[derive(Clone, Debug)]
pub(super) struct Images {
    content: ContentStore,
    registry: RegistryClient,
    list: ImageList,
    tasks: Tasks,
    resolving: Flights<ResolveKey, (), Result<Answer, SourceError>>,
}

/// What a name of an image was found to stand for.
#[derive(Clone, Debug)]
pub struct Named {
    /// An index or a manifest.
    pub root: Descriptor,
    found: Found,
}

/// Where a name was found.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
    /// The registry told a request with the rights of these sessions.
    Registry { readers: Vec<SessionId> },
    /// Among the images of this node.
    Here,
}

impl Named {
    /// What a registry told whoever has no session.
    #[cfg(test)]
    pub fn of_registry(root: Descriptor) -> Named {
        Named { root, found: Found::Registry { readers: Vec::new() } }
    }

    pub(super) fn is_of_registry(&self) -> bool {
        matches!(self.found, Found::Registry { .. })
    }
}

/// What a name stands for, and the root's bytes if they came with that.
type Answer = (Named, Option<Bytes>);

impl Images {
    pub(super) fn new(
        content: ContentStore,
        registry: RegistryClient,
        list: ImageList,
        tasks: Tasks,
    ) -> Images {
        Images { content, registry, list, tasks, resolving: Flights::new() }
    }

    /// What `source` stands for at `platform`, reported as `resolve <name>`.
    ///
    /// Cancellation safe: documents that were read are kept.
    pub(super) async fn resolve(
        &self,
        ctx: &Ctx,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let name = source.reference.to_string();
        let item = ctx.progress().map(|progress| progress.item(format!("resolve {name}"), ""));
        if let Some(item) = &item {
            item.start(0);
        }
        let resolved = ctx.run(Box::pin(self.resolve_by_mode(ctx, source, platform))).await;
        if let Some(item) = &item {
            item.complete();
        }
        let mut resolution = resolved??;
        if let Some(expected) = source.checksum
            && expected != resolution.root.digest
        {
            let actual = resolution.root.digest;
            return Err(SourceError::Checksum { image: name, expected, actual });
        }
        resolution.limit(source.layer_limit)?;
        Ok(resolution)
    }

    async fn resolve_by_mode(
        &self,
        ctx: &Ctx,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let known = source.named.get().map(|named| named.is_of_registry());
        match (known, source.resolve_mode) {
            (Some(false), _) => self.resolve_locally(ctx, source, platform).await,
            (_, ResolveMode::ForcePull) | (Some(true), ResolveMode::PreferLocal) => {
                self.resolve_remotely(ctx, source, platform).await
            }
            (None, ResolveMode::PreferLocal) => match self.resolve_locally(ctx, source, platform).await {
                Ok(resolution) => Ok(resolution),
                Err(_) => self.resolve_remotely(ctx, source, platform).await,
            },
            (_, ResolveMode::Default) => match self.resolve_remotely(ctx, source, platform).await {
                Ok(resolution) => Ok(resolution),
                // An image that was named here is as good as the registry's, if that one can't be had.
                Err(error) => self.resolve_locally(ctx, source, platform).await.map_err(|_| error),
            },
        }
    }

    async fn resolve_remotely(
        &self,
        ctx: &Ctx,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let (named, bytes) = self.ask(ctx, source).await?;
        let reference = &source.reference;
        let provider = RegistryProvider::new(self.registry.clone(), Repository::from(reference));
        provider.admit(ctx);
        self.read(ctx, Arc::new(provider), reference, named.root, bytes, platform).await
    }

    /// What the job knows, or else the request that proves that the asker may read the image. Shared by those with
    /// the same rights.
    async fn ask(&self, ctx: &Ctx, source: &ImageSource) -> Result<Answer, SourceError> {
        let readers = ctx.sessions().ids();
        let known = source.named.get();
        if let Some(known) = &known
            && known.found == (Found::Registry { readers: readers.clone() })
        {
            return Ok((known.clone(), None));
        }
        // Whoever shares the vertex of another job, which has been told, may read just that or nothing.
        let reference = match known {
            Some(known) => source.reference.pinned(known.root.digest),
            None => source.reference.clone(),
        };
        let key = (reference.to_string(), source.named.place(), readers.iter().cloned().collect());
        let (registry, kept, ctx) = (self.registry.clone(), source.named.clone(), ctx.clone());
        let start = move |token| {
            let ctx = ctx.with_cancel(token);
            let work = async move {
                let found = Found::Registry { readers };
                // One that ended since the caller looked has kept it.
                if let Some(known) = kept.get().filter(|known| known.found == found) {
                    return Ok((known, None));
                }
                let Resolved { descriptor: root, bytes } = registry.resolve(&ctx, &reference).await?;
                let (digest, named) = (root.digest, kept.keep(Named { root, found }));
                let bytes = bytes.filter(|_| named.root.digest == digest);
                Ok((named, bytes))
            };
            (Arc::new(()), work)
        };
        self.resolving.join(&self.tasks, key, start, |()| ()).await?
    }

    /// What the job knows, or else the image that has this name, or this digest under the name, on this node. What it
    /// consists of is read here alone.
    async fn resolve_locally(
        &self,
        ctx: &Ctx,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let reference = &source.reference;
        let root = match source.named.get() {
            Some(named) if !named.is_of_registry() => named.root,
            known => {
                let here = self.named_here(reference)?;
                if known.is_some_and(|named| named.root.digest != here.digest) {
                    return Err(not_local(reference));
                }
                here
            }
        };
        let resolution = self.read(ctx, Arc::new(Nowhere), reference, root.clone(), None, platform).await?;
        source.named.keep(Named { root, found: Found::Here });
        Ok(resolution)
    }

    fn named_here(&self, reference: &Reference) -> Result<Descriptor, SourceError> {
        let name = Reference { digest: None, ..reference.clone() }.with_default_tag().to_string();
        let image = self.list.get(&name)?.ok_or_else(|| not_local(reference))?;
        if reference.digest.is_some_and(|digest| digest != image.target.digest) {
            return Err(not_local(reference));
        }
        Ok(image.target)
    }

    async fn read(
        &self,
        ctx: &Ctx,
        provider: Arc<dyn Provider>,
        reference: &Reference,
        root: Descriptor,
        bytes: Option<Bytes>,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let origin = Origin { content: &self.content, provider, name: reference.to_string() };
        Resolution::read(ctx, origin, root, bytes, platform).await
    }
}

fn not_local(reference: &Reference) -> SourceError {
    SourceError::NotLocal { image: reference.to_string() }
}
