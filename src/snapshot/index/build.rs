//! Makes an index of entries in the order of the archive.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::IndexContent;
use super::IndexEntry;
use super::IndexedFile;
use super::LayerIndex;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::oci::Digest;

/// Entries so far, as they count together: later ones have replaced earlier ones.
#[derive(Default, Debug)]
pub(in crate::snapshot) struct IndexBuilder {
    /// By path with NUL for each slash, so that the order of keys is that of components.
    entries: BTreeMap<Vec<u8>, IndexContent>,
    whiteouts: usize,
}

fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
}

impl IndexBuilder {
    pub(in crate::snapshot) fn put(
        &mut self,
        entry: Entry,
        mut opaque: bool,
        offset: u64,
        digest: Option<Digest>,
        contiguous: bool,
    ) {
        let key = key(&entry.path);
        self.show_parents(&key);
        match self.entries.get(&key) {
            Some(IndexContent::Present(old))
                if old.kind == EntryKind::Dir && entry.kind == EntryKind::Dir =>
            {
                opaque |= old.opaque;
            }
            Some(IndexContent::Present(_)) | None => {}
            Some(IndexContent::Whiteout | IndexContent::Opaque) => opaque = entry.kind == EntryKind::Dir,
        }
        if entry.kind != EntryKind::Dir {
            self.forget_beneath(&key);
        }
        let file = IndexedFile {
            offset: if entry.kind == EntryKind::File { offset } else { 0 },
            kind: entry.kind,
            opaque,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            xattrs: entry.xattrs,
            digest,
            contiguous,
        };
        self.entries.insert(key, IndexContent::Present(Box::new(file)));
    }

    /// The layer hides what is below in a directory.
    pub(in crate::snapshot) fn opaque(&mut self, path: &[u8]) {
        let key = key(path);
        self.show_parents(&key);
        match self.entries.get_mut(&key) {
            Some(IndexContent::Present(file)) => file.opaque = true,
            _ => {
                self.entries.insert(key, IndexContent::Opaque);
            }
        }
    }

    /// The layer removes a path of those below. What it has there itself stays.
    pub(in crate::snapshot) fn whiteout(&mut self, path: &[u8]) {
        let key = key(path);
        self.show_parents(&key);
        let within = [key.as_slice(), &[0]].concat();
        let filled = self.entries.range(within.clone()..).next().is_some_and(|(k, _)| k.starts_with(&within));
        match self.entries.get_mut(&key) {
            Some(IndexContent::Present(file)) => file.opaque = file.kind == EntryKind::Dir,
            Some(_) => {}
            None if filled => {
                self.entries.insert(key, IndexContent::Opaque);
            }
            None => {
                self.whiteouts += 1;
                self.entries.insert(key, IndexContent::Whiteout);
            }
        }
    }

    /// A path whose parent the layer removes: the parent is there again, with nothing from below.
    fn show_parents(&mut self, key: &[u8]) {
        if self.whiteouts == 0 {
            return;
        }
        let ends = key.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
        for end in ends {
            if let Some(content @ IndexContent::Whiteout) = self.entries.get_mut(&key[..end]) {
                *content = IndexContent::Opaque;
            }
        }
    }

    fn forget_beneath(&mut self, key: &[u8]) {
        let within = [key, &[0]].concat();
        loop {
            let range = (Bound::Included(within.as_slice()), Bound::Unbounded);
            let next = self.entries.range::<[u8], _>(range).next();
            let Some(gone) = next.map(|(k, _)| k).filter(|k| k.starts_with(&within)).cloned() else { return };
            self.entries.remove(&gone);
        }
    }

    pub(in crate::snapshot) fn finish(self) -> LayerIndex {
        let entries = self.entries.into_iter().map(|(mut path, content)| {
            path.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'/');
            IndexEntry { path, content }
        });
        LayerIndex { entries: entries.collect() }
    }
}
