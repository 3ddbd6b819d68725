//! Makes what an entry says.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Uid;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::ApplyError;
use super::ApplyOptions;
use super::WhiteoutStyle;
use super::place;
use super::place::Place;
use super::place::as_path;
use super::place::mark_opaque;
use super::place::shown;
use super::place::times;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Reader;
use crate::fs::CopyOptions;
use crate::fs::Last;
use crate::fs::Root;
use crate::fs::copy_tree;
use crate::fs::write_pieces_at;
use crate::snapshot::index::IndexBuilder;

/// OCI image specification, `layer.md#whiteouts`.
const WHITEOUT: &[u8] = b".wh.";
/// Names that begin so have a meaning of their own, or none that is known today.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// What SELinux calls a file: nobody's to take away.
const LABEL: &[u8] = b"security.selinux";
const CAPABILITIES: &[u8] = b"security.capability";

pub(super) struct Unpacker<'a> {
    place: Place<'a>,
    /// What the process takes away from the mode of a new file.
    umask: u32,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(root: &'a Root, options: &ApplyOptions<'a>) -> Unpacker<'a> {
        Unpacker { place: Place::new(root, options), umask: umask() }
    }

    /// Makes an entry, whose data `reader` gives, and notes it.
    pub(super) fn put<R: Read>(
        &mut self,
        mut entry: Entry,
        reader: &mut Reader<R>,
        index: &mut IndexBuilder,
    ) -> Result<(), ApplyError> {
        // The root has what its snapshotter gave it.
        if entry.path.is_empty() {
            return Ok(());
        }
        let at = entry.path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let name = entry.path[at..].to_vec();
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&entry, hidden, &name, index);
        }
        check(&entry)?;
        // The kernel takes empty ones, which are none, but could not read them again.
        if entry.xattrs.get(CAPABILITIES).is_some_and(Vec::is_empty) {
            entry.xattrs.remove(CAPABILITIES);
        }
        self.place.enter(&entry.path)?;
        let path = self.place.path_of(&name);
        let offset = reader.offset();
        let mut contiguous = true;
        match &entry.kind {
            EntryKind::File => {
                contiguous = reader.extents().is_none();
                self.file(&entry, &name, &path, reader)?;
            }
            EntryKind::Dir => self.dir(&entry, &name, &path)?,
            EntryKind::Hardlink { target } => {
                let target = target.clone();
                let found = self.hardlink(&entry, &name, &path, &target)?;
                entry.kind = EntryKind::Hardlink { target: found };
            }
            _ => self.special(&entry, &name, &path)?,
        }
        self.place.made(&path);
        entry.path = path;
        index.put(entry, offset, contiguous);
        Ok(())
    }

    /// Sets what could not be set before, and says which directories were implied.
    pub(super) fn finish(self) -> Result<Vec<PathBuf>, ApplyError> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        for (path, mtime) in self.place.dirs.iter().rev() {
            let root = self.place.root.as_fd();
            match rustix::fs::openat2(root, path.as_slice(), place::DIRECTORY, Mode::empty(), beneath) {
                Ok(dir) => rustix::fs::futimens(&dir, &times(*mtime)),
                // A later entry has replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(errno),
            }
            .map_err(ApplyError::io("set the time", path))?;
        }
        Ok(self.place.implied.into_iter().collect())
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        hidden: &[u8],
        name: &[u8],
        index: &mut IndexBuilder,
    ) -> Result<(), ApplyError> {
        let invalid = || ApplyError::InvalidWhiteout { path: shown(&entry.path) };
        if name == WHITEOUT_OPAQUE {
            // A file system has no mark that would hide all of the trees below its root.
            if !entry.path.contains(&b'/') {
                return Err(invalid());
            }
            self.place.enter(&entry.path)?;
            let dir = self.place.dir_path().to_vec();
            if dir.is_empty() {
                return Err(invalid());
            }
            match self.place.style {
                WhiteoutStyle::Overlay => {
                    mark_opaque(self.place.dir()).map_err(ApplyError::io("mark", &dir))?;
                }
                WhiteoutStyle::Plain => self.place.empty_lower(&dir)?,
            }
            index.opaque(&dir);
            return Ok(());
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(invalid());
        }
        self.place.enter(&entry.path)?;
        let path = self.place.path_of(hidden);
        index.whiteout(&path);
        if self.place.style == WhiteoutStyle::Plain {
            return self.place.remove_lower(&path);
        }
        let dir = self.place.dir();
        match rustix::fs::mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => match rustix::fs::openat(dir, hidden, place::DIRECTORY, Mode::empty()) {
                // What this layer has stays: only what is below it goes.
                Ok(own) => mark_opaque(own.as_fd()),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(errno),
            },
            other => other,
        }
        .map_err(ApplyError::io("hide", &path))
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        path: &[u8],
        reader: &mut Reader<R>,
    ) -> Result<(), ApplyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let open = |place: &Place<'_>| rustix::fs::openat(place.dir(), name, flags, mode);
        let file = match open(&self.place) {
            Err(Errno::EXIST) => {
                self.clear(entry, name, path)?;
                open(&self.place)
            }
            other => other,
        };
        let file = File::from(file.map_err(ApplyError::io("make", path))?);
        let sparse = reader.extents().is_some();
        while let Some(chunk) = reader.next_chunk()? {
            write_pieces_at(&file, chunk.bytes, chunk.offset).map_err(ApplyError::io("write", path))?;
        }
        if sparse {
            file.set_len(entry.size).map_err(ApplyError::io("write", path))?;
        }
        self.own(&file, entry, path)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(ApplyError::io("set the time", path))
    }

    /// Owner, mode and attributes of an open file, in the order in which none undoes another: a new
    /// owner takes set-user-ID and capabilities away.
    fn own(&self, file: impl AsFd, entry: &Entry, path: &[u8]) -> Result<(), ApplyError> {
        let (uid, gid) = owner(entry, path)?;
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(ApplyError::io("change the owner", path))?;
        if entry.mode & 0o7000 != 0 || entry.mode & self.umask != 0 {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::fchmod(&file, mode).map_err(ApplyError::io("change the mode", path))?;
        }
        for (name, value) in &entry.xattrs {
            let set = rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty());
            xattr_set(set, name, path)?;
        }
        Ok(())
    }

    /// Makes a directory, or takes the one that is there.
    fn dir(&mut self, entry: &Entry, name: &[u8], path: &[u8]) -> Result<(), ApplyError> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let make = |place: &Place<'_>| rustix::fs::mkdirat(place.dir(), name, mode);
        let open = |place: &Place<'_>| rustix::fs::openat(place.dir(), name, place::DIRECTORY, Mode::empty());
        let (mut opaque, mut was_there) = (false, false);
        match make(&self.place) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(self.place.dir(), name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(ApplyError::io("look at", path))?;
                was_there = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if was_there {
                    Ok(())
                } else {
                    self.clear(entry, name, path)?;
                    // What this layer had here hid what is below.
                    opaque = self.place.style == WhiteoutStyle::Overlay;
                    make(&self.place)
                }
            }
            other => other,
        }
        .map_err(ApplyError::io("make directory", path))?;
        let dir = open(&self.place).map_err(ApplyError::io("open", path))?;
        if was_there {
            strip(self.place.root, entry, path)?;
        }
        self.own(&dir, entry, path)?;
        // One that was there has another mode, and a new one takes set-group-ID from its parent.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(entry.mode))
            .map_err(ApplyError::io("change the mode", path))?;
        if opaque {
            mark_opaque(dir.as_fd()).map_err(ApplyError::io("mark", path))?;
        }
        self.place.dirs.insert(path.to_vec(), entry.mtime);
        Ok(())
    }

    /// Returns where the target is, without links.
    fn hardlink(
        &mut self,
        entry: &Entry,
        name: &[u8],
        path: &[u8],
        target: &[u8],
    ) -> Result<Vec<u8>, ApplyError> {
        let missing = || ApplyError::MissingTarget { path: shown(&entry.path), target: shown(target) };
        let last = target.iter().rposition(|&b| b == b'/').map_or(target, |at| &target[at + 1..]);
        self.place.enter(target)?;
        let target_path = self.place.path_of(last);
        let target_dir = self.place.dir().try_clone_to_owned().map_err(ApplyError::io("open", target))?;
        let found = match rustix::fs::statat(&target_dir, last, AtFlags::SYMLINK_NOFOLLOW) {
            // What this layer has hidden is not there.
            Ok(stat) if place::is_whiteout(&stat) => return Err(missing()),
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(ApplyError::io("look at", target)(errno)),
        };
        match found {
            Some(FileType::Directory) => return Err(missing()),
            Some(_) => {}
            None => self.copy_up(entry, target, &target_path)?,
        }
        if target_path == path {
            return Ok(target_path);
        }
        self.place.enter(&entry.path)?;
        let link =
            |place: &Place<'_>| rustix::fs::linkat(&target_dir, last, place.dir(), name, AtFlags::empty());
        match link(&self.place) {
            Err(Errno::EXIST) => {
                self.clear(entry, name, path)?;
                link(&self.place)
            }
            other => other,
        }
        .map_err(|errno| match errno {
            // It was in a directory that this entry has replaced.
            Errno::NOENT => missing(),
            errno => ApplyError::io("link", path)(errno),
        })?;
        Ok(target_path)
    }

    /// Brings a file of a layer below into this one, as an overlay does when it is linked to.
    fn copy_up(&mut self, entry: &Entry, target: &[u8], path: &[u8]) -> Result<(), ApplyError> {
        let missing = || ApplyError::MissingTarget { path: shown(&entry.path), target: shown(target) };
        let Some(lower) = self.place.lower else {
            return Err(match self.place.style {
                WhiteoutStyle::Plain => missing(),
                WhiteoutStyle::Overlay => {
                    ApplyError::NeedsLower { path: shown(&entry.path), target: shown(target) }
                }
            });
        };
        match lower.stat(as_path(path), Last::Keep)? {
            Some(meta) if !meta.is_dir() => {}
            _ => return Err(missing()),
        }
        copy_tree(lower, as_path(path), self.place.root, as_path(path), &CopyOptions::default())?;
        Ok(())
    }

    /// Makes a symlink, device or FIFO.
    fn special(&mut self, entry: &Entry, name: &[u8], path: &[u8]) -> Result<(), ApplyError> {
        let kind = &entry.kind;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let make = |place: &Place<'_>| match kind {
            EntryKind::Symlink { target } => rustix::fs::symlinkat(target.as_slice(), place.dir(), name),
            EntryKind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(place.dir(), name, FileType::CharacterDevice, mode, device)
            }
            EntryKind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(place.dir(), name, FileType::BlockDevice, mode, device)
            }
            _ => rustix::fs::mknodat(place.dir(), name, FileType::Fifo, mode, 0),
        };
        match make(&self.place) {
            Err(Errno::EXIST) => {
                self.clear(entry, name, path)?;
                make(&self.place)
            }
            other => other,
        }
        .map_err(ApplyError::io("make", path))?;
        let dir = self.place.dir();
        let (uid, gid) = owner(entry, path)?;
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(ApplyError::io("change the owner", path))?;
        if !matches!(kind, EntryKind::Symlink { .. }) {
            // It was made just now, and is no link that would be followed.
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(ApplyError::io("change the mode", path))?;
        }
        for (attribute, value) in &entry.xattrs {
            let file = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
            let set = rustix::fs::lsetxattr(&*file, attribute.as_slice(), value, XattrFlags::empty());
            xattr_set(set, attribute, path)?;
        }
        rustix::fs::utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(ApplyError::io("set the time", path))
    }

    /// Takes away what is where an entry goes.
    fn clear(&mut self, entry: &Entry, name: &[u8], path: &[u8]) -> Result<(), ApplyError> {
        let failed = ApplyError::io("replace", path);
        let stat = match rustix::fs::statat(self.place.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return Err(failed(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory {
            rustix::fs::unlinkat(self.place.dir(), name, AtFlags::empty()).map_err(failed)?;
        }
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.place.leave();
            self.place.root.remove_all(as_path(path))?;
            self.place.enter(&entry.path)?;
        }
        Ok(())
    }
}

/// Refuses what would steer an overlay file system.
fn check(entry: &Entry) -> Result<(), ApplyError> {
    if entry.kind == (EntryKind::CharDevice { major: 0, minor: 0 }) {
        return Err(ApplyError::WhiteoutDevice { path: shown(&entry.path) });
    }
    match entry.xattrs.keys().find(|name| place::is_overlays(name)) {
        None => Ok(()),
        Some(name) => Err(ApplyError::ReservedXattr {
            path: shown(&entry.path),
            name: String::from_utf8_lossy(name).into_owned(),
        }),
    }
}

/// Takes the attributes away that a directory had before and no longer has. What the system labels it with stays.
fn strip(root: &Root, entry: &Entry, path: &[u8]) -> Result<(), ApplyError> {
    for name in root.xattrs(as_path(path), Last::Keep)?.into_keys() {
        let bytes = name.as_encoded_bytes();
        if !place::is_overlays(bytes) && bytes != LABEL && !entry.xattrs.contains_key(bytes) {
            root.remove_xattr(as_path(path), &name, Last::Keep)?;
        }
    }
    Ok(())
}

fn owner(entry: &Entry, path: &[u8]) -> Result<(Uid, Gid), ApplyError> {
    // The largest number means "leave it" to the kernel.
    let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(ApplyError::Owner { path: shown(path), uid: entry.uid, gid: entry.gid }),
    }
}

/// A file system without such attributes, or a file that can't have any of a user's, goes without.
fn xattr_set(set: rustix::io::Result<()>, name: &[u8], path: &[u8]) -> Result<(), ApplyError> {
    match set {
        Err(errno) if errno == Errno::NOTSUP || errno == Errno::PERM && name.starts_with(b"user.") => {
            let (path, name) = (shown(path), String::from_utf8_lossy(name));
            tracing::warn!(path = %path.display(), %name, "an extended attribute of a layer can't be set");
            Ok(())
        }
        set => set.map_err(ApplyError::io("set an attribute", path)),
    }
}

/// The process's umask; all bits if it can't be told. Asking the kernel for it would change it.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}
