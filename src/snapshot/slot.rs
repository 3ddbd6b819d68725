//! [`Slot`]: the mounts of one snapshot, shared by all who hold it.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::mount::UnmountFlags;

use super::SnapshotError;
use super::SnapshotKey;
use super::store::Store;

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
}

/// A directory that shows a snapshot.
#[derive(Debug)]
pub(super) enum Point {
    /// Mounted there, on a directory that goes with it.
    Mount(PathBuf),
    /// The snapshot's own directory.
    Directory(PathBuf),
}

impl Point {
    pub(super) fn path(&self) -> &Path {
        let (Point::Mount(path) | Point::Directory(path)) = self;
        path
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
    read_only: bool,
    path: PathBuf,
}

impl Hold {
    /// `key` was counted by [`Store::hold`], which is undone when this is dropped, or fails.
    pub(super) fn new(
        store: &Arc<Store>,
        key: &SnapshotKey,
        slot: Arc<Slot>,
        read_only: bool,
        show: &dyn Show,
    ) -> Result<Hold, SnapshotError> {
        let shown = slot.enter(read_only, show);
        match shown {
            Ok(path) => Ok(Hold { store: Arc::clone(store), key: key.clone(), slot, read_only, path }),
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
        self.slot.leave(self.read_only);
        self.store.release(&self.key);
    }
}

impl Slot {
    fn enter(&self, read_only: bool, show: &dyn Show) -> Result<PathBuf, SnapshotError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = shown.whole.enter(|| show.show())?;
        if !read_only {
            return Ok(whole);
        }
        let clone = shown.read_only.enter(|| show.show_read_only(&whole));
        if clone.is_err() {
            shown.whole.leave();
        }
        clone
    }

    fn leave(&self, read_only: bool) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if read_only {
            shown.read_only.leave();
        }
        shown.whole.leave();
    }
}

impl Place {
    fn enter(
        &mut self,
        show: impl FnOnce() -> Result<Point, SnapshotError>,
    ) -> Result<PathBuf, SnapshotError> {
        let path = match &self.at {
            Some(point) => point.path().to_path_buf(),
            None => self.at.insert(show()?).path().to_path_buf(),
        };
        self.holders += 1;
        Ok(path)
    }

    fn leave(&mut self) {
        self.holders -= 1;
        if self.holders == 0
            && let Some(Point::Mount(path)) = self.at.take()
        {
            unmount(&path);
        }
    }
}

/// What can't be unmounted now is at the next start.
fn unmount(path: &Path) {
    let unmounted = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(std::io::Error::from)
        .and_then(|()| std::fs::remove_dir(path));
    if let Err(error) = unmounted {
        tracing::warn!(path = %path.display(), %error, "a mount was not undone");
    }
}
