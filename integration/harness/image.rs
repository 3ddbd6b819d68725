//! Images and indexes: what a registry, an OCI layout or an archive can hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::blob::BlobSource;
use super::digest::sha256;
use super::layer::DOCKER_LAYER;
use super::layer::DOCKER_LAYER_FOREIGN_GZIP;
use super::layer::DOCKER_LAYER_GZIP;
use super::layer::Layer;
use super::layer::OCI_LAYER;
use super::layer::OCI_LAYER_FOREIGN_GZIP;
use super::layer::OCI_LAYER_GZIP;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A descriptor as the OCI image specification writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: &str, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// From `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split('/');
        let os = parts.next().expect("a platform").to_owned();
        let architecture = parts.next().expect("a platform with an architecture").to_owned();
        Self { os, architecture, variant: parts.next().map(str::to_owned) }
    }
}

/// The platform of the machine that runs the tests, as OCI names it.
pub fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// One manifest with everything below it: blobs, and for an index its children.
#[derive(Clone, Debug)]
pub struct Image {
    pub descriptor: Descriptor,
    pub manifest: Bytes,
    /// The config's bytes; empty for an index.
    pub config: Bytes,
    pub config_descriptor: Option<Descriptor>,
    pub layers: Vec<Layer>,
    pub children: Vec<Image>,
}

impl Image {
    /// An OCI image for the host's platform. `Image::builder()` for anything else.
    pub fn of(layers: impl IntoIterator<Item = Layer>) -> Self {
        ImageBuilder { layers: layers.into_iter().collect(), ..ImageBuilder::default() }.build()
    }

    /// An image of `layers` incompressible layers with `total` random bytes in all, none of them equal
    /// to one made from another `seed` (below 2^48).
    pub fn incompressible(seed: u64, layers: u64, total: u64) -> Self {
        Self::of((0..layers).map(|n| Layer::incompressible(seed << 16 | n, total / layers)))
    }

    pub fn builder() -> ImageBuilder {
        ImageBuilder::default()
    }

    /// A multi-platform OCI index over images.
    pub fn index(children: impl IntoIterator<Item = Image>) -> Self {
        Self::index_of_type(OCI_INDEX, children)
    }

    /// The same as a Docker manifest list.
    pub fn docker_list(children: impl IntoIterator<Item = Image>) -> Self {
        Self::index_of_type(DOCKER_LIST, children)
    }

    fn index_of_type(media_type: &str, children: impl IntoIterator<Item = Image>) -> Self {
        let children: Vec<_> = children.into_iter().collect();
        let descriptors: Vec<_> = children.iter().map(|child| &child.descriptor).collect();
        let body = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": descriptors});
        let manifest = Bytes::from(serde_json::to_vec(&body).expect("an index is JSON"));
        Self {
            descriptor: Descriptor::new(media_type, &sha256(&manifest), manifest.len() as u64),
            manifest,
            config: Bytes::new(),
            config_descriptor: None,
            layers: Vec::new(),
            children,
        }
    }

    pub fn digest(&self) -> &str {
        &self.descriptor.digest
    }

    /// The digests of the layers, base first.
    pub fn layer_digests(&self) -> Vec<&str> {
        self.layers.iter().map(Layer::digest).collect()
    }

    /// Bytes of all layers.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(Layer::size).sum()
    }

    /// All blobs that a registry must hold, children's included: config and distributable layers.
    pub fn blobs(&self) -> Vec<(String, BlobSource)> {
        let config =
            self.config_descriptor.iter().map(|d| (d.digest.clone(), BlobSource::Bytes(self.config.clone())));
        let layers = self.layers.iter().filter_map(|l| Some((l.digest().to_owned(), l.source.clone()?)));
        config.chain(layers).chain(self.children.iter().flat_map(Image::blobs)).collect()
    }

    /// All manifests, children before parents.
    pub fn manifests(&self) -> Vec<(&Descriptor, &Bytes)> {
        let mut all: Vec<_> = self.children.iter().flat_map(Image::manifests).collect();
        all.push((&self.descriptor, &self.manifest));
        all
    }
}

