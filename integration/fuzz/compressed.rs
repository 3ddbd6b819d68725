//! The decompressor, and an archive behind it.
//!
//! # Statements
//!
//! - However the bytes come and are taken, the same bytes come out; of a broken stream, those before the error. Whether
//!   it is broken depends on neither, with one exception: where a frame of zstd has all of its bytes there, libzstd also
//!   holds them against the size that the frame states.
//! - Where the stream can be entered, what comes out from there is the rest.
//! - What is compressed comes out again.

use std::io;
use std::io::Read;
use std::io::Write as _;

use thunk::archive::AbsolutePaths;
use thunk::archive::Compression;
use thunk::archive::Decoder;
use thunk::archive::Encoder;
use thunk::archive::Limits;
use thunk::archive::Reader;

use crate::Target;
use crate::mutate_bytes;
use crate::samples;

pub(crate) const TARGET: Target =
    Target { name: "compressed", run, mutate: mutate_bytes, seeds: samples::streams };

/// Bytes that are taken of a stream.
const MOST: usize = 1 << 20;

fn run(data: &[u8]) {
    let mut decoder = Decoder::new(data);
    let (plain, whole) = read(&mut decoder, |_| 64 << 10);
    let members = decoder.members().clone();

    let mut slow = Decoder::new(OneByOne(data));
    let (same, also_whole) = read(&mut slow, |at| 1 + at % 1013);
    if whole && also_whole {
        assert!(plain == same && members == *slow.members());
    } else {
        let zstd = decoder.compression().is_ok_and(|compression| compression == Compression::Zstd);
        assert!(zstd || whole == also_whole);
        let most = plain.len().min(same.len());
        assert_eq!(plain[..most], same[..most]);
    }

    if whole {
        for member in members.as_slice() {
            let mut entered = Decoder::new(&data[member.compressed as usize..]);
            let (rest, also_whole) = read(&mut entered, |_| 4096);
            assert!(also_whole && rest == plain[member.plain as usize..]);
        }
    }
    let limits = Limits { entries: 1000, expanded_bytes: MOST as u64, ..Limits::default() };
    let mut reader = Reader::with(Decoder::new(data), limits, AbsolutePaths::Refuse);
    while let Ok(Some(_)) = reader.next_entry() {}

    let compression = match data.first() {
        Some(first) if first.is_multiple_of(7) => Compression::Gzip,
        Some(first) if first.is_multiple_of(5) => Compression::Zstd,
        _ => return,
    };
    let mut encoder = Encoder::new(Vec::new(), compression, None).expect("the default level");
    encoder.write_all(data).expect("a vector takes it");
    let encoded = encoder.finish().expect("a vector takes it");
    let (again, whole) = read(&mut Decoder::new(encoded.as_slice()), |_| 4096);
    assert!(whole && again == data);
}

/// What comes out, and whether that ended without an error. `size` says how many bytes are asked for after so many.
fn read<R: Read>(decoder: &mut Decoder<R>, size: impl Fn(usize) -> usize) -> (Vec<u8>, bool) {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while bytes.len() < MOST {
        let room = size(bytes.len()).min(MOST - bytes.len());
        match decoder.read(&mut buffer[..room]) {
            Ok(0) => return (bytes, true),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(_) => return (bytes, false),
        }
    }
    (bytes, false)
}

struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}
