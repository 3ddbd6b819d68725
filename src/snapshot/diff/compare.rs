//! Finds the changes.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use super::Change;
use super::ChangeKind;
use super::Changes;
use super::DiffError;
use crate::fs::FsError;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::Root;
use crate::fs::Xattrs;
use crate::snapshot::index::by_component;

/// Bytes of each of two files that are compared at once.
const BUFFER: usize = 64 << 10;

pub(super) struct Differ<'a> {
    lower: Option<&'a Root>,
    upper: &'a Root,
    changes: Vec<Change>,
    /// Directories that are on the way to where the walk is, and are not listed yet.
    parents: Vec<(PathBuf, Meta)>,
    /// Names that did not change of files that have several.
    linked: Vec<(PathBuf, Meta)>,
}

/// A name in a tree, relative to the tree's root.
struct Found {
    path: PathBuf,
    meta: Meta,
}

impl<'a> Differ<'a> {
    pub(super) fn new(lower: Option<&'a Root>, upper: &'a Root) -> Differ<'a> {
        Differ { lower, upper, changes: Vec::new(), parents: Vec::new(), linked: Vec::new() }
    }

    /// Goes through an upper directory, which has whiteouts and opaque directories.
    pub(super) fn upper(&mut self) -> Result<(), DiffError> {
        // Directories on the way, and whether the tree below has a directory there.
        let mut below: Vec<(PathBuf, bool)> = vec![(PathBuf::new(), self.lower.is_some())];
        let mut walk = self.upper.walk("")?;
        while let Some(entry) = walk.next() {
            let entry = entry?;
            if entry.path.as_os_str().is_empty() {
                continue;
            }
            while !entry.path.starts_with(&below.last().expect("the root is on every way").0) {
                below.pop();
            }
            let (_, in_dir) = below.last().expect("the root is on every way");
            let lower = match self.lower {
                Some(lower) if *in_dir => lower.stat(&entry.path, Last::Keep)?,
                _ => None,
            };
            let found = Found { path: entry.path.clone(), meta: entry.meta };
            if found.meta.is_whiteout() {
                if lower.is_some() || self.lower.is_none() {
                    self.removed(found.path);
                }
                continue;
            }
            let xattrs = entry.xattrs()?;
            if is_redirected(&xattrs) {
                return Err(DiffError::Redirected { path: entry.path.clone() });
            }
            if found.meta.is_dir() {
                below.push((found.path.clone(), lower.is_some_and(|meta| meta.is_dir())));
                if is_opaque(&xattrs) && lower.is_some_and(|meta| meta.is_dir()) {
                    walk.skip_dir();
                    self.both(found.path)?;
                    continue;
                }
            }
            let opaque = found.meta.is_dir() && self.lower.is_none() && is_opaque(&xattrs);
            self.compared(found, lower)?;
            if opaque {
                self.changes.push(Change { path: entry.path.clone(), kind: ChangeKind::Opaque });
            }
        }
        Ok(())
    }

    /// Goes through two trees, from the path `start` on. Whiteouts in the upper one are what is not there.
    pub(super) fn both(&mut self, start: PathBuf) -> Result<(), DiffError> {
        let mut upper_walk = self.upper.walk(&start)?;
        let mut lower_walk = match self.lower {
            Some(lower) => Some(lower.walk(&start)?),
            None => None,
        };
        let place = |path: &Path| if path.as_os_str().is_empty() { start.clone() } else { start.join(path) };
        let (mut upper, mut lower) = (None, None);
        loop {
            while upper.is_none() {
                let Some(entry) = upper_walk.next() else { break };
                let entry = entry?;
                if !entry.meta.is_whiteout() {
                    upper = Some(Found { path: place(&entry.path), meta: entry.meta });
                }
            }
            if lower.is_none()
                && let Some(entry) = lower_walk.as_mut().and_then(Iterator::next).transpose()?
            {
                lower = Some(Found { path: place(&entry.path), meta: entry.meta });
            }
            let order = match (&lower, &upper) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => sorted(&one.path, &other.path),
            };
            match order {
                Ordering::Less => {
                    let gone = lower.take().expect("it was there");
                    if let Some(walk) = &mut lower_walk {
                        walk.skip_dir();
                    }
                    self.removed(gone.path);
                }
                Ordering::Greater => {
                    let new = upper.take().expect("it was there");
                    self.compared(new, None)?;
                }
                Ordering::Equal => {
                    let (old, new) = (lower.take().expect("both are"), upper.take().expect("both are"));
                    if let Some(walk) = &mut lower_walk
                        && !new.meta.is_dir()
                    {
                        walk.skip_dir();
                    }
                    if !new.path.as_os_str().is_empty() {
                        self.compared(new, Some(old.meta))?;
                    }
                }
            }
        }
    }

    /// What was found in the upper tree, where the lower one has `lower`.
    fn compared(&mut self, found: Found, lower: Option<Meta>) -> Result<(), DiffError> {
        if found.path.as_os_str().is_empty() {
            return Ok(());
        }
        if found.meta.kind == Kind::Socket {
            // No layer has sockets. What it stands in place of is gone all the same.
            if lower.is_some() {
                self.removed(found.path);
            }
            return Ok(());
        }
        let same = match lower {
            Some(lower) => self.is_same(&found, &lower)?,
            None => false,
        };
        self.leave_for(&found.path);
        if !same {
            self.list_parents();
            self.changes.push(Change { path: found.path, kind: ChangeKind::Written(found.meta) });
        } else if found.meta.is_dir() {
            self.parents.push((found.path, found.meta));
        } else if found.meta.nlink > 1 {
            self.linked.push((found.path, found.meta));
        }
        Ok(())
    }

    fn removed(&mut self, path: PathBuf) {
        self.leave_for(&path);
        self.list_parents();
        self.changes.push(Change { path, kind: ChangeKind::Removed });
    }

    /// Forgets the directories that `path` is not in.
    fn leave_for(&mut self, path: &Path) {
        while self.parents.last().is_some_and(|(parent, _)| !path.starts_with(parent)) {
            self.parents.pop();
        }
    }

    fn list_parents(&mut self) {
        let parents = self.parents.drain(..);
        self.changes.extend(parents.map(|(path, meta)| Change { path, kind: ChangeKind::Unchanged(meta) }));
    }

    fn is_same(&self, found: &Found, lower: &Meta) -> Result<bool, DiffError> {
        let (Some(lower_root), meta) = (self.lower, &found.meta) else { return Ok(false) };
        if (meta.device, meta.inode) == (lower.device, lower.inode) {
            return Ok(true);
        }
        if (meta.kind, meta.mode, meta.owner) != (lower.kind, lower.mode, lower.owner) {
            return Ok(false);
        }
        if !meta.is_dir() && (meta.size, meta.mtime) != (lower.size, lower.mtime) {
            return Ok(false);
        }
        let path = found.path.as_path();
        let xattrs = |root: &Root| {
            root.xattrs(path, Last::Keep).map(|mut all| {
                all.retain(|name, _| is_layers(name.as_bytes()));
                all
            })
        };
        if xattrs(self.upper)? != xattrs(lower_root)? {
            return Ok(false);
        }
        match meta.kind {
            Kind::Symlink => Ok(self.upper.read_link(path)? == lower_root.read_link(path)?),
            Kind::File if meta.size > 0 => {
                same_bytes(self.upper.open_file(path)?, lower_root.open_file(path)?)
                    .map_err(|source| DiffError::Io { path: found.path.clone(), source })
            }
            _ => Ok(true),
        }
    }

    pub(super) fn finish(mut self) -> Result<Changes, DiffError> {
        let written: HashSet<(u64, u64)> = self
            .changes
            .iter()
            .filter_map(|change| match &change.kind {
                ChangeKind::Written(meta) if !meta.is_dir() && meta.nlink > 1 => Some(inode(meta)),
                _ => None,
            })
            .collect();
        self.linked.retain(|(_, meta)| written.contains(&inode(meta)));
        if !self.linked.is_empty() {
            let mut listed: HashSet<PathBuf> =
                self.changes.iter().map(|change| change.path.clone()).collect();
            for (path, meta) in std::mem::take(&mut self.linked) {
                for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                    if listed.insert(parent.to_path_buf()) {
                        let missing =
                            || FsError::NotFound { operation: "look at", path: parent.to_path_buf() };
                        let meta = self.upper.stat(parent, Last::Keep)?.ok_or_else(missing)?;
                        let kind = ChangeKind::Unchanged(meta);
                        self.changes.push(Change { path: parent.to_path_buf(), kind });
                    }
                }
                self.changes.push(Change { path, kind: ChangeKind::Unchanged(meta) });
            }
        }
        // Stable: that a directory is opaque comes after the directory.
        self.changes.sort_by(|one, other| sorted(&one.path, &other.path));
        Ok(Changes { upper: self.upper.clone(), changes: self.changes })
    }
}

fn sorted(one: &Path, other: &Path) -> Ordering {
    by_component(one.as_os_str().as_bytes(), other.as_os_str().as_bytes())
}

pub(super) fn inode(meta: &Meta) -> (u64, u64) {
    (meta.device, meta.inode)
}

/// True for attributes that belong into a layer. What overlay file systems note is theirs, and of the
/// security modules only capabilities are a file's and not the host's.
pub(super) fn is_layers(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && (!name.starts_with(b"security.") || name == b"security.capability")
}

fn overlays<'a>(xattrs: &'a Xattrs, name: &str) -> Option<&'a Vec<u8>> {
    ["trusted.overlay.", "user.overlay."].iter().find_map(|prefix| {
        let name = format!("{prefix}{name}");
        xattrs.get(name.as_str().as_ref() as &std::ffi::OsStr)
    })
}

fn is_opaque(xattrs: &Xattrs) -> bool {
    overlays(xattrs, "opaque").is_some_and(|value| value == b"y")
}

fn is_redirected(xattrs: &Xattrs) -> bool {
    overlays(xattrs, "redirect").is_some() || overlays(xattrs, "metacopy").is_some()
}

fn same_bytes(mut one: File, mut other: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..count]) {
            Ok(()) if left[..count] == right[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
