//! The formats of GNU tar, and those that it doesn't write.

use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::super::Entry;
use super::super::EntryKind;
use super::super::Reader;
use super::entries;
use super::file;
use super::read_all;
use super::tool;
use super::write_all;

/// A tree with one of everything that GNU tar packs without being root.
fn tree(root: &Path, long_names: bool) {
    fs::create_dir_all(root.join("a/b")).expect("a directory is made");
    fs::write(root.join("a/file"), vec![b'x'; 1000]).expect("a file is written");
    fs::write(root.join("a/empty"), []).expect("a file is written");
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4711)).expect("a mode is set");
    fs::hard_link(root.join("a/file"), root.join("a/z-hard")).expect("a link is made");
    symlink("../a/file", root.join("a/b/link")).expect("a link is made");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("a/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a pipe is made");
    if long_names {
        let deep = root.join("a").join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).expect("a directory is made");
        fs::write(deep.join("f".repeat(120)), b"deep").expect("a file is written");
        symlink("t".repeat(180), root.join("a/long-link")).expect("a link is made");
        fs::write(root.join("a/ü€"), b"wide").expect("a file is written");
    }
}

/// An entry is what `lstat` says of the file.
fn assert_like_disk(root: &Path, entry: &Entry, bytes: &[u8], nanos: bool) {
    let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
    let found = fs::symlink_metadata(&path).expect("the entry's file is there");
    assert_eq!(entry.mode, found.mode() & 0o7777, "{path:?}");
    assert_eq!((entry.uid, entry.gid), (found.uid().into(), found.gid().into()), "{path:?}");
    assert_eq!(entry.mtime.0, found.mtime(), "{path:?}");
    if nanos {
        assert_eq!(i64::from(entry.mtime.1), found.mtime_nsec(), "{path:?}");
    }
    match &entry.kind {
        EntryKind::File => assert_eq!(bytes, fs::read(&path).expect("it is readable"), "{path:?}"),
        EntryKind::Dir => assert!(found.is_dir(), "{path:?}"),
        EntryKind::Symlink { target } => {
            assert_eq!(target, fs::read_link(&path).expect("it is a link").as_os_str().as_bytes());
        }
        EntryKind::Hardlink { target } => {
            let other = root.join(std::ffi::OsStr::from_bytes(target));
            assert_eq!(fs::metadata(other).expect("it is there").ino(), found.ino());
        }
        EntryKind::Fifo => assert_eq!(found.mode() & 0o170_000, 0o010_000),
        kind => panic!("{path:?} is {kind:?}"),
    }
}

#[test]
fn every_format_of_gnu_tar_is_read() {
    if tool("tar").is_none() {
        return;
    }
    for (format, long_names, nanos) in [
        ("v7", false, false),
        ("ustar", false, false),
        ("oldgnu", true, false),
        ("gnu", true, false),
        ("pax", true, true),
    ] {
        let place = tempfile::tempdir().expect("a directory");
        tree(place.path(), long_names);
        // V7 has no pipes.
        if format == "v7" {
            fs::remove_file(place.path().join("a/pipe")).expect("it is removed");
        }
        let mut tar = tool("tar").expect("it was there");
        let packed = tar.args(["-cf", "-", "--format", format, "--sort=name", "-C"]).arg(place.path());
        let packed = packed.arg("./a").output().expect("tar runs");
        assert!(packed.status.success(), "{packed:?}");
        let entries = read_all(&packed.stdout).unwrap_or_else(|e| panic!("{format}: {e}"));
        let count = 6 + usize::from(format != "v7") + if long_names { 5 } else { 0 };
        assert_eq!(entries.len(), count, "{format}: {entries:?}");
        for (entry, bytes) in &entries {
            assert_like_disk(place.path(), entry, bytes, nanos);
        }
        assert!(entries.iter().any(|(entry, _)| matches!(entry.kind, EntryKind::Hardlink { .. })));
    }
}

#[test]
fn sparse_files_of_every_version_are_read_with_their_holes() {
    if tool("tar").is_none() {
        return;
    }
    let versions: [(&str, &[&str]); 4] = [
        ("old", &["--format=gnu"]),
        ("0.0", &["--format=pax", "--sparse-version=0.0"]),
        ("0.1", &["--format=pax", "--sparse-version=0.1"]),
        ("1.0", &["--format=pax", "--sparse-version=1.0"]),
    ];
    for (version, options) in versions {
        let place = tempfile::tempdir().expect("a directory");
        let mut contents = Vec::new();
        // One hole in front, many runs (more than one block notes), a hole at the end, nothing but a hole.
        for (name, runs, size) in [("front", 1, 200_000), ("many", 60, 60 * 65_536), ("hole", 0, 1 << 20)] {
            let file = File::create(place.path().join(name)).expect("a file is made");
            file.set_len(size).expect("it has a size");
            for run in 0..runs {
                file.write_all_at(&[run + 1; 4096], u64::from(run) * 65_536 + 32_768).expect("it is written");
            }
            contents.push((name, fs::read(place.path().join(name)).expect("it is readable")));
        }
        fs::write(place.path().join("zz-after"), b"after").expect("a file is written");
        let mut tar = tool("tar").expect("it was there");
        let packed = tar.args(["-cf", "-", "--sparse"]).args(options).arg("-C").arg(place.path());
        let packed = packed.args(["front", "many", "hole", "zz-after"]).output().expect("tar runs");
        assert!(packed.status.success(), "{packed:?}");
        let entries = read_all(&packed.stdout).unwrap_or_else(|e| panic!("{version}: {e}"));
        assert_eq!(entries.len(), 4, "{version}");
        for ((name, bytes), (entry, read)) in contents.iter().zip(&entries) {
            assert_eq!((entry.path.as_slice(), entry.size), (name.as_bytes(), bytes.len() as u64));
            assert!(read == bytes, "{version}: {name}");
        }
        assert_eq!(entries[3].1, b"after", "{version}");

        let mut reader = Reader::new(packed.stdout.as_slice());
        let mut runs = 0;
        let mut stored = 0;
        reader.next_entry().expect("it is read").expect("there is one");
        reader.next_entry().expect("it is read").expect("there is another");
        let noted = reader.extents().expect("it is sparse").len();
        let mut rebuilt = vec![0; contents[1].1.len()];
        let mut last = None;
        while let Some(chunk) = reader.next_chunk().expect("it is read") {
            let start = chunk.offset as usize;
            rebuilt[start..start + chunk.bytes.len()].copy_from_slice(chunk.bytes);
            runs += usize::from(last != Some(chunk.offset));
            last = Some(chunk.offset + chunk.bytes.len() as u64);
            stored += chunk.bytes.len();
        }
        assert!(rebuilt == contents[1].1, "{version}");
        assert_eq!((runs, noted, stored), (60, 60, 60 * 4096), "{version}");
    }
}

