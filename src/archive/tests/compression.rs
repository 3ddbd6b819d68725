//! Streams in and out of their compressions.

use std::io;
use std::io::Read;
use std::io::Write;
use std::process::Stdio;

use data_encoding::HEXLOWER;
use proptest::collection;
use proptest::prelude::*;

use super::super::ArchiveError;
use super::super::Compression;
use super::super::Decoder;
use super::super::Encoder;
use super::super::HashingReader;
use super::super::HashingWriter;
use super::tool;

const ALL: [Compression; 3] = [Compression::Uncompressed, Compression::Gzip, Compression::Zstd];

fn encode(bytes: &[u8], compression: Compression, level: Option<i32>) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, level).expect("a level");
    encoder.write_all(bytes).expect("it is written");
    encoder.finish().expect("it is whole")
}

fn decode(stream: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    Decoder::new(stream).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes that compress somewhat, and that no two places have in common.
fn sample(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|at| if at % 3 == 0 { step() } else { (at >> 8) as u8 }).collect()
}

#[test]
fn streams_of_several_members_come_back() {
    for length in [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7] {
        let bytes = sample(length);
        for compression in ALL {
            let stream = encode(&bytes, compression, None);
            let mut decoder = Decoder::new(stream.as_slice());
            if compression != Compression::Uncompressed {
                assert_eq!(decoder.compression().expect("it is read"), compression);
                assert!(length < 100 || stream.len() < length, "{compression} compresses");
            }
            let mut back = Vec::new();
            decoder.read_to_end(&mut back).expect("it is whole");
            assert!(back == bytes, "{compression} of {length} bytes");
        }
    }
}

#[test]
fn how_bytes_are_written_changes_nothing_of_the_stream() {
    let bytes = sample((4 << 20) + 12_345);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let whole = encode(&bytes, compression, Some(1));
        let mut encoder = Encoder::new(Vec::new(), compression, Some(1)).expect("a level");
        for (at, part) in bytes.chunks(77_777).enumerate() {
            encoder.write_all(part).expect("it is written");
            if at % 5 == 0 {
                encoder.flush().expect("it is flushed");
            }
        }
        assert!(encoder.finish().expect("it is whole") == whole, "{compression}");
    }
}

#[test]
fn gzip_members_carry_no_time_and_no_system() {
    let stream = encode(b"x", Compression::Gzip, None);
    assert_eq!(stream[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
}

#[test]
fn the_programs_read_our_streams() {
    let bytes = sample(3 << 20);
    for (program, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd)] {
        let Some(mut command) = tool(program) else { continue };
        let mut child =
            command.args(["-dc"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        let stream = encode(&bytes, compression, None);
        let writer = std::thread::spawn(move || stdin.write_all(&stream));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("no panic").expect("it is taken");
        assert!(output.status.success() && output.stdout == bytes, "{program}");
    }
}

#[test]
fn levels_are_those_of_the_programs() {
    let bytes = sample(300_000);
    for (compression, good, bad) in
        [(Compression::Gzip, [-1, 0, 1, 9], [-2, 10]), (Compression::Zstd, [-7, 0, 1, 22], [-8, 23])]
    {
        for level in good {
            let stream = encode(&bytes, compression, Some(level));
            assert!(decode(&stream).expect("it is whole") == bytes, "{compression} {level}");
        }
        for level in bad {
            let error = Encoder::new(Vec::new(), compression, Some(level)).expect_err("no such level");
            assert!(matches!(error, ArchiveError::Level { .. }), "{error}");
        }
    }
}

#[test]
fn members_that_follow_one_another_are_one_stream() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut stream = encode(b"one ", compression, None);
        stream.extend(encode(b"", compression, None));
        stream.extend(encode(b"two", compression, None));
        assert_eq!(decode(&stream).expect("it is whole"), b"one two", "{compression}");
        stream.resize(stream.len() + 1_000_000, 0);
        assert_eq!(decode(&stream).expect("zeros are padding"), b"one two", "{compression}");
        stream.push(1);
        assert!(matches!(decode(&stream), Err(ArchiveError::Compressed { .. })), "{compression}");
    }
    let mut stream = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    stream.extend(encode(b"after", Compression::Zstd, None));
    assert_eq!(decode(&stream).expect("a skippable frame is skipped"), b"after");
}

#[test]
fn a_stream_that_is_cut_or_changed_is_corrupt() {
    let bytes = sample(100_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let stream = encode(&bytes, compression, None);
        for cut in [5, 20, stream.len() / 2, stream.len() - 1] {
            let error = decode(&stream[..cut]).expect_err("it is cut");
            assert!(matches!(error, ArchiveError::Compressed { .. }), "{compression} at {cut}: {error}");
        }
        let mut changed = stream.clone();
        let last = changed.len() - 3;
        changed[last] ^= 0x40;
        assert!(matches!(decode(&changed), Err(ArchiveError::Compressed { .. })), "{compression}");
    }
}

#[test]
fn an_error_of_the_source_stays_what_it_was() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the peer went"))
        }
    }
    for compression in ALL {
        let stream = encode(&sample(10_000), compression, None);
        let half = &stream[..stream.len() / 2];
        let error = io::copy(&mut Decoder::new(half.chain(Fails)), &mut io::sink()).expect_err("it fails");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{compression}: {error}");
        assert_eq!(error.to_string(), "the peer went");
    }
}

#[test]
fn a_sink_that_fails_ends_the_encoder() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut encoder = Encoder::new(Full, Compression::Gzip, None).expect("a level");
    let error = io::copy(&mut io::repeat(1).take(64 << 20), &mut encoder).expect_err("the sink is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn what_passes_is_hashed() {
    let (written, hashed) = {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"abc").expect("it is written");
        writer.finish()
    };
    assert_eq!((written.as_slice(), hashed.size), (&b"abc"[..], 3));
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(HEXLOWER.encode(&hashed.sha256), abc);
    let mut reader = HashingReader::new(&b"abc"[..]);
    io::copy(&mut reader, &mut io::sink()).expect("it is read");
    assert_eq!(reader.finish().1, hashed);
}

#[test]
fn a_stream_can_be_entered_where_a_member_begins() {
    let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n ^ (n >> 9)) as u8).collect();
    for (compression, count) in
        [(Compression::Uncompressed, 0), (Compression::Gzip, 5), (Compression::Zstd, 3)]
    {
        let encoded = encode(&bytes, compression, None);
        let mut decoder = Decoder::new(encoded.as_slice());
        assert_eq!(io::copy(&mut decoder, &mut io::sink()).expect("it is whole"), 5 << 20);
        let members = decoder.members().as_slice();
        assert_eq!(members.len(), count, "{compression}");
        for member in members {
            let rest = decode(&encoded[member.compressed as usize..]).expect("a member begins");
            assert!(rest == bytes[member.plain as usize..], "{compression} {member:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_come_back(bytes in collection::vec(any::<u8>(), 0..5000)) {
        for compression in [Compression::Gzip, Compression::Zstd] {
            prop_assert_eq!(&decode(&encode(&bytes, compression, None)).expect("it is whole"), &bytes);
        }
    }
}
