//! The file index of a layer, as it lies on the disk.
//!
//! # Statements
//!
//! - What is decoded is encoded as what is decoded as the same.
//! - Each entry is found at its place, covers its path, and lies beneath those above it.
//! - Whatever the states of a stream are, a part that is too short or wrong has an error.

use std::io;
use std::io::Read as _;

use thunk::snapshot::Cover;
use thunk::snapshot::IndexContent;
use thunk::snapshot::LayerIndex;

use crate::Target;
use crate::jail;
use crate::mutate_bytes;
use crate::samples;
use crate::unpack;

pub(crate) const TARGET: Target = Target { name: "index", run, mutate: mutate_bytes, seeds };

/// Bytes of a part that are made up.
const MOST: u64 = 64 << 10;

fn run(data: &[u8]) {
    let Ok(index) = LayerIndex::decode(data) else { return };
    assert_eq!(LayerIndex::decode(&index.encode()).as_ref(), Ok(&index));

    for (at, entry) in index.entries().iter().enumerate() {
        let path = entry.path.as_slice();
        assert_eq!(index.position(path), Some(at));
        assert_eq!(index.beneath(path).first(), Some(entry));
        match (&entry.content, index.cover(path)) {
            (IndexContent::Present(file), Cover::Present(found)) => assert_eq!(**file, *found),
            (IndexContent::Whiteout, Cover::Hidden) => {}
            (IndexContent::Opaque, Cover::Implied { opaque: true }) => {}
            (content, cover) => panic!("{content:?} covers its path as {cover:?}"),
        }
        for (slash, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            assert_ne!(index.cover(&path[..slash]), Cover::No);
        }
        if let IndexContent::Present(file) = &entry.content
            && let Some(end) = file.offset.checked_add(file.size)
        {
            part(&index, file.offset..end);
        }
    }
    part(&index, 0..index.checks().last().0);
    for member in index.members().as_slice() {
        assert_eq!(index.members().before(member.plain), Some(*member));
        assert_eq!(index.members().behind(member.plain), Some(*member));
    }
}

fn part(index: &LayerIndex, range: std::ops::Range<u64>) {
    let Some(around) = index.checks().around(&range) else { return };
    assert!(around.start <= range.start && range.end <= around.end);
    let zeros = io::repeat(0).take(MOST);
    let mut part = index.checks().verify(&around, zeros).expect("it has states at its ends");
    if let Ok(read) = io::copy(&mut part, &mut io::sink()) {
        assert_eq!(read, around.end - around.start);
    }
}

/// The indexes of layers.
fn seeds() -> Vec<Vec<u8>> {
    let mut layers = samples::archives();
    layers.extend(samples::streams());
    jail::imprison(move || layers.iter().filter_map(|layer| unpack::index_of(layer)).collect())
}
