//! Archives to begin with: of GNU tar, in each format that it writes, and of our own.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::XattrFlags;
use thunk::archive::Compression;
use thunk::archive::Encoder;
use thunk::archive::Entry;
use thunk::archive::EntryKind;
use thunk::archive::Writer;

/// Options of GNU tar, for a tree of short names and for one that also has long ones.
const SHORT: [&[&str]; 2] = [&["--format=v7"], &["--format=ustar"]];
const LONG: [&[&str]; 7] = [
    &["--format=oldgnu"],
    &["--format=gnu"],
    &["--format=gnu", "--sparse"],
    &["--format=pax", "--xattrs"],
    &["--format=pax", "--sparse", "--sparse-version=0.0"],
    &["--format=pax", "--sparse", "--sparse-version=0.1"],
    &["--format=pax", "--sparse", "--sparse-version=1.0"],
];

/// What GNU tar makes of a tree that has one of everything.
fn gnu() -> Vec<Vec<u8>> {
    let place = std::env::temp_dir().join(format!("thunk-fuzz-samples-{}", std::process::id()));
    fs::create_dir_all(place.join("a/b")).expect("a directory is made");
    fs::write(place.join("a/file"), [b'x'; 600]).expect("a file is written");
    fs::set_permissions(place.join("a/file"), fs::Permissions::from_mode(0o4711)).expect("a mode is set");
    fs::hard_link(place.join("a/file"), place.join("a/z-hard")).expect("a link is made");
    symlink("../file", place.join("a/b/link")).expect("a link is made");
    let pack = |options: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["-cf", "-", "-b1", "--sort=name", "--mtime=@1600000000", "--numeric-owner"]).args(options);
        if options[0] == "--format=pax" {
            // Neither the time nor the process is to be seen in them.
            tar.arg("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime");
        }
        let output = tar.arg("-C").arg(&place).arg("a").output().expect("tar runs");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let mut archives: Vec<_> = SHORT.iter().map(|options| pack(options)).collect();
    long(&place);
    archives.extend(LONG.iter().map(|options| pack(options)));
    fs::remove_dir_all(&place).expect("the tree is removed");
    archives
}

fn long(place: &Path) {
    rustix::fs::mknodat(CWD, place.join("a/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("a pipe is made");
    fs::write(place.join("a").join("f".repeat(120)), b"long").expect("a file is written");
    fs::write(place.join("a/ü€"), b"wide").expect("a file is written");
    symlink("t".repeat(180), place.join("a/long-link")).expect("a link is made");
    // Where the file system has none, the archive has none.
    let _ = rustix::fs::setxattr(place.join("a/file"), "user.note", b"\0\xff", XattrFlags::empty());
    let sparse = fs::File::create(place.join("a/sparse")).expect("a file is made");
    sparse.set_len(100 << 10).expect("its size is set");
    for at in [8 << 10, 40 << 10, 80 << 10] {
        sparse.write_all_at(b"island", at).expect("it is written");
    }
}

/// An entry with the bytes of a file.
type Member = (Entry, Vec<u8>);

fn file(path: &str, bytes: &str) -> Member {
    let mut entry = Entry::new(path, EntryKind::File);
    (entry.mode, entry.mtime, entry.size) = (0o644, (1_600_000_000, 0), bytes.len() as u64);
    (entry, bytes.into())
}

fn other(path: &str, kind: EntryKind) -> Member {
    let mut entry = Entry::new(path, kind);
    (entry.mode, entry.mtime) = (0o755, (1_600_000_000, 0));
    (entry, Vec::new())
}

fn dir(path: &str) -> Member {
    other(path, EntryKind::Dir)
}

fn link(path: &str, target: &str) -> Member {
    other(path, EntryKind::Symlink { target: target.into() })
}

fn hard(path: &str, target: &str) -> Member {
    other(path, EntryKind::Hardlink { target: target.into() })
}

fn packed(members: &[Member]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, bytes) in members {
        writer.append(entry, bytes.as_slice()).expect("a vector takes it");
    }
    writer.finish().expect("a vector takes it")
}

pub(crate) fn archives() -> Vec<Vec<u8>> {
    let mut archives = gnu();
    let mut noted = dir("noted");
    noted.0.mtime = (-5, 500_000_000);
    noted.0.xattrs.insert(b"user.a".to_vec(), b"value".to_vec());
    archives.push(packed(&[noted, other("null", EntryKind::CharDevice { major: 1, minor: 3 })]));
    archives.extend(layers());
    archives
}

/// Layers, one over the other.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let base = [dir("a"), dir("a/b"), file("a/b/c", "1"), file("b", "22"), link("c", "a/b"), hard("d", "b")];
    let stacks: [&[&[Member]]; 8] = [
        &[&base],
        &[&base, &[file("a/.wh.b", ""), file("a/b", "new"), file(".wh.d", "")]],
        &[&base, &[file("a/.wh..wh..opq", ""), file("a/x", "y"), file(".wh.nothing", "")]],
        &[&base, &[file("c/through", "a link"), hard("c/again", "a/b/c")]],
        &[&base, &[file("a", "no directory any more")], &[dir("a"), file("a/b", "3")]],
        &[&base, &[file("b/c", "a directory"), dir("b"), file(".wh.b", "")]],
        &[&[link("up", ".."), link("out", "/outside"), file("up/outside/file", "escaped")]],
        &[&[dir("x"), link("x/y", "../x"), file("x/y/y/z", "round"), link("x", "x"), file("x/z", "loop")]],
    ];
    stacks.iter().map(|layers| layers.iter().flat_map(|layer| packed(layer)).collect()).collect()
}

/// Bytes in each compression, in one piece and in several, with what may follow.
pub(crate) fn streams() -> Vec<Vec<u8>> {
    let plain = packed(&[file("a", &"some text, ".repeat(2000)), dir("b")]);
    let mut streams = vec![plain.clone()];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let encode = |bytes: &[u8]| {
            let mut encoder = Encoder::new(Vec::new(), compression, None).expect("a level");
            io::copy(&mut { bytes }, &mut encoder).expect("a vector takes it");
            encoder.finish().expect("a vector takes it")
        };
        let (whole, nothing) = (encode(&plain), encode(&[]));
        let parts = plain.chunks(5000).flat_map(encode).collect();
        let padded = [whole.as_slice(), &[0; 100]].concat();
        let followed = [whole.as_slice(), b"more"].concat();
        let cut = whole[..whole.len() - 3].to_vec();
        streams.extend([whole, [nothing.clone(), nothing].concat(), parts, padded, followed, cut]);
    }
    // A header with all that may be in it, and no data.
    streams.push(
        [
            b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff\x02\0ab".as_slice(),
            b"name\0comment\0\x6a\x77\x03\0\0\0\0\0\0\0\0\0",
        ]
        .concat(),
    );
    // A frame that is skipped, and an empty one with a checksum.
    streams.push(b"\x50\x2a\x4d\x18\x03\0\0\0abc\x28\xb5\x2f\xfd\x24\0\x01\0\0\x99\xe9\xd8\x51".to_vec());
    streams
}
