//! What the writer writes, as others read it.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use sha2::Digest as _;
use sha2::Sha256;

use super::super::ArchiveError;
use super::super::Entry;
use super::super::EntryKind;
use super::super::Writer;
use super::entries;
use super::file;
use super::read_all;
use super::tool;
use super::write_all;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_written_is_read(entries in entries()) {
        prop_assert_eq!(read_all(&write_all(&entries)).expect("it is an archive"), entries);
    }

    #[test]
    fn the_tar_crate_reads_what_was_written(mut entries in entries()) {
        // The crate takes a new line in a record for the record's end.
        let tame = |text: &mut Vec<u8>| text.iter_mut().filter(|b| **b == b'\n').for_each(|b| *b = b'_');
        for (entry, _) in &mut entries {
            tame(&mut entry.path);
            entry.xattrs.values_mut().for_each(tame);
            if let EntryKind::Symlink { target } | EntryKind::Hardlink { target } = &mut entry.kind {
                tame(target);
            }
        }
        let archive = write_all(&entries);
        let mut reader = tar::Archive::new(archive.as_slice());
        let mut read = reader.entries().expect("it is an archive");
        for (entry, bytes) in &entries {
            let mut other = read.next().expect("there is an entry").expect("it is whole");
            let path = other.path_bytes().into_owned();
            prop_assert_eq!(path.strip_suffix(b"/").unwrap_or(&path), entry.path.as_slice());
            let header = other.header().clone();
            prop_assert_eq!(header.mode().expect("a mode"), entry.mode);
            prop_assert_eq!(header.entry_type().as_byte(), match entry.kind {
                EntryKind::File => b'0',
                EntryKind::Hardlink { .. } => b'1',
                EntryKind::Symlink { .. } => b'2',
                EntryKind::CharDevice { .. } => b'3',
                EntryKind::BlockDevice { .. } => b'4',
                EntryKind::Dir => b'5',
                EntryKind::Fifo => b'6',
            });
            if let EntryKind::Symlink { target } | EntryKind::Hardlink { target } = &entry.kind {
                let link = other.link_name_bytes().expect("a target").into_owned();
                prop_assert_eq!(&link, target);
            }
            let mut content = Vec::new();
            other.read_to_end(&mut content).expect("it is whole");
            prop_assert_eq!(&content, bytes);
        }
        prop_assert!(read.next().is_none());
    }
}

/// The entries of the archive whose hash Go's `archive/tar` (1.26, format pax) gave.
fn as_given_to_go() -> Vec<(Entry, Vec<u8>)> {
    let long = |length: usize| "abcdefghi/".repeat(length.div_ceil(10))[..length].to_owned();
    let mut entries = vec![file("plain", b"hello"), file("usr/bin/tool", &[7; 513])];
    let mut add = |path: &str, kind: EntryKind, change: &dyn Fn(&mut Entry)| {
        let mut entry = Entry::new(path, kind);
        entry.mode = 0o755;
        entry.mtime = (1_700_000_000, 0);
        change(&mut entry);
        entries.push((entry, Vec::new()));
    };
    add("usr/share", EntryKind::Dir, &|e| e.mode = 0o1777);
    add("link", EntryKind::Symlink { target: b"../target".to_vec() }, &|e| e.uid = 1000);
    add("hard", EntryKind::Hardlink { target: b"usr/bin/tool".to_vec() }, &|e| e.gid = 2_097_151);
    add("dev/null", EntryKind::CharDevice { major: 1, minor: 3 }, &|_| {});
    add("dev/sda", EntryKind::BlockDevice { major: 8, minor: 1_048_575 }, &|_| {});
    add("run/pipe", EntryKind::Fifo, &|e| e.uname = b"daemon".to_vec());
    add(&(long(120) + "x"), EntryKind::File, &|_| {});
    add(&long(109), EntryKind::Dir, &|_| {});
    add(&(long(250) + "y"), EntryKind::File, &|_| {});
    add(&(long(300) + "y"), EntryKind::File, &|_| {});
    add(&"z".repeat(101), EntryKind::File, &|_| {});
    add("d/ümläut", EntryKind::File, &|_| {});
    add("d/ümläut-dir", EntryKind::Dir, &|_| {});
    add("big-owner", EntryKind::File, &|e| (e.uid, e.gid) = (2_097_152, 4_294_967_295));
    add("nanos", EntryKind::File, &|e| e.mtime = (1_700_000_000, 120_000_000));
    add("before", EntryKind::File, &|e| e.mtime = (-1, 0));
    add("before-nanos", EntryKind::File, &|e| e.mtime = (-2, 250_000_000));
    add("late", EntryKind::File, &|e| e.mtime = (1 << 33, 0));
    add("long-link", EntryKind::Symlink { target: long(150).into_bytes() }, &|_| {});
    add(&(long(120) + "w"), EntryKind::Symlink { target: "ü".into() }, &|_| {});
    add("capable", EntryKind::File, &|e| {
        e.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 4, 0, 0]);
        e.xattrs.insert(b"user.long".to_vec(), vec![b'v'; 990]);
    });
    add(&"s/".repeat(60), EntryKind::Dir, &|e| {
        e.path.pop();
        e.xattrs.insert(b"user.empty".to_vec(), Vec::new());
    });
    entries
}

