//! The file under redb: counts what is written, keeps its room on the disk, and can be fenced off.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use redb::BackendError;
use redb::StorageBackend;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Counters;

/// Keeps a handle that was given up from touching the file.
#[derive(Debug, Default)]
pub(super) struct Fence {
    closed: AtomicBool,
    /// Makes the next writes fail as a full disk does.
    #[cfg(test)]
    pub(super) full: AtomicBool,
}

impl Fence {
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> io::Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(io::Error::other("this handle of the metadata store was given up"));
        }
        Ok(())
    }

    fn check_write(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.check()
    }
}

pub(super) struct Backend {
    file: Arc<File>,
    counters: Arc<Counters>,
    fence: Arc<Fence>,
}

impl Backend {
    pub(super) fn new(file: Arc<File>, counters: Arc<Counters>, fence: Arc<Fence>) -> Backend {
        let backend = Backend { file, counters, fence };
        backend.fill_holes();
        backend
    }

    /// Has the disk keep room for all of the file, if it has some: see [`Backend::set_len`].
    fn fill_holes(&self) {
        let Ok(metadata) = self.file.metadata() else { return };
        if metadata.blocks().saturating_mul(512) < metadata.len()
            && let Err(error) = self.allocate(0, metadata.len())
        {
            tracing::warn!(%error, "the metadata store may lack space to remove what takes it");
        }
    }

    fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&*self.file, FallocateFlags::empty(), from, to - from) {
            // The file system can't say now what there will be then.
            Err(Errno::OPNOTSUPP) => self.file.set_len(to),
            allocated => Ok(allocated?),
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").finish_non_exhaustive()
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.fence.check()?;
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.fence.check()?;
        self.file.read_exact_at(out, offset)
    }

    /// Without holes: what is written to the file later needs no space. So a store that has grown once can remove rows
    /// on a disk without a free byte, which is how there comes to be one.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fence.check_write()?;
        let before = self.file.metadata()?.len();
        if len > before { self.allocate(before, len) } else { self.file.set_len(len) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fence.check_write()?;
        self.counters.fsyncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fence.check_write()?;
        self.counters.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(data, offset)
    }

    // The whole file is locked by its owner for longer than any backend lives.

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}
