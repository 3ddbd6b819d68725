//! Directories in OCI layout (image specification, `image-layout.md`), read only.

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::oci::Digest;

/// A directory that has an image layout of version 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// A directory is not a layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("{path:?} is not an OCI layout: it has no file oci-layout")]
    NoMarker { path: PathBuf },
    #[error("could not read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} is broken")]
    Broken { path: PathBuf, source: serde_json::Error },
    #[error("{path:?} is an OCI layout of version {version}: expected 1.0.x")]
    Version { path: PathBuf, version: String },
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Layout {
    /// Looks whether `root` is one.
    pub fn open(root: impl Into<PathBuf>) -> Result<Layout, LayoutError> {
        let root = root.into();
        let path = root.join("oci-layout");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(LayoutError::NoMarker { path: root });
            }
            Err(source) => return Err(LayoutError::Read { path, source }),
        };
        let marker: Marker = serde_json::from_slice(&text)
            .map_err(|source| LayoutError::Broken { path: path.clone(), source })?;
        if !marker.version.starts_with("1.0.") {
            return Err(LayoutError::Version { path, version: marker.version });
        }
        Ok(Layout { root })
    }

    /// A directory that is to become one.
    pub(super) fn planned(root: impl Into<PathBuf>) -> Layout {
        Layout { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens a blob and tells its size. What it holds is for the reader to verify.
    pub(super) fn blob(&self, digest: &Digest) -> io::Result<(File, u64)> {
        let file = File::open(self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex()))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the blob is not a file"));
        }
        Ok((file, metadata.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_shows_its_version_and_its_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |dir: &Path| Layout::open(dir).unwrap_err();
        assert!(matches!(refusal(dir.path()), LayoutError::NoMarker { .. }));
        let marker = dir.path().join("oci-layout");
        std::fs::write(&marker, "{").unwrap();
        assert!(matches!(refusal(dir.path()), LayoutError::Broken { .. }));
        std::fs::write(&marker, r#"{"imageLayoutVersion": "2.0.0"}"#).unwrap();
        assert!(matches!(refusal(dir.path()), LayoutError::Version { .. }));
        std::fs::write(&marker, r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();

        let layout = Layout::open(dir.path()).unwrap();
        let digest = Digest::sha256("hello");
        assert_eq!(layout.blob(&digest).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), "hello").unwrap();
        assert_eq!(layout.blob(&digest).unwrap().1, 5);
    }
}
