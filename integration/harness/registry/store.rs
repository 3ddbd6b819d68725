//! What the registry holds: blobs by digest, and repositories that link to them.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::harness::blob::BlobSource;
use crate::harness::digest::Hasher;
use crate::harness::image::Image;

/// Uploads beyond this go to a temporary file.
const SPOOL_ABOVE: usize = 1 << 20;

/// A manifest as it was put.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    pub digest: String,
    pub media_type: String,
    pub bytes: Bytes,
}

impl StoredManifest {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("manifests are checked to be JSON when put")
    }
}

#[derive(Default)]
struct Repository {
    blobs: HashSet<String>,
    manifests: BTreeMap<String, StoredManifest>,
    tags: BTreeMap<String, String>,
}

/// Invariant: a link is made only after the blob's digest was verified or computed.
#[derive(Default)]
pub(super) struct Store {
    blobs: HashMap<String, BlobSource>,
    repositories: BTreeMap<String, Repository>,
    uploads: HashMap<String, (String, Upload)>,
    next_upload: u64,
}

impl Store {
    pub fn blob(&self, repository: &str, digest: &str) -> Option<BlobSource> {
        let linked = self.repositories.get(repository)?.blobs.contains(digest);
        linked.then(|| self.blobs.get(digest).cloned())?
    }

    /// A blob that any repository links to.
    pub fn any_blob(&self, digest: &str) -> Option<BlobSource> {
        let linked = self.repositories.values().any(|repository| repository.blobs.contains(digest));
        linked.then(|| self.blobs.get(digest).cloned())?
    }

    /// `digest` must be that of `source`.
    pub fn put_blob(&mut self, repository: &str, digest: &str, source: BlobSource) {
        self.blobs.entry(digest.to_owned()).or_insert(source);
        self.repository(repository).blobs.insert(digest.to_owned());
    }

    /// Whether there was one to mount.
    pub fn mount(&mut self, repository: &str, digest: &str, from: &str) -> bool {
        let found = self.blob(from, digest).is_some();
        if found {
            self.repository(repository).blobs.insert(digest.to_owned());
        }
        found
    }

    pub fn delete_blob(&mut self, repository: &str, digest: &str) -> bool {
        self.repositories.get_mut(repository).is_some_and(|repository| repository.blobs.remove(digest))
    }

    pub fn put_manifest(&mut self, repository: &str, tag: Option<&str>, manifest: StoredManifest) {
        let repository = self.repository(repository);
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), manifest.digest.clone());
        }
        repository.manifests.insert(manifest.digest.clone(), manifest);
    }

    /// By tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<&StoredManifest> {
        let repository = self.repositories.get(repository)?;
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        repository.manifests.get(digest)
    }

    /// By digest, with the tags that point to it, or just a tag.
    pub fn delete_manifest(&mut self, repository: &str, reference: &str) -> bool {
        let Some(repository) = self.repositories.get_mut(repository) else { return false };
        if repository.tags.remove(reference).is_some() {
            return true;
        }
        repository.tags.retain(|_, digest| digest != reference);
        repository.manifests.remove(reference).is_some()
    }

    /// The tags of a repository in order; `None` if nothing was ever put there.
    pub fn tags(&self, repository: &str) -> Option<Vec<String>> {
        Some(self.repositories.get(repository)?.tags.keys().cloned().collect())
    }

    pub fn manifests(&self, repository: &str) -> impl Iterator<Item = &StoredManifest> {
        self.repositories.get(repository).into_iter().flat_map(|repository| repository.manifests.values())
    }

    pub fn put_image(&mut self, repository: &str, tag: &str, image: &Image) {
        for (digest, source) in image.blobs() {
            self.put_blob(repository, &digest, source);
        }
        for (descriptor, bytes) in image.manifests() {
            let manifest = StoredManifest {
                digest: descriptor.digest.clone(),
                media_type: descriptor.media_type.clone(),
                bytes: bytes.clone(),
            };
            self.put_manifest(repository, None, manifest);
        }
        self.repository(repository).tags.insert(tag.to_owned(), image.digest().to_owned());
    }

    /// What of `manifest`'s references the repository lacks.
    pub fn missing(&self, repository: &str, manifest: &Value) -> Vec<String> {
        let digests = |field: &str, foreign: bool| {
            let list = manifest[field].as_array().cloned().unwrap_or_default();
            let wanted = list.into_iter().filter(move |entry| foreign || entry["urls"].is_null());
            wanted.filter_map(|entry| entry["digest"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        let config = manifest["config"]["digest"].as_str().map(str::to_owned);
        let blobs = digests("layers", false).into_iter().chain(config);
        let manifests = digests("manifests", true).into_iter();
        let no_blob = blobs.filter(|digest| self.blob(repository, digest).is_none());
        let no_manifest = manifests.filter(|digest| self.manifest(repository, digest).is_none());
        no_blob.chain(no_manifest).collect()
    }

    pub fn begin_upload(&mut self, repository: &str) -> String {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        self.uploads.insert(id.clone(), (repository.to_owned(), Upload::default()));
        id
    }

    /// Takes the upload out while a request works on it; a request that fails loses it or puts it back.
    pub fn take_upload(&mut self, repository: &str, id: &str) -> Option<Upload> {
        let (owner, _) = self.uploads.get(id)?;
        if owner != repository {
            return None;
        }
        self.uploads.remove(id).map(|(_, upload)| upload)
    }

    pub fn return_upload(&mut self, repository: &str, id: &str, upload: Upload) {
        self.uploads.insert(id.to_owned(), (repository.to_owned(), upload));
    }

    pub fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }
}

/// The bytes of an unfinished upload.
#[derive(Default)]
pub(super) struct Upload {
    memory: Vec<u8>,
    file: Option<File>,
    len: u64,
}

impl Upload {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        match &self.file {
            Some(file) => {
                let at = self.len - bytes.len() as u64;
                file.write_all_at(bytes, at).expect("spool an upload");
            }
            None => {
                self.memory.extend_from_slice(bytes);
                if self.memory.len() > SPOOL_ABOVE {
                    let file = tempfile::tempfile().expect("a file to spool an upload");
                    file.write_all_at(&self.memory, 0).expect("spool an upload");
                    self.memory = Vec::new();
                    self.file = Some(file);
                }
            }
        }
    }

    pub fn into_source(self) -> BlobSource {
        match self.file {
            Some(file) => BlobSource::File(Arc::new(file), self.len),
            None => BlobSource::from(self.memory),
        }
    }
}

/// The digest of all bytes of `source`, by the algorithm of `like`.
pub(super) fn digest_of(source: &BlobSource, like: &str) -> Option<String> {
    let mut hasher = Hasher::for_digest(like)?;
    source.read(0, source.len()).for_each(|chunk| hasher.update(&chunk));
    Some(hasher.finish())
}
