//! Reading on another thread.

use std::fmt;
use std::io;
use std::io::Read;
use std::panic;
use std::sync::mpsc;
use std::thread;

/// Bytes that are read at once.
const BUFFER: usize = 128 << 10;

/// Buffers that are full before their reader comes.
const DEPTH: usize = 4;

/// What [`read_ahead`] gives to read from.
pub struct ReadAhead {
    full: mpsc::Receiver<io::Result<Vec<u8>>>,
    empty: mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

/// Reads `source` on a thread of its own, at most half a megabyte ahead of `work`, and gives the source
/// back as far as it was read: to its end, if `work` has seen that.
///
/// When `work` leaves before, the read that is under way is waited for.
pub fn read_ahead<R, T>(source: R, work: impl FnOnce(ReadAhead) -> T) -> io::Result<(T, R)>
where
    R: Read + Send,
{
    thread::scope(|scope| {
        let (sender, full) = mpsc::sync_channel(DEPTH);
        let (empty, returned) = mpsc::channel();
        let builder = thread::Builder::new().name("read-ahead".to_owned());
        let reader = builder.spawn_scoped(scope, move || pump(source, &sender, &returned))?;
        let done = work(ReadAhead { full, empty, current: Vec::new(), at: 0, ended: false });
        match reader.join() {
            Ok(source) => Ok((done, source)),
            Err(cause) => panic::resume_unwind(cause),
        }
    })
}

/// Fills buffers until the source or its reader ends.
fn pump<R: Read>(
    mut source: R,
    full: &mpsc::SyncSender<io::Result<Vec<u8>>>,
    returned: &mpsc::Receiver<Vec<u8>>,
) -> R {
    loop {
        let mut buffer = returned.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let read = match source.read(&mut buffer) {
            Ok(0) => return source,
            Ok(count) => {
                buffer.truncate(count);
                Ok(buffer)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if full.send(read).is_err() || failed {
            return source;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() && !self.ended {
            let Ok(next) = self.full.recv() else {
                self.ended = true;
                break;
            };
            // After an error nothing more comes.
            let used = std::mem::replace(&mut self.current, next?);
            self.at = 0;
            // The thread may have ended, and needs no buffer then.
            let _ = self.empty.send(used);
        }
        let count = out.len().min(self.current.len() - self.at);
        out[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl fmt::Debug for ReadAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAhead").field("ended", &self.ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_is_what_the_source_gave() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 7) as u8).collect();
        let (read, rest) = read_ahead(bytes.as_slice(), |mut ahead| {
            let mut read = Vec::new();
            ahead.read_to_end(&mut read).map(|_| read)
        })
        .expect("a thread starts");
        assert!(read.expect("it is read") == bytes && rest.is_empty());
    }

    #[test]
    fn who_leaves_early_stops_the_thread() {
        let (first, _) = read_ahead(io::repeat(7), |mut ahead| {
            let mut first = [0; 10];
            ahead.read_exact(&mut first).map(|()| first)
        })
        .expect("a thread starts");
        assert_eq!(first.expect("it is read"), [7; 10]);
    }

    #[test]
    fn an_error_comes_after_the_bytes_before_it() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let (read, _) = read_ahead((&b"bytes"[..]).chain(Fails), |mut ahead| {
            let mut read = Vec::new();
            let error = ahead.read_to_end(&mut read).expect_err("it fails");
            (read, error.kind(), ahead.read(&mut [0; 1]).expect("nothing more comes"))
        })
        .expect("a thread starts");
        assert_eq!(read, (b"bytes".to_vec(), io::ErrorKind::ConnectionReset, 0));
    }
}
