//! Entries out of a tar stream.

use std::fmt;
use std::io;
use std::io::Read;
use std::mem;

use super::ArchiveError;
use super::Entry;
use super::EntryKind;
use super::Extent;
use super::Limit;
use super::Limits;
use super::Unsafe;
use super::header;
use super::header::BLOCK;
use super::header::Block;
use super::header::Raw;
use super::pax;
use super::pax::Records;
use super::sparse;
use super::sparse::Sparse;

/// Bytes that are read from the source at once.
const BUFFER: usize = 256 << 10;

/// Bytes of records that count for all entries. Each entry costs the work of going through them.
const GLOBAL_BYTES: u64 = 64 << 10;

/// What a layer puts before the name of a file that it takes away.
const WHITEOUT: &[u8] = b".wh.";

/// What becomes of an entry's path that begins with a slash. One that is nothing but a slash is the root,
/// and the target of a hard link is always meant from there: kaniko writes both.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AbsolutePaths {
    /// It is an error: layers don't have them.
    #[default]
    Refuse,
    /// The slash goes, as with every tar program, and `..` leads no higher than the root, as under chroot: for
    /// archives that users made.
    MakeRelative,
}

/// Bytes of a file and where in it they stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk<'a> {
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Reads entries, and the data of the current one.
pub struct Reader<R> {
    source: Source<R>,
    limits: Limits,
    absolute: AbsolutePaths,
    /// Pax records that count for all entries that follow.
    global: Records,
    data: Data,
    entries: u64,
    /// Logical sizes of the files so far.
    logical: u64,
    header_offset: u64,
    spelling: Spelling,
    ended: bool,
}

/// How a header spells what an [`Entry`] has cleaned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Spelling {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// With all of its bits.
    pub(super) mode: u32,
}

/// What is left of the current entry's data.
#[derive(Default)]
struct Data {
    /// Logical size.
    size: u64,
    /// How far it was read, in logical bytes.
    position: u64,
    /// Stored bytes that are left.
    stored: u64,
    /// Zeros behind the stored bytes, up to the next block.
    padding: u64,
    extents: Option<Vec<Extent>>,
    /// The first extent that was not read to its end.
    extent: usize,
}

