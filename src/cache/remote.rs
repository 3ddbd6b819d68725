//! [`Remote`]: the layers of a state as descriptors, with a provider that fetches a blob when it is
//! read and not before.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;
use std::fmt;

use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;

use super::ImmutableRef;
use super::record::Layer;
use crate::content::BlobReader;
use crate::content::BlobStream;
use crate::content::ContentError;
use crate::content::ContentStore;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::annotation;

/// Fetches of one un-lazy that are asked for at the same time. The limits per host are the registry
/// client's; this bounds what is queued there.
const CONCURRENT: usize = 64;

/// Descriptors of the layers of one state or several, and the way to their bytes.
#[derive(Clone)]
pub struct Remote {
    /// Bottom first. Each carries its diff ID and every known repository of the blob as annotations.
    descriptors: Vec<Descriptor>,
    handlers: DescHandlers,
    content: ContentStore,
    /// Keep the records, and by them the blobs.
    _refs: Vec<ImmutableRef>,
}

impl Remote {
    /// `layers` are those of `reference`, bottom first.
    pub(super) fn of(reference: &ImmutableRef, layers: &[Layer]) -> Result<Remote, ContentError> {
        let content = reference.cache().content().clone();
        let handlers = reference.handlers().clone();
        let descriptors = layers.iter().map(|layer| describe(layer, &content, &handlers));
        Ok(Remote {
            descriptors: descriptors.collect::<Result<_, _>>()?,
            handlers,
            content,
            _refs: vec![reference.clone()],
        })
    }

    /// For callers who look at no annotation.
    pub(super) fn without_origins(reference: &ImmutableRef) -> Remote {
        Remote {
            descriptors: reference.blobs().map(|layer| layer.blob.clone()).collect(),
            handlers: reference.handlers().clone(),
            content: reference.cache().content().clone(),
            _refs: vec![reference.clone()],
        }
    }

    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    pub fn handlers(&self) -> &DescHandlers {
        &self.handlers
    }

    /// The descriptor of a blob, from metadata.
    pub fn info(&self, digest: &Digest) -> Option<&Descriptor> {
        self.descriptors.iter().find(|d| d.digest == *digest)
    }

    /// Makes all blobs resident, at the same time, with the rights of `ctx`. The first error ends it.
    ///
    /// Cancellation safe: what was fetched is kept.
    pub async fn unlazy(&self, ctx: &Ctx) -> Result<(), FetchError> {
        let mut seen = HashSet::new();
        let wanted = self.descriptors.iter().filter(|d| seen.insert(d.digest));
        stream::iter(wanted)
            .map(|d| self.content.fetch(ctx, d, &self.handlers))
            .buffer_unordered(CONCURRENT)
            .try_for_each(async |_lease| Ok(()))
            .await
    }

    /// Opens a blob, which is fetched first if it is not resident.
    pub async fn open(&self, ctx: &Ctx, descriptor: &Descriptor) -> Result<BlobReader, FetchError> {
        self.content.reader(ctx, descriptor, &self.handlers).await
    }

    /// The verified bytes of a blob on their way through: what is not resident does not become so.
    pub async fn stream(&self, ctx: &Ctx, descriptor: &Descriptor) -> Result<BlobStream, FetchError> {
        self.content.stream(ctx, descriptor, &self.handlers).await
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.descriptors.iter().map(|d| d.digest)).finish()
    }
}

fn describe(
    layer: &Layer,
    content: &ContentStore,
    handlers: &DescHandlers,
) -> Result<Descriptor, ContentError> {
    let mut descriptor = layer.blob.clone();
    let annotations = &mut descriptor.annotations;
    annotations.insert(annotation::UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
    if let Some(created) = &layer.created {
        annotations.insert(annotation::CREATED_AT.to_owned(), created.clone());
    }
    let offered = handlers.get(&descriptor.digest).iter().filter_map(|h| h.provider.origin());
    let mut repositories: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let known = content.origins(&descriptor.digest)?.into_iter().map(|known| known.origin);
    for origin in known.chain(offered) {
        if let Origin::Registry { host, repository } = origin {
            repositories.entry(host).or_default().insert(repository);
        }
    }
    for (host, repositories) in repositories {
        let list: Vec<String> = repositories.into_iter().collect();
        let key = format!("{}{host}", annotation::DISTRIBUTION_SOURCE);
        descriptor.annotations.insert(key, list.join(","));
    }
    Ok(descriptor)
}
