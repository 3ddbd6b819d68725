//! Images on disk: an OCI image layout directory.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::blob::BlobSource;
use super::image::Image;

/// Writes `images` with their tags into `directory` as an OCI image layout. Blobs that are there
/// already are left alone; `index.json` is replaced.
pub fn write_layout(directory: &Path, images: &[(&str, &Image)]) -> io::Result<()> {
    fs::create_dir_all(directory.join("blobs"))?;
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut entries = Vec::new();
    for (tag, image) in images {
        for (digest, source) in image.blobs() {
            write_blob(directory, &digest, &source)?;
        }
        for (descriptor, manifest) in image.manifests() {
            write_blob(directory, &descriptor.digest, &BlobSource::Bytes(manifest.clone()))?;
        }
        let mut entry = image.descriptor.clone();
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), (*tag).to_owned());
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)
}

fn write_blob(directory: &Path, digest: &str, source: &BlobSource) -> io::Result<()> {
    let (algorithm, encoded) = digest.split_once(':').expect("a digest");
    let parent = directory.join("blobs").join(algorithm);
    let path = parent.join(encoded);
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(&parent)?;
    let mut file = File::create(path)?;
    source.read(0, source.len()).try_for_each(|chunk| file.write_all(&chunk))
}
