//! A walk over a tree in the order of its components.

use std::fs::File;
use std::path::PathBuf;

use super::FsError;
use super::Meta;
use super::Xattrs;

/// Yields each entry before what is in it; see [`Root::walk`](super::Root::walk).
#[derive(Debug)]
pub struct Walk {}

/// Keeps the directory that it is in open: drop it before the next one.
#[derive(Debug)]
pub struct WalkEntry {
    /// Relative to where the walk started.
    pub path: PathBuf,
    pub meta: Meta,
}

impl Walk {
    /// Leaves out what is in the directory that was yielded last.
    pub fn skip_dir(&mut self) {
        todo!()
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry, FsError>;

    fn next(&mut self) -> Option<Result<WalkEntry, FsError>> {
        todo!()
    }
}

impl WalkEntry {
    /// Opens it to read it, if it is a regular file.
    pub fn open(&self) -> Result<File, FsError> {
        todo!()
    }

    pub fn xattrs(&self) -> Result<Xattrs, FsError> {
        todo!()
    }

    pub fn read_link(&self) -> Result<PathBuf, FsError> {
        todo!()
    }
}
