//! [`SourceError`]: why an image could not be found out about.

use super::operate::OpError;
use crate::cache::CacheError;
use crate::content::ContentError;
use crate::content::FetchError;
use crate::content::ProvideError;
use crate::db::DbError;
use crate::oci::Digest;
use crate::oci::InvalidManifest;
use crate::registry::RegistryError;
use crate::task::TaskFailed;

/// The image of a source can't be had, or is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{image}: {cause}")]
    Read {
        image: String,
        #[source]
        cause: FetchError,
    },
    #[error("{image}@{digest}: {cause}")]
    Manifest {
        image: String,
        digest: Digest,
        #[source]
        cause: std::sync::Arc<InvalidManifest>,
    },
    #[error("no match for platform {wanted} in the manifest of {image}: it has {offered}")]
    NoPlatform { image: String, wanted: String, offered: String },
    #[error("{image} has indexes within indexes, more than {limit} deep")]
    IndexDepth { image: String, limit: usize },
    #[error("{image} is not an image: its config is of type {media_type:?}, {reason}")]
    NotAnImage { image: String, media_type: String, reason: String },
    #[error("{image} has {layers} layers but its config lists {diff_ids}")]
    LayerMismatch { image: String, layers: usize, diff_ids: usize },
    #[error("layer limit {limit} is greater than the number of layers in {image}: {layers}")]
    LayerLimit { image: String, limit: usize, layers: usize },
    #[error("image digest {actual} for {image} does not match expected checksum {expected}")]
    Checksum { image: String, expected: Digest, actual: Digest },
    #[error("OCI layout {name} must be named with a digest")]
    NoDigest { name: String },
    #[error("OCI layout {name}@{digest} can't be read from the client: {cause}")]
    Layout { name: String, digest: Digest, cause: ProvideError },
    #[error("{image} is not among the images of this node")]
    NotLocal { image: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error("cancelled")]
    Cancelled,
}

impl SourceError {
    fn is_cancelled(&self) -> bool {
        matches!(
            self,
            SourceError::Cancelled
                | SourceError::Registry(RegistryError::Cancelled { .. })
                | SourceError::Read { cause: FetchError::Cancelled { .. }, .. }
                | SourceError::Layout { cause: ProvideError::Cancelled, .. }
        )
    }
}

impl From<SourceError> for OpError {
    fn from(error: SourceError) -> OpError {
        if error.is_cancelled() { OpError::Cancelled } else { OpError::failed(error) }
    }
}

impl From<crate::ctx::Cancelled> for SourceError {
    fn from(_: crate::ctx::Cancelled) -> SourceError {
        SourceError::Cancelled
    }
}
