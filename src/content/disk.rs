//! The store's directory: paths, and the steps that make a file appear or vanish for good.
//!
//! ```text
//! <root>/content/
//!   oci-layout, index.json         so that any OCI tool can read the store
//!   blobs/<algorithm>/<hex>        whole, verified, 0444
//!   ingest/<algorithm>-<hex>       the first bytes of a blob; its length is how far a fetch came
//!   ingest/new-<n>                 a blob that is being written here, renamed when whole
//!   ingest/trash-<n>               a partial blob on its way out
//! ```
//!
//! Every name below the root is made from a parsed digest or a number, so that nothing from outside
//! can name a path.
//!
//! # Crash consistency
//!
//! A blob's file is synced, renamed and its directory synced, in this order. So under a final name
//! there is a whole file or none. `ingest/new-*` and `ingest/trash-*` are deleted at start.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::ContentError;
use super::Origin;
use super::given;
use super::given::Given;
use super::growing::Growth;
use super::stats::Counters;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::fs::PIECE;
use crate::fs::write_pieces_at;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::DigestHasher;

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const EMPTY_INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// Bytes read at a time where a file is read from end to end.
pub(super) const READ_BYTES: usize = 256 << 10;

/// A file of the store, as a listing finds it.
#[derive(Debug)]
pub(super) struct Found {
    pub digest: Digest,
    pub size: u64,
    pub modified: SystemTime,
}

#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    next: AtomicU64,
    /// The directories above those of blobs may be new and not synced, which the first blob of a process
    /// does: a start is not to wait for it.
    unsynced: AtomicBool,
    counters: Arc<Counters>,
    /// The size that a partial blob can't exceed: a full disk, for tests.
    #[cfg(test)]
    full: AtomicU64,
}

