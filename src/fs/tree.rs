//! Copies trees.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::FsError;
use super::Kind;
use super::Last;
use super::Meta;
use super::MetaChange;
use super::Root;
use super::WalkEntry;
use super::Xattrs;
use super::at;
use super::copy_file;
use super::trail::Trail;

/// How a tree is copied.
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

/// Copies `from_path` with all that is beneath it to `to_path`, whose parent exists: hard links among them stay
/// such, and owners, modes, times, extended attributes, devices, FIFOs and holes are kept. A directory that is there is
/// filled and takes the source's attributes; a file that is there is replaced; neither replaces the other.
/// Symlinks at the end of either path are not followed. A directory is not copied into itself.
pub fn copy_tree(
    from: &Root,
    from_path: impl AsRef<Path>,
    to: &Root,
    to_path: impl AsRef<Path>,
    options: &CopyOptions,
) -> Result<Copied, FsError> {
    let (from_path, to_path) = (from_path.as_ref(), to_path.as_ref());
    let named = from.object(from_path, Last::Keep, "copy")?;
    let meta = at::stat(&named).map_err(FsError::on("copy", from_path))?;
    let mut copied = Copied::default();
    if !meta.is_dir() {
        to.entry(to_path, "copy to", |dir, name| {
            let bytes = replace(dir, name, || copy_leaf(&named, &meta, dir, name, options))?;
            copied = Copied { entries: 1, bytes };
            Ok(())
        })?;
        return Ok(copied);
    }
    let start =
        at::reopen(&named, OFlags::RDONLY | OFlags::DIRECTORY).map_err(FsError::on("copy", from_path))?;
    let mut target = Target::new(to, to_path)?;
    for entry in super::Walk::new(start.into(), from_path)? {
        let entry = entry?;
        copied.entries += 1;
        copied.bytes += target.copy(&entry, options)?;
    }
    target.finish(0)?;
    Ok(copied)
}

/// Where a tree is copied to.
struct Target<'a> {
    root: Root,
    path: &'a Path,
    trail: Trail,
    /// Of the directory that is filled.
    identity: (u64, u64),
    /// What each directory of the trail gets when all is in it, which would change its time.
    pending: Vec<(Meta, Xattrs)>,
    /// First copies of files that have several names.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Target<'_> {
    fn new<'a>(to: &Root, path: &'a Path) -> Result<Target<'a>, FsError> {
        let operation = "copy to";
        let there = match to.stat(path, Last::Keep)? {
            None => {
                to.create_dir(path, 0o700)?;
                to.object(path, Last::Keep, operation)?
            }
            Some(_) => to.open_with(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, operation)?,
        };
        let start = at::open_dir(&there, OsStr::new(".")).map_err(FsError::on(operation, path))?;
        let meta = at::stat(&start).map_err(FsError::on(operation, path))?;
        let root = to.at(there, path);
        let trail = Trail::new(start).map_err(FsError::on(operation, path))?;
        let identity = (meta.device, meta.inode);
        Ok(Target { root, path, trail, identity, pending: Vec::new(), linked: HashMap::new() })
    }

    /// Returns the bytes of content that were copied.
    fn copy(&mut self, entry: &WalkEntry, options: &CopyOptions) -> Result<u64, FsError> {
        let depth = entry.path.components().count();
        // The directory that it belongs in is one level above it.
        self.finish(depth.max(1))?;
        let path = self.path.join(&entry.path);
        let failed = |errno| FsError::on("copy to", &path)(errno);
        let identity = (entry.meta.device, entry.meta.inode);
        if entry.meta.is_dir() {
            if identity == self.identity {
                let reason = "a directory can't be copied into itself";
                return Err(FsError::InvalidPath { operation: "copy", path: entry.guest_path(), reason });
            }
            if depth > 0 {
                self.enter(entry.name()).map_err(failed)?;
            }
            self.pending.push((entry.meta, entry.xattrs()?));
            return Ok(0);
        }
        let dir = self.trail.dir().as_fd();
        if entry.meta.nlink > 1
            && let Some(first) = self.linked.get(&identity)
        {
            let linked = replace(dir, entry.name(), || link(&self.root, first, dir, entry.name()));
            match linked {
                Ok(()) => return Ok(0),
                // No more links fit, or the path is too long to be named: it becomes a file of its own.
                Err(Errno::MLINK | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        let named = at::open_entry(&**entry.dir(), entry.name());
        let named = named.map_err(|errno| FsError::on("copy", &entry.guest_path())(errno))?;
        let bytes = replace(dir, entry.name(), || copy_leaf(&named, &entry.meta, dir, entry.name(), options))
            .map_err(failed)?;
        if entry.meta.nlink > 1 {
            self.linked.insert(identity, entry.path.clone());
        }
        Ok(bytes)
    }

    fn enter(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let dir = match at::create_dir(&**self.trail.dir(), name, 0o700) {
            // A link there is not followed: the error is that it is no directory.
            Err(Errno::EXIST) => at::open_dir(&**self.trail.dir(), name)?,
            other => other?,
        };
        self.trail.push(dir)
    }

    /// Leaves directories until `depth` of them are open, each with its attributes.
    fn finish(&mut self, depth: usize) -> Result<(), FsError> {
        while self.pending.len() > depth {
            let Some((meta, xattrs)) = self.pending.pop() else { break };
            let failed = |errno| FsError::on("copy to", self.path)(errno);
            at::set_meta(&**self.trail.dir(), &MetaChange::like(&meta, &xattrs)).map_err(failed)?;
            if self.trail.depth() > 0 {
                self.trail.leave().map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Makes an entry, once what is there and is no directory has been removed.
fn replace<T>(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    loop {
        match make() {
            Err(Errno::EXIST) => match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            },
            other => return other,
        }
    }
}

fn link(root: &Root, existing: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    let parent = existing.parent().unwrap_or(Path::new(""));
    let from = at::open_in_root(
        root.as_fd(),
        parent,
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::fs::linkat(&from, existing.file_name().unwrap_or_default(), dir, name, AtFlags::empty())
}

/// Copies what is no directory. Returns the bytes of content.
fn copy_leaf(
    named: &OwnedFd,
    meta: &Meta,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    options: &CopyOptions,
) -> rustix::io::Result<u64> {
    if options.link && matches!(meta.kind, Kind::File | Kind::Symlink) {
        let path = at::by_descriptor(named.as_fd());
        match rustix::fs::linkat(rustix::fs::CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::OPNOTSUPP) => {}
            other => return other.map(|()| 0),
        }
    }
    let xattrs = at::xattrs(named)?;
    let change = MetaChange::like(meta, &xattrs);
    match meta.kind {
        Kind::File => {
            let source = at::open_file(named)?.ok_or(Errno::INVAL)?;
            let file = at::create_file(dir, name, 0o600)?;
            let bytes = copy_bytes(&source, &file)?;
            at::set_meta(&file, &change)?;
            Ok(bytes)
        }
        Kind::Symlink => {
            rustix::fs::symlinkat(at::read_link(named, OsStr::new(""))?, dir, name)?;
            at::set_meta(at::open_entry(dir, name)?, &change)?;
            Ok(0)
        }
        Kind::Directory => Err(Errno::ISDIR),
        kind => {
            at::mknod(dir, name, kind, meta.mode)?;
            at::set_meta(at::open_entry(dir, name)?, &change)?;
            Ok(0)
        }
    }
}

fn copy_bytes(from: &File, to: &File) -> rustix::io::Result<u64> {
    copy_file(from, to).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
