//! [`Resolution`]: what the name of an image stands for, down to its layers, without any of their bytes
//! (OCI image specification: `image-index.md`, `manifest.md`, `config.md`).

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use super::provide::Prefetched;
use super::source_error::SourceError;
use crate::cache::Layer;
use crate::content::ContentStore;
use crate::content::DescHandler;
use crate::content::DescHandlers;
use crate::content::Provider;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::ChainId;
use crate::oci::Descriptor;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::ManifestOrIndex;
use crate::oci::Platform;
use crate::oci::media_type;
use crate::progress::TransferProgress;
use crate::progress::VertexProgress;

/// Bytes of an image's configuration at most.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// Indexes within indexes at most.
const MAX_INDEX_DEPTH: usize = 4;

/// An image for one platform. Holds its manifests and its config while it lives.
pub struct Resolution {
    /// The image's name, for people.
    pub name: String,
    /// What the name stands for: an index or a manifest.
    pub root: Descriptor,
    pub manifest: Descriptor,
    pub config: Descriptor,
    pub config_bytes: Bytes,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The root, what is between, the manifest and the config.
    pub documents: Vec<Digest>,
    provider: Arc<dyn Provider>,
    _leases: Vec<Lease>,
}

/// Where an image is read from: the store, and who provides what is not there.
pub(super) struct Origin<'o> {
    pub(super) content: &'o ContentStore,
    pub(super) provider: Arc<dyn Provider>,
    /// The image's, for people.
    pub(super) name: String,
}

impl Resolution {
    /// Reads the image below `root` for `platform`. `root_bytes` are the root's own if they are known
    /// already. What was read before is not read again.
    pub(super) async fn read(
        ctx: &Ctx,
        origin: Origin<'_>,
        root: Descriptor,
        root_bytes: Option<Bytes>,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let name = origin.name.clone();
        let mut leases = vec![origin.content.hold(&root.digest)];
        let mut documents = vec![root.digest];
        let mut descriptor = root.clone();
        let mut bytes = origin.read_root(ctx, &root, root_bytes).await?;
        let mut depth = 0;
        let manifest = loop {
            let invalid = |cause| SourceError::Manifest {
                image: name.clone(),
                digest: descriptor.digest,
                cause: Arc::new(cause),
            };
            match ManifestOrIndex::parse(&descriptor.media_type, &bytes).map_err(invalid)? {
                ManifestOrIndex::Manifest(manifest) => break manifest,
                ManifestOrIndex::Index(index) => {
                    depth += 1;
                    if depth > MAX_INDEX_DEPTH {
                        return Err(SourceError::IndexDepth { image: name, limit: MAX_INDEX_DEPTH });
                    }
                    let Some(selected) = index.select(platform) else {
                        let (wanted, offered) = (platform.to_string(), index.platforms().join(", "));
                        return Err(SourceError::NoPlatform { image: name, wanted, offered });
                    };
                    descriptor = Descriptor { platform: None, ..selected.clone() };
                    leases.push(origin.content.hold(&descriptor.digest));
                    documents.push(descriptor.digest);
                    bytes = origin.document(ctx, &descriptor, MAX_MANIFEST_BYTES as u64).await?;
                }
            }
        };
        let config = manifest.config;
        leases.push(origin.content.hold(&config.digest));
        documents.push(config.digest);
        let config_bytes = origin.document(ctx, &config, MAX_CONFIG_BYTES).await?;
        let layers = layers(&name, &config, &config_bytes, manifest.layers)?;
        Ok(Resolution {
            name,
            root,
            manifest: descriptor,
            config,
            config_bytes,
            layers,
            documents,
            provider: origin.provider,
            _leases: leases,
        })
    }

    /// Leaves the lowest `limit` layers.
    pub(super) fn limit(&mut self, limit: Option<usize>) -> Result<(), SourceError> {
        let Some(limit) = limit else { return Ok(()) };
        let layers = self.layers.len();
        if limit > layers {
            return Err(SourceError::LayerLimit { image: self.name.clone(), limit, layers });
        }
        self.layers.truncate(limit);
        Ok(())
    }

