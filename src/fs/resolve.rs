//! Resolution in a root step by step: where the answer is a path, or where what is missing is made on the way.
//!
//! Each step opens one name in an open directory without following it, and reads a link from what was opened. So
//! nobody who changes the tree meanwhile can lead it out. One directory is open at a time: `..` opens the one above
//! anew, by its resolved path.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use rustix::io::Result;

use super::Kind;
use super::Last;
use super::MetaChange;
use super::NewDirs;
use super::at;

/// The kernel's own limit.
const MAX_LINKS: usize = 40;

/// Where a resolution has come to.
#[derive(Debug)]
struct Cursor<'a> {
    root: BorrowedFd<'a>,
    /// The directory at `names` less those that are missing; `None` is the root.
    dir: Option<OwnedFd>,
    names: Vec<OsString>,
    /// How many of the last names don't exist.
    missing: usize,
}

impl Cursor<'_> {
    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_ref().map_or(self.root, AsFd::as_fd)
    }

    fn path(&self) -> PathBuf {
        self.names.iter().collect()
    }

    fn restart(&mut self) {
        self.dir = None;
        self.names.clear();
        self.missing = 0;
    }

    fn up(&mut self) -> Result<()> {
        if self.names.pop().is_none() {
            return Ok(());
        }
        if self.missing > 0 {
            self.missing -= 1;
            return Ok(());
        }
        self.dir = if self.names.is_empty() {
            None
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let resolve = ResolveFlags::NO_SYMLINKS;
            Some(at::open_in_root(self.root, &self.path(), flags, Mode::empty(), resolve)?)
        };
        Ok(())
    }

    fn enter(&mut self, name: OsString, dir: OwnedFd) {
        self.dir = Some(dir);
        self.names.push(name);
    }
}

/// What is still to be walked, the next one last.
fn push(pending: &mut Vec<OsString>, path: &Path) {
    pending.extend(path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

/// The path without links and `..`. Names that don't exist are taken as they are.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &Path, last: Last) -> Result<PathBuf> {
    walk(root, path, last, &mut |cursor, name| {
        cursor.names.push(name);
        cursor.missing += 1;
        Ok(())
    })
}

/// Makes the directories that are missing. Returns the paths of those it made, parents first.
pub(super) fn create(root: BorrowedFd<'_>, path: &Path, new: &NewDirs) -> Result<Vec<PathBuf>> {
    let mut created = Vec::new();
    let dir = walk(root, path, Last::Follow, &mut |cursor, name| {
        match at::create_dir(cursor.dir(), &name, new.mode) {
            Ok(dir) => {
                if let Some(owner) = new.owner {
                    let change = MetaChange { owner: Some(owner), ..MetaChange::default() };
                    at::set_meta(&dir, &change)?;
                }
                cursor.enter(name, dir);
                created.push(cursor.path());
                Ok(())
            }
            // Somebody else made it meanwhile.
            Err(Errno::EXIST) => {
                let dir = at::open_dir(cursor.dir(), &name)?;
                cursor.enter(name, dir);
                Ok(())
            }
            Err(error) => Err(error),
        }
    })?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    // A file may stand there.
    at::open_in_root(root, &dir, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    if new.mtime.is_some() {
        // Now, as making one in another changes that one's time.
        let change = MetaChange { mtime: new.mtime, ..MetaChange::default() };
        for path in &created {
            let dir = at::open_in_root(root, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
            at::set_meta(dir, &change)?;
        }
    }
    Ok(created)
}

fn walk(
    root: BorrowedFd<'_>,
    path: &Path,
    last: Last,
    missing: &mut dyn FnMut(&mut Cursor<'_>, OsString) -> Result<()>,
) -> Result<PathBuf> {
    let mut cursor = Cursor { root, dir: None, names: Vec::new(), missing: 0 };
    let mut pending = Vec::new();
    push(&mut pending, path);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            cursor.up()?;
            continue;
        }
        if cursor.missing > 0 {
            missing(&mut cursor, name)?;
            continue;
        }
        let entry = match at::open_entry(cursor.dir(), &name) {
            Err(Errno::NOENT) => {
                missing(&mut cursor, name)?;
                continue;
            }
            other => other?,
        };
        match at::stat(&entry)?.kind {
            Kind::Directory => cursor.enter(name, entry),
            Kind::Symlink if pending.is_empty() && last == Last::Keep => cursor.names.push(name),
            Kind::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = at::read_link(&entry, OsStr::new(""))?;
                if target.is_absolute() {
                    cursor.restart();
                }
                push(&mut pending, &target);
            }
            _ if pending.is_empty() => cursor.names.push(name),
            _ => return Err(Errno::NOTDIR),
        }
    }
    Ok(cursor.path())
}
