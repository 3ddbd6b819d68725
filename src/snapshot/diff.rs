//! What one tree has changed of another, and the layer that says so.

use std::io;
use std::io::Write;
use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::fs::FsError;
use crate::fs::Meta;
use crate::fs::Root;

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
    /// Nothing of it changed, but something beneath it, or it is a hard link to something that changed.
    Unchanged(Meta),
}

/// How a layer is written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteLayer {
    /// `SOURCE_DATE_EPOCH` in seconds: no time in the layer is later.
    pub epoch: Option<i64>,
}

/// Trees can't be compared, or their difference not be written.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error("can't compare trees: {0}")]
    Fs(#[from] FsError),
    #[error("can't write a layer: {0}")]
    Archive(#[from] ArchiveError),
    #[error("{} is of an overlay that redirects directories, which can't be compared", path.display())]
    Redirected { path: PathBuf },
    #[error("can't read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Changes {
    /// All of them, sorted.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn is_empty(&self) -> bool {
        !self.changes.iter().any(|change| !matches!(change.kind, ChangeKind::Unchanged(_)))
    }

    /// The tree that has the bytes.
    pub fn upper(&self) -> &Root {
        &self.upper
    }
}

/// The changes that the upper directory of an overlay holds over the tree `lower`.
#[expect(clippy::todo, reason = "the bodies land next")]
pub fn diff_upper(_upper: &Root, _lower: Option<&Root>) -> Result<Changes, DiffError> {
    todo!()
}

/// The changes from one whole tree to another.
#[expect(clippy::todo, reason = "the bodies land next")]
pub fn diff_trees(_lower: Option<&Root>, _upper: &Root) -> Result<Changes, DiffError> {
    todo!()
}

/// Writes the changes as an uncompressed layer: the same bytes for the same changes, whoever found them.
#[expect(clippy::todo, reason = "the bodies land next")]
pub fn write_layer(_changes: &Changes, _options: &WriteLayer, _out: impl Write) -> Result<(), DiffError> {
    todo!()
}
