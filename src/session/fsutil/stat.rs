//! [`FileStat`]: an entry of a tree, and how it stands on the wire.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;

use super::TransferError;
use crate::fs::FileTime;
use crate::fs::Kind;
use crate::fs::Meta;
use crate::fs::Owner;
use crate::fs::Xattrs;
use crate::proto::fsutil;

/// Bits of Go's `FileMode` besides the permissions.
mod mode {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const FIFO: u32 = 1 << 25;
    pub(super) const SOCKET: u32 = 1 << 24;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
    pub(super) const IRREGULAR: u32 = 1 << 19;
    pub(super) const PERMISSIONS: u32 = 0o777;
}

const NANOS: i64 = 1_000_000_000;

/// An entry of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// Clean and relative.
    pub path: Vec<u8>,
    pub kind: FileKind,
    /// 07777.
    pub mode: u32,
    pub owner: Owner,
    /// Of a file; 0 for a hard link.
    pub size: u64,
    pub mtime: FileTime,
    pub xattrs: Xattrs,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileKind {
    File,
    Directory,
    /// The target is what the link says, unchecked.
    Symlink {
        target: Vec<u8>,
    },
    /// The target is the path of a file that came before.
    HardLink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

impl FileStat {
    /// An entry of root's, of 1970, empty.
    pub fn new(path: impl Into<Vec<u8>>, kind: FileKind, mode: u32) -> FileStat {
        FileStat {
            path: path.into(),
            kind,
            mode,
            owner: Owner { uid: 0, gid: 0 },
            size: 0,
            mtime: FileTime::default(),
            xattrs: Xattrs::new(),
        }
    }

    /// An entry for a file on disk. A socket is a file without bytes: it can't be sent.
    pub fn of(path: impl Into<Vec<u8>>, meta: &Meta, symlink: Option<&Path>, xattrs: Xattrs) -> FileStat {
        let kind = match meta.kind {
            Kind::File | Kind::Socket => FileKind::File,
            Kind::Directory => FileKind::Directory,
            Kind::Symlink => {
                let target = symlink.map(|target| target.as_os_str().as_bytes().to_vec());
                FileKind::Symlink { target: target.unwrap_or_default() }
            }
            Kind::CharDevice { major, minor } => FileKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => FileKind::BlockDevice { major, minor },
            Kind::Fifo => FileKind::Fifo,
        };
        FileStat {
            path: path.into(),
            kind,
            mode: meta.mode,
            owner: meta.owner,
            size: if meta.is_file() { meta.size } else { 0 },
            mtime: meta.mtime,
            xattrs,
        }
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Whether its bytes can be asked for.
    pub fn has_data(&self) -> bool {
        self.kind == FileKind::File
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub fn encode(&self) -> fsutil::Stat {
        let mut bits = self.mode & mode::PERMISSIONS;
        for (unix, go) in [(0o4000, mode::SETUID), (0o2000, mode::SETGID), (0o1000, mode::STICKY)] {
            if self.mode & unix != 0 {
                bits |= go;
            }
        }
        let (mut link, mut device, mut size) = (Bytes::new(), (0, 0), self.size);
        match &self.kind {
            FileKind::File => {}
            FileKind::Directory => bits |= mode::DIR,
            FileKind::Symlink { target } => {
                bits |= mode::SYMLINK;
                link = Bytes::copy_from_slice(target);
                size = target.len() as u64;
            }
            FileKind::HardLink { target } => {
                link = Bytes::copy_from_slice(target);
                size = 0;
            }
            FileKind::CharDevice { major, minor } => {
                bits |= mode::DEVICE | mode::CHAR_DEVICE;
                device = (*major, *minor);
            }
            FileKind::BlockDevice { major, minor } => {
                bits |= mode::DEVICE;
                device = (*major, *minor);
            }
            FileKind::Fifo => bits |= mode::FIFO,
        }
        let xattrs = self
            .xattrs
            .iter()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), Bytes::copy_from_slice(value)));
        fsutil::Stat {
            path: Bytes::copy_from_slice(&self.path),
            mode: bits,
            uid: self.owner.uid,
            gid: self.owner.gid,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            mod_time: self.mtime.seconds.saturating_mul(NANOS).saturating_add(i64::from(self.mtime.nanos)),
            linkname: link,
            devmajor: i64::from(device.0),
            devminor: i64::from(device.1),
            xattrs: xattrs.collect::<BTreeMap<_, _>>(),
        }
    }

    pub fn decode(stat: fsutil::Stat) -> Result<FileStat, TransferError> {
        let invalid =
            |reason| TransferError::Path { path: String::from_utf8_lossy(&stat.path).into_owned(), reason };
        let device = || {
            let number = |n: i64| u32::try_from(n).map_err(|_| invalid("a device number is out of range"));
            Ok::<_, TransferError>((number(stat.devmajor)?, number(stat.devminor)?))
        };
        let kinds = mode::DIR | mode::SYMLINK | mode::DEVICE | mode::FIFO | mode::SOCKET | mode::IRREGULAR;
        let target = stat.linkname.to_vec();
        let kind = match stat.mode & kinds {
            0 if target.is_empty() => FileKind::File,
            0 => FileKind::HardLink { target },
            mode::DIR => FileKind::Directory,
            mode::SYMLINK if target.is_empty() => return Err(invalid("a symlink has no target")),
            mode::SYMLINK => FileKind::Symlink { target },
            mode::DEVICE if stat.mode & mode::CHAR_DEVICE != 0 => {
                let (major, minor) = device()?;
                FileKind::CharDevice { major, minor }
            }
            mode::DEVICE => {
                let (major, minor) = device()?;
                FileKind::BlockDevice { major, minor }
            }
            mode::FIFO => FileKind::Fifo,
            _ => return Err(invalid("its mode is that of no file")),
        };
        let mut bits = stat.mode & mode::PERMISSIONS;
        for (unix, go) in [(0o4000, mode::SETUID), (0o2000, mode::SETGID), (0o1000, mode::STICKY)] {
            if stat.mode & go != 0 {
                bits |= unix;
            }
        }
        let size = u64::try_from(stat.size).map_err(|_| invalid("its size is negative"))?;
        let size = if kind == FileKind::File { size } else { 0 };
        // In 0..NANOS, so it fits.
        let nanos = u32::try_from(stat.mod_time.rem_euclid(NANOS)).unwrap_or_default();
        Ok(FileStat {
            kind,
            mode: bits,
            owner: Owner { uid: stat.uid, gid: stat.gid },
            size,
            mtime: FileTime { seconds: stat.mod_time.div_euclid(NANOS), nanos },
            xattrs: stat.xattrs.iter().map(|(k, v)| (OsString::from(k), v.to_vec())).collect(),
            path: stat.path.into(),
        })
    }
}
