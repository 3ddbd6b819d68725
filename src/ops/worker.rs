//! [`Worker`]: runs the ops of this node.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::cache_map::CacheMap;
use super::cache_map::CacheOpts;
use super::exec;
use super::exec::Execs;
use super::graph::Vertex;
use super::hash::ContentHasher;
use super::hash::Selector;
use super::http::HttpError;
use super::http::HttpFile;
use super::http::Web;
use super::image::Images;
use super::layout::Layouts;
use super::lineage::CacheOptGetter;
use super::local::Locals;
use super::op::HttpSource;
use super::op::ImageSource;
use super::op::LayoutSource;
use super::op::Op;
use super::op::RecordType;
use super::operate::LoadError;
use super::operate::OpError;
use super::operate::Operate;
use super::operate::Presence;
use super::operate::ResultId;
use super::resolution::Resolution;
use super::resolution::Resolved;
use super::source_error::SourceError;
use crate::cache;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImageList;
use crate::cache::ImmutableRef;
use crate::cache::RecordId;
use crate::cache::RefOptions;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::registry::RegistryClient;
use crate::task::Tasks;

/// Name of the empty file system among results.
const SCRATCH: &str = "scratch";

/// Runs ops and loads their results. Clones are the same worker.
#[derive(Clone, Debug)]
pub struct Worker {
    cache: Cache,
    images: Images,
    layouts: Layouts,
    /// None where no process can be run.
    execs: Option<Execs>,
    locals: Locals,
    web: Web,
    hasher: ContentHasher,
    tasks: Tasks,
    /// Ops that may run at the same time; none for no limit.
    slots: Option<Arc<Semaphore>>,
}

/// What an image is, for a frontend that decides what to do with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageMeta {
    /// Of what the name stands for: the index, where there is one.
    pub digest: Digest,
    /// The configuration of the platform asked for, as it stands in the image.
    pub config: Bytes,
}

impl Worker {
    pub fn new(cache: Cache, registry: RegistryClient, list: ImageList, tasks: Tasks) -> Worker {
        let content = cache.content().clone();
        let web = Web::new(cache.clone(), registry.clone(), tasks.clone());
        let locals = Locals::new(cache.clone(), tasks.clone());
        let images = Images::new(content.clone(), registry, list, tasks.clone());
        let hasher = ContentHasher::new(tasks.clone());
        let layouts = Layouts::new(content);
        Worker { cache, images, layouts, execs: None, locals, web, hasher, tasks, slots: None }
    }

    /// The same worker, which runs at most `limit` ops at the same time.
    pub fn limited(mut self, limit: NonZeroUsize) -> Worker {
        self.slots = Some(Arc::new(Semaphore::new(limit.get().min(Semaphore::MAX_PERMITS))));
        self
    }

