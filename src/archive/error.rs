//! Why an archive can't be read or written.

use std::fmt;
use std::io;

use super::Compression;

/// An archive can't be read or written. Offsets are positions in the uncompressed stream.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// What lies below the archive failed; the cause may be an error of a download.
    #[error("can't transfer the archive: {source}")]
    Io { source: io::Error },
    #[error("the {compression} stream is corrupt: {reason}")]
    Compressed { compression: Compression, reason: String },
    #[error("{compression} has no level {level}")]
    Level { compression: Compression, level: i32 },
    #[error("the archive ends at byte {offset}, within an entry")]
    Truncated { offset: u64 },
    #[error("the header at byte {offset} is none of an archive: {reason}")]
    Header { offset: u64, reason: &'static str },
    #[error("entry {} at byte {offset} has a kind ({}) that can't be unpacked", show(path), flag.escape_ascii())]
    UnsupportedKind { path: Vec<u8>, flag: u8, offset: u64 },
    #[error("the path {} is not allowed in an archive: {reason}", show(path))]
    UnsafePath { path: Vec<u8>, reason: Unsafe },
    #[error("the archive has more than the {max} {limit} that are allowed")]
    TooMuch { limit: Limit, max: u64 },
    #[error("no archive can hold the {field} of {}", show(path))]
    Unrepresentable { path: Vec<u8>, field: &'static str },
    #[error("{} has {actual} bytes, but {expected} were announced", show(path))]
    WrongSize { path: Vec<u8>, expected: u64, actual: u64 },
}

/// What is wrong with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsafe {
    Absolute,
    ParentComponent,
    Nul,
    /// A link, or an entry other than a directory, that is the root itself.
    Root,
}

/// What there is too much of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    Entries,
    PathBytes,
    NameBytes,
    Depth,
    HeaderBytes,
    Extents,
    ExpandedBytes,
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsafe::Absolute => "it is absolute",
            Unsafe::ParentComponent => "it has a component `..`",
            Unsafe::Nul => "it contains NUL",
            Unsafe::Root => "it is the root",
        })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Entries => "entries",
            Limit::PathBytes => "bytes of a path",
            Limit::NameBytes => "bytes of a name",
            Limit::Depth => "components of a path",
            Limit::HeaderBytes => "bytes of extended headers of an entry",
            Limit::Extents => "runs of a sparse file",
            Limit::ExpandedBytes => "bytes of content",
        })
    }
}

/// A path for messages: escaped, and no longer than what helps to find it.
fn show(path: &[u8]) -> String {
    format!("\"{}\"", path[..path.len().min(200)].escape_ascii())
}

/// An error of this module that came through `std::io` is itself again.
impl From<io::Error> for ArchiveError {
    fn from(source: io::Error) -> ArchiveError {
        match source.downcast() {
            Ok(error) => error,
            Err(source) => ArchiveError::Io { source },
        }
    }
}

/// For `Read` and `Write`, whose errors are `std::io`'s.
impl From<ArchiveError> for io::Error {
    fn from(error: ArchiveError) -> io::Error {
        let kind = match &error {
            ArchiveError::Io { source } => source.kind(),
            ArchiveError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        match error {
            ArchiveError::Io { source } => source,
            error => io::Error::new(kind, error),
        }
    }
}
