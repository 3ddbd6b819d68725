//! [`assemble`]: manifests, configs and an index around layers. Layers that were made here get their
//! blobs now; nothing is downloaded unless a layer is forced into another compression.
//!
//! What we write is written as BuildKit writes it, byte for byte (OCI image specification
//! `manifest.md`, `image-index.md`; Docker image manifest version 2, schema 2).

use std::collections::BTreeMap;
use std::collections::HashSet;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::ExportError;
use super::Step;
use super::annotations::Annotations;
use super::attestation;
use super::attestation::Attestation;
use super::attestation::AttestationError;
use super::attestation::AttestationManifest;
use super::attestation::Statement;
use super::config;
use super::config::ConfigParts;
use super::config::LayerOrigin;
use super::config::Time;
use super::json;
use super::options::ImageOptions;
use super::source::ExportSource;
use super::source::ResultPlatform;
use crate::archive;
use crate::cache::ImmutableRef;
use crate::cache::Layer;
use crate::cache::LayerOptions;
use crate::cache::OnPacking;
use crate::cache::Part;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::media_type;
use crate::task::Tasks;

/// Says that no time in a layer is later than its value, in seconds since 1970.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// The annotations of a layer that say how it can be read, or what was made of it, and are therefore kept.
const KEPT_ANNOTATIONS: [&str; 3] =
    ["containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size", REWRITTEN];

/// A document that was made here.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Bytes,
}

/// A whole image: what was made, and where the rest is.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The index or the only manifest, with its platform and annotations.
    pub(super) root: Descriptor,
    /// Those of the platforms, then those of their attestations, then the index: the root is the last one.
    pub(super) manifests: Vec<Document>,
    /// Of the platforms, in the order of their manifests.
    pub(super) configs: Vec<Document>,
    /// Configs and statements of the attestations.
    pub(super) attached: Vec<Document>,
    /// Each blob once.
    pub(super) layers: Vec<ImageLayer>,
    /// Of an image for one platform.
    pub(super) config_digest: Option<Digest>,
    pub(super) handlers: DescHandlers,
    /// Keep the records, and by them the layers.
    pub(super) _refs: Vec<ImmutableRef>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub(super) struct ImageLayer {
    /// As the manifest lists it.
    pub(super) listed: Descriptor,
    /// As it is known here, which says where a layer that is not distributed comes from.
    pub(super) blob: Descriptor,
}

impl Image {
    /// Everything that was made, in no order.
    pub(super) fn documents(&self) -> impl Iterator<Item = &Document> {
        self.manifests.iter().chain(self.leaves())
    }

    /// What was made and lists nothing.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Document> {
        self.configs.iter().chain(&self.attached)
    }
}

/// One platform's part of an image.
struct ImagePart {
    manifest: Document,
    config: Document,
    layers: Vec<ImageLayer>,
}

