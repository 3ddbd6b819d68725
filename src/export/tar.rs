//! Headers of the archives that we write: POSIX ustar, with a pax header where a name or a size does
//! not fit. Owner, group and time are zero, so that equal images are equal archives.

/// Archives consist of blocks of this many bytes.
const BLOCK: usize = 512;

/// What two zero blocks at the end are.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The largest size that eleven octal digits hold.
const MAX_USTAR_SIZE: u64 = (1 << 33) - 1;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    Directory,
}

/// The blocks that come before an entry's bytes.
pub(super) fn header(name: &str, mode: u32, kind: Kind, size: u64) -> Vec<u8> {
    let flag = match kind {
        Kind::File => b'0',
        Kind::Directory => b'5',
    };
    let mut extended = String::new();
    if name.len() > 100 {
        extended.push_str(&record("path", name));
    }
    if size > MAX_USTAR_SIZE {
        extended.push_str(&record("size", &size.to_string()));
    }
    let mut out = Vec::with_capacity(BLOCK);
    if !extended.is_empty() {
        out.extend(block("PaxHeaders.0/entry", 0o644, b'x', extended.len() as u64));
        out.extend(extended.as_bytes());
        out.resize(out.len() + padding(extended.len() as u64).len(), 0);
    }
    out.extend(block(name, mode, flag, if size > MAX_USTAR_SIZE { 0 } else { size }));
    out
}

/// The zeros between the end of an entry of `size` bytes and the next block.
pub(super) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { &[] } else { &ZEROS[over..] }
}

/// A pax record, whose length counts its own digits.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length += 1;
    }
    format!("{length} {key}={value}\n")
}

fn block(name: &str, mode: u32, flag: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str, room: usize| {
        let bytes = &text.as_bytes()[..text.len().min(room)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, name, 100);
    put(100, &format!("{mode:07o}"), 8);
    put(108, "0000000", 8);
    put(116, "0000000", 8);
    put(124, &format!("{size:011o}"), 12);
    put(136, "00000000000", 12);
    put(148, "        ", 8);
    put(257, "ustar\x0000", 8);
    put(329, "0000000", 8);
    put(337, "0000000", 8);
    block[156] = flag;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn another_reader_sees_the_same_entries(
            entries in proptest::collection::vec(("[a-z]{1,140}(/[a-z]{1,90})?", 0usize..1500), 1..5)
        ) {
            let mut archive = Vec::new();
            for (name, size) in &entries {
                archive.extend(header(name, 0o444, Kind::File, *size as u64));
                archive.extend(vec![7; *size]);
                archive.extend(padding(*size as u64));
            }
            archive.extend(END);
            prop_assert_eq!(archive.len() % BLOCK, 0);
            let mut reader = tar::Archive::new(archive.as_slice());
            let mut read = Vec::new();
            for entry in reader.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                prop_assert_eq!(entry.header().mode().unwrap(), 0o444);
                prop_assert!(bytes.iter().all(|b| *b == 7));
                read.push((entry.path().unwrap().to_string_lossy().into_owned(), bytes.len()));
            }
            prop_assert_eq!(read, entries);
        }
    }

    #[test]
    fn a_directory_and_a_huge_file_have_their_kind_and_size() {
        let directory = header("blobs/", 0o755, Kind::Directory, 0);
        assert_eq!((directory.len(), directory[156]), (BLOCK, b'5'));
        let huge = header("x", 0o444, Kind::File, 1 << 34);
        let mut archive = huge;
        archive.extend(END);
        let mut reader = tar::Archive::new(archive.as_slice());
        let entry = reader.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.size(), 1 << 34);
    }
}
