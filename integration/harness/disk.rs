//! What a directory tree takes on disk, now and at most.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::blob::BlobSource;
use super::digest::Hasher;

const STEP: Duration = Duration::from_millis(3);

/// Allocated bytes of all files below `directory`, each inode once. What vanishes meanwhile counts
/// as gone.
pub fn disk_usage(directory: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut total = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            }
            if seen.insert((metadata.dev(), metadata.ino())) {
                total += metadata.blocks() * 512;
            }
        }
    }
    total
}

/// Files below `directory` with their sizes in bytes, by relative path, in order.
pub fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(inner) = open.pop() {
        for entry in std::fs::read_dir(&inner).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(directory) {
                found.push((path.to_owned(), metadata.len()));
            }
        }
    }
    found.sort();
    found
}

/// Hashes every file below `directory` whose path ends in `sha256/<64 hex digits>`: what looks like a
/// blob must be one. Returns their digests, in order; panics at one that isn't what its name says.
#[track_caller]
pub fn verify_blobs(directory: &Path) -> Vec<String> {
    let mut digests = Vec::new();
    for (path, _) in files(directory) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parent = path.parent().and_then(|parent| parent.file_name());
        let hex = name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit());
        if hex && parent == Some("sha256".as_ref()) {
            let file = File::open(directory.join(&path)).expect("open a blob");
            let len = file.metadata().expect("a blob's size").len();
            let source = BlobSource::File(Arc::new(file), len);
            let mut hasher = Hasher::for_digest(&format!("sha256:{name}")).expect("a digest");
            source.read(0, len).for_each(|chunk| hasher.update(&chunk));
            let digest = hasher.finish();
            assert_eq!(digest, format!("sha256:{name}"), "{} is not what its name says", path.display());
            digests.push(digest);
        }
    }
    digests
}

/// Samples the usage of a directory every few milliseconds until it is asked for the peak.
pub struct DiskWatch {
    directory: PathBuf,
    peak: Arc<AtomicU64>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DiskWatch {
    pub fn start(directory: PathBuf) -> Self {
        let peak = Arc::new(AtomicU64::new(disk_usage(&directory)));
        let (stop, stopped) = mpsc::channel();
        let (seen, watched) = (peak.clone(), directory.clone());
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(STEP) == Err(mpsc::RecvTimeoutError::Timeout) {
                seen.fetch_max(disk_usage(&watched), Ordering::Relaxed);
            }
        });
        Self { directory, peak, stop: Some(stop), thread: Some(thread) }
    }

    /// The most bytes that any sample saw so far.
    pub fn seen(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The most bytes that any sample saw.
    pub fn peak(mut self) -> u64 {
        self.end();
        self.peak.load(Ordering::Relaxed).max(disk_usage(&self.directory))
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watch does not panic");
        }
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.end();
    }
}
