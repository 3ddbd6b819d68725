//! Makes an index of entries in the order of the archive.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::IndexContent;
use super::IndexEntry;
use super::IndexedFile;
use super::LayerIndex;
use crate::archive::Entry;
use crate::archive::EntryKind;

/// Entries so far, as they count together: later ones have replaced earlier ones.
#[derive(Default, Debug)]
pub(in crate::snapshot) struct IndexBuilder {
    /// By path with NUL for each slash, so that the order of keys is that of components.
    entries: BTreeMap<Vec<u8>, IndexContent>,
    whiteouts: usize,
    /// The hard links to each entry that has some, by keys. An entry that is a link itself has none: what links to it
    /// links to its target.
    links: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
}

fn path(mut key: Vec<u8>) -> Vec<u8> {
    key.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'/');
    key
}

impl IndexBuilder {
    pub(in crate::snapshot) fn put(&mut self, mut entry: Entry, offset: u64, contiguous: bool) {
        let key = key(&entry.path);
        if let EntryKind::Hardlink { target } = &mut entry.kind {
            let linked = self.linked(target);
            if linked == key {
                return;
            }
            self.show_parents(&key);
            self.part(&key);
            *target = path(linked.clone());
            self.links.entry(linked).or_default().push(key.clone());
        } else {
            self.show_parents(&key);
            self.part(&key);
        }
        // A directory comes to lie over those below, unless the layer had something here that hid them.
        let opaque = match self.entries.get(&key) {
            _ if entry.kind != EntryKind::Dir => false,
            Some(IndexContent::Present(old)) => old.kind != EntryKind::Dir || old.opaque,
            Some(IndexContent::Whiteout | IndexContent::Opaque) => true,
            None => false,
        };
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
            self.part(&gone);
            self.entries.remove(&gone);
        }
    }

    /// What a hard link to `target` is a name of, by key.
    fn linked(&self, target: &[u8]) -> Vec<u8> {
        let named = key(target);
        match self.entries.get(&named) {
            Some(IndexContent::Present(file)) => match &file.kind {
                EntryKind::Hardlink { target } => key(target),
                _ => named,
            },
            _ => named,
        }
    }

    /// What is there is about to go: names that it has elsewhere keep what it is.
    fn part(&mut self, gone: &[u8]) {
        let Some(IndexContent::Present(file)) = self.entries.get(gone) else { return };
        if let EntryKind::Hardlink { target } = &file.kind {
            let linked = key(target);
            if let Some(links) = self.links.get_mut(&linked) {
                links.retain(|link| link != gone);
                if links.is_empty() {
                    self.links.remove(&linked);
                }
            }
            return;
        }
        let Some(mut links) = self.links.remove(gone) else { return };
        let heir = links.remove(0);
        let kept = file.clone();
        for link in &links {
            if let Some(IndexContent::Present(file)) = self.entries.get_mut(link) {
                file.kind = EntryKind::Hardlink { target: path(heir.clone()) };
            }
        }
        self.entries.insert(heir.clone(), IndexContent::Present(kept));
        if !links.is_empty() {
            self.links.insert(heir, links);
        }
    }

    pub(in crate::snapshot) fn finish(self) -> LayerIndex {
        let entries = self.entries.into_iter();
        let entries = entries.map(|(key, content)| IndexEntry { path: path(key), content }).collect();
        LayerIndex { entries, ..LayerIndex::default() }
    }
}