/// Makes the documents of the image that `source` is. `options` are settled; `on_packing` is told of layers that get
/// their blobs now.
pub(super) async fn assemble(
    ctx: &Ctx,
    tasks: &Tasks,
    source: &ExportSource,
    options: &ImageOptions,
    on_packing: OnPacking<'_>,
) -> Result<Image, ExportError> {
    let platforms = source.platforms()?;
    let needs_index = source.is_multi_platform() || is_attested(source, options, &platforms);
    if needs_index && !options.is_oci() && !source.attestations.is_empty() {
        return Err(AttestationError::NeedOci.into());
    }
    for named in options.annotations.platforms() {
        if source.find(named).is_none() {
            return Err(ExportError::AnnotationPlatform { platform: named.to_owned() });
        }
    }
    if !options.is_oci() && options.annotations.need_oci() {
        return Err(ExportError::AnnotationsNeedOci);
    }
    let mut parts = Vec::with_capacity(platforms.len());
    let mut layers = Vec::with_capacity(platforms.len());
    let mut refs = Vec::new();
    let mut handlers = DescHandlers::new();
    let step = Step::start(ctx, "exporting layers");
    for platform in &platforms {
        let Some(found) = source.find(&platform.id) else {
            return Err(ExportError::MissingRef { id: platform.id.clone() });
        };
        let found = match found {
            Some(reference) => Some(reference.alone(ctx).await?),
            None => None,
        };
        layers.push(match &found {
            Some(reference) => layers_of(ctx, source, options, platform, reference, on_packing).await?,
            None => Vec::new(),
        });
        if let Some(reference) = found {
            handlers.extend(reference.handlers());
            refs.push(reference);
        }
    }
    drop(step);
    for (platform, layers) in platforms.iter().zip(&layers) {
        parts.push(part(ctx, source, options, platform, layers, needs_index)?);
    }
    if needs_index {
        let attested = attest(ctx, tasks, source, options, &platforms, &parts).await?;
        return index(ctx, options, parts, attested, refs, handlers);
    }
    if parts.len() > 1 {
        return Err(ExportError::SinglePlatform { platforms: parts.len() });
    }
    let Annotations { index, index_descriptor, .. } = options.annotations.of(None);
    if !index.is_empty() || !index_descriptor.is_empty() {
        return Err(ExportError::NoIndex);
    }
    let Some(ImagePart { manifest, config, layers }) = parts.pop() else {
        return Err(ExportError::SinglePlatform { platforms: 0 });
    };
    let root = manifest.descriptor.clone();
    let config_digest = Some(config.descriptor.digest);
    Ok(Image {
        root,
        manifests: vec![manifest],
        configs: vec![config],
        attached: Vec::new(),
        layers: distinct(layers),
        config_digest,
        handlers,
        _refs: refs,
    })
}

fn epoch(
    source: &ExportSource,
    options: &ImageOptions,
    platform: &ResultPlatform,
) -> Result<Option<Timestamp>, ExportError> {
    match options.epoch {
        Some(epoch) => Ok(epoch),
        None => source.epoch(Some(platform)),
    }
}

/// The layers of a state, in the compression and with the times that are asked for.
async fn layers_of(
    ctx: &Ctx,
    source: &ExportSource,
    options: &ImageOptions,
    platform: &ResultPlatform,
    reference: &ImmutableRef,
    on_packing: OnPacking<'_>,
) -> Result<Vec<Layer>, ExportError> {
    let epoch = epoch(source, options, platform)?.filter(|_| options.rewrite_timestamp);
    let (kept, _step) = match epoch {
        Some(epoch) => {
            let name = format!("rewriting layers with source-date-epoch {} ({epoch})", epoch.as_second());
            let kept = layers_of_base(source.base_config(platform), &reference.parts())?;
            (kept, Some(Step::start(ctx, name)))
        }
        None => (0, None),
    };
    let refused = |what: String| ExportError::Unsupported { what };
    let compression = match options.compression.archive() {
        Some(compression) => compression,
        None if reference.blobs().count() < reference.depth() => {
            return Err(refused(format!("making a layer with compression {}", options.compression.name())));
        }
        None if (options.force_compression || epoch.is_some()) && reference.blobs().next().is_some() => {
            return Err(refused(format!("force-compression to {}", options.compression.name())));
        }
        None => archive::Compression::Gzip,
    };
    let wanted = LayerOptions {
        compression,
        level: options.compression_level,
        force: options.force_compression,
        epoch,
        kept,
    };
    let mut layers = reference.layers_as_they_grow(ctx, &wanted, on_packing).await?;
    if let Some(epoch) = epoch {
        for layer in layers.iter_mut().skip(kept) {
            layer.blob.annotations.insert(REWRITTEN.to_owned(), epoch.as_second().to_string());
        }
    }
    Ok(layers)
}

