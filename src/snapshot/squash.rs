//! Chains of many layers.
//!
//! A mount takes the longer the more layers it has, and so does each look for a file in it, and the kernel takes no more
//! than [`MAX_LOWER`](super::mount::MAX_LOWER). So the lowest layers of a long chain are merged in *blocks*, each of
//! [`BLOCK`] layers and in one directory, with hard links to their files, so it costs directories only:
//!
//! ```text
//!   1 .. 50 | 51 .. 100 | 101, 102, ...        of 114 to 162 layers
//!   merged    merged      as they are
//! ```
//!
//! Blocks of few files are merged in chains of more than [`SHALLOW`] layers. To merge one of many takes long, so that is
//! done only where it must be.
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
use super::store::make_unless_there;
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

/// Layers of a chain that are mounted as they are.
const SHALLOW: usize = 64;
/// Files and directories that a block may have which is merged for speed alone.
const FEW: usize = 1_000;

#[derive(Debug)]
pub(super) struct Squashed {
    root: PathBuf,
    table: Mutex<Table>,
}

#[derive(Default, Debug)]
struct Table {
    /// By name. Its mutex is held while it is made.
    all: HashMap<String, Arc<Mutex<State>>>,
    /// What they are made of.
    layers: HashMap<String, Vec<SnapshotKey>>,
    /// The names of those that a layer is part of.
    of: HashMap<SnapshotKey, HashSet<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    #[default]
    Unknown,
    /// It was looked at, and has more than [`FEW`] files.
    Large,
    Made,
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

/// How many blocks of `count` layers are merged, so that the rest and they are no more than [`SHALLOW`], if they can be.
fn wanted(count: usize) -> usize {
    // A merged block is one layer itself.
    count.saturating_sub(SHALLOW).div_ceil(BLOCK - 1).min(count / BLOCK)
}

impl Squashed {
    /// Removes those of which a layer is missing, and those of another boot.
    pub(super) fn open(store: &Store) -> Result<Squashed, SnapshotError> {
        let root = store.root().join("squashed");
        make_unless_there(&root)?;
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
                    table.all.insert(name.clone(), Arc::new(Mutex::new(State::Made)));
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
        let (above, blocks) = layers.blocks(wanted(layers.count()));
        let mut lower: Vec<_> = above.map(|key| store.tree(key)).collect();
        let mut merged = Vec::new();
        for block in blocks {
            let found = self.get(store, &block, FEW).unwrap_or_else(|error| {
                // On a full disk, for example, and nobody has to have it.
                tracing::debug!(%error, "layers are mounted one by one");
                None
            });
            merged.push((found, block));
        }
        let layers = |found: &Option<PathBuf>| if found.is_some() { 1 } else { BLOCK };
        let mut count = lower.len() + merged.iter().map(|(found, _)| layers(found)).sum::<usize>();
        // The lowest comes last, and is in most chains.
        for (found, block) in merged.iter_mut().rev().filter(|(found, _)| found.is_none()) {
            if count > limit {
                *found = self.get(store, block, usize::MAX)?;
                count -= BLOCK - 1;
            }
        }
        for (found, block) in merged {
            match found {
                Some(found) => lower.push(found),
                None => lower.extend(block.keys().iter().rev().map(|key| store.tree(key))),
            }
        }
        // The kernel takes no directory twice. What one shows and hides where it lies highest, it shows and hides in each
        // place below that as well.
        let mut seen = HashSet::new();
        lower.retain(|directory| seen.insert(directory.clone()));
        Ok(lower)
    }