/// Headers that come before the one that they belong to.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
    bytes: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Reader<R> {
        Reader::with(inner, Limits::default(), AbsolutePaths::default())
    }

    pub fn with(inner: R, limits: Limits, absolute: AbsolutePaths) -> Reader<R> {
        Reader {
            source: Source::new(inner, limits.expanded_bytes),
            limits,
            absolute,
            global: Records::default(),
            data: Data::default(),
            entries: 0,
            logical: 0,
            header_offset: 0,
            spelling: Spelling::default(),
            ended: false,
        }
    }

    /// The next entry; what was not read of the current one is passed over. `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let data = mem::take(&mut self.data);
        self.source.skip(data.stored + data.padding)?;
        self.header_offset = self.source.offset;
        let mut ahead = Ahead::default();
        loop {
            let offset = self.source.offset;
            let Some(block) = self.next_header()? else {
                self.ended = true;
                return Ok(None);
            };
            let raw = Raw::parse(&block, offset)?;
            match raw.flag() {
                b'x' | b'X' => {
                    let text = self.extended(&raw, &mut ahead)?;
                    ahead.records.add(&text).map_err(|reason| raw.wrong(reason))?;
                }
                b'g' => {
                    let text = self.extended(&raw, &mut Ahead::default())?;
                    self.global.add(&text).map_err(|reason| raw.wrong(reason))?;
                    let max = self.limits.header_bytes.min(GLOBAL_BYTES);
                    self.within(Limit::HeaderBytes, self.global.bytes(), max)?;
                }
                b'L' => ahead.name = Some(until_nul(self.extended(&raw, &mut ahead)?)),
                b'K' => ahead.link = Some(until_nul(self.extended(&raw, &mut ahead)?)),
                // The label of a volume, which is no entry.
                b'V' => {
                    let size = raw.size()?;
                    self.source.skip(padded(size).ok_or_else(|| raw.wrong("the size is too large"))?)?;
                }
                _ => return self.entry(&raw, ahead).map(Some),
            }
        }
    }

    /// How the current entry's header spells it.
    pub(super) fn spelling(&self) -> &Spelling {
        &self.spelling
    }

    /// The next bytes of the current file that the archive holds, without copying; holes of a sparse
    /// file are left out. `None` at the file's end.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk<'_>>, ArchiveError> {
        let data = &mut self.data;
        if data.stored == 0 {
            data.position = data.size;
            return Ok(None);
        }
        let mut most = data.stored;
        if let Some(extent) = data.extents.as_ref().and_then(|extents| extents.get(data.extent)) {
            data.position = data.position.max(extent.offset);
            most = extent.end() - data.position;
        }
        let bytes = self.source.take(usize::try_from(most).unwrap_or(usize::MAX))?;
        let offset = data.position;
        data.passed(bytes.len() as u64);
        Ok(Some(Chunk { offset, bytes }))
    }

    /// The runs that the archive holds of the current file, if it is sparse.
    pub fn extents(&self) -> Option<&[Extent]> {
        self.data.extents.as_deref()
    }

    /// Position in the uncompressed stream: after `next_entry`, where the entry's data begin.
    pub fn offset(&self) -> u64 {
        self.source.offset
    }

    /// Where the current entry's first header begins.
    pub fn header_offset(&self) -> u64 {
        self.header_offset
    }

    /// Reads whatever follows up to the end of the stream, and gives the source back.
    pub fn finish(mut self) -> Result<R, ArchiveError> {
        loop {
            let left = self.source.end - self.source.start;
            self.source.consume(left);
            if !self.source.fill(1)? {
                return Ok(self.source.inner);
            }
        }
    }

    /// The next block, if it isn't the end: two blocks of zeros, or where the stream ends.
    fn next_header(&mut self) -> Result<Option<Block>, ArchiveError> {
        let Some(block) = self.source.block()? else { return Ok(None) };
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        let offset = self.source.offset;
        match self.source.block()? {
            Some(block) if block.iter().any(|&b| b != 0) => {
                Err(ArchiveError::Header { offset, reason: "it follows a lone block of zeros" })
            }
            _ => Ok(None),
        }
    }

    /// The data of a header that belongs to the entry after it.
    fn extended(&mut self, raw: &Raw<'_>, ahead: &mut Ahead) -> Result<Vec<u8>, ArchiveError> {
        let size = raw.size()?;
        ahead.bytes = ahead.bytes.saturating_add(size).saturating_add(BLOCK as u64);
        self.within(Limit::HeaderBytes, ahead.bytes, self.limits.header_bytes)?;
        let text = self.source.vector(size as usize)?;
        self.source.skip(padding(size))?;
        Ok(text)
    }

    fn entry(&mut self, raw: &Raw<'_>, ahead: Ahead) -> Result<Entry, ArchiveError> {
        self.entries += 1;
        self.within(Limit::Entries, self.entries, self.limits.entries)?;
        let records = ahead.records.over(&self.global);
        let sparse = sparse::noted(&records).map_err(|reason| raw.wrong(reason))?;
        let text = |key: &[u8]| records.get(key).map(<[u8]>::to_vec);
        let number = |key: &[u8]| match records.get(key) {
            Some(value) => {
                pax::decimal(value).map(Some).ok_or_else(|| raw.wrong("a record's value is no number"))
            }
            None => Ok(None),
        };
        let sparse_name = if sparse == Sparse::No { None } else { text(b"GNU.sparse.name") };
        let name = ahead.name.or(sparse_name).or_else(|| text(pax::PATH)).unwrap_or_else(|| raw.name());
        let link = ahead.link.or_else(|| text(pax::LINK)).unwrap_or_else(|| raw.link());
        self.spelling.name.clone_from(&name);
        self.spelling.link.clone_from(&link);
        self.spelling.mode = raw.all_of_mode()?;
        let mut stored = 0;
        let kind = match raw.flag() {
            b'0' | 0 | b'7' | b'S' => {
                stored = number(pax::SIZE)?.map_or_else(|| raw.size(), Ok)?;
                // V7 had no other way to say that it is a directory.
                if name.ends_with(b"/") { EntryKind::Dir } else { EntryKind::File }
            }
            b'1' => EntryKind::Hardlink { target: self.clean(&link, AbsolutePaths::MakeRelative)? },
            b'2' => EntryKind::Symlink { target: self.symlink_target(raw, link)? },
            b'3' => raw.device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => raw.device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            // A directory with the names that it had, for incremental backups.
            b'D' => {
                stored = number(pax::SIZE)?.map_or_else(|| raw.size(), Ok)?;
                EntryKind::Dir
            }
            flag => {
                return Err(ArchiveError::UnsupportedKind { path: name, flag, offset: self.header_offset });
            }
        };
        let path = self.clean(&name, self.absolute)?;
        if path.is_empty() && kind != EntryKind::Dir
            || matches!(&kind, EntryKind::Hardlink { target } if target.is_empty())
        {
            return Err(ArchiveError::UnsafePath { path: name, reason: Unsafe::Root });
        }
        let padding = padding(stored);
        stored.checked_add(padding).ok_or_else(|| raw.wrong("the size is too large"))?;
        self.data = Data { size: stored, stored, padding, ..Data::default() };
        if kind == EntryKind::File {
            self.read_runs(raw, sparse)?;
            self.logical = self.logical.saturating_add(self.data.size);
            self.within(Limit::ExpandedBytes, self.logical, self.limits.expanded_bytes)?;
        } else {
            self.data = Data { padding: stored + padding, ..Data::default() };
        }
        let mtime = match records.get(pax::MTIME) {
            Some(value) => pax::time(value).ok_or_else(|| raw.wrong("the time is no number"))?,
            None => (raw.mtime()?, 0),
        };
        Ok(Entry {
            path,
            mode: raw.mode()?,
            uid: number(pax::UID)?.map_or_else(|| raw.uid(), Ok)?,
            gid: number(pax::GID)?.map_or_else(|| raw.gid(), Ok)?,
            mtime,
            size: if kind == EntryKind::File { self.data.size } else { 0 },
            xattrs: records.xattrs(),
            uname: text(pax::UNAME).unwrap_or_else(|| raw.uname()),
            gname: text(pax::GNAME).unwrap_or_else(|| raw.gname()),
            kind,
        })
    }

    /// Reads the runs of a sparse file, wherever they are, into `self.data`.
    fn read_runs(&mut self, raw: &Raw<'_>, sparse: Sparse) -> Result<(), ArchiveError> {
        let (size, runs) = match sparse {
            Sparse::No if raw.flag() == b'S' => {
                let (size, mut runs, mut more) = raw.gnu_sparse()?;
                let mut room = self.limits.extents as u64;
                while more {
                    let block = self.source.block()?;
                    let block = block.ok_or(ArchiveError::Truncated { offset: self.source.offset })?;
                    let wrong = || raw.wrong("a sparse file's runs are no numbers");
                    let (next, again) = header::more_runs(&block).ok_or_else(wrong)?;
                    runs.extend(next);
                    more = again;
                    // Counted by the room in blocks, so that empty ones have an end too.
                    room = room.checked_sub(21).ok_or(ArchiveError::TooMuch {
                        limit: Limit::Extents,
                        max: self.limits.extents as u64,
                    })?;
                }
                (size, runs)
            }
            Sparse::No => return Ok(()),
            Sparse::Runs { size, runs } => (size, runs),
            Sparse::InData { size } => (size, self.runs_in_data(raw)?),
        };
        self.within(Limit::Extents, runs.len() as u64, self.limits.extents as u64)?;
        let extents = sparse::checked(runs, size, self.data.stored).map_err(|reason| raw.wrong(reason))?;
        self.data.size = size;
        self.data.extents = Some(extents);
        Ok(())
    }

    /// The runs in front of the data: their count, then offset and length of each, a number a line,
    /// padded to a block.
    fn runs_in_data(&mut self, raw: &Raw<'_>) -> Result<Vec<Extent>, ArchiveError> {
        let wrong = || raw.wrong("the runs before a sparse file's data");
        let (mut runs, mut numbers) = (Vec::new(), 0u64);
        let (mut count, mut offset, mut digits) = (None, None, Vec::new());
        loop {
            if self.data.stored < BLOCK as u64 {
                return Err(wrong());
            }
            let block = self.source.block()?;
            let block = block.ok_or(ArchiveError::Truncated { offset: self.source.offset })?;
            self.data.stored -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(wrong());
                    }
                    continue;
                }
                let number = pax::decimal(&digits).ok_or_else(wrong)?;
                digits.clear();
                match (count, offset.take()) {
                    (None, _) => {
                        self.within(Limit::Extents, number, self.limits.extents as u64)?;
                        count = Some(number);
                    }
                    (Some(_), None) => offset = Some(number),
                    (Some(_), Some(offset)) => runs.push(Extent { offset, length: number }),
                }
                numbers += 1;
                if count.is_some_and(|count| numbers == 1 + 2 * count) {
                    return Ok(runs);
                }
            }
        }
    }

    fn symlink_target(&self, raw: &Raw<'_>, target: Vec<u8>) -> Result<Vec<u8>, ArchiveError> {
        self.within(Limit::PathBytes, target.len() as u64, self.limits.path_bytes as u64)?;
        if target.is_empty() {
            return Err(raw.wrong("a symlink has no target"));
        }
        Ok(target)
    }

    /// A path without what is superfluous; an error if it could lead out.
    fn clean(&self, path: &[u8], absolute: AbsolutePaths) -> Result<Vec<u8>, ArchiveError> {
        let refuse = |reason| Err(ArchiveError::UnsafePath { path: path.to_vec(), reason });
        if path.contains(&0) {
            return refuse(Unsafe::Nul);
        }
        let is_root = path.iter().all(|&b| b == b'/');
        if path.starts_with(b"/") && !is_root && absolute == AbsolutePaths::Refuse {
            return refuse(Unsafe::Absolute);
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0_u64;
        for name in path.split(|&b| b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." if self.absolute == AbsolutePaths::Refuse => return refuse(Unsafe::ParentComponent),
                b".." => {
                    clean.truncate(clean.iter().rposition(|&b| b == b'/').unwrap_or(0));
                    depth -= u64::from(depth > 0);
                    continue;
                }
                _ => {}
            }
            // The name that counts of a whiteout is that of the file which it takes away.
            let file = name.strip_prefix(WHITEOUT).unwrap_or(name);
            self.within(Limit::NameBytes, file.len() as u64, self.limits.name_bytes as u64)?;
            depth += 1;
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
        }
        self.within(Limit::PathBytes, clean.len() as u64, self.limits.path_bytes as u64)?;
        self.within(Limit::Depth, depth, self.limits.depth as u64)?;
        Ok(clean)
    }

    fn within(&self, limit: Limit, value: u64, max: u64) -> Result<(), ArchiveError> {
        if value > max { Err(ArchiveError::TooMuch { limit, max }) } else { Ok(()) }
    }
}

