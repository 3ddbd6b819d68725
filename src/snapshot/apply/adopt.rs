//! A layer that was unpacked alone comes to lie on others.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::place::is_overlays;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::snapshot::Cover;
use crate::snapshot::LayerIndex;

/// Makes the directories that a layer implies what they are in the tree below, as [`apply`](super::apply) with this
/// tree would have made them. `root` holds the layer alone, `implied` and `index` are what was told when it was unpacked.
///
/// False if the layer has to be unpacked again: one of those paths is a symlink below, and what the layer has in it, or
/// behind it, belongs elsewhere. Blocks.
pub fn adopt(root: &Root, lower: &Root, implied: &[PathBuf], index: &LayerIndex) -> Result<bool, FsError> {
    // Parents come first: none of those that are looked through is a link.
    for path in implied {
        let meta = match lower.stat(path, Last::Keep) {
            Ok(Some(meta)) => meta,
            Ok(None) => continue,
            Err(_) => return Ok(false),
        };
        if meta.is_symlink() {
            return Ok(false);
        }
        // Else an entry came later, for it or for what is in its place, or nothing is made there.
        let is_implied = matches!(index.cover(path.as_os_str().as_bytes()), Cover::Implied { .. });
        if meta.is_dir() && is_implied {
            let mut xattrs = lower.xattrs(path, Last::Keep)?;
            xattrs.retain(|name, _| !is_overlays(name.as_encoded_bytes()));
            root.set_meta(path, &MetaChange::like(&meta, &xattrs), Last::Keep)?;
        }
    }
    Ok(true)
}
