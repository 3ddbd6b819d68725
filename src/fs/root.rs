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

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::FileTime;
use super::FsError;
use super::Kind;
use super::Meta;
use super::MetaChange;
use super::Owner;
use super::Walk;
use super::Xattrs;
use super::at;
use super::resolve;
use super::trail::Trail;

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
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(FsError::on("open root", path))?;
        Ok(Root { fd: Arc::new(fd), path: path.into() })
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
        let path = path.as_ref();
        let resolved = self.resolve(path, Last::Follow)?;
        let fd = self.open_with(path, OFlags::PATH | OFlags::DIRECTORY, "open")?;
        Ok(Root { fd: Arc::new(fd), path: self.path.join(resolved).into() })
    }

    /// `None` if there is nothing.
    pub fn stat(&self, path: impl AsRef<Path>, last: Last) -> Result<Option<Meta>, FsError> {
        let path = path.as_ref();
        match self.object(path, last, "stat").and_then(|fd| at::stat(fd).map_err(FsError::on("stat", path))) {
            Ok(meta) => Ok(Some(meta)),
            Err(FsError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When the inode at a path was made, which no one can set; `None` where the file system does not know.
    pub fn birth(&self, path: impl AsRef<Path>, last: Last) -> Result<Option<FileTime>, FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "stat")?;
        at::birth(fd).map_err(FsError::on("stat", path))
    }

    /// The path free of symlinks and `..`, relative to the root; empty for the root itself. What does not exist
    /// is taken as a directory that could be made.
    pub fn resolve(&self, path: impl AsRef<Path>, last: Last) -> Result<PathBuf, FsError> {
        let path = path.as_ref();
        resolve::resolve(self.as_fd(), path, last).map_err(FsError::on("resolve", path))
    }

    /// Names in a directory, sorted by bytes.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>, FsError> {
        let path = path.as_ref();
        let dir = self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY, "list")?;
        let mut names: Vec<_> =
            at::list(dir).map_err(FsError::on("list", path))?.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        Ok(names)
    }

    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, FsError> {
        let path = path.as_ref();
        let link = self.object(path, Last::Keep, "read link")?;
        at::read_link(link, OsStr::new("")).map_err(|errno| match errno {
            Errno::INVAL | Errno::NOENT => wrong_kind("read link", path, "a symbolic link"),
            errno => FsError::on("read link", path)(errno),
        })
    }

    /// Opens a regular file to read it. Nothing else is opened: devices and FIFOs do things when they are.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File, FsError> {
        let path = path.as_ref();
        let named = self.object(path, Last::Follow, "open")?;
        let file = at::open_file(&named).map_err(FsError::on("open", path))?;
        file.ok_or_else(|| wrong_kind("open", path, "a regular file"))
    }

    /// Makes a regular file, which must not exist, and opens it to read and write it. `mode` is exact, as in all
    /// that follow: no umask applies.
    pub fn create_file(&self, path: impl AsRef<Path>, mode: u32) -> Result<File, FsError> {
        self.entry(path.as_ref(), "create", |dir, name| at::create_file(dir, name, mode))
    }

    /// Opens a regular file to overwrite it: made if missing, where a symlink at the end leads too, and emptied if
    /// not. `mode` is for one that is made.
    pub fn overwrite_file(&self, path: impl AsRef<Path>, mode: u32) -> Result<File, FsError> {
        let path = path.as_ref();
        let failed = |errno| FsError::on("overwrite", path)(errno);
        // Once more if somebody else made it meanwhile.
        for _ in 0..2 {
            match self.object(path, Last::Follow, "overwrite") {
                Ok(named) => {
                    if !at::stat(&named).map_err(failed)?.is_file() {
                        return Err(wrong_kind("overwrite", path, "a regular file"));
                    }
                    return at::reopen(named, OFlags::RDWR | OFlags::TRUNC).map_err(failed);
                }
                Err(FsError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            match self.create_file(self.resolve(path, Last::Follow)?, mode) {
                Err(FsError::Exists { .. }) => {}
                Err(FsError::NotFound { .. }) => break,
                made => return made,
            }
        }
        Err(failed(Errno::NOENT))
    }

    pub fn create_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<(), FsError> {
        self.entry(path.as_ref(), "make directory", |dir, name| at::create_dir(dir, name, mode).map(drop))
    }

    /// Makes the directory and those above it that are missing, also where symlinks lead, and returns the
    /// resolved paths of those that it made, parents first.
    pub fn create_dir_all(&self, path: impl AsRef<Path>, new: &NewDirs) -> Result<Vec<PathBuf>, FsError> {
        let path = path.as_ref();
        // Mostly it is there.
        match self.open_with(path, OFlags::PATH | OFlags::DIRECTORY, "make directory") {
            Err(FsError::NotFound { .. }) => {}
            other => return other.map(|_| Vec::new()),
        }
        resolve::create(self.as_fd(), path, new).map_err(FsError::on("make directory", path))
    }

    /// `target` is stored as it is.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FsError> {
        let target = target.as_ref();
        self.entry(path.as_ref(), "make symbolic link", |dir, name| rustix::fs::symlinkat(target, dir, name))
    }

    /// Gives the file `existing` the further name `path`. A symlink at the end of `existing` is the file that is meant.
    pub fn hard_link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FsError> {
        let existing = existing.as_ref();
        let (parent, old) = split(existing, "link")?;
        let from = self.open_with(parent, OFlags::PATH | OFlags::DIRECTORY, "link")?;
        at::stat_entry(&from, old).map_err(FsError::on("link", existing))?;
        self.entry(path.as_ref(), "link", |dir, name| {
            rustix::fs::linkat(&from, old, dir, name, AtFlags::empty())
        })
    }

    /// Makes a device, FIFO, socket or empty file.
    pub fn mknod(&self, path: impl AsRef<Path>, kind: Kind, mode: u32) -> Result<(), FsError> {
        self.entry(path.as_ref(), "make node", |dir, name| at::mknod(dir, name, kind, mode))
    }

    /// Moves within the root; what `to` was is replaced.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FsError> {
        let from = from.as_ref();
        let (parent, old) = split(from, "move")?;
        let source = self.open_with(parent, OFlags::PATH | OFlags::DIRECTORY, "move")?;
        at::stat_entry(&source, old).map_err(FsError::on("move", from))?;
        self.entry(to.as_ref(), "move", |dir, name| rustix::fs::renameat(&source, old, dir, name))
    }

    /// Removes a file or an empty directory. Nothing there is an error.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<(), FsError> {
        self.entry(path.as_ref(), "remove", |dir, name| {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
                other => other,
            }
        })
    }

    /// Removes a file, or a directory with all in it; nothing there is no error. The root itself is emptied.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<(), FsError> {
        let path = path.as_ref();
        let failed = |errno| FsError::on("remove", path)(errno);
        if clean(path) == Path::new(".") {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            return self.open_with(path, flags, "remove").and_then(|dir| empty(dir).map_err(failed));
        }
        let (parent, name) = split(path, "remove")?;
        let dir = match self.open_with(parent, OFlags::PATH | OFlags::DIRECTORY, "remove") {
            Err(FsError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        loop {
            match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            }
            match at::open_dir(&dir, name).and_then(empty) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Somebody put something there meanwhile.
                Err(Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    pub fn set_meta(
        &self,
        path: impl AsRef<Path>,
        change: &MetaChange<'_>,
        last: Last,
    ) -> Result<(), FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "change")?;
        at::set_meta(fd, change).map_err(FsError::on("change", path))
    }

    pub fn xattrs(&self, path: impl AsRef<Path>, last: Last) -> Result<Xattrs, FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "read attributes of")?;
        at::xattrs(fd).map_err(FsError::on("read attributes of", path))
    }

    pub fn xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        last: Last,
    ) -> Result<Option<Vec<u8>>, FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "read attributes of")?;
        at::xattr(fd, name.as_ref()).map_err(FsError::on("read attributes of", path))
    }

    pub fn set_xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        value: &[u8],
        last: Last,
    ) -> Result<(), FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "set attribute of")?;
        at::set_xattr(fd, name.as_ref(), value).map_err(FsError::on("set attribute of", path))
    }

    /// An attribute that is not there is no error.
    pub fn remove_xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<OsStr>,
        last: Last,
    ) -> Result<(), FsError> {
        let path = path.as_ref();
        let fd = self.object(path, last, "remove attribute of")?;
        match at::remove_xattr(fd, name.as_ref()) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(FsError::on("remove attribute of", path)),
        }
    }

    /// Everything beneath the directory `path`, and that first (with an empty path). Sorted by component: `a/b` comes
    /// before `a-b`.
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk, FsError> {
        let path = path.as_ref();
        Walk::new(self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY, "walk")?, path)
    }

    /// A root at a directory of this one that is open already.
    pub(super) fn at(&self, dir: OwnedFd, path: &Path) -> Root {
        Root { fd: Arc::new(dir), path: self.path.join(path).into() }
    }

    /// Opens what is there only to name it.
    pub(super) fn object(
        &self,
        path: &Path,
        last: Last,
        operation: &'static str,
    ) -> Result<OwnedFd, FsError> {
        let flags = match last {
            Last::Follow => OFlags::PATH,
            Last::Keep => OFlags::PATH | OFlags::NOFOLLOW,
        };
        self.open_with(path, flags, operation)
    }

    pub(super) fn open_with(
        &self,
        path: &Path,
        flags: OFlags,
        operation: &'static str,
    ) -> Result<OwnedFd, FsError> {
        at::open_in_root(self.as_fd(), clean(path), flags, Mode::empty(), ResolveFlags::empty())
            .map_err(FsError::on(operation, path))
    }

    /// Calls `work` with the open directory of an entry, and its name.
    pub(super) fn entry<T>(
        &self,
        path: &Path,
        operation: &'static str,
        work: impl FnOnce(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, FsError> {
        let (parent, name) = split(path, operation)?;
        if parent.as_os_str().is_empty() || parent == Path::new("/") {
            return work(self.as_fd(), name).map_err(FsError::on(operation, path));
        }
        let dir = self.open_with(parent, OFlags::PATH | OFlags::DIRECTORY, operation)?;
        work(dir.as_fd(), name).map_err(FsError::on(operation, path))
    }
}

/// Without what the kernel would take as a wish to follow a symlink at the end: `link/` and `link/.` are `link`.
fn clean(path: &Path) -> &Path {
    let path = path.components().as_path();
    if path.as_os_str().is_empty() || path == Path::new("/") { Path::new(".") } else { path }
}

/// The directory of an entry, and its name.
fn split<'p>(path: &'p Path, operation: &'static str) -> Result<(&'p Path, &'p OsStr), FsError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(FsError::InvalidPath {
            operation,
            path: path.to_path_buf(),
            reason: "the path has to end in a name",
        }),
    }
}

