//! [`Push`]: images to registries.
//!
//! What the target has is not sent; what another repository of its host has is mounted; only the rest
//! is uploaded, and bytes that are not here pass through from their origin without being kept. Blobs go
//! first, then manifests, children before parents: a manifest that is at its target has everything that
//! it lists there, by the rule of registries (OCI distribution specification, "Pushing manifests").
//!
//! # Sharing
//!
//! A blob goes to a repository once at a time, whatever number of pushes want it there. Each of them
//! adds its own rights: the next one's are used if those before were refused. Manifests are not shared,
//! so that nobody names an image with another's rights.
//!
//! Layers that are large and being made are sent while they are: see [`ahead`].

mod ahead;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;

use super::ExportError;
use super::Step;
use super::assemble::Document;
use super::assemble::Image;
use super::assemble::ImageLayer;
use crate::content::ContentError;
use crate::content::ContentStore;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::failpoint::Injected;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::registry::PushError;
use crate::registry::Pushed;
use crate::registry::RegistryClient;
use crate::registry::RegistryError;
use crate::registry::Repository;
use crate::registry::Selector;
use crate::registry::UploadBody;
use crate::task::Flights;
use crate::task::TaskFailed;
use crate::task::Tasks;

pub(super) use ahead::Ahead;

/// Blobs of one push under way at the same time. The limits per host are the registry client's.
const CONCURRENT: usize = 64;

/// Times that bytes which pass through may turn out not to be the blob's: the second time another mirror
/// may serve them, or what damaged them on the way is over.
const CORRUPT_TRIES: u32 = 2;

/// A push failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushFailure {
    #[error(transparent)]
    Push(Arc<PushError>),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error(transparent)]
    Injected(#[from] Injected),
    #[error("cancelled")]
    Cancelled,
}

impl PushFailure {
    pub fn is_cancelled(&self) -> bool {
        match self {
            PushFailure::Cancelled => true,
            PushFailure::Push(error) => error.is_cancelled(),
            _ => false,
        }
    }
}

impl From<PushError> for PushFailure {
    fn from(error: PushError) -> PushFailure {
        PushFailure::Push(Arc::new(error))
    }
}

impl From<RegistryError> for PushFailure {
    fn from(error: RegistryError) -> PushFailure {
        PushError::from(error).into()
    }
}

/// Pushes images. Clones share what is under way.
#[derive(Clone)]
pub struct Push {
    content: ContentStore,
    registry: RegistryClient,
    tasks: Tasks,
    blobs: Flights<BlobKey, Askers, Result<(), Refused>>,
    streams: Flights<ahead::StreamKey, (), Option<Digest>>,
}

/// Where an image goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Destination {
    /// Has a tag unless the push is by digest.
    pub(super) reference: Reference,
    pub(super) by_digest: bool,
    /// Plain HTTP and any certificate will do.
    pub(super) insecure: bool,
}

/// A blob on its way to a repository, by a client that is strict or not.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct BlobKey {
    host: String,
    repository: String,
    digest: Digest,
    insecure: bool,
}

/// Those who want one blob at one place, in the order in which they came.
#[derive(Debug, Default)]
struct Askers(Mutex<Vec<Asker>>);

#[derive(Clone, Debug)]
struct Asker {
    ctx: Ctx,
    descriptor: Descriptor,
    source: Source,
}

/// The bytes of a blob.
#[derive(Clone, Debug)]
enum Source {
    Made(Bytes),
    Stored(Arc<DescHandlers>),
}

/// What each asker that had its turn failed with.
type Refused = Arc<Vec<PushFailure>>;

impl Askers {
    /// Adds an asker and returns its number.
    fn add(&self, asker: Asker) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(asker);
        all.len() - 1
    }

    fn get(&self, number: usize) -> Option<Asker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(number).cloned()
    }
}

impl Push {
    pub fn new(content: ContentStore, registry: RegistryClient, tasks: Tasks) -> Push {
        Push { content, registry, tasks, blobs: Flights::new(), streams: Flights::new() }
    }

    /// Makes the destination name `image`. `aheads` are layers on their way there.
    ///
    /// Cancellation safe: blobs that arrived stay and are found the next time.
    pub(super) async fn image(
        &self,
        ctx: &Ctx,
        image: &Image,
        to: &Destination,
        aheads: Vec<Ahead>,
    ) -> Result<(), ExportError> {
        let push = async {
            let there = Ahead::all(aheads).await;
            self.push(ctx, image, to, &there).await
        };
        let pushed = ctx.run(Box::pin(push)).await.unwrap_or(Err(PushFailure::Cancelled));
        pushed.map_err(|source| ExportError::Push { name: to.reference.to_string(), source })
    }

    fn registry_of(&self, to: &Destination) -> RegistryClient {
        if to.insecure { self.registry.trusting(&to.reference.host) } else { self.registry.clone() }
    }

