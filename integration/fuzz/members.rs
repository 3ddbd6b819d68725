//! Changes archives so that they stay archives.
//!
//! A header whose checksum is wrong ends an archive, and so does a record whose length is: bytes that are changed
//! anywhere would hardly ever lead further. Here whole members move, fields get what other fields have, and what
//! counts something is counted again.

use crate::random::Random;

const BLOCK: usize = 512;

/// Where the fields of a header are: name, mode, owner, group, size, time, link, magic, owner's and group's names,
/// device numbers, prefix, GNU's runs.
const FIELDS: [(usize, usize); 13] = [
    (0, 100),
    (100, 108),
    (108, 116),
    (116, 124),
    (124, 136),
    (136, 148),
    (157, 257),
    (257, 265),
    (265, 297),
    (297, 329),
    (329, 345),
    (345, 500),
    (386, 495),
];

const NAME: (usize, usize) = (0, 100);
const LINK: (usize, usize) = (157, 257);
const FLAG: usize = 156;

const FLAGS: &[u8] = b"00000111222222345555567LKSDVxg\0";

const MAGICS: [&[u8; 8]; 3] = [b"ustar\x0000", b"ustar  \0", &[0; 8]];

/// Names that lead somewhere, or have a meaning.
const NAMES: [&[u8]; 22] = [
    b"a",
    b"b",
    b"c",
    b"a/b",
    b"a/b/c",
    b"b/",
    b".",
    b"./",
    b"..",
    b"../",
    b"../outside",
    b"../../outside/file",
    b"/outside",
    b"/",
    b"outside",
    b"a/../b",
    b".wh.a",
    b".wh.b",
    b".wh.c",
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh..",
];

const KEYS: [&[u8]; 24] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"uname",
    b"gname",
    b"mtime",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.user.b",
    b"SCHILY.xattr.security.capability",
    b"SCHILY.xattr.trusted.overlay.opaque",
    b"SCHILY.xattr.trusted.t",
    b"SCHILY.xattr.",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.size",
    b"GNU.sparse.realsize",
    b"GNU.sparse.name",
    b"GNU.sparse.map",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.offset",
    b"GNU.sparse.numbytes",
    b"comment",
];

const NUMBERS: [&[u8]; 16] = [
    b"0",
    b"1",
    b"2",
    b"511",
    b"512",
    b"513",
    b"1024",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551615",
    b"-1",
    b"1.5",
    b"-0.000000001",
    b"0,1",
    b"0,512,1024,512",
];

/// A header with its data, or a block of zeros, or what is left at the end.
type Piece = Vec<u8>;

/// Takes an archive apart as its reader does.
pub(crate) fn pieces(archive: &[u8]) -> Vec<Piece> {
    let (mut pieces, mut rest) = (Vec::new(), archive);
    while !rest.is_empty() {
        let length = if is_header(rest) { BLOCK.saturating_add(padded(stored(rest))) } else { BLOCK };
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece.to_vec());
        rest = after;
    }
    pieces
}

/// Archives that follow one another, each up to its two blocks of zeros.
pub(crate) fn archives(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut zeros) = (vec![Vec::new()], 0);
    for piece in pieces(bytes) {
        zeros = if piece.iter().all(|&byte| byte == 0) { zeros + 1 } else { 0 };
        all.last_mut().expect("there is one").extend_from_slice(&piece);
        if zeros == 2 {
            zeros = 0;
            all.push(Vec::new());
        }
    }
    all.retain(|archive| !archive.is_empty());
    all
}

/// An archive that was changed: most often one whose headers still are some.
pub(crate) fn mutate(data: &mut [u8], size: usize, max: usize, random: &mut Random) -> usize {
    if random.one_in(24) {
        return random.change(data, size, max);
    }
    let mut size = size;
    if random.one_in(6) {
        size = random.change(data, size, max);
    }
    let mut pieces = pieces(&data[..size]);
    for _ in 0..=random.below(4) {
        change(&mut pieces, random);
    }
    pieces.iter_mut().for_each(|piece| mend(piece));
    let mut archive = pieces.concat();
    archive.truncate(max);
    data[..archive.len()].copy_from_slice(&archive);
    archive.len()
}

fn change(pieces: &mut Vec<Piece>, random: &mut Random) {
    if pieces.is_empty() {
        pieces.push(header(random));
    }
    let (at, other) = (random.below(pieces.len()), random.below(pieces.len()));
    match random.below(14) {
        0 => pieces.swap(at, other),
        1 => {
            let copy = pieces[at].clone();
            pieces.insert(other, copy);
        }
        2 => drop(pieces.remove(at)),
        3 => pieces.insert(at, header(random)),
        4 => pieces.insert(at, vec![0; BLOCK]),
        5 => pieces.insert(at, extended(pieces, random)),
        6 => {
            // Two blocks end an archive, and another one may follow.
            pieces.insert(at, vec![0; 2 * BLOCK]);
        }
        7..=13 if !is_header(&pieces[at]) => pieces[at] = header(random),
        7 => pieces[at][FLAG] = *random.pick(FLAGS),
        8 => {
            let name = name(pieces, random);
            put(&mut pieces[at], *random.pick(&[NAME, LINK]), &name);
        }
        9 => {
            let field = *random.pick(&FIELDS);
            mutate_field(&mut pieces[at], field, random);
        }
        10 => {
            let field = *random.pick(&FIELDS[1..6]);
            let mut number = random.pick(&NUMBERS).to_vec();
            if random.one_in(3) {
                number = format!("{:o}", 1u64 << random.below(40)).into_bytes();
            }
            put(&mut pieces[at], field, &number);
        }
        11 => {
            let magic = *random.pick(&MAGICS);
            pieces[at][257..265].copy_from_slice(magic);
        }
        12 => mutate_data(&mut pieces[at], random),
        _ => {
            if matches!(pieces[at][FLAG], b'x' | b'g') {
                let record = record(pieces, random);
                let mut text = data(&pieces[at]).to_vec();
                text.extend_from_slice(&record);
                set_data(&mut pieces[at], &text);
            } else {
                pieces.insert(at, extended(pieces, random));
            }
        }
    }
}