fn part(
    ctx: &Ctx,
    source: &ExportSource,
    options: &ImageOptions,
    platform: &ResultPlatform,
    layers: &[Layer],
    in_index: bool,
) -> Result<ImagePart, ExportError> {
    let base = source.base_config(platform);
    let epoch = epoch(source, options, platform)?;
    let origins: Vec<(DiffId, LayerOrigin)> = layers.iter().map(|l| (l.diff_id, origin(l))).collect();
    let config = config::write(&ConfigParts {
        config: source.config(platform).map(Bytes::as_ref),
        base: base.map(Bytes::as_ref),
        platform: &platform.platform,
        layers: &origins,
        epoch,
    })?;
    let oci = options.is_oci();
    let config_type = if oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG };
    let config = document(config_type, config);
    let listed: Vec<Descriptor> = layers.iter().map(|layer| describe(layer, options)).collect();
    // Without an index there is one platform, and what is said for one by name counts for none.
    let annotations = options.annotations.of(in_index.then_some(&platform.platform));
    let manifest_type = if oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST };
    let manifest = ManifestOut {
        schema_version: 2,
        media_type: manifest_type,
        config: &config.descriptor,
        layers: (!listed.is_empty()).then_some(listed.as_slice()),
        annotations: &annotations.manifest,
    };
    let mut manifest = document(manifest_type, json::to_vec_indented(&manifest).map_err(ExportError::json)?);
    manifest.descriptor.platform = Some(platform.platform.clone());
    manifest.descriptor.annotations = annotations.manifest_descriptor;
    drop(Step::start(ctx, format!("exporting manifest {}", manifest.descriptor.digest)));
    drop(Step::start(ctx, format!("exporting config {}", config.descriptor.digest)));
    let blobs = layers.iter().map(|layer| layer.blob.clone());
    let layers = listed.into_iter().zip(blobs).map(|(listed, blob)| ImageLayer { listed, blob }).collect();
    Ok(ImagePart { manifest, config, layers })
}

/// True if something is stated that belongs into this export.
fn is_attested(source: &ExportSource, options: &ImageOptions, platforms: &[ResultPlatform]) -> bool {
    let wanted = |one: &Attestation<ImmutableRef>| options.attestation_inline || !one.is_inline_only();
    platforms.iter().filter_map(|platform| source.attestations.get(&platform.id)).flatten().any(wanted)
}

/// The manifests of what is stated of each platform.
async fn attest(
    ctx: &Ctx,
    tasks: &Tasks,
    source: &ExportSource,
    options: &ImageOptions,
    platforms: &[ResultPlatform],
    parts: &[ImagePart],
) -> Result<Vec<AttestationManifest>, ExportError> {
    let mut manifests = Vec::new();
    for (platform, part) in platforms.iter().zip(parts) {
        let Some(attestations) = source.attestations.get(&platform.id) else { continue };
        let about = &part.manifest.descriptor;
        let subjects = attestation::image_subjects(&options.name_of(source), platform, about.digest)?;
        let predicates = attestation::read(ctx, tasks, attestations.clone()).await?;
        let statements: Vec<Statement> = predicates.iter().map(|one| one.about(&subjects)).collect();
        let artifact = options.oci_artifact == Some(true);
        let manifest = AttestationManifest::new(about, &statements, artifact)?;
        let digest = manifest.manifest.descriptor.digest;
        drop(Step::start(ctx, format!("exporting attestation manifest {digest}")));
        manifests.push(manifest);
    }
    Ok(manifests)
}

fn index(
    ctx: &Ctx,
    options: &ImageOptions,
    parts: Vec<ImagePart>,
    attested: Vec<AttestationManifest>,
    refs: Vec<ImmutableRef>,
    handlers: DescHandlers,
) -> Result<Image, ExportError> {
    let annotations = options.annotations.of(None);
    let media_type = if options.is_oci() { media_type::OCI_INDEX } else { media_type::DOCKER_MANIFEST_LIST };
    let all = parts.iter().map(|p| &p.manifest).chain(attested.iter().map(|a| &a.manifest));
    let manifests: Vec<&Descriptor> = all.map(|manifest| &manifest.descriptor).collect();
    let index = IndexOut { schema_version: 2, media_type, manifests, annotations: &annotations.index };
    let mut root = document(media_type, json::to_vec_indented(&index).map_err(ExportError::json)?);
    root.descriptor.annotations = annotations.index_descriptor;
    drop(Step::start(ctx, format!("exporting manifest list {}", root.descriptor.digest)));
    let descriptor = root.descriptor.clone();
    let (mut manifests, mut configs, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        manifests.push(part.manifest);
        configs.push(part.config);
        layers.extend(part.layers);
    }
    let mut attached = Vec::new();
    for one in attested {
        manifests.push(one.manifest);
        attached.extend(one.attached);
    }
    manifests.push(root);
    let mut seen = HashSet::new();
    attached.retain(|document| seen.insert(document.descriptor.digest));
    let layers = distinct(layers);
    let root = descriptor;
    Ok(Image { root, manifests, configs, attached, layers, config_digest: None, handlers, _refs: refs })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestOut<'m> {
    schema_version: u32,
    media_type: &'m str,
    config: &'m Descriptor,
    /// `None` for no layer: a nil slice is `null` in Go.
    layers: Option<&'m [Descriptor]>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'m BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexOut<'m> {
    schema_version: u32,
    media_type: &'m str,
    manifests: Vec<&'m Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'m BTreeMap<String, String>,
}

