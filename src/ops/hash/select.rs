//! Finds what a selector names in mounted files, and hashes it. Blocking.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use sha2::Digest as _;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use super::HashError;
use super::Selector;
use super::header::contents;
use super::header::header;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::Root;
use crate::oci::Digest;
use crate::pattern;
use crate::pattern::Glob;
use crate::pattern::Matched;
use crate::pattern::Patterns;
use crate::pattern::split_wildcards;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// Threads that read files.
const MAX_THREADS: usize = 8;

/// Below so many bytes more threads are not worth their start.
const PARALLEL_BYTES: u64 = 1 << 20;

/// The path from the root, clean.
pub(super) fn absolute(path: &str) -> String {
    pattern::clean(&format!("/{path}"))
}

/// The digest of what `selector` names.
pub(super) fn checksum(
    root: &Root,
    selector: &Selector,
    cancel: &CancellationToken,
) -> Result<Digest, HashError> {
    let path = absolute(&selector.path);
    if selector.chooses() {
        chosen(root, &path, selector, cancel)
    } else {
        let last = if selector.follow { Last::Follow } else { Last::Keep };
        plain(root, &path, last, cancel)
    }
}

/// A file or link by itself, a directory with all that is in it.
fn plain(root: &Root, path: &str, last: Last, cancel: &CancellationToken) -> Result<Digest, HashError> {
    let Some((resolved, meta)) = find(root, path, last)? else {
        return Err(HashError::NotFound { path: path.to_owned() });
    };
    let mut nodes = Nodes::default();
    if meta.is_dir() {
        for entry in root.walk(&resolved)? {
            let entry = entry?;
            check(cancel)?;
            nodes.add(&resolved.join(&entry.path), &entry.meta, &Source::Walked(&entry))?;
        }
    } else {
        nodes.add(&resolved, &meta, &Source::Named(root, &resolved))?;
    }
    let digests = nodes.hash(root, cancel)?;
    Ok(fold(&resolved, &nodes.nodes, &digests))
}

/// The path without links, and what is there; `None` if there is nothing.
fn find(root: &Root, path: &str, last: Last) -> Result<Option<(PathBuf, Meta)>, HashError> {
    // A file on the way is nothing to go on from.
    let absent = |error: FsError| match error {
        FsError::WrongKind { .. } | FsError::NotFound { .. } => Ok(None),
        error => Err(error.into()),
    };
    let resolved = match root.resolve(path, last) {
        Ok(resolved) => resolved,
        Err(error) => return absent(error),
    };
    match root.stat(&resolved, Last::Keep) {
        Ok(meta) => Ok(meta.map(|meta| (resolved, meta))),
        Err(error) => absent(error),
    }
}

fn check(cancel: &CancellationToken) -> Result<(), HashError> {
    if cancel.is_cancelled() { Err(HashError::Cancelled) } else { Ok(()) }
}

/// Files to be hashed, each directory before what is in it.
#[derive(Default)]
struct Nodes {
    nodes: Vec<Node>,
    bytes: u64,
}

#[derive(Clone)]
struct Node {
    /// From the root, without links.
    path: PathBuf,
    is_dir: bool,
    /// Of a file whose bytes are still to come, and of everything else whole.
    hash: Sha256,
    /// Still to come.
    bytes: u64,
}

/// Where what is hashed is read from.
enum Source<'a> {
    Named(&'a Root, &'a Path),
    Walked(&'a crate::fs::WalkEntry),
}

impl Nodes {
    fn add(&mut self, path: &Path, meta: &Meta, source: &Source<'_>) -> Result<(), HashError> {
        let (xattrs, target) = match source {
            Source::Named(root, path) => {
                (root.xattrs(path, Last::Keep)?, meta.is_symlink().then(|| root.read_link(path)).transpose()?)
            }
            Source::Walked(entry) => {
                (entry.xattrs()?, meta.is_symlink().then(|| entry.read_link()).transpose()?)
            }
        };
        let bytes = if meta.is_file() { meta.size } else { 0 };
        self.bytes = self.bytes.saturating_add(bytes);
        self.nodes.push(Node {
            path: path.to_path_buf(),
            is_dir: meta.is_dir(),
            hash: header(meta, target.as_deref(), &xattrs),
            bytes,
        });
        Ok(())
    }

