//! Chains of layers that are deeper than overlay can mount.
//!
//! The lowest layers of such a chain are merged in *blocks*, each of [`BLOCK`] layers and in one directory, with hard links
//! to their files, so it costs directories only:
//!
//! ```text
//!   1 .. 250 | 251 .. 500 | 501, 502, ...        all of 501 to 998 layers but the lowest 250, the lowest 500 of more
//!   merged     merged       as they are
//! ```
//!
//! A block says what its layers say of those below it, removals included, so that it does not depend on them: a chain that
//! gets one more layer has the blocks that it had, and each layer is merged once. Merged ones are kept below
//! `<root>/squashed/` and serve every chain that has the same layers in the same place. A layer that is removed
//! takes those along that it is part of; while one is mounted, something stands on each of its layers.
//!
//! # Crash consistency
//!
//! Made under a temporary name and renamed, like a snapshot. Nobody syncs them: those of another boot are made anew.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::BootId;
use super::Parents;
use super::SnapshotError;
use super::SnapshotKey;
use super::parents::BLOCK;
use super::parents::Block;
use super::store::FS;
use super::store::Store;
use crate::fs::CopyOptions;
use crate::fs::FsError;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::fs::Xattrs;
use crate::fs::copy_tree;
use crate::oci::Digest;

const LAYERS: &str = "layers";
/// Beside them: the boot that those which are there were made in.
const BOOT: &str = "squashed-in";
/// Attributes that only mean something between the layers of an overlay.
const OVERLAY_XATTRS: &str = "trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";
/// On a directory that no other layer may have: it has removals, which are not to be listed. The kernel looks whether it
/// is there only.
const ORIGIN: &str = "trusted.overlay.origin";

#[derive(Debug)]
pub(super) struct Squashed {
    root: PathBuf,
    table: Mutex<Table>,
}

#[derive(Default, Debug)]
struct Table {
    /// By name, whether it is made. Its mutex is held meanwhile.
    all: HashMap<String, Arc<Mutex<bool>>>,
    /// What those that are made are made of.
    layers: HashMap<String, Vec<SnapshotKey>>,
    /// The names of those that a layer is part of.
    of: HashMap<SnapshotKey, HashSet<String>>,
}

impl Table {
    fn note(&mut self, name: String, layers: Vec<SnapshotKey>) {
        for layer in &layers {
            self.of.entry(layer.clone()).or_default().insert(name.clone());
        }
        self.layers.insert(name, layers);
    }

    /// Forgets those that a layer is part of.
    fn forget(&mut self, layer: &SnapshotKey) -> HashSet<String> {
        let names = self.of.remove(layer).unwrap_or_default();
        for name in &names {
            self.all.remove(name);
            for other in self.layers.remove(name).unwrap_or_default() {
                if let Some(of) = self.of.get_mut(&other) {
                    of.remove(name);
                    if of.is_empty() {
                        self.of.remove(&other);
                    }
                }
            }
        }
        names
    }
}

/// How many blocks of `count` layers are merged, so that the rest and they are no more than `limit`.
fn merged(count: usize, limit: usize) -> usize {
    // A merged block is one layer itself.
    count.saturating_sub(limit).div_ceil(BLOCK - 1)
}

