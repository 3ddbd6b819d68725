//! Finds the changes.

use std::cmp::Ordering;
use std::collections::HashSet;
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
use crate::fs::same_bytes;
use crate::snapshot::index::by_component;

pub(super) struct Differ<'a> {
    lower: Option<&'a Root>,
    upper: &'a Root,
    changes: Vec<Change>,
    /// Directories that are on the way to where the walk is, and are not listed yet.
    parents: Vec<(PathBuf, Meta)>,
    /// Names that did not change of files that have several: they are in the layer if another one is.
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

    /// Goes through both trees. Whiteouts in the upper one are what is not there.
    pub(super) fn both(&mut self) -> Result<(), DiffError> {
        let mut upper_walk = self.upper.walk("")?;
        let mut lower_walk = self.lower.map(|lower| lower.walk("")).transpose()?;
        let (mut upper, mut lower) = (None, None);
        loop {
            while upper.is_none() {
                let Some(entry) = upper_walk.next() else { break };
                let entry = entry?;
                if !entry.meta.is_whiteout() {
                    upper = Some(Found { path: entry.path.clone(), meta: entry.meta });
                }
            }
            if lower.is_none()
                && let Some(entry) = lower_walk.as_mut().and_then(Iterator::next).transpose()?
            {
                lower = Some(Found { path: entry.path.clone(), meta: entry.meta });
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
        let same = match (lower, self.lower) {
            (Some(meta), Some(lower)) => is_same(self.upper, lower, &found.path, &found.meta, &meta)?,
            _ => false,
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
                self.changes.push(Change { path, kind: ChangeKind::Written(meta) });
            }
        }
        self.changes.sort_unstable_by(|one, other| sorted(&one.path, &other.path));
        Ok(Changes { upper: self.upper.clone(), changes: self.changes })
    }
}

/// What a settled upper directory has, sorted.
pub(super) fn listed(upper: &Root) -> Result<Vec<Change>, DiffError> {
    let mut changes = Vec::new();
    for entry in upper.walk("")? {
        let entry = entry?;
        let (path, meta) = (entry.path.clone(), entry.meta);
        if path.as_os_str().is_empty() || meta.kind == Kind::Socket {
            continue;
        }
        if meta.is_whiteout() {
            changes.push(Change { path, kind: ChangeKind::Removed });
            continue;
        }
        if is_redirected(&entry.xattrs()?) {
            return Err(DiffError::Redirected { path });
        }
        changes.push(Change { path, kind: ChangeKind::Written(meta) });
    }
    Ok(changes)
}

/// True if what `upper` has at a path is what `lower` has there.
pub(super) fn is_same(
    upper: &Root,
    lower: &Root,
    path: &Path,
    meta: &Meta,
    below: &Meta,
) -> Result<bool, DiffError> {
    if (meta.device, meta.inode) == (below.device, below.inode) {
        return Ok(true);
    }
    if (meta.kind, meta.mode, meta.owner) != (below.kind, below.mode, below.owner) {
        return Ok(false);
    }
    if !meta.is_dir() && (meta.size, meta.mtime) != (below.size, below.mtime) {
        return Ok(false);
    }
    let xattrs = |root: &Root| {
        root.xattrs(path, Last::Keep).map(|mut all| {
            all.retain(|name, _| is_layers(name.as_bytes()));
            all
        })
    };
    if xattrs(upper)? != xattrs(lower)? {
        return Ok(false);
    }
    match meta.kind {
        Kind::Symlink => Ok(upper.read_link(path)? == lower.read_link(path)?),
        Kind::File if meta.size > 0 => same_bytes(upper.open_file(path)?, lower.open_file(path)?)
            .map_err(|source| DiffError::Io { path: path.to_path_buf(), source }),
        _ => Ok(true),
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

/// What overlay notes of a directory or file, mounted as root and without.
pub(super) fn overlays<'a>(xattrs: &'a Xattrs, name: &str) -> Option<&'a Vec<u8>> {
    ["trusted.overlay.", "user.overlay."].iter().find_map(|prefix| {
        let name = format!("{prefix}{name}");
        xattrs.get(name.as_str().as_ref() as &std::ffi::OsStr)
    })
}

fn is_redirected(xattrs: &Xattrs) -> bool {
    overlays(xattrs, "redirect").is_some() || overlays(xattrs, "metacopy").is_some()
}