/// A new member without data.
fn header(random: &mut Random) -> Piece {
    let mut piece = vec![0; BLOCK];
    let name = *random.pick(&NAMES);
    put(&mut piece, NAME, name);
    put(&mut piece, (100, 108), b"0000755");
    put(&mut piece, (124, 136), b"00000000000");
    piece[FLAG] = *random.pick(FLAGS);
    if matches!(piece[FLAG], b'1' | b'2') {
        let target = *random.pick(&NAMES);
        put(&mut piece, LINK, target);
    }
    piece[257..265].copy_from_slice(*random.pick(&MAGICS));
    piece
}

/// A new header with a record or a long name for what follows.
fn extended(pieces: &[Piece], random: &mut Random) -> Piece {
    let mut piece = header(random);
    piece[FLAG] = *random.pick(b"xxxxgLK");
    let text = if matches!(piece[FLAG], b'x' | b'g') {
        (0..=random.below(4)).flat_map(|_| record(pieces, random)).collect()
    } else {
        [name(pieces, random), vec![0]].concat()
    };
    set_data(&mut piece, &text);
    piece
}

fn record(pieces: &[Piece], random: &mut Random) -> Vec<u8> {
    let key = random.pick(&KEYS).to_vec();
    let value = if random.one_in(3) { name(pieces, random) } else { random.pick(&NUMBERS).to_vec() };
    framed(&[key, value].join(&b'='))
}

/// A record's line behind its length, which counts itself.
fn framed(text: &[u8]) -> Vec<u8> {
    let rest = text.len() + 2;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    [format!("{length} ").as_bytes(), text, b"\n"].concat()
}

/// A name that is there, one that has a meaning, or both.
fn name(pieces: &[Piece], random: &mut Random) -> Vec<u8> {
    let piece = random.pick(pieces);
    let (start, end) = *random.pick(&[NAME, LINK]);
    let there = piece.get(start..end).map(until_nul).unwrap_or_default();
    let known = *random.pick(&NAMES);
    match random.below(5) {
        0 => known.to_vec(),
        1 => there.to_vec(),
        2 => [there, b"/", known].concat(),
        3 => [known, b"/", there].concat(),
        _ => [b".wh.", there].concat(),
    }
}

fn mutate_field(piece: &mut Piece, (start, end): (usize, usize), random: &mut Random) {
    let room = end - start;
    let used = until_nul(&piece[start..end]).len();
    let used = random.change(&mut piece[start..end], used, room);
    piece[start + used..end].fill(0);
}

fn mutate_data(piece: &mut Piece, random: &mut Random) {
    let mut text = data(piece).to_vec();
    let used = text.len();
    text.resize(used + 1 + random.below(64), 0);
    let room = text.len();
    let used = random.change(&mut text, used, room);
    text.truncate(used);
    if matches!(piece[FLAG], b'x' | b'g') && !random.one_in(8) {
        text = reframed(&text);
    }
    set_data(piece, &text);
}

/// The lines of an extended header with the lengths that they have.
fn reframed(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| line.contains(&b'='));
    lines.flat_map(|line| framed(line.splitn(2, |&byte| byte == b' ').last().unwrap_or_default())).collect()
}

fn data(piece: &[u8]) -> &[u8] {
    let end = BLOCK.saturating_add(stored(piece)).min(piece.len());
    &piece[BLOCK..end]
}

fn set_data(piece: &mut Piece, text: &[u8]) {
    piece.truncate(BLOCK);
    let size = format!("{:011o}", text.len());
    put(piece, (124, 136), size.as_bytes());
    piece.extend_from_slice(text);
    piece.resize(BLOCK + padded(text.len()), 0);
}

fn put(piece: &mut Piece, (start, end): (usize, usize), text: &[u8]) {
    let field = &mut piece[start..end];
    field.fill(0);
    let kept = text.len().min(field.len());
    field[..kept].copy_from_slice(&text[..kept]);
}

/// Makes the checksum of a header right.
fn mend(piece: &mut [u8]) {
    if !is_header(piece) {
        return;
    }
    piece[148..156].fill(b' ');
    let sum: u32 = piece[..BLOCK].iter().map(|&byte| u32::from(byte)).sum();
    piece[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn is_header(piece: &[u8]) -> bool {
    piece.get(..BLOCK).is_some_and(|block| block.iter().any(|&byte| byte != 0))
}

/// Bytes that are behind a header, as far as it says so by itself.
fn stored(header: &[u8]) -> usize {
    if matches!(header[FLAG], b'1'..=b'6') {
        return 0;
    }
    let field = &header[124..136];
    if field[0] & 0x80 != 0 {
        return field[8..].iter().fold(0, |size, &byte| size << 8 | usize::from(byte));
    }
    let digits =
        field.iter().skip_while(|&&byte| byte == b' ').take_while(|byte| (b'0'..=b'7').contains(*byte));
    digits.fold(0, |size, &byte| size << 3 | usize::from(byte - b'0'))
}

fn padded(size: usize) -> usize {
    size.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX)
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}
