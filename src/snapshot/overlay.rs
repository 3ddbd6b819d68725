//! Snapshots that share their parents' files through overlay mounts.
//!
//! A snapshot's directory has `fs/`, its own changes in overlay's format. A committed snapshot stands alone: which ones
//! it was made on is forgotten. What is mounted:
//!
//! | snapshot | parents | |
//! |---|---|---|
//! | active | none | nothing: it is its own directory |
//! | active | some | an overlay with `fs` as the upper directory, and `points`, if there are any, below all others |
//! | view | none | an empty directory, read-only |
//! | view | some | an overlay of them and an empty directory: the lowest one may hide what is not there |
//!
//! A long chain is mounted with its lowest layers merged (`squash.rs`).
//!
//! The working directory is of the spot that it is mounted on (`spots.rs`). Whoever mounts what [`Snapshotter::mounts`]
//! lists gets one in the snapshot's own directory.
//!
//! # Locking
//!
//! See `store.rs` for snapshots, `slot.rs` for mounts and `squash.rs` for merged layers. No two of these mutexes are
//! held together, but that of a merged layer within that of the mount that needs it. Lower directories are mounted by
//! short names (`names.rs`).
//!
//! # Crash consistency
//!
//! A snapshot is made whole under a temporary name and appears by a rename; commit and removal are one rename each.
//! Opening unmounts what is mounted below the root and empties `temporary/`. Overlays are mounted as
//! *volatile*: nothing is synced but by [`Snapshotter::sync`], and each mount has a working directory of its own, as the
//! kernel refuses to reuse one after a crash.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rustix::mount::UnmountFlags;

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
use super::mount::MAX_LOWER;
use super::mount::Overlay;
use super::mount::bind_read_only;
use super::names::Names;
use super::points::Points;
use super::removal;
use super::slot::Hold;
use super::slot::Point;
use super::slot::Show;
use super::spots::Spot;
use super::squash::Squashed;
use super::stale;
use super::store::FS;
use super::store::Store;
use super::store::make_tree;
use super::store::make_unless_there;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::task::Tasks;

const WORK: &str = "work";

/// Needs root (or `CAP_SYS_ADMIN`) and a file system that can be an upper directory. Clones are handles of the same
/// one.
#[derive(Clone, Debug)]
pub struct OverlaySnapshotter {
    inner: Arc<Inner>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    squashed: Squashed,
    /// A directory with nothing in it, below all layers of a view.
    nothing: PathBuf,
}

impl OverlaySnapshotter {
    /// Opens the snapshots below `root`, which is made if missing, and cleans what a crash left there. Blocks.
    pub fn open(root: &Path, tasks: Tasks) -> Result<OverlaySnapshotter, SnapshotError> {
        let store = Arc::new(Store::open(root, false)?);
        let squashed = Squashed::open(&store)?;
        let nothing = store.root().join("nothing");
        make_unless_there(&nothing)?;
        Ok(OverlaySnapshotter { inner: Arc::new(Inner { store, squashed, nothing }), tasks })
    }

