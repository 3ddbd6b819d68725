//! The file under redb: counts what is written, and can be fenced off.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use redb::BackendError;
use redb::StorageBackend;

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
        Backend { file, counters, fence }
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

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fence.check_write()?;
        self.file.set_len(len)
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