#[test]
fn global_records_count_until_an_entry_has_its_own() {
    let extended = |flag: u8, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_size(data.len() as u64);
        header.set_cksum();
        header
    };
    let mut archive = tar::Builder::new(Vec::new());
    let global = b"15 uid=1234567\n";
    archive.append(&extended(b'g', global), &global[..]).expect("it is appended");
    let entries: [(&str, &[u8]); 3] =
        [("first", b""), ("second", b"15 uid=7654321\n"), ("third", b"7 uid=\n")];
    for (name, records) in entries {
        if !records.is_empty() {
            archive.append(&extended(b'x', records), records).expect("it is appended");
        }
        let mut header = tar::Header::new_ustar();
        header.set_uid(5);
        header.set_mtime(0);
        header.set_gid(0);
        header.set_mode(0);
        header.set_size(0);
        archive.append_data(&mut header, name, &[][..]).expect("it is appended");
    }
    let own = archive.into_inner().expect("it is whole");
    let entries = read_all(&own).expect("it is read");
    let uids: Vec<_> = entries.iter().map(|(entry, _)| entry.uid).collect();
    assert_eq!(uids, [1_234_567, 7_654_321, 5]);
}

#[test]
fn numbers_in_base_256_are_read() {
    let mut header = tar::Header::new_gnu();
    header.set_path("f").expect("a path");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    header.set_mode(0o644);
    header.as_mut_bytes()[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    // -2 seconds
    header.as_mut_bytes()[136..148].copy_from_slice(&[0xff; 12]);
    header.as_mut_bytes()[147] = 0xfe;
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.resize(archive.len() + 1024, 0);
    let (entry, _) = read_all(&archive).expect("it is read").remove(0);
    assert_eq!((entry.uid, entry.mtime), (0xffff_fffe, (-2, 0)));
}

#[test]
fn an_archive_may_end_without_blocks_of_zeros_and_with_more_of_them() {
    let archive = write_all(&[file("a", b"1"), file("b", b"2")]);
    let without = &archive[..archive.len() - 1024];
    assert_eq!(read_all(without).expect("it is read").len(), 2);
    let mut with = archive.clone();
    with.resize(archive.len() + 10_240, 0);
    assert_eq!(read_all(&with).expect("it is read").len(), 2);
    assert_eq!(read_all(&[]).expect("it is read").len(), 0);
}

#[test]
fn data_that_nobody_reads_are_passed_over() {
    let archive = write_all(&[file("a", &[1; 700_000]), file("b", b"2"), file("c", &[3; 513])]);
    let mut reader = Reader::new(archive.as_slice());
    let mut seen = Vec::new();
    while let Some(entry) = reader.next_entry().expect("it is read") {
        let mut some = [0; 10];
        let count = reader.read(&mut some).expect("it is read");
        let data = &archive[(reader.offset() as usize - count)..][..count];
        assert_eq!(data, &some[..count], "the offset is that of the data");
        seen.push(entry.path);
    }
    assert_eq!(seen, [b"a", b"b", b"c"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The `tar` crate writes GNU's long names.
    #[test]
    fn what_the_tar_crate_writes_is_read(entries in entries()) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut expected = Vec::new();
        for (entry, bytes) in entries {
            // The crate can't cut a long name within a character.
            if entry.kind != EntryKind::File || !entry.path.is_ascii() {
                continue;
            }
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.uid);
            header.set_gid(entry.gid);
            header.set_mtime(entry.mtime.0.unsigned_abs());
            header.set_size(bytes.len() as u64);
            let path = std::ffi::OsStr::from_bytes(&entry.path);
            builder.append_data(&mut header, path, bytes.as_slice()).expect("it is appended");
            expected.push((entry.path, entry.mode, entry.uid, entry.mtime.0.unsigned_abs() as i64, bytes));
        }
        let archive = builder.into_inner().expect("it is whole");
        let read = read_all(&archive).expect("it is read").into_iter().map(|(entry, bytes)| {
            (entry.path, entry.mode, entry.uid, entry.mtime.0, bytes)
        });
        prop_assert_eq!(read.collect::<Vec<_>>(), expected);
    }
}
