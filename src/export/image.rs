//! The `image` exporter: an image of this node by its names, and pushes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::ExportError;
use super::ExportTarget;
use super::Exported;
use super::Exporters;
use super::Step;
use super::assemble::Image;
use super::assemble::assemble;
use super::json;
use super::options::ImageOptions;
use super::options::InvalidOptions;
use super::options::parse_flag;
use super::push::Ahead;
use super::push::Destination;
use super::push::Push;
use super::source::ExportSource;
use crate::content::GrowingBlob;
use crate::content::NewBlob;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::Descriptor;
use crate::oci::InvalidReference;
use crate::oci::Platform;
use crate::oci::Reference;

/// Attributes of the `image` exporter.
#[derive(Clone, Debug)]
pub(super) struct ImageExport {
    options: ImageOptions,
    push: bool,
    push_by_digest: bool,
    insecure: bool,
    store: bool,
    /// The files of the named image for this node's platform are made as well.
    unpack: bool,
    name_canonical: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
    /// Attributes that we don't know are metadata of the result.
    metadata: BTreeMap<String, String>,
}

/// A push that is to follow.
#[derive(Debug)]
pub(super) struct PendingPush {
    push: Push,
    image: Arc<Image>,
    destination: Destination,
    /// Layers on their way there, until the push waits for them.
    aheads: Mutex<Vec<Ahead>>,
}

impl PendingPush {
    pub(super) async fn run(&self, ctx: &Ctx) -> Result<(), ExportError> {
        let aheads = std::mem::take(&mut *self.aheads.lock().unwrap_or_else(PoisonError::into_inner));
        self.push.image(ctx, &self.image, &self.destination, aheads).await
    }
}

/// The layers that are sent to each destination before the image is made.
struct Aheads<'a> {
    ctx: &'a Ctx,
    push: &'a Push,
    to: Mutex<Vec<(Destination, Vec<Ahead>)>>,
}

impl Aheads<'_> {
    fn send(&self, layer: &GrowingBlob) {
        for (destination, aheads) in self.to.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            aheads.push(self.push.ahead(self.ctx, layer.clone(), destination));
        }
    }

    fn take(&self, destination: &Destination) -> Vec<Ahead> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = to.iter_mut().find(|(known, _)| known == destination);
        taken.map(|(_, aheads)| std::mem::take(aheads)).unwrap_or_default()
    }
}

impl ImageExport {
    pub(super) fn parse(attributes: BTreeMap<String, String>) -> Result<ImageExport, ExportError> {
        let (options, rest) = ImageOptions::parse(attributes, true)?;
        let mut export = ImageExport {
            options,
            push: false,
            push_by_digest: false,
            insecure: false,
            store: true,
            unpack: false,
            name_canonical: false,
            dangling_prefix: String::new(),
            dangling_empty_only: false,
            metadata: BTreeMap::new(),
        };
        for (key, value) in rest {
            match key.as_str() {
                "push" => export.push = parse_flag(&key, &value)?,
                "push-by-digest" => export.push_by_digest = parse_flag(&key, &value)?,
                "registry.insecure" => export.insecure = parse_flag(&key, &value)?,
                "store" => export.store = parse_flag(&key, &value)?,
                "name-canonical" => export.name_canonical = parse_flag(&key, &value)?,
                "dangling-name-prefix" => export.dangling_prefix = value,
                // Spelled so by clients.
                "danging-name-empty-only" => export.dangling_empty_only = parse_flag(&key, &value)?,
                // A named image here may be incomplete anyway: its layers stay where they are.
                "unsafe-internal-store-allow-incomplete" => {
                    parse_flag(&key, &value)?;
                }
                "unpack" => export.unpack = parse_flag(&key, &value)?,
                _ => {
                    export.metadata.insert(key, value);
                }
            }
        }
        if export.unpack && export.options.rewrite_timestamp {
            // The files that are here are those of the layers as they were.
            let (option, with) = ("rewrite-timestamp".to_owned(), "unpack".to_owned());
            return Err(InvalidOptions::Conflict { option, with }.into());
        }
        if export.push {
            for name in names(&export.options.name).filter(|name| *name != "*") {
                export.destination(name)?;
            }
        }
        Ok(export)
    }

    pub(super) async fn run(
        &self,
        ctx: &Ctx,
        exporters: &Exporters,
        source: &ExportSource,
        target: ExportTarget,
    ) -> Result<Exported, ExportError> {
        let (source, options) = prepare(&self.options, &self.metadata, source, target, false)?;
        let aheads = Aheads { ctx, push: &exporters.push, to: Mutex::new(self.known_destinations(&source)) };
        let on_packing = |layer| aheads.send(&layer);
        let image = Box::pin(assemble(ctx, &exporters.tasks, &source, &options, &on_packing)).await?;
        let root = image.root.clone();
        let mut response = response(&image, &root)?;
        let name = self.name(&source, &image);
        if let Some((name, canonical)) = &name {
            let epoch = match options.epoch {
                Some(epoch) => epoch,
                None => source.epoch(None)?,
            };
            if self.store {
                let canonical = *canonical;
                self.store(ctx, exporters, &image, name, canonical, epoch.unwrap_or_else(Timestamp::now))
                    .await?;
                if self.unpack {
                    unpack(ctx, &source, name).await?;
                }
            }
            response.insert("image.name".to_owned(), name.clone());
        }
        let image = Arc::new(image);
        let mut pending = Vec::new();
        if let (true, Some((name, _))) = (self.push, &name) {
            for name in names(name) {
                let (push, image) = (exporters.push.clone(), Arc::clone(&image));
                let destination = self.destination(name)?;
                let aheads = Mutex::new(aheads.take(&destination));
                pending.push(PendingPush { push, image, destination, aheads });
            }
        }
        Ok(Exported { response, descriptor: Some(root), pending })
    }

