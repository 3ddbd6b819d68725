//! Copies trees.

use std::path::Path;

use super::FsError;
use super::Root;

/// What a copy changes on the way.
#[derive(Clone, Copy, Default, Debug)]
pub struct CopyOptions {
    /// Files become hard links to the originals where the file system allows it, copies elsewhere.
    pub link: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Copied {
    pub entries: u64,
    /// Content of files, each hard-linked file once.
    pub bytes: u64,
}

/// Copies `from_path` with all that is beneath it to `to_path`: hard links among them stay such, and owners, modes,
/// times, extended attributes, devices, FIFOs and holes are kept. A directory that is there is filled and takes
/// the source's attributes; a file that is there is replaced; neither replaces the other.
pub fn copy_tree(
    from: &Root,
    from_path: impl AsRef<Path>,
    to: &Root,
    to_path: impl AsRef<Path>,
    options: &CopyOptions,
) -> Result<Copied, FsError> {
    todo!()
}
