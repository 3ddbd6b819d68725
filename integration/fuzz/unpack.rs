//! Layers that are unpacked one over the other, each alone and all into one tree.
//!
//! # Statements
//!
//! - Nothing outside of the root changes, and no file stays open.
//! - The digest is that of the stream. The index says what is in the directory, and where in the stream; it is decoded as
//!   it was encoded.
//! - A layer that was unpacked alone and adopted is the layer as it is unpacked over those below.
//! - An overlay of layers that could be unpacked alone is the tree that all were unpacked into. It is looked at for some
//!   inputs. (Layers that name what those below have may differ: a whiteout of a file that a hard link brought up, and a
//!   path through a link below that leads nowhere.)
//! - That tree, written as one layer and unpacked, is itself, and is written so again.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;
use thunk::archive::EntryKind;
use thunk::archive::Limits;
use thunk::fs::FileTime;
use thunk::fs::Kind;
use thunk::fs::Root;
use thunk::oci::DiffId;
use thunk::oci::Digest;
use thunk::snapshot::Applied;
use thunk::snapshot::ApplyError;
use thunk::snapshot::ApplyOptions;
use thunk::snapshot::Cover;
use thunk::snapshot::DiffError;
use thunk::snapshot::IndexContent;
use thunk::snapshot::IndexedFile;
use thunk::snapshot::LayerIndex;
use thunk::snapshot::WhiteoutStyle;
use thunk::snapshot::WriteLayer;
use thunk::snapshot::adopt;
use thunk::snapshot::apply;
use thunk::snapshot::diff_trees;
use thunk::snapshot::write_layer;

use crate::Target;
use crate::jail;
use crate::members;
use crate::samples;
use crate::tree;

pub(crate) const TARGET: Target = Target {
    name: "unpack",
    run: |data| {
        let layers = members::archives(data);
        jail::imprison(move || run(&layers));
    },
    mutate: members::mutate,
    seeds: || [samples::layers(), samples::archives()].concat(),
};

/// Layers of a stack at most.
const MOST: usize = 3;

const LIMITS: Limits = Limits {
    entries: 100,
    path_bytes: 400,
    name_bytes: 255,
    depth: 8,
    header_bytes: 64 << 10,
    extents: 100,
    expanded_bytes: 512 << 10,
};

/// A directory that something is unpacked into.
struct Place {
    path: PathBuf,
    root: Root,
}

impl Place {
    fn new(name: &str) -> Place {
        let (path, root) = jail::tree(name);
        Place { path, root }
    }

    fn apply(&self, style: WhiteoutStyle, lower: Option<&Root>, layer: &[u8]) -> Result<Applied, ApplyError> {
        let options = ApplyOptions { style, lower, limits: LIMITS };
        jail::confined(&self.path, || apply(&self.root, &options, layer))
    }
}

fn run(layers: &[Vec<u8>]) {
    jail::clear();
    let plain = Place::new("plain");
    let mut stack = vec![Place::new("bottom")];
    let mut all_alone = true;
    for (at, layer) in layers.iter().take(MOST).enumerate() {
        let alone = Place::new(&format!("alone{at}"));
        let own = Place::new(&format!("own{at}"));
        let below = (at > 0).then_some(&plain.root);
        let unpacked = alone.apply(WhiteoutStyle::Overlay, None, layer);
        if let Ok(applied) = &unpacked {
            indexed(&alone.root, applied, layer);
        }
        let over = own.apply(WhiteoutStyle::Overlay, below, layer);
        all_alone &= match (below, &unpacked, &over) {
            (Some(below), Ok(unpacked), Ok(_)) => adopted(&alone, below, unpacked, &own.root),
            _ => unpacked.is_ok(),
        };
        let flat = plain.apply(WhiteoutStyle::Plain, None, layer);
        let (Ok(over), Ok(flat)) = (over, flat) else { return };
        let digest = DiffId(Digest::sha256(layer));
        assert_eq!((over.diff_id, flat.diff_id, over.size), (digest, digest, layer.len() as u64));
        stack.push(own);
    }
    packed(&plain.root);
    // The kernel takes more time to unmount than all the rest does. Which input is looked at, its digest says.
    if all_alone && Digest::sha256(layers.concat()).raw()[0] < 16 {
        overlaid(&stack, &plain.root);
    }
}

/// The encoded index of a layer, if it can be unpacked.
pub(crate) fn index_of(layer: &[u8]) -> Option<Vec<u8>> {
    jail::clear();
    let place = Place::new("plain");
    Some(place.apply(WhiteoutStyle::Overlay, None, layer).ok()?.index.encode())
}

/// Adopts a layer that was unpacked alone. False if it has to be unpacked again.
fn adopted(alone: &Place, below: &Root, unpacked: &Applied, over: &Root) -> bool {
    let adopts =
        jail::confined(&alone.path, || adopt(&alone.root, below, &unpacked.implied, &unpacked.index));
    let adopts = adopts.expect("both trees are there");
    if adopts {
        assert_eq!(tree::nodes(&alone.root), tree::nodes(over));
    }
    adopts
}

