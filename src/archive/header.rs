//! The 512-byte blocks before each entry (POSIX.1-2001 `pax`, "ustar Interchange Format"; GNU tar's
//! `tar.h` for what GNU puts into the same places).

use super::ArchiveError;
use super::Extent;

pub(super) const BLOCK: usize = 512;

pub(super) type Block = [u8; BLOCK];

/// What the magic says about the fields behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// No magic: nothing behind the link's target counts.
    V7,
    Ustar,
    /// Schilling's: times in the tail of the prefix.
    Star,
    /// Times and sparse runs where ustar has the prefix.
    Gnu,
}

/// A block that was read.
pub(super) struct Raw<'a> {
    block: &'a Block,
    /// Where it stands in the stream, for errors.
    offset: u64,
    pub(super) dialect: Dialect,
}

impl<'a> Raw<'a> {
    /// Takes the block if its checksum holds. The sum is over unsigned bytes; old programs summed signed
    /// ones, which is taken too.
    pub(super) fn parse(block: &'a Block, offset: u64) -> Result<Raw<'a>, ArchiveError> {
        let dialect = match &block[257..265] {
            [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..] == b"tar\0" => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        };
        let raw = Raw { block, offset, dialect };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        let noted = number(&block[148..156]).ok_or_else(|| raw.wrong("its checksum is no number"))?;
        if noted != unsigned && noted != signed {
            return Err(raw.wrong("its checksum is wrong"));
        }
        Ok(raw)
    }

    pub(super) fn wrong(&self, reason: &'static str) -> ArchiveError {
        ArchiveError::Header { offset: self.offset, reason }
    }

    pub(super) fn flag(&self) -> u8 {
        self.block[156]
    }

    /// The name with the prefix that the dialect has.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            // Go's writer before 1.8 put a prefix where GNU has times, which then are no numbers.
            Dialect::Gnu if number(&self.block[345..357]).is_none() => text(&self.block[345..500]),
            Dialect::Gnu | Dialect::V7 => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, ArchiveError> {
        Ok(self.all_of_mode()? & 0o7777)
    }

    /// With the bits beyond permissions, where some archivers note the kind.
    pub(super) fn all_of_mode(&self) -> Result<u32, ArchiveError> {
        let mode = number(&self.block[100..108]).ok_or_else(|| self.wrong("the mode is no number"))?;
        // Beyond the bits that the field has in octal there is nothing that anybody has given a meaning.
        Ok((mode & 0o777_7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, ArchiveError> {
        self.natural(108, 116, "the owner is no number")
    }

    pub(super) fn gid(&self) -> Result<u64, ArchiveError> {
        self.natural(116, 124, "the group is no number")
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        self.natural(124, 136, "the size is no number")
    }

    pub(super) fn mtime(&self) -> Result<i64, ArchiveError> {
        number(&self.block[136..148]).ok_or_else(|| self.wrong("the time is no number"))
    }

    pub(super) fn uname(&self) -> Vec<u8> {
        if self.dialect == Dialect::V7 { Vec::new() } else { text(&self.block[265..297]).to_vec() }
    }

    pub(super) fn gname(&self) -> Vec<u8> {
        if self.dialect == Dialect::V7 { Vec::new() } else { text(&self.block[297..329]).to_vec() }
    }

    /// Major and minor number, which V7 has not.
    pub(super) fn device(&self) -> Result<(u32, u32), ArchiveError> {
        if self.dialect == Dialect::V7 {
            return Err(self.wrong("a device without numbers"));
        }
        let reason = "the device is no number";
        let take = |from, to| u32::try_from(self.natural(from, to, reason)?).map_err(|_| self.wrong(reason));
        Ok((take(329, 337)?, take(337, 345)?))
    }

    /// Logical size, runs and whether blocks with more of them follow, of GNU's own sparse files.
    pub(super) fn gnu_sparse(&self) -> Result<(u64, Vec<Extent>, bool), ArchiveError> {
        if self.dialect != Dialect::Gnu {
            return Err(self.wrong("a sparse file of GNU's in an archive that isn't"));
        }
        let size = self.natural(483, 495, "the size of a sparse file is no number")?;
        let runs = runs(&self.block[386..482]).ok_or_else(|| self.wrong("a sparse file's runs"))?;
        Ok((size, runs, self.block[482] != 0))
    }

    fn natural(&self, from: usize, to: usize, reason: &'static str) -> Result<u64, ArchiveError> {
        number(&self.block[from..to]).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| self.wrong(reason))
    }
}

/// The runs of a block that continues GNU's sparse header, and whether another follows.
pub(super) fn more_runs(block: &Block) -> Option<(Vec<Extent>, bool)> {
    Some((runs(&block[..504])?, block[504] != 0))
}

/// Runs up to the first that is empty.
fn runs(field: &[u8]) -> Option<Vec<Extent>> {
    let natural = |field| number(field).and_then(|n| u64::try_from(n).ok());
    field
        .chunks_exact(24)
        .take_while(|run| run[0] != 0)
        .map(|run| Some(Extent { offset: natural(&run[..12])?, length: natural(&run[12..])? }))
        .collect()
}

/// A field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number: octal between spaces and NULs, or big-endian two's complement when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let fill = if field[0] & 0x40 != 0 { 0xff } else { 0 };
        // The first bit is the mark, the second one the sign.
        let first = if fill == 0 { field[0] & 0x7f } else { field[0] };
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        let mut bytes = [fill; 8];
        bytes[8 - low.len()..].copy_from_slice(low);
        if high.is_empty() {
            bytes[8 - low.len()] = first;
        } else if first != fill || high[1..].iter().any(|&b| b != fill) {
            return None;
        }
        let value = i64::from_be_bytes(bytes);
        return ((value < 0) == (fill != 0)).then_some(value);
    }
    let start = field.iter().position(|&b| b != 0 && b != b' ').unwrap_or(field.len());
    let digits = text(&field[start..]);
    let end = digits.iter().rposition(|&b| b != b' ').map_or(0, |at| at + 1);
    digits[..end].iter().try_fold(0i64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// Fields of a block to write, with the text as it goes into it.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) name: &'a [u8],
    pub(super) prefix: &'a [u8],
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) flag: u8,
    pub(super) link: &'a [u8],
    pub(super) uname: &'a [u8],
    pub(super) gname: &'a [u8],
    /// `None` leaves the fields without digits, as in the headers of extended headers.
    pub(super) device: Option<(u32, u32)>,
}

impl Fields<'_> {
    /// The block. A number that doesn't fit is written as zero and text is cut: an extended header says
    /// what they are.
    pub(super) fn block(&self) -> Block {
        let mut block = [0; BLOCK];
        put_text(&mut block[..100], self.name);
        put_number(&mut block[100..108], u64::from(self.mode));
        put_number(&mut block[108..116], self.uid);
        put_number(&mut block[116..124], self.gid);
        put_number(&mut block[124..136], self.size);
        put_number(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0));
        block[156] = self.flag;
        put_text(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        put_text(&mut block[265..297], self.uname);
        put_text(&mut block[297..329], self.gname);
        if let Some((major, minor)) = self.device {
            put_number(&mut block[329..337], u64::from(major));
            put_number(&mut block[337..345], u64::from(minor));
        }
        put_text(&mut block[345..500], self.prefix);
        block[148..156].fill(b' ');
        let sum = block.iter().map(|&b| u64::from(b)).sum();
        put_number(&mut block[148..155], sum);
        block
    }
}

/// True if a field of `room` bytes holds `value` in octal, with its NUL.
pub(super) fn fits(value: u64, room: usize) -> bool {
    value < 1 << (3 * (room - 1))
}

fn put_number(field: &mut [u8], value: u64) {
    let mut value = if fits(value, field.len()) { value } else { 0 };
    let (end, digits) = field.split_last_mut().expect("a field has bytes");
    *end = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Text that is cut must not end in a slash: it would make a directory of a file for some readers.
fn put_text(field: &mut [u8], text: &[u8]) {
    let mut kept = &text[..text.len().min(field.len())];
    if text.len() > field.len() {
        while let [start @ .., b'/'] = kept {
            kept = start;
        }
    }
    field[..kept.len()].copy_from_slice(kept);
}
