//! Where an entry goes: the open directory that its path leads to.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::Uid;
use rustix::io::Errno;

use super::ApplyError;
use super::ApplyOptions;
use super::WhiteoutStyle;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::Root;

/// The kernel's own limit.
const MAX_LINKS: usize = 40;

/// What a directory that hides those below is marked with.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// The directories of the tree that is made, with those on the way to the last entry open.
pub(super) struct Place<'a> {
    pub(super) root: &'a Root,
    pub(super) style: WhiteoutStyle,
    pub(super) lower: Option<&'a Root>,
    /// The way to the directory that was asked for last: a step for each component of its path as the
    /// archive spells it, wherever links led.
    open: Vec<Step>,
    /// Paths that this layer made. Only for whole trees: elsewhere all there is is this layer's.
    own: BTreeSet<Vec<u8>>,
    pub(super) implied: BTreeSet<PathBuf>,
    /// Times of directories, set at the end: what is made in a directory changes its time.
    pub(super) dirs: BTreeMap<Vec<u8>, (i64, u32)>,
}

struct Step {
    name: Vec<u8>,
    dir: Dir,
}

/// An open directory and where it is: a path without links, relative to the root.
struct Dir {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// Where a path has led so far. Names that are not there are made at the end only: a link may lead through some, and out
/// again.
struct Way {
    /// Without links.
    path: Vec<u8>,
    /// Of the last names of the path, those that are not there.
    missing: Vec<Missing>,
    /// The directory that they are missing in.
    fd: OwnedFd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// This layer says nothing of it.
    Unsaid,
    Whiteout,
}

/// What a name in a directory is.
enum Found {
    Dir(OwnedFd),
    Nothing,
    Whiteout,
    Link(Vec<u8>),
    Other,
}

impl<'a> Place<'a> {
    pub(super) fn new(root: &'a Root, options: &ApplyOptions<'a>) -> Place<'a> {
        Place {
            root,
            style: options.style,
            lower: options.lower.filter(|_| options.style == WhiteoutStyle::Overlay),
            open: Vec::new(),
            own: BTreeSet::new(),
            implied: BTreeSet::new(),
            dirs: BTreeMap::new(),
        }
    }