    /// `there` are blobs that were seen to arrive.
    async fn push(
        &self,
        ctx: &Ctx,
        image: &Image,
        to: &Destination,
        there: &HashSet<Digest>,
    ) -> Result<(), PushFailure> {
        let registry = self.registry_of(to);
        let repository = Repository::from(&to.reference);
        let root = image.root.digest;
        let selector = match &to.reference.tag {
            Some(tag) if !to.by_digest => Selector::Tag(tag.clone()),
            _ => Selector::Digest(root),
        };
        let step = Step::start(ctx, "pushing layers");
        // A manifest that is there has everything that it lists there, too.
        if registry.head_manifest(ctx, &repository, &selector).await? == Some(root) {
            return Ok(());
        }
        // No look for the root by its digest: a retag finds each blob with a HEAD, side by side.
        self.blobs(ctx, image, &registry, &repository, to.insecure, there).await?;
        drop(step);
        let name = if to.by_digest { to.reference.name() } else { to.reference.pinned(root).to_string() };
        let _step = Step::start(ctx, format!("pushing manifest for {name}"));
        let Some((top, children)) = image.manifests.split_last() else { return Ok(()) };
        let push = |child| self.child(ctx, &registry, &repository, child);
        // Collected, or the whole would not be `Send` for every lifetime.
        let pushes: Vec<_> = children.iter().map(push).collect();
        stream::iter(pushes).buffer_unordered(CONCURRENT).try_collect::<()>().await?;
        // What is there under the name is known to be something else.
        self.manifest(ctx, &registry, &repository, &selector, top).await
    }

    async fn child(
        &self,
        ctx: &Ctx,
        registry: &RegistryClient,
        repository: &Repository,
        child: &Document,
    ) -> Result<(), PushFailure> {
        let selector = Selector::Digest(child.descriptor.digest);
        if registry.head_manifest(ctx, repository, &selector).await? == Some(child.descriptor.digest) {
            return Ok(());
        }
        self.manifest(ctx, registry, repository, &selector, child).await
    }

    async fn manifest(
        &self,
        ctx: &Ctx,
        registry: &RegistryClient,
        repository: &Repository,
        selector: &Selector,
        document: &Document,
    ) -> Result<(), PushFailure> {
        let Document { descriptor, bytes } = document;
        registry.put_manifest(ctx, repository, selector, descriptor, bytes.clone()).await?;
        failpoint::hit(Failpoint::ManifestPushed)?;
        record(&self.content, &descriptor.digest, repository, &Pushed::Uploaded);
        Ok(())
    }

    /// All layers that may be distributed and are not there, and what else no manifest is.
    async fn blobs(
        &self,
        ctx: &Ctx,
        image: &Image,
        registry: &RegistryClient,
        repository: &Repository,
        insecure: bool,
        there: &HashSet<Digest>,
    ) -> Result<(), PushFailure> {
        let handlers = Arc::new(image.handlers.clone());
        let is_wanted =
            |layer: &&ImageLayer| !layer.listed.is_foreign_layer() && !there.contains(&layer.blob.digest);
        let distributed = image.layers.iter().filter(is_wanted);
        let layers = distributed.map(|layer| {
            let source = Source::Stored(Arc::clone(&handlers));
            Asker { ctx: ctx.clone(), descriptor: layer.blob.clone(), source }
        });
        let leaves = image.leaves().map(|leaf| {
            let source = Source::Made(leaf.bytes.clone());
            Asker { ctx: ctx.clone(), descriptor: leaf.descriptor.clone(), source }
        });
        let all: Vec<Asker> = layers.chain(leaves).collect();
        let pushes = all.into_iter().map(|asker| self.blob(asker, registry, repository, insecure));
        stream::iter(pushes.collect::<Vec<_>>()).buffer_unordered(CONCURRENT).try_collect::<()>().await
    }

    /// Makes sure that one blob is in the repository: by what others do already, if they do.
    async fn blob(
        &self,
        asker: Asker,
        registry: &RegistryClient,
        repository: &Repository,
        insecure: bool,
    ) -> Result<(), PushFailure> {
        let key = BlobKey {
            host: repository.host.clone(),
            repository: repository.name.clone(),
            digest: asker.descriptor.digest,
            insecure,
        };
        loop {
            let number = Mutex::new(0);
            let set = |n: usize| *number.lock().unwrap_or_else(PoisonError::into_inner) = n;
            let transfer = Transfer {
                content: self.content.clone(),
                registry: registry.clone(),
                repository: repository.clone(),
            };
            let first = asker.clone();
            let start = |token: CancellationToken| {
                let askers = Arc::new(Askers::default());
                set(askers.add(first));
                (Arc::clone(&askers), transfer.run(askers, token))
            };
            let meet = |askers: &Askers| set(askers.add(asker.clone()));
            let result = self.blobs.join(&self.tasks, key.clone(), start, meet).await?;
            let Err(refused) = result else { return Ok(()) };
            let number = *number.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever came when the last turn was over has a turn in the next run.
            if let Some(own) = refused.get(number) {
                return Err(own.clone());
            }
        }
    }
}

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Push({} blobs under way)", self.blobs.len())
    }
}

