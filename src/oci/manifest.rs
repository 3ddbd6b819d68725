//! Image manifests and indexes, OCI and Docker (image specification `manifest.md`, `image-index.md`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Descriptor;
use super::Digest;
use super::Platform;
use super::descriptor::null_is_default;
use super::media_type;

/// What registries accept at most for a manifest (distribution specification, "Pushing manifests").
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Layers of one manifest at most. Overlay and every registry stop far below.
const MAX_LAYERS: usize = 4096;

/// Manifests of one index at most.
const MAX_MANIFESTS: usize = 4096;

/// One image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Bottom first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Several manifests under one name, most often one per platform.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, taken apart where it is read")]
pub enum ManifestOrIndex {
    Manifest(Manifest),
    Index(Index),
}

/// Bytes are not a manifest that we can use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    #[error("manifest of {size} bytes is over the limit of {MAX_MANIFEST_BYTES}")]
    TooLarge { size: usize },
    #[error("manifest is not valid JSON of its media type {media_type:?}")]
    Json {
        media_type: String,
        #[source]
        cause: serde_json::Error,
    },
    #[error("image manifest schema 1 is not supported: push the image again with a current client")]
    Schema1,
    #[error("manifest has schema version {version}: only version 2 is known")]
    SchemaVersion { version: u64 },
    #[error("media type {media_type:?} is neither an image manifest nor an index")]
    MediaType { media_type: String },
    #[error("manifest says it is {inside:?} but was served as {outside:?}")]
    MediaTypeMismatch { inside: String, outside: String },
    #[error("manifest has both manifests and layers")]
    Ambiguous,
    #[error("manifest lists {count} entries, more than {limit}")]
    TooMany { count: usize, limit: usize },
}

impl ManifestOrIndex {
    /// Parses the bytes of a manifest whose descriptor or response says `media_type` (may be empty).
    ///
    /// A document that could be read as an index and as a manifest is refused, since two readers
    /// would see two images (CVE-2021-41190).
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<ManifestOrIndex, InvalidManifest> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge { size: bytes.len() });
        }
        if media_type::is_schema1(media_type) {
            return Err(InvalidManifest::Schema1);
        }
        let outside = media_type.split(';').next().unwrap_or_default().trim();
        let json = |cause| InvalidManifest::Json { media_type: outside.to_owned(), cause };
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        match shape.schema_version {
            Some(2) => {}
            Some(1) => return Err(InvalidManifest::Schema1),
            version => {
                return Err(InvalidManifest::SchemaVersion { version: version.unwrap_or_default() });
            }
        }
        let inside = shape.media_type.unwrap_or_default();
        if media_type::is_schema1(&inside) {
            return Err(InvalidManifest::Schema1);
        }
        let outside_known = media_type::is_index(outside) || media_type::is_manifest(outside);
        if !inside.is_empty() && outside_known && inside != outside {
            return Err(InvalidManifest::MediaTypeMismatch { inside, outside: outside.to_owned() });
        }
        let has_manifests = shape.manifests.is_some();
        let has_layers = shape.layers.is_some() || shape.config.is_some();
        if has_manifests && has_layers {
            return Err(InvalidManifest::Ambiguous);
        }
        let stated = if outside_known { outside } else { inside.as_str() };
        let index = match stated {
            _ if media_type::is_index(stated) => true,
            _ if media_type::is_manifest(stated) => false,
            "" => has_manifests,
            other => return Err(InvalidManifest::MediaType { media_type: other.to_owned() }),
        };
        if index {
            let index: Index = serde_json::from_slice(bytes).map_err(json)?;
            limit(index.manifests.len(), MAX_MANIFESTS)?;
            Ok(ManifestOrIndex::Index(index))
        } else {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
            limit(manifest.layers.len(), MAX_LAYERS)?;
            Ok(ManifestOrIndex::Manifest(manifest))
        }
    }
}

