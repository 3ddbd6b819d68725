//! Directories that a layer implied, once the tree below is at hand.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::ApplyError;
use super::place;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Root;

/// Gives the directories that a layer implied the owner, mode, attributes and time that `lower` has for
/// them; where it has none, they stay as they are. Where it has a symlink to a directory, the layer's
/// files belong where that leads: [`ApplyError::NeedsLower`] says that the layer has to be unpacked
/// again, with `lower`.
pub fn adopt_implied(root: &Root, implied: &[PathBuf], lower: &Root) -> Result<(), ApplyError> {
    for path in implied {
        let Some(meta) = lower.stat(path, Last::Keep)? else { continue };
        if meta.is_symlink() && lower.stat(path, Last::Follow)?.is_some_and(|meta| meta.is_dir()) {
            return Err(ApplyError::NeedsLower { path: path.clone(), target: path.clone() });
        }
        if meta.is_dir() {
            let mut xattrs = lower.xattrs(path, Last::Keep)?;
            xattrs.retain(|name, _| !place::is_overlays(name.as_bytes()));
            root.set_meta(path, &MetaChange::like(&meta, &xattrs), Last::Keep)?;
        }
    }
    Ok(())
}
