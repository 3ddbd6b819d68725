//! Where an action looks at what it changes: the paths of its base that its result depends on.
//!
//! These are the paths that it makes, replaces or removes, with the directories on the way, whose attributes the
//! change set repeats. Paths below those that it makes are in nothing of the base.

use std::path::Path;
use std::path::PathBuf;

use super::FileError;
use super::copy::base_name;
use super::lexical;
use super::wildcard;
use crate::cache::Look;
use crate::cache::Pattern;
use crate::cache::Want;
use crate::fs::Last;
use crate::fs::Root;
use crate::ops::op::CopyFiles;
use crate::ops::op::FileChange;
use crate::ops::op::Wildcard;
use crate::pattern::has_wildcards;
use crate::pattern::split_wildcards;

/// Paths of a copy that are looked at one by one. Beyond that, all of its destination is.
const MAX_PATHS: usize = 64;

/// What an action leaves that counts for those after it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Makes {
    /// There may be links.
    pub(super) links: bool,
}

/// What a copy looks at, and makes.
#[derive(Debug)]
pub(super) struct Onto {
    pub(super) looks: Vec<Look>,
    pub(super) makes: Makes,
    /// Its sources are files alone.
    pub(super) only_files: bool,
}

/// What a change looks at, unless it is a copy; `None` if nobody can tell.
pub(super) fn look(change: &FileChange) -> Option<Look> {
    match change {
        FileChange::MakeFile(file) => Some(at(&file.path)),
        FileChange::MakeDir(dir) => Some(at(&dir.path)),
        FileChange::Symlink(link) => Some(at(&link.path)),
        FileChange::Remove(removed) if removed.wildcard && has_wildcards(&removed.path) => {
            let (before, wild) = split_wildcards(&format!("/{}", removed.path));
            let pattern = Pattern::new(&wild).ok()?;
            Some(Look { want: Want::Matching(pattern), ..at(before) })
        }
        FileChange::Remove(removed) => {
            Some(Look { last: Last::Keep, ..at(lexical(Path::new(&removed.path))) })
        }
        FileChange::Copy(_) => None,
    }
}

fn at(path: impl Into<PathBuf>) -> Look {
    Look { to_change: true, ..Look::at(path) }
}

/// Where a copy looks whatever its source is.
pub(super) fn destination(copy: &CopyFiles) -> Look {
    match copy.create_dest_path {
        true => at(lexical(Path::new(&copy.dest))),
        false => at(&copy.dest),
    }
}

/// What a copy looks at; `None` if nobody can tell.
pub(super) fn copy(from: &Root, copy: &CopyFiles) -> Result<Option<Onto>, FileError> {
    if copy.unpack {
        // It may be an archive of anything.
        return Ok(None);
    }
    let last = if copy.follow_symlink { Last::Follow } else { Last::Keep };
    let sources = match copy.wildcard {
        Wildcard::No => vec![PathBuf::from(&copy.src)],
        Wildcard::Required | Wildcard::MayBeEmpty => wildcard::resolve(from, &copy.src, last)?,
    };
    let dest = lexical(Path::new(&copy.dest));
    let mut onto = Onto { looks: vec![at(&dest)], makes: Makes::default(), only_files: !sources.is_empty() };
    if !copy.create_dest_path {
        onto.looks.push(at(&copy.dest));
    }
    let mut paths = Vec::new();
    for source in &sources {
        let resolved = from.resolve(lexical(source), last)?;
        let Some(meta) = from.stat(&resolved, Last::Keep)? else {
            // It will fail, whatever is there.
            onto.only_files = false;
            continue;
        };
        let name = base_name(source).map(PathBuf::from).unwrap_or_default();
        if !meta.is_dir() {
            onto.makes.links |= meta.is_symlink();
            paths.push((name, Want::Directory));
            continue;
        }
        onto.only_files = false;
        for entry in from.walk(&resolved)? {
            let entry = entry?;
            onto.makes.links |= entry.meta.is_symlink();
            if paths.len() <= MAX_PATHS {
                // It goes into a directory that is there, and otherwise in its place.
                paths.extend([name.join(&entry.path), entry.path].map(|path| (path, Want::Entry)));
            }
        }
    }
    if paths.len() > MAX_PATHS {
        onto.looks.push(Look { want: Want::Tree, ..at(&dest) });
    } else {
        let inside = paths.into_iter().filter(|(path, _)| !path.as_os_str().is_empty());
        onto.looks.extend(inside.map(|(path, want)| Look { want, last: Last::Keep, ..at(dest.join(path)) }));
    }
    Ok(Some(onto))
}

#[cfg(test)]
mod tests;
