//! What a layer holds, noted in the first pass over it.
//!
//! With an index at hand, a listing, a content hash or the copy of a path opens only the layers that
//! cover that path, and of a layer only some ranges: those that have the bytes of the files, as far as its
//! compression can be entered there.
//!
//! # Format
//!
//! `TLI2`, the number of entries, then the entries in order. Of each path only what differs from the one
//! before is there: the length that they share, the length of the rest, the rest. A byte has the kind in
//! its lower half and flags in the upper one; the kind's fields follow. Then come the states that verify parts of
//! the stream: their distance, their number, each, the last one's position and itself. At the end the places where
//! the compressed stream can be entered: their number, and of each how far it is behind the one before in both
//! streams. Numbers are LEB128, signed ones in zigzag; strings have their length in front.

mod build;
mod code;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::archive::Checks;
use crate::archive::EntryKind;
use crate::archive::Members;

pub(super) use build::IndexBuilder;

/// The entries of a layer, sorted by component of their paths, each path once.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LayerIndex {
    entries: Vec<IndexEntry>,
    checks: Checks,
    members: Members,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// Clean and relative, without symlinks of this layer. Never empty: a layer says nothing of its root.
    pub path: Vec<u8>,
    pub content: IndexContent,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IndexContent {
    /// The layer has this path.
    Present(Box<IndexedFile>),
    /// The layer removes the path from those below.
    Whiteout,
    /// The layer hides what those below have in this directory, and has no entry for the directory.
    Opaque,
}

/// What the layer's entry says of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexedFile {
    /// A hard link's target is a path that this layer has as something else than a hard link, or one of those below.
    pub kind: EntryKind,
    /// A directory that hides what layers below have in it.
    pub opaque: bool,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: (i64, u32),
    /// Logical size of a file.
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where a file's bytes begin in the uncompressed stream.
    pub offset: u64,
    /// False if the bytes at `offset` are not the file's as they are: it is sparse.
    pub contiguous: bool,
}

/// What a layer says of a path whose parents are directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cover<'a> {
    /// Nothing: ask the layer below.
    No,
    /// It has it.
    Present(&'a IndexedFile),
    /// A directory that the layer has no entry for. What it is, the layers below say; unless it is
    /// opaque, they also add to it.
    Implied { opaque: bool },
    /// It removes it, or something above it is no directory or hides what is below: no layer below counts.
    Hidden,
}

/// These bytes are no index.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the file index of a layer is damaged at byte {offset}")]
pub struct InvalidIndex {
    pub offset: usize,
}

impl LayerIndex {
    /// What the layer says of a clean, relative path.
    pub fn cover(&self, path: &[u8]) -> Cover<'_> {
        let at = match self.find(path) {
            Ok(at) => {
                return match &self.entries[at].content {
                    IndexContent::Present(file) => Cover::Present(file),
                    IndexContent::Whiteout => Cover::Hidden,
                    IndexContent::Opaque => Cover::Implied { opaque: true },
                };
            }
            Err(at) => at,
        };
        let implied = self.entries.get(at).is_some_and(|next| is_beneath(&next.path, path));
        let mut above = path;
        while let Some(slash) = above.iter().rposition(|&b| b == b'/') {
            above = &above[..slash];
            let hides = match self.find(above).map(|at| &self.entries[at].content) {
                Ok(IndexContent::Present(file)) => file.kind != EntryKind::Dir || file.opaque,
                Ok(IndexContent::Whiteout | IndexContent::Opaque) => true,
                Err(_) => false,
            };
            if hides {
                return if implied { Cover::Implied { opaque: true } } else { Cover::Hidden };
            }
        }
        if implied || path.is_empty() && !self.entries.is_empty() {
            return Cover::Implied { opaque: false };
        }
        Cover::No
    }

    /// All entries, sorted.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The entry of a directory or file and all beneath it, sorted. All entries for the empty path.
    pub fn beneath(&self, path: &[u8]) -> &[IndexEntry] {
        if path.is_empty() {
            return &self.entries;
        }
        let start = self.find(path).unwrap_or_else(|at| at);
        let rest = &self.entries[start..];
        &rest[..rest.partition_point(|entry| entry.path == path || is_beneath(&entry.path, path))]
    }

    /// Where the entry of a path is among all.
    pub fn position(&self, path: &[u8]) -> Option<usize> {
        self.find(path).ok()
    }

    /// What verifies parts of the uncompressed stream.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Where the blob that the index was made of can be entered. Nothing of one that is not compressed.
    pub fn members(&self) -> &Members {
        &self.members
    }

    pub(super) fn of_stream(self, checks: Checks, members: Members) -> LayerIndex {
        LayerIndex { checks, members, ..self }
    }

    /// The compact form, of which [`LayerIndex::decode`] makes an equal index.
    pub fn encode(&self) -> Vec<u8> {
        code::encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<LayerIndex, InvalidIndex> {
        code::decode(bytes)
    }

    fn find(&self, path: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| by_component(&entry.path, path))
    }
}

/// The order in which a directory comes before what is in it, and that before the directory's next
/// neighbour.
pub(super) fn by_component(one: &[u8], other: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    one.iter().map(rank).cmp(other.iter().map(rank))
}

fn is_beneath(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