    /// Opens the directory that an entry of this path is in, and makes it if the layer only implies it.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        let parent = path.iter().rposition(|&b| b == b'/').map_or(&[][..], |at| &path[..at]);
        let names = parent.split(|&b| b == b'/').filter(|name| !name.is_empty());
        let names: Vec<&[u8]> = names.collect();
        let same = self.open.iter().zip(&names).take_while(|(step, name)| step.name == **name).count();
        self.open.truncate(same);
        for name in &names[same..] {
            let dir = self.step(name, path)?;
            self.open.push(Step { name: name.to_vec(), dir });
        }
        Ok(())
    }

    /// The directory that was entered.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root.as_fd(), |step| step.dir.fd.as_fd())
    }

    /// Its path, without links.
    pub(super) fn dir_path(&self) -> &[u8] {
        self.open.last().map_or(&[], |step| &step.dir.path)
    }

    /// The path of a name in it.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        join(self.dir_path(), name)
    }

    /// Forgets what is open: some of it may be gone.
    pub(super) fn leave(&mut self) {
        self.open.clear();
    }

    /// Notes that this layer has made a path.
    pub(super) fn made(&mut self, path: &[u8]) {
        if self.style == WhiteoutStyle::Plain {
            self.own.insert(path.to_vec());
        }
    }

    /// True if this layer made what is at the path.
    pub(super) fn is_own(&self, path: &[u8]) -> bool {
        self.style == WhiteoutStyle::Overlay || self.own.contains(path)
    }

    fn has_own_beneath(&self, path: &[u8]) -> bool {
        let within = [path, b"/"].concat();
        self.own.range(within.clone()..).next().is_some_and(|own| own.starts_with(&within))
    }

    /// Deletes what layers below have at a path and beneath it, and keeps what this layer made there.
    pub(super) fn remove_lower(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        if !self.is_own(path) && !self.has_own_beneath(path) {
            self.leave();
            return Ok(self.root.remove_all(as_path(path))?);
        }
        match self.root.stat(as_path(path), Last::Keep)? {
            Some(meta) if meta.is_dir() => self.empty_lower(path),
            _ => Ok(()),
        }
    }

    /// As [`Place::remove_lower`], but for what is in the directory.
    pub(super) fn empty_lower(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        for name in self.root.read_dir(as_path(path))? {
            self.remove_lower(&join(path, name.as_bytes()))?;
        }
        Ok(())
    }

    /// One component further, for the entry at `whole`.
    fn step(&mut self, name: &[u8], whole: &[u8]) -> Result<Dir, ApplyError> {
        let at = self.dir_path().to_vec();
        match look(self.dir(), name).map_err(ApplyError::io("open", whole))? {
            Found::Dir(fd) => return Ok(Dir { fd, path: join(&at, name) }),
            Found::Nothing if self.lower.is_none() => return self.imply(None, &at, name),
            _ => {}
        }
        let mut todo = VecDeque::from([name.to_vec()]);
        let reopen = |at: &[u8]| reopen(self.root, at).map_err(ApplyError::io("open", whole));
        let mut way = Way { fd: reopen(&at)?, path: at, missing: Vec::new() };
        // The link that was followed last, and whether it is the layer's.
        let (mut path_of_link, mut by_own) = (Vec::new(), false);
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                if way.path.is_empty() && by_own {
                    return Err(ApplyError::Escapes { path: shown(whole), link: shown(&path_of_link) });
                }
                let passed = as_path(&way.path).to_path_buf();
                way.path.truncate(way.path.iter().rposition(|&b| b == b'/').unwrap_or(0));
                match way.missing.pop() {
                    None => way.fd = reopen(&way.path)?,
                    // Below may be a link, which would lead elsewhere.
                    Some(Missing::Unsaid) if self.tells_what_it_implies() => {
                        self.implied.insert(passed);
                    }
                    Some(_) => {}
                }
                continue;
            }
            let path = join(&way.path, &name);
            let found = match way.missing.is_empty() {
                true => look(way.fd.as_fd(), &name).map_err(ApplyError::io("open", whole))?,
                false => Found::Nothing,
            };
            let (target, own) = match found {
                Found::Dir(next) => {
                    (way.fd, way.path) = (next, path);
                    continue;
                }
                Found::Whiteout if self.style == WhiteoutStyle::Overlay => {
                    way.path = path;
                    way.missing.push(Missing::Whiteout);
                    continue;
                }
                Found::Whiteout | Found::Other => {
                    return Err(ApplyError::NotADirectory { path: shown(whole), parent: shown(&path) });
                }
                Found::Nothing => match self.lower_link(&path, &way)? {
                    Some(target) => (target, false),
                    None => {
                        way.path = path;
                        way.missing.push(Missing::Unsaid);
                        continue;
                    }
                },
                Found::Link(target) => (target, self.is_own(&path)),
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(ApplyError::TooManyLinks { path: shown(whole), max: MAX_LINKS });
            }
            let absolute = target.starts_with(b"/");
            if own && (absolute || climbs(&way.path, &target)) {
                return Err(ApplyError::Escapes { path: shown(whole), link: shown(&path) });
            }
            (path_of_link, by_own) = (path, own);
            if absolute {
                way = Way { fd: reopen(b"")?, path: Vec::new(), missing: Vec::new() };
            }
            let names = target.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
            for (at, name) in names.enumerate() {
                todo.insert(at, name.to_vec());
            }
        }
        self.make(way)
    }

    /// Makes what is missing of a way.
    fn make(&mut self, way: Way) -> Result<Dir, ApplyError> {
        let mut names: Vec<&[u8]> = way.path.split(|&b| b == b'/').filter(|name| !name.is_empty()).collect();
        let missing = names.split_off(names.len() - way.missing.len());
        let mut dir = Dir { fd: way.fd, path: names.join(&b'/') };
        for (name, is) in missing.into_iter().zip(way.missing) {
            if is == Missing::Whiteout {
                rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty())
                    .map_err(ApplyError::io("replace", &join(&dir.path, name)))?;
            }
            dir = self.imply(Some(dir.fd.as_fd()), &dir.path, name)?;
            if is == Missing::Whiteout {
                mark_opaque(dir.fd.as_fd()).map_err(ApplyError::io("mark", &dir.path))?;
            }
        }
        Ok(dir)
    }

    fn tells_what_it_implies(&self) -> bool {
        self.lower.is_none() && self.style == WhiteoutStyle::Overlay
    }

    /// The link that the tree below has at a path one name beyond `way`, if it leads to a directory there and this layer
    /// does not hide it.
    fn lower_link(&self, path: &[u8], way: &Way) -> Result<Option<Vec<u8>>, ApplyError> {
        let Some(lower) = self.lower else { return Ok(None) };
        if !lower.stat(as_path(path), Last::Keep)?.is_some_and(|meta| meta.is_symlink())
            || !lower.stat(as_path(path), Last::Follow)?.is_some_and(|meta| meta.is_dir())
            || self.hides(way)?
        {
            return Ok(None);
        }
        Ok(Some(lower.read_link(as_path(path))?.into_os_string().as_bytes().to_vec()))
    }

    /// True if this layer hides what is below in the directory that a way has led to.
    fn hides(&self, way: &Way) -> Result<bool, ApplyError> {
        if way.missing.contains(&Missing::Whiteout) {
            return Ok(true);
        }
        for dir in as_path(&way.path).ancestors().skip(way.missing.len()) {
            if self.root.xattrs(dir, Last::Keep)?.contains_key(OsStr::new(OPAQUE)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a directory that the layer has no entry for: like that below, or root's, 0755, of 1970.
    fn imply(&mut self, parent: Option<BorrowedFd<'_>>, at: &[u8], name: &[u8]) -> Result<Dir, ApplyError> {
        let path = join(at, name);
        let dir = parent.unwrap_or_else(|| self.dir());
        let failed = |errno: Errno| ApplyError::io("make directory", &path)(errno);
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let fd = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()).map_err(failed)?;
        let below = match self.lower {
            Some(lower) => {
                lower.stat(as_path(&path), Last::Keep)?.filter(Meta::is_dir).map(|meta| (lower, meta))
            }
            None => None,
        };
        if let Some((lower, meta)) = below {
            let mut xattrs = lower.xattrs(as_path(&path), Last::Keep)?;
            xattrs.retain(|name, _| !is_overlays(name.as_bytes()));
            let change = MetaChange::like(&meta, &xattrs);
            self.root.set_meta(as_path(&path), &change, Last::Keep)?;
            self.dirs.insert(path.clone(), (meta.mtime.seconds, meta.mtime.nanos));
        } else {
            rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(failed)?;
            self.dirs.insert(path.clone(), (0, 0));
            if self.tells_what_it_implies() {
                self.implied.insert(as_path(&path).to_path_buf());
            }
        }
        self.made(&path);
        Ok(Dir { fd, path })
    }
}

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a name in an open directory is; a directory is opened.
fn look(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
    match rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()) {
        Ok(fd) => return Ok(Found::Dir(fd)),
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(errno) => return Err(errno),
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if is_whiteout(&stat) {
        return Ok(Found::Whiteout);
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(Found::Other);
    }
    Ok(Found::Link(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()))
}

/// Opens a directory by a path that has no links.
fn reopen(root: &Root, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat(root.as_fd(), ".", DIRECTORY, Mode::empty())?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    Ok(dir)
}

/// True if a relative target, in the directory `at`, names what is above the root.
fn climbs(at: &[u8], target: &[u8]) -> bool {
    let mut depth = at.split(|&b| b == b'/').filter(|name| !name.is_empty()).count();
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            _ => depth += 1,
        }
    }
    false
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    Meta::from(*stat).kind == Kind::WHITEOUT
}

pub(super) fn mark_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", rustix::fs::XattrFlags::empty())
}

/// True for attributes by which overlay file systems are steered.
pub(super) fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// For access and modification. What the kernel can't hold is brought into its range.
pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds.clamp(-(1 << 34), 1 << 34), tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

pub(super) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// As guest paths are shown: from the root.
pub(super) fn shown(path: &[u8]) -> PathBuf {
    Path::new("/").join(as_path(path))
}
