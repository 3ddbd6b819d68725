//! An overlay's upper directory says what changed, by itself.
//!
//! | the kernel leaves in it | settled |
//! |---|---|
//! | opaque directories: made where another was removed and, to save itself a look, most of those that are new | [`spell_out`]: a whiteout for each name that is hidden, and no mark |
//! | what was only touched, or on the way to something that is gone | [`leave_what_changed`]: not there |
//! | sockets in place of something, which no layer has | whiteouts |
//!
//! The mark of an opaque directory hides whatever lies below, also what the upper directory was not made on: in a merge,
//! the files of others. Files that did not change take room, and look-ups through many layers go on in every directory
//! that is there for nothing.
//!
//! # Crash consistency
//!
//! An upper directory shows the same over its tree before, after and in between: whiteouts come first, a mark goes last.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use super::DiffError;
use super::compare::inode;
use super::compare::is_same;
use super::compare::overlays;
use crate::fs::FileTime;
use crate::fs::FsError;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::Root;

/// What a mount as root notes, and one without.
const MARKS: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Clocks of file systems are coarse, and late.
const GRAIN: Duration = Duration::from_millis(20);

/// What only the tree below an upper directory can tell.
#[derive(Clone, Default, Debug)]
pub struct Unsettled {
    /// Opaque directories, each after those it is in.
    pub opaque: Vec<PathBuf>,
    /// What may be in it without a change, or hides what no layer can.
    doubtful: Vec<(PathBuf, Meta)>,
}

impl Unsettled {
    /// Looks for it in an upper directory that is written to since `since`: files of that time are new. What is below may
    /// have been written just before; but what was copied up is older than its inode. Blocks.
    pub fn find(upper: &Root, since: SystemTime) -> Result<Unsettled, FsError> {
        let window = file_time(since - GRAIN)..=file_time(SystemTime::now() + GRAIN);
        let certain = file_time(since + GRAIN);
        let is_new = |path: &Path, mtime: FileTime| -> Result<bool, FsError> {
            if mtime >= certain || !window.contains(&mtime) {
                return Ok(window.contains(&mtime));
            }
            Ok(upper.birth(path, Last::Keep)?.is_none_or(|birth| birth <= mtime))
        };
        let mut found = Unsettled::default();
        // A directory that nothing was found in yet.
        let mut bare: Option<(PathBuf, Meta)> = None;
        for entry in upper.walk("")? {
            let entry = entry?;
            let (path, meta) = (entry.path.clone(), entry.meta);
            if let Some((directory, meta)) = bare.take()
                && !path.starts_with(&directory)
            {
                found.doubtful.push((directory, meta));
            }
            if path.as_os_str().is_empty() || meta.is_whiteout() {
                continue;
            }
            if meta.is_dir() {
                if overlays(&entry.xattrs()?, "opaque").is_some_and(|mark| mark == b"y") {
                    found.opaque.push(path.clone());
                }
                bare = Some((path, meta));
            } else if meta.kind == Kind::Socket || !is_new(&path, meta.mtime)? {
                found.doubtful.push((path, meta));
            }
        }
        found.doubtful.extend(bare);
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.opaque.is_empty() && self.doubtful.is_empty()
    }
}

/// Takes the marks of the directories `dirs` of `upper` away, which is not mounted. `lower` is the tree that it was made
/// on: it has at each of `dirs` what was there. Blocks.
pub fn spell_out(upper: &Root, lower: &Root, dirs: &[PathBuf]) -> Result<(), DiffError> {
    for dir in dirs {
        hide(upper, lower, dir)?;
        for mark in MARKS {
            upper.remove_xattr(dir, mark, Last::Keep)?;
        }
    }
    Ok(())
}

/// Takes out of `upper`, which is not mounted, what it has as `lower` has it. `lower` is the tree that it was made on; where
/// it shows nothing, nothing is taken out. Blocks.
pub fn leave_what_changed(upper: &Root, lower: &Root, unsettled: &Unsettled) -> Result<(), DiffError> {
    let (mut same, mut names) = (Vec::new(), HashMap::<(u64, u64), u64>::new());
    for (path, meta) in &unsettled.doubtful {
        let Some(below) = below(lower, path)? else { continue };
        if meta.kind == Kind::Socket {
            let time = time_above(upper, path)?;
            upper.remove(path)?;
            upper.mknod(path, Kind::WHITEOUT, 0)?;
            set_time_above(upper, path, time)?;
        } else if is_same(upper, lower, path, meta, &below)? {
            *names.entry(inode(meta)).or_default() += 1;
            same.push((path, meta));
        }
    }
    for (path, meta) in same.into_iter().rev() {
        let is_all = match meta.is_dir() {
            // One that was opaque may have whiteouts now.
            true => upper.read_dir(path)?.is_empty(),
            // A further name of a file that stays is one of its names.
            false => names.get(&inode(meta)) == Some(&meta.nlink),
        };
        if is_all {
            take_out(upper, lower, path)?;
        }
    }
    Ok(())
}

/// Takes out a path, and the directories above that were there for it alone.
fn take_out(upper: &Root, lower: &Root, path: &Path) -> Result<(), DiffError> {
    let mut path = path;
    loop {
        let time = time_above(upper, path)?;
        upper.remove(path)?;
        set_time_above(upper, path, time)?;
        path = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => return Ok(()),
        };
        if !upper.read_dir(path)?.is_empty() {
            return Ok(());
        }
        let (Some(meta), Some(below)) = (upper.stat(path, Last::Keep)?, below(lower, path)?) else {
            return Ok(());
        };
        if !is_same(upper, lower, path, &meta, &below)? {
            return Ok(());
        }
    }
}

/// What lies below at a path, if all directories on the way are directories there, too.
fn below(lower: &Root, path: &Path) -> Result<Option<Meta>, FsError> {
    let above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
    // From the root on: nothing is looked for behind what is no directory.
    for above in above.into_iter().rev() {
        if !lower.stat(above, Last::Keep)?.is_some_and(|meta| meta.is_dir()) {
            return Ok(None);
        }
    }
    lower.stat(path, Last::Keep)
}

/// Hides what `lower` has in a directory, and `upper` has not.
fn hide(upper: &Root, lower: &Root, dir: &Path) -> Result<(), FsError> {
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        if !below(lower, &dir)?.is_some_and(|meta| meta.is_dir()) {
            continue;
        }
        for name in lower.read_dir(&dir)? {
            let path = dir.join(name);
            match upper.stat(&path, Last::Keep)? {
                None => {
                    let time = time_above(upper, &path)?;
                    upper.mknod(&path, Kind::WHITEOUT, 0)?;
                    set_time_above(upper, &path, time)?;
                }
                Some(meta) if meta.is_dir() => pending.push(path),
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// Of the directory that a path is in.
fn time_above(upper: &Root, path: &Path) -> Result<Option<FileTime>, FsError> {
    let above = path.parent().unwrap_or(Path::new(""));
    Ok(upper.stat(above, Last::Keep)?.map(|meta| meta.mtime))
}

fn set_time_above(upper: &Root, path: &Path, mtime: Option<FileTime>) -> Result<(), FsError> {
    let above = path.parent().unwrap_or(Path::new(""));
    upper.set_meta(above, &MetaChange { mtime, ..MetaChange::default() }, Last::Keep)
}

fn file_time(time: SystemTime) -> FileTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    FileTime { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}