#[test]
fn the_bytes_are_those_of_gos_writer() {
    let archive = write_all(&as_given_to_go());
    assert_eq!(HEXLOWER.encode(&Sha256::digest(&archive)), GO);
}

const GO: &str = "e575e20697a7b4cc3be3c8b2699e729e880b0ac7a1ec753b826d268ecf6e6527";

#[test]
fn gnu_tar_unpacks_what_was_written() {
    let Some(mut tar) = tool("tar") else { return };
    let long = "n".repeat(200);
    let mut directory = (Entry::new("dir", EntryKind::Dir), Vec::new());
    directory.0.mode = 0o755;
    let mut late = file("dir/late", b"x");
    late.0.mtime = (1_234_567_890, 123_456_789);
    let link = (Entry::new("dir/link", EntryKind::Symlink { target: b"late".to_vec() }), Vec::new());
    let hard = (Entry::new("dir/hard", EntryKind::Hardlink { target: b"dir/late".to_vec() }), Vec::new());
    let raw = b"dir/\xff\xfe".to_vec();
    let mut odd = file("", b"odd");
    odd.0.path = raw.clone();
    let archive = write_all(&[directory, late, link, hard, odd, file(&format!("dir/{long}"), b"long")]);
    let place = tempfile::tempdir().expect("a directory");
    let packed = place.path().join("a.tar");
    fs::write(&packed, archive).expect("it is written");
    let output = tar.arg("-xf").arg(&packed).arg("-C").arg(place.path()).output().expect("tar runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let found = fs::metadata(place.path().join("dir/late")).expect("it is there");
    assert_eq!((found.mtime(), found.mtime_nsec(), found.nlink()), (1_234_567_890, 123_456_789, 2));
    let read = |name: OsString| fs::read(place.path().join(name)).expect("it is there");
    assert_eq!(read(format!("dir/{long}").into()), b"long");
    assert_eq!(read(OsString::from_vec(raw)), b"odd");
    assert_eq!(read("dir/link".into()), b"x");
}

#[test]
fn a_file_that_shrank_or_grew_is_an_error() {
    let (mut entry, _) = file("f", b"12345");
    for bytes in [&b"1234"[..], b"123456"] {
        let error = Writer::new(Vec::new()).append(&entry, bytes).expect_err("the size is another");
        assert!(matches!(error, ArchiveError::WrongSize { expected: 5, .. }), "{error}");
    }
    entry.path = b"nul\0".to_vec();
    let error = Writer::new(Vec::new()).append(&entry, &b"12345"[..]).expect_err("NUL is in the name");
    assert!(matches!(error, ArchiveError::Unrepresentable { .. }), "{error}");
}
