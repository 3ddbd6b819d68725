//! The codec against GNU tar, the `tar` crate, Go's tar, and what nobody should send.

mod compression;
mod formats;
mod hostile;
mod written;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::Command;

use proptest::collection;
use proptest::prelude::*;

use super::ArchiveError;
use super::Entry;
use super::EntryKind;
use super::Reader;
use super::Writer;

/// A program that is compared with, unless it is missing where nobody promised it.
fn tool(name: &str) -> Option<Command> {
    let found = Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "{name} has to be installed");
    found.then(|| Command::new(name))
}

/// Entries with their logical bytes.
fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        entries.push((entry, bytes));
    }
    reader.finish()?;
    Ok(entries)
}

fn write_all(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, bytes) in entries {
        writer.append(entry, bytes.as_slice()).expect("the entry is written");
    }
    writer.finish().expect("the end is written")
}

fn file(path: &str, bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, EntryKind::File);
    (entry.mode, entry.size) = (0o644, bytes.len() as u64);
    (entry, bytes.to_vec())
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-z.]{1,12}".prop_map(String::into_bytes),
        1 => "[a-z]{90,110}".prop_map(String::into_bytes),
        1 => "[äöü€a-z]{1,40}".prop_map(String::into_bytes),
        1 => collection::vec(1u8.., 1..20),
    ]
    .prop_map(|name| name.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect())
    .prop_filter("no component", |name: &Vec<u8>| name != b"." && name != b"..")
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    collection::vec(name(), 1..5).prop_map(|names| names.join(&b'/'))
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        4 => Just(EntryKind::File),
        1 => Just(EntryKind::Dir),
        1 => prop_oneof![path(), Just(b"../../x".to_vec()), Just(b"/etc/passwd".to_vec())]
            .prop_map(|target| EntryKind::Symlink { target }),
        1 => path().prop_map(|target| EntryKind::Hardlink { target }),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        1 => Just(EntryKind::Fifo),
    ]
}

prop_compose! {
    /// Any entry that an archive can hold, with its bytes.
    fn entry()(
        path in path(),
        kind in kind(),
        mode in 0u32..=0o7777,
        ids in prop_oneof![Just((0, 0)), any::<(u32, u32)>()],
        seconds in prop_oneof![0..2_000_000_000i64, -5_000_000_000i64..20_000_000_000],
        nanos in prop_oneof![Just(0), 0..1_000_000_000u32],
        bytes in collection::vec(any::<u8>(), 0..2000),
        xattrs in collection::btree_map("[a-z.]{1,20}", collection::vec(any::<u8>(), 0..50), 0..3),
        uname in "[a-z]{0,40}",
    ) -> (Entry, Vec<u8>) {
        let bytes = if kind == EntryKind::File { bytes } else { Vec::new() };
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> =
            xattrs.into_iter().map(|(name, value)| (format!("user.{name}").into_bytes(), value)).collect();
        let entry = Entry {
            path,
            kind,
            mode,
            uid: ids.0.into(),
            gid: ids.1.into(),
            mtime: (seconds, nanos),
            size: bytes.len() as u64,
            xattrs,
            uname: uname.into_bytes(),
            gname: Vec::new(),
        };
        (entry, bytes)
    }
}

fn entries() -> impl Strategy<Value = Vec<(Entry, Vec<u8>)>> {
    collection::vec(entry(), 0..8)
}
