//! The embedded metadata store: one redb file, many readers, one owned writer thread.
//!
//! Every durable fact of the daemon that isn't the bytes of a blob is a row here. A module defines
//! its own tables and hands closures to [`Db::read`] and [`Db::write`]; a lower row's rows are
//! written by calling its functions with the same [`WriteTx`], so that facts which belong together
//! become durable together.
//!
//! # Group commit
//!
//! All writes go through one thread. It takes every closure that is waiting, runs them in order in
//! one transaction, and commits once: as many callers as wait share one fsync. A closure that fails
//! is taken out and the others run again in a fresh transaction, therefore a closure must have no
//! effect but the one on its transaction.
//!
//! # Invariants
//!
//! - A write that was answered with `Ok` is durable. One that was answered with a storage error may
//!   be either; it is whole or absent.
//! - Writes take effect in the order of the calls.
//! - A [`Db::write_behind`] is visible to readers soon and durable with the next durable commit, at
//!   the latest [`BEHIND`] later. What must not be lost doesn't go there.
//!
//! # Cancellation
//!
//! A write is queued by the call itself. Dropping the future that it returns forgets the answer and
//! cancels nothing.
//!
//! # Crash consistency
//!
//! A new store gets its name when it is whole: what a crash or a full disk leaves of one is begun anew.
//! redb commits by checksummed copy-on-write with one fsync, and repairs itself at the next open.
//! When the file fails in mid-write (a full disk, an I/O error), the writer fences the old handle off,
//! opens the file again at its last durable commit and goes on: space that was freed heals the store
//! without a restart. [`Db::failures`] tells of it.

mod backend;
mod error;
mod tx;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::future::Future;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use redb::Database;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use error::DbError;
pub use tx::ReadTx;
pub use tx::WriteTx;

use backend::Backend;
use backend::Fence;
use writer::Job;

/// A write behind is durable after this time at the latest.
pub const BEHIND: Duration = Duration::from_secs(1);

/// Pages that redb may keep in memory. They are few: rows are small and hot ones are cached above.
const CACHE_BYTES: usize = 16 << 20;

/// The metadata store. Clones are handles of the same store; the file is closed by the last one.
#[derive(Clone, Debug)]
pub struct Db {
    owner: Arc<Owner>,
}

/// Ends the writer when the last handle goes.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    /// `None` once closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Times that the file failed; see [`Db::failures`].
    failures: watch::Sender<u64>,
    /// Locked for the life of the store, so that two processes never share one.
    file: Arc<File>,
    /// The file is new and its directory not synced yet, which the first durable commit does: a start
    /// is not to wait for it.
    created: AtomicBool,
    /// Replaced by the writer alone, after the file had failed; `None` once closed.
    handle: RwLock<Option<Arc<Handle>>>,
    counters: Arc<Counters>,
}

/// One opening of the file.
#[derive(Debug)]
struct Handle {
    database: Database,
    fence: Arc<Fence>,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    commits: AtomicU64,
    fsyncs: AtomicU64,
    bytes: AtomicU64,
}

