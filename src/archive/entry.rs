//! What an archive holds, whatever the format says it with.

use std::collections::BTreeMap;

/// A member of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Relative, without `.`, `..`, empty components or a trailing slash. Empty for the root itself.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds after them.
    pub mtime: (i64, u32),
    /// Logical size of a file, holes included. Zero for everything else.
    pub size: u64,
    /// Extended attributes by full name, as `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub uname: Vec<u8>,
    pub gname: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EntryKind {
    File,
    Dir,
    /// The target is what the link says, unchecked.
    Symlink {
        target: Vec<u8>,
    },
    /// The target is the path of another entry, as clean as an entry's path.
    Hardlink {
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

/// A run of bytes of a sparse file that the archive holds. What lies between runs is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

impl Extent {
    /// The first byte after it. Extents that a reader hands out don't overflow.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

impl Entry {
    /// An entry of this path and kind: root's, mode zero, of 1970, empty.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            xattrs: BTreeMap::new(),
            uname: Vec::new(),
            gname: Vec::new(),
        }
    }
}
