//! File system work beneath a root.
//!
//! A [`Root`] is an open directory. Every path that its methods take is a *guest path*: relative or absolute, it is
//! resolved as if the root were `/`, symlinks and `..` included, and never leaves it. Where a trailing slash could
//! change what a path means it is ignored: `link/` is `link`.
//!
//! The calls block: they belong on threads where that is allowed ([`crate::task::Tasks::spawn_blocking`]). They need
//! Linux 5.8 and a mounted `/proc`.
//!
//! # Invariants
//!
//! - Nothing outside a root is read, written or made, whoever changes the tree meanwhile. A path is either resolved
//!   by the kernel in the root (`openat2` with `RESOLVE_IN_ROOT` and `RESOLVE_NO_MAGICLINKS`) or name by name in open
//!   directories without following anything (`resolve.rs`). What is changed is an open file, or a name in an open
//!   directory, never a path.
//! - A device, FIFO or socket is never opened for its content.
//! - Traversals need a bounded number of open files whatever the depth (`trail.rs`).
//!
//! The one gap is inherent: a directory that somebody with rights on both sides moves out of the root while it is
//! open here is still worked in. Nobody within a root can do that.

mod at;
mod compare;
mod copy;
mod error;
mod meta;
mod resolve;
mod root;
#[cfg(test)]
mod tests;
mod trail;
mod tree;
mod walk;

pub use compare::same_bytes;
pub use copy::PIECE;
pub use copy::copy_file;
pub use copy::write_pieces_at;
pub use error::FsError;
pub use meta::FileTime;
pub use meta::Kind;
pub use meta::Meta;
pub use meta::MetaChange;
pub use meta::Owner;
pub use meta::Xattrs;
pub use root::Last;
pub use root::NewDirs;
pub use root::Root;
pub use tree::Copied;
pub use tree::CopyOptions;
pub use tree::copy_tree;
pub use walk::Walk;
pub use walk::WalkEntry;
