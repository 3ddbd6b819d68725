//! A walk over a tree in the order of its components.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::vec;

use rustix::io::Errno;

use super::FsError;
use super::Meta;
use super::Xattrs;
use super::at;
use super::trail::Trail;

/// Yields each entry before what is in it, and the entries of a directory sorted by bytes; see
/// [`Root::walk`](super::Root::walk). An entry that goes away meanwhile is left out. After an error it ends.
#[derive(Debug)]
pub struct Walk {
    /// Guest path of the start, for errors.
    start: PathBuf,
    trail: Trail,
    /// Names that are left of each directory of the trail.
    names: Vec<vec::IntoIter<OsString>>,
    /// Of the directory of the trail, relative to the start.
    path: PathBuf,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// The start itself comes next.
    Start,
    /// The start was yielded last.
    Started,
    /// The directory was yielded last and is entered next.
    Enter(OsString),
    Within,
    Ended,
}

/// An entry as the walk found it. It keeps open the directory that it is in: few are to be held at a time.
#[derive(Debug)]
pub struct WalkEntry {
    /// Relative to where the walk started; empty for that itself.
    pub path: PathBuf,
    pub meta: Meta,
    start: PathBuf,
    dir: Arc<OwnedFd>,
    name: OsString,
}

impl Walk {
    /// `start` has been opened to be listed.
    pub(super) fn new(start: OwnedFd, path: &Path) -> Result<Walk, FsError> {
        Ok(Walk {
            start: path.to_path_buf(),
            trail: Trail::new(start).map_err(FsError::on("walk", path))?,
            names: Vec::new(),
            path: PathBuf::new(),
            state: State::Start,
        })
    }

    /// Leaves out what is in the directory that was yielded last.
    pub fn skip_dir(&mut self) {
        match self.state {
            State::Enter(_) => self.state = State::Within,
            State::Started => self.state = State::Ended,
            State::Start | State::Within | State::Ended => {}
        }
    }

    fn entry(&self, name: OsString, meta: Meta) -> WalkEntry {
        WalkEntry {
            path: if name == "." { self.path.clone() } else { self.path.join(&name) },
            meta,
            start: self.start.clone(),
            dir: Arc::clone(self.trail.dir()),
            name,
        }
    }

    fn list(&mut self) -> rustix::io::Result<()> {
        let mut names: Vec<_> = at::list(&**self.trail.dir())?.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        self.names.push(names.into_iter());
        Ok(())
    }

    fn advance(&mut self) -> rustix::io::Result<Option<WalkEntry>> {
        match std::mem::replace(&mut self.state, State::Within) {
            State::Ended => {
                self.state = State::Ended;
                return Ok(None);
            }
            State::Start => {
                let meta = at::stat(&**self.trail.dir())?;
                self.state = State::Started;
                return Ok(Some(self.entry(".".into(), meta)));
            }
            State::Started => self.list()?,
            State::Enter(name) => match self.trail.enter(&name) {
                Ok(()) => {
                    self.path.push(name);
                    self.list()?;
                }
                // Gone, or something else by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => {
                    self.path.push(name);
                    return Err(error);
                }
            },
            State::Within => {}
        }
        loop {
            let Some(names) = self.names.last_mut() else {
                self.state = State::Ended;
                return Ok(None);
            };
            let Some(name) = names.next() else {
                self.names.pop();
                if self.trail.depth() > 0 {
                    self.trail.leave()?;
                    self.path.pop();
                }
                continue;
            };
            let meta = match at::stat_entry(&**self.trail.dir(), &name) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if meta.is_dir() {
                self.state = State::Enter(name.clone());
            }
            return Ok(Some(self.entry(name, meta)));
        }
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry, FsError>;

    fn next(&mut self) -> Option<Result<WalkEntry, FsError>> {
        let next = self.advance();
        next.map_err(|errno| {
            self.state = State::Ended;
            FsError::on("walk", &self.start.join(&self.path))(errno)
        })
        .transpose()
    }
}

impl WalkEntry {
    /// Opens it to read it, if it is a regular file.
    pub fn open(&self) -> Result<File, FsError> {
        let file = at::open_entry(&*self.dir, &self.name).and_then(|named| at::open_file(&named));
        let file = file.map_err(FsError::on("open", &self.guest_path()))?;
        file.ok_or_else(|| FsError::WrongKind {
            operation: "open",
            path: self.guest_path(),
            expected: "a regular file",
        })
    }

    pub fn xattrs(&self) -> Result<Xattrs, FsError> {
        let xattrs = at::open_entry(&*self.dir, &self.name).and_then(at::xattrs);
        xattrs.map_err(|errno| FsError::on("read attributes of", &self.guest_path())(errno))
    }

    pub fn read_link(&self) -> Result<PathBuf, FsError> {
        at::read_link(&*self.dir, &self.name)
            .map_err(|errno| FsError::on("read link", &self.guest_path())(errno))
    }

    /// The path from the root that is walked in.
    pub fn guest_path(&self) -> PathBuf {
        self.start.join(&self.path)
    }

    pub(super) fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    pub(super) fn name(&self) -> &OsString {
        &self.name
    }
}