impl Db {
    /// Opens the store at `path`, made if it doesn't exist. Repairs it after a crash.
    pub fn open(path: impl AsRef<Path>) -> Result<Db, DbError> {
        let path = path.as_ref().to_path_buf();
        let counters = Arc::new(Counters::default());
        let created = !path.exists();
        let opened = if created { create(&path, &counters) } else { open_existing(&path, &counters) };
        let (file, handle) = opened?;
        let (created, handle) = (AtomicBool::new(created), RwLock::new(Some(Arc::new(handle))));
        let failures = watch::Sender::new(0);
        let shared = Arc::new(Shared { path, failures, file, created, handle, counters });
        let (sender, jobs) = mpsc::channel();
        let writer = std::thread::Builder::new().name("db-writer".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || writer::run(&shared, &jobs)
        });
        let writer = writer.map_err(|e| DbError::open(&shared.path, redb::Error::Io(e)))?;
        let owner = Owner { shared, jobs: Mutex::new(Some(sender)), writer: Mutex::new(Some(writer)) };
        Ok(Db { owner: Arc::new(owner) })
    }

    /// Runs `read` on a snapshot. Blocks for disk reads of pages that aren't cached, so it is for a few
    /// rows at a time; a long scan belongs on a blocking thread, since a snapshot pins its pages.
    pub fn read<T>(&self, read: impl FnOnce(&ReadTx) -> Result<T, DbError>) -> Result<T, DbError> {
        let handle = self.owner.shared.handle()?;
        self.owner.shared.counters.reads.fetch_add(1, Ordering::Relaxed);
        read(&ReadTx::begin(&handle.database)?)
    }

    /// Runs `write` in the next commit and answers once that is durable.
    ///
    /// `write` may run more than once (see the module). An `Err` leaves nothing of it behind.
    pub fn write<T: Send + 'static>(
        &self,
        write: impl Fn(&WriteTx) -> Result<T, DbError> + Send + 'static,
    ) -> impl Future<Output = Result<T, DbError>> + Send + 'static {
        self.try_write(write)
    }

    /// As [`Db::write`], for closures which can refuse with an error of their own.
    pub fn try_write<T, E>(
        &self,
        write: impl Fn(&WriteTx) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>> + Send + 'static
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = Job::waited(true, write);
        self.owner.queue(job);
        async move { answer.await.unwrap_or_else(|_| Err(DbError::Closed.into())) }
    }

    /// Runs `write` soon and lets it become durable with the next durable commit (see [`BEHIND`]). Its
    /// failure is logged.
    pub fn write_behind(&self, write: impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static) {
        self.owner.queue(Job::behind(write));
    }

    /// As [`Db::write_behind`], answering once readers see it.
    pub fn write_visible<T: Send + 'static>(
        &self,
        write: impl Fn(&WriteTx) -> Result<T, DbError> + Send + 'static,
    ) -> impl Future<Output = Result<T, DbError>> + Send + 'static {
        let (job, answer) = Job::waited(false, write);
        self.owner.queue(job);
        async move { answer.await.unwrap_or(Err(DbError::Closed)) }
    }

    /// Changes after the file has failed (a full disk, an I/O error) and was opened again, or could not be. What was
    /// visible and not yet durable is gone then, and a write that was answered with an error may be there: whoever
    /// has something outside of the store beside its rows looks again.
    pub fn failures(&self) -> watch::Receiver<u64> {
        self.owner.shared.failures.subscribe()
    }

    /// Makes the file fail as on a full disk, until it is opened again.
    #[cfg(test)]
    pub(crate) fn fill_the_disk(&self) -> Result<(), DbError> {
        self.owner.shared.handle()?.fence.full.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Snapshots that were read since the store was opened.
    pub fn reads(&self) -> u64 {
        self.owner.shared.counters.reads.load(Ordering::Relaxed)
    }

    /// Commits since the store was opened, those that write behind included.
    pub fn commits(&self) -> u64 {
        self.owner.shared.counters.commits.load(Ordering::Relaxed)
    }

    /// Fsyncs since the store was opened.
    pub fn fsyncs(&self) -> u64 {
        self.owner.shared.counters.fsyncs.load(Ordering::Relaxed)
    }

    /// Bytes written since the store was opened.
    pub fn written_bytes(&self) -> u64 {
        self.owner.shared.counters.bytes.load(Ordering::Relaxed)
    }

    /// Makes everything durable that was queued, and closes the store: later writes fail with
    /// [`DbError::Closed`]. Blocks for the last commit.
    pub fn close(&self) {
        self.owner.close();
    }
}

impl Owner {
    fn queue(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = &*jobs {
            // Fails only if the writer is gone; the job's answer is then dropped, which says so.
            let _ = jobs.send(job);
        }
    }

