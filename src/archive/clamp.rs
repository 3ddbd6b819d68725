//! [`clamp_times`]: an archive again, with no time in it later than a given one.

use std::io;
use std::io::Read;
use std::io::Write;

use super::ArchiveError;
use super::EntryKind;
use super::Reader;
use super::Writer;

/// Copies an uncompressed archive; what is later than `epoch`, in seconds since 1970, becomes that. Everything
/// else that an [`Entry`](super::Entry) holds stays, and names as they are spelled; holes of sparse files are written
/// out.
pub fn clamp_times(source: impl Read, epoch: i64, out: impl Write) -> Result<(), ArchiveError> {
    let mut reader = Reader::new(source);
    let mut writer = Writer::new(out);
    while let Some(mut entry) = reader.next_entry()? {
        entry.mtime = entry.mtime.min((epoch, 0));
        let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
        let spelling = reader.spelling().clone();
        let data = FileData { reader: &mut reader, size, at: 0, chunk: Vec::new(), start: 0 };
        writer.append_as(&entry, Some(&spelling), data)?;
    }
    writer.finish()?;
    reader.finish()?;
    Ok(())
}

/// The bytes of the reader's current file, its holes as zeros.
struct FileData<'r, R> {
    reader: &'r mut Reader<R>,
    size: u64,
    at: u64,
    chunk: Vec<u8>,
    /// Where in the file the chunk stands.
    start: u64,
}

impl<R: Read> Read for FileData<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.start + self.chunk.len() as u64;
        if self.at >= end && self.at < self.size {
            self.chunk.clear();
            match self.reader.next_chunk().map_err(io::Error::other)? {
                Some(chunk) => {
                    self.start = chunk.offset;
                    self.chunk.extend_from_slice(chunk.bytes);
                }
                None => self.start = self.size,
            }
        }
        let hole = self.start.saturating_sub(self.at);
        let count = if hole > 0 {
            let count = buffer.len().min(usize::try_from(hole).unwrap_or(usize::MAX));
            buffer[..count].fill(0);
            count
        } else {
            let rest = self.chunk.get((self.at - self.start) as usize..).unwrap_or_default();
            let count = buffer.len().min(rest.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        };
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::archive::Entry;

    fn entries(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
        let mut reader = Reader::new(archive);
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut bytes = vec![0; if entry.kind == EntryKind::File { entry.size as usize } else { 0 }];
            while let Some(chunk) = reader.next_chunk().unwrap() {
                let at = chunk.offset as usize;
                bytes[at..at + chunk.bytes.len()].copy_from_slice(chunk.bytes);
            }
            found.push((entry, bytes));
        }
        found
    }

    #[test]
    fn only_later_times_change_and_holes_are_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("old"), "old").unwrap();
        std::fs::write(path("new"), vec![7; 300_000]).unwrap();
        let sparse = std::fs::File::create(path("sparse")).unwrap();
        sparse.set_len(3 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 20).unwrap();
        std::os::unix::fs::symlink("old", path("link")).unwrap();
        std::fs::hard_link(path("old"), path("same")).unwrap();
        let at = |name: &str, seconds: u64| {
            let time =
                std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(seconds * 1000 + 500);
            std::fs::File::options().write(true).open(path(name)).unwrap().set_modified(time).unwrap();
        };
        at("old", 99);
        at("new", 100);
        let tar = Command::new("tar")
            .args(["--format=pax", "--sparse", "--sort=name", "-cf", "-", "-C"])
            .arg(dir.path())
            .arg(".")
            .output()
            .unwrap();
        assert!(tar.status.success());
        let mut clamped = Vec::new();
        clamp_times(tar.stdout.as_slice(), 100, &mut clamped).unwrap();
        let (before, after) = (entries(&tar.stdout), entries(&clamped));
        assert_eq!(before.len(), 6);
        assert_eq!(before.len(), after.len());
        for ((before, old_bytes), (after, new_bytes)) in before.iter().zip(&after) {
            let expected = Entry { mtime: before.mtime.min((100, 0)), ..before.clone() };
            assert_eq!(*after, expected);
            assert_eq!(old_bytes, new_bytes);
        }
        let time = |name: &[u8]| after.iter().find(|(entry, _)| entry.path == name).unwrap().0.mtime;
        assert_eq!((time(b"old"), time(b"new")), ((99, 500_000_000), (100, 0)));
        let mut again = Vec::new();
        clamp_times(clamped.as_slice(), 100, &mut again).unwrap();
        assert_eq!(again, clamped, "what needs no change stays as it was written");
    }

    /// Names were written without `./`, and modes without the kind that Docker's archives note in them.
    #[test]
    fn names_and_modes_stay_as_they_are_spelled() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut member = |name: &[u8], kind: tar::EntryType, mode: u32, link: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(7);
            header.set_size(0);
            // As Go writes them.
            header.as_ustar_mut().expect("ustar").dev_major = *b"0000000\0";
            header.as_ustar_mut().expect("ustar").dev_minor = *b"0000000\0";
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
        };
        member(b"./", tar::EntryType::Directory, 0o40755, b"");
        member(b"./dev/", tar::EntryType::Directory, 0o40755, b"");
        member(b"./dev/file", tar::EntryType::Regular, 0o100644, b"");
        member(b"dev//same", tar::EntryType::Link, 0o100644, b"./dev/file");
        member(b"bare", tar::EntryType::Directory, 0o755, b"");
        let mut archive = archive.into_inner().unwrap();
        for header in archive.chunks_mut(512).take(5) {
            let sum = String::from_utf8(header[148..155].to_vec()).unwrap();
            let sum = u32::from_str_radix(&sum, 8).unwrap();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let mut clamped = Vec::new();
        clamp_times(archive.as_slice(), 100, &mut clamped).unwrap();
        assert!(clamped == archive, "nothing is later, so nothing changes");
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        let entry = Entry { size: 2000, ..Entry::new("a", EntryKind::File) };
        writer.append(&entry, io::repeat(1).take(2000)).unwrap();
        assert!(clamp_times(&archive[..1500], 0, io::sink()).is_err());
    }
}