    /// The same worker, which runs exec ops.
    pub fn executing(mut self, execs: Execs) -> Worker {
        self.execs = Some(execs);
        self
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What an image of a registry is. Reads its manifests and its config.
    ///
    /// Cancellation safe.
    pub async fn image_meta(
        &self,
        ctx: &Ctx,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<ImageMeta, SourceError> {
        Ok(meta(self.images.resolve(ctx, source, platform).await?))
    }

    /// As [`Worker::image_meta`], of an image of a client's layout.
    pub async fn layout_meta(
        &self,
        ctx: &Ctx,
        source: &LayoutSource,
        platform: &Platform,
    ) -> Result<ImageMeta, SourceError> {
        Ok(meta(self.layouts.resolve(ctx, source, platform).await?))
    }

    /// What is found under the address of a web server. Without a pinned checksum the server is asked, and a
    /// file that it has changed is downloaded.
    ///
    /// Cancellation safe.
    pub async fn web_meta(&self, ctx: &Ctx, source: &HttpSource) -> Result<HttpFile, HttpError> {
        self.web.resolve(ctx, source).await
    }

    /// Work of this worker goes here.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The resolution of a source vertex: the one that it was given before, or a new one.
    async fn resolution(&self, ctx: &Ctx, vertex: &Vertex) -> Result<Option<Arc<Resolution>>, SourceError> {
        let resolved = match &vertex.op {
            Op::Image(source) => &source.resolved,
            Op::OciLayout(source) => &source.resolved,
            _ => return Ok(None),
        };
        if let Some(resolution) = resolved.get() {
            return Ok(Some(resolution));
        }
        // Boxed: requests make large futures, which would lie on the stack once for each caller above.
        let resolution = match &vertex.op {
            Op::Image(source) => Box::pin(self.images.resolve(ctx, source, &vertex.platform)).await?,
            Op::OciLayout(source) => Box::pin(self.layouts.resolve(ctx, source, &vertex.platform)).await?,
            _ => return Ok(None),
        };
        Ok(Some(Resolved::keep(resolved, resolution)))
    }

    async fn pull(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        resolution: &Resolution,
    ) -> Result<Option<ImmutableRef>, SourceError> {
        let record_type = match &vertex.op {
            Op::Image(source) => record_type(source.record_type),
            _ => cache::RecordType::Regular,
        };
        let options = RefOptions {
            description: format!("pulled from {}", resolution.name),
            record_type,
            companions: resolution.documents.clone(),
        };
        let handlers = resolution.handlers(ctx.progress());
        let layers = resolution.layers.clone();
        match self.cache.get_by_layers(layers, None, &handlers, options).await {
            Ok(pulled) => Ok(Some(pulled)),
            Err(CacheError::Empty) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn meta(resolution: Resolution) -> ImageMeta {
    ImageMeta { digest: resolution.root.digest, config: resolution.config_bytes }
}

fn record_type(record_type: RecordType) -> cache::RecordType {
    match record_type {
        RecordType::Regular => cache::RecordType::Regular,
        RecordType::Internal => cache::RecordType::Internal,
        RecordType::Frontend => cache::RecordType::Frontend,
    }
}

impl Operate for Worker {
    type Output = ImmutableRef;

    fn own_cache_map(&self, vertex: &Vertex) -> Option<CacheMap<ImmutableRef>> {
        let inputs = vertex.inputs.len();
        match &vertex.op {
            Op::Merge(merge) => Some(merge.cache_map(inputs)),
            Op::File(file) => Some(file.cache_map(inputs, &self.hasher)),
            Op::Diff(diff) => Some(diff.cache_map(inputs)),
            Op::Exec(op) if self.execs.is_some() => {
                let content = |input: usize, paths: Vec<String>| {
                    let paths = paths.into_iter().map(Selector::file).collect();
                    Some(self.hasher.content(input, paths))
                };
                Some(exec::cache_map(op, inputs, content))
            }
            _ => None,
        }
    }

    async fn cache_map(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        index: usize,
    ) -> Result<CacheMap<ImmutableRef>, OpError> {
        if let Some(map) = self.own_cache_map(vertex) {
            return Ok(map);
        }
        let limit = match &vertex.op {
            Op::Image(source) => source.layer_limit,
            Op::OciLayout(source) => source.layer_limit,
            Op::Local(source) => {
                let digest = Locals::cache_key(ctx, source)?;
                return Ok(CacheMap { digest, inputs: Vec::new(), opts: CacheOpts::new(), complete: true });
            }
            Op::Http(source) => {
                let file = Box::pin(self.web.resolve(ctx, source)).await?;
                let digest = Web::cache_key(source, &file);
                return Ok(CacheMap { digest, inputs: Vec::new(), opts: CacheOpts::new(), complete: true });
            }
            Op::Merge(_) | Op::File(_) | Op::Diff(_) | Op::Exec(_) => {
                return Err(OpError::Unsupported { what: format!("the {} operation", vertex.op.kind()) });
            }
        };
        let Some(resolution) = self.resolution(ctx, vertex).await? else {
            return Err(OpError::Unsupported { what: vertex.op.kind().to_owned() });
        };
        let manifest_key = resolution.manifest_key(&vertex.platform, limit);
        let (digest, complete) = match index {
            0 => (manifest_key, false),
            _ => (resolution.content_key().unwrap_or(manifest_key), true),
        };
        let opts = CacheOpts::new().with(resolution.handlers(ctx.progress()));
        Ok(CacheMap { digest, inputs: Vec::new(), opts, complete })
    }

    async fn run(
        &self,
        ctx: &Ctx,
        vertex: &Vertex,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        let _slot = match &self.slots {
            // The semaphore is never closed.
            Some(slots) => ctx.run(slots.acquire()).await?.ok(),
            None => None,
        };
        if let Op::Merge(merge) = &vertex.op {
            let run = merge.run(&self.cache, ctx, &vertex.name, inputs);
            return Ok(vec![Box::pin(run).await?]);
        }
        match &vertex.op {
            Op::Local(source) => return Ok(vec![Some(Box::pin(self.locals.run(ctx, source)).await?)]),
            Op::Http(source) => return Ok(vec![Some(Box::pin(self.web.run(ctx, source)).await?)]),
            // Boxed: it would lie on the stack once for each caller above.
            Op::File(file) => {
                let run = file.run(&self.cache, &self.tasks, ctx, &vertex.name, inputs);
                return Box::pin(run).await;
            }
            Op::Diff(diff) => {
                let run = diff.run(&self.cache, ctx, &vertex.name, inputs);
                return Ok(vec![Box::pin(run).await?]);
            }
            _ => {}
        }
        if let (Op::Exec(op), Some(execs)) = (&vertex.op, &self.execs) {
            return Box::pin(execs.run(ctx, vertex, op, inputs)).await;
        }
        let Some(resolution) = self.resolution(ctx, vertex).await? else {
            return Err(OpError::Unsupported { what: vertex.op.kind().to_owned() });
        };
        Ok(vec![self.pull(ctx, vertex, &resolution).await?])
    }

    async fn forget_kept(&self, vertex: &Vertex) -> Result<(), OpError> {
        match (&vertex.op, &self.execs) {
            (Op::Exec(op), Some(execs)) => execs.forget_cache_mounts(op).await,
            _ => Ok(()),
        }
    }

    async fn load(
        &self,
        _ctx: &Ctx,
        id: &ResultId,
        opts: &CacheOptGetter,
    ) -> Result<Option<ImmutableRef>, LoadError> {
        if id.0 == SCRATCH {
            return Ok(None);
        }
        let id: RecordId = id.0.parse().map_err(|_| LoadError::Missing)?;
        match self.cache.get(&id, &DescHandlers::new()) {
            // Handlers are wanted even if the blobs are here or origins suffice: they say what the
            // asker may read, they report, and they ask with the rights of whoever names the image now.
            Ok(found) => {
                let digests: Vec<Digest> = found.blobs().map(|l| l.blob.digest).collect();
                Ok(Some(found.with_handlers(&offered(opts, &digests))))
            }
            Err(CacheError::NeedsRemoteProvider { .. }) => {
                let layers = self.cache.blobs(&id).map_err(load_error)?.ok_or(LoadError::Missing)?;
                let digests: Vec<Digest> = layers.iter().map(|l| l.blob.digest).collect();
                Ok(Some(self.cache.get(&id, &offered(opts, &digests)).map_err(load_error)?))
            }
            Err(error) => Err(load_error(error)),
        }
    }

    fn endow(&self, output: ImmutableRef, opts: &CacheOptGetter) -> ImmutableRef {
        let digests: Vec<Digest> = output.blobs().map(|l| l.blob.digest).collect();
        output.preferring(&offered(opts, &digests))
    }

    fn presence(&self, id: &ResultId) -> Presence {
        if id.0 == SCRATCH {
            return Presence::Local;
        }
        let presence = id.0.parse().ok().and_then(|id| match self.cache.presence(&id) {
            Ok(presence) => presence,
            Err(error) => {
                tracing::warn!(%id, %error, "a record can't be looked at");
                None
            }
        });
        match presence {
            None => Presence::Missing,
            Some(p) if p.resident == p.layers => Presence::Local,
            Some(p) if p.resident == 0 => Presence::Remote,
            Some(_) => Presence::Partial,
        }
    }

    fn have(&self, ids: &[&ResultId]) -> Vec<bool> {
        let named: Vec<Option<RecordId>> = ids.iter().map(|id| id.0.parse().ok()).collect();
        let records: Vec<RecordId> = named.iter().copied().flatten().collect();
        let have = self.cache.have(&records).unwrap_or_else(|error| {
            tracing::warn!(%error, "records can't be looked at");
            vec![false; records.len()]
        });
        let mut have = have.into_iter();
        let mut has = |id: &ResultId, named: Option<RecordId>| match named {
            Some(_) => have.next().unwrap_or(false),
            None => id.0 == SCRATCH,
        };
        ids.iter().zip(named).map(|(id, named)| has(id, named)).collect()
    }

    fn result_id(&self, output: &Option<ImmutableRef>) -> Option<ResultId> {
        Some(ResultId(output.as_ref().map_or_else(|| SCRATCH.to_owned(), |r| r.id().to_string())))
    }
}

/// The handlers that a vertex and its ancestors offer for `digests`, nearest first.
fn offered(opts: &CacheOptGetter, digests: &[Digest]) -> DescHandlers {
    let mut found = DescHandlers::new();
    for handlers in opts.all::<DescHandlers>() {
        for digest in digests {
            for handler in handlers.get(digest) {
                found.add(*digest, handler.clone());
            }
        }
    }
    found
}

fn load_error(error: CacheError) -> LoadError {
    match error {
        CacheError::NotFound { .. } => LoadError::Missing,
        CacheError::NeedsRemoteProvider { digests } => LoadError::NeedsRemoteProvider { digests },
        error => LoadError::Failed(OpError::failed(error)),
    }
}
