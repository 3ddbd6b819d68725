//! How much an archive may ask for.

/// What is refused beyond these is refused with [`ArchiveError::TooMuch`](super::ArchiveError::TooMuch).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Members of an archive.
    pub entries: u64,
    /// Length of a path or of a link's target. The kernel takes 4,095.
    pub path_bytes: usize,
    /// Length of one component of a path. The kernel takes 255.
    pub name_bytes: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of the extended headers of one entry: long names, pax records with their attributes.
    pub header_bytes: u64,
    /// Runs of one sparse file.
    pub extents: usize,
    /// Bytes of the uncompressed stream, and, counted apart, the logical sizes of all files together.
    pub expanded_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 10_000_000,
            path_bytes: 4095,
            name_bytes: 255,
            depth: 512,
            header_bytes: 1 << 20,
            extents: 1 << 20,
            expanded_bytes: 1 << 40,
        }
    }
}
