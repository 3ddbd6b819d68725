//! [`LayoutStore`]: a directory that a build writes an OCI layout into (image specification, `image-layout.md`).
//!
//! # Crash consistency
//!
//! A blob is written under another name, verified, synced and renamed; so is `index.json`, once everything that it
//! leads to is there. What is in the directory before stays, but for names that are given anew.
//!
//! # Locking
//!
//! Who changes `index.json` holds a lock on the file `index.json.lock`, as other clients do.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde::Serialize;

use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::DigestHasher;
use crate::oci::Reference;
use crate::oci::annotation;
use crate::oci::media_type;

/// The name of an image that is given none.
const LATEST: &str = "latest";

/// A directory that becomes a layout, or has one. Its methods block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LayoutStore {
    root: PathBuf,
}

/// A blob on its way into a layout. Dropped before [`NewBlob::commit`], it leaves nothing.
pub(super) struct NewBlob {
    file: File,
    temporary: PathBuf,
    hasher: DigestHasher,
    written: u64,
}

/// `index.json`. What we don't know of is kept.
#[derive(Serialize, Deserialize)]
struct Index {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType", default = "index_type")]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<serde_json::Value>>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

fn index_type() -> String {
    media_type::OCI_INDEX.to_owned()
}

impl LayoutStore {
    pub(super) fn new(root: impl Into<PathBuf>) -> LayoutStore {
        LayoutStore { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        std::fs::metadata(self.blob(digest)).is_ok_and(|meta| meta.is_file())
    }

    /// Starts a blob whose bytes are to have the digest `expected`.
    pub(super) fn begin(&self, expected: &Digest) -> io::Result<NewBlob> {
        let directory = self.root.join("blobs").join(expected.algorithm().name());
        std::fs::create_dir_all(&directory)?;
        let temporary = directory.join(format!(".{:016x}.partial", rand::random::<u64>()));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(NewBlob { file, temporary, hasher: DigestHasher::new(expected.algorithm()), written: 0 })
    }

    /// Makes `names` names of the image, or `latest` if there are none.
    pub(super) fn name(&self, image: &Descriptor, names: &[&str]) -> io::Result<()> {
        std::fs::create_dir_all(&self.root)?;
        let _lock = Lock::take(self.root.join("index.json.lock"))?;
        replace(&self.root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let path = self.root.join("index.json");
        let mut index = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index {
                schema_version: 2,
                media_type: index_type(),
                manifests: None,
                other: serde_json::Map::new(),
            },
            Err(error) => return Err(error),
        };
        let manifests = index.manifests.get_or_insert_default();
        let full_names = names.iter().map(|name| (Some(*name), tag_of(name)));
        let named: Vec<(Option<&str>, String)> = match names {
            [] => vec![(None, LATEST.to_owned())],
            _ => full_names.collect(),
        };
        for (name, tag) in named {
            let of = |manifest: &serde_json::Value, key: &str| {
                manifest["annotations"][key].as_str().map(str::to_owned)
            };
            manifests.retain(|manifest| {
                of(manifest, annotation::REF_NAME).as_deref() != Some(tag.as_str())
                    || of(manifest, annotation::IMAGE_NAME).as_deref() != name
            });
            let mut descriptor = image.clone();
            if let Some(name) = name {
                descriptor.annotations.insert(annotation::IMAGE_NAME.to_owned(), name.to_owned());
            }
            descriptor.annotations.insert(annotation::REF_NAME.to_owned(), tag);
            manifests.push(serde_json::to_value(descriptor)?);
        }
        replace(&path, &serde_json::to_vec(&index)?)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

/// What names an image within a layout: the tag, with a digest if there is one.
fn tag_of(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(Reference { tag: Some(tag), digest: None, .. }) => tag,
        Ok(Reference { tag: Some(tag), digest: Some(digest), .. }) => format!("{tag}@{digest}"),
        _ => name.to_owned(),
    }
}

impl NewBlob {
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts the blob in its place, if it is the one that was expected.
    pub(super) fn commit(mut self, store: &LayoutStore, expected: &Digest) -> io::Result<()> {
        let hasher = std::mem::replace(&mut self.hasher, DigestHasher::new(expected.algorithm()));
        let actual = hasher.finish();
        if actual != *expected {
            let problem = format!("the bytes that came have the digest {actual}, not {expected}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        self.file.sync_all()?;
        let path = store.blob(expected);
        std::fs::rename(&self.temporary, &path)?;
        sync_parent(&path)
    }
}

impl Drop for NewBlob {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// A file that is locked, and removed with the lock.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until nobody else has it.
    fn take(path: PathBuf) -> io::Result<Lock> {
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            // The one before us may have removed the file that we waited for.
            let is_it = std::fs::metadata(&path).is_ok_and(|there| {
                file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
            });
            if is_it {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes a file whole, or leaves the one that is there.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:08x}.partial", rand::random::<u32>()));
    let temporary = path.with_file_name(name);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    written().inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(index: &Path) -> Vec<(Option<String>, String)> {
        let index: crate::oci::Index = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
        let named = |d: Descriptor| {
            let name = d.annotations.get(annotation::IMAGE_NAME).cloned();
            (name, d.annotations[annotation::REF_NAME].clone())
        };
        index.manifests.into_iter().map(named).collect()
    }

    #[test]
    fn a_blob_is_there_once_it_is_whole_and_the_right_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayoutStore::new(dir.path().join("new"));
        let digest = Digest::sha256("hello");
        let mut wrong = store.begin(&digest).unwrap();
        wrong.write(b"help").unwrap();
        assert_eq!(wrong.written(), 4);
        assert_eq!(wrong.commit(&store, &digest).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(store.begin(&digest).unwrap());
        assert!(!store.has(&digest));
        let blobs = store.root().join("blobs/sha256");
        assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "nothing is left of either");
        let mut right = store.begin(&digest).unwrap();
        right.write(b"hel").unwrap();
        right.write(b"lo").unwrap();
        right.commit(&store, &digest).unwrap();
        assert!(store.has(&digest));
        assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 1);
    }

    #[test]
    fn a_name_is_one_images_and_what_else_is_in_the_index_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayoutStore::new(dir.path());
        let index = dir.path().join("index.json");
        let image = |text: &str| Descriptor::of(media_type::OCI_MANIFEST, text.as_bytes());
        let latest = |name: Option<&str>| (name.map(str::to_owned), "latest".to_owned());
        store.name(&image("a"), &[]).unwrap();
        assert_eq!(names(&index), [latest(None)]);
        store.name(&image("b"), &["docker.io/library/x:latest", "r.example/y:v1"]).unwrap();
        let v1 = (Some("r.example/y:v1".to_owned()), "v1".to_owned());
        let named = latest(Some("docker.io/library/x:latest"));
        assert_eq!(names(&index), [latest(None), named.clone(), v1.clone()]);
        let text = std::fs::read_to_string(&index).unwrap();
        std::fs::write(&index, text.replacen('{', r#"{"annotations":{"kept":"yes"},"#, 1)).unwrap();
        store.name(&image("c"), &[]).unwrap();
        assert_eq!(names(&index), [named, v1, latest(None)]);
        assert!(std::fs::read_to_string(&index).unwrap().contains(r#""kept":"yes""#));
        std::fs::write(&index, "{").unwrap();
        assert!(store.name(&image("d"), &[]).is_err());
        assert_eq!(std::fs::read_to_string(&index).unwrap(), "{", "what is there stays");
        assert!(!dir.path().join("index.json.lock").exists());
    }

    #[test]
    fn writers_of_an_index_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayoutStore::new(dir.path());
        std::thread::scope(|scope| {
            for n in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    let name = format!("r.example/image:v{n}");
                    let image = Descriptor::of(media_type::OCI_MANIFEST, name.as_bytes());
                    store.name(&image, &[&name]).unwrap();
                });
            }
        });
        assert_eq!(names(&dir.path().join("index.json")).len(), 8);
    }
}
