//! Which layers decide what is at some paths, as far as the layers are known. Blocking, no requests.
//!
//! A path is walked in every layer from the top: as long as the layers seen have directories on the way or nothing,
//! the next one below is asked. The first one that has something else decides.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Component;
use std::path::Path;

use super::Look;
use super::Want;
use super::known::Known;
use super::known::Says;
use super::select::Spot;
use crate::fs::FsError;
use crate::fs::Last;

/// The kernel's own limit.
const MAX_LINKS: usize = 40;

/// What a survey has come to. Layers are counted from the bottom.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Survey {
    /// These have to be known first.
    Undecided { layers: BTreeSet<usize> },
    /// These together, without the others, have every path as it is; of each, what it has at the spots is enough.
    Decided { layers: BTreeSet<usize>, spots: BTreeSet<Spot> },
}

pub(super) fn run(known: &[Option<Known>], looks: &[Look]) -> Result<Survey, FsError> {
    let mut surveyor = Surveyor {
        known,
        unknown: BTreeSet::new(),
        needed: BTreeSet::new(),
        spots: BTreeSet::new(),
        hiding: Vec::new(),
    };
    for (number, look) in looks.iter().enumerate() {
        surveyor.look(number, look)?;
    }
    if !surveyor.unknown.is_empty() {
        return Ok(Survey::Undecided { layers: surveyor.unknown });
    }
    surveyor.hide()?;
    Ok(Survey::Decided { layers: surveyor.needed, spots: surveyor.spots })
}

struct Surveyor<'a> {
    known: &'a [Option<Known>],
    unknown: BTreeSet<usize>,
    needed: BTreeSet<usize>,
    spots: BTreeSet<Spot>,
    /// Layers that hide what those below have at a path that somebody looks at.
    hiding: Vec<(usize, Vec<u8>)>,
}

/// Where a walk through all layers has come to.
enum End {
    Nothing,
    /// There is no telling yet.
    Unknown,
    Directory,
    /// The component of this number is a link.
    Link {
        component: usize,
        target: Vec<u8>,
    },
    /// Something is there that the path can't go on from, or need not.
    Leaf,
}

impl Surveyor<'_> {
    fn look(&mut self, number: usize, look: &Look) -> Result<(), FsError> {
        // Components that are left, the next one last.
        let mut pending: Vec<Vec<u8>> = Vec::new();
        push(&mut pending, &look.path);
        // A path of directories, as far as it exists.
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        loop {
            while let Some(name) = pending.pop_if(|name| name != b"..") {
                resolved.push(name);
            }
            let is_last = pending.is_empty();
            let contents = (is_last && look.want.has_contents()).then_some(number);
            self.spots.insert(Spot { path: resolved.join(&b'/'), contents });
            match self.descend(&resolved, is_last, look)? {
                End::Unknown | End::Leaf => return Ok(()),
                End::Nothing | End::Directory if is_last => return Ok(()),
                // What is missing is taken for a directory that could be made.
                End::Nothing | End::Directory => {
                    while pending.pop_if(|name| name == b"..").is_some() {
                        resolved.pop();
                    }
                }
                End::Link { component, target } => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(());
                    }
                    pending.extend(resolved.drain(component..).skip(1).rev());
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    push(&mut pending, Path::new(OsStr::from_bytes(&target)));
                }
            }
        }
    }

    /// Walks a path without `..` in each layer. `is_last` says that the path of the look ends there.
    fn descend(&mut self, names: &[Vec<u8>], is_last: bool, look: &Look) -> Result<End, FsError> {
        let contents = is_last && look.want.has_contents();
        // How far there are directories, and the layer that has the attributes of each.
        let mut directories: Vec<usize> = Vec::new();
        let mut end = End::Nothing;
        for layer in (0..self.known.len()).rev() {
            let found = directories.len() == names.len();
            if found && !contents {
                break;
            }
            let Some(known) = &self.known[layer] else {
                self.unknown.insert(layer);
                if found {
                    continue;
                }
                return Ok(End::Unknown);
            };
            let mut opaque = None;
            let mut path = Vec::new();
            let mut reached = 0;
            for name in names {
                join(&mut path, name);
                let says = known.says(&path)?;
                match says {
                    Says::Nothing => break,
                    Says::Unsure => {
                        self.unknown.insert(layer);
                        return Ok(End::Unknown);
                    }
                    Says::Dir { opaque: hides } => {
                        if reached == directories.len() {
                            directories.push(layer);
                        }
                        if hides && opaque.is_none() {
                            opaque = Some(path.clone());
                        }
                        reached += 1;
                    }
                    // Those above have a directory there, or hide it.
                    Says::Removed | Says::Link(_) | Says::Other
                        if reached < directories.len() || says == Says::Removed =>
                    {
                        opaque = Some(path.clone());
                        break;
                    }
                    Says::Removed | Says::Other => end = End::Leaf,
                    Says::Link(_) if is_last && reached + 1 == names.len() && look.last == Last::Keep => {
                        end = End::Leaf;
                    }
                    Says::Link(target) => end = End::Link { component: reached, target },
                }
                if !matches!(end, End::Nothing) {
                    break;
                }
            }
            if !matches!(end, End::Nothing) {
                let replaced = is_last && reached + 1 == names.len() && matches!(look.want, Want::Directory);
                match end {
                    End::Leaf if replaced => self.hiding.push((layer, path)),
                    _ => drop(self.needed.insert(layer)),
                }
                break;
            }
            if contents && reached == names.len() && known.counts_in(&path, look) {
                self.needed.insert(layer);
            }
            if let Some(path) = opaque {
                self.hiding.push((layer, path));
                break;
            }
        }
        if look.to_change {
            self.needed.extend(directories.iter().copied());
        }
        if matches!(end, End::Nothing) && directories.len() < names.len() {
            // A directory that nothing is in still hides what is below and is none.
            let mut path = Vec::new();
            for (name, layer) in names.iter().zip(&directories) {
                join(&mut path, name);
                self.hiding.push((*layer, path.clone()));
            }
        }
        if directories.len() == names.len() {
            // This layer has all directories of the path.
            self.needed.extend(directories.last());
            end = End::Directory;
        }
        Ok(end)
    }

    /// Adds the layers that hide what one of the needed ones has, since the others will not be there to do it.
    fn hide(&mut self) -> Result<(), FsError> {
        loop {
            let mut more = Vec::new();
            for (layer, path) in self.hiding.iter().filter(|(layer, _)| !self.needed.contains(layer)) {
                for below in self.needed.range(..layer) {
                    if let Some(known) = &self.known[*below]
                        && known.has(path)?
                    {
                        more.push(*layer);
                        break;
                    }
                }
            }
            if more.is_empty() {
                return Ok(());
            }
            self.needed.extend(more);
        }
    }
}

/// What is still to be walked, the next one last.
fn push(pending: &mut Vec<Vec<u8>>, path: &Path) {
    pending.extend(path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes().to_vec()),
        Component::ParentDir => Some(b"..".to_vec()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}
