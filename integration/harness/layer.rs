//! Layers: blobs with a media type and the digest of the tar inside them.

use std::io::Read;
use std::io::Write;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::GzBuilder;
use sha2::Digest as _;
use sha2::Sha256;

use super::blob::BlobSource;
use super::digest::sha256;
use super::image::Descriptor;

/// One layer of a test image.
#[derive(Clone, Debug)]
pub struct Layer {
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar stream.
    pub diff_id: String,
    /// `None` for a foreign layer, which no registry is asked to hold.
    pub source: Option<BlobSource>,
}

impl Layer {
    /// Directories (`path/`), links (`-> target`) and files in a gzip, as image builders write them: with entries for
    /// directories too.
    pub fn tree(entries: &[(&str, &str)]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            if path.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                builder.append_data(&mut header, path, &b""[..]).expect("tar to memory");
            } else if let Some(target) = data.strip_prefix("-> ") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, target).expect("tar to memory");
            } else {
                header.set_size(data.len() as u64);
                header.set_mode(0o644);
                builder.append_data(&mut header, path, data.as_bytes()).expect("tar to memory");
            }
        }
        Self::gzip(builder.into_inner().expect("tar to memory"))
    }

    /// A gzip'd tar with the given regular files, deterministic (mode 0644, owner 0, time 0).
    pub fn files<P: AsRef<str>, C: AsRef<[u8]>>(files: impl IntoIterator<Item = (P, C)>) -> Self {
        Self::gzip(tar_of(files))
    }

    /// A gzip'd tar with one file of `content` random bytes made from `seed`. The blob is a little
    /// larger (0.01 %) and takes no memory. Equal arguments give the equal layer.
    pub fn incompressible(seed: u64, content: u64) -> Self {
        let source = BlobSource::generated(seed, content);
        let BlobSource::Generated(generated) = &source else { unreachable!("generated above") };
        let descriptor = Descriptor::new(OCI_LAYER_GZIP, generated.digest(), source.len());
        Self { descriptor, diff_id: generated.diff_id().to_owned(), source: Some(source) }
    }

    /// Any tar stream, gzip'd.
    pub fn gzip(tar: Vec<u8>) -> Self {
        // The header's time and system are fixed, so that equal tars are equal blobs.
        let mut encoder =
            GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::fast());
        encoder.write_all(&tar).expect("gzip to memory");
        let blob = encoder.finish().expect("gzip to memory");
        Self::with_blob(OCI_LAYER_GZIP, blob, sha256(&tar))
    }

    /// Any tar stream, zstd'd.
    pub fn zstd(tar: &[u8]) -> Self {
        let blob = zstd::encode_all(tar, 3).expect("zstd to memory");
        Self::with_blob(OCI_LAYER_ZSTD, blob, sha256(tar))
    }

    /// A gzip'd tar with one file of `size` bytes that repeat themselves: a blob of a thousandth of that. The tar is at
    /// no time in memory.
    pub fn compressible(size: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("repeated-{size}")).expect("a short path");
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let end = size.next_multiple_of(512) - size + 1024;
        let mut tar =
            header.as_bytes().chain(std::io::repeat(b'r').take(size)).chain(std::io::repeat(0).take(end));
        let mut blob = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::fast());
        let mut diff = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            let len = tar.read(&mut chunk).expect("read from memory");
            if len == 0 {
                break;
            }
            diff.update(&chunk[..len]);
            blob.write_all(&chunk[..len]).expect("gzip to memory");
        }
        let blob = blob.finish().expect("gzip to memory");
        Self::with_blob(OCI_LAYER_GZIP, blob, format!("sha256:{}", HEXLOWER.encode(&diff.finalize())))
    }

    /// Any tar stream, as it is.
    pub fn uncompressed(tar: Vec<u8>) -> Self {
        let diff_id = sha256(&tar);
        Self::with_blob(OCI_LAYER, tar, diff_id)
    }

    /// Any bytes under any media type: for layers that are not what they say.
    pub fn with_blob(media_type: &str, blob: impl Into<Bytes>, diff_id: impl Into<String>) -> Self {
        let blob = blob.into();
        let descriptor = Descriptor::new(media_type, &sha256(&blob), blob.len() as u64);
        Self { descriptor, diff_id: diff_id.into(), source: Some(BlobSource::Bytes(blob)) }
    }

    /// Makes it a non-distributable layer: the descriptor names `urls`, and registries don't hold it.
    pub fn foreign(mut self, urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.descriptor.media_type = OCI_LAYER_FOREIGN_GZIP.to_owned();
        self.descriptor.urls = urls.into_iter().map(Into::into).collect();
        self.source = None;
        self
    }

    pub fn digest(&self) -> &str {
        &self.descriptor.digest
    }

    pub fn size(&self) -> u64 {
        self.descriptor.size
    }
}

/// A tar stream with the given regular files.
pub fn tar_of<P: AsRef<str>, C: AsRef<[u8]>>(files: impl IntoIterator<Item = (P, C)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, contents) in files {
        let contents = contents.as_ref();
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, path.as_ref(), contents).expect("tar to memory");
    }
    builder.into_inner().expect("tar to memory")
}

/// A layer with a busybox that runs: `/bin/busybox` and the links to it that scripts expect.
pub fn busybox() -> Option<Layer> {
    let program = std::fs::read(super::tools::tool("busybox")?).expect("busybox can be read");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if link.is_empty() {
            builder.append_data(&mut header, path, data).expect("tar to memory");
        } else {
            builder.append_link(&mut header, path, link).expect("tar to memory");
        }
    };
    for directory in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        header(directory, tar::EntryType::Directory, 0o755, b"", "");
    }
    header("bin/busybox", tar::EntryType::Regular, 0o755, &program, "");
    header("bin/sh", tar::EntryType::Symlink, 0o777, b"", "busybox");
    header("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0:root:/root:/bin/sh\n", "");
    header("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\n", "");
    Some(Layer::gzip(builder.into_inner().expect("tar to memory")))
}

pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const OCI_LAYER_FOREIGN_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_LAYER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
