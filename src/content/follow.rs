//! [`Follower`]: reads a blob while it is fetched.
//!
//! The bytes are unverified until the end of the stream is reached: that is told only once the digest held.
//! So who unpacks while it downloads has nothing whole before the blob is.
//!
//! # Invariants
//!
//! A follower's bytes are those of one round of the fetch. When a round turns out to be of wrong bytes and
//! another one starts from nothing, its followers fail and have to read the file when it is there.
//!
//! # Locking
//!
//! One mutex per fetch, held to look at three numbers.

use std::fmt;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A wait looks this often whether its reader has been given up.
const LOOK: Duration = Duration::from_millis(100);

/// How far a fetch has come, for its followers.
#[derive(Debug, Default)]
pub(super) struct Written {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody gives the bytes.
    begun: CancellationToken,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Bytes in the file.
    size: u64,
    /// Goes up when the file starts from nothing.
    round: u64,
    /// How the fetch ended: true once the digest held, whatever becomes of the file.
    arrived: Option<bool>,
}

impl Written {
    /// A place that has the blob has begun to give it.
    pub(super) fn begin(&self) {
        self.begun.cancel();
    }

    /// `size` bytes of the blob are in its file.
    pub(super) fn advance(&self, size: u64) {
        self.state().size = size;
        self.changed.notify_all();
    }

    /// The file is gone.
    pub(super) fn restart(&self) {
        let mut state = self.state();
        (state.size, state.round) = (0, state.round + 1);
        drop(state);
        self.changed.notify_all();
    }

    /// Only the first end counts: who has verified bytes keeps them, even if the file can't be made.
    pub(super) fn end(&self, arrived: bool) {
        self.state().arrived.get_or_insert(arrived);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob as it arrives, to be read on a thread that may block.
pub struct Follower {
    written: Arc<Written>,
    partial: PathBuf,
    whole: PathBuf,
    file: Option<File>,
    round: u64,
    at: u64,
    size: u64,
    token: CancellationToken,
}

impl Follower {
    pub(super) fn new(written: Arc<Written>, partial: PathBuf, whole: PathBuf, size: u64) -> Follower {
        let round = written.state().round;
        Follower { written, partial, whole, file: None, round, at: 0, size, token: CancellationToken::new() }
    }

    /// Makes reading fail once `token` is cancelled.
    pub fn until(self, token: CancellationToken) -> Follower {
        Follower { token, ..self }
    }

    /// Ends once a place has begun to give the blob; never if none does.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.written.begun.clone().cancelled_owned()
    }

    /// Waits for bytes behind those that were read, or for the end. Returns how many there are.
    fn wait(&self) -> io::Result<u64> {
        let mut state = self.written.state();
        loop {
            if self.token.is_cancelled() {
                return Err(io::Error::other("nobody wants it any more"));
            }
            if state.arrived == Some(false) || state.round != self.round {
                return Err(io::Error::other("the fetch that was followed came to nothing"));
            }
            let whole = state.arrived == Some(true);
            if whole || (state.size > self.at && self.at < self.size) {
                return Ok(if whole { self.size } else { state.size });
            }
            let waited = self.written.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn file(&mut self) -> io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            // It may be renamed at any moment.
            None => File::open(&self.partial).or_else(|_| File::open(&self.whole))?,
        };
        Ok(self.file.insert(file))
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.wait()?.min(self.size);
        let wanted = buffer.len().min(usize::try_from(there - self.at).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let at = self.at;
        let read = self.file()?.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a blob's file is shorter than was written",
            ));
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Follower({} of {} bytes)", self.at, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(directory: &tempfile::TempDir, written: &Arc<Written>) -> Follower {
        let (partial, whole) = (directory.path().join("partial"), directory.path().join("whole"));
        Follower::new(Arc::clone(written), partial, whole, 6)
    }

    #[test]
    fn bytes_come_as_they_are_written_and_the_end_when_they_are_verified() {
        let (directory, written) = (tempfile::tempdir().unwrap(), Arc::new(Written::default()));
        let mut follower = follower(&directory, &written);
        std::fs::write(directory.path().join("partial"), "abcdef").unwrap();
        written.advance(3);
        let mut buffer = [0; 16];
        assert_eq!(follower.read(&mut buffer).unwrap(), 3);
        written.advance(6);
        assert_eq!(follower.read(&mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"def");
        // All bytes were read, and the end is not told before the digest held.
        let reader = std::thread::spawn(move || follower.read(&mut [0; 16]).unwrap());
        assert!(!reader.is_finished());
        written.end(true);
        assert_eq!(reader.join().unwrap(), 0);
    }

    #[test]
    fn wrong_bytes_a_failed_fetch_and_a_reader_that_left_end_it() {
        let (directory, written) = (tempfile::tempdir().unwrap(), Arc::new(Written::default()));
        let mut first = follower(&directory, &written);
        written.restart();
        assert!(first.read(&mut [0; 16]).is_err());
        let token = CancellationToken::new();
        let mut left = follower(&directory, &written).until(token.clone());
        token.cancel();
        assert!(left.read(&mut [0; 16]).is_err());
        let mut last = follower(&directory, &written);
        written.end(false);
        assert!(last.read(&mut [0; 16]).is_err());
    }
}
