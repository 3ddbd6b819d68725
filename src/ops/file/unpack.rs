//! Unpacks archives that are copied, where a copy is to do that: what `ADD` of a Dockerfile does.
//!
//! A file is an archive if a tar header stands at its start: plain, or compressed by gzip, bzip2, xz or zstd. It is
//! unpacked as under chroot: its links resolve beneath the destination. A file in the way is replaced, directories merge.

use std::fs::File;
use std::io::BufReader;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bzip2::bufread::MultiBzDecoder;
use lzma_rust2::XzReader;
use tokio_util::sync::CancellationToken;

use super::FileError;
use super::act::set_times;
use super::act::time;
use super::lexical;
use crate::archive::AbsolutePaths;
use crate::archive::ArchiveError;
use crate::archive::Decoder;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Limits;
use crate::archive::Reader;
use crate::fs;
use crate::fs::FileTime;
use crate::fs::FsError;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::NewDirs;
use crate::fs::Root;
use crate::ops::op::CopyFiles;

/// KiB that a window of xz may take, as much as one of zstd: that of `xz -9` takes half.
const XZ_WINDOW: u32 = 128 << 10;

type Archive = Reader<Decoder<Box<dyn Read>>>;

/// Unpacks `source` into the destination of `copy`, and is false if it is no archive.
pub(super) fn unpack(
    from: &Root,
    source: &Path,
    to: &Root,
    copy: &CopyFiles,
    owner: Option<fs::Owner>,
    cancel: &CancellationToken,
) -> Result<bool, FileError> {
    if !from.stat(source, Last::Follow)?.is_some_and(|meta| meta.is_file()) {
        return Ok(false);
    }
    let open = || -> Result<Archive, FsError> {
        let file = from.open_file(source)?;
        Ok(Reader::with(decoder(file), Limits::default(), AbsolutePaths::MakeRelative))
    };
    // What has no valid header, or nothing at all, is a file as others are. One with a header that we don't take is
    // an archive that can't be unpacked.
    match open()?.next_entry() {
        Ok(Some(_))
        | Err(
            ArchiveError::UnsafePath { .. }
            | ArchiveError::UnsupportedKind { .. }
            | ArchiveError::TooMuch { .. },
        ) => {}
        Ok(None) | Err(_) => return Ok(false),
    }
    let mtime = time(copy.timestamp);
    let dest = lexical(Path::new(&copy.dest));
    let made = to.create_dir_all(&dest, &NewDirs { mode: 0o755, owner, mtime })?;
    let mut unpacker = Unpacker { to: to.sub(&dest)?, owner, dirs: Vec::new() };
    let archive = |source| FileError::Archive { path: dest.clone(), source: Arc::new(source) };
    let mut reader = open()?;
    while let Some(entry) = reader.next_entry().map_err(archive)? {
        if cancel.is_cancelled() {
            return Err(FileError::Cancelled);
        }
        unpacker.entry(&entry, &mut reader)?;
    }
    for (path, mtime) in unpacker.dirs.iter().rev() {
        set_times(&unpacker.to, &[path], Some(*mtime))?;
    }
    set_times(to, &made, mtime)?;
    Ok(true)
}

/// Layers are never compressed by bzip2 or xz, archives of users are.
fn decoder(file: File) -> Decoder<Box<dyn Read>> {
    let mut start = [0; 6];
    // What can't be read here can't be read later either, and is told then.
    let count = file.read_at(&mut start, 0).unwrap_or_default();
    match &start[..count] {
        b"\xfd7zXZ\0" => {
            let xz = XzReader::new_mem_limit(BufReader::new(file), true, XZ_WINDOW);
            Decoder::uncompressed(Box::new(xz))
        }
        [b'B', b'Z', b'h', ..] => Decoder::uncompressed(Box::new(MultiBzDecoder::new(BufReader::new(file)))),
        _ => Decoder::new(Box::new(file)),
    }
}

struct Unpacker {
    /// The destination.
    to: Root,
    /// Of everything, in place of what the archive says.
    owner: Option<fs::Owner>,
    /// Directories whose time comes last.
    dirs: Vec<(PathBuf, FileTime)>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, reader: &mut Archive) -> Result<(), FileError> {
        let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
        if entry.path.is_empty() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.to.create_dir_all(parent, &NewDirs::default())?;
        }
        let is_dir = entry.kind == EntryKind::Dir;
        let there = self.to.stat(path, Last::Keep)?;
        let merges = is_dir && there.as_ref().is_some_and(fs::Meta::is_dir);
        if there.is_some() && !merges {
            self.to.remove_all(path)?;
        }
        let guest = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        match &entry.kind {
            EntryKind::Dir if merges => {}
            EntryKind::Dir => self.to.create_dir(path, entry.mode)?,
            EntryKind::File => self.file(path, entry, reader)?,
            EntryKind::Symlink { target } => self.to.symlink(guest(target), path)?,
            EntryKind::Hardlink { target } => self.to.hard_link(guest(target), path)?,
            EntryKind::CharDevice { major, minor } => {
                let kind = Kind::CharDevice { major: *major, minor: *minor };
                self.to.mknod(path, kind, entry.mode)?;
            }
            EntryKind::BlockDevice { major, minor } => {
                let kind = Kind::BlockDevice { major: *major, minor: *minor };
                self.to.mknod(path, kind, entry.mode)?;
            }
            EntryKind::Fifo => self.to.mknod(path, Kind::Fifo, entry.mode)?,
        }
        // The file that a hard link is one more name of has its own: who sets its owner takes `setuid` from it.
        if !matches!(entry.kind, EntryKind::Hardlink { .. }) {
            self.attributes(path, entry)?;
        }
        if is_dir {
            self.dirs.push((path.to_path_buf(), entry.mtime.into()));
        }
        Ok(())
    }

    fn file(&self, path: &Path, entry: &Entry, reader: &mut Archive) -> Result<(), FileError> {
        let file = self.to.create_file(path, entry.mode)?;
        let failed = |source| FileError::write(path, source);
        while let Some(chunk) = reader
            .next_chunk()
            .map_err(|source| FileError::Archive { path: path.to_path_buf(), source: Arc::new(source) })?
        {
            file.write_all_at(chunk.bytes, chunk.offset).map_err(failed)?;
        }
        // What the archive does not hold at the end is a hole as well.
        file.set_len(entry.size).map_err(failed)
    }

    fn attributes(&self, path: &Path, entry: &Entry) -> Result<(), FileError> {
        let id = |id: u64| u32::try_from(id).map_err(|_| FileError::Id { path: path.to_path_buf(), id });
        let owner = match self.owner {
            Some(owner) => owner,
            None => fs::Owner { uid: id(entry.uid)?, gid: id(entry.gid)? },
        };
        let change = MetaChange {
            owner: Some(owner),
            mode: Some(entry.mode),
            xattrs: None,
            mtime: Some(entry.mtime.into()),
        };
        self.to.set_meta(path, &change, Last::Keep)?;
        for (name, value) in &entry.xattrs {
            match self.to.set_xattr(path, std::ffi::OsStr::from_bytes(name), value, Last::Keep) {
                // The file system can't have it.
                Ok(()) | Err(FsError::Io { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
