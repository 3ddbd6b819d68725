//! What a layer says of a path.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use super::Look;
use super::Want;
use super::select::Spot;
use crate::archive::EntryKind;
use crate::cache::indexes;
use crate::cache::snapshots::SnapshotHold;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Root;
use crate::snapshot::Cover;
use crate::snapshot::IndexContent;
use crate::snapshot::IndexEntry;
use crate::snapshot::LayerIndex;

/// A directory of overlay's format that hides what is in those below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Where it is known from what a layer has.
#[derive(Clone)]
pub(super) enum Known {
    /// Its own files, in overlay's format.
    Files { root: Root, hold: Arc<SnapshotHold> },
    /// Its files are not here, or some of them.
    Index { known: Arc<indexes::Known>, part: Option<Part> },
}

/// Some of a layer's files.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) hold: Arc<SnapshotHold>,
    /// What they are for.
    pub(super) spots: Arc<BTreeSet<Spot>>,
}

/// What a layer says of a path whose parents are directories in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Says {
    Nothing,
    /// It removes what is below.
    Removed,
    Dir {
        /// It hides what is in directories below.
        opaque: bool,
    },
    Link(Vec<u8>),
    /// Anything else.
    Other,
    /// It is known only when the layer's files are here.
    Unsure,
}

impl Known {
    /// All parents of `path`, which is clean and relative, must be directories of the layer.
    pub(super) fn says(&self, path: &[u8]) -> Result<Says, FsError> {
        let root = match self {
            Known::Files { root, .. } => root,
            Known::Index { known, .. } => return Ok(indexed(&known.index, path)),
        };
        let path = Path::new(OsStr::from_bytes(path));
        let Some(meta) = root.stat(path, Last::Keep)? else { return Ok(Says::Nothing) };
        if meta.is_whiteout() {
            return Ok(Says::Removed);
        }
        if meta.is_symlink() {
            return Ok(Says::Link(root.read_link(path)?.into_os_string().as_bytes().to_vec()));
        }
        if meta.is_dir() {
            let opaque = root.xattr(path, OPAQUE, Last::Keep)?.is_some_and(|value| value == b"y");
            return Ok(Says::Dir { opaque });
        }
        Ok(Says::Other)
    }

    /// True if the layer has something that counts for a look at what is in a directory of it. Files that are here
    /// cost nothing, whether they count or not.
    pub(super) fn counts_in(&self, directory: &[u8], look: &Look) -> bool {
        let Known::Index { known, .. } = self else { return true };
        let mut within = known.index.beneath(directory).iter().filter(|entry| entry.path != directory);
        // A directory on the way to what matches shows where that is as well, but for its attributes.
        let is_plain = |entry: &IndexEntry| matches!(&entry.content, IndexContent::Present(file) if file.kind == EntryKind::Dir && !file.opaque);
        within.any(|entry| match &look.want {
            Want::Matching(pattern) if !look.to_change && is_plain(entry) => {
                pattern.matches_beneath(relative(&entry.path, directory))
            }
            _ => is_looked_at(entry, directory, look),
        })
    }

    /// True if the layer has anything at a clean, relative path, or something else than a directory on the way.
    pub(super) fn has(&self, path: &[u8]) -> Result<bool, FsError> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            match self.says(&path[..end])? {
                Says::Nothing => return Ok(false),
                Says::Dir { .. } => {}
                Says::Removed | Says::Link(_) | Says::Other | Says::Unsure => return Ok(true),
            }
        }
        Ok(true)
    }
}

/// True if a look at what is in `directory` sees an entry that is beneath it.
pub(super) fn is_looked_at(entry: &IndexEntry, directory: &[u8], look: &Look) -> bool {
    match &look.want {
        Want::Entry | Want::Directory => false,
        Want::Tree => true,
        Want::Matching(pattern) => {
            let path = relative(&entry.path, directory);
            pattern.matches_beneath(path) || pattern.matches_above(path)
        }
    }
}

/// Of a path beneath a directory.
fn relative<'p>(path: &'p [u8], directory: &[u8]) -> &'p [u8] {
    &path[if directory.is_empty() { 0 } else { directory.len() + 1 }..]
}

fn indexed(index: &LayerIndex, path: &[u8]) -> Says {
    match index.cover(path) {
        Cover::No => Says::Nothing,
        Cover::Hidden => Says::Removed,
        Cover::Implied { opaque } => Says::Dir { opaque },
        Cover::Present(file) => match &file.kind {
            EntryKind::Dir => Says::Dir { opaque: file.opaque },
            EntryKind::Symlink { target } => Says::Link(target.clone()),
            EntryKind::Hardlink { target } => match index.cover(target) {
                Cover::Present(named) => match &named.kind {
                    EntryKind::Symlink { target } => Says::Link(target.clone()),
                    EntryKind::Dir | EntryKind::Hardlink { .. } => Says::Unsure,
                    _ => Says::Other,
                },
                // It is one of those below.
                _ => Says::Unsure,
            },
            _ => Says::Other,
        },
    }
}
