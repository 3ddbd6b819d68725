//! [`GrowingBlob`]: a blob that is being made here, to be read from its start while it is written.
//!
//! Its digest is told with its end, once the blob is in the store. What was read before is the blob's only then: who
//! passes bytes on has to be able to take them back.
//!
//! # Locking
//!
//! One watch per blob, held to look at two numbers. Reading waits for no writer.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::watch;

use crate::oci::Descriptor;
use crate::task::Tasks;

/// A blob that is being made. Clones are the same one.
#[derive(Clone)]
pub struct GrowingBlob {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    number: u64,
    file: OnceLock<Arc<File>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
enum State {
    /// As many bytes are in its file.
    Growing(u64),
    Whole(Box<Descriptor>),
    /// Nothing came of it.
    Failed,
}

/// Nothing came of a blob that was read while it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the blob was not made to its end")]
pub struct NotMade;

/// Reading a blob that is being made failed.
#[derive(Debug, thiserror::Error)]
pub enum GrowingError {
    #[error(transparent)]
    NotMade(#[from] NotMade),
    #[error("can't read a blob that is being made")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Task(#[from] crate::task::TaskFailed),
}

/// The maker's side. Dropped before the end, the blob has failed.
#[derive(Debug)]
pub struct Growth(GrowingBlob);

impl GrowingBlob {
    pub(super) fn new(tasks: Tasks) -> GrowingBlob {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = watch::Sender::new(State::Growing(0));
        GrowingBlob { shared: Arc::new(Shared { number, file: OnceLock::new(), state }), tasks }
    }

    /// Tells it from all others of this process.
    pub fn number(&self) -> u64 {
        self.shared.number
    }

    /// True once more than `size` bytes are there and more are to come; false if it ends before.
    ///
    /// Cancellation safe.
    pub async fn outgrows(&self, size: u64) -> bool {
        let known = self.wait(|state| !matches!(state, State::Growing(now) if *now <= size)).await;
        matches!(known, State::Growing(_))
    }

    /// The bytes from `offset` on: `length` of them, or those up to the end. Waits until they are written.
    ///
    /// Cancellation safe.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, GrowingError> {
        let wanted = offset.saturating_add(length);
        let there = match self.wait(|state| !matches!(state, State::Growing(now) if *now < wanted)).await {
            State::Growing(size) => size,
            State::Whole(descriptor) => descriptor.size,
            State::Failed => return Err(NotMade.into()),
        };
        let Some(file) = self.shared.file.get().cloned() else { return Err(NotMade.into()) };
        let length = usize::try_from(there.min(wanted).saturating_sub(offset)).map_err(io::Error::other)?;
        let read = self.tasks.spawn_blocking("read a growing blob", move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset)?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        });
        Ok(read.await??)
    }

    /// Waits until it is in the store.
    ///
    /// Cancellation safe.
    pub async fn made(&self) -> Result<Descriptor, NotMade> {
        match self.wait(|state| !matches!(state, State::Growing(_))).await {
            State::Whole(descriptor) => Ok(*descriptor),
            State::Growing(_) | State::Failed => Err(NotMade),
        }
    }

    async fn wait(&self, until: impl FnMut(&State) -> bool) -> State {
        let mut state = self.shared.state.subscribe();
        // The sender is in `self`, so there is no other end.
        state.wait_for(until).await.map_or(State::Failed, |state| state.clone())
    }

    /// There is one.
    pub(super) fn growth(&self) -> Growth {
        Growth(self.clone())
    }
}

impl Growth {
    pub(super) fn begin(&self, file: Arc<File>) {
        // One blob has one file.
        let _ = self.0.shared.file.set(file);
    }

    /// `size` bytes are in the file.
    pub(super) fn advance(&self, size: u64) {
        self.0.shared.state.send_replace(State::Growing(size));
    }

    /// It is in the store.
    pub(super) fn end(self, descriptor: Descriptor) {
        self.0.shared.state.send_replace(State::Whole(Box::new(descriptor)));
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.0.shared.state.send_if_modified(|state| {
            let open = matches!(state, State::Growing(_));
            if open {
                *state = State::Failed;
            }
            open
        });
    }
}

impl fmt::Debug for GrowingBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrowingBlob({}, {:?})", self.shared.number, *self.shared.state.borrow())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::oci::Digest;

    fn grown() -> (GrowingBlob, Growth, File) {
        let file = tempfile::tempfile().unwrap();
        let blob = GrowingBlob::new(Tasks::new());
        let growth = blob.growth();
        growth.begin(Arc::new(file.try_clone().unwrap()));
        (blob, growth, file)
    }

    #[tokio::test]
    async fn bytes_are_read_while_more_are_written_and_the_digest_comes_last() {
        let (blob, growth, mut file) = grown();
        file.write_all(b"abcdef").unwrap();
        growth.advance(6);
        assert!(blob.outgrows(5).await);
        assert_eq!(blob.read(0, 4).await.unwrap(), "abcd");
        let mut more = Box::pin(blob.read(4, 4));
        assert!(futures::poll!(&mut more).is_pending(), "two of four bytes are there");
        let mut made = Box::pin(blob.made());
        assert!(futures::poll!(&mut made).is_pending());
        let descriptor = Descriptor::new("text/plain", Digest::sha256(b"abcdef"), 6);
        growth.end(descriptor.clone());
        assert_eq!(more.await.unwrap(), "ef", "the end is where the blob ends");
        assert_eq!(made.await.unwrap(), descriptor);
        assert!(blob.read(6, 4).await.unwrap().is_empty());
        assert!(!blob.outgrows(5).await, "it does not grow any more");
    }

    #[tokio::test]
    async fn a_maker_that_gives_up_ends_every_wait() {
        let (blob, growth, _file) = grown();
        let (waits, read, made) = (blob.outgrows(0), blob.read(0, 1), blob.made());
        drop(growth);
        let (waits, read, made) = tokio::join!(waits, read, made);
        assert!(!waits);
        assert!(matches!(read, Err(GrowingError::NotMade(_))));
        assert_eq!(made, Err(NotMade));
    }
}