impl Disk {
    /// Makes what is missing below `root` and removes what a crash left half written.
    pub(super) fn open(root: &Path, counters: Arc<Counters>) -> Result<Disk, ContentError> {
        let disk = Disk {
            root: root.to_path_buf(),
            next: AtomicU64::new(0),
            unsynced: AtomicBool::new(true),
            counters,
            #[cfg(test)]
            full: AtomicU64::new(u64::MAX),
        };
        let ingest = disk.ingest();
        if !root.join("oci-layout").exists() {
            for path in ALGORITHMS.map(|algorithm| disk.blobs(algorithm)).iter().chain([&ingest]) {
                fs::create_dir_all(path).map_err(ContentError::io("make", path))?;
            }
            for (name, text) in [("index.json", EMPTY_INDEX), ("oci-layout", LAYOUT)] {
                let path = root.join(name);
                fs::write(&path, text).map_err(ContentError::io("write", &path))?;
            }
        }
        for entry in fs::read_dir(&ingest).map_err(ContentError::io("list", &ingest))? {
            let entry = entry.map_err(ContentError::io("list", &ingest))?;
            if parse_partial(&entry.file_name().to_string_lossy()).is_none() {
                remove(&entry.path())?;
            }
        }
        Ok(disk)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest().join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.name())
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn temporary(&self, kind: &str) -> PathBuf {
        self.ingest().join(format!("{kind}-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Size of a blob's file, if there is one.
    pub(super) fn size_of(&self, digest: &Digest) -> Option<u64> {
        size(&self.blob(digest))
    }

    /// The registry that gave the bytes of a blob that is here, by its file's note.
    pub(super) fn given_blob(&self, digest: &Digest) -> Option<Origin> {
        given::noted(&self.blob(digest))
    }

    /// Who gave the bytes of a partial blob.
    pub(super) fn given_partial(&self, digest: &Digest) -> Given {
        match (self.partial_size(digest), given::noted(&self.partial(digest))) {
            (0, _) => Given::Nothing,
            (_, Some(origin)) => Given::By(origin),
            (_, None) => Given::ByMany,
        }
    }

    /// Bytes that a partial blob has.
    pub(super) fn partial_size(&self, digest: &Digest) -> u64 {
        size(&self.partial(digest)).unwrap_or(0)
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.blob(digest);
        File::open(&path).map_err(ContentError::io("open", &path))
    }

    #[cfg(test)]
    pub(super) fn fill_after(&self, size: u64) {
        self.full.store(size, Ordering::SeqCst);
    }

    /// Notes who gave the bytes of a partial blob, before they are appended.
    pub(super) fn note(&self, file: &File, digest: &Digest, given: &Given) -> Result<(), ContentError> {
        given.note_on(file).map_err(ContentError::io("note the origin of", &self.partial(digest)))
    }

    /// Appends to a partial blob that has `size` bytes.
    pub(super) fn append(&self, file: &File, size: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if size + bytes.len() as u64 > self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        write_pieces_at(file, bytes, size)
    }

    /// Opens a partial blob to append to it, made if there is none.
    pub(super) fn open_partial(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.partial(digest);
        let open = || OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = open().or_else(|e| match e.kind() {
            // Sealed already, and a crash came before the rename.
            io::ErrorKind::PermissionDenied => {
                fs::set_permissions(&path, Permissions::from_mode(0o644)).and_then(|()| open())
            }
            _ => Err(e),
        });
        let file = file.map_err(ContentError::io("open", &path))?;
        failpoint::hit(Failpoint::IngestCreated)?;
        Ok(file)
    }

    /// Makes a whole, verified partial blob the blob.
    pub(super) fn commit_partial(&self, file: &File, digest: &Digest) -> Result<(), ContentError> {
        let path = self.partial(digest);
        self.seal(file, &path)?;
        self.rename(&path, digest)?;
        self.sync_blobs(digest.algorithm())?;
        failpoint::hit(Failpoint::BlobDirectorySynced)?;
        Ok(())
    }

    /// Writes whole blobs: a sync for each, and one for each directory.
    pub(super) fn write_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), ContentError> {
        for (digest, bytes) in blobs {
            let path = self.temporary("new");
            let written = self.write_new(&path, bytes).and_then(|()| self.rename(&path, digest));
            if let Err(error) = written {
                // What can't be removed now is at the next start.
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        }
        self.sync_directories(blobs.iter().map(|(digest, _)| digest))?;
        failpoint::hit(Failpoint::BlobDirectorySynced)?;
        Ok(())
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), ContentError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(ContentError::io("make", path))?;
        write_pieces_at(&file, bytes, 0).map_err(ContentError::io("write", path))?;
        self.seal(&file, path)
    }

    /// A blob that is written piece by piece, and gets its name when it is whole. Each piece is told to `growth`.
    pub(super) fn create_new(&self, growth: Growth) -> Result<NewFile<'_>, ContentError> {
        let path = self.temporary("new");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = Arc::new(file.map_err(ContentError::io("make", &path))?);
        growth.begin(Arc::clone(&file));
        Ok(NewFile {
            disk: self,
            path,
            file,
            growth: Some(growth),
            hasher: DigestHasher::new(Algorithm::Sha256),
            size: 0,
        })
    }

    fn seal(&self, file: &File, path: &Path) -> Result<(), ContentError> {
        file.set_permissions(Permissions::from_mode(0o444)).map_err(ContentError::io("protect", path))?;
        self.counters.fsync();
        file.sync_all().map_err(ContentError::io("sync", path))?;
        failpoint::hit(Failpoint::IngestSynced)?;
        Ok(())
    }

    fn rename(&self, from: &Path, digest: &Digest) -> Result<(), ContentError> {
        let to = self.blob(digest);
        fs::rename(from, &to).map_err(ContentError::io("make", &to))?;
        failpoint::hit(Failpoint::BlobRenamed)?;
        Ok(())
    }

    /// Syncs a directory of blobs, and once those above it.
    fn sync_blobs(&self, algorithm: Algorithm) -> Result<(), ContentError> {
        let path = self.blobs(algorithm);
        self.sync_directory(&path)?;
        if self.unsynced.load(Ordering::Relaxed) {
            for above in path.ancestors().skip(1).take(3).filter(|p| !p.as_os_str().is_empty()) {
                self.sync_directory(above)?;
            }
            self.unsynced.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> Result<(), ContentError> {
        self.counters.fsync();
        File::open(path).and_then(|dir| dir.sync_all()).map_err(ContentError::io("sync", path))
    }

    /// Syncs the directories of these blobs, each once.
    pub(super) fn sync_directories<'a>(
        &self,
        digests: impl Iterator<Item = &'a Digest> + Clone,
    ) -> Result<(), ContentError> {
        for algorithm in ALGORITHMS {
            if digests.clone().any(|d| d.algorithm() == algorithm) {
                self.sync_blobs(algorithm)?;
            }
        }
        Ok(())
    }

    /// Deletes a blob's file; none is no error. Durable after [`Disk::sync_directories`].
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), ContentError> {
        remove(&self.blob(digest))
    }

    pub(super) fn remove_partial(&self, digest: &Digest) -> Result<(), ContentError> {
        remove(&self.partial(digest))
    }

    /// Takes a partial blob out of the way at once; its bytes are freed when the returned path is
    /// removed, which takes as long as it is large.
    pub(super) fn trash_partial(&self, digest: &Digest) -> Result<Option<PathBuf>, ContentError> {
        let (path, trash) = (self.partial(digest), self.temporary("trash"));
        match fs::rename(&path, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ContentError::io("remove", &path)(e)),
        }
    }