    /// A merged block; none if it would have to be merged now and has more than `few` files.
    fn get(&self, store: &Store, block: &Block<'_>, few: usize) -> Result<Option<PathBuf>, SnapshotError> {
        let text = |layers: &[SnapshotKey]| -> String {
            layers.iter().flat_map(|key| [key.as_str(), "\n"]).collect()
        };
        let place = if block.is_lowest() { "lowest" } else { "above others" };
        let name = block.name(|| Digest::sha256(format!("{place}\n{}", text(&block.keys()))).hex());
        let path = self.root.join(name);
        let state = Arc::clone(self.table().all.entry(name.to_owned()).or_default());
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_tried = match *state {
            State::Unknown => true,
            State::Large => few > FEW,
            State::Made => false,
        };
        if is_tried {
            let (layers, temporary) = (block.keys(), store.temporary());
            let done = make(store, &layers, block.is_lowest(), &text(&layers), &temporary, few).and_then(
                |is_whole| {
                    match is_whole {
                        true => fs::rename(&temporary, &path).map_err(SnapshotError::io("make", &path)),
                        false => store.discard(&temporary),
                    }
                    .map(|()| is_whole)
                },
            );
            let is_whole = done.inspect_err(|_| store.discard_all([&temporary]))?;
            self.table().note(name.to_owned(), layers);
            *state = if is_whole { State::Made } else { State::Large };
        }
        Ok((*state == State::Made).then(|| path.join(FS)))
    }

    /// Moves those that `layer` is part of out of their places. Returns where they are, to be discarded.
    pub(super) fn forget(&self, store: &Store, layer: &SnapshotKey) -> Result<Vec<PathBuf>, SnapshotError> {
        // Nothing stands on the layer, so none that it is part of is being made.
        let doomed = self.table().forget(layer);
        let mut moved = Vec::new();
        for name in doomed {
            let (path, trash) = (self.root.join(name), store.temporary());
            store.names().forget(&path.join(FS))?;
            match fs::rename(&path, &trash) {
                Ok(()) => moved.push(trash),
                // It was not merged.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SnapshotError::io("remove", &path)(error)),
            }
        }
        Ok(moved)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Merges layers in a new directory. False if it gave up, as they have more than `few` files.
fn make(
    store: &Store,
    layers: &[SnapshotKey],
    is_lowest: bool,
    text: &str,
    path: &Path,
    few: usize,
) -> Result<bool, SnapshotError> {
    let tree = path.join(FS);
    for dir in [path, &tree] {
        fs::create_dir(dir).map_err(SnapshotError::io("make", dir))?;
    }
    let list = path.join(LAYERS);
    fs::write(&list, text).map_err(SnapshotError::io("write", &list))?;
    let merge = || -> Result<bool, FsError> {
        let mut merge = Merge { to: Root::open(&tree)?, is_lowest, left: few, directories: BTreeMap::new() };
        for key in layers {
            if !merge.add(&Root::open(store.tree(key))?)? {
                return Ok(false);
            }
        }
        merge.finish()?;
        Ok(true)
    };
    merge().map_err(SnapshotError::fs(&tree))
}

/// Layers on top of each other in one directory.
struct Merge {
    to: Root,
    /// Nothing is below it, so that there is nothing to hide.
    is_lowest: bool,
    /// How many more entries there may be.
    left: usize,
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
    /// False if that are too many entries.
    fn add(&mut self, layer: &Root) -> Result<bool, FsError> {
        for entry in layer.walk("/")? {
            let entry = entry?;
            let Some(left) = self.left.checked_sub(1) else { return Ok(false) };
            self.left = left;
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
        Ok(true)
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
    use super::*;

    #[test]
    fn no_more_blocks_are_merged_than_what_is_wanted() {
        for count in 0..20_000 {
            let blocks = wanted(count);
            let mounted = |blocks: usize| count.checked_sub(blocks * BLOCK).map(|above| above + blocks);
            let is_all = count - blocks * BLOCK < BLOCK;
            assert!(mounted(blocks).is_some_and(|mounted| mounted <= SHALLOW || is_all), "{count}: {blocks}");
            assert!(blocks == 0 || mounted(blocks - 1).is_some_and(|mounted| mounted > SHALLOW));
        }
    }
}