    fn close(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may have been owned by a closure, and then this is the writer itself.
        if let Some(writer) = writer
            && writer.thread().id() != std::thread::current().id()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "the writer of the metadata store panicked");
        }
        self.shared.close();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn handle(&self) -> Result<Arc<Handle>, DbError> {
        self.handle.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(DbError::Closed)
    }

    /// Closes the file and lets go of its lock: explicitly, since a process that was forked at this
    /// moment shares the lock until it executes something.
    fn close(&self) {
        let handle = self.handle.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handle) = handle else { return };
        let fence = Arc::clone(&handle.fence);
        // The last one writes that the store was closed well; a reader that is left must not do so later.
        drop(Arc::into_inner(handle));
        fence.close();
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, path = %self.path.display(), "the metadata store was not unlocked");
        }
    }

    /// Makes a new file findable after a crash.
    fn sync_directory(&self) -> Result<(), DbError> {
        if self.created.load(Ordering::Relaxed) {
            let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            self.counters.fsyncs.fetch_add(1, Ordering::Relaxed);
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(redb::Error::Io)?;
            self.created.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Opens the file anew at its last durable commit. The old handle's readers keep the pages that they
    /// have cached, and fail on others.
    fn reopen(&self) -> Result<(), DbError> {
        let mut handle = self.handle.write().unwrap_or_else(PoisonError::into_inner);
        let Some(failed) = handle.as_mut() else { return Err(DbError::Closed) };
        failed.fence.close();
        let reopened = Handle::open(&self.file, &self.counters).map(|opened| *failed = Arc::new(opened));
        drop(handle);
        self.failures.send_modify(|failures| *failures += 1);
        Ok(reopened?)
    }
}

impl Handle {
    fn open(file: &Arc<File>, counters: &Arc<Counters>) -> Result<Handle, redb::DatabaseError> {
        let fence = Arc::new(Fence::default());
        let backend = Backend::new(Arc::clone(file), Arc::clone(counters), Arc::clone(&fence));
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        Ok(Handle { database, fence })
    }
}

/// Makes a store. It has its name once it is whole.
fn create(path: &Path, counters: &Arc<Counters>) -> Result<(Arc<File>, Handle), DbError> {
    let new = path.with_extension("new");
    let file = lock(&new, path)?;
    let make = || -> Result<Handle, redb::Error> {
        // What was begun earlier is no store.
        file.set_len(0)?;
        let handle = Handle::open(&file, counters)?;
        std::fs::rename(&new, path)?;
        Ok(handle)
    };
    let made = make().map_err(|source| DbError::open(path, source));
    if made.is_err() {
        // It takes space of which there may be none; the next start begins anew in any case.
        let _ = std::fs::remove_file(&new);
    }
    made.map(|handle| (file, handle))
}

fn open_existing(path: &Path, counters: &Arc<Counters>) -> Result<(Arc<File>, Handle), DbError> {
    let file = lock(path, path)?;
    let handle = Handle::open(&file, counters).map_err(|source| DbError::open(path, source.into()))?;
    Ok((file, handle))
}

/// Opens the file at `at`, which is to be the store `path`, for this process alone.
fn lock(at: &Path, path: &Path) -> Result<Arc<File>, DbError> {
    let opening = |source| DbError::open(path, redb::Error::Io(source));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(at);
    let file = file.map_err(opening)?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => Err(DbError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(opening(source)),
    }
}

/// A row's value as bytes. JSON, so that fields can be added and a row can be read by eye.
pub fn encode<T: Serialize>(row: &T) -> Result<Vec<u8>, DbError> {
    serde_json::to_vec(row).map_err(|e| DbError::Row { key: String::new(), reason: e.to_string() })
}

/// What [`encode`] wrote. `key` names the row in the error.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, DbError> {
    serde_json::from_slice(value).map_err(|e| DbError::Row { key: key.to_owned(), reason: e.to_string() })
}
