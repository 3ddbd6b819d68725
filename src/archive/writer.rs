//! Entries into a tar stream.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::Read;
use std::io::Write;

use super::ArchiveError;
use super::Entry;
use super::EntryKind;
use super::header::BLOCK;
use super::header::Fields;
use super::header::fits;
use super::pax;
use super::reader::Spelling;

/// Bytes that are copied at once.
const BUFFER: usize = 64 << 10;

/// Writes entries: as ustar if that holds all of an entry, with a pax header if not, which then holds
/// what ustar's fields can't. This is what Go's `archive/tar` does when asked for pax.
pub struct Writer<W> {
    inner: W,
    buffer: Box<[u8]>,
    written: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(inner: W) -> Writer<W> {
        Writer { inner, buffer: vec![0; BUFFER].into(), written: 0 }
    }

    /// Appends an entry. `data` gives a file's `entry.size` bytes and is not read for other kinds. After
    /// an error the archive is unusable.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> Result<(), ArchiveError> {
        self.append_as(entry, None, data)
    }

    /// As [`Writer::append`], spelled as it was where it comes from.
    pub(super) fn append_as(
        &mut self,
        entry: &Entry,
        spelling: Option<&Spelling>,
        mut data: impl Read,
    ) -> Result<(), ArchiveError> {
        let header = encode(entry, spelling)?;
        self.put(&header)?;
        if entry.kind != EntryKind::File {
            return Ok(());
        }
        let mut left = entry.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match data.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(wrong_size(entry, entry.size - left)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.inner.write_all(&self.buffer[..count])?;
            self.written += count as u64;
            left -= count as u64;
        }
        // A file that grew while it was read would be cut without a word.
        if data.take(1).read_to_end(&mut Vec::new())? > 0 {
            return Err(wrong_size(entry, entry.size + 1));
        }
        let padding = (entry.size.wrapping_neg() % BLOCK as u64) as usize;
        self.put(&[0; BLOCK][..padding])
    }

    /// Position in the stream.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// Writes the archive's end, and gives the sink back, unflushed.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.inner)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.inner.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn wrong_size(entry: &Entry, actual: u64) -> ArchiveError {
    ArchiveError::WrongSize { path: entry.path.clone(), expected: entry.size, actual }
}