    /// A handler for each layer, which reports under `progress`.
    pub(super) fn handlers(&self, progress: Option<&VertexProgress>) -> DescHandlers {
        let mut handlers = DescHandlers::new();
        for layer in &self.layers {
            let digest = layer.blob.digest;
            let mut handler = DescHandler::new(Arc::clone(&self.provider));
            if let Some(progress) = progress {
                let item: Arc<dyn TransferProgress> = Arc::new(progress.item(digest.to_string(), ""));
                let extraction = progress.item(format!("extracting {digest}"), "extracting");
                handler = handler.with_progress(item).with_extraction(Arc::new(extraction));
            }
            handlers.add(digest, handler);
        }
        handlers
    }

    /// The key of exactly this image: a tag that moves gives another one.
    pub(super) fn manifest_key(&self, platform: &Platform, limit: Option<usize>) -> Digest {
        /// The names are those of BuildKit's key, so that both find each other's remote caches.
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'k> {
            digest: Digest,
            #[serde(rename = "OS")]
            os: &'k str,
            arch: &'k str,
            #[serde(skip_serializing_if = "str::is_empty")]
            variant: &'k str,
            #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
            os_version: &'k str,
            #[serde(rename = "OSFeatures", skip_serializing_if = "<[_]>::is_empty")]
            os_features: &'k [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<usize>,
        }
        let key = Key {
            digest: self.root.digest,
            os: &platform.os,
            arch: &platform.architecture,
            variant: &platform.variant,
            os_version: &platform.os_version,
            os_features: &platform.os_features,
            limit,
        };
        // Plain strings and numbers can't fail to be written.
        source_key(&Digest::sha256(serde_json::to_vec(&key).unwrap_or_default()))
    }

    /// The key of what the image consists of: another image of the same layers has it, too.
    pub(super) fn content_key(&self) -> Option<Digest> {
        let chain = ChainId::of_all(self.layers.iter().map(|l| l.diff_id))?;
        Some(source_key(&chain.0))
    }
}

impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolution({}@{}, {} layers)", self.name, self.root.digest, self.layers.len())
    }
}

fn source_key(key: &Digest) -> Digest {
    Digest::sha256(format!("buildkit.source.v0:{key}"))
}

impl Origin<'_> {
    async fn read_root(
        &self,
        ctx: &Ctx,
        root: &Descriptor,
        bytes: Option<Bytes>,
    ) -> Result<Bytes, SourceError> {
        let Some(bytes) = bytes else { return self.document(ctx, root, MAX_MANIFEST_BYTES as u64).await };
        // Into the store by the usual way, so that whose bytes these are is known.
        let provider = Arc::clone(&self.provider);
        let prefetched = Prefetched { bytes: bytes.clone(), provider };
        let mut handlers = DescHandlers::new();
        handlers.add(root.digest, DescHandler::new(Arc::new(prefetched)));
        self.bytes(ctx, root, &handlers, MAX_MANIFEST_BYTES as u64).await
    }

    async fn document(&self, ctx: &Ctx, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        let mut handlers = DescHandlers::new();
        handlers.add(descriptor.digest, DescHandler::new(Arc::clone(&self.provider)));
        self.bytes(ctx, descriptor, &handlers, limit).await
    }

    async fn bytes(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        limit: u64,
    ) -> Result<Bytes, SourceError> {
        let read = self.content.read(ctx, descriptor, handlers, limit).await;
        read.map_err(|cause| SourceError::Read { image: self.name.clone(), cause })
    }
}

/// What counts of a configuration here; the rest is kept as bytes.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<DiffId>>,
}

