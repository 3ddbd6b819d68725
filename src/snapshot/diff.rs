//! What one tree has changed of another, and the layer that says so.
//!
//! Two ways lead to the same list: [`diff_upper`] goes through what an overlay's upper directory holds once it is
//! settled, [`diff_trees`] through both whole trees. [`write_layer`] makes of a list what containerd and BuildKit
//! make: parents before what changed in them, a whiteout for each name that is gone, hard links among what is in the
//! layer, no sockets. Where one name of a file is in the layer, all its names are.
//!
//! An upper directory also holds what was only touched or on the way, and marks where it hides everything. It is
//! *settled* (`settle.rs`) when it becomes a change set: then it says what changed, by itself.
//!
//! # When a file is the same
//!
//! If it is the same inode, or has the same kind, owner, mode, attributes, size and time, and then the
//! same bytes. Of a directory the time doesn't count: every change within changes it.

mod compare;
mod settle;
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

pub use settle::Unsettled;
pub use settle::leave_what_changed;
pub use settle::spell_out;
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
    /// A directory that did not change, beneath which something did.
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

/// The changes that the settled upper directory of an overlay holds: all that is in it is written, and each whiteout
/// removes.
pub fn diff_upper(upper: &Root) -> Result<Changes, DiffError> {
    Ok(Changes { upper: upper.clone(), changes: compare::listed(upper)? })
}

/// The changes from one whole tree, or nothing, to another.
pub fn diff_trees(lower: Option<&Root>, upper: &Root) -> Result<Changes, DiffError> {
    let mut differ = Differ::new(lower, upper);
    differ.both()?;
    differ.finish()
}
