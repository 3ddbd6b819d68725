//! Writes changes as a layer.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::ChangeKind;
use super::Changes;
use super::DiffError;
use super::compare::inode;
use super::compare::is_layers;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Writer;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::Root;

/// How a layer is written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteLayer {
    /// `SOURCE_DATE_EPOCH` in seconds: no time in the layer is later.
    pub epoch: Option<i64>,
}

/// Writes the changes as an uncompressed layer: the same bytes for the same changes, whoever found them.
/// Times are whole seconds, and those of whiteouts 1970, as with containerd.
pub fn write_layer(changes: &Changes, options: &WriteLayer, out: impl Write) -> Result<(), DiffError> {
    let mut layer =
        Layer { root: &changes.upper, epoch: options.epoch, writer: Writer::new(out), first: HashMap::new() };
    for change in &changes.changes {
        match &change.kind {
            ChangeKind::Removed => layer.whiteout(&change.path)?,
            ChangeKind::Written(meta) | ChangeKind::Unchanged(meta) => layer.written(&change.path, meta)?,
        }
    }
    layer.writer.finish()?;
    Ok(())
}

struct Layer<'a, W> {
    root: &'a Root,
    epoch: Option<i64>,
    writer: Writer<W>,
    /// The first name in the layer of each file that has several.
    first: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Layer<'_, W> {
    fn whiteout(&mut self, path: &Path) -> Result<(), DiffError> {
        let path = path.as_os_str().as_bytes();
        let at = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let path = [&path[..at], b".wh.", &path[at..]].concat();
        Ok(self.writer.append(&Entry::new(path, EntryKind::File), io::empty())?)
    }

    fn written(&mut self, path: &Path, meta: &Meta) -> Result<(), DiffError> {
        if meta.is_dir() || meta.nlink < 2 {
            return self.entry(path, meta);
        }
        if let Some(first) = self.first.get(&inode(meta)) {
            let target = first.clone();
            return self.link(path, meta, target);
        }
        self.entry(path, meta)?;
        self.first.insert(inode(meta), path.as_os_str().as_bytes().to_vec());
        Ok(())
    }

    fn link(&mut self, path: &Path, meta: &Meta, target: Vec<u8>) -> Result<(), DiffError> {
        let entry = self.header(path, meta, EntryKind::Hardlink { target })?;
        Ok(self.writer.append(&entry, io::empty())?)
    }

    fn entry(&mut self, path: &Path, meta: &Meta) -> Result<(), DiffError> {
        let kind = match meta.kind {
            Kind::File => EntryKind::File,
            Kind::Directory => EntryKind::Dir,
            Kind::Symlink => {
                let target = self.root.read_link(path)?;
                EntryKind::Symlink { target: target.as_os_str().as_bytes().to_vec() }
            }
            Kind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => return Ok(()),
        };
        let mut entry = self.header(path, meta, kind)?;
        if entry.kind != EntryKind::File {
            return Ok(self.writer.append(&entry, io::empty())?);
        }
        entry.size = meta.size;
        let mut source = Source { file: self.root.open_file(path)?, failed: None };
        let appended = self.writer.append(&entry, &mut source);
        match source.failed {
            Some(source) => Err(DiffError::Io { path: path.to_path_buf(), source }),
            None => Ok(appended?),
        }
    }

    fn header(&self, path: &Path, meta: &Meta, kind: EntryKind) -> Result<Entry, DiffError> {
        let mut entry = Entry::new(path.as_os_str().as_bytes(), kind);
        entry.mode = meta.mode;
        entry.uid = meta.owner.uid.into();
        entry.gid = meta.owner.gid.into();
        entry.mtime = (self.epoch.map_or(meta.mtime.seconds, |epoch| meta.mtime.seconds.min(epoch)), 0);
        for (name, value) in self.root.xattrs(path, Last::Keep)? {
            if is_layers(name.as_bytes()) {
                entry.xattrs.insert(name.as_bytes().to_vec(), value);
            }
        }
        Ok(entry)
    }
}

/// A file that is read, whose errors are told from those of the sink.
struct Source {
    file: File,
    failed: Option<io::Error>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}