    /// The digest of each, directories without what is in them. Files are read by several threads, in order.
    fn hash(&self, root: &Root, cancel: &CancellationToken) -> Result<Vec<Digest>, HashError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads =
            if self.bytes < PARALLEL_BYTES { 1 } else { cores.min(MAX_THREADS).min(self.nodes.len()) };
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Digest)>, HashError> {
            let mut done = Vec::new();
            let mut buffer = Vec::new();
            while let Some((n, node)) = {
                let n = next.fetch_add(1, Ordering::Relaxed);
                self.nodes.get(n).map(|node| (n, node))
            } {
                check(cancel)?;
                let mut hash = node.hash.clone();
                if node.bytes > 0 {
                    buffer.resize(BUFFER, 0);
                    let file = root.open_file(&node.path)?;
                    let read = contents(hash, file, &mut buffer);
                    hash = read.map_err(|source| HashError::Read {
                        path: node.path.clone(),
                        source: Arc::new(source),
                    })?;
                }
                done.push((n, finish(hash)));
            }
            Ok(done)
        };
        let done = if threads <= 1 {
            work()?
        } else {
            let parts = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                running
                    .into_iter()
                    // A panic is one here as well.
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect::<Result<Vec<_>, _>>()
            });
            parts?.into_iter().flatten().collect()
        };
        let mut digests = vec![Digest::sha256(""); self.nodes.len()];
        for (n, digest) in done {
            digests[n] = digest;
        }
        Ok(digests)
    }
}

fn finish(hash: Sha256) -> Digest {
    Digest::from_sha256(hash.finalize().into())
}

/// The digest of the first node, with those of the nodes below it.
fn fold(start: &Path, nodes: &[Node], digests: &[Digest]) -> Digest {
    // Directories that are not whole yet, each with its name.
    let mut open: Vec<(Vec<u8>, Sha256)> = Vec::new();
    let mut result = Digest::sha256("");
    let mut close = |open: &mut Vec<(Vec<u8>, Sha256)>| {
        if let Some((name, hash)) = open.pop() {
            let digest = finish(hash);
            match open.last_mut() {
                Some((_, parent)) => entry(parent, &name, &digest),
                None => result = digest,
            }
        }
    };
    for (node, digest) in nodes.iter().zip(digests) {
        let relative = node.path.strip_prefix(start).unwrap_or(&node.path);
        let depth = relative.components().count();
        while open.len() > depth {
            close(&mut open);
        }
        let name = relative.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        if node.is_dir {
            let mut hash = Sha256::new();
            entry(&mut hash, b"", digest);
            open.push((name, hash));
        } else {
            match open.last_mut() {
                Some((_, parent)) => entry(parent, &name, digest),
                None => return *digest,
            }
        }
    }
    while !open.is_empty() {
        close(&mut open);
    }
    result
}

fn entry(parent: &mut Sha256, name: &[u8], digest: &Digest) {
    parent.update([0]);
    parent.update(name);
    parent.update(digest.to_string());
}

/// Something that patterns chose.
struct Chosen {
    /// As the selector would name it, links before its first wildcard unresolved.
    path: Vec<u8>,
    /// Index of its node.
    node: usize,
    /// A link that counts with what it leads to.
    follow: bool,
}

/// A directory that the walk is in.
struct Frame {
    path: Vec<u8>,
    node: usize,
    chosen: bool,
    included: Matched,
    excluded: Matched,
}

