//! `docker-image://`: images of registries.
//!
//! Resolving reads the manifests and the config, which are kept by digest, and never a layer. It asks
//! the registry with the asker's own rights each time, so that whoever gets a resolution may read what
//! it names; askers of the same sessions who come at the same time share one request.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

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

/// What one request to a registry is shared by: the name, and the sessions whose rights it uses.
type ResolveKey = (String, BTreeSet<SessionId>);

/// Resolves images. Clones share what is under way.
#[derive(Clone, Debug)]
pub(super) struct Images {
    content: ContentStore,
    registry: RegistryClient,
    list: ImageList,
    tasks: Tasks,
    resolving: Flights<ResolveKey, (), Result<Resolved, SourceError>>,
}

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
        let reference = &source.reference;
        match source.resolve_mode {
            ResolveMode::ForcePull => self.resolve_remotely(ctx, reference, platform).await,
            ResolveMode::PreferLocal => match self.resolve_locally(ctx, reference, platform).await {
                Ok(resolution) => Ok(resolution),
                Err(_) => self.resolve_remotely(ctx, reference, platform).await,
            },
            ResolveMode::Default => match self.resolve_remotely(ctx, reference, platform).await {
                Ok(resolution) => Ok(resolution),
                // An image that was named here is as good as the registry's, if that one can't be had.
                Err(error) => self.resolve_locally(ctx, reference, platform).await.map_err(|_| error),
            },
        }
    }

    async fn resolve_remotely(
        &self,
        ctx: &Ctx,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let Resolved { descriptor, bytes } = self.ask(ctx, reference).await?;
        let provider = RegistryProvider::new(self.registry.clone(), Repository::from(reference));
        provider.admit(ctx);
        self.read(ctx, Arc::new(provider), reference, descriptor, bytes, platform).await
    }

    /// The request that proves that the asker may read the image. Shared by those with the same rights.
    async fn ask(&self, ctx: &Ctx, reference: &Reference) -> Result<Resolved, SourceError> {
        let key = (reference.to_string(), ctx.sessions().ids().into_iter().collect());
        let (registry, reference, ctx) = (self.registry.clone(), reference.clone(), ctx.clone());
        let start = move |token| {
            let ctx = ctx.with_cancel(token);
            let work = async move { Ok(registry.resolve(&ctx, &reference).await?) };
            (Arc::new(()), work)
        };
        self.resolving.join(&self.tasks, key, start, |()| ()).await?
    }

    /// The image that has this name, or this digest under the name, on this node.
    async fn resolve_locally(
        &self,
        ctx: &Ctx,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let not_local = || SourceError::NotLocal { image: reference.to_string() };
        let name = Reference { digest: None, ..reference.clone() }.with_default_tag().to_string();
        let image = self.list.get(&name)?.ok_or_else(not_local)?;
        if reference.digest.is_some_and(|digest| digest != image.target.digest) {
            return Err(not_local());
        }
        self.read(ctx, Arc::new(Nowhere), reference, image.target, None, platform).await
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
