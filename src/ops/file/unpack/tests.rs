use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::archive::Compression;
use crate::archive::Encoder;
use crate::archive::Writer;
use crate::ops::file::copy::copy;
use crate::ops::op::FileInput;
use crate::ops::op::Timestamp;

fn archive(entries: &[(Entry, &[u8])], compression: Compression) -> Vec<u8> {
    let mut writer = Writer::new(Encoder::new(Vec::new(), compression, None).unwrap());
    for (entry, data) in entries {
        writer.append(entry, *data).unwrap();
    }
    writer.finish().unwrap().finish().unwrap()
}

fn entry(path: &str, kind: EntryKind, mode: u32) -> Entry {
    Entry { mode, uid: 5, gid: 6, mtime: (100, 0), ..Entry::new(path, kind) }
}

fn sample() -> Vec<(Entry, &'static [u8])> {
    vec![
        (entry("d", EntryKind::Dir, 0o750), b"".as_slice()),
        (Entry { size: 4, ..entry("d/f", EntryKind::File, 0o4710) }, b"text"),
        (entry("d/l", EntryKind::Symlink { target: b"f".to_vec() }, 0o777), b""),
        (entry("d/h", EntryKind::Hardlink { target: b"d/f".to_vec() }, 0o4710), b""),
        (Entry { size: 1, ..entry("implied/f", EntryKind::File, 0o600) }, b"x"),
    ]
}

/// Copies a file of these bytes onto `to` as `/dest`.
fn add(bytes: &[u8], to: &Path, dest: &str, owner: Option<fs_owner::Owner>) -> Result<(), FileError> {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a.bin"), bytes).unwrap();
    let what = CopyFiles {
        unpack: true,
        timestamp: Some(Timestamp(9_000_000_000)),
        ..CopyFiles::plain(FileInput::Scratch, "/a.bin", dest)
    };
    let (from, to) = (Root::open(from.path()).unwrap(), Root::open(to).unwrap());
    copy(&from, &to, &what, owner, &CancellationToken::new())
}

use crate::fs as fs_owner;

/// What a program of Debian makes of `bytes`.
fn compressed_by(program: &str, bytes: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new(program).arg("-9c").arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn an_archive_of_any_compression_is_unpacked_with_its_attributes() {
    let plain = archive(&sample(), Compression::Uncompressed);
    let (first, second) = plain.split_at(700);
    for archive in [
        archive(&sample(), Compression::Gzip),
        archive(&sample(), Compression::Zstd),
        compressed_by("bzip2", &plain),
        compressed_by("xz", &plain),
        // Streams that follow one another are one.
        [compressed_by("bzip2", first), compressed_by("bzip2", second)].concat(),
        [compressed_by("xz", first), compressed_by("xz", second)].concat(),
        plain.clone(),
    ] {
        let to = tempfile::tempdir().unwrap();
        add(&archive, to.path(), "/new/dir", None).unwrap();
        let at = |path: &str| to.path().join("new/dir").join(path);
        let stat = |path: &str| fs::symlink_metadata(at(path)).unwrap();
        assert_eq!(fs::read(at("d/f")).unwrap(), b"text");
        assert_eq!(fs::read_link(at("d/l")).unwrap(), Path::new("f"));
        assert_eq!(stat("d/f").ino(), stat("d/h").ino());
        for (path, mode) in [("d", 0o750), ("d/f", 0o4710), ("implied/f", 0o600)] {
            let stat = stat(path);
            assert_eq!(
                (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()),
                (mode, 5, 6, 100),
                "{path}"
            );
        }
        assert_eq!((stat("implied").mode() & 0o7777, stat("implied").uid()), (0o755, 0));
        assert_eq!(fs::metadata(to.path().join("new")).unwrap().mtime(), 9);
    }
}

#[test]
fn a_stated_owner_is_everybodys() {
    let to = tempfile::tempdir().unwrap();
    let owner = Some(fs_owner::Owner { uid: 1, gid: 2 });
    add(&archive(&sample(), Compression::Gzip), to.path(), "/", owner).unwrap();
    for path in ["d", "d/f", "d/l"] {
        let stat = fs::symlink_metadata(to.path().join(path)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1, 2), "{path}");
    }
}

#[test]
fn what_is_no_archive_is_copied() {
    let xz = compressed_by("xz", b"hello");
    let twice = compressed_by("bzip2", &archive(&sample(), Compression::Gzip));
    let none =
        [b"".as_slice(), b"hello", &[0; 1024], &archive(&[], Compression::Gzip), &xz, &xz[..20], &twice];
    for bytes in none {
        let to = tempfile::tempdir().unwrap();
        add(bytes, to.path(), "/f", None).unwrap();
        assert_eq!(fs::read(to.path().join("f")).unwrap(), bytes);
    }
}

#[test]
fn files_give_way_and_directories_merge() {
    let to = tempfile::tempdir().unwrap();
    let at = |path: &str| to.path().join(path);
    fs::create_dir_all(at("d/f/deep")).unwrap();
    fs::write(at("d/kept"), "").unwrap();
    add(&archive(&sample(), Compression::Uncompressed), to.path(), "/", None).unwrap();
    assert_eq!(fs::read(at("d/f")).unwrap(), b"text");
    assert!(at("d/kept").exists());
}

#[test]
fn nothing_is_written_beyond_the_destination() {
    let outside = tempfile::tempdir().unwrap();
    let link = outside.path().to_str().unwrap().as_bytes().to_vec();
    let hostile = [
        (entry("out", EntryKind::Symlink { target: link }, 0o777), b"".as_slice()),
        (Entry { size: 1, ..entry("out/f", EntryKind::File, 0o600) }, b"x"),
        (entry("up", EntryKind::Symlink { target: b"../../../..".to_vec() }, 0o777), b""),
        (Entry { size: 1, ..entry("up/g", EntryKind::File, 0o600) }, b"x"),
        (Entry { size: 1, ..entry("d/../../h", EntryKind::File, 0o600) }, b"x"),
    ];
    let to = tempfile::tempdir().unwrap();
    add(&archive(&hostile, Compression::Uncompressed), to.path(), "/dest", None).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(to.path().join("dest/g").exists(), "links resolve beneath the destination");
    assert!(to.path().join("dest/h").exists(), "names stay beneath it");
    assert!(!to.path().join("g").exists() && !to.path().join("h").exists());
}

#[test]
fn an_archive_that_breaks_off_is_an_error() {
    let whole = archive(&sample(), Compression::Uncompressed);
    let to = tempfile::tempdir().unwrap();
    let error = add(&whole[..512 * 2 + 2], to.path(), "/", None).unwrap_err();
    assert!(matches!(error, FileError::Archive { .. }), "{error}");
}

#[test]
fn an_archive_that_begins_with_what_can_not_be_unpacked_is_an_error() {
    let mut strange = archive(&sample(), Compression::Uncompressed);
    let digits = |bytes: &[u8]| u32::from_str_radix(std::str::from_utf8(bytes).unwrap(), 8).unwrap();
    let sum = digits(&strange[148..154]) + u32::from(b'9') - u32::from(strange[156]);
    strange[156] = b'9';
    strange[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let to = tempfile::tempdir().unwrap();
    let error = add(&strange, to.path(), "/", None).unwrap_err();
    assert!(matches!(error, FileError::Archive { .. }), "{error}");
}