/// All blocks that come before an entry's data.
fn encode(entry: &Entry, spelling: Option<&Spelling>) -> Result<Vec<u8>, ArchiveError> {
    let unrepresentable = |field| ArchiveError::Unrepresentable { path: entry.path.clone(), field };
    let mut name = spelling.map_or_else(|| entry.path.clone(), |spelling| spelling.name.clone());
    let mode = spelling.map_or(entry.mode, |spelling| spelling.mode);
    if spelling.is_some() {
        // It was read so, and can be read again.
    } else if entry.kind == EntryKind::Dir {
        if name.is_empty() {
            name.push(b'.');
        }
        name.push(b'/');
    } else if name.is_empty() || name.ends_with(b"/") {
        return Err(unrepresentable("path"));
    }
    let (flag, link, device): (u8, &[u8], _) = match &entry.kind {
        EntryKind::File => (b'0', &[], (0, 0)),
        EntryKind::Hardlink { target } => {
            (b'1', spelling.map_or(target.as_slice(), |spelling| &spelling.link), (0, 0))
        }
        EntryKind::Symlink { target } => (b'2', target, (0, 0)),
        EntryKind::CharDevice { major, minor } => (b'3', &[], (*major, *minor)),
        EntryKind::BlockDevice { major, minor } => (b'4', &[], (*major, *minor)),
        EntryKind::Dir => (b'5', &[], (0, 0)),
        EntryKind::Fifo => (b'6', &[], (0, 0)),
    };
    let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
    let (seconds, nanos) = entry.mtime;
    // No record can hold these.
    if entry.mode > 0o7777 || !fits(mode.into(), 8) {
        return Err(unrepresentable("mode"));
    }
    if !fits(device.0.into(), 8) || !fits(device.1.into(), 8) {
        return Err(unrepresentable("device number"));
    }

    let mut records = BTreeMap::new();
    let mut needed = false;
    let split = split(&name);
    if !is_ascii(&name) || name.len() > 100 {
        // A name that ustar can split is noted too, but by itself is no reason for a pax header.
        records.insert(pax::PATH.to_vec(), name.clone());
        needed |= split.is_none();
    }
    let texts: [(&[u8], &[u8], usize); 3] =
        [(pax::LINK, link, 100), (pax::UNAME, &entry.uname, 32), (pax::GNAME, &entry.gname, 32)];
    for (key, value, room) in texts {
        if !is_ascii(value) || value.len() > room {
            records.insert(key.to_vec(), value.to_vec());
            needed = true;
        }
    }
    let numbers: [(&[u8], u64, usize); 3] =
        [(pax::UID, entry.uid, 8), (pax::GID, entry.gid, 8), (pax::SIZE, size, 12)];
    for (key, value, room) in numbers {
        if !fits(value, room) {
            records.insert(key.to_vec(), value.to_string().into_bytes());
            needed = true;
        }
    }
    if nanos != 0 || !u64::try_from(seconds).is_ok_and(|seconds| fits(seconds, 12)) {
        records.insert(pax::MTIME.to_vec(), pax::format_time(entry.mtime).into_bytes());
        needed = true;
    }
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return Err(unrepresentable("name of an extended attribute"));
        }
        records.insert([pax::XATTR, name].concat(), value.clone());
        needed = true;
    }
    for key in [pax::PATH, pax::LINK, pax::UNAME, pax::GNAME] {
        if records.get(key).is_some_and(|value| value.contains(&0)) {
            return Err(unrepresentable("text, which contains NUL,"));
        }
    }

    let mut out = Vec::with_capacity(BLOCK);
    let ends_in_slash = name.ends_with(b"/");
    let ascii = |text: &[u8]| if needed { to_ascii(text) } else { text.to_vec() };
    let (name, link, uname, gname) = (ascii(&name), ascii(link), ascii(&entry.uname), ascii(&entry.gname));
    let mut fields = Fields {
        name: &name,
        mode,
        uid: entry.uid,
        gid: entry.gid,
        size,
        mtime: seconds,
        flag,
        link: &link,
        uname: &uname,
        gname: &gname,
        device: Some(device),
        ..Fields::default()
    };
    if needed {
        push_extended(&mut out, entry, ends_in_slash, &records);
    } else if let Some(at) = split {
        (fields.prefix, fields.name) = (&name[..at], &name[at + 1..]);
    }
    out.extend_from_slice(&fields.block());
    Ok(out)
}

/// The pax header: a block of its own, whose name nobody needs, and the records.
fn push_extended(
    out: &mut Vec<u8>,
    entry: &Entry,
    ends_in_slash: bool,
    records: &BTreeMap<Vec<u8>, Vec<u8>>,
) {
    let mut text = Vec::new();
    for (key, value) in records {
        pax::push(&mut text, key, value);
    }
    // Of a name that ends in a slash all counts as the place.
    let (place, name) = match entry.path.iter().rposition(|&b| b == b'/') {
        _ if ends_in_slash => (entry.path.as_slice(), &[][..]),
        Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
        None => (&[][..], entry.path.as_slice()),
    };
    let mut parts = vec![place, b"PaxHeaders.0", name];
    parts.retain(|part| !part.is_empty());
    let mut name = to_ascii(&parts.join(&b'/'));
    name.truncate(100);
    while name.ends_with(b"/") {
        name.pop();
    }
    let fields = Fields { name: &name, size: text.len() as u64, flag: b'x', ..Fields::default() };
    out.extend_from_slice(&fields.block());
    out.extend_from_slice(&text);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Where ustar splits a name of more than 100 bytes into prefix and name.
fn split(name: &[u8]) -> Option<usize> {
    if name.len() <= 100 || !is_ascii(name) {
        return None;
    }
    let mut most = name.len();
    if most > 156 {
        most = 156;
    } else if name.ends_with(b"/") {
        most -= 1;
    }
    let at = name[..most].iter().rposition(|&b| b == b'/')?;
    let rest = name.len() - at - 1;
    (at > 0 && at <= 155 && rest > 0 && rest <= 100).then_some(at)
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|&b| b != 0 && b < 0x80)
}

fn to_ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|&b| b != 0 && b < 0x80).collect()
}

impl<W> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("written", &self.written).finish_non_exhaustive()
    }
}
