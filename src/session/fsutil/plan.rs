//! [`Planner`]: compares what a sender has with what is there, and does all that needs no bytes of files.
//!
//! The incoming walk is compared with the listings of the directories that it is in, so that what is in a
//! listing and not in the walk is removed when the walk has passed it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::mpsc;

use super::DataFilter;
use super::Differ;
use super::FileKind;
use super::FileStat;
use super::METADATA;
use super::ReceiveOptions;
use super::TransferError;
use super::order::split;
use super::write::Wanted;
use super::write::Wants;
use super::write::temporary;
use crate::fs::FileTime;
use crate::fs::Kind;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::MetaChange;
use crate::fs::Root;
use crate::proto::fsutil::Packet;
use crate::proto::fsutil::packet::PacketType;

/// Bits that the owner needs to make and remove what is in a directory.
const WORKABLE: u32 = 0o700;

pub(super) struct Planner {
    root: Root,
    options: ReceiveOptions,
    /// The directory that the walk is in, and those above it.
    levels: Vec<Level>,
    wants: Arc<Wants>,
    requests: mpsc::UnboundedSender<Packet>,
    /// The first name of each file with several, as the target has them.
    linked: HashMap<(u64, u64), Vec<u8>>,
    rest: Rest,
    metadata: Option<Metadata>,
}

/// A directory of the target.
struct Level {
    path: Vec<u8>,
    /// What is there and has not been passed; `None` if nothing is to be removed.
    listing: Option<std::iter::Peekable<std::vec::IntoIter<OsString>>>,
    /// Something was made in it, which changes its time.
    touched: bool,
    /// What it shall be in the end; `None` for the root.
    last: Option<Finish>,
}

/// What a directory gets when all is in it.
struct Finish {
    /// If it is not there yet.
    mode: Option<u32>,
    mtime: FileTime,
    /// The time that it has is another one.
    stale: bool,
}

/// What is left to do when the bytes of all files are there.
#[derive(Default)]
pub(super) struct Rest {
    links: Vec<(Vec<u8>, Vec<u8>)>,
    directories: Vec<(Vec<u8>, Finish)>,
    metadata: Option<(PathBuf, std::fs::File)>,
    pub(super) wanted: u64,
    pub(super) removed: u64,
    /// Without links, and files whose bytes were asked for: what becomes of them is seen when they are there.
    pub(super) changed: u64,
    pub(super) parted: u64,
}

/// A transfer of metadata.
struct Metadata {
    keeps: DataFilter,
    file: io::BufWriter<std::fs::File>,
    path: PathBuf,
    /// Directories above the walk's place that are not in the target.
    above: Vec<FileStat>,
}

impl Planner {
    pub(super) fn new(
        target: &Path,
        options: ReceiveOptions,
        wants: Arc<Wants>,
        requests: mpsc::UnboundedSender<Packet>,
    ) -> Result<Planner, TransferError> {
        let root = Root::open(target)?;
        let listing = if options.merge { None } else { Some(listing(&root, b"")?) };
        let top = Level { path: Vec::new(), listing, touched: false, last: None };
        let metadata = match &options.metadata_only {
            None => None,
            Some(keeps) => {
                let path = temporary(Path::new(METADATA));
                let file = io::BufWriter::new(root.create_file(&path, 0o644)?);
                Some(Metadata { keeps: keeps.clone(), file, path, above: Vec::new() })
            }
        };
        let (linked, rest) = (HashMap::new(), Rest::default());
        Ok(Planner { root, options, levels: vec![top], wants, requests, linked, rest, metadata })
    }

    /// Takes the next entry of the walk, whose path and order were checked.
    pub(super) fn entry(&mut self, id: u32, mut stat: FileStat) -> Result<(), TransferError> {
        if let Some(owner) = self.options.owner {
            stat.owner = owner;
        }
        if let Some(mut metadata) = self.metadata.take() {
            let taken = self.metadata_entry(&mut metadata, id, stat);
            self.metadata = Some(metadata);
            return taken;
        }
        self.apply(id, stat)
    }

