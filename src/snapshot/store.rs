//! The directories of a snapshotter, and who uses them: what `overlay` and `native` have in common.
//!
//! ```text
//! <root>/
//!   active/<key>/      a snapshot that can be written: `fs/`, and what its snapshotter needs besides
//!   views/<key>/
//!   committed/<name>/
//!   temporary/<n>      a snapshot on its way in or out
//!   mounts/<n>         what something is mounted on (`spots.rs`)
//!   spare/<n>          others of these for later, and a directory of a snapshot (`blank.rs`)
//!   l/<name>           links to trees that were mounted below others
//! ```
//!
//! The kind of a snapshot is where its directory lies, and its file `meta` says the rest and is never changed, but that a
//! committed one that stands alone is not to say what it was made on: one of a long chain was made on many. So each
//! step is one rename. Committed snapshots that stand alone are looked up when they are asked for, so that opening takes
//! no longer the more there are.
//!
//! # Long chains
//!
//! Who makes a snapshot on a thousand others looks at those that nobody has looked at since one was last removed. Who
//! removes one looks whether it is below any that is written or viewed, of which there are few.
//!
//! # Locking
//!
//! One mutex over the table in memory, never held over I/O, but to look whether a directory is there: who works on a
//! snapshot marks it as busy first. The mounts of a snapshot have a mutex of their own, held while one is made or undone.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use rustix::fs::RenameFlags;

use super::Parents;
use super::SnapshotError;
use super::SnapshotInfo;
use super::SnapshotKey;
use super::SnapshotKind;
use super::SnapshotUsage;
use super::blank::Blank;
use super::meta;
use super::names::Names;
use super::slot::Slot;
use super::spots;
use super::spots::Spots;
use super::stale;
use super::table::Entry;
use super::table::Phase;
use super::table::Table;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::fs::FsError;
use crate::fs::Root;

/// The tree of a snapshot within its directory.
pub(super) const FS: &str = "fs";
const TEMPORARY: &str = "temporary";
const KINDS: [SnapshotKind; 3] = [SnapshotKind::Active, SnapshotKind::View, SnapshotKind::Committed];

#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    /// Whether committed snapshots need those that they were made on.
    chained: bool,
    next: AtomicU64,
    names: Names,
    spots: Spots,
    blank: Blank,
    table: Mutex<Table>,
}

impl Store {
    /// Opens the snapshots below `root`, which is made if missing. What a crash left is unmounted and removed.
    pub(super) fn open(root: &Path, chained: bool) -> Result<Store, SnapshotError> {
        fs::create_dir_all(root).map_err(SnapshotError::io("make", root))?;
        // The kernel tells of mounts by their real paths.
        let root = fs::canonicalize(root).map_err(SnapshotError::io("find", root))?;
        stale::unmount_below(&root)?;
        let (names, spots, blank) = (Names::new(&root), Spots::new(&root), Blank::new(&root));
        let table = Mutex::new(Table::new());
        let store = Store { root, chained, next: AtomicU64::new(0), names, spots, blank, table };
        let passing = || spots::DIRECTORIES.into_iter().chain([TEMPORARY]);
        for name in KINDS.map(directory).into_iter().chain(passing()) {
            let path = store.root.join(name);
            make_unless_there(&path)?;
        }
        for name in passing() {
            store.empty(&store.root.join(name))?;
        }
        for kind in KINDS {
            if store.needs_parents(kind) {
                store.load(kind)?;
            }
        }
        Ok(store)
    }

    /// Reads what is there of a kind.
    fn load(&self, kind: SnapshotKind) -> Result<(), SnapshotError> {
        let directory = self.root.join(directory(kind));
        for entry in fs::read_dir(&directory).map_err(SnapshotError::io("list", &directory))? {
            let path = entry.map_err(SnapshotError::io("list", &directory))?.path();
            let damaged = |reason: String| SnapshotError::Damaged { path: path.clone(), reason };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let key = SnapshotKey::new(&name).map_err(|error| damaged(error.to_string()))?;
            if !self.table().entries.contains_key(&key) {
                self.take(&path, key, kind)?;
            }
        }
        Ok(())
    }

