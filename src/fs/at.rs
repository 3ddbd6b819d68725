//! System calls on an open directory and a name in it, or on an open file. No path is resolved here but by
//! [`open_in_root`].

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RawDir;
use rustix::fs::ResolveFlags;
use rustix::fs::StatxFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::Uid;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::io::Result;

use super::FileTime;
use super::Kind;
use super::Meta;
use super::MetaChange;
use super::Owner;
use super::Xattrs;

/// Bytes of directory entries read at a time.
const LIST_BYTES: usize = 32 << 10;
/// The kernel's limit for a list of names, and for a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// Opens what `path` is in `root`. The kernel gives up a resolution that passes `..` while anything is
/// renamed or mounted anywhere in the system; it is then tried again, in the end by turns with others.
pub(super) fn open_in_root(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 10_000 => {
                tries += 1;
                if tries % 16 == 0 {
                    std::thread::yield_now();
                }
            }
            other => return other,
        }
    }
}

/// The path under which the kernel knows an open file: for calls that take no descriptor of a file that was
/// opened only to name it.
pub(super) fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a file that was opened only to name it.
pub(super) fn reopen(fd: impl AsFd, flags: OFlags) -> Result<File> {
    rustix::fs::open(by_descriptor(fd.as_fd()), flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .map(File::from)
}

/// Opens an entry only to name it.
pub(super) fn open_entry(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory so that it can be listed.
pub(super) fn open_dir(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(super) fn stat(fd: impl AsFd) -> Result<Meta> {
    rustix::fs::fstat(fd).map(Meta::from)
}

/// When the inode was made, if the file system knows.
pub(super) fn birth(fd: impl AsFd) -> Result<Option<FileTime>> {
    let found = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
    let known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(known.then_some(FileTime { seconds: found.stx_btime.tv_sec, nanos: found.stx_btime.tv_nsec }))
}

pub(super) fn stat_entry(dir: impl AsFd, name: &OsStr) -> Result<Meta> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(Meta::from)
}

/// `name` may be empty, for `dir` itself.
pub(super) fn read_link(dir: impl AsFd, name: &OsStr) -> Result<PathBuf> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

/// Opens a regular file to read it, without opening anything else.
pub(super) fn open_file(named: &OwnedFd) -> Result<Option<File>> {
    match stat(named)?.kind {
        Kind::File => reopen(named, OFlags::RDONLY).map(Some),
        _ => Ok(None),
    }
}

/// Names in a directory that was opened to be listed, in its own order.
pub(super) fn list(dir: impl AsFd) -> Result<Vec<(OsString, FileType)>> {
    let mut buffer = vec![MaybeUninit::uninit(); LIST_BYTES];
    let mut raw = RawDir::new(dir.as_fd(), &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

/// Makes a regular file with exactly this mode.
pub(super) fn create_file(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(file.into())
}

/// Makes a directory with exactly this mode and opens it.
pub(super) fn create_dir(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<OwnedFd> {
    rustix::fs::mkdirat(dir.as_fd(), name, Mode::from_raw_mode(0o700))?;
    let made = open_dir(dir, name)?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(made)
}

/// Makes what is neither a directory nor a symlink, with exactly this mode.
pub(super) fn mknod(dir: impl AsFd, name: &OsStr, kind: Kind, mode: u32) -> Result<()> {
    let (file_type, device) = match kind {
        Kind::File => (FileType::RegularFile, 0),
        Kind::CharDevice { major, minor } => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Kind::BlockDevice { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        Kind::Fifo => (FileType::Fifo, 0),
        Kind::Socket => (FileType::Socket, 0),
        Kind::Directory | Kind::Symlink => return Err(Errno::INVAL),
    };
    rustix::fs::mknodat(dir.as_fd(), name, file_type, Mode::from_raw_mode(0o600), device)?;
    let change = MetaChange { mode: Some(mode), ..MetaChange::default() };
    set_meta(&open_entry(dir, name)?, &change)
}

/// Applies a change to a file, which may have been opened only to name it.
pub(super) fn set_meta(fd: impl AsFd, change: &MetaChange<'_>) -> Result<()> {
    // A change of owner clears set-ID bits and capabilities, so it comes first. The times come last.
    if let Some(owner) = change.owner {
        set_owner(&fd, owner)?;
    }
    if let Some(mode) = change.mode {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match rustix::fs::fchmod(&fd, mode) {
            // It was opened only to name it. A link's mode can't be set, and the caller may not know that it is one.
            Err(Errno::BADF) if stat(&fd)?.kind == Kind::Symlink => {}
            Err(Errno::BADF) => rustix::fs::chmod(by_descriptor(fd.as_fd()), mode)?,
            other => other?,
        }
    }
    for (name, value) in change.xattrs.into_iter().flatten() {
        set_xattr(&fd, name, value)?;
    }
    if let Some(time) = change.mtime {
        let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn set_owner(fd: impl AsFd, owner: Owner) -> Result<()> {
    // All ones would mean "leave it".
    if owner.uid == u32::MAX || owner.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

pub(super) fn set_xattr(fd: impl AsFd, name: &OsStr, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(by_descriptor(fd.as_fd()), name, value, XattrFlags::empty())
}

pub(super) fn remove_xattr(fd: impl AsFd, name: &OsStr) -> Result<()> {
    rustix::fs::removexattr(by_descriptor(fd.as_fd()), name)
}

/// None on a file system that has no attributes of that kind, too.
pub(super) fn xattr(fd: impl AsFd, name: &OsStr) -> Result<Option<Vec<u8>>> {
    xattr_at(&by_descriptor(fd.as_fd()), name)
}

fn xattr_at(path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>> {
    match sized(|buffer| rustix::fs::getxattr(path, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn xattrs(fd: impl AsFd) -> Result<Xattrs> {
    let path = by_descriptor(fd.as_fd());
    let names = match sized(|buffer| rustix::fs::listxattr(&path, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        other => other?,
    };
    let mut all = Xattrs::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        // Gone since the listing.
        if let Some(value) = xattr_at(&path, name)? {
            all.insert(name.to_owned(), value);
        }
    }
    Ok(all)
}

/// Most answers are short; the limit is known.
fn sized(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut short = [0; 512];
    match call(&mut short) {
        Ok(length) => Ok(short[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut long = vec![0; XATTR_BYTES];
            let length = call(&mut long)?;
            long.truncate(length);
            Ok(long)
        }
        Err(error) => Err(error),
    }
}