pub(super) fn document(media_type: &str, bytes: Vec<u8>) -> Document {
    Document { descriptor: Descriptor::of(media_type, &bytes), bytes: bytes.into() }
}

fn distinct(mut layers: Vec<ImageLayer>) -> Vec<ImageLayer> {
    let mut seen = HashSet::new();
    layers.retain(|layer| seen.insert(layer.blob.digest));
    layers
}

fn origin(layer: &Layer) -> LayerOrigin {
    LayerOrigin {
        created: layer.created.as_deref().and_then(Time::parse),
        created_by: layer.created_by.clone(),
    }
}

/// The layer as the manifest lists it.
fn describe(layer: &Layer, options: &ImageOptions) -> Descriptor {
    let blob = &layer.blob;
    let keep_urls = options.prefer_nondistributable && !blob.urls.is_empty();
    let media_type = match media_type::compression(&blob.media_type) {
        Some(compression) => layer_type(compression, keep_urls, options.is_oci()).to_owned(),
        None => blob.media_type.clone(),
    };
    let mut descriptor = Descriptor::new(media_type, blob.digest, blob.size);
    if keep_urls {
        descriptor.urls.clone_from(&blob.urls);
    }
    if options.is_oci() {
        let kept = blob.annotations.iter().filter(|(key, _)| KEPT_ANNOTATIONS.contains(&key.as_str()));
        descriptor.annotations = kept.map(|(k, v)| (k.clone(), v.clone())).collect();
    }
    descriptor
}

/// The media type of a layer; a layer that is had from nowhere else than here is distributable.
fn layer_type(compression: media_type::Compression, foreign: bool, oci: bool) -> &'static str {
    let distributable = match compression {
        media_type::Compression::Uncompressed => media_type::OCI_LAYER,
        media_type::Compression::Gzip => media_type::OCI_LAYER_GZIP,
        media_type::Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    };
    let media_type = match (foreign, compression) {
        (false, _) => distributable,
        (true, media_type::Compression::Uncompressed) => media_type::OCI_FOREIGN_LAYER,
        (true, media_type::Compression::Gzip) => media_type::OCI_FOREIGN_LAYER_GZIP,
        (true, media_type::Compression::Zstd) => media_type::OCI_FOREIGN_LAYER_ZSTD,
    };
    media_type::layer_as(media_type, oci)
}

/// How many of the parts are those of the base image. They keep their times.
fn layers_of_base(base: Option<&Bytes>, parts: &[Part]) -> Result<usize, ExportError> {
    #[derive(serde::Deserialize)]
    struct Base {
        rootfs: RootFs,
    }
    #[derive(serde::Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Option<Vec<DiffId>>,
    }
    let of_base: Vec<DiffId> = match base.filter(|b| !b.is_empty()) {
        Some(text) => {
            let base: Base = serde_json::from_slice(text).map_err(ExportError::json)?;
            base.rootfs.diff_ids.unwrap_or_default()
        }
        None => Vec::new(),
    };
    let is_base = |(part, base): &(&Part, &DiffId)| part.blob().is_some_and(|l| l.diff_id == **base);
    Ok(parts.iter().zip(&of_base).take_while(is_base).count())
}
