//! The directories from where a traversal started down to where it is, of any depth.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::io::Result;

use super::at;

/// Directories that are kept open: a tree is deeper than a process may open files.
const OPEN: usize = 64;

#[derive(Debug)]
pub(super) struct Trail {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// `None` far above. The last one is open always.
    dir: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
}

impl Level {
    fn new(dir: OwnedFd) -> Result<Level> {
        let meta = at::stat(&dir)?;
        Ok(Level { dir: Some(Arc::new(dir)), identity: (meta.device, meta.inode) })
    }
}

impl Trail {
    pub(super) fn new(start: OwnedFd) -> Result<Trail> {
        Ok(Trail { levels: vec![Level::new(start)?] })
    }

    /// Directories below the one where it started.
    pub(super) fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// The directory where it is.
    pub(super) fn dir(&self) -> &Arc<OwnedFd> {
        let last = self.levels.last().and_then(|level| level.dir.as_ref());
        last.unwrap_or_else(|| unreachable!("the last level is open"))
    }

    /// Goes to a directory in this one, which is opened to be listed.
    pub(super) fn enter(&mut self, name: &OsStr) -> Result<()> {
        self.push(at::open_dir(self.dir(), name)?)
    }

    /// Goes to an open directory, which has to be in this one.
    pub(super) fn push(&mut self, dir: OwnedFd) -> Result<()> {
        self.levels.push(Level::new(dir)?);
        if self.levels.len() > OPEN {
            let far = self.levels.len() - 1 - OPEN;
            self.levels[far].dir = None;
        }
        Ok(())
    }

    /// Goes back to the directory above. If that had been closed it has to be the same one still: the tree may have
    /// been moved meanwhile, and what is above it now is not ours.
    pub(super) fn leave(&mut self) -> Result<()> {
        let left = self.levels.pop().unwrap_or_else(|| unreachable!("there is one level at least"));
        let (Some(above), Some(left)) = (self.levels.last_mut(), left.dir) else {
            unreachable!("the first level is never left, and the last one is open")
        };
        if above.dir.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&*left, c"..", flags, Mode::empty())?;
            let meta = at::stat(&dir)?;
            if (meta.device, meta.inode) != above.identity {
                return Err(Errno::STALE);
            }
            above.dir = Some(Arc::new(dir));
        }
        Ok(())
    }
}
