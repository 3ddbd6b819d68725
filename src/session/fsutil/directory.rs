//! [`Directory`]: a directory of this machine as a tree that can be sent.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::FileKind;
use super::FileStat;
use super::TransferError;
use super::TreeSource;
use super::Visit;
use crate::fs::FsError;
use crate::fs::Root;

/// Says what of a tree is meant, and changes how it is told.
pub trait Select: Send + Sync + 'static {
    /// Whether the entry is sent, and what is beneath it if it is a directory.
    fn select(&self, stat: &mut FileStat) -> Selected;
}

/// What of an entry is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selected {
    pub entry: bool,
    /// Of a directory: something beneath it may be meant. It is then sent before that, if it was not.
    pub beneath: bool,
}

impl Selected {
    pub const ALL: Selected = Selected { entry: true, beneath: true };
}

/// Everything in a directory, or what a [`Select`] selects of it.
#[derive(Clone)]
pub struct Directory {
    root: Root,
    select: Option<Arc<dyn Select>>,
}

impl Directory {
    pub fn open(path: impl AsRef<Path>) -> Result<Directory, TransferError> {
        Ok(Directory { root: Root::open(path)?, select: None })
    }

    pub fn select(self, select: impl Select) -> Directory {
        Directory { select: Some(Arc::new(select)), ..self }
    }

    pub fn root(&self) -> &Root {
        &self.root
    }
}

impl TreeSource for Directory {
    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        // Directories that are sent once something in them is.
        let mut above: Vec<FileStat> = Vec::new();
        let mut walk = self.root.walk("")?;
        while let Some(entry) = walk.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Files come and go in a directory that somebody works in.
                Err(FsError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let path = entry.path.as_os_str().as_bytes().to_vec();
            if path.is_empty() {
                continue;
            }
            let read = || {
                let target = if entry.meta.is_symlink() { Some(entry.read_link()?) } else { None };
                Ok::<(Option<PathBuf>, _), FsError>((target, entry.xattrs()?))
            };
            let (target, xattrs) = match read() {
                Ok(read) => read,
                Err(FsError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut stat = FileStat::of(path, &entry.meta, target.as_deref(), xattrs);
            let selected = match &self.select {
                Some(select) => select.select(&mut stat),
                None => Selected::ALL,
            };
            if stat.is_dir() && !selected.beneath {
                walk.skip_dir();
            }
            while above.last().is_some_and(|dir| !is_in(&stat.path, &dir.path)) {
                above.pop();
            }
            if !selected.entry {
                if stat.is_dir() && selected.beneath {
                    above.push(stat);
                }
                continue;
            }
            for dir in above.drain(..) {
                if visit(dir).is_break() {
                    return Ok(());
                }
            }
            if stat.has_data() && entry.meta.nlink > 1 {
                let file = (entry.meta.device, entry.meta.inode);
                match links.get(&file) {
                    Some(first) => {
                        stat.kind = FileKind::HardLink { target: first.clone() };
                        stat.size = 0;
                    }
                    None => drop(links.insert(file, stat.path.clone())),
                }
            }
            if visit(stat).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let file: File = self.root.open_file(path).map_err(io::Error::other)?;
        Ok(Box::new(file))
    }
}

fn is_in(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
