//! Entries out of a tar stream.

use std::io;
use std::io::Read;

use super::ArchiveError;
use super::Entry;
use super::Extent;
use super::Limits;

/// What becomes of a path that begins with a slash.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AbsolutePaths {
    /// It is an error: layers don't have them.
    #[default]
    Refuse,
    /// The slash goes, as with every tar program: for archives that users made.
    MakeRelative,
}

/// Bytes of a file and where in it they stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk<'a> {
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Reads entries, and the data of the current one.
#[derive(Debug)]
pub struct Reader<R> {
    _inner: R,
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<R: Read> Reader<R> {
    pub fn new(_inner: R) -> Reader<R> {
        todo!()
    }

    pub fn with(_inner: R, _limits: Limits, _absolute: AbsolutePaths) -> Reader<R> {
        todo!()
    }

    /// The next entry; what was not read of the current one is passed over. `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        todo!()
    }

    /// The next bytes of the current file that the archive holds, without copying; holes of a sparse
    /// file are left out. `None` at the file's end.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk<'_>>, ArchiveError> {
        todo!()
    }

    /// The runs that the archive holds of the current file, if it is sparse.
    pub fn extents(&self) -> Option<&[Extent]> {
        todo!()
    }

    /// Position in the uncompressed stream: after `next_entry`, where the entry's data begin.
    pub fn offset(&self) -> u64 {
        todo!()
    }

    /// Reads whatever follows the archive's end up to the end of the stream, and gives the source back.
    pub fn finish(self) -> Result<R, ArchiveError> {
        todo!()
    }
}

#[expect(clippy::todo, reason = "the bodies land next")]
impl<R: Read> Read for Reader<R> {
    /// The logical bytes of the current file, holes as zeros.
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        todo!()
    }
}