    /// Reads a snapshot's directory into the table, if it is there and the table does not have it.
    fn take(&self, path: &Path, key: SnapshotKey, kind: SnapshotKind) -> Result<(), SnapshotError> {
        let read = meta::read(path, &key, kind).map(|info| self.as_kept(info));
        let mut table = self.table();
        // The table forgets a snapshot after its directory was moved, and knows a new one before it is there.
        if table.entries.contains_key(&key) || !path.exists() {
            return Ok(());
        }
        match read {
            Ok(info) => {
                if self.needs_parents(kind) {
                    table.depend(&info);
                }
                table.entries.insert(key, Entry::new(info));
                Ok(())
            }
            // A power cut may leave what nobody had synced, and so nobody relies on.
            Err(SnapshotError::Damaged { path, reason }) => {
                tracing::warn!(path = %path.display(), reason, "a snapshot that is not whole goes");
                let trash = self.temporary();
                rename(&path, &trash)?;
                drop(table);
                self.names.forget(&path.join(FS))?;
                self.discard_all([trash]);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Has the table know a snapshot, if there is one of this key.
    fn look_up(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        if self.chained || self.table().entries.contains_key(key) {
            return Ok(());
        }
        self.take(&self.path(SnapshotKind::Committed, key), key.clone(), SnapshotKind::Committed)
    }

    /// The kind of a snapshot, from a look at where it is.
    pub(super) fn kind(&self, key: &SnapshotKey) -> Option<SnapshotKind> {
        if let Some(entry) = self.table().entries.get(key) {
            return (entry.phase != Phase::Making).then_some(entry.info.kind);
        }
        let committed = self.path(SnapshotKind::Committed, key);
        (!self.chained && committed.exists()).then_some(SnapshotKind::Committed)
    }

    /// How committed snapshots are called where they are mounted.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// What can be mounted on.
    pub(super) fn spots(&self) -> &Spots {
        &self.spots
    }

    /// What the next snapshot is made of, if it is written to.
    pub(super) fn blank(&self) -> &Blank {
        &self.blank
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn needs_parents(&self, kind: SnapshotKind) -> bool {
        self.chained || kind != SnapshotKind::Committed
    }

    /// The directory of a snapshot.
    pub(super) fn path(&self, kind: SnapshotKind, key: &SnapshotKey) -> PathBuf {
        self.root.join(directory(kind)).join(key.as_str())
    }

    /// The tree of a committed snapshot.
    pub(super) fn tree(&self, key: &SnapshotKey) -> PathBuf {
        self.path(SnapshotKind::Committed, key).join(FS)
    }

    /// A new name for something on its way in or out.
    pub(super) fn temporary(&self) -> PathBuf {
        self.root.join(TEMPORARY).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo, SnapshotError> {
        self.look_up(key)?;
        let table = self.table();
        let entry = table.entries.get(key).filter(|entry| entry.phase != Phase::Making);
        entry.map(|entry| entry.info.clone()).ok_or_else(|| SnapshotError::NotFound { key: key.clone() })
    }

    pub(super) fn walk(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        self.load(SnapshotKind::Committed)?;
        let table = self.table();
        let made = table.entries.values().filter(|entry| entry.phase != Phase::Making);
        let mut all: Vec<_> = made.map(|entry| entry.info.clone()).collect();
        drop(table);
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// Makes an active snapshot or a view. `fill` is called with the directory under its temporary name.
    pub(super) fn make(
        &self,
        key: &SnapshotKey,
        kind: SnapshotKind,
        parents: &Parents,
        fill: impl FnOnce(&Path) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let info = SnapshotInfo {
            key: key.clone(),
            kind,
            parents: parents.clone(),
            // What is read back from `meta` is the same.
            created_at: Timestamp::now(),
        };
        self.reserve(&info)?;
        let (path, place) = (self.temporary(), self.path(kind, key));
        let mut at = &path;
        let made = self.write(&path, &info, fill).and_then(|()| {
            failpoint::hit(Failpoint::SnapshotWritten)?;
            rename(&path, &place)?;
            at = &place;
            Ok(failpoint::hit(Failpoint::SnapshotMade)?)
        });
        match made {
            Ok(()) => self.set_phase(key, Phase::Idle),
            Err(_) => {
                self.discard_all([at]);
                self.forget(key);
            }
        }
        made
    }

    fn reserve(&self, info: &SnapshotInfo) -> Result<(), SnapshotError> {
        let generation = self.table().generation();
        for key in info.parents.unseen(generation).chain([&info.key]) {
            self.look_up(key)?;
        }
        let mut table = self.table();
        if table.entries.contains_key(&info.key) {
            return Err(SnapshotError::Exists { key: info.key.clone() });
        }
        // What was seen before is in the table until it is removed.
        for parent in info.parents.unseen(table.generation()) {
            let entry = table.get(parent)?;
            if entry.info.kind != SnapshotKind::Committed {
                let (key, actual) = (parent.clone(), entry.info.kind);
                return Err(SnapshotError::WrongKind { key, actual, action: "stand on" });
            }
            if entry.phase != Phase::Idle {
                return Err(SnapshotError::Busy { key: parent.clone() });
            }
        }
        info.parents.look(table.generation());
        table.depend(info);
        table.entries.insert(info.key.clone(), Entry { phase: Phase::Making, ..Entry::new(info.clone()) });
        Ok(())
    }

    fn write(
        &self,
        path: &Path,
        info: &SnapshotInfo,
        fill: impl FnOnce(&Path) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        // What stands on nothing has the times at which it was made.
        let is_blank = info.kind == SnapshotKind::Active && !self.chained && !info.parents.is_empty();
        if !is_blank || !self.blank.take(path) {
            fs::create_dir(path).map_err(SnapshotError::io("make", path))?;
        }
        meta::write(info, path)?;
        fill(path)
    }

    /// Makes the active snapshot `key` the committed one `name`. `finish` is called with its directory before. True if
    /// it has [parents to forget](Self::forget_parents).
    pub(super) fn commit(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        finish: impl FnOnce(&Path) -> Result<(), SnapshotError>,
    ) -> Result<bool, SnapshotError> {
        self.look_up(name)?;
        self.look_up(key)?;
        let is_told = {
            let mut table = self.table();
            if table.entries.contains_key(name) {
                return Err(SnapshotError::Exists { key: name.clone() });
            }
            let entry = table.idle(key)?;
            if entry.info.kind != SnapshotKind::Active {
                let (key, actual) = (key.clone(), entry.info.kind);
                return Err(SnapshotError::WrongKind { key, actual, action: "commit" });
            }
            entry.phase = Phase::Leaving;
            let info =
                SnapshotInfo { key: name.clone(), kind: SnapshotKind::Committed, ..entry.info.clone() };
            let has_parents = !info.parents.is_empty();
            let info = self.as_kept(info);
            if self.chained {
                table.depend(&info);
            }
            let is_told = has_parents && info.parents.is_empty();
            table.entries.insert(name.clone(), Entry { phase: Phase::Making, ..Entry::new(info) });
            is_told
        };
        let from = self.path(SnapshotKind::Active, key);
        let committed = finish(&from).and_then(|()| {
            failpoint::hit(Failpoint::SnapshotFinished)?;
            rename(&from, &self.path(SnapshotKind::Committed, name))
        });
        match committed {
            Ok(()) => {
                self.forget(key);
                self.set_phase(name, Phase::Idle);
                // It is committed, whatever happens from here.
                failpoint::hit(Failpoint::SnapshotCommitted)?;
                Ok(is_told)
            }
            Err(error) => {
                self.forget(name);
                self.set_phase(key, Phase::Idle);
                Err(error)
            }
        }
    }

    /// Has a committed snapshot not say any more what it was made on, if it stands alone. Nobody waits for it, and it
    /// may be removed meanwhile.
    pub(super) fn forget_parents(&self, name: &SnapshotKey) {
        let info = self.table().entries.get(name).map(|entry| entry.info.clone());
        let Some(info) = info else { return };
        if let Err(error) = meta::replace(&info, &self.path(info.kind, name)) {
            // Nobody reads it.
            tracing::debug!(snapshot = %name, %error, "what it was made on is still noted");
        }
    }

    /// What the table keeps of a snapshot.
    fn as_kept(&self, info: SnapshotInfo) -> SnapshotInfo {
        match self.needs_parents(info.kind) {
            true => info,
            false => SnapshotInfo { parents: Parents::default(), ..info },
        }
    }

    /// As [`Store::remove_to`], to a place of its own.
    pub(super) fn remove(
        &self,
        key: &SnapshotKey,
        before: impl FnOnce() -> Result<Vec<PathBuf>, SnapshotError>,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        self.remove_to(self.temporary(), key, before)
    }

    /// Takes a snapshot away at once, to `temporary`. Its files, and those of `before`, are deleted when the returned
    /// directories are [discarded](Self::discard_all). Nobody can come to stand on it while `before` is called.
    pub(super) fn remove_to(
        &self,
        temporary: PathBuf,
        key: &SnapshotKey,
        before: impl FnOnce() -> Result<Vec<PathBuf>, SnapshotError>,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        self.look_up(key)?;
        let kind = {
            let mut table = self.table();
            if let Some(by) = table.standing_on(key) {
                return Err(SnapshotError::InUse { key: key.clone(), by });
            }
            let entry = table.idle(key)?;
            entry.phase = Phase::Leaving;
            let kind = entry.info.kind;
            if kind == SnapshotKind::Committed {
                table.next_generation();
            }
            kind
        };
        let removed = before().and_then(|mut trash| {
            let path = self.path(kind, key);
            self.names.forget(&path.join(FS))?;
            rename(&path, &temporary)?;
            trash.push(temporary);
            Ok(trash)
        });
        match removed {
            Ok(trash) => {
                self.forget(key);
                if let Err(injected) = failpoint::hit(Failpoint::SnapshotRemoved) {
                    self.discard_all(&trash);
                    return Err(injected.into());
                }
                Ok(trash)
            }
            Err(error) => {
                self.set_phase(key, Phase::Idle);
                Err(error)
            }
        }
    }

    /// Deletes a directory with all in it; none is no error.
    pub(super) fn discard(&self, path: &Path) -> Result<(), SnapshotError> {
        let remove = || Root::open(&self.root)?.remove_all(path.strip_prefix(&self.root).unwrap_or(path));
        remove().map_err(SnapshotError::fs(&self.root))
    }

    /// Deletes directories that are on their way out. What can't be deleted now is at the next start.
    pub(super) fn discard_all(&self, paths: impl IntoIterator<Item = impl AsRef<Path>>) {
        for path in paths {
            if let Err(error) = self.discard(path.as_ref()) {
                tracing::warn!(%error, "what is left of a snapshot was not removed");
            }
        }
    }

    fn empty(&self, path: &Path) -> Result<(), SnapshotError> {
        let remove = || -> Result<(), FsError> {
            let root = Root::open(path)?;
            for name in root.read_dir("/")? {
                root.remove_all(name)?;
            }
            Ok(())
        };
        remove().map_err(SnapshotError::fs(path))
    }

    /// Counts a mount of a snapshot that can be mounted. To be undone by [`Store::release`].
    pub(super) fn hold(&self, key: &SnapshotKey) -> Result<(SnapshotInfo, Arc<Slot>), SnapshotError> {
        self.look_up(key)?;
        let mut table = self.table();
        let entry = table.get_mut(key)?;
        if entry.info.kind == SnapshotKind::Committed {
            let (key, actual) = (key.clone(), entry.info.kind);
            return Err(SnapshotError::WrongKind { key, actual, action: "mount: make a view of it" });
        }
        if entry.phase != Phase::Idle {
            return Err(SnapshotError::Busy { key: key.clone() });
        }
        entry.mounts += 1;
        Ok((entry.info.clone(), Arc::clone(&entry.slot)))
    }

    pub(super) fn release(&self, key: &SnapshotKey) {
        if let Some(entry) = self.table().entries.get_mut(key) {
            entry.mounts -= 1;
        }
    }

    /// What the tree of a snapshot occupies. `fs` itself is part of it.
    pub(super) fn usage(&self, key: &SnapshotKey) -> Result<SnapshotUsage, SnapshotError> {
        let info = self.stat(key)?;
        let path = self.path(info.kind, key).join(FS);
        // A view has nothing of its own.
        if info.kind == SnapshotKind::View {
            return Ok(SnapshotUsage::default());
        }
        usage(&path).map_err(SnapshotError::fs(&path))
    }

    /// Writes all that was done here to the disk.
    pub(super) fn sync(&self) -> Result<(), SnapshotError> {
        let root = fs::File::open(&self.root).map_err(SnapshotError::io("open", &self.root))?;
        rustix::fs::syncfs(root).map_err(SnapshotError::io("sync", &self.root))
    }

    fn set_phase(&self, key: &SnapshotKey, phase: Phase) {
        if let Some(entry) = self.table().entries.get_mut(key) {
            entry.phase = phase;
        }
    }

    fn forget(&self, key: &SnapshotKey) {
        let mut table = self.table();
        if let Some(entry) = table.entries.remove(key)
            && self.needs_parents(entry.info.kind)
        {
            table.free(&entry.info);
        }
    }
}

/// Makes a directory, unless it is there.
pub(super) fn make_unless_there(path: &Path) -> Result<(), SnapshotError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(SnapshotError::io("make", path)),
    }
}

/// Makes the empty tree of a snapshot in its directory, unless it is there.
pub(super) fn make_tree(path: &Path) -> Result<PathBuf, SnapshotError> {
    let tree = path.join(FS);
    if !tree.exists() {
        let make = || Root::open(path)?.create_dir(FS, 0o755);
        make().map_err(SnapshotError::fs(path))?;
    }
    Ok(tree)
}

fn directory(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Active => "active",
        SnapshotKind::View => "views",
        SnapshotKind::Committed => "committed",
    }
}

/// Moves a directory to where none is.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE)
        .map_err(SnapshotError::io("make", to))
}

fn usage(path: &Path) -> Result<SnapshotUsage, FsError> {
    let mut usage = SnapshotUsage::default();
    let mut linked = HashSet::new();
    for entry in Root::open(path)?.walk("/")? {
        let meta = entry?.meta;
        if meta.is_dir() || meta.nlink == 1 || linked.insert((meta.device, meta.inode)) {
            usage.bytes += meta.allocated;
            usage.inodes += 1;
        }
    }
    Ok(usage)
}