    fn metadata_entry(
        &mut self,
        metadata: &mut Metadata,
        id: u32,
        stat: FileStat,
    ) -> Result<(), TransferError> {
        if stat.path == METADATA.as_bytes() {
            return Ok(());
        }
        let encoded = stat.encode().encode_to_vec();
        let length = u32::try_from(encoded.len()).unwrap_or(u32::MAX).to_le_bytes();
        let written = metadata.file.write_all(&length).and_then(|()| metadata.file.write_all(&encoded));
        written.map_err(TransferError::file("write", METADATA))?;
        let (parent, _) = split(&stat.path);
        while metadata.above.last().is_some_and(|dir| dir.path != parent && !is_above(&dir.path, parent)) {
            metadata.above.pop();
        }
        if !metadata.keeps.takes(&stat) {
            if stat.is_dir() {
                metadata.above.push(stat);
            }
            return Ok(());
        }
        // Directories are asked for no bytes, so their numbers don't count.
        for dir in metadata.above.drain(..) {
            self.apply(0, dir)?;
        }
        self.apply(id, stat)
    }

    fn apply(&mut self, id: u32, stat: FileStat) -> Result<(), TransferError> {
        let (parent, name) = split(&stat.path);
        while self.levels.len() > 1 && self.levels.last().is_some_and(|level| level.path != parent) {
            self.pop()?;
        }
        let existing = self.pass(name, &stat.path)?;
        let existing = match existing {
            true => self.root.stat(stat.as_path(), Last::Keep)?,
            false => None,
        };
        match &stat.kind {
            FileKind::Directory => self.directory(stat, existing),
            FileKind::File => self.file(id, stat, existing.as_ref()),
            FileKind::HardLink { target } => {
                let link = (stat.path.clone(), target.clone());
                self.pass_through();
                self.rest.links.push(link);
                Ok(())
            }
            FileKind::Symlink { .. } | FileKind::Fifo => self.special(&stat, existing.as_ref()),
            FileKind::CharDevice { .. } | FileKind::BlockDevice { .. } => {
                self.special(&stat, existing.as_ref())
            }
        }
    }

    /// Removes what is listed before `name`. True if something of that name may be there.
    fn pass(&mut self, name: &[u8], path: &[u8]) -> Result<bool, TransferError> {
        let Some(level) = self.levels.last_mut() else { return Ok(true) };
        let Some(listing) = &mut level.listing else { return Ok(true) };
        let parent = &path[..path.len() - name.len()];
        while let Some(gone) = listing.next_if(|there| there.as_bytes() < name) {
            let gone = [parent, gone.as_bytes()].concat();
            self.root.remove_all(Path::new(OsStr::from_bytes(&gone)))?;
            self.rest.removed += 1;
            level.touched = true;
        }
        Ok(listing.next_if(|there| there.as_bytes() == name).is_some())
    }

    /// Leaves the directory that the walk is in.
    fn pop(&mut self) -> Result<(), TransferError> {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        for gone in level.listing.take().into_iter().flatten() {
            let gone = Path::new(OsStr::from_bytes(&level.path)).join(gone);
            self.root.remove_all(gone)?;
            self.rest.removed += 1;
            level.touched = true;
        }
        if let Some(finish) = level.last
            && (level.touched || finish.stale || finish.mode.is_some())
        {
            self.rest.directories.push((level.path, finish));
        }
        Ok(())
    }

    fn touch(&mut self) {
        self.rest.changed += 1;
        self.pass_through();
    }

