//! Generates `crate::proto` from the `.proto` files beside this file, without
//! a `protoc` on the machine.

mod messages;

use std::error::Error;
use std::path::Path;
use std::path::PathBuf;

use prost_types::FileDescriptorSet;

/// Packages whose messages people read and write as JSON: build definitions,
/// and the details of errors.
const JSON_PACKAGES: [&str; 2] = ["pb", "errdefs"];

/// Its messages and client are containerd-client's; only the server is ours.
const CONTENT_PACKAGE: &str = "containerd.services.content.v1";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo::rerun-if-changed={}", root.display());

    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [root])?;

    let (content, ours): (Vec<_>, Vec<_>) =
        descriptors.file.into_iter().partition(|file| file.package() == CONTENT_PACKAGE);

    let mut config = messages::configure();
    config.include_file("packages.rs");
    for file in &ours {
        if JSON_PACKAGES.contains(&file.package()) {
            messages::derive_json(&mut config, file);
        }
    }
    tonic_prost_build::configure().compile_fds_with_config(FileDescriptorSet { file: ours }, config)?;

    let mut config = messages::configure();
    config.extern_path(format!(".{CONTENT_PACKAGE}"), "::containerd_client::services::v1");
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds_with_config(FileDescriptorSet { file: content }, config)?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
