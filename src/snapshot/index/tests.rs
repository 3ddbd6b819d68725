//! The compact form, and what a layer says of a path.

use proptest::collection;
use proptest::prelude::*;

use super::Cover;
use super::IndexBuilder;
use super::LayerIndex;
use crate::archive::Checks;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Member;
use crate::archive::Members;

fn index(steps: &[(&str, char)]) -> LayerIndex {
    let mut builder = IndexBuilder::default();
    for (path, what) in steps {
        match what {
            'w' => builder.whiteout(path.as_bytes()),
            'o' => builder.opaque(path.as_bytes()),
            'd' => builder.put(Entry::new(*path, EntryKind::Dir), 0, true),
            _ => builder.put(Entry::new(*path, EntryKind::File), 0, true),
        }
    }
    builder.finish()
}

fn said(index: &LayerIndex, path: &str) -> &'static str {
    match index.cover(path.as_bytes()) {
        Cover::No => "no",
        Cover::Hidden => "hidden",
        Cover::Implied { opaque: false } => "implied",
        Cover::Implied { opaque: true } => "implied opaque",
        Cover::Present(file) if file.kind == EntryKind::Dir && file.opaque => "opaque",
        Cover::Present(file) if file.kind == EntryKind::Dir => "dir",
        Cover::Present(_) => "file",
    }
}

#[test]
fn a_layer_covers_what_it_has_removes_or_hides() {
    let index = index(&[
        ("dir", 'd'),
        ("dir/file", 'f'),
        ("dir/gone", 'w'),
        ("hides/new", 'f'),
        ("hides", 'o'),
        ("full", 'd'),
        ("full", 'w'),
        ("again", 'w'),
        ("again/f", 'f'),
        ("no-longer", 'd'),
        ("no-longer/f", 'f'),
        ("no-longer", 'f'),
        ("x-y", 'f'),
        ("x/y/z", 'f'),
    ]);
    for (path, expected) in [
        ("dir", "dir"),
        ("dir/file", "file"),
        ("dir/file/beneath", "hidden"),
        ("dir/gone", "hidden"),
        ("dir/gone/beneath", "hidden"),
        ("dir/other", "no"),
        ("hides", "implied opaque"),
        ("hides/new", "file"),
        ("hides/old", "hidden"),
        ("full", "opaque"),
        ("full/old", "hidden"),
        ("again", "implied opaque"),
        ("again/f", "file"),
        ("again/old", "hidden"),
        ("no-longer", "file"),
        ("no-longer/f", "hidden"),
        ("x", "implied"),
        ("x/y", "implied"),
        ("x/y/z", "file"),
        ("x/other", "no"),
        ("elsewhere", "no"),
        ("", "implied"),
    ] {
        assert_eq!(said(&index, path), expected, "{path}");
    }
    let beneath: Vec<_> = index.beneath(b"dir").iter().map(|entry| entry.path.as_slice()).collect();
    assert_eq!(beneath, [&b"dir"[..], b"dir/file", b"dir/gone"]);
    assert_eq!(index.beneath(b"x").len(), 1, "x-y is not beneath x");
    assert_eq!(index.beneath(b"").len(), index.entries().len());
    assert!(index.beneath(b"nothing").is_empty());
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        Just(EntryKind::File),
        Just(EntryKind::Dir),
        Just(EntryKind::Fifo),
        any::<Vec<u8>>().prop_map(|target| EntryKind::Symlink { target }),
        any::<Vec<u8>>().prop_map(|target| EntryKind::Hardlink { target }),
        any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
    ]
}

prop_compose! {
    fn put()(
        path in "[a-c-]{1,2}(/[a-c-]{1,2}){0,3}",
        kind in kind(),
        numbers in any::<(u32, u64, u64, i64, u32, u64, u64)>(),
        xattrs in collection::btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..3),
        contiguous in any::<bool>(),
    ) -> (Entry, u64, bool) {
        let mut entry = Entry::new(path, kind);
        let offset;
        (entry.mode, entry.uid, entry.gid, entry.mtime.0, entry.mtime.1, entry.size, offset) = numbers;
        if entry.kind != EntryKind::File {
            entry.size = 0;
        }
        entry.xattrs = xattrs;
        (entry, offset, contiguous)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_index_comes_back_from_its_compact_form(
        puts in collection::vec(put(), 0..20),
        whiteouts in collection::vec("[a-c]{1,2}(/[a-c]){0,2}", 0..5),
        states in collection::vec(any::<[u8; 32]>(), 0..5),
        members in collection::btree_map(1_u64..1 << 40, 1_u64..1 << 20, 0..5),
    ) {
        let mut builder = IndexBuilder::default();
        for path in whiteouts {
            builder.whiteout(path.as_bytes());
        }
        for (entry, offset, contiguous) in puts {
            builder.put(entry, offset, contiguous);
        }
        let end = states.len() as u64 * 128 + 64;
        let checks = Checks::new(128, states, end, [7; 32]).expect("they fit");
        let members = members.into_iter().scan(0, |compressed, (plain, length)| {
            *compressed += length;
            Some(Member { compressed: *compressed, plain })
        });
        let members = Members::new(members.collect()).expect("they ascend");
        let index = builder.finish().of_stream(checks, members);
        let bytes = index.encode();
        prop_assert_eq!(LayerIndex::decode(&bytes).expect("it is whole"), index);
        for cut in 0..bytes.len() {
            prop_assert!(LayerIndex::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn damaged_bytes_never_panic(bytes in collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let bytes = if magic { [b"TLI2", bytes.as_slice()].concat() } else { bytes };
        if let Ok(index) = LayerIndex::decode(&bytes) {
            let _ = index.cover(b"a/b");
        }
    }
}

#[test]
fn a_hard_link_keeps_what_it_links_to() {
    let mut builder = IndexBuilder::default();
    let mut put = |path: &str, kind: EntryKind, offset: u64| {
        let mut entry = Entry::new(path, kind);
        entry.size = offset;
        builder.put(entry, offset, true);
    };
    let link = |target: &str| EntryKind::Hardlink { target: target.as_bytes().to_vec() };
    put("a", EntryKind::File, 1);
    put("d", EntryKind::Dir, 0);
    put("d/b", link("a"), 0);
    put("c", link("d/b"), 0);
    put("a", link("c"), 0);
    put("e", link("c"), 0);
    put("f", EntryKind::File, 4);
    put("g", link("f"), 0);
    put("a", EntryKind::File, 2);
    put("d", EntryKind::File, 3);
    put("g", EntryKind::Fifo, 0);
    put("f", EntryKind::Fifo, 0);
    put("h", link("below"), 0);
    let index = builder.finish();
    let said = |path: &str| match index.cover(path.as_bytes()) {
        Cover::Present(file) => (file.kind.clone(), file.offset),
        other => panic!("{other:?}"),
    };
    for (path, kind, offset) in [
        ("a", EntryKind::File, 2),
        ("c", EntryKind::File, 1),
        ("d", EntryKind::File, 3),
        ("e", link("c"), 0),
        ("f", EntryKind::Fifo, 0),
        ("g", EntryKind::Fifo, 0),
        ("h", link("below"), 0),
    ] {
        assert_eq!(said(path), (kind, offset), "{path}");
    }
}
