//! Copies bytes, as few as the file system allows.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek as _;
use std::io::SeekFrom as Whence;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes that one call copies.
const CHUNK: u64 = 1 << 30;
/// Bytes of one write to a file at most.
///
/// The kernel caches what one write brings in one piece of memory if it can. Small pieces are those that were in use
/// lately; large ones often are not, and a virtual machine then asks its host for them, which was seen to cost ten
/// times what the copying does.
pub const PIECE: usize = 64 << 10;

/// Writes to a file at `at`, however many bytes it is given, in pieces.
pub fn write_pieces_at(file: &File, bytes: &[u8], mut at: u64) -> io::Result<()> {
    for piece in bytes.chunks(PIECE) {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Copies the whole content of `from` to the empty file `to`: by reference where the file system can, in the
/// kernel where not, with the holes that it has. Returns its length. Both files' positions are arbitrary afterwards.
pub fn copy_file(from: &File, to: &File) -> io::Result<u64> {
    let length = from.metadata()?.len();
    if length > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(length);
    }
    let mut copied = 0;
    while let Some((start, end)) = data(from, copied, length)? {
        copied = copy_range(from, to, start, end)?;
        if copied < end {
            // It became shorter meanwhile.
            return Ok(copied);
        }
    }
    // A file of `/proc` or the like says that it is empty and is not.
    if length == 0 {
        return copy_unknown(from, to);
    }
    to.set_len(length)?;
    Ok(length)
}

/// The next run of data at or after `at`, and before `length`. A file system that knows no holes has one run.
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok((start < length).then_some((start, end.min(length))))
}

/// Copies `start..end` and returns how far that came: less than `end` only at the end of the file.
fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<u64> {
    let (mut input, mut output) = (start, start);
    while input < end {
        let count = usize::try_from((end - input).min(CHUNK)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), count) {
            // The kernel says so of some files that it can't copy, too.
            Ok(0) => return read_range(from, to, input, end),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::BADF) => {
                return read_range(from, to, input, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(input)
}

fn read_range(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    while at < end {
        let limit = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        match from.read_at(&mut buffer[..limit], at) {
            Ok(0) => break,
            Ok(n) => {
                to.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

fn copy_unknown(mut from: &File, to: &File) -> io::Result<u64> {
    from.seek(Whence::Start(0))?;
    let mut buffer = vec![0; 4096];
    let mut at = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(at),
            Ok(n) => {
                to.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