impl Squashed {
    /// Removes those of which a layer is missing, and those of another boot.
    pub(super) fn open(store: &Store) -> Result<Squashed, SnapshotError> {
        let root = store.root().join("squashed");
        match fs::create_dir(&root) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(SnapshotError::io("make", &root))?,
        }
        let (boot, now) = (store.root().join(BOOT), BootId::current().to_string());
        let trusted = fs::read_to_string(&boot).is_ok_and(|then| then == now);
        let mut table = Table::default();
        for entry in fs::read_dir(&root).map_err(SnapshotError::io("list", &root))? {
            let entry = entry.map_err(SnapshotError::io("list", &root))?;
            let text = fs::read_to_string(entry.path().join(LAYERS)).unwrap_or_default();
            let layers: Result<Vec<_>, _> = text.lines().map(SnapshotKey::new).collect();
            match layers {
                Ok(layers)
                    if trusted
                        && !layers.is_empty()
                        && layers.iter().all(|key| store.kind(key).is_some()) =>
                {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    table.all.insert(name.clone(), Arc::new(Mutex::new(true)));
                    table.note(name, layers);
                }
                _ => {
                    store.names().forget(&entry.path().join(FS))?;
                    store.discard(&entry.path())?;
                }
            }
        }
        if !trusted {
            fs::write(&boot, now).map_err(SnapshotError::io("write", &boot))?;
        }
        Ok(Squashed { root, table: Mutex::new(table) })
    }

    /// The directories of a chain, topmost first, no more than `limit`. Something stands on each of `layers` meanwhile.
    pub(super) fn lower(
        &self,
        store: &Store,
        layers: &Parents,
        limit: usize,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let (above, blocks) = layers.blocks(merged(layers.count(), limit));
        let mut lower: Vec<_> = above.map(|key| store.tree(key)).collect();
        for block in blocks {
            lower.push(self.get(store, &block)?);
        }
        Ok(lower)
    }

    fn get(&self, store: &Store, block: &Block<'_>) -> Result<PathBuf, SnapshotError> {
        let text = |layers: &[SnapshotKey]| -> String {
            layers.iter().flat_map(|key| [key.as_str(), "\n"]).collect()
        };
        let place = if block.is_lowest() { "lowest" } else { "above others" };
        let name = block.name(|| Digest::sha256(format!("{place}\n{}", text(&block.keys()))).hex());
        let path = self.root.join(name);
        let made = Arc::clone(self.table().all.entry(name.to_owned()).or_default());
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if !*made {
            let (layers, temporary) = (block.keys(), store.temporary());
            let done = make(store, &layers, block.is_lowest(), &text(&layers), &temporary)
                .and_then(|()| fs::rename(&temporary, &path).map_err(SnapshotError::io("make", &path)));
            if let Err(error) = done {
                // What can't be removed now is at the next start.
                let _ = store.discard(&temporary);
                return Err(error);
            }
            self.table().note(name.to_owned(), layers);
            *made = true;
        }
        Ok(path.join(FS))
    }

    /// Moves those that `layer` is part of out of their places. Returns where they are, to be discarded.
    pub(super) fn forget(&self, store: &Store, layer: &SnapshotKey) -> Result<Vec<PathBuf>, SnapshotError> {
        // Nothing stands on the layer, so none that it is part of is being made.
        let doomed = self.table().forget(layer);
        let mut moved = Vec::new();
        for name in doomed {
            let (path, trash) = (self.root.join(name), store.temporary());
            store.names().forget(&path.join(FS))?;
            fs::rename(&path, &trash).map_err(SnapshotError::io("remove", &path))?;
            moved.push(trash);
        }
        Ok(moved)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(
    store: &Store,
    layers: &[SnapshotKey],
    is_lowest: bool,
    text: &str,
    path: &Path,
) -> Result<(), SnapshotError> {
    let tree = path.join(FS);
    for dir in [path, &tree] {
        fs::create_dir(dir).map_err(SnapshotError::io("make", dir))?;
    }
    let list = path.join(LAYERS);
    fs::write(&list, text).map_err(SnapshotError::io("write", &list))?;
    let merge = || -> Result<(), FsError> {
        let mut merge = Merge { to: Root::open(&tree)?, is_lowest, directories: BTreeMap::new() };
        for key in layers {
            merge.add(&Root::open(store.tree(key))?)?;
        }
        merge.finish()
    };
    merge().map_err(SnapshotError::fs(&tree))
}

/// Layers on top of each other in one directory.
struct Merge {
    to: Root,
    /// Nothing is below it, so that there is nothing to hide.
    is_lowest: bool,
    directories: BTreeMap<PathBuf, Directory>,
}

/// What a directory gets when all is in it, which would change its times.
struct Directory {
    meta: Meta,
    xattrs: Xattrs,
    /// It hides what those below have in it.
    opaque: bool,
    /// Something in it hides what those below have there.
    removals: bool,
}

impl Merge {
    fn add(&mut self, layer: &Root) -> Result<(), FsError> {
        for entry in layer.walk("/")? {
            let entry = entry?;
            let path = &entry.path;
            if entry.meta.is_whiteout() {
                self.remove(path)?;
                self.hide(path)?;
            } else if entry.meta.is_dir() {
                self.add_directory(path, entry.meta, entry.xattrs()?)?;
            } else {
                self.remove(path)?;
                copy_tree(layer, path, &self.to, path, &CopyOptions { link: true })?;
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &Path, meta: Meta, mut xattrs: Xattrs) -> Result<(), FsError> {
        let top = path.as_os_str().is_empty();
        let opaque = xattrs.get(OsStr::new(OPAQUE)).is_some_and(|value| value == b"y");
        xattrs.retain(|name, _| !name.as_encoded_bytes().starts_with(OVERLAY_XATTRS.as_bytes()));
        let mut directory = Directory { meta, xattrs, opaque, removals: false };
        match self.directories.get(path) {
            Some(there) if !opaque => {
                (directory.opaque, directory.removals) = (there.opaque, there.removals);
            }
            None if top => {}
            _ => {
                // A directory in the place of something else shows nothing of what is below that.
                directory.opaque |= self.to.stat(path, Last::Keep)?.is_some();
                self.remove(path)?;
                if !top {
                    self.to.create_dir(path, 0o700)?;
                }
            }
        }
        self.directories.insert(path.to_path_buf(), directory);
        Ok(())
    }

    /// Hides what those below have at a path.
    fn hide(&mut self, path: &Path) -> Result<(), FsError> {
        if self.is_lowest {
            return Ok(());
        }
        if let Some(directory) = path.parent().and_then(|parent| self.directories.get_mut(parent)) {
            directory.removals = true;
        }
        self.to.mknod(path, Kind::WHITEOUT, 0)
    }

    fn remove(&mut self, path: &Path) -> Result<(), FsError> {
        self.to.remove_all(path)?;
        let gone: Vec<_> = self
            .directories
            .range(path.to_path_buf()..)
            .map(|(below, _)| below.clone())
            .take_while(|below| below.starts_with(path))
            .collect();
        for below in gone {
            self.directories.remove(&below);
        }
        Ok(())
    }

    fn finish(self) -> Result<(), FsError> {
        for (path, mut directory) in self.directories.into_iter().rev() {
            let mut mark = |name: &str, value: &[u8]| directory.xattrs.insert(name.into(), value.to_vec());
            // What is at the top of all layers always has others below it, and can't hide them.
            if !self.is_lowest && !path.as_os_str().is_empty() {
                if directory.opaque {
                    mark(OPAQUE, b"y");
                }
                if directory.removals {
                    mark(ORIGIN, b"");
                }
            }
            self.to.set_meta(&path, &MetaChange::like(&directory.meta, &directory.xattrs), Last::Keep)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mount::MAX_LOWER;
    use super::*;

    #[test]
    fn no_more_blocks_are_merged_than_what_is_needed() {
        for count in 0..20_000 {
            let blocks = merged(count, MAX_LOWER);
            let mounted = |blocks: usize| count.checked_sub(blocks * BLOCK).map(|above| above + blocks);
            assert!(mounted(blocks).is_some_and(|mounted| mounted <= MAX_LOWER), "{count}: {blocks}");
            assert!(blocks == 0 || mounted(blocks - 1).is_none_or(|mounted| mounted > MAX_LOWER));
        }
    }
}
