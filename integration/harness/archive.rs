//! OCI and Docker archives, read back and judged.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use serde_json::Value;

use super::digest::sha256;

/// An archive that was taken apart; all of it is in memory.
#[derive(Debug)]
pub struct Archive {
    /// Every regular file by its path.
    pub files: BTreeMap<String, Bytes>,
}

impl Archive {
    /// Panics if it isn't a whole tar.
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Self {
        assert!(bytes.ends_with(&[0; 1024]), "the archive has no end");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().expect("a tar") {
            let mut entry = entry.expect("an entry of a tar");
            let path = entry.path().expect("a path").display().to_string();
            if entry.header().entry_type().is_file() {
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).expect("a whole entry");
                assert!(files.insert(path.clone(), contents.into()).is_none(), "{path} twice");
            }
        }
        Self { files }
    }

    /// Panics unless the layout is as the OCI image specification has it: every blob is named by its
    /// digest, and everything that a manifest names is there with its size. Returns the manifests
    /// (not indexes) that `index.json` leads to.
    #[track_caller]
    pub fn verify(&self) -> Vec<Value> {
        assert!(self.files.contains_key("oci-layout"), "no oci-layout in {:?}", self.files.keys());
        for (path, bytes) in &self.files {
            if let Some(blob) = path.strip_prefix("blobs/") {
                assert_eq!(sha256(bytes), blob.replace('/', ":"), "a blob under a wrong name");
            }
        }
        let mut manifests = Vec::new();
        self.descend(&self.json("index.json"), &mut manifests);
        manifests
    }

    /// A blob by its digest.
    #[track_caller]
    pub fn blob(&self, digest: &str) -> &Bytes {
        let path = format!("blobs/{}", digest.replace(':', "/"));
        self.files.get(&path).unwrap_or_else(|| panic!("no {path} in {:?}", self.files.keys()))
    }

    pub fn has_blob(&self, digest: &str) -> bool {
        self.files.contains_key(&format!("blobs/{}", digest.replace(':', "/")))
    }

    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let file = self.files.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", self.files.keys()));
        serde_json::from_slice(file).expect("JSON")
    }

    fn descend(&self, index: &Value, manifests: &mut Vec<Value>) {
        for descriptor in index["manifests"].as_array().expect("an index has manifests") {
            let document: Value = serde_json::from_slice(self.described(descriptor)).expect("JSON");
            if document["manifests"].is_array() {
                self.descend(&document, manifests);
                continue;
            }
            self.described(&document["config"]);
            for layer in document["layers"].as_array().expect("a manifest has layers") {
                if layer["urls"].is_null() {
                    self.described(layer);
                }
            }
            manifests.push(document);
        }
    }

    fn described(&self, descriptor: &Value) -> &Bytes {
        let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
        let blob = self.blob(digest);
        assert_eq!(descriptor["size"], blob.len(), "the size of {digest}");
        blob
    }
}