    /// Whether overlays can be mounted on the file system of `root`, by this process: one is. Blocks.
    pub fn supported(root: &Path) -> Result<(), SnapshotError> {
        fs::create_dir_all(root).map_err(SnapshotError::io("make", root))?;
        let root = fs::canonicalize(root).map_err(SnapshotError::io("find", root))?;
        let dir = root.join("overlay-check");
        // A process may have been killed while it looked.
        stale::unmount_below(&dir)?;
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(SnapshotError::io("remove", &dir))?,
        }
        let check = || {
            let paths = ["lower", "upper", "work", "merged"].map(|name| dir.join(name));
            for path in &paths {
                fs::create_dir_all(path).map_err(SnapshotError::io("make", path))?;
            }
            let [lower, upper, work, merged] = paths;
            let names = Names::new(&dir);
            Overlay { lower: vec![lower], lowest: None, upper: Some((upper, work)) }
                .mount(&names, &merged)?;
            rustix::mount::unmount(&merged, UnmountFlags::DETACH)
                .map_err(SnapshotError::io("unmount", &merged))
        };
        let checked = check();
        let removed = fs::remove_dir_all(&dir).map_err(SnapshotError::io("remove", &dir));
        checked.and(removed)
    }

    /// Mounts a snapshot, or finds it mounted.
    async fn show(
        &self,
        key: &SnapshotKey,
        read_only: bool,
        points: Vec<MountPoint>,
    ) -> Result<Mounted, SnapshotError> {
        let (key, tasks) = (key.clone(), self.tasks.clone());
        self.run("mount snapshot", move |inner| {
            let (info, slot) = inner.store.hold(&key)?;
            // A view is read-only as a whole.
            let read_only = read_only && info.kind == SnapshotKind::Active;
            let showing = Showing { inner, info: &info, points: &points };
            let hold = Hold::new(&inner.store, &key, slot, &tasks, read_only, &showing)?;
            Ok(Mounted::new(hold.path().to_path_buf(), tasks, hold))
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let inner = Arc::clone(&self.inner);
        self.tasks.spawn_blocking(name, move || work(&inner)).await?
    }
}

impl Inner {
    fn make(&self, key: &SnapshotKey, kind: SnapshotKind, parents: &Parents) -> Result<(), SnapshotError> {
        self.store.make(key, kind, parents, |path| {
            if kind == SnapshotKind::View {
                return Ok(());
            }
            let tree = make_tree(path)?;
            self.inherit(&tree, parents)
        })
    }

    /// The top directory is the uppermost parent's, as far as nothing else is said of it.
    fn inherit(&self, tree: &Path, parents: &Parents) -> Result<(), SnapshotError> {
        let Some(parent) = parents.top() else { return Ok(()) };
        let parent = self.store.tree(parent);
        let copy = || {
            let (from, to) = (Root::open(&parent)?, Root::open(tree)?);
            let mut xattrs = from.xattrs("/", Last::Keep)?;
            xattrs.retain(|name, _| !name.as_encoded_bytes().starts_with(b"trusted.overlay."));
            match from.stat("/", Last::Keep)? {
                Some(meta) => to.set_meta("/", &MetaChange::like(&meta, &xattrs), Last::Keep),
                None => Ok(()),
            }
        };
        copy().map_err(SnapshotError::fs(tree))
    }

    /// What to mount for a snapshot with parents, with `work` as the working directory and `points` as a layer of mount
    /// points.
    fn overlay(
        &self,
        info: &SnapshotInfo,
        work: PathBuf,
        points: Option<PathBuf>,
    ) -> Result<Overlay, SnapshotError> {
        let (lowest, upper) = match info.kind {
            // The lowest one shows whatever it has, whiteouts too, unless something is below it.
            SnapshotKind::View => (Some(self.nothing.clone()), None),
            SnapshotKind::Active | SnapshotKind::Committed => {
                (points, Some((self.store.path(info.kind, &info.key).join(FS), work)))
            }
        };
        let limit = MAX_LOWER - usize::from(lowest.is_some());
        let lower = self.squashed.lower(&self.store, &info.parents, limit)?;
        Ok(Overlay { lower, lowest, upper })
    }
}

/// How a snapshot is shown.
struct Showing<'a> {
    inner: &'a Inner,
    info: &'a SnapshotInfo,
    points: &'a [MountPoint],
}

impl Show for Showing<'_> {
    fn show(&self) -> Result<Point, SnapshotError> {
        let (store, info) = (&self.inner.store, self.info);
        if info.parents.is_empty() {
            return match info.kind {
                SnapshotKind::View => self.show_read_only(&self.inner.nothing),
                _ => Ok(Point::Directory(store.path(info.kind, &info.key).join(FS))),
            };
        }
        let mut points = Points::among(self.points);
        loop {
            let spot = store.spots().mount(&points, |spot| {
                let overlay = self.inner.overlay(info, spot.work(), spot.points())?;
                overlay.mount(store.names(), spot.path())
            })?;
            if points.is_empty() {
                return Ok(Point::Mount(spot));
            }
            let mut look = || points.settle(&Root::open(spot.path())?);
            match look().map_err(SnapshotError::fs(spot.path())) {
                Ok(false) => return Ok(Point::Mount(spot)),
                // Most directories are in some layer and no links, so this is rarely mounted twice.
                looked => unmount_at_once(store, spot).and(looked)?,
            };
        }
    }

    fn show_read_only(&self, whole: &Path) -> Result<Point, SnapshotError> {
        let mounted = self.inner.store.spots().mount(&Points::default(), |spot| {
            let path = spot.path();
            bind_read_only(whole, path).map_err(SnapshotError::io("mount read-only on", path))
        });
        mounted.map(Point::Mount)
    }
}

