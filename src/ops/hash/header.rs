//! The digest of one file: its header and its bytes.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use sha2::Digest as _;
use sha2::Sha256;

use crate::fs::Kind;
use crate::fs::Meta;
use crate::fs::Xattrs;

/// Starts the digest of a file with what is known of it without its bytes.
pub(super) fn header(meta: &Meta, target: Option<&Path>, xattrs: &Xattrs) -> Sha256 {
    let (flag, device) = match meta.kind {
        // A socket is nothing but an empty file elsewhere.
        Kind::File | Kind::Socket => ("0", (0, 0)),
        Kind::Directory => ("5", (0, 0)),
        Kind::Symlink => ("2", (0, 0)),
        Kind::CharDevice { major, minor } => ("3", (major, minor)),
        Kind::BlockDevice { major, minor } => ("4", (major, minor)),
        Kind::Fifo => ("6", (0, 0)),
    };
    let mode = if meta.is_symlink() { 0o777 } else { meta.mode };
    let size = if meta.is_file() { meta.size } else { 0 };
    let mut hash = Sha256::new();
    hash.update(format!(
        "namemode{mode}uid{}gid{}size{size}typeflag{flag}linkname",
        meta.owner.uid, meta.owner.gid
    ));
    hash.update(target.map(|target| target.as_os_str().as_bytes()).unwrap_or_default());
    hash.update(format!("unamegnamedevmajor{}devminor{}", device.0, device.1));
    for (name, value) in xattrs {
        let name = name.as_bytes();
        let system = name.starts_with(b"security.") || name.starts_with(b"system.");
        if name == b"security.capability" || !system {
            hash.update(name);
            hash.update(value);
        }
    }
    hash
}

/// Adds the bytes of a file.
pub(super) fn contents(mut hash: Sha256, mut file: File, buffer: &mut [u8]) -> std::io::Result<Sha256> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hash),
            Ok(read) => hash.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
