//! Streams that say what passed through them.

use std::fmt;
use std::io;
use std::io::Read;
use std::io::Write;

use sha2::Digest as _;
use sha2::Sha256;

use super::checks::Checks;
use super::checks::Noted;

/// What passed: its SHA-256 and its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hashed {
    pub sha256: [u8; 32],
    pub size: u64,
}

/// Passes writes on, and hashes what was taken.
pub struct HashingWriter<W> {
    inner: W,
    state: State,
}

/// Passes reads on, hashes what was given, and notes what verifies parts of it.
pub struct HashingReader<R> {
    inner: R,
    state: State,
    noted: Noted,
}

#[derive(Default)]
struct State {
    hasher: Sha256,
    size: u64,
}

impl State {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    fn finish(self) -> Hashed {
        Hashed { sha256: self.hasher.finalize().into(), size: self.size }
    }
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, state: State::default() }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.state.size
    }

    pub fn finish(self) -> (W, Hashed) {
        (self.inner, self.state.finish())
    }
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, state: State::default(), noted: Noted::default() }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.state.size
    }

    pub fn finish(self) -> (R, Hashed, Checks) {
        let checks = self.noted.finish(&self.state.hasher, self.state.size);
        (self.inner, self.state.finish(), checks)
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.noted.next() - self.state.size).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.state.update(now);
            if self.state.size == self.noted.next() {
                self.noted.note(&self.state.hasher);
            }
            bytes = rest;
        }
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.state.update(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let given = self.inner.read(buffer)?;
        self.update(&buffer[..given]);
        Ok(given)
    }
}

impl<W> fmt::Debug for HashingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashingWriter").field("size", &self.state.size).finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for HashingReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashingReader").field("size", &self.state.size).finish_non_exhaustive()
    }
}
