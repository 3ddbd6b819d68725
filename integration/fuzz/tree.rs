//! What can be seen of a tree.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use thunk::fs::FileTime;
use thunk::fs::Kind;
use thunk::fs::Meta;
use thunk::fs::Owner;
use thunk::fs::Root;

/// A file as it is seen by who can't tell inodes apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: Owner,
    /// None of a directory, since whatever is made in it changes that, and of a whiteout.
    pub(crate) mtime: Option<FileTime>,
    /// Of a file its bytes, of a link where it leads.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// All of a tree but its root, and what the file system says of each.
pub(crate) fn listing(tree: &Root) -> BTreeMap<PathBuf, (Node, Meta)> {
    let mut nodes = BTreeMap::new();
    for entry in tree.walk("").expect("it is listed") {
        let entry = entry.expect("it is listed");
        if entry.path.as_os_str().is_empty() {
            continue;
        }
        let mut content = Vec::new();
        match entry.meta.kind {
            Kind::File => {
                let read = entry.open().expect("it is opened").read_to_end(&mut content);
                read.expect("it is read");
            }
            Kind::Symlink => {
                content = entry.read_link().expect("it is read").as_os_str().as_bytes().to_vec();
            }
            _ => {}
        }
        let meta = entry.meta;
        let node = Node {
            kind: meta.kind,
            mode: meta.mode,
            owner: meta.owner,
            mtime: (!meta.is_dir() && !meta.is_whiteout()).then_some(meta.mtime),
            content,
            xattrs: entry.xattrs().expect("they are read"),
        };
        nodes.insert(entry.path.clone(), (node, meta));
    }
    nodes
}

/// The same, without what the file system says.
pub(crate) fn nodes(tree: &Root) -> BTreeMap<PathBuf, Node> {
    listing(tree).into_iter().map(|(path, (node, _))| (path, node)).collect()
}
