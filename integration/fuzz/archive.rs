//! The reader and the writer of archives.
//!
//! # Statements
//!
//! - However the bytes come and however they are taken, the entries and their data are the same, and so is the error.
//! - A path leads nowhere but down, and no limit is passed.
//! - The data of a file are where the reader says that they are.
//! - What is written of entries is read as the same entries.
//! - With its times cut off, an archive has the same entries; cut again it stays as it is.

use std::io;
use std::io::Read;

use thunk::archive::AbsolutePaths;
use thunk::archive::ArchiveError;
use thunk::archive::Entry;
use thunk::archive::EntryKind;
use thunk::archive::Extent;
use thunk::archive::Limits;
use thunk::archive::Reader;
use thunk::archive::Writer;
use thunk::archive::clamp_times;

use crate::Target;
use crate::members;
use crate::samples;

pub(crate) const TARGET: Target =
    Target { name: "archive", run, mutate: members::mutate, seeds: samples::archives };

const LIMITS: Limits = Limits {
    entries: 64,
    path_bytes: 400,
    name_bytes: 150,
    depth: 8,
    header_bytes: 16 << 10,
    extents: 64,
    expanded_bytes: 256 << 10,
};

/// No time of an archive that is cut is later.
const EPOCH: i64 = 1_000_000_000;

/// An entry, and what the reader says of its data.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    entry: Entry,
    offset: u64,
    header_offset: u64,
    extents: Option<Vec<Extent>>,
    bytes: Vec<u8>,
}

fn run(data: &[u8]) {
    let (seen, error) = all(reader(data, AbsolutePaths::Refuse), by_chunks);
    let slowly = all(reader(Drops { left: data, next: 1 }, AbsolutePaths::Refuse), by_bytes);
    assert_eq!((&seen, &error), (&slowly.0, &slowly.1));
    let (passed, same) = all(reader(data, AbsolutePaths::Refuse), |_| Ok(Vec::new()));
    assert_eq!(error, same);
    assert!(seen.iter().zip(&passed).all(|(one, other)| one.entry == other.entry));

    assert!(seen.iter().map(|seen| seen.entry.size).sum::<u64>() <= LIMITS.expanded_bytes);
    assert!(passed.len() as u64 <= LIMITS.entries);
    seen.iter().for_each(|seen| check(seen, data));
    written(&seen);
    if error.is_none() {
        clamped(data, &seen);
    }
    let (relative, _) = all(reader(data, AbsolutePaths::MakeRelative), by_chunks);
    assert!(relative.len() >= seen.len());
    relative.iter().for_each(|seen| check(seen, data));
}

fn reader<R: Read>(source: R, absolute: AbsolutePaths) -> Reader<R> {
    Reader::with(source, LIMITS, absolute)
}

/// All entries up to the end or an error, which is told in words.
fn all<R: Read>(
    mut reader: Reader<R>,
    take: impl Fn(&mut Reader<R>) -> Result<Vec<u8>, ArchiveError>,
) -> (Vec<Seen>, Option<String>) {
    let mut all = Vec::new();
    let mut next = || -> Result<Option<Seen>, ArchiveError> {
        let Some(entry) = reader.next_entry()? else { return Ok(None) };
        let (offset, header_offset) = (reader.offset(), reader.header_offset());
        let extents = reader.extents().map(<[Extent]>::to_vec);
        let bytes = take(&mut reader)?;
        Ok(Some(Seen { entry, offset, header_offset, extents, bytes }))
    };
    loop {
        match next() {
            Ok(Some(seen)) => all.push(seen),
            Ok(None) => return (all, None),
            Err(error) => return (all, Some(error.to_string())),
        }
    }
}

/// What the archive holds of a file, at its places.
fn by_chunks<R: Read>(reader: &mut Reader<R>) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    let extents = reader.extents().map(<[Extent]>::to_vec);
    while let Some(chunk) = reader.next_chunk()? {
        let (start, end) = (chunk.offset, chunk.offset + chunk.bytes.len() as u64);
        assert!(!chunk.bytes.is_empty() && start >= bytes.len() as u64);
        if let Some(extents) = &extents {
            assert!(extents.iter().any(|extent| extent.offset <= start && end <= extent.end()));
        }
        bytes.resize(start as usize, 0);
        bytes.extend_from_slice(chunk.bytes);
    }
    Ok(bytes)
}

