//! File system work beneath a root.
//!
//! A [`Root`] is an open directory. Every path that its methods take is a *guest path*: relative or absolute, it is
//! resolved as if the root were `/`, symlinks and `..` included, and never leaves it.
//!
//! # Invariants
//!
//! - Nothing outside a root is read, written or made, whoever changes the tree meanwhile.

#![expect(clippy::todo, dead_code, unused_variables, reason = "signatures first: the bodies land next")]

mod copy;
mod error;
mod meta;
mod root;
mod tree;
mod walk;

pub use copy::copy_file;
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
