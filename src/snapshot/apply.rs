//! Unpacks a layer while it is read.
//!
//! One pass over the stream makes the files, the file index and the diff ID. A layer goes either into a
//! directory of its own, in overlay's format, or into a whole tree that holds all layers below.
//!
//! # Invariants
//!
//! - Nothing outside the root is read or touched. Every step of a path opens one name in an open
//!   directory and follows nothing; links on the way are resolved here.
//! - What exists is never opened to be written: files are made anew, so that neither a device, nor a
//!   FIFO, nor another name of the file gets the bytes.
//! - A whiteout removes what layers below have, never what its own layer has, whichever comes first.
//!
//! # Symlinks in paths
//!
//! A link of the layer itself is followed while it stays beneath the root by its own words; an absolute
//! one, or one that climbs out, ends in [`ApplyError::Escapes`]. A link that a layer below left in a
//! whole tree is followed as under `chroot`. If the tree below is given to a layer that has its own
//! directory, its links count too. A link that goes up from where nothing is (`nothing/../lib`) leads where
//! its words say, and nothing is made on that way: containerd does so too.
//!
//! # Cancellation
//!
//! The source's error ends it, and leaves a part of the layer for the caller to remove. An error of the
//! layer is returned once the read that is under way has returned.

mod adopt;
mod make;
mod place;
#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::io::Read;
use std::path::PathBuf;

use super::LayerIndex;
use super::index::IndexBuilder;
use crate::archive::AbsolutePaths;
use crate::archive::ArchiveError;
use crate::archive::Compression;
use crate::archive::Decoder;
use crate::archive::HashingReader;
use crate::archive::Limits;
use crate::archive::Reader;
use crate::archive::read_ahead;
use crate::fs::FsError;
use crate::fs::Root;
use crate::oci::DiffId;
use crate::oci::Digest;
use make::Unpacker;

pub use adopt::adopt;

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
    /// The tree below, for a layer with a directory of its own: for hard links to files of earlier
    /// layers and for the owners of directories that the layer implies. Without one, a layer that links
    /// below fails with [`ApplyError::NeedsLower`].
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
    /// Directories that the layer had no entry for when something went into them, made as root's, 0755, since no
    /// `lower` could be asked; and paths that it has nothing at, but links that lead through them and out again. Parents
    /// first. Who has something at those paths below [adopts](adopt()) the layer, or unpacks it again, with `lower`.
    pub implied: Vec<PathBuf>,
}

/// A layer can't be unpacked. Paths are guest paths.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the layer's path {} leads out of its root by the symlink {}", path.display(), link.display())]
    Escapes { path: PathBuf, link: PathBuf },
    #[error("the layer's path {} goes through more than {max} symlinks", path.display())]
    TooManyLinks { path: PathBuf, max: usize },
    #[error("the layer has {}, but {} is no directory", path.display(), parent.display())]
    NotADirectory { path: PathBuf, parent: PathBuf },
    #[error("the layer's whiteout {} names nothing that can be removed", path.display())]
    InvalidWhiteout { path: PathBuf },
    #[error("the layer has {} as the device 0:0, which would hide what is below", path.display())]
    WhiteoutDevice { path: PathBuf },
    #[error("the layer sets {name} on {}, which belongs to overlay file systems", path.display())]
    ReservedXattr { path: PathBuf, name: String },
    #[error("{} belongs to {uid}:{gid} in the layer, which are no IDs of this system", path.display())]
    Owner { path: PathBuf, uid: u64, gid: u64 },
    #[error("the layer links {} to {}, which nothing before it has", path.display(), target.display())]
    MissingTarget { path: PathBuf, target: PathBuf },
    /// Try again with the tree below.
    #[error("the layer needs {} of a layer below for {}", target.display(), path.display())]
    NeedsLower { path: PathBuf, target: PathBuf },
    #[error("no space left to unpack a layer: free some and try again")]
    NoSpace,
    #[error("can't {action} {} of a layer: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("can't unpack a layer: {0}")]
    Fs(FsError),
}

impl From<FsError> for ApplyError {
    fn from(error: FsError) -> ApplyError {
        match error {
            FsError::NoSpace { .. } => ApplyError::NoSpace,
            error => ApplyError::Fs(error),
        }
    }
}

impl ApplyError {
    /// For `map_err`: names what was tried on what.
    fn io<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> ApplyError {
        let path = place::shown(path);
        move |source| {
            let source = source.into();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApplyError::NoSpace,
                _ => ApplyError::Io { action, path, source },
            }
        }
    }
}

/// Unpacks the layer that `compressed` gives into `root`, and reads to its end.
///
/// Blocks. Decompression and the hash of the stream have a thread of their own, which is gone when this
/// returns. Nothing is synced. After an error, a part of the layer is there.
pub fn apply(
    root: &Root,
    options: &ApplyOptions<'_>,
    compressed: impl Read + Send,
) -> Result<Applied, ApplyError> {
    let mut decoder = Decoder::new(compressed);
    let compression = decoder.compression()?;
    let (unpacked, stream) = read_ahead(HashingReader::new(decoder), |stream| unpack(root, options, stream))
        .map_err(ArchiveError::from)?;
    let (index, implied) = unpacked?;
    let (decoder, hashed, checks) = stream.finish();
    let index = index.of_stream(checks, decoder.members().clone());
    Ok(Applied {
        diff_id: DiffId(Digest::from_sha256(hashed.sha256)),
        size: hashed.size,
        compression,
        index,
        implied,
    })
}

/// Makes the tree and the index of a stream, which it reads to its end.
fn unpack(
    root: &Root,
    options: &ApplyOptions<'_>,
    stream: impl Read,
) -> Result<(LayerIndex, Vec<PathBuf>), ApplyError> {
    let mut reader = Reader::with(stream, options.limits, AbsolutePaths::Refuse);
    let mut index = IndexBuilder::default();
    let mut unpacker = Unpacker::new(root, options);
    while let Some(entry) = reader.next_entry()? {
        unpacker.put(entry, &mut reader, &mut index)?;
    }
    reader.finish()?;
    Ok((index.finish(), unpacker.finish()?))
}
