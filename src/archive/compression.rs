//! The compressions that layers have.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Compression {
    Uncompressed,
    Gzip,
    Zstd,
}

impl Compression {
    /// True if it has that level, as [`Encoder`](super::Encoder) counts them.
    pub fn has_level(self, level: i32) -> bool {
        match self {
            Compression::Uncompressed => true,
            Compression::Gzip => (-1..=9).contains(&level),
            Compression::Zstd => (-7..=22).contains(&level),
        }
    }

    /// Bytes of the longest magic number that [`Compression::detect`] looks at.
    pub const MAGIC_BYTES: usize = 4;

    /// The compression that a stream with these first bytes has. A stream of anything else is taken as
    /// it is; a zstd stream may begin with a skippable frame.
    pub fn detect(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Uncompressed,
        }
    }

    /// The name that exporters' `compression` attribute has for it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Uncompressed => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