    /// Every blob that has a file.
    pub(super) fn list_blobs(&self) -> Result<Vec<Found>, ContentError> {
        let mut all = Vec::new();
        for algorithm in ALGORITHMS {
            let named = |name: &str| format!("{}:{name}", algorithm.name()).parse().ok();
            list(&self.blobs(algorithm), named, &mut all)?;
        }
        Ok(all)
    }

    /// Every partial blob.
    pub(super) fn list_partials(&self) -> Result<Vec<Found>, ContentError> {
        let mut all = Vec::new();
        list(&self.ingest(), parse_partial, &mut all)?;
        Ok(all)
    }

    /// Hashes a blob's file. True if it is what its name says.
    pub(super) fn verify(&self, digest: &Digest) -> Result<bool, ContentError> {
        let path = self.blob(digest);
        let mut file = File::open(&path).map_err(ContentError::io("open", &path))?;
        let mut hasher = digest.hasher();
        hash(&mut file, &mut hasher).map_err(ContentError::io("read", &path))?;
        Ok(hasher.finish() == *digest)
    }
}

/// A blob on its way to the disk. Removed when it is dropped before it was committed.
pub(super) struct NewFile<'d> {
    disk: &'d Disk,
    path: PathBuf,
    file: Arc<File>,
    /// None once committed.
    growth: Option<Growth>,
    hasher: DigestHasher,
    size: u64,
}

impl NewFile<'_> {
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Makes it durable under its digest. Whoever follows it is told by the caller.
    pub(super) fn commit(mut self) -> Result<Growth, ContentError> {
        let digest = self.digest();
        self.disk.seal(&self.file, &self.path)?;
        self.disk.rename(&self.path, &digest)?;
        let growth = self.growth.take().expect("it is committed once");
        self.disk.sync_blobs(digest.algorithm())?;
        failpoint::hit(Failpoint::BlobDirectorySynced)?;
        Ok(growth)
    }
}

impl io::Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = (&*self.file).write(&bytes[..bytes.len().min(PIECE)])?;
        self.hasher.update(&bytes[..n]);
        let before = self.size;
        self.size += n as u64;
        if let Some(growth) = &self.growth {
            growth.advance(self.size);
        }
        for _ in before >> 20..self.size >> 20 {
            failpoint::hit(Failpoint::MebibyteProduced).map_err(io::Error::other)?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if self.growth.is_some() {
            // What can't be removed now is at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Hashes what is left of `file` and returns how much that was.
pub(super) fn hash(file: &mut impl Read, hasher: &mut DigestHasher) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn size(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|m| m.len())
}

/// Removes a file; none is no error.
pub(super) fn remove(path: &Path) -> Result<(), ContentError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ContentError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn parse_partial(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn list(
    dir: &Path,
    named: impl Fn(&str) -> Option<Digest>,
    all: &mut Vec<Found>,
) -> Result<(), ContentError> {
    for entry in fs::read_dir(dir).map_err(ContentError::io("list", dir))? {
        let entry = entry.map_err(ContentError::io("list", dir))?;
        // Other names are somebody else's: left alone.
        let Some(digest) = named(&entry.file_name().to_string_lossy()) else { continue };
        // Gone since the listing: a commit or a collection.
        let Ok(metadata) = entry.metadata() else { continue };
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        all.push(Found { digest, size: metadata.len(), modified });
    }
    Ok(())
}