/// Undoes a mount that nobody has seen.
fn unmount_at_once(store: &Store, spot: Spot) -> Result<(), SnapshotError> {
    let path = spot.path();
    rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(SnapshotError::io("unmount", path))?;
    store.spots().give_back(spot);
    Ok(())
}

#[async_trait]
impl Snapshotter for OverlaySnapshotter {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn stacks(&self) -> bool {
        true
    }

    async fn prepare(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError> {
        let (key, parents) = (key.clone(), parents.clone());
        let prepare =
            self.run("prepare snapshot", move |inner| inner.make(&key, SnapshotKind::Active, &parents));
        prepare.await?;
        let inner = Arc::clone(&self.inner);
        drop(self.tasks.spawn_at_leisure("make a blank", move || inner.store.blank().refill()));
        Ok(())
    }

    async fn view(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError> {
        let (key, parents) = (key.clone(), parents.clone());
        self.run("view snapshot", move |inner| inner.make(&key, SnapshotKind::View, &parents)).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>, SnapshotError> {
        let key = key.clone();
        self.run("list mounts", move |inner| {
            let info = inner.store.stat(&key)?;
            let path = inner.store.path(info.kind, &key);
            let mount = match (info.kind, info.parents.is_empty()) {
                (actual @ SnapshotKind::Committed, _) => {
                    return Err(SnapshotError::WrongKind { key, actual, action: "mount: make a view of it" });
                }
                (SnapshotKind::View, true) => Mount::bind(&inner.nothing, true),
                (SnapshotKind::Active, true) => Mount::bind(&path.join(FS), false),
                (SnapshotKind::View, false) => inner.overlay(&info, path.join(WORK), None)?.describe(),
                (SnapshotKind::Active, false) => {
                    let work = path.join(WORK);
                    make_unless_there(&work)?;
                    inner.overlay(&info, work, None)?.describe()
                }
            };
            Ok(vec![mount])
        })
        .await
    }

    async fn mount(&self, key: &SnapshotKey, read_only: bool) -> Result<Mounted, SnapshotError> {
        self.show(key, read_only, Vec::new()).await
    }

    async fn mount_with(&self, key: &SnapshotKey, points: &[MountPoint]) -> Result<Mounted, SnapshotError> {
        self.show(key, false, points.to_vec()).await
    }

    fn upper(&self, key: &SnapshotKey) -> Option<PathBuf> {
        let kind = self.inner.store.kind(key)?;
        (kind != SnapshotKind::View).then(|| self.inner.store.path(kind, key).join(FS))
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey) -> Result<(), SnapshotError> {
        let (made, key) = (name.clone(), key.clone());
        let commit = self.run("commit snapshot", move |inner| {
            // There is one if somebody asked for what to mount.
            inner.store.commit(&made, &key, |path| inner.store.discard(&path.join(WORK)))
        });
        if commit.await? {
            let (inner, name) = (Arc::clone(&self.inner), name.clone());
            let forget = move || inner.store.forget_parents(&name);
            drop(self.tasks.spawn_at_leisure("forget parents", forget));
        }
        Ok(())
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        let key = key.clone();
        self.run("remove snapshot", move |inner| {
            let trash = inner.store.remove(&key, || inner.squashed.forget(&inner.store, &key))?;
            inner.store.discard_all(&trash);
            Ok(())
        })
        .await
    }

    async fn remove_all(
        &self,
        keys: Vec<SnapshotKey>,
    ) -> Result<Vec<(SnapshotKey, SnapshotError)>, SnapshotError> {
        self.run("remove snapshots", move |inner| {
            let before = |key: &SnapshotKey| inner.squashed.forget(&inner.store, key);
            Ok(removal::remove_all(&inner.store, keys, before))
        })
        .await
    }

    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo, SnapshotError> {
        let key = key.clone();
        self.run("look at snapshot", move |inner| inner.store.stat(&key)).await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<SnapshotUsage, SnapshotError> {
        let key = key.clone();
        self.run("count snapshot", move |inner| inner.store.usage(&key)).await
    }

    async fn walk(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        self.run("list snapshots", |inner| inner.store.walk()).await
    }

    async fn sync(&self) -> Result<(), SnapshotError> {
        self.run("sync snapshots", |inner| inner.store.sync()).await
    }
}
