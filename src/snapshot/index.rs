//! What a layer holds, noted in the first pass over it.
//!
//! With an index at hand, a listing, a content hash or the copy of a path opens only the layers that
//! cover that path, and of a layer that is not compressed only a range.

use std::collections::BTreeMap;

use crate::archive::EntryKind;
use crate::oci::Digest;

/// The entries of a layer, sorted by component of their paths, each path once.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LayerIndex {
    entries: Vec<IndexEntry>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// Clean and relative. Empty for the root.
    pub path: Vec<u8>,
    pub content: IndexContent,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IndexContent {
    /// The layer has this path.
    Present(Box<IndexedFile>),
    /// The layer removes the path from those below.
    Whiteout,
}

/// What the layer's entry says of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexedFile {
    /// A hard link's target is a path of this layer or of those below.
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
    /// Where a file's bytes begin in the uncompressed stream, and their digest, holes included.
    pub offset: u64,
    pub digest: Option<Digest>,
    /// False if the bytes at `offset` are not the file's as they are: it is sparse.
    pub contiguous: bool,
}

/// What a layer says of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cover<'a> {
    /// Nothing: ask the layer below.
    No,
    /// It has it.
    Present(&'a IndexedFile),
    /// It removes it, or the directory that it was in: no layer below counts.
    Hidden,
}

/// These bytes are no index.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the file index of a layer is damaged at byte {offset}")]
pub struct InvalidIndex {
    pub offset: usize,
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl LayerIndex {
    /// What the layer says of a clean, relative path.
    pub fn cover(&self, _path: &[u8]) -> Cover<'_> {
        todo!()
    }

    /// All entries, sorted.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The entry of a directory or file and all beneath it, sorted.
    pub fn beneath(&self, _path: &[u8]) -> &[IndexEntry] {
        todo!()
    }

    /// The compact form, of which [`LayerIndex::decode`] makes an equal index.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    pub fn decode(_bytes: &[u8]) -> Result<LayerIndex, InvalidIndex> {
        todo!()
    }
}
