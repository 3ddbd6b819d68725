//! Copies from one file system into another.
//!
//! What arrives where:
//!
//! - A file goes to the destination, or into it if that is a directory. A directory goes to a destination that
//!   does not exist, and into one that does; of a directory whose contents alone are wanted, these go there.
//! - Directories merge. What is there of another kind than a directory gives way to a file; a directory gives
//!   way to nothing, and nothing but a directory to a directory, unless everything is to give way.
//! - Directories that were made get their attributes after their contents, so that their times last.
//!
//! Links in the source are copied as links; only the source's own path is resolved. Links on the destination's
//! path are followed in the root, those among what is copied onto are not.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::FileError;
use super::act::set_times;
use super::act::time;
use super::lexical;
use super::unpack;
use super::wildcard;
use crate::fs;
use crate::fs::FileTime;
use crate::fs::FsError;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::NewDirs;
use crate::fs::Root;
use crate::fs::WalkEntry;
use crate::fs::Xattrs;
use crate::fs::copy_file;
use crate::ops::op::CopyFiles;
use crate::ops::op::CopyMode;
use crate::ops::op::Wildcard;
use crate::pattern::Matched;
use crate::pattern::Patterns;

const NEW_DIR: u32 = 0o755;

/// Copies what `copy` says. Ends between two files when it is cancelled.
pub(super) fn copy(
    from: &Root,
    to: &Root,
    copy: &CopyFiles,
    owner: Option<fs::Owner>,
    cancel: &CancellationToken,
) -> Result<(), FileError> {
    if !copy.create_dest_path {
        let dest = to.resolve(&copy.dest, Last::Follow)?;
        let parent = dest.parent().unwrap_or(Path::new(""));
        if to.stat(parent, Last::Keep)?.is_none() {
            return Err(FileError::NotFound { path: Path::new("/").join(&copy.dest) });
        }
    }
    let last = if copy.follow_symlink { Last::Follow } else { Last::Keep };
    let sources = match copy.wildcard {
        Wildcard::No => vec![PathBuf::from(&copy.src)],
        Wildcard::Required | Wildcard::MayBeEmpty => wildcard::resolve(from, &copy.src, last)?,
    };
    if sources.is_empty() && copy.wildcard == Wildcard::Required {
        return Err(FileError::NotFound { path: PathBuf::from(&copy.src) });
    }
    let mut copier = Copier {
        from,
        to,
        copy,
        owner,
        mtime: time(copy.timestamp),
        include: (!copy.include.is_empty()).then(|| Patterns::new(&copy.include)).transpose()?,
        exclude: Patterns::new(&copy.exclude)?,
        links: HashMap::new(),
        cancel,
    };
    for source in sources {
        if !(copy.unpack && unpack::unpack(from, &source, to, copy, owner, cancel)?) {
            copier.source(&source, last)?;
        }
    }
    Ok(())
}

struct Copier<'a> {
    from: &'a Root,
    to: &'a Root,
    copy: &'a CopyFiles,
    owner: Option<fs::Owner>,
    mtime: Option<FileTime>,
    /// `None` for everything.
    include: Option<Patterns>,
    exclude: Patterns,
    /// Where the first name of a file with several went.
    links: HashMap<(u64, u64), PathBuf>,
    cancel: &'a CancellationToken,
}

/// What is copied. Reads it in the directory that it was found in.
enum Source<'a> {
    /// A source itself, at a path without links.
    Named {
        root: &'a Root,
        path: &'a Path,
        meta: Meta,
    },
    Walked(&'a WalkEntry),
}

impl Source<'_> {
    fn meta(&self) -> &Meta {
        match self {
            Source::Named { meta, .. } => meta,
            Source::Walked(entry) => &entry.meta,
        }
    }

    fn open(&self) -> Result<std::fs::File, FsError> {
        match self {
            Source::Named { root, path, .. } => root.open_file(path),
            Source::Walked(entry) => entry.open(),
        }
    }

    fn read_link(&self) -> Result<PathBuf, FsError> {
        match self {
            Source::Named { root, path, .. } => root.read_link(path),
            Source::Walked(entry) => entry.read_link(),
        }
    }

    /// A file system that has none has an empty list of them.
    fn xattrs(&self) -> Xattrs {
        let xattrs = match self {
            Source::Named { root, path, .. } => root.xattrs(path, Last::Keep),
            Source::Walked(entry) => entry.xattrs(),
        };
        xattrs.unwrap_or_default()
    }
}

/// A directory of the source that the walk is in.
struct Frame {
    /// In the source, relative to where the walk started.
    path: PathBuf,
    target: PathBuf,
    meta: Meta,
    xattrs: Xattrs,
    /// It is there, or was made.
    present: bool,
    /// What is done when the walk leaves it.
    end: End,
    included: Matched,
    excluded: Matched,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Attributes,
    /// Those that were there stay, but for the time.
    Time,
}

