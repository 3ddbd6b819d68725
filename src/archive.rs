//! Tar archives and their compression, as blocking streams.
//!
//! [`Reader`] takes archives as they occur in layers: POSIX ustar, pax, GNU with its three ways to note
//! sparse files, old V7. [`Writer`] writes what Go's `archive/tar` writes, ustar where it suffices and
//! pax where not, so that layers made here look like those of other tools. [`Decoder`] and [`Encoder`]
//! stand below them; [`HashingReader`] and [`HashingWriter`] say what passed. [`Members`] and [`Checks`] are what is
//! noted on the way, so that a part of a stream can be read and verified without what is before it.
//!
//! Everything here runs on the caller's thread (the encoder's workers and [`read_ahead`] apart) and belongs
//! on a blocking one. Nothing here touches a file system: an [`Entry`]'s path is clean and relative, and where it
//! leads is the business of who unpacks it.
//!
//! # Invariants
//!
//! - No input makes this panic, and none makes it take memory beyond [`Limits`]: each count and size
//!   that an archive names is checked before it is believed, and fails with a typed error.
//! - Output is a function of input and options: no time, no host, no number of threads.

mod ahead;
mod checks;
mod clamp;
mod compression;
mod decoder;
mod encoder;
mod entry;
mod error;
mod hashing;
mod header;
mod limits;
mod members;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;
mod writer;

pub use ahead::ReadAhead;
pub use ahead::read_ahead;
pub use checks::CheckState;
pub use checks::Checks;
pub use checks::Verifier;
pub use clamp::clamp_times;
pub use compression::Compression;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use entry::Entry;
pub use entry::EntryKind;
pub use entry::Extent;
pub use error::ArchiveError;
pub use error::Limit;
pub use error::Unsafe;
pub use hashing::Hashed;
pub use hashing::HashingReader;
pub use hashing::HashingWriter;
pub use limits::Limits;
pub use members::Member;
pub use members::Members;
pub use reader::AbsolutePaths;
pub use reader::Chunk;
pub use reader::Reader;
pub use writer::Writer;
