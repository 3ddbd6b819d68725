//! Which entries of a layer looks depend on, and where the bytes of their files are.
//!
//! # Invariants
//!
//! - What a look shows of a layer is in its selection: the entries on the way to its path and, as far as it looks at
//!   contents, those in it. More is there only if a hard link needs it.
//! - A selection has the directories of all that is in it, and the files that its hard links name.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Look;
use super::known::is_looked_at;
use crate::archive::EntryKind;
use crate::snapshot::IndexContent;
use crate::snapshot::IndexedFile;
use crate::snapshot::LayerIndex;

/// A request costs as much as so many bytes.
const REQUEST: u64 = 16 << 10;

/// Parts are read if they cost less than the blob by this factor.
const WORTH: u64 = 4;

/// Bytes between two parts that are read with them at first.
const GAP: u64 = 16 << 10;

/// Requests for parts of a layer. Beyond that, parts that are further apart become one.
const MAX_REQUESTS: usize = 16;

/// A path without links that a look came by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Spot {
    pub(super) path: Vec<u8>,
    /// The look that goes into what is there, by its number.
    pub(super) contents: Option<usize>,
}

/// Entries of a layer by number, in order.
pub(super) type Selection = BTreeSet<usize>;

/// What of a layer shows at `spots`; `None` if that needs more than the layer.
pub(super) fn select(index: &LayerIndex, spots: &BTreeSet<Spot>, looks: &[Look]) -> Option<Selection> {
    let mut selection = Selection::new();
    for Spot { path, contents } in spots {
        for prefix in prefixes(path) {
            match index.position(prefix) {
                Some(at) => drop(selection.insert(at)),
                // What this directory is, those below say.
                None if !index.beneath(prefix).is_empty() => return None,
                None => {}
            }
        }
        let Some(look) = contents.and_then(|look| looks.get(look)) else { continue };
        let within = index.beneath(path).iter().filter(|entry| entry.path != *path);
        for entry in within.filter(|entry| is_looked_at(entry, path, look)) {
            selection.extend(prefixes(&entry.path).filter_map(|prefix| index.position(prefix)));
        }
    }
    let mut named = Vec::new();
    for &at in &selection {
        if let Some(IndexedFile { kind: EntryKind::Hardlink { target }, .. }) = file(index, at) {
            named.push(target);
        }
    }
    for target in named {
        index.position(target)?;
        selection.extend(prefixes(target).filter_map(|prefix| index.position(prefix)));
    }
    let complete = |at: &usize| {
        let path = &index.entries()[*at].path;
        prefixes(path).all(|prefix| index.position(prefix).is_some())
    };
    selection.iter().all(complete).then_some(selection)
}

/// The path of each directory on the way, and the path.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end]).filter(|prefix| !prefix.is_empty())
}

/// What the layer has at an entry.
pub(super) fn file(index: &LayerIndex, at: usize) -> Option<&IndexedFile> {
    match &index.entries()[at].content {
        IndexContent::Present(file) => Some(file),
        IndexContent::Whiteout | IndexContent::Opaque => None,
    }
}

/// A part of a blob, and what is made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) blob: Range<u64>,
    /// Where the plain bytes of `blob` begin in the plain stream.
    pub(super) start: u64,
    /// What of the plain stream is verified.
    pub(super) verified: Range<u64>,
    /// The entries whose bytes are in there, in the order of these.
    pub(super) files: Vec<usize>,
}

impl Part {
    pub(super) fn length(&self) -> u64 {
        self.blob.end - self.blob.start
    }
}

/// How positions in the plain stream are found in a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// They are the same.
    Plain,
    /// It can be entered at the places that the index names.
    Members,
}

/// The parts of a blob of `size` bytes that have the files of a selection, in order: none if no bytes are needed.
/// `None` if all of the blob is as good.
pub(super) fn parts(
    index: &LayerIndex,
    access: Access,
    size: u64,
    selection: &Selection,
) -> Option<Vec<Part>> {
    let mut files = Vec::new();
    for &at in selection {
        if let Some(file) = file(index, at).filter(|file| file.kind == EntryKind::File && file.size > 0) {
            if !file.contiguous {
                return None;
            }
            files.push((file.offset..file.offset.checked_add(file.size)?, at));
        }
    }
    files.sort_by_key(|(range, _)| range.start);
    let mut parts: Vec<Part> = Vec::new();
    for (range, at) in files {
        let verified = index.checks().around(&range)?;
        let (blob, start) = match access {
            Access::Plain => (verified.clone(), verified.start),
            Access::Members => {
                let from = index.members().before(verified.start)?;
                let to = index.members().behind(verified.end).map_or(size, |member| member.compressed);
                (from.compressed..to, from.plain)
            }
        };
        if blob.start >= blob.end || blob.end > size {
            return None;
        }
        match parts.last_mut() {
            Some(last) if blob.start <= last.blob.end => {
                last.verified.end = last.verified.end.max(verified.end);
                last.blob.end = last.blob.end.max(blob.end);
                last.files.push(at);
            }
            _ => parts.push(Part { blob, start, verified, files: vec![at] }),
        }
    }
    let mut gap = GAP;
    parts = joined(parts, gap);
    while parts.len() > MAX_REQUESTS {
        gap *= 2;
        parts = joined(parts, gap);
    }
    let cost: u64 = parts.iter().map(|part| part.length() + REQUEST).sum();
    (parts.is_empty() || cost.saturating_mul(WORTH) <= size).then_some(parts)
}

/// Parts that have at most `gap` bytes between them become one.
fn joined(parts: Vec<Part>, gap: u64) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.blob.start - last.blob.end <= gap => {
                last.blob.end = part.blob.end;
                last.verified.end = part.verified.end;
                last.files.extend(part.files);
            }
            _ => joined.push(part),
        }
    }
    joined
}
