//! A compressed stream out of plain bytes.

use std::io;
use std::io::Write;

use super::ArchiveError;
use super::Compression;

/// Compresses what is written to it, on several threads.
#[derive(Debug)]
pub struct Encoder<W> {
    _inner: W,
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<W: Write> Encoder<W> {
    /// `level` is gzip's -1 to 9 or zstd's 1 to 22; `None` is a good default.
    pub fn new(
        _inner: W,
        _compression: Compression,
        _level: Option<i32>,
    ) -> Result<Encoder<W>, ArchiveError> {
        todo!()
    }

    /// Compresses the rest and gives the sink back. Without it the stream is not whole.
    pub fn finish(self) -> Result<W, ArchiveError> {
        todo!()
    }
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        todo!()
    }

    fn flush(&mut self) -> io::Result<()> {
        todo!()
    }
}
