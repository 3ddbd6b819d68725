//! Plain bytes out of a compressed stream.

use std::io;
use std::io::Read;

use super::ArchiveError;
use super::Compression;

/// Decompresses what it reads, found out by its magic number.
#[derive(Debug)]
pub struct Decoder<R> {
    _inner: R,
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<R: Read> Decoder<R> {
    pub fn new(_inner: R) -> Decoder<R> {
        todo!()
    }

    /// What the stream is compressed with. Reads its first bytes.
    pub fn compression(&mut self) -> Result<Compression, ArchiveError> {
        todo!()
    }

    pub fn into_inner(self) -> R {
        todo!()
    }
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        todo!()
    }
}