    /// The directory gets another time for something in it, which may turn out to be what it was.
    fn pass_through(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.touched = true;
        }
    }

    fn directory(&mut self, stat: FileStat, existing: Option<Meta>) -> Result<(), TransferError> {
        let path = stat.as_path();
        let lasting = existing.filter(Meta::is_dir);
        if existing.is_some() && lasting.is_none() {
            self.root.remove_all(path)?;
        }
        let (mode, stale) = match lasting {
            Some(there) => {
                let owned = there.owner == stat.owner || !self.options.sets_owner();
                if !owned || there.mode != stat.mode {
                    // The mode of a directory that can't be worked in comes at the end.
                    let change = MetaChange {
                        owner: self.options.sets_owner().then_some(stat.owner),
                        mode: Some(stat.mode | WORKABLE),
                        xattrs: Some(&stat.xattrs),
                        mtime: None,
                    };
                    self.root.set_meta(path, &change, Last::Keep)?;
                    self.rest.changed += 1;
                }
                ((stat.mode | WORKABLE != stat.mode).then_some(stat.mode), there.mtime != stat.mtime)
            }
            None => {
                self.touch();
                self.root.create_dir(path, stat.mode | WORKABLE)?;
                let change = MetaChange {
                    owner: self.options.sets_owner().then_some(stat.owner),
                    mode: Some(stat.mode | WORKABLE),
                    xattrs: Some(&stat.xattrs),
                    mtime: None,
                };
                self.root.set_meta(path, &change, Last::Keep)?;
                ((stat.mode | WORKABLE != stat.mode).then_some(stat.mode), true)
            }
        };
        let listing = match (self.options.merge, lasting) {
            (true, _) => None,
            (false, Some(_)) => Some(listing(&self.root, &stat.path)?),
            (false, None) => Some(Vec::new().into_iter().peekable()),
        };
        let last = Some(Finish { mode, mtime: stat.mtime, stale });
        self.levels.push(Level { path: stat.path, listing, touched: false, last });
        Ok(())
    }

    fn file(&mut self, id: u32, stat: FileStat, existing: Option<&Meta>) -> Result<(), TransferError> {
        let alike = existing.is_some_and(|there| self.is_alike(&stat, there));
        if alike && self.options.differ == Differ::Metadata {
            return Ok(());
        }
        if existing.is_some_and(Meta::is_dir) {
            self.root.remove_all(stat.as_path())?;
        }
        self.pass_through();
        self.rest.wanted += 1;
        let replaces = self.options.merge || existing.is_some_and(|there| !there.is_dir());
        self.wants.insert(id, Wanted { stat, replaces, alike });
        // Nobody takes it any more if the transfer has ended, which the next entry finds.
        let _ = self.requests.send(Packet { r#type: PacketType::Req as i32, id, ..Packet::default() });
        Ok(())
    }

    /// Whether a file that is there has all that a sender says of one.
    fn is_alike(&mut self, stat: &FileStat, there: &Meta) -> bool {
        // A further name of a file would be a link in the walk, if it still were one.
        let own = there.nlink <= 1 || {
            let file = (there.device, there.inode);
            *self.linked.entry(file).or_insert_with(|| stat.path.clone()) == stat.path
        };
        let alike = !self.options.merge
            && there.is_file()
            && there.size == stat.size
            && self.same_attributes(stat, there);
        self.rest.parted += u64::from(alike && !own);
        alike && own
    }

    fn same_attributes(&self, stat: &FileStat, there: &Meta) -> bool {
        let owned = there.owner == stat.owner || !self.options.sets_owner();
        there.mtime == stat.mtime && owned && (there.is_symlink() || there.mode == stat.mode)
    }

    /// What has neither bytes nor entries.
    fn special(&mut self, stat: &FileStat, existing: Option<&Meta>) -> Result<(), TransferError> {
        let path = stat.as_path();
        if let Some(there) = existing {
            let same = match (&stat.kind, there.kind) {
                (FileKind::Symlink { target }, Kind::Symlink) => {
                    self.root.read_link(path)?.as_os_str().as_bytes() == target.as_slice()
                }
                (FileKind::Fifo, Kind::Fifo) => true,
                (FileKind::CharDevice { major, minor }, Kind::CharDevice { major: a, minor: b })
                | (FileKind::BlockDevice { major, minor }, Kind::BlockDevice { major: a, minor: b }) => {
                    (*major, *minor) == (a, b)
                }
                _ => false,
            };
            if same && self.same_attributes(stat, there) {
                return Ok(());
            }
            if there.is_dir() {
                self.root.remove_all(path)?;
            }
        }
        self.touch();
        let name = if existing.is_some() { temporary(path) } else { path.to_path_buf() };
        match &stat.kind {
            FileKind::Symlink { target } => self.root.symlink(OsStr::from_bytes(target), &name)?,
            FileKind::CharDevice { major, minor } => {
                self.root.mknod(&name, Kind::CharDevice { major: *major, minor: *minor }, stat.mode)?;
            }
            FileKind::BlockDevice { major, minor } => {
                self.root.mknod(&name, Kind::BlockDevice { major: *major, minor: *minor }, stat.mode)?;
            }
            _ => self.root.mknod(&name, Kind::Fifo, stat.mode)?,
        }
        let change = MetaChange {
            owner: self.options.sets_owner().then_some(stat.owner),
            mode: Some(stat.mode),
            xattrs: Some(&stat.xattrs),
            mtime: Some(stat.mtime),
        };
        self.root.set_meta(&name, &change, Last::Keep)?;
        if name != path {
            self.root.rename(&name, path)?;
        }
        Ok(())
    }

    /// The walk has ended. What is left comes when the bytes are there.
    pub(super) fn end(mut self) -> Result<Rest, TransferError> {
        while !self.levels.is_empty() {
            self.pop()?;
        }
        if let Some(metadata) = self.metadata {
            let file = metadata.file.into_inner().map_err(io::IntoInnerError::into_error);
            let file = file.map_err(TransferError::file("write", METADATA))?;
            self.rest.metadata = Some((metadata.path, file));
            self.rest.changed += 1;
        }
        Ok(self.rest)
    }
}

impl Rest {
    /// Makes what needs the files: links, and the times of directories. Gives the links that were not there.
    pub(super) fn finish(self, target: &Path) -> Result<u64, TransferError> {
        let root = Root::open(target)?;
        let mut made = 0;
        for (path, to) in &self.links {
            made += u64::from(link(&root, path, to)?);
        }
        // A new name of a file from a lower layer of an overlay makes another file of it: the names
        // that it had already are left with the one below.
        if made > 0 {
            for (path, to) in &self.links {
                link(&root, path, to)?;
            }
        }
        if let Some((path, file)) = self.metadata {
            drop(file);
            root.rename(path, METADATA)?;
        }
        // What is in a directory comes before it, since its mode may shut us out.
        for (path, finish) in &self.directories {
            let change = MetaChange { mode: finish.mode, mtime: Some(finish.mtime), ..MetaChange::default() };
            root.set_meta(Path::new(OsStr::from_bytes(path)), &change, Last::Keep)?;
        }
        Ok(made)
    }
}

/// Makes `path` a name of the file at `to`. False if it was one.
fn link(root: &Root, path: &[u8], to: &[u8]) -> Result<bool, TransferError> {
    let (path, to) = (Path::new(OsStr::from_bytes(path)), Path::new(OsStr::from_bytes(to)));
    let file = root.stat(to, Last::Keep)?;
    let there = root.stat(path, Last::Keep)?;
    match (file, there) {
        (Some(file), Some(there)) if (file.device, file.inode) == (there.device, there.inode) => {
            return Ok(false);
        }
        (_, None) => root.hard_link(to, path)?,
        (_, Some(there)) => {
            if there.is_dir() {
                root.remove_all(path)?;
            }
            let name = temporary(path);
            root.hard_link(to, &name)?;
            root.rename(&name, path)?;
        }
    }
    Ok(true)
}

fn listing(
    root: &Root,
    path: &[u8],
) -> Result<std::iter::Peekable<std::vec::IntoIter<OsString>>, TransferError> {
    Ok(root.read_dir(Path::new(OsStr::from_bytes(path)))?.into_iter().peekable())
}

/// True if directory `dir` is above the path `below`.
fn is_above(dir: &[u8], below: &[u8]) -> bool {
    below.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
