//! Trees over a stream of packets: fsutil's protocol, both ends of it.
//!
//! ```text
//!   sender                      receiver
//!   STAT each entry, in order ──▶
//!   STAT without an entry     ──▶
//!                             ◀── REQ n: the bytes of entry n, meanwhile
//!   DATA n, an empty one last ──▶
//!                             ◀── FIN: all is written
//!   FIN                       ──▶
//! ```
//!
//! [`mod@receive`] makes a directory what the sender says, and [`mod@send`] is the other side. A daemon receives
//! the local sources of a client and sends it the results of local exporters.
//!
//! # Invariants
//!
//! - Paths are clean and relative, stand in order (siblings by the bytes of their names, a directory
//!   before what is in it), and a link names a file that came before. Anything else ends the transfer
//!   before it touches a file; nothing outside the target is touched.
//! - A file that is replaced is replaced by a rename, and gets its time of modification last: a transfer that
//!   broke off never leaves a file that a later one takes for unchanged.
//! - The bytes in memory don't grow with those of the files. What is kept per entry is its name.
//!
//! # Cancellation
//!
//! Both ends may be dropped. Their threads notice at their next packet or file, and remove what they began.
//!
//! # Locking
//!
//! Two mutexes over what is asked for, held for look-ups only. A receiver's threads never wait for the sender:
//! what they ask for goes into a queue without limit, one small number an entry, since a sender may wait for
//! us to read before it reads what we ask.

mod directory;
mod error;
mod order;
mod plan;
mod receive;
mod send;
mod stat;
mod write;

pub use directory::Directory;
pub use directory::Select;
pub use directory::Selected;
pub use error::TransferError;
pub use receive::DataFilter;
pub use receive::Differ;
pub use receive::Hold;
pub use receive::ReceiveOptions;
pub use receive::Received;
pub use receive::receive;
pub use send::Sent;
pub use send::TreeSource;
pub use send::Visit;
pub use send::send;
pub use stat::FileKind;
pub use stat::FileStat;

/// The name under which a transfer of metadata stands in its target.
pub const METADATA: &str = ".fsutil-metadata";

#[cfg(test)]
mod tests;