/// What patterns choose below a path, or what a path with wildcards names.
fn chosen(
    root: &Root,
    path: &str,
    selector: &Selector,
    cancel: &CancellationToken,
) -> Result<Digest, HashError> {
    let path = if path == "/" { "" } else { path };
    let glob = selector.has_wildcard().then(|| Glob::new(path)).transpose()?;
    let components = path.split('/').count();
    let include = (!selector.include.is_empty()).then(|| Patterns::new(&selector.include)).transpose()?;
    let exclude = Patterns::new(&selector.exclude)?;
    let (base, last) = match &glob {
        Some(_) => (split_wildcards(path).0, Last::Follow),
        None => (path.to_owned(), Last::Keep),
    };
    let base = if base == "/" { String::new() } else { base };

    let mut nodes = Nodes::default();
    let mut found: Vec<Chosen> = Vec::new();
    let mut frames: Vec<Frame> = Vec::new();
    // The last path that the wildcards matched: what is in it is chosen by the other patterns alone.
    let mut matched: Option<Vec<u8>> = None;
    let mut visit =
        |relative: &Path, meta: &Meta, resolved: &Path, source: &Source<'_>| -> Result<bool, HashError> {
            check(cancel)?;
            let mut name = base.as_bytes().to_vec();
            if !relative.as_os_str().is_empty() {
                name.push(b'/');
                name.extend_from_slice(relative.as_os_str().as_bytes());
            }
            while frames.pop_if(|frame| !is_in(&name, &frame.path)).is_some() {}
            let is_dir = meta.is_dir();
            // The root counts with what is in it and not by itself.
            if is_dir && name.is_empty() && path.is_empty() {
                return Ok(true);
            }
            let top: &[u8] = match &glob {
                Some(glob) => {
                    if !matched.as_ref().is_some_and(|matched| is_in(&name, matched)) {
                        if !glob.matches(&name) {
                            // No component of a pattern matches two of a path.
                            let deeper = name.split(|byte| *byte == b'/').count() < components;
                            return Ok(deeper);
                        }
                        matched = Some(name.clone());
                    }
                    matched.as_deref().unwrap_or_default()
                }
                None => path.as_bytes(),
            };
            let candidate = name.get(top.len() + 1..).unwrap_or_default();
            let parent = frames.last();
            let (mut wanted, mut included, mut excluded, mut out) =
                (true, Matched::default(), Matched::default(), false);
            if let Some(include) = &include {
                let parent = parent.map(|parent| parent.included.clone()).unwrap_or_default();
                (wanted, included) = include.matches_in(candidate, &parent);
            }
            if !exclude.is_empty() {
                let parent = parent.map(|parent| parent.excluded.clone()).unwrap_or_default();
                (out, excluded) = exclude.matches_in(candidate, &parent);
                wanted &= !out;
            }
            if !wanted && !is_dir {
                return Ok(false);
            }
            let follow = parent.is_none() && selector.follow && meta.is_symlink();
            let node = nodes.nodes.len();
            nodes.add(resolved, meta, source)?;
            if wanted {
                for frame in frames.iter_mut().filter(|frame| !frame.chosen) {
                    frame.chosen = true;
                    found.push(Chosen { path: frame.path.clone(), node: frame.node, follow: false });
                }
                found.push(Chosen { path: name.clone(), node, follow });
            }
            if is_dir {
                frames.push(Frame { path: name, node, chosen: wanted, included, excluded });
            }
            Ok(!out || exclude.has_exceptions())
        };
    // A base that is not there chooses nothing.
    if let Some((start, meta)) = find(root, if base.is_empty() { "/" } else { &base }, last)? {
        if meta.is_dir() {
            let mut walk = root.walk(&start)?;
            while let Some(entry) = walk.next() {
                let entry = entry?;
                if !visit(&entry.path, &entry.meta, &start.join(&entry.path), &Source::Walked(&entry))? {
                    walk.skip_dir();
                }
            }
        } else {
            visit(Path::new(""), &meta, &start, &Source::Named(root, &start))?;
        }
    }
    for required in &selector.required {
        if !found.iter().any(|chosen| chosen.path.starts_with(required.as_bytes())) {
            return Err(HashError::NotFound { path: required.clone() });
        }
    }
    digest_of_chosen(root, path, &base, &found, &nodes, cancel)
}

fn digest_of_chosen(
    root: &Root,
    path: &str,
    base: &str,
    found: &[Chosen],
    nodes: &Nodes,
    cancel: &CancellationToken,
) -> Result<Digest, HashError> {
    // Only what was chosen is read.
    let mut wanted = Nodes::default();
    let mut place = HashMap::new();
    for chosen in found {
        let node = &nodes.nodes[chosen.node];
        place.entry(chosen.node).or_insert_with(|| {
            wanted.bytes = wanted.bytes.saturating_add(node.bytes);
            wanted.nodes.push(node.clone());
            wanted.nodes.len() - 1
        });
    }
    let mut digests = wanted.hash(root, cancel)?;
    for chosen in found.iter().filter(|chosen| chosen.follow) {
        let name = String::from_utf8_lossy(&chosen.path);
        digests[place[&chosen.node]] = plain(root, &name, Last::Follow, cancel)?;
    }
    match found {
        [] => return Ok(Digest::sha256("")),
        [only] if base_name(path.as_bytes()) == base_name(&only.path) => {
            return Ok(digests[place[&only.node]]);
        }
        _ => {}
    }
    let mut hash = Sha256::new();
    for chosen in found {
        let name = chosen.path.strip_prefix(base.as_bytes()).unwrap_or(&chosen.path);
        match name {
            [] => hash.update([0]),
            name => hash.update(name.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect::<Vec<u8>>()),
        }
        hash.update(digests[place[&chosen.node]].to_string());
    }
    Ok(finish(hash))
}

/// True if `path` is below `dir`.
fn is_in(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn base_name(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => &path[at + 1..],
        None => path,
    }
}