fn wrong_kind(operation: &'static str, path: &Path, expected: &'static str) -> FsError {
    FsError::WrongKind { operation, path: path.to_path_buf(), expected }
}

/// Removes all that is in a directory that was opened to be listed.
fn empty(dir: OwnedFd) -> rustix::io::Result<()> {
    let mut trail = Trail::new(dir)?;
    let mut names = vec![at::list(&**trail.dir())?];
    // The name of each directory in the one above.
    let mut entered: Vec<OsString> = Vec::new();
    while let Some(left) = names.last_mut() {
        let Some((name, kind)) = left.pop() else {
            names.pop();
            if let Some(name) = entered.pop() {
                trail.leave()?;
                match rustix::fs::unlinkat(&**trail.dir(), &name, AtFlags::REMOVEDIR) {
                    // Somebody put something there meanwhile: once more.
                    Err(Errno::NOTEMPTY) => {
                        names
                            .last_mut()
                            .unwrap_or_else(|| unreachable!("it has a parent"))
                            .push((name, FileType::Directory));
                    }
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            continue;
        };
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(&**trail.dir(), &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            }
        }
        match trail.enter(&name) {
            Ok(()) => {
                names.push(at::list(&**trail.dir())?);
                entered.push(name);
            }
            Err(Errno::NOENT) => {}
            // It is no directory any more.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                match rustix::fs::unlinkat(&**trail.dir(), &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