/// A file as it would be read, a few bytes at a time. A hole at its end is left out.
fn by_bytes<R: Read>(reader: &mut Reader<R>) -> Result<Vec<u8>, ArchiveError> {
    let end = reader.extents().map(|extents| extents.last().map_or(0, Extent::end));
    let (mut bytes, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        let count = reader.read(&mut buffer[..1 + bytes.len() % 1000])?;
        if count == 0 {
            bytes.truncate(end.unwrap_or(u64::MAX) as usize);
            return Ok(bytes);
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

fn check(seen: &Seen, data: &[u8]) {
    let Entry { path, kind, size, mode, mtime, .. } = &seen.entry;
    assert!(path.len() <= LIMITS.path_bytes && *mode <= 0o7777 && mtime.1 < 1_000_000_000);
    if path.is_empty() {
        assert_eq!(*kind, EntryKind::Dir);
    } else {
        assert_clean(path);
    }
    match kind {
        EntryKind::Hardlink { target } => assert_clean(target),
        EntryKind::Symlink { target } => assert!(!target.is_empty() && target.len() <= LIMITS.path_bytes),
        _ => {}
    }
    assert!(seen.header_offset < seen.offset && seen.header_offset.is_multiple_of(512));
    if *kind != EntryKind::File {
        assert!(*size == 0 && seen.bytes.is_empty());
        return;
    }
    match &seen.extents {
        None => {
            let there = &data[seen.offset as usize..][..*size as usize];
            assert_eq!(there, seen.bytes);
        }
        Some(extents) => {
            assert!(extents.len() <= LIMITS.extents && extents.iter().all(|extent| extent.length > 0));
            assert!(extents.windows(2).all(|pair| pair[0].end() < pair[1].offset));
            assert!(extents.last().is_none_or(|last| last.end() <= *size));
        }
    }
}

fn assert_clean(path: &[u8]) {
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    assert!(names.len() <= LIMITS.depth);
    for name in names {
        assert!(!matches!(name, b"" | b"." | b"..") && !name.contains(&0));
        assert!(name.len() <= LIMITS.name_bytes);
    }
}

/// Entries, and what is in the files.
fn contents(seen: &[Seen]) -> Vec<(Entry, Vec<u8>)> {
    let filled = |seen: &Seen| {
        let mut bytes = seen.bytes.clone();
        bytes.resize(seen.entry.size as usize, 0);
        (seen.entry.clone(), bytes)
    };
    seen.iter().map(filled).collect()
}

fn written(seen: &[Seen]) {
    let mut writer = Writer::new(Vec::new());
    let mut kept = Vec::new();
    for (entry, bytes) in contents(seen) {
        match writer.append(&entry, bytes.as_slice()) {
            Ok(()) => kept.push((entry, bytes)),
            // Nothing of it was written.
            Err(ArchiveError::Unrepresentable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let archive = writer.finish().expect("a vector takes it");
    let (again, error) = all(Reader::new(archive.as_slice()), by_chunks);
    assert_eq!(error, None);
    assert_eq!(contents(&again), kept);
}

fn clamped(data: &[u8], seen: &[Seen]) {
    let clamp = |archive: &[u8]| {
        let mut out = Vec::new();
        clamp_times(archive, EPOCH, &mut out).map(|()| out)
    };
    let clamped = match clamp(data) {
        Ok(clamped) => clamped,
        Err(ArchiveError::Unrepresentable { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let (again, error) = all(Reader::new(clamped.as_slice()), by_chunks);
    assert_eq!(error, None);
    let expected = contents(seen).into_iter().map(|(entry, bytes)| {
        let mtime = entry.mtime.min((EPOCH, 0));
        (Entry { mtime, ..entry }, bytes)
    });
    assert_eq!(contents(&again), expected.collect::<Vec<_>>());
    assert!(clamp(&clamped).is_ok_and(|twice| twice == clamped));
}

/// Gives its bytes one by one, two by two, and so on.
struct Drops<'a> {
    left: &'a [u8],
    next: usize,
}

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.next.min(buffer.len()).min(self.left.len());
        self.next = self.next % 700 + 1;
        buffer[..count].copy_from_slice(&self.left[..count]);
        self.left = &self.left[count..];
        Ok(count)
    }
}