impl Copier<'_> {
    /// Copies one of the sources, with everything in it.
    fn source(&mut self, source: &Path, last: Last) -> Result<(), FileError> {
        let new = NewDirs {
            mode: match self.copy.mode {
                CopyMode::Set(mode) => mode & 0o777,
                CopyMode::Keep | CopyMode::Change(_) => NEW_DIR,
            },
            owner: self.owner,
            mtime: self.mtime,
        };
        let dest = &self.copy.dest;
        // A slash or a dot at the end says that it is a directory.
        let names_dir = dest.is_empty() || dest.ends_with('/') || dest == "." || dest.ends_with("/.");
        let lexical_dest = lexical(Path::new(dest));
        let parent = if names_dir { Some(&*lexical_dest) } else { lexical_dest.parent() };
        let mut made = match parent {
            Some(parent) => self.to.create_dir_all(parent, &new)?,
            None => Vec::new(),
        };
        let mut target = self.to.resolve(&lexical_dest, Last::Follow)?;
        let cleaned = lexical(source);
        let path = self.from.resolve(&cleaned, last)?;
        let meta = self.from.stat(&path, Last::Keep)?;
        let meta = meta.ok_or_else(|| FileError::NotFound { path: Path::new("/").join(&cleaned) })?;
        let there = self.to.stat(&target, Last::Keep)?;
        let into = match (meta.is_dir(), &there) {
            (true, there) => !self.copy.contents_only && there.is_some(),
            (false, there) => there.as_ref().is_some_and(Meta::is_dir),
        };
        if into {
            target.extend(base_name(source));
        }
        let parent = match self.copy.contents_only && meta.is_dir() && there.is_none() {
            true => Some(&*target),
            false => target.parent(),
        };
        if let Some(parent) = parent {
            made.extend(self.to.create_dir_all(parent, &new)?);
        }
        if meta.is_dir() {
            self.tree(&path, &target)?;
        } else {
            self.entry(&Source::Named { root: self.from, path: &path, meta }, &target)?;
        }
        set_times(self.to, &made, self.mtime)
    }

    fn tree(&mut self, path: &Path, target: &Path) -> Result<(), FileError> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut walk = self.from.walk(path)?;
        while let Some(entry) = walk.next() {
            let entry = entry?;
            if self.cancel.is_cancelled() {
                return Err(FileError::Cancelled);
            }
            while let Some(frame) = frames.pop_if(|frame| !entry.path.starts_with(&frame.path)) {
                self.leave(frame)?;
            }
            let top = frames.is_empty();
            let chosen = self.choose(&entry.path, frames.last());
            // What could be in it is not wanted either.
            let whole = chosen.excluded && !self.exclude.has_exceptions();
            if !chosen.wanted && (whole || !entry.meta.is_dir()) {
                walk.skip_dir();
                continue;
            }
            let target = if top { target.to_path_buf() } else { target.join(&entry.path) };
            if chosen.wanted {
                self.enter(&mut frames)?;
            }
            if !entry.meta.is_dir() {
                self.entry(&Source::Walked(&entry), &target)?;
                continue;
            }
            let mut frame = Frame {
                xattrs: Source::Walked(&entry).xattrs(),
                path: entry.path.clone(),
                target,
                meta: entry.meta,
                present: false,
                end: End::Nothing,
                included: chosen.include,
                excluded: chosen.exclude,
            };
            if chosen.wanted {
                self.give_way(&frame.meta, &frame.target)?;
                let made = self.make_dir(&mut frame, !top)?;
                frame.end = if made || !top { End::Attributes } else { End::Time };
            }
            frames.push(frame);
        }
        while let Some(frame) = frames.pop() {
            self.leave(frame)?;
        }
        Ok(())
    }

    /// Whether patterns want a path of the source; the source itself is always wanted.
    fn choose(&self, path: &Path, parent: Option<&Frame>) -> Chosen {
        let mut chosen = Chosen { wanted: true, ..Chosen::default() };
        let Some(parent) = parent else { return chosen };
        let path = path.as_os_str().as_bytes();
        if let Some(include) = &self.include {
            (chosen.wanted, chosen.include) = include.matches_in(path, &parent.included);
        }
        if !self.exclude.is_empty() {
            (chosen.excluded, chosen.exclude) = self.exclude.matches_in(path, &parent.excluded);
            chosen.wanted &= !chosen.excluded;
        }
        chosen
    }

    /// Makes the directories above something that is wanted, which were not wanted by themselves.
    fn enter(&self, frames: &mut [Frame]) -> Result<(), FileError> {
        for frame in frames.iter_mut().filter(|frame| !frame.present) {
            if self.make_dir(frame, true)? {
                frame.end = End::Attributes;
            }
        }
        Ok(())
    }

    /// True if the directory was made. One that is there gets the mode if `overwrite`.
    fn make_dir(&self, frame: &mut Frame, overwrite: bool) -> Result<bool, FileError> {
        frame.present = true;
        match self.to.stat(&frame.target, Last::Keep)? {
            None => {
                self.to.create_dir(&frame.target, frame.meta.mode)?;
                Ok(true)
            }
            Some(there) if !there.is_dir() => {
                Err(FileError::NotDirectory { path: Path::new("/").join(&frame.target) })
            }
            Some(_) => {
                if overwrite {
                    let change = MetaChange { mode: Some(frame.meta.mode), ..MetaChange::default() };
                    self.to.set_meta(&frame.target, &change, Last::Keep)?;
                }
                Ok(false)
            }
        }
    }

    fn leave(&self, frame: Frame) -> Result<(), FileError> {
        match frame.end {
            End::Nothing => Ok(()),
            End::Attributes => self.attributes(&frame.meta, &frame.xattrs, &frame.target),
            End::Time => {
                let mtime = Some(self.mtime.unwrap_or(frame.meta.mtime));
                let change = MetaChange { mtime, ..MetaChange::default() };
                Ok(self.to.set_meta(&frame.target, &change, Last::Keep)?)
            }
        }
    }

    /// Removes what stands in the way of everything, where that is asked for.
    fn give_way(&self, source: &Meta, target: &Path) -> Result<(), FileError> {
        if self.copy.replace
            && let Some(there) = self.to.stat(target, Last::Keep)?
            && !(there.is_dir() && source.is_dir())
        {
            self.to.remove_all(target)?;
        }
        Ok(())
    }

    /// Copies what is no directory.
    fn entry(&mut self, source: &Source<'_>, target: &Path) -> Result<(), FileError> {
        let meta = *source.meta();
        self.give_way(&meta, target)?;
        match self.to.stat(target, Last::Keep)? {
            None => {}
            Some(there) if there.is_dir() => {
                return Err(FileError::IsDirectory { path: Path::new("/").join(target) });
            }
            Some(_) => self.to.remove(target)?,
        }
        match meta.kind {
            Kind::File => self.file(source, &meta, target)?,
            Kind::Symlink => self.to.symlink(source.read_link()?, target)?,
            // A socket is nothing without who listens; an empty file keeps its place.
            Kind::Socket => drop(self.to.create_file(target, meta.mode)?),
            kind => self.to.mknod(target, kind, meta.mode)?,
        }
        self.attributes(&meta, &source.xattrs(), target)
    }

    fn file(&mut self, source: &Source<'_>, meta: &Meta, target: &Path) -> Result<(), FileError> {
        let key = (meta.device, meta.inode);
        if meta.nlink > 1 {
            if let Some(first) = self.links.get(&key) {
                return Ok(self.to.hard_link(first, target)?);
            }
            self.links.insert(key, target.to_path_buf());
        }
        let from = source.open()?;
        let to = self.to.create_file(target, meta.mode)?;
        copy_file(&from, &to).map_err(|source| FileError::write(target, source))?;
        Ok(())
    }

    fn attributes(&self, meta: &Meta, xattrs: &Xattrs, target: &Path) -> Result<(), FileError> {
        let mode = match &self.copy.mode {
            CopyMode::Keep => meta.mode,
            CopyMode::Set(mode) => *mode,
            CopyMode::Change(change) => change.apply(meta.mode, meta.is_dir()),
        };
        let change = MetaChange {
            owner: Some(self.owner.unwrap_or(meta.owner)),
            mode: Some(mode),
            xattrs: None,
            mtime: Some(self.mtime.unwrap_or(meta.mtime)),
        };
        self.to.set_meta(target, &change, Last::Keep)?;
        for (name, value) in xattrs {
            match self.to.set_xattr(target, name, value, Last::Keep) {
                // The file system can't have it, or only somebody else may set it.
                Ok(()) | Err(FsError::Io { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What patterns say of a path.
#[derive(Default)]
struct Chosen {
    wanted: bool,
    excluded: bool,
    include: Matched,
    exclude: Matched,
}

/// The last part of a path: none of `/` and of `/a/.`.
pub(super) fn base_name(path: &Path) -> Option<OsString> {
    let dot = path.as_os_str().as_bytes().ends_with(b"/.");
    lexical(path).file_name().filter(|_| !dot).map(OsString::from)
}

#[cfg(test)]
mod tests;
