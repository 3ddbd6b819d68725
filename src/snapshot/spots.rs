//! [`Spot`]: a directory that something is mounted on.
//!
//! ```text
//! <root>/mounts/<n>/
//!   work/       the working directory of an overlay
//!   points/     a layer of mount points, if there are any (`points.rs`)
//! ```
//!
//! What a mount needs for itself is in the directory that it hides, where nobody gets at it. All of it takes long to make
//! and longer to remove, where the kernel tells the disk of each block that gets free: some spots are kept for later in
//! `spare/`, and get a new name when they are needed, so that who had a path never finds another mount there.
//!
//! # Locking
//!
//! One mutex over the list of those that are kept, never held over I/O.
//!
//! # Crash consistency
//!
//! None outlasts the process: both directories are emptied at the start, when all is unmounted.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::SnapshotError;
use super::points::Points;
use super::store::rename;
use crate::fs::Root;

const MOUNTS: &str = "mounts";
pub(super) const SPARE: &str = "spare";
/// Below the root of a store.
pub(super) const DIRECTORIES: [&str; 2] = [MOUNTS, SPARE];
/// Those that are kept, and a few more if several are given back at once.
const KEPT: usize = 16;

#[derive(Debug)]
pub(super) struct Spots {
    root: PathBuf,
    next: AtomicU64,
    /// Given back longest ago first.
    spare: Mutex<VecDeque<Spot>>,
}

#[derive(Debug)]
pub(super) struct Spot {
    path: PathBuf,
    points: Points,
}

impl Spot {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// A directory with the mount points that the spot has.
    pub(super) fn points(&self) -> Option<PathBuf> {
        (!self.points.is_empty()).then(|| self.path.join("points"))
    }
}

impl Spots {
    /// `root` has the [`DIRECTORIES`], which are empty.
    pub(super) fn new(root: &Path) -> Spots {
        Spots { root: root.to_path_buf(), next: AtomicU64::new(0), spare: Mutex::default() }
    }

    /// Mounts on one that nobody else has, which is given back if `mount` fails.
    pub(super) fn mount(
        &self,
        points: &Points,
        mount: impl FnOnce(&Spot) -> Result<(), SnapshotError>,
    ) -> Result<Spot, SnapshotError> {
        let spot = self.take(points)?;
        match mount(&spot) {
            Ok(()) => Ok(spot),
            Err(error) => {
                self.give_back(spot);
                Err(error)
            }
        }
    }

    fn take(&self, points: &Points) -> Result<Spot, SnapshotError> {
        let path = self.name(MOUNTS);
        let spare = {
            let mut spare = self.spare();
            let last = spare.iter().rposition(|spot| spot.points == *points);
            last.and_then(|n| spare.remove(n))
        };
        if let Some(spare) = spare {
            match rename(&spare.path, &path) {
                Ok(()) => return Ok(Spot { path, points: spare.points }),
                Err(error) => {
                    tracing::debug!(spot = %spare.path.display(), %error, "a mount point is not used again");
                    self.discard(&spare.path);
                }
            }
        }
        let spot = Spot { path, points: points.clone() };
        self.make(&spot).inspect_err(|_| self.discard(&spot.path))?;
        Ok(spot)
    }

    fn make(&self, spot: &Spot) -> Result<(), SnapshotError> {
        let make = |path: &Path| fs::create_dir(path).map_err(SnapshotError::io("make", path));
        make(&spot.path)?;
        make(&spot.work())?;
        let Some(layer) = spot.points() else { return Ok(()) };
        make(&layer)?;
        let points = || spot.points.make(&Root::open(&layer)?);
        points().map_err(SnapshotError::fs(&layer))
    }

    /// To be called when nothing is mounted there any more. Takes its time.
    pub(super) fn give_back(&self, spot: Spot) {
        let oldest = {
            let mut spare = self.spare();
            if spare.len() >= KEPT { spare.pop_front() } else { None }
        };
        if let Some(spot) = oldest {
            self.discard(&spot.path);
        }
        // The kernel takes no working directory that a mount has left, or that one may still use.
        let path = self.name(SPARE);
        let renewed = self.remove(&spot.work()).and_then(|()| {
            fs::create_dir(spot.work()).map_err(SnapshotError::io("make", &spot.path))?;
            rename(&spot.path, &path)
        });
        match renewed {
            Ok(()) => self.spare().push_back(Spot { path, points: spot.points }),
            Err(error) => {
                tracing::debug!(spot = %spot.path.display(), %error, "a mount point is not used again");
                self.discard(&spot.path);
            }
        }
    }

    fn remove(&self, path: &Path) -> Result<(), SnapshotError> {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let remove = || Root::open(&self.root)?.remove_all(below);
        remove().map_err(SnapshotError::fs(&self.root))
    }

    fn discard(&self, path: &Path) {
        if let Err(error) = self.remove(path) {
            tracing::warn!(%error, path = %path.display(), "a mount point stays until the next start");
        }
    }

    fn spare(&self) -> MutexGuard<'_, VecDeque<Spot>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, directory: &str) -> PathBuf {
        self.root.join(directory).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MountPoint;
    use super::super::PointKind;
    use super::*;

    #[test]
    fn a_spot_is_used_again_under_another_name_with_nothing_in_its_working_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in DIRECTORIES {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        let spots = Spots::new(dir.path());
        let hosts = MountPoint { path: "/etc/hosts".into(), kind: PointKind::File };
        let (none, some) = (Points::among(&[]), Points::among(&[hosts]));
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("there"));

        let first = spots.take(&some).expect("a spot");
        assert!(first.points().expect("it has points").join("etc/hosts").is_file());
        let (path, number) = (first.path().to_path_buf(), inode(first.path()));
        fs::create_dir_all(first.work().join("work/incompat/volatile")).expect("made");
        spots.give_back(first);
        assert!(!path.exists());

        let other = spots.take(&none).expect("a spot");
        assert!(other.points().is_none());
        assert_ne!(inode(other.path()), number, "it has other points");
        let again = spots.take(&some).expect("a spot");
        assert_eq!(inode(again.path()), number);
        assert_ne!(again.path(), path);
        assert_eq!(fs::read_dir(again.work()).expect("listed").count(), 0);
        assert!(again.points().expect("it has points").join("etc/hosts").is_file());

        let many: Vec<_> = (0..KEPT).map(|_| spots.take(&none).expect("a spot")).collect();
        many.into_iter().chain([other, again]).for_each(|spot| spots.give_back(spot));
        let count = |name| fs::read_dir(dir.path().join(name)).expect("listed").count();
        assert_eq!(DIRECTORIES.map(count), [0, KEPT]);
    }
}
