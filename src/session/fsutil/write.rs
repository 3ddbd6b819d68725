//! Writes the bytes of files as they come, on a few threads.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::XattrFlags;
use tokio::sync::mpsc;

use super::FileStat;
use super::TransferError;
use crate::fs::Root;
use crate::fs::same_bytes;

/// Files at most that one thread has open. Senders send a few at the same time.
const MAX_OPEN: usize = 256;

/// Files whose bytes were asked for and have not begun to come, by number.
#[derive(Default)]
pub(super) struct Wants(Mutex<HashMap<u32, Wanted>>);

pub(super) struct Wanted {
    pub(super) stat: FileStat,
    /// Something may stand under its name until it is whole.
    pub(super) replaces: bool,
    /// What stands there has its size and attributes, so that it may be the same.
    pub(super) alike: bool,
}

impl Wants {
    pub(super) fn insert(&self, id: u32, wanted: Wanted) {
        self.lock().insert(id, wanted);
    }

    fn take(&self, id: u32) -> Option<Wanted> {
        self.lock().remove(&id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Wanted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name beside `path` that nobody else uses.
pub(super) fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:016x}.partial", rand::random::<u64>()))
}

/// What became of a file whose bytes came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    /// It was there with these bytes, and stays.
    Same,
    New,
}

/// Writes what comes until there is no more. Files that are not whole then are removed.
pub(super) fn write_files(
    root: &Root,
    sets_owner: bool,
    wants: &Wants,
    mut pieces: mpsc::Receiver<(u32, Bytes)>,
    mut written: impl FnMut(Written),
) -> Result<(), TransferError> {
    let mut open: HashMap<u32, Writing<'_>> = HashMap::new();
    while let Some((id, bytes)) = pieces.blocking_recv() {
        if !open.contains_key(&id) {
            let wanted = wants.take(id).ok_or(TransferError::NotAsked { id })?;
            if open.len() >= MAX_OPEN {
                return Err(TransferError::TooMany {
                    what: "files at the same time",
                    limit: MAX_OPEN as u64,
                });
            }
            open.insert(id, Writing::begin(root, wanted)?);
        }
        if bytes.is_empty() {
            if let Some(whole) = open.remove(&id) {
                written(whole.finish(sets_owner)?);
            }
        } else if let Some(writing) = open.get_mut(&id) {
            writing.file.write_all(&bytes).map_err(TransferError::file("write", writing.stat.as_path()))?;
        }
    }
    Ok(())
}

struct Writing<'r> {
    root: &'r Root,
    stat: FileStat,
    file: File,
    /// Where it is until it is whole; its own name if nothing stands there.
    name: PathBuf,
    alike: bool,
    whole: bool,
}

impl<'r> Writing<'r> {
    fn begin(root: &'r Root, wanted: Wanted) -> Result<Writing<'r>, TransferError> {
        let Wanted { stat, replaces, alike } = wanted;
        let name = if replaces { temporary(stat.as_path()) } else { stat.as_path().to_path_buf() };
        let file = root.create_file(&name, stat.mode & 0o777)?;
        Ok(Writing { root, stat, file, name, alike, whole: false })
    }

    fn finish(mut self, sets_owner: bool) -> Result<Written, TransferError> {
        if self.alike && self.is_there()? {
            return Ok(Written::Same);
        }
        self.set_attributes(sets_owner).map_err(|errno| {
            TransferError::file("set the attributes of", self.stat.as_path())(errno.into())
        })?;
        if self.name != self.stat.as_path() {
            self.root.rename(&self.name, self.stat.as_path())?;
        }
        self.whole = true;
        Ok(Written::New)
    }

    /// Whether what stands under its name has its bytes.
    fn is_there(&self) -> Result<bool, TransferError> {
        let path = self.stat.as_path();
        let (new, there) = (self.root.open_file(&self.name)?, self.root.open_file(path)?);
        same_bytes(new, there).map_err(TransferError::file("compare", path))
    }

    fn set_attributes(&self, sets_owner: bool) -> rustix::io::Result<()> {
        let (file, stat) = (&self.file, &self.stat);
        if sets_owner {
            let uid = rustix::fs::Uid::from_raw(stat.owner.uid);
            let gid = rustix::fs::Gid::from_raw(stat.owner.gid);
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        // After the owner: a change of owner takes set-user-ID away, and capabilities.
        if stat.mode & 0o7000 != 0 {
            rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(stat.mode))?;
        }
        for (name, value) in &stat.xattrs {
            match rustix::fs::fsetxattr(file, name.as_os_str(), value, XattrFlags::empty()) {
                // The file system has none, or this one is not ours to set.
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(rustix::io::Errno::PERM) if !sets_owner => {}
                Err(error) => return Err(error),
            }
        }
        let time = Timespec { tv_sec: stat.mtime.seconds, tv_nsec: stat.mtime.nanos.into() };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.whole {
            let _ = self.root.remove(&self.name);
        }
    }
}
