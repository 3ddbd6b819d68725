//! Entries into a tar stream.

use std::io::Read;
use std::io::Write;

use super::ArchiveError;
use super::Entry;

/// Writes entries.
#[derive(Debug)]
pub struct Writer<W> {
    _inner: W,
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<W: Write> Writer<W> {
    pub fn new(_inner: W) -> Writer<W> {
        todo!()
    }

    /// Appends an entry. `data` gives a file's `entry.size` bytes and is not read for other kinds.
    pub fn append(&mut self, _entry: &Entry, _data: impl Read) -> Result<(), ArchiveError> {
        todo!()
    }

    /// Writes the archive's end, and gives the sink back, unflushed.
    pub fn finish(self) -> Result<W, ArchiveError> {
        todo!()
    }
}