impl Data {
    /// `count` stored bytes at `position` were handed out.
    fn passed(&mut self, count: u64) {
        self.position += count;
        self.stored -= count;
        if let Some(extents) = &self.extents
            && extents.get(self.extent).is_some_and(|extent| extent.end() == self.position)
        {
            self.extent += 1;
        }
    }

    /// Zeros between the position and the next stored byte, or the file's end.
    fn hole(&self) -> u64 {
        let next = match &self.extents {
            None => return 0,
            Some(extents) => extents.get(self.extent).map_or(self.size, |extent| extent.offset),
        };
        next.saturating_sub(self.position)
    }
}

impl<R: Read> Read for Reader<R> {
    /// The logical bytes of the current file, holes as zeros.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let hole = usize::try_from(self.data.hole()).unwrap_or(usize::MAX).min(buffer.len());
        if hole > 0 {
            buffer[..hole].fill(0);
            self.data.position += hole as u64;
            return Ok(hole);
        }
        if buffer.is_empty() || self.data.stored == 0 {
            return Ok(0);
        }
        let mut most = self.data.stored;
        if let Some(extent) = self.data.extents.as_ref().and_then(|all| all.get(self.data.extent)) {
            most = extent.end() - self.data.position;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = self.source.take(most)?;
        buffer[..bytes.len()].copy_from_slice(bytes);
        let count = bytes.len();
        self.data.passed(count as u64);
        Ok(count)
    }
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("offset", &self.source.offset)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

/// The stream, buffered, with the position in it.
struct Source<R> {
    inner: R,
    buffer: Box<[u8]>,
    /// What was read and not yet taken.
    start: usize,
    end: usize,
    /// Position of `start` in the stream.
    offset: u64,
    /// Bytes of the stream that are allowed.
    max: u64,
}

impl<R: Read> Source<R> {
    fn new(inner: R, max: u64) -> Source<R> {
        Source { inner, buffer: vec![0; BUFFER].into(), start: 0, end: 0, offset: 0, max }
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated { offset: self.offset + (self.end - self.start) as u64 }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Sees to it that `want` bytes, at most the buffer's size, are there. False if the stream ends.
    fn fill(&mut self, want: usize) -> Result<bool, ArchiveError> {
        if self.end - self.start >= want {
            return Ok(true);
        }
        if self.buffer.len() - self.start < want || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < want {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            if self.offset + (self.end - self.start) as u64 > self.max {
                return Err(ArchiveError::TooMuch { limit: Limit::ExpandedBytes, max: self.max });
            }
        }
        Ok(true)
    }

    /// The next block, or `None` where the stream ends before it.
    fn block(&mut self) -> Result<Option<Block>, ArchiveError> {
        if !self.fill(BLOCK)? {
            return if self.start == self.end { Ok(None) } else { Err(self.truncated()) };
        }
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.buffer[self.start..self.start + BLOCK]);
        self.consume(BLOCK);
        Ok(Some(block))
    }

    /// Between one and `most` bytes.
    fn take(&mut self, most: usize) -> Result<&[u8], ArchiveError> {
        if !self.fill(1)? {
            return Err(self.truncated());
        }
        let start = self.start;
        let count = most.min(self.end - start);
        self.consume(count);
        Ok(&self.buffer[start..start + count])
    }

    /// `size` bytes, which the caller has found to be not too many.
    fn vector(&mut self, size: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        while bytes.len() < size {
            let left = size - bytes.len();
            bytes.extend_from_slice(self.take(left)?);
        }
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        while count > 0 {
            count -= self.take(usize::try_from(count).unwrap_or(usize::MAX))?.len() as u64;
        }
        Ok(())
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|&b| b == 0) {
        text.truncate(end);
    }
    text
}

/// Zeros behind `size` bytes up to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn padded(size: u64) -> Option<u64> {
    size.checked_add(padding(size))
}
