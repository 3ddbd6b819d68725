//! Snapshots that are whole trees of their own, on any file system.
//!
//! An active snapshot is a copy of its parent, made by reference where the file system can; its hard links are kept.
//! Nothing is mounted to write it. A view is its parent's own directory, mounted read-only; a process that may not mount
//! sees it as it is, and must not write to it.
//!
//! A snapshot that another was made on is not removed before that one, as in every snapshotter that does not stack, though
//! a copy would not miss it.
//!
//! # Locking
//!
//! See `store.rs` for snapshots and `slot.rs` for mounts.
//!
//! # Crash consistency
//!
//! As in `overlay.rs`: a copy that is not finished has a temporary name.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rustix::io::Errno;

use super::Mount;
use super::MountPoint;
use super::Mounted;
use super::Parents;
use super::SnapshotError;
use super::SnapshotInfo;
use super::SnapshotKey;
use super::SnapshotKind;
use super::SnapshotUsage;
use super::Snapshotter;
use super::mount::bind_read_only;
use super::points::Points;
use super::removal;
use super::slot::Hold;
use super::slot::Point;
use super::slot::Show;
use super::store::FS;
use super::store::Store;
use super::store::make_tree;
use crate::fs::CopyOptions;
use crate::fs::Root;
use crate::fs::copy_tree;
use crate::task::Tasks;

/// Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct NativeSnapshotter {
    store: Arc<Store>,
    tasks: Tasks,
}

impl NativeSnapshotter {
    /// Opens the snapshots below `root`, which is made if missing, and cleans what a crash left there. Blocks.
    pub fn open(root: &Path, tasks: Tasks) -> Result<NativeSnapshotter, SnapshotError> {
        Ok(NativeSnapshotter { store: Arc::new(Store::open(root, true)?), tasks })
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Arc<Store>) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let store = Arc::clone(&self.store);
        self.tasks.spawn_blocking(name, move || work(&store)).await?
    }

    async fn make(
        &self,
        key: &SnapshotKey,
        kind: SnapshotKind,
        parents: &Parents,
    ) -> Result<(), SnapshotError> {
        if parents.count() > 1 {
            return Err(SnapshotError::TooManyParents { snapshotter: self.name(), count: parents.count() });
        }
        let (key, parents) = (key.clone(), parents.clone());
        self.run("make snapshot", move |store| {
            store.make(&key, kind, &parents, |path| match (kind, parents.top()) {
                (SnapshotKind::View, Some(_)) => Ok(()),
                (_, None) => make_tree(path).map(drop),
                (_, Some(parent)) => copy(&store.tree(parent), path),
            })
        })
        .await
    }
}

fn copy(parent: &Path, path: &Path) -> Result<(), SnapshotError> {
    let copy = || {
        let (from, to) = (Root::open(parent)?, Root::open(path)?);
        copy_tree(&from, "/", &to, FS, &CopyOptions::default())
    };
    copy().map(drop).map_err(SnapshotError::fs(path))
}

/// The tree that a snapshot shows.
fn tree(store: &Store, info: &SnapshotInfo) -> PathBuf {
    match (info.kind, info.parents.top()) {
        (SnapshotKind::View, Some(parent)) => store.tree(parent),
        _ => store.path(info.kind, &info.key).join(FS),
    }
}

struct Showing<'a> {
    store: &'a Store,
    info: &'a SnapshotInfo,
}

impl Show for Showing<'_> {
    fn show(&self) -> Result<Point, SnapshotError> {
        let tree = tree(self.store, self.info);
        if self.info.kind == SnapshotKind::View {
            self.show_read_only(&tree)
        } else {
            Ok(Point::Directory(tree))
        }
    }

    fn show_read_only(&self, whole: &Path) -> Result<Point, SnapshotError> {
        let mut is_refused = false;
        let mounted = self.store.spots().mount(&Points::default(), |spot| {
            bind_read_only(whole, spot.path()).map_err(|errno| {
                is_refused = errno == Errno::PERM;
                SnapshotError::io("mount read-only on", spot.path())(errno)
            })
        });
        match mounted {
            Err(_) if is_refused => Ok(Point::Directory(whole.to_path_buf())),
            mounted => mounted.map(Point::Mount),
        }
    }
}

#[async_trait]
impl Snapshotter for NativeSnapshotter {
    fn name(&self) -> &'static str {
        "native"
    }

    fn stacks(&self) -> bool {
        false
    }

    async fn prepare(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError> {
        self.make(key, SnapshotKind::Active, parents).await
    }

    async fn view(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError> {
        self.make(key, SnapshotKind::View, parents).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>, SnapshotError> {
        let info = self.store.stat(key)?;
        if info.kind == SnapshotKind::Committed {
            let (key, actual) = (key.clone(), info.kind);
            return Err(SnapshotError::WrongKind { key, actual, action: "mount: make a view of it" });
        }
        Ok(vec![Mount::bind(&tree(&self.store, &info), info.kind == SnapshotKind::View)])
    }

    async fn mount(&self, key: &SnapshotKey, read_only: bool) -> Result<Mounted, SnapshotError> {
        let (key, tasks) = (key.clone(), self.tasks.clone());
        self.run("mount snapshot", move |store| {
            let (info, slot) = store.hold(&key)?;
            // A view is read-only as a whole.
            let read_only = read_only && info.kind == SnapshotKind::Active;
            let hold = Hold::new(store, &key, slot, &tasks, read_only, &Showing { store, info: &info })?;
            Ok(Mounted::new(hold.path().to_path_buf(), tasks, hold))
        })
        .await
    }

    /// What is made in a whole tree costs no more than what would be seen.
    async fn mount_with(&self, key: &SnapshotKey, _: &[MountPoint]) -> Result<Mounted, SnapshotError> {
        self.mount(key, false).await
    }

    fn upper(&self, _: &SnapshotKey) -> Option<PathBuf> {
        None
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey) -> Result<(), SnapshotError> {
        let (name, key) = (name.clone(), key.clone());
        self.run("commit snapshot", move |store| store.commit(&name, &key, |_| Ok(())).map(drop)).await
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        let key = key.clone();
        self.run("remove snapshot", move |store| {
            store.discard_all(&store.remove(&key, || Ok(Vec::new()))?);
            Ok(())
        })
        .await
    }

    async fn remove_all(
        &self,
        keys: Vec<SnapshotKey>,
    ) -> Result<Vec<(SnapshotKey, SnapshotError)>, SnapshotError> {
        self.run("remove snapshots", move |store| Ok(removal::remove_all(store, keys, |_| Ok(Vec::new()))))
            .await
    }

    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo, SnapshotError> {
        self.store.stat(key)
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<SnapshotUsage, SnapshotError> {
        let key = key.clone();
        self.run("count snapshot", move |store| store.usage(&key)).await
    }

    async fn walk(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        self.run("list snapshots", |store| store.walk()).await
    }

    async fn sync(&self) -> Result<(), SnapshotError> {
        self.run("sync snapshots", |store| store.sync()).await
    }
}
