//! Generates `crate::proto` from the `.proto` files beside this file, without
//! a `protoc` on the machine.

use std::error::Error;
use std::path::Path;
use std::path::PathBuf;

use prost_types::DescriptorProto;
use prost_types::FileDescriptorProto;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Label;
use prost_types::field_descriptor_proto::Type;

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

    let mut config = configure();
    config.include_file("packages.rs");
    for file in &ours {
        if JSON_PACKAGES.contains(&file.package()) {
            derive_json(&mut config, file);
        }
    }
    tonic_prost_build::configure().compile_fds_with_config(FileDescriptorSet { file: ours }, config)?;

    let mut config = configure();
    config.extern_path(format!(".{CONTENT_PACKAGE}"), "::containerd_client::services::v1");
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds_with_config(FileDescriptorSet { file: content }, config)?;
    Ok(())
}

fn configure() -> tonic_prost_build::Config {
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    // Sorted maps: what we encode twice must come out the same.
    config.btree_map(["."]);
    config
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

/// Spells messages the way Go's `encoding/json` spells them for BuildKit, in
/// `buildctl debug dump-llb` and in error details: fields by their name in the
/// `.proto` file, a oneof as an object of its own, bytes in base64, enums and
/// 64-bit integers as numbers, defaults left out.
fn derive_json(config: &mut tonic_prost_build::Config, file: &FileDescriptorProto) {
    for message in &file.message_type {
        derive_message(config, file.package(), message);
    }
}

fn derive_message(config: &mut tonic_prost_build::Config, package: &str, message: &DescriptorProto) {
    const DERIVE: &str = "#[derive(serde::Serialize, serde::Deserialize)]";
    let name = format!(".{package}.{}", message.name());
    config.message_attribute(&name, DERIVE);
    // The case is for oneofs: an attribute of theirs would reach their variants.
    config.message_attribute(&name, "#[serde(default, rename_all = \"PascalCase\")]");

    for oneof in &message.oneof_decl {
        config.enum_attribute(format!("{name}.{}", oneof.name()), DERIVE);
    }
    for field in &message.field {
        // JSON names that a .proto file states go before its field names.
        let stated =
            if field.json_name() == camel_case(field.name()) { field.name() } else { field.json_name() };
        let rename = format!("#[serde(rename = \"{stated}\")]");
        if let Some(index) = field.oneof_index {
            let oneof = message.oneof_decl[index as usize].name();
            config.field_attribute(format!("{name}.{oneof}.{}", field.name()), rename);
            continue;
        }
        let path = format!("{name}.{}", field.name());
        config.field_attribute(&path, rename);
        config.field_attribute(&path, "#[serde(skip_serializing_if = \"crate::proto::json::is_default\")]");
        if field.r#type() == Type::Bytes {
            let with = if field.label() == Label::Repeated { "base64_list" } else { "base64" };
            config.field_attribute(&path, format!("#[serde(with = \"crate::proto::json::{with}\")]"));
        }
    }
}

/// The JSON name that a compiler gives a field by itself.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for character in name.chars() {
        if character == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.push(character.to_ascii_uppercase());
        } else {
            out.push(character);
        }
    }
    out
}
