//! What one tree has changed of another, and the layer that says so.
//!
//! Two ways lead to the same list: [`diff_upper`] goes through what an overlay's upper directory holds,
//! [`diff_trees`] through both whole trees. [`write_layer`] makes of a list what containerd and BuildKit
//! make: parents before what changed in them, a whiteout for each name that is gone (also where the upper
//! directory has an opaque one, if the tree below is at hand), hard links among what is in the layer, no sockets.
//!
//! # When a file is the same
//!
//! If it is the same inode, or has the same kind, owner, mode, attributes, size and time, and then the
//! same bytes. Of a directory the time doesn't count: every change within changes it.

mod compare;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::fs::FsError;
use crate::fs::Meta;
use crate::fs::Root;
use compare::Differ;

pub use write::WriteLayer;
pub use write::write_layer;

/// Changes of a tree, sorted by component, with the tree that has their bytes.
#[derive(Debug)]
pub struct Changes {
    upper: Root,
    changes: Vec<Change>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Relative to the root.
    pub path: PathBuf,
    pub kind: ChangeKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It is not in the upper tree any more.
    Removed,
    /// It is new or another one.
    Written(Meta),
    /// All that is below in this directory is removed. Only where nobody could look what that is.
    Opaque,
    /// It did not change: a directory beneath which something did, or a further name of a file that did.
    Unchanged(Meta),
}

/// Trees can't be compared, or their difference not be written.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error("can't compare trees: {0}")]
    Fs(#[from] FsError),
    #[error("can't write a layer: {0}")]
    Archive(#[from] ArchiveError),
    /// It was mounted with `redirect_dir` or `metacopy`.
    #[error("{} is in an overlay that keeps some of it elsewhere, which can't be compared", path.display())]
    Redirected { path: PathBuf },
    #[error("can't read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Changes {
    /// All of them, sorted.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// True if nothing was removed or written.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(|change| matches!(change.kind, ChangeKind::Unchanged(_)))
    }

    /// The tree that has the bytes.
    pub fn upper(&self) -> &Root {
        &self.upper
    }
}

/// The changes that the upper directory of an overlay holds over the tree `lower`.
///
/// Without `lower`, for a layer that is written while what is below is not at hand, the list says what
/// the directory says: all that is in it is written, each whiteout removes, and what is opaque stays so.
/// Such a layer does the same to any tree, and may say more than it had to.
pub fn diff_upper(upper: &Root, lower: Option<&Root>) -> Result<Changes, DiffError> {
    let mut differ = Differ::new(lower, upper);
    differ.upper()?;
    differ.finish()
}

/// The changes from one whole tree, or nothing, to another.
pub fn diff_trees(lower: Option<&Root>, upper: &Root) -> Result<Changes, DiffError> {
    let mut differ = Differ::new(lower, upper);
    differ.both(PathBuf::new())?;
    differ.finish()
}
