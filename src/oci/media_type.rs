//! Media types of manifests, configs and layers (OCI image specification `media-types.md`, Docker
//! image manifest version 2, schema 2).

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
pub const OCI_FOREIGN_LAYER_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
pub const OCI_FOREIGN_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// Schema 1, which is recognised only to be refused by name.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// What an `Accept` header for manifests lists.
pub const MANIFESTS: [&str; 4] = [DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_MANIFEST, OCI_INDEX];

/// How a layer's tar is compressed, as far as its media type says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    Uncompressed,
    Gzip,
    Zstd,
}

pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_MANIFEST_LIST)
}

pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

pub fn is_schema1(media_type: &str) -> bool {
    matches!(media_type, DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED)
}

/// True for a layer of a filesystem, distributable or not.
pub fn is_layer(media_type: &str) -> bool {
    compression(media_type).is_some()
}

/// True for a layer that its licence forbids to distribute: it is pulled from its own URLs and never pushed.
pub fn is_foreign_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_FOREIGN_LAYER
            | OCI_FOREIGN_LAYER_GZIP
            | OCI_FOREIGN_LAYER_ZSTD
            | DOCKER_FOREIGN_LAYER
            | DOCKER_FOREIGN_LAYER_GZIP
    )
}

/// The compression of a layer's media type; `None` for what is not a layer.
pub fn compression(media_type: &str) -> Option<Compression> {
    match media_type {
        OCI_LAYER | OCI_FOREIGN_LAYER | DOCKER_LAYER | DOCKER_FOREIGN_LAYER => {
            Some(Compression::Uncompressed)
        }
        OCI_LAYER_GZIP | OCI_FOREIGN_LAYER_GZIP | DOCKER_LAYER_GZIP | DOCKER_FOREIGN_LAYER_GZIP => {
            Some(Compression::Gzip)
        }
        OCI_LAYER_ZSTD | OCI_FOREIGN_LAYER_ZSTD | DOCKER_LAYER_ZSTD => Some(Compression::Zstd),
        _ => None,
    }
}

/// The OCI or the Docker spelling of a layer's media type; anything that is not a layer stays.
pub fn layer_as(media_type: &str, oci: bool) -> &str {
    let Some(compression) = compression(media_type) else { return media_type };
    let foreign = is_foreign_layer(media_type);
    match (oci, foreign, compression) {
        (true, false, Compression::Uncompressed) => OCI_LAYER,
        (true, false, Compression::Gzip) => OCI_LAYER_GZIP,
        (true, false, Compression::Zstd) => OCI_LAYER_ZSTD,
        (true, true, Compression::Uncompressed) => OCI_FOREIGN_LAYER,
        (true, true, Compression::Gzip) => OCI_FOREIGN_LAYER_GZIP,
        (true, true, Compression::Zstd) => OCI_FOREIGN_LAYER_ZSTD,
        (false, false, Compression::Uncompressed) => DOCKER_LAYER,
        (false, false, Compression::Gzip) => DOCKER_LAYER_GZIP,
        (false, false, Compression::Zstd) => DOCKER_LAYER_ZSTD,
        (false, true, Compression::Uncompressed) => DOCKER_FOREIGN_LAYER,
        (false, true, Compression::Gzip) => DOCKER_FOREIGN_LAYER_GZIP,
        // Docker never named a foreign zstd layer; the OCI name is the only one there is.
        (false, true, Compression::Zstd) => OCI_FOREIGN_LAYER_ZSTD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_keeps_its_compression_when_it_changes_its_spelling() {
        for layer in [OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_FOREIGN_LAYER_GZIP] {
            let docker = layer_as(layer, false);
            assert_ne!(docker, layer);
            assert_eq!(compression(docker), compression(layer));
            assert_eq!(layer_as(docker, true), layer);
        }
        assert_eq!(layer_as("application/x", true), "application/x");
    }
}
