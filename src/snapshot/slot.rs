//! [`Slot`]: the mounts of one snapshot, shared by all who hold it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;

use super::SnapshotError;
use super::SnapshotKey;
use super::spots::Spot;
use super::store::Store;
use crate::task::Tasks;

/// A file system of which an overlay has the upper directory must not be mounted twice, so there is one mount for all
/// holders. Those who may not write hold a read-only clone of it besides.
///
/// The mutex is held while mounting and unmounting, so that a new holder comes either before the last one leaves or
/// after all is undone.
#[derive(Default, Debug)]
pub(super) struct Slot {
    shown: Mutex<Shown>,
}

#[derive(Default, Debug)]
struct Shown {
    whole: Place,
    read_only: Place,
}

/// Where a snapshot can be seen, and how many look.
#[derive(Default, Debug)]
struct Place {
    at: Option<Point>,
    holders: usize,
    /// Ends when the mount that was here last is closed: before, its upper directory is not mounted again.
    closing: Option<Receiver<()>>,
}

/// A directory that shows a snapshot.
#[derive(Debug)]
pub(super) enum Point {
    Mount(Spot),
    /// The snapshot's own directory.
    Directory(PathBuf),
}

impl Point {
    pub(super) fn path(&self) -> &Path {
        match self {
            Point::Mount(spot) => spot.path(),
            Point::Directory(path) => path,
        }
    }
}

/// How to show a snapshot.
pub(super) trait Show {
    /// Writable, if the snapshot is.
    fn show(&self) -> Result<Point, SnapshotError>;

    /// Read-only, given what [`Show::show`] made.
    fn show_read_only(&self, whole: &Path) -> Result<Point, SnapshotError>;
}

/// One holder of a snapshot's mount.
#[derive(Debug)]
pub(super) struct Hold {
    store: Arc<Store>,
    key: SnapshotKey,
    slot: Arc<Slot>,
    tasks: Tasks,
    read_only: bool,
    path: PathBuf,
}

impl Hold {
    /// `key` was counted by [`Store::hold`], which is undone when this is dropped, or fails.
    pub(super) fn new(
        store: &Arc<Store>,
        key: &SnapshotKey,
        slot: Arc<Slot>,
        tasks: &Tasks,
        read_only: bool,
        show: &dyn Show,
    ) -> Result<Hold, SnapshotError> {
        match slot.enter(read_only, show, store, tasks) {
            Ok(path) => {
                let (store, key, tasks) = (Arc::clone(store), key.clone(), tasks.clone());
                Ok(Hold { store, key, slot, tasks, read_only, path })
            }
            Err(error) => {
                store.release(key);
                Err(error)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.slot.leave(self.read_only, &self.store, &self.tasks);
        self.store.release(&self.key);
    }
}

impl Slot {
    fn enter(
        &self,
        read_only: bool,
        show: &dyn Show,
        store: &Arc<Store>,
        tasks: &Tasks,
    ) -> Result<PathBuf, SnapshotError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.whole.at.is_none() {
            // A clone is of the same file system.
            shown.read_only.settle();
        }
        let whole = shown.whole.enter(|| show.show())?;
        if !read_only {
            return Ok(whole);
        }
        let clone = shown.read_only.enter(|| show.show_read_only(&whole));
        if clone.is_err() {
            shown.whole.leave(store, tasks);
        }
        clone
    }

    fn leave(&self, read_only: bool, store: &Arc<Store>, tasks: &Tasks) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if read_only {
            shown.read_only.leave(store, tasks);
        }
        shown.whole.leave(store, tasks);
    }
}

impl Place {
    fn enter(
        &mut self,
        show: impl FnOnce() -> Result<Point, SnapshotError>,
    ) -> Result<PathBuf, SnapshotError> {
        let path = match &self.at {
            Some(point) => point.path().to_path_buf(),
            None => {
                self.settle();
                self.at.insert(show()?).path().to_path_buf()
            }
        };
        self.holders += 1;
        Ok(path)
    }

    /// Waits until what was mounted here last is closed.
    fn settle(&mut self) {
        if let Some(closing) = self.closing.take() {
            // It only ends: nothing is sent.
            let _ = closing.recv();
        }
    }

    fn leave(&mut self, store: &Arc<Store>, tasks: &Tasks) {
        self.holders -= 1;
        if self.holders > 0 {
            return;
        }
        if let Some(Point::Mount(spot)) = self.at.take() {
            let path = spot.path().to_path_buf();
            match unmount(spot, store, tasks) {
                Ok(closing) => self.closing = closing,
                // What can't be unmounted now is at the next start.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a mount was not undone");
                }
            }
        }
    }
}

/// Nobody finds the mount when this returns. The kernel then frees what it kept in memory of the files that were looked
/// at, which takes the longer the more they are: that is done by who closes the file system last, a blocking task if
/// this is called from asynchronous work. What is returned ends after that.
fn unmount(spot: Spot, store: &Arc<Store>, tasks: &Tasks) -> io::Result<Option<Receiver<()>>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let last = rustix::fs::open(spot.path(), flags, Mode::empty())?;
    rustix::mount::unmount(spot.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    let (closed, closing) = mpsc::channel();
    let close = move || {
        drop(last);
        drop::<Sender<()>>(closed);
    };
    if tokio::runtime::Handle::try_current().is_err() {
        close();
        store.spots().give_back(spot);
        return Ok(None);
    }
    let (store, leisure) = (Arc::clone(store), tasks.clone());
    let close = move || {
        close();
        drop(leisure.spawn_at_leisure("give a mount point back", move || store.spots().give_back(spot)));
    };
    drop(tasks.spawn_blocking("close mount", close));
    Ok(Some(closing))
}
