//! Chains of layers that are deeper than overlay can mount.
//!
//! The lowest layers of such a chain are merged into one directory, with hard links to their files, so it costs directories
//! only. Merged ones are kept below `<root>/squashed/` and serve every chain that begins with the same layers: the
//! number that is merged grows in steps, so that a chain that gets one more layer mostly finds one. A layer that is removed
//! takes those along that it is part of; while one is mounted, something stands on each of its layers.
//!
//! # Crash consistency
//!
//! Made under a temporary name and renamed, like a snapshot. Nobody syncs them: those of another boot are made anew.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::TryLockError;

use super::BootId;
use super::SnapshotError;
use super::SnapshotKey;
use super::store::FS;
use super::store::Store;
use crate::fs::CopyOptions;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::fs::Xattrs;
use crate::fs::copy_tree;
use crate::oci::Digest;

/// The number of merged layers is a multiple of this.
const STEP: usize = 250;
const LAYERS: &str = "layers";
/// Beside them: the boot that those which are there were made in.
const BOOT: &str = "squashed-in";
/// Attributes that only mean something between the layers of an overlay.
const OVERLAY_XATTRS: &str = "trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";

#[derive(Debug)]
pub(super) struct Squashed {
    root: PathBuf,
    /// By name. Its mutex is held while it is made.
    all: Mutex<HashMap<String, Arc<Mutex<State>>>>,
}

#[derive(Default, Debug)]
struct State {
    /// What it is made of, once it is.
    layers: Option<Vec<SnapshotKey>>,
}

/// How many of the lowest of `count` layers are merged, so that the rest and they are no more than `limit`.
fn merged(count: usize, limit: usize) -> usize {
    match count.checked_sub(limit) {
        None | Some(0) => 0,
        // The merged ones are one layer themselves.
        Some(excess) => (excess + 1).next_multiple_of(STEP),
    }
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
        let mut all = HashMap::new();
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
                    let state = Arc::new(Mutex::new(State { layers: Some(layers) }));
                    all.insert(entry.file_name().to_string_lossy().into_owned(), state);
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
        Ok(Squashed { root, all: Mutex::new(all) })
    }

    /// The directories of a chain, topmost first, no more than `limit`. `layers` are lowest first, and something
    /// stands on each of them meanwhile.
    pub(super) fn lower(
        &self,
        store: &Store,
        layers: &[SnapshotKey],
        limit: usize,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let (low, high) = layers.split_at(merged(layers.len(), limit));
        let mut lower: Vec<_> = high.iter().rev().map(|key| store.tree(key)).collect();
        if !low.is_empty() {
            lower.push(self.get(store, low)?);
        }
        Ok(lower)
    }

    fn get(&self, store: &Store, layers: &[SnapshotKey]) -> Result<PathBuf, SnapshotError> {
        let text: String = layers.iter().flat_map(|key| [key.as_str(), "\n"]).collect();
        let name = Digest::sha256(&text).hex();
        let path = self.root.join(&name);
        let state = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(name).or_default())
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.layers.is_none() {
            let temporary = store.temporary();
            let made = make(store, layers, &text, &temporary)
                .and_then(|()| fs::rename(&temporary, &path).map_err(SnapshotError::io("make", &path)));
            if let Err(error) = made {
                // What can't be removed now is at the next start.
                let _ = store.discard(&temporary);
                return Err(error);
            }
            state.layers = Some(layers.to_vec());
        }
        Ok(path.join(FS))
    }

    /// Moves those that `layer` is part of out of their places. Returns where they are, to be discarded.
    pub(super) fn forget(&self, store: &Store, layer: &SnapshotKey) -> Result<Vec<PathBuf>, SnapshotError> {
        // Nothing stands on the layer, so none that it is part of is being made.
        let mut doomed = Vec::new();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, state| {
            let state = match state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(state)) => state.into_inner(),
                Err(TryLockError::WouldBlock) => return true,
            };
            let part = state.layers.as_ref().is_some_and(|layers| layers.contains(layer));
            if part {
                doomed.push(self.root.join(name));
            }
            !part
        });
        drop(all);
        let mut moved = Vec::new();
        for path in doomed {
            let trash = store.temporary();
            store.names().forget(&path.join(FS))?;
            fs::rename(&path, &trash).map_err(SnapshotError::io("remove", &path))?;
            moved.push(trash);
        }
        Ok(moved)
    }
}

fn make(store: &Store, layers: &[SnapshotKey], text: &str, path: &Path) -> Result<(), SnapshotError> {
    let tree = path.join(FS);
    for dir in [path, &tree] {
        fs::create_dir(dir).map_err(SnapshotError::io("make", dir))?;
    }
    let list = path.join(LAYERS);
    fs::write(&list, text).map_err(SnapshotError::io("write", &list))?;
    let merge = || -> Result<(), FsError> {
        let mut merge = Merge { to: Root::open(&tree)?, directories: BTreeMap::new() };
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
    /// What directories get when all is in them, which would change their times.
    directories: BTreeMap<PathBuf, (Meta, Xattrs)>,
}

impl Merge {
    fn add(&mut self, layer: &Root) -> Result<(), FsError> {
        for entry in layer.walk("/")? {
            let entry = entry?;
            let path = &entry.path;
            let top = path.as_os_str().is_empty();
            if entry.meta.is_whiteout() {
                self.remove(path)?;
            } else if entry.meta.is_dir() {
                let mut xattrs = entry.xattrs()?;
                let opaque = xattrs.get(std::ffi::OsStr::new(OPAQUE)).is_some_and(|value| value == b"y");
                xattrs.retain(|name, _| !name.as_encoded_bytes().starts_with(OVERLAY_XATTRS.as_bytes()));
                if opaque || (!top && !self.directories.contains_key(path)) {
                    self.remove(path)?;
                    if !top {
                        self.to.create_dir(path, 0o700)?;
                    }
                }
                self.directories.insert(path.clone(), (entry.meta, xattrs));
            } else {
                self.remove(path)?;
                copy_tree(layer, path, &self.to, path, &CopyOptions { link: true })?;
            }
        }
        Ok(())
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
        for (path, (meta, xattrs)) in self.directories.iter().rev() {
            self.to.set_meta(path, &MetaChange::like(meta, xattrs), Last::Keep)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mount::MAX_LOWER;
    use super::*;

    #[test]
    fn no_more_layers_are_merged_than_a_step_beyond_what_is_needed() {
        for count in 0..3000 {
            let low = merged(count, MAX_LOWER);
            assert!(low <= count);
            assert_eq!(low % STEP, 0);
            let mounted = count - low + usize::from(low > 0);
            assert!(mounted <= MAX_LOWER, "{count}: {mounted}");
            assert!(low == 0 || mounted + STEP > MAX_LOWER, "{count}: {low}");
        }
    }
}
