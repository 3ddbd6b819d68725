//! Content descriptors (OCI image specification, `descriptor.md`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Digest;
use super::Platform;
use super::media_type;

/// Annotation keys that thunk reads or writes.
pub mod annotation {
    /// Digest of the uncompressed layer (containerd and BuildKit).
    pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
    /// Prefix of `containerd.io/distribution.source.<host>`: comma-separated repositories of the blob.
    pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";
    /// When a layer was made, RFC 3339 (BuildKit).
    pub const CREATED_AT: &str = "buildkit/createdat";
    /// Tag within an image layout (OCI image specification, `annotations.md`).
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// Full name of an image in an archive (containerd).
    pub const IMAGE_NAME: &str = "io.containerd.image.name";
}

/// Names some bytes: their type, digest and size.
///
/// Fields that we don't know are not kept: a descriptor is made anew in every manifest that we
/// write, while manifests that we only pass on are kept as bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes of the content.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }

    pub fn is_foreign_layer(&self) -> bool {
        media_type::is_foreign_layer(&self.media_type)
    }

    /// Repositories that the annotations list as sources, as (host, repository).
    pub fn distribution_sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.annotations.iter().flat_map(|(key, repositories)| {
            key.strip_prefix(annotation::DISTRIBUTION_SOURCE).into_iter().flat_map(move |host| {
                repositories.split(',').filter(|r| !r.is_empty()).map(move |r| (host, r))
            })
        })
    }
}

/// Go encodes an empty slice or map as `null`.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_per_host_and_repository() {
        let mut descriptor = Descriptor::of(media_type::OCI_LAYER_GZIP, b"x");
        descriptor.annotations.insert("containerd.io/distribution.source.r:5000".into(), "a,b/c,".into());
        descriptor.annotations.insert("other".into(), "z".into());
        let found: Vec<_> = descriptor.distribution_sources().collect();
        assert_eq!(found, [("r:5000", "a"), ("r:5000", "b/c")]);
    }

    #[test]
    fn null_fields_are_read_as_absent_and_absent_ones_are_not_written() {
        let digest = Digest::sha256("x");
        let text =
            format!(r#"{{"mediaType":"m","digest":"{digest}","size":1,"urls":null,"annotations":null}}"#);
        let read: Descriptor = serde_json::from_str(&text).unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            format!(r#"{{"mediaType":"m","digest":"{digest}","size":1}}"#)
        );
    }

    #[test]
    fn a_negative_or_fractional_size_is_refused() {
        let digest = Digest::sha256("x");
        for size in ["-1", "1.5", "1e30", "\"1\""] {
            let text = format!(r#"{{"mediaType":"m","digest":"{digest}","size":{size}}}"#);
            assert!(serde_json::from_str::<Descriptor>(&text).is_err(), "{size}");
        }
    }
}