fn limit(count: usize, limit: usize) -> Result<(), InvalidManifest> {
    if count > limit { Err(InvalidManifest::TooMany { count, limit }) } else { Ok(()) }
}

/// Just what decides how to read the rest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Index {
    /// The manifest that serves `wanted` best: the closest match, the first among equals.
    ///
    /// An entry without a platform serves only if no entry has one that matches.
    pub fn select(&self, wanted: &Platform) -> Option<&Descriptor> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for manifest in &self.manifests {
            let rank = match &manifest.platform {
                Some(platform) => wanted.match_rank(platform),
                None if manifest.artifact_type.is_none() => Some(u32::MAX),
                None => None,
            };
            if let Some(rank) = rank
                && best.is_none_or(|(least, _)| rank < least)
            {
                best = Some((rank, manifest));
            }
        }
        best.map(|(_, manifest)| manifest)
    }

    /// The platforms that the index offers, for an error message.
    pub fn platforms(&self) -> Vec<String> {
        self.manifests.iter().filter_map(|m| m.platform.as_ref()).map(Platform::to_string).collect()
    }

    /// The entry of exactly this digest.
    pub fn find(&self, digest: &Digest) -> Option<&Descriptor> {
        self.manifests.iter().find(|m| m.digest == *digest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(platform: &str) -> Descriptor {
        let mut d = Descriptor::of(media_type::OCI_MANIFEST, platform.as_bytes());
        d.platform = (!platform.is_empty()).then(|| platform.parse().unwrap());
        d
    }

    fn index(platforms: &[&str]) -> Index {
        Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.into(),
            artifact_type: None,
            manifests: platforms.iter().map(|p| descriptor(p)).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_closest_platform_wins() {
        let index = index(&["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64"]);
        let select = |p: &str| {
            let found = index.select(&p.parse().unwrap());
            found.map(|d| d.platform.as_ref().unwrap().to_string())
        };
        assert_eq!(select("linux/arm/v7").as_deref(), Some("linux/arm/v7"));
        assert_eq!(select("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(select("linux/arm64").as_deref(), Some("linux/arm64"));
        assert_eq!(select("linux/amd64/v3").as_deref(), Some("linux/amd64"));
        assert_eq!(select("windows/amd64"), None);
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(matches!(ManifestOrIndex::parse("", both), Err(InvalidManifest::Ambiguous)));
        let index = serde_json::to_vec(&index(&[])).unwrap();
        assert!(matches!(
            ManifestOrIndex::parse(media_type::OCI_MANIFEST, &index),
            Err(InvalidManifest::MediaTypeMismatch { .. })
        ));
    }

    #[test]
    fn schema_1_is_refused_by_name() {
        for (media_type, bytes) in [
            (media_type::DOCKER_SCHEMA1_SIGNED, &b"{}"[..]),
            ("", br#"{"schemaVersion":1,"fsLayers":[]}"#),
            ("application/json", br#"{"schemaVersion":1}"#),
        ] {
            assert!(matches!(ManifestOrIndex::parse(media_type, bytes), Err(InvalidManifest::Schema1)));
        }
    }

    #[test]
    fn a_generic_content_type_falls_back_to_what_the_document_says() {
        let bytes = serde_json::to_vec(&index(&["linux/amd64"])).unwrap();
        for outside in ["", "application/json", "text/plain; charset=utf-8"] {
            assert!(matches!(ManifestOrIndex::parse(outside, &bytes), Ok(ManifestOrIndex::Index(_))));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = ManifestOrIndex::parse("", &bytes);
            let _ = ManifestOrIndex::parse(media_type::OCI_INDEX, &bytes);
        }

        #[test]
        fn mangled_manifests_never_panic(at in 0usize..200, with in any::<u8>()) {
            let mut bytes = serde_json::to_vec(&index(&["linux/amd64", "linux/arm/v7"])).unwrap();
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = ManifestOrIndex::parse(media_type::OCI_INDEX, &bytes);
        }
    }
}