/// What an image is made of; every field has a default.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    pub layers: Vec<Layer>,
    pub platform: String,
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub docker: bool,
    pub subject: Option<Descriptor>,
    pub artifact_type: Option<String>,
    /// Merged over the config's top level, last.
    pub config: Value,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            platform: host_platform(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            docker: false,
            subject: None,
            artifact_type: None,
            config: json!({}),
        }
    }
}

impl ImageBuilder {
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    pub fn layers(mut self, layers: impl IntoIterator<Item = Layer>) -> Self {
        self.layers.extend(layers);
        self
    }

    /// `os/architecture[/variant]`.
    pub fn platform(mut self, platform: &str) -> Self {
        self.platform = platform.to_owned();
        self
    }

    pub fn env(mut self, variable: &str) -> Self {
        self.env.push(variable.to_owned());
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Docker's media types instead of OCI's, in the manifest, the config and the layers.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Makes it a referrer of another manifest.
    pub fn subject(mut self, subject: &Descriptor) -> Self {
        self.subject = Some(Descriptor { platform: None, ..subject.clone() });
        self
    }

    pub fn artifact_type(mut self, artifact_type: &str) -> Self {
        self.artifact_type = Some(artifact_type.to_owned());
        self
    }

    /// Fields that replace those of the config's top level.
    pub fn config(mut self, fields: Value) -> Self {
        self.config = fields;
        self
    }

    pub fn build(mut self) -> Image {
        if self.docker {
            for layer in &mut self.layers {
                layer.descriptor.media_type = match layer.descriptor.media_type.as_str() {
                    OCI_LAYER => DOCKER_LAYER.to_owned(),
                    OCI_LAYER_GZIP => DOCKER_LAYER_GZIP.to_owned(),
                    OCI_LAYER_FOREIGN_GZIP => DOCKER_LAYER_FOREIGN_GZIP.to_owned(),
                    _ => continue,
                };
            }
        }
        let (manifest_type, config_type) =
            if self.docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
        let config = Bytes::from(serde_json::to_vec(&self.config_json()).expect("a config is JSON"));
        let config_descriptor = Descriptor::new(config_type, &sha256(&config), config.len() as u64);
        let manifest = self.manifest_json(manifest_type, &config_descriptor);
        let manifest = Bytes::from(serde_json::to_vec(&manifest).expect("a manifest is JSON"));
        let mut descriptor = Descriptor::new(manifest_type, &sha256(&manifest), manifest.len() as u64);
        descriptor.platform = Some(Platform::parse(&self.platform));
        Image {
            descriptor,
            manifest,
            config,
            config_descriptor: Some(config_descriptor),
            layers: self.layers,
            children: Vec::new(),
        }
    }

    fn config_json(&self) -> Value {
        let platform = Platform::parse(&self.platform);
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let step = |n| json!({"created": "1970-01-01T00:00:00Z", "created_by": format!("layer {n}")});
        let mut config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {"Env": self.env, "Labels": self.labels, "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": (0..self.layers.len()).map(step).collect::<Vec<_>>(),
        });
        if let Some(variant) = platform.variant {
            config["variant"] = variant.into();
        }
        if let Value::Object(fields) = &self.config {
            for (key, value) in fields {
                config[key] = value.clone();
            }
        }
        config
    }

    fn manifest_json(&self, media_type: &str, config: &Descriptor) -> Value {
        let layers: Vec<_> = self.layers.iter().map(|layer| &layer.descriptor).collect();
        let mut manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        if let Some(artifact_type) = &self.artifact_type {
            manifest["artifactType"] = artifact_type.clone().into();
        }
        if let Some(subject) = &self.subject {
            manifest["subject"] = json!(subject);
        }
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        manifest
    }
}
