//! Archives that nobody should send: typed errors, no panic, no memory.

use std::io;
use std::io::Read;

use proptest::collection;
use proptest::prelude::*;

use super::super::AbsolutePaths;
use super::super::ArchiveError;
use super::super::Compression;
use super::super::Decoder;
use super::super::Encoder;
use super::super::EntryKind;
use super::super::Limit;
use super::super::Limits;
use super::super::Reader;
use super::super::Unsafe;
use super::entries;
use super::file;
use super::read_all;
use super::write_all;

/// An archive of one header, whose checksum is right, and data.
fn raw(flag: u8, name: &[u8], size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}

fn raw_link(flag: u8, name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut archive = raw(flag, name, 0, &[]);
    archive[157..157 + target.len()].copy_from_slice(target);
    fix(&mut archive[..512]);
    archive
}

/// Makes the checksum right.
fn fix(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn unsafe_path(archive: &[u8]) -> Unsafe {
    match read_all(archive) {
        Err(ArchiveError::UnsafePath { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_that_could_lead_out_are_refused() {
    assert_eq!(unsafe_path(&raw(b'0', b"/etc/passwd", 0, &[])), Unsafe::Absolute);
    assert_eq!(unsafe_path(&raw(b'0', b"../x", 0, &[])), Unsafe::ParentComponent);
    assert_eq!(unsafe_path(&raw(b'5', b"a/../../b/", 0, &[])), Unsafe::ParentComponent);
    assert_eq!(unsafe_path(&raw_link(b'1', b"a", b"/../etc/passwd")), Unsafe::ParentComponent);
    assert_eq!(unsafe_path(&raw_link(b'1', b"a", b"/")), Unsafe::Root);
    assert_eq!(unsafe_path(&raw_link(b'1', b"a", b"../../etc/passwd")), Unsafe::ParentComponent);
    assert_eq!(unsafe_path(&raw_link(b'1', b"a", b"./")), Unsafe::Root);
    assert_eq!(unsafe_path(&raw(b'0', b"./.", 0, &[])), Unsafe::Root);
    assert_eq!(unsafe_path(&raw_link(b'2', b".", b"/etc")), Unsafe::Root);
    let long = raw(b'x', b"x", 13, b"13 path=a\0bc\n");
    assert!(matches!(read_all(&long), Err(ArchiveError::Header { .. })));
}

#[test]
fn what_kaniko_writes_with_a_slash_is_beneath_the_root() {
    let read = read_all(&raw(b'5', b"/", 0, &[])).expect("it is the root");
    assert_eq!((read[0].0.path.as_slice(), &read[0].0.kind), (&b""[..], &EntryKind::Dir));
    let read = read_all(&raw_link(b'1', b"usr/bin/perl5", b"/usr/bin/perl")).expect("it is read");
    assert_eq!(read[0].0.kind, EntryKind::Hardlink { target: b"usr/bin/perl".to_vec() });
}

#[test]
fn a_whiteout_may_be_of_the_longest_name() {
    let name = "n".repeat(255);
    let archive = write_all(&[file(&format!("d/.wh.{name}"), b"")]);
    assert_eq!(read_all(&archive).expect("it is read").len(), 1);
    assert_eq!(
        limited(&write_all(&[file(&format!(".wh.{name}n"), b"")]), Limits::default()),
        Limit::NameBytes
    );
}

#[test]
fn paths_of_users_are_beneath_the_root() {
    let entry = |archive: &[u8]| {
        let mut reader = Reader::with(archive, Limits::default(), AbsolutePaths::MakeRelative);
        reader.next_entry().expect("it is read").expect("there is one")
    };
    for (path, clean) in [
        ("//etc/./passwd", "etc/passwd"),
        ("../x", "x"),
        ("a/../../../b/c/../d", "b/d"),
        ("a/b/..", "a"),
        ("a/..", ""),
    ] {
        assert_eq!(entry(&raw(b'5', path.as_bytes(), 0, &[])).path, clean.as_bytes(), "{path}");
    }
    let link = entry(&raw_link(b'1', b"a", b"../d/../f"));
    assert_eq!(link.kind, EntryKind::Hardlink { target: b"f".to_vec() });
}

fn limited(archive: &[u8], limits: Limits) -> Limit {
    let mut reader = Reader::with(archive, limits, AbsolutePaths::Refuse);
    loop {
        match reader.next_entry() {
            Ok(Some(_)) => {}
            Err(ArchiveError::TooMuch { limit, .. }) => return limit,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_limit_has_its_error() {
    let archive = write_all(&[file("a", b"1"), file("b/c/d", b"2")]);
    let limits = Limits::default();
    assert_eq!(limited(&archive, Limits { entries: 1, ..limits }), Limit::Entries);
    assert_eq!(limited(&archive, Limits { depth: 2, ..limits }), Limit::Depth);
    assert_eq!(limited(&archive, Limits { path_bytes: 4, ..limits }), Limit::PathBytes);
    assert_eq!(limited(&archive, Limits { expanded_bytes: 1000, ..limits }), Limit::ExpandedBytes);
    let long = write_all(&[file(&"n".repeat(120), b"1")]);
    assert_eq!(limited(&long, Limits { name_bytes: 119, ..limits }), Limit::NameBytes);
    assert_eq!(limited(&long, Limits { header_bytes: 600, ..limits }), Limit::HeaderBytes);
    // A long name of 8 GiB, of which nothing is there.
    assert_eq!(limited(&raw(b'L', b"x", (1 << 33) - 1, &[]), limits), Limit::HeaderBytes);
    assert_eq!(limited(&raw(b'g', b"x", 1 << 30, &[]), limits), Limit::HeaderBytes);
    // A petabyte of holes.
    let record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n40 GNU.sparse.realsize=1125899906842624\n";
    let mut sparse = raw(b'x', b"x", record.len() as u64, record);
    sparse.extend(raw(b'0', b"x", 512, b"0\n"));
    assert_eq!(limited(&sparse, limits), Limit::ExpandedBytes);
    let mut sparse = raw(b'x', b"x", record.len() as u64, record);
    sparse.extend(raw(b'0', b"x", 512, b"99999999999\n"));
    assert_eq!(limited(&sparse, limits), Limit::Extents);
}

/// Runs of sparse files in headers that count for all entries were kept without being counted: a stream of a gigabyte,
/// which compresses to one megabyte, took a third of a gigabyte.
#[test]
fn records_for_all_entries_are_limited_whatever_they_say() {
    let run = b"23 GNU.sparse.offset=1\n25 GNU.sparse.numbytes=1\n";
    let header = raw(b'g', b"x", 100 * run.len() as u64, &run.repeat(100));
    assert_eq!(limited(&header.repeat(40), Limits::default()), Limit::HeaderBytes);
    let entry = write_all(&[file("a", b"1")]);
    assert_eq!(read_all(&[header, entry].concat()).expect("it is read").len(), 1);
}

#[test]
fn a_bomb_ends_at_its_limit() {
    let mut encoder = Encoder::new(Vec::new(), Compression::Gzip, Some(9)).expect("a level");
    let mut header = io::Cursor::new(raw(b'0', b"bomb", (1 << 33) - 1, &[]));
    io::copy(&mut header, &mut encoder).expect("it is written");
    io::copy(&mut io::repeat(0).take(64 << 20), &mut encoder).expect("it is written");
    let bomb = encoder.finish().expect("it is whole");
    assert!(bomb.len() < 200 << 10);
    let limits = Limits { expanded_bytes: 1 << 20, ..Limits::default() };
    let mut reader = Reader::with(Decoder::new(bomb.as_slice()), limits, AbsolutePaths::Refuse);
    let error = reader.next_entry().expect_err("it is too large");
    assert!(matches!(error, ArchiveError::TooMuch { limit: Limit::ExpandedBytes, .. }), "{error}");
    let limits = Limits { expanded_bytes: 1 << 34, ..Limits::default() };
    let cut = Decoder::new(bomb.as_slice()).take(2 << 20);
    let mut reader = Reader::with(cut, limits, AbsolutePaths::Refuse);
    reader.next_entry().expect("its size is allowed");
    let error = reader.read_to_end(&mut Vec::new()).expect_err("it is cut");
    assert!(matches!(error.into(), ArchiveError::Truncated { .. }));
}

#[test]
fn what_is_no_header_is_an_error() {
    let mut archive = write_all(&[file("a", b"1")]);
    archive[3] ^= 1;
    assert!(matches!(read_all(&archive), Err(ArchiveError::Header { offset: 0, .. })));
    let archive = write_all(&[file("a", b"1")]);
    assert!(matches!(read_all(&archive[..700]), Err(ArchiveError::Truncated { .. })));
    assert!(matches!(read_all(&archive[..100]), Err(ArchiveError::Truncated { .. })));
    let unknown = read_all(&raw(b'Q', b"what", 0, &[]));
    assert!(matches!(unknown, Err(ArchiveError::UnsupportedKind { flag: b'Q', .. })), "{unknown:?}");
}

/// What a reader does with hostile bytes: it ends, and believes nothing.
fn survive(archive: &[u8]) {
    let limits =
        Limits { expanded_bytes: 1 << 20, header_bytes: 1 << 14, extents: 1000, ..Limits::default() };
    let mut reader = Reader::with(archive, limits, AbsolutePaths::Refuse);
    let mut total = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(!entry.path.starts_with(b"/") && !entry.path.contains(&0));
        assert!(entry.path.split(|&b| b == b'/').all(|name| name != b".." && name != b"."));
        assert!(entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000);
        let mut end = 0;
        if total % 2 == 0 {
            while let Ok(Some(chunk)) = reader.next_chunk() {
                assert!(chunk.offset >= end);
                end = chunk.offset + chunk.bytes.len() as u64;
                assert!(end <= entry.size);
            }
        } else if let Ok(count) = io::copy(&mut reader, &mut io::sink()) {
            assert_eq!(count, entry.size);
        }
        total += 1;
    }
}

/// As many cases as `PROPTEST_CASES` says: with millions of them these tests are fuzzers.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(400),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn garbage_never_panics(bytes in collection::vec(any::<u8>(), 0..3000)) {
        survive(&bytes);
    }

    /// Bytes of a valid archive are changed, dropped or repeated; half of the time checksums are right.
    #[test]
    fn mutations_never_panic(
        entries in entries(),
        sparse in 0..4usize,
        changes in collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..12),
        fixed in any::<bool>(),
    ) {
        let mut archive = write_all(&entries);
        let samples: [&[&[u8]]; 4] = [
            &[],
            &[b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=99\n", b"1\n10\n20\n"],
            &[b"22 GNU.sparse.major=0\n22 GNU.sparse.minor=1\n23 GNU.sparse.size=99\n27 GNU.sparse.map=1,2,3,4\n"],
            &[b"23 GNU.sparse.size=99\n24 GNU.sparse.offset=1\n26 GNU.sparse.numbytes=2\n"],
        ];
        if let [record, data @ ..] = samples[sparse] {
            let mut front = raw(b'x', b"x", record.len() as u64, record);
            let data = data.first().copied().unwrap_or(b"");
            front.extend(raw(b'0', b"s", 600, data));
            front.resize(front.len().next_multiple_of(512) + 1024, 7);
            front.append(&mut archive);
            archive = front;
        }
        for (at, value, how) in changes {
            let at = at.index(archive.len());
            match how {
                0 => archive[at] = value,
                1 => archive[at] = archive[at].wrapping_add(1),
                2 => { archive.drain(at - at % 512..(at + 512 - at % 512).min(archive.len())); }
                _ => archive.truncate(at),
            }
            if archive.is_empty() {
                break;
            }
        }
        if fixed {
            for block in archive.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    fix(block);
                }
            }
        }
        survive(&archive);
    }

    #[test]
    fn mutated_streams_never_panic(
        entries in entries(),
        zstd in any::<bool>(),
        changes in collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let compression = if zstd { Compression::Zstd } else { Compression::Gzip };
        let mut encoder = Encoder::new(Vec::new(), compression, None).expect("a level");
        io::copy(&mut write_all(&entries).as_slice(), &mut encoder).expect("it is written");
        let mut stream = encoder.finish().expect("it is whole");
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let mut reader = Reader::new(Decoder::new(stream.as_slice()));
        while let Ok(Some(_)) = reader.next_entry() {}
        let _ = reader.finish();
    }
}
