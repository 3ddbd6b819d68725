//! Unpacks a layer while it is read.

use std::io::Read;
use std::path::PathBuf;

use super::LayerIndex;
use crate::archive::ArchiveError;
use crate::archive::Compression;
use crate::archive::Limits;
use crate::fs::Root;
use crate::oci::DiffId;

/// What becomes of a layer's whiteouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhiteoutStyle {
    /// The directory holds this layer alone: devices 0:0 and `trusted.overlay.opaque`.
    Overlay,
    /// The directory holds all layers below: what is whited out is deleted.
    Plain,
}

#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions<'a> {
    pub style: WhiteoutStyle,
    /// The tree below, for hard links to files of earlier layers and for the owners of directories that
    /// the layer implies. Without one, a layer that links below fails with [`ApplyError::NeedsLower`].
    pub lower: Option<&'a Root>,
    pub limits: Limits,
}

/// What a layer was.
#[derive(Clone, Debug)]
pub struct Applied {
    pub diff_id: DiffId,
    /// Bytes of the uncompressed stream.
    pub size: u64,
    pub compression: Compression,
    pub index: LayerIndex,
    /// Directories that the layer has no entry for, and that no `lower` had: made as root's, 0755.
    pub implied: Vec<PathBuf>,
}

/// A layer can't be unpacked. Paths are guest paths.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the layer's path {} leads out of its root by the symlink {}", path.display(), link.display())]
    Escapes { path: PathBuf, link: PathBuf },
    #[error("the layer has {}, but {} is no directory", path.display(), parent.display())]
    NotADirectory { path: PathBuf, parent: PathBuf },
    #[error("the layer's whiteout {} removes nothing that can be removed", path.display())]
    InvalidWhiteout { path: PathBuf },
    #[error("the layer has {} as the device 0:0, which would hide what is below", path.display())]
    WhiteoutDevice { path: PathBuf },
    #[error("the layer sets {name} on {}, which belongs to overlay file systems", path.display())]
    ReservedXattr { path: PathBuf, name: String },
    #[error("the layer links {} to {target:?}, which nothing before it has", path.display())]
    MissingTarget { path: PathBuf, target: PathBuf },
    /// Try again with the tree below.
    #[error("the layer links {} to {} of a layer below", path.display(), target.display())]
    NeedsLower { path: PathBuf, target: PathBuf },
    #[error("no space left to unpack a layer: free some and try again")]
    NoSpace,
    #[error("can't {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

/// Unpacks the layer that `compressed` gives into `root`, and reads to its end.
///
/// Blocks. Nothing is synced. After an error, a part of the layer is there.
#[expect(clippy::todo, reason = "the bodies land next")]
pub fn apply(
    _root: &Root,
    _options: &ApplyOptions<'_>,
    _compressed: impl Read,
) -> Result<Applied, ApplyError> {
    todo!()
}