/// The index of a layer that was unpacked without those below.
fn indexed(root: &Root, applied: &Applied, layer: &[u8]) {
    let index = &applied.index;
    assert_eq!(LayerIndex::decode(&index.encode()).as_ref(), Ok(index));
    let all = tree::listing(root);
    for entry in index.entries() {
        let path = as_path(&entry.path);
        let Some((node, meta)) = all.get(path) else { panic!("{path:?} is not there") };
        let opaque = node.xattrs.contains_key(OsStr::new("trusted.overlay.opaque"));
        match &entry.content {
            IndexContent::Whiteout => assert_eq!(node.kind, Kind::WHITEOUT),
            IndexContent::Opaque => assert!(meta.is_dir() && opaque, "{path:?}"),
            IndexContent::Present(file) => {
                assert_eq!(file.opaque, opaque, "{path:?}");
                present(path, file, node, layer);
                if let EntryKind::Hardlink { target } = &file.kind {
                    let (_, target) = all.get(as_path(target)).expect("what it links to is there");
                    assert_eq!(target.inode, meta.inode, "{path:?}");
                }
            }
        }
    }
    for (path, (_, meta)) in &all {
        match index.cover(path.as_os_str().as_bytes()) {
            Cover::Present(_) => {}
            Cover::Implied { .. } => assert!(meta.is_dir()),
            Cover::Hidden => assert!(meta.is_whiteout(), "{path:?} is hidden"),
            Cover::No => panic!("{path:?} is not in the index"),
        }
    }
}

fn present(path: &Path, file: &IndexedFile, node: &tree::Node, layer: &[u8]) {
    let kind = match &file.kind {
        EntryKind::Hardlink { .. } => return,
        EntryKind::File => Kind::File,
        EntryKind::Dir => Kind::Directory,
        EntryKind::Symlink { target } => {
            assert_eq!(*target, node.content);
            Kind::Symlink
        }
        EntryKind::CharDevice { major, minor } => Kind::CharDevice { major: *major, minor: *minor },
        EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major: *major, minor: *minor },
        EntryKind::Fifo => Kind::Fifo,
    };
    assert_eq!(node.kind, kind, "{path:?}");
    assert_eq!((node.owner.uid.into(), node.owner.gid.into()), (file.uid, file.gid), "{path:?}");
    if kind != Kind::Symlink {
        assert_eq!(node.mode, file.mode, "{path:?}");
    }
    // No file system holds more.
    if let Some(mtime) = node.mtime
        && file.mtime.0.unsigned_abs() < 1 << 31
    {
        assert_eq!(mtime, FileTime::from(file.mtime), "{path:?}");
    }
    if kind == Kind::File {
        assert_eq!(node.content.len() as u64, file.size, "{path:?}");
        if file.contiguous {
            assert_eq!(node.content, layer[file.offset as usize..][..file.size as usize], "{path:?}");
        }
    }
    for (name, value) in &node.xattrs {
        if name != "trusted.overlay.opaque" {
            assert_eq!(file.xattrs.get(name.as_bytes()), Some(value), "{path:?}");
        }
    }
}

/// Layers in their own directories, the lowest first, and what they are together.
fn overlaid(stack: &[Place], plain: &Root) {
    let merged = Path::new("/merged");
    if !merged.exists() {
        std::fs::create_dir(merged).expect("a directory is made");
    }
    let lower: Vec<_> = stack.iter().rev().map(|place| place.path.as_os_str().as_bytes()).collect();
    let options = [b"lowerdir=".as_slice(), &lower.join(&b':')].concat();
    let options = CString::new(options).expect("paths have no NUL");
    rustix::mount::mount("overlay", merged, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))
        .expect("it is mounted");
    let seen = tree::nodes(&Root::open(merged).expect("it is there"));
    rustix::mount::unmount(merged, UnmountFlags::empty()).expect("it is unmounted");
    assert_eq!(seen, tree::nodes(plain));
}

/// A tree as a layer, and that as a tree.
fn packed(tree: &Root) {
    // A directory that is called as a whiteout is, and that a layer only implies, can't be said in a layer.
    let is_whiteouts = |name: &OsStr| name.as_bytes().starts_with(b".wh.");
    if tree::nodes(tree).keys().any(|path| path.iter().any(is_whiteouts)) {
        return;
    }
    let Some(layer) = pack(tree) else { return };
    let again = Place::new("again");
    let unpacked = again.apply(WhiteoutStyle::Overlay, None, &layer);
    let unpacked = unpacked.expect("what was written can be unpacked");
    assert!(unpacked.implied.is_empty());
    indexed(&again.root, &unpacked, &layer);
    assert_eq!(packable(&again.root), packable(tree));
    assert!(pack(&again.root).is_some_and(|twice| twice == layer));
}

/// What a layer says of a tree: whole seconds, and nothing that belongs to the security modules of a machine.
fn packable(tree: &Root) -> BTreeMap<PathBuf, tree::Node> {
    let mut nodes = tree::nodes(tree);
    for node in nodes.values_mut() {
        node.mtime.iter_mut().for_each(|time| time.nanos = 0);
        let is_files =
            |name: &OsStr| name == "security.capability" || !name.as_bytes().starts_with(b"security.");
        node.xattrs.retain(|name, _| is_files(name));
    }
    nodes
}

fn pack(tree: &Root) -> Option<Vec<u8>> {
    let mut layer = Vec::new();
    let changes = diff_trees(None, tree).expect("the tree is there");
    match write_layer(&changes, &WriteLayer::default(), &mut layer) {
        Ok(()) => Some(layer),
        // Something that no archive can hold.
        Err(DiffError::Archive(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
