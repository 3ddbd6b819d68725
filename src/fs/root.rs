//! [`Root`]: a directory that paths are resolved in.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::FileTime;
use super::FsError;
use super::Kind;
use super::Meta;
use super::MetaChange;
use super::Owner;
use super::Walk;
use super::Xattrs;

/// A directory, and what lies beneath it. Clones share the open directory.
#[derive(Clone, Debug)]
pub struct Root {
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
}

/// Whether a symlink at the end of a path is followed. Those on the way always are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    Follow,
    /// The link itself is meant.
    Keep,
}

/// What directories get that are made on the way.
#[derive(Clone, Copy, Debug)]
pub struct NewDirs {
    pub mode: u32,
    pub owner: Option<Owner>,
    pub mtime: Option<FileTime>,
}

impl Default for NewDirs {
    fn default() -> NewDirs {
        NewDirs { mode: 0o755, owner: None, mtime: None }
    }
}

impl Root {
    /// `path` is a path of the host, resolved as usual.
    pub fn open(path: impl AsRef<Path>) -> Result<Root, FsError> {
        todo!()
    }

    /// The path on the host that it was opened with.
    pub fn host_path(&self) -> &Path {
        &self.path
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A root at the directory `path` of this one: symlinks in it then resolve beneath *it*.
    pub fn sub(&self, path: impl AsRef<Path>) -> Result<Root, FsError> {
        todo!()
    }

    /// `None` if there is nothing.
    pub fn stat(&self, path: impl AsRef<Path>, last: Last) -> Result<Option<Meta>, FsError> {
        todo!()
    }

    /// The path free of symlinks and `..`, relative to the root; empty for the root itself. What does not exist
    /// is taken as a directory that could be made.
    pub fn resolve(&self, path: impl AsRef<Path>, last: Last) -> Result<PathBuf, FsError> {
        todo!()
    }

    /// Names in a directory, sorted by bytes.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>, FsError> {
        todo!()
    }

    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, FsError> {
        todo!()
    }

    /// Opens a regular file to read it. Nothing else is opened: devices and FIFOs do things when they are.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File, FsError> {
        todo!()
    }

    /// Makes a regular file, which must not exist, and opens it to write it. `mode` is exact, as in all that
    /// follow: no umask applies.
    pub fn create_file(&self, path: impl AsRef<Path>, mode: u32) -> Result<File, FsError> {
        todo!()
    }

    /// Opens a regular file to overwrite it: made if missing, emptied if not. Follows a symlink at the end.
    pub fn overwrite_file(&self, path: impl AsRef<Path>, mode: u32) -> Result<File, FsError> {
        todo!()
    }

    pub fn create_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<(), FsError> {
        todo!()
    }

    /// Makes the directory and those above it that are missing, also where symlinks lead, and returns the
    /// resolved paths of those that it made, parents first.
    pub fn create_dir_all(&self, path: impl AsRef<Path>, new: &NewDirs) -> Result<Vec<PathBuf>, FsError> {
        todo!()
    }

    /// `target` is stored as it is.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FsError> {
        todo!()
    }

    /// Gives the file `existing`, which may be a symlink itself, the further name `path`.
    pub fn hard_link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FsError> {
        todo!()
    }

    /// Makes a device, FIFO, socket or empty file.
    pub fn mknod(&self, path: impl AsRef<Path>, kind: Kind, mode: u32) -> Result<(), FsError> {
        todo!()
    }

    /// Moves within the root; what `to` was is replaced.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FsError> {
        todo!()
    }

    /// Removes a file or an empty directory. Nothing there is an error.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<(), FsError> {
        todo!()
    }

    /// Removes a file, or a directory with all in it; nothing there is no error. For the root itself: what is in it.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<(), FsError> {
        todo!()
    }

    pub fn set_meta(
        &self,
        path: impl AsRef<Path>,
        change: &MetaChange<'_>,
        last: Last,
    ) -> Result<(), FsError> {
        todo!()
    }

    pub fn xattrs(&self, path: impl AsRef<Path>, last: Last) -> Result<Xattrs, FsError> {
        todo!()
    }

    pub fn xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        last: Last,
    ) -> Result<Option<Vec<u8>>, FsError> {
        todo!()
    }

    pub fn set_xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        value: &[u8],
        last: Last,
    ) -> Result<(), FsError> {
        todo!()
    }

    /// Everything beneath `path`, and it first (with an empty path). Sorted by component: `a/b` comes before `a-b`.
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk, FsError> {
        todo!()
    }
}