    /// Where the image goes, as far as that does not depend on its digest.
    fn known_destinations(&self, source: &ExportSource) -> Vec<(Destination, Vec<Ahead>)> {
        let list = self.options.name_of(source);
        let destinations = names(&list).filter_map(|name| self.destination(name).ok());
        if self.push { destinations.map(|to| (to, Vec::new())).collect() } else { Vec::new() }
    }

    /// The names of the image, and whether each gets a canonical one as well.
    fn name(&self, source: &ExportSource, image: &Image) -> Option<(String, bool)> {
        let mut name = self.options.name_of(source);
        let mut canonical = self.name_canonical;
        if !self.dangling_prefix.is_empty() && (!self.dangling_empty_only || name.is_empty()) {
            let dangling = format!("{}@{}", self.dangling_prefix, image.root.digest);
            if name.is_empty() {
                name = dangling;
                canonical = false;
            } else {
                name = format!("{name},{dangling}");
            }
        }
        (!name.is_empty()).then_some((name, canonical))
    }

    async fn store(
        &self,
        ctx: &Ctx,
        exporters: &Exporters,
        image: &Image,
        name: &str,
        canonical: bool,
        updated_at: Timestamp,
    ) -> Result<(), ExportError> {
        let _leases = keep(exporters, image).await?;
        for name in names(name) {
            let _step = Step::start(ctx, format!("naming to {name}"));
            let mut all = vec![name.to_owned()];
            if canonical && !name.contains('@') {
                all.push(format!("{name}@{}", image.root.digest));
            }
            for name in all {
                // By the full name, under which a source looks for it.
                let name = match name.parse::<Reference>() {
                    Ok(reference) => reference.with_default_tag().to_string(),
                    Err(_) => name,
                };
                let documents = image.documents().map(|document| document.descriptor.digest).collect();
                let layers = image.layers.iter().map(|layer| layer.blob.digest).collect();
                let named = exporters.images.set(&name, image.root.clone(), documents, layers, updated_at);
                ctx.run(named).await??;
            }
        }
        Ok(())
    }

    fn destination(&self, name: &str) -> Result<Destination, ExportError> {
        let reference: Reference = name.parse().map_err(|error: InvalidReference| error)?;
        if self.push_by_digest && (reference.tag.is_some() || reference.digest.is_some()) {
            return Err(ExportError::TaggedByDigest { name: reference.to_string() });
        }
        let reference = if self.push_by_digest {
            reference
        } else {
            Reference { digest: None, ..reference }.with_default_tag()
        };
        Ok(Destination { reference, by_digest: self.push_by_digest, insecure: self.insecure })
    }
}

/// Makes the files of the image for this node's platform, if there is one: who runs it finds them.
async fn unpack(ctx: &Ctx, source: &ExportSource, names: &str) -> Result<(), ExportError> {
    let host = Platform::host();
    let ranked = source.platforms()?.into_iter().filter_map(|platform| {
        let rank = host.match_rank(&platform.platform)?;
        Some((rank, platform.id))
    });
    let Some((_, id)) = ranked.min_by_key(|(rank, _)| *rank) else { return Ok(()) };
    let Some(Some(state)) = source.find(&id) else { return Ok(()) };
    let _step = Step::start(ctx, format!("unpacking to {names}"));
    ctx.run(Box::pin(state.extract(ctx))).await??;
    Ok(())
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Stores the documents of the image, so that a name can hold them.
async fn keep(exporters: &Exporters, image: &Image) -> Result<Vec<Lease>, ExportError> {
    let blobs = image
        .documents()
        .map(|d| NewBlob { media_type: d.descriptor.media_type.clone(), bytes: d.bytes.clone() })
        .collect();
    let written = exporters.content.write_all(blobs).await?;
    Ok(written.into_iter().map(|(_, lease)| lease).collect())
}

/// The source with the exporter's own metadata, and options with every default settled. `format_is_oci` for
/// an export that is OCI's whatever the request's version.
pub(super) fn prepare(
    options: &ImageOptions,
    metadata: &BTreeMap<String, String>,
    source: &ExportSource,
    target: ExportTarget,
    format_is_oci: bool,
) -> Result<(ExportSource, ImageOptions), ExportError> {
    let (mut source, mut options) = (source.clone(), options.clone());
    source.metadata.extend(metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    let mut annotations = super::annotations::AnnotationsByPlatform::default();
    for (key, value) in &source.metadata {
        annotations.insert(key, &String::from_utf8_lossy(value)).map_err(InvalidOptions::from)?;
    }
    options.annotations.merge(annotations);
    // Docker's types have no place for attestations.
    let newest = target.defaults_to_oci();
    let oci = format_is_oci || newest || !source.attestations.is_empty();
    options.settle(oci, newest)?;
    Ok((source, options))
}

/// What the client is told of an image. `descriptor` is the root's, as it was exported.
pub(super) fn response(
    image: &Image,
    descriptor: &Descriptor,
) -> Result<BTreeMap<String, String>, ExportError> {
    let mut response = BTreeMap::new();
    response.insert("containerimage.digest".to_owned(), descriptor.digest.to_string());
    if let Some(config) = image.config_digest {
        response.insert("containerimage.config.digest".to_owned(), config.to_string());
    }
    let encoded = STANDARD.encode(json::to_vec(descriptor).map_err(ExportError::json)?);
    response.insert("containerimage.descriptor".to_owned(), encoded);
    Ok(response)
}