/// One blob's way to one repository.
struct Transfer {
    content: ContentStore,
    registry: RegistryClient,
    repository: Repository,
}

impl Transfer {
    /// Gives each asker a turn until one succeeds.
    async fn run(self, askers: Arc<Askers>, token: CancellationToken) -> Result<(), Refused> {
        let mut refused = Vec::new();
        while let Some(asker) = askers.get(refused.len()) {
            match self.turn(&asker, token.clone()).await {
                Ok(()) => return Ok(()),
                Err(failure) => refused.push(failure),
            }
        }
        Err(Arc::new(refused))
    }

    async fn turn(&self, asker: &Asker, token: CancellationToken) -> Result<(), PushFailure> {
        let ctx = asker.ctx.with_cancel(token);
        let descriptor = &asker.descriptor;
        let mounts = match &asker.source {
            Source::Made(_) => Vec::new(),
            Source::Stored(handlers) => self.mounts(&descriptor.digest, handlers)?,
        };
        let mut open = || {
            let (content, source) = (self.content.clone(), asker.source.clone());
            let (ctx, descriptor) = (ctx.clone(), descriptor.clone());
            async move {
                let body: UploadBody = match source {
                    Source::Made(bytes) => stream::once(async move { Ok(bytes) }).boxed(),
                    Source::Stored(handlers) => {
                        let bytes = content.stream(&ctx, &descriptor, &handlers).await?;
                        bytes.map_err(Into::into).boxed()
                    }
                };
                Ok(body)
            }
            .boxed()
        };
        let mut damaged = 0;
        let pushed = loop {
            let pushed =
                self.registry.push_blob(&ctx, &self.repository, descriptor, &mounts, &mut open).await;
            match pushed {
                Ok(pushed) => break pushed,
                Err(error) if damaged + 1 < CORRUPT_TRIES && is_damaged(&error) => damaged += 1,
                Err(error) => return Err(error.into()),
            }
        };
        failpoint::hit(Failpoint::BlobPushed)?;
        record(&self.content, &descriptor.digest, &self.repository, &pushed);
        Ok(())
    }

    /// Other repositories of the target's host that are said to have the blob, the likeliest first.
    fn mounts(&self, digest: &Digest, handlers: &DescHandlers) -> Result<Vec<String>, ContentError> {
        let offered = handlers.get(digest).iter().filter_map(|h| h.provider.origin());
        let known = self.content.origins(digest)?.into_iter().map(|known| known.origin);
        let repositories = known.chain(offered).filter_map(|origin| match origin {
            Origin::Registry { host, repository } if host == self.repository.host => Some(repository),
            _ => None,
        });
        Ok(mount_order(&self.repository.name, repositories))
    }
}

/// True if what was to be sent was damaged before it came here.
fn is_damaged(error: &PushError) -> bool {
    match error {
        PushError::Body { cause, .. } => {
            matches!(cause.downcast_ref::<FetchError>(), Some(FetchError::Corrupt { .. }))
        }
        _ => false,
    }
}

/// Notes the target as an origin. What it only says of itself is no proof that it has the bytes.
fn record(content: &ContentStore, digest: &Digest, repository: &Repository, pushed: &Pushed) {
    let origin = Origin::registry(&repository.host, &repository.name);
    match pushed {
        Pushed::Uploaded => content.record_origin(digest, origin),
        Pushed::Existed | Pushed::Mounted { .. } => content.note_origin(digest, origin),
    }
}

/// Each repository but `target` once: those that share the longest path with it first, since the
/// same people may use them.
fn mount_order(target: &str, repositories: impl IntoIterator<Item = String>) -> Vec<String> {
    let common =
        |repository: &str| target.split('/').zip(repository.split('/')).take_while(|(a, b)| a == b).count();
    let mut ranked: BTreeMap<(std::cmp::Reverse<usize>, String), ()> = BTreeMap::new();
    for repository in repositories {
        if repository != target {
            ranked.insert((std::cmp::Reverse(common(&repository)), repository), ());
        }
    }
    ranked.into_keys().map(|(_, repository)| repository).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repositories_near_the_target_are_asked_first_and_itself_never() {
        let known = ["x/y", "team/app/base", "team/app", "team/other", "team/app/base"];
        let order = mount_order("team/app/web", known.map(str::to_owned));
        assert_eq!(order, ["team/app", "team/app/base", "team/other", "x/y"]);
        assert!(mount_order("a", ["a".to_owned()]).is_empty());
    }

    proptest! {
        #[test]
        fn every_other_repository_is_a_candidate_once(
            target in "[ab](/[ab]){0,3}", known in proptest::collection::vec("[ab](/[ab]){0,3}", 0..10)
        ) {
            let order = mount_order(&target, known.clone());
            let mut expected: Vec<String> = known.into_iter().filter(|k| *k != target).collect();
            expected.sort();
            expected.dedup();
            let mut sorted = order.clone();
            sorted.sort();
            prop_assert_eq!(sorted, expected);
        }
    }
}
