//! What a file is, apart from its bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;

use rustix::fs::FileType;
use rustix::fs::Stat;
use rustix::fs::major;
use rustix::fs::minor;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

impl Kind {
    /// An overlay file system hides what is below with such a device.
    pub const WHITEOUT: Kind = Kind::CharDevice { major: 0, minor: 0 };
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Seconds since 1970 (earlier ones are negative) and nanoseconds after them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct FileTime {
    pub seconds: i64,
    pub nanos: u32,
}

impl From<(i64, u32)> for FileTime {
    fn from((seconds, nanos): (i64, u32)) -> FileTime {
        FileTime { seconds, nanos }
    }
}

/// What `lstat` says of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky: 07777.
    pub mode: u32,
    pub owner: Owner,
    /// Bytes of a file's content or of a symlink's target.
    pub size: u64,
    /// Bytes that are allocated for it.
    pub allocated: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
    pub nlink: u64,
    /// Equal `(device, inode)` of two names: one file with two hard links.
    pub device: u64,
    pub inode: u64,
}

impl Meta {
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    pub fn is_symlink(&self) -> bool {
        self.kind == Kind::Symlink
    }

    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::WHITEOUT
    }
}

impl From<Stat> for Meta {
    // The types of these fields differ between architectures.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "needed on some architectures")]
    fn from(stat: Stat) -> Meta {
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice { major: device.0, minor: device.1 },
            FileType::BlockDevice => Kind::BlockDevice { major: device.0, minor: device.1 },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            size: stat.st_size as u64,
            allocated: stat.st_blocks as u64 * 512,
            mtime: FileTime { seconds: stat.st_mtime as i64, nanos: stat.st_mtime_nsec as u32 },
            ctime: FileTime { seconds: stat.st_ctime as i64, nanos: stat.st_ctime_nsec as u32 },
            nlink: u64::from(stat.st_nlink),
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }
}

/// What to change of a file; `None` leaves it. Applied in an order in which no step undoes another.
#[derive(Clone, Copy, Default, Debug)]
pub struct MetaChange<'a> {
    pub owner: Option<Owner>,
    /// 07777. Ignored for a symlink, which has none.
    pub mode: Option<u32>,
    /// These are set; others that the file has stay.
    pub xattrs: Option<&'a Xattrs>,
    /// Of modification, and of access as well.
    pub mtime: Option<FileTime>,
}

impl<'a> MetaChange<'a> {
    /// Makes a file what `meta` and `xattrs` say of another one.
    pub fn like(meta: &Meta, xattrs: &'a Xattrs) -> MetaChange<'a> {
        MetaChange {
            owner: Some(meta.owner),
            mode: Some(meta.mode),
            xattrs: Some(xattrs),
            mtime: Some(meta.mtime),
        }
    }
}