#[derive(Deserialize)]
struct History {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

fn layers(
    image: &str,
    config: &Descriptor,
    bytes: &[u8],
    blobs: Vec<Descriptor>,
) -> Result<Vec<Layer>, SourceError> {
    let not_an_image = |reason: String| SourceError::NotAnImage {
        image: image.to_owned(),
        media_type: config.media_type.clone(),
        reason,
    };
    let known = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
    if !known.contains(&config.media_type.as_str())
        && !blobs.iter().all(|b| media_type::is_layer(&b.media_type))
    {
        return Err(not_an_image("its blobs are no layers".to_owned()));
    }
    let parsed: Config = serde_json::from_slice(bytes).map_err(|e| not_an_image(e.to_string()))?;
    if !matches!(parsed.rootfs.kind.as_str(), "layers" | "") {
        return Err(not_an_image(format!("its root filesystem is of type {:?}", parsed.rootfs.kind)));
    }
    let diff_ids = parsed.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != blobs.len() {
        let (layers, diff_ids) = (blobs.len(), diff_ids.len());
        return Err(SourceError::LayerMismatch { image: image.to_owned(), layers, diff_ids });
    }
    let mut history = parsed.history.unwrap_or_default().into_iter().filter(|h| !h.empty_layer);
    let layers = blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
        let mut layer = Layer::new(blob, diff_id);
        if let Some(history) = history.next() {
            layer.created = history.created.or(layer.created);
            layer.created_by = history.created_by.filter(|by| !by.is_empty());
        }
        layer
    });
    Ok(layers.collect())
}

/// Remembers the resolution of one vertex, so that what runs is what the key was made of.
#[derive(Clone, Default)]
pub struct Resolved(Arc<OnceLock<Arc<Resolution>>>);

impl Resolved {
    pub(super) fn get(&self) -> Option<Arc<Resolution>> {
        self.0.get().cloned()
    }

    /// Keeps the first one, and returns the one that is kept.
    pub(super) fn keep(&self, resolution: Resolution) -> Arc<Resolution> {
        Arc::clone(self.0.get_or_init(|| Arc::new(resolution)))
    }
}

/// What was found out about a vertex is no part of what the vertex is.
impl PartialEq for Resolved {
    fn eq(&self, _: &Resolved) -> bool {
        true
    }
}

impl Eq for Resolved {}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolved({})", self.0.get().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(diff_ids: usize) -> String {
        let ids: Vec<String> =
            (0..diff_ids).map(|n| format!("\"{}\"", Digest::sha256(n.to_string()))).collect();
        format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}},"history":[
                {{"created":"2020-01-01T00:00:00Z","created_by":"ADD a"}},
                {{"empty_layer":true,"created_by":"ENV"}},
                {{"created":"2021-01-01T00:00:00Z","created_by":"ADD b"}}]}}"#,
            ids.join(",")
        )
    }

    fn blobs(count: usize) -> Vec<Descriptor> {
        (0..count).map(|n| Descriptor::of(media_type::OCI_LAYER_GZIP, n.to_string().as_bytes())).collect()
    }

    fn parse(config: &str, blobs: Vec<Descriptor>) -> Result<Vec<Layer>, SourceError> {
        layers("x", &Descriptor::of(media_type::OCI_CONFIG, config.as_bytes()), config.as_bytes(), blobs)
    }

    #[test]
    fn each_layer_has_its_diff_id_and_its_own_history() {
        let layers = parse(&config(2), blobs(2)).unwrap();
        assert_eq!(layers[1].diff_id, DiffId(Digest::sha256("1")));
        let made: Vec<_> = layers.iter().map(|l| l.created_by.as_deref()).collect();
        assert_eq!(made, [Some("ADD a"), Some("ADD b")]);
        assert_eq!(layers[1].created.as_deref(), Some("2021-01-01T00:00:00Z"));
    }

    #[test]
    fn a_config_of_another_image_or_of_none_is_refused() {
        assert!(matches!(
            parse(&config(1), blobs(2)),
            Err(SourceError::LayerMismatch { layers: 2, diff_ids: 1, .. })
        ));
        for text in ["{}", "[]", "", r#"{"rootfs":{"type":"cake"}}"#, r#"{"rootfs":{"diff_ids":["x"]}}"#] {
            assert!(matches!(parse(text, blobs(1)), Err(SourceError::NotAnImage { .. })), "{text}");
        }
        let artifact = Descriptor::of("application/x", b"{}");
        assert!(layers("x", &artifact, b"{}", vec![Descriptor::of("application/y", b"")]).is_err());
    }
}
