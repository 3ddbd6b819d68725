//! How generated messages look, in this package and in the fuzzer, which is one of its own and needs no service.

use prost_types::DescriptorProto;
use prost_types::FileDescriptorProto;
use prost_types::field_descriptor_proto::Label;
use prost_types::field_descriptor_proto::Type;
use tonic_prost_build::Config;

pub(crate) fn configure() -> Config {
    let mut config = Config::new();
    config.bytes(["."]);
    // Sorted maps: what we encode twice must come out the same.
    config.btree_map(["."]);
    config
}

/// Spells messages the way Go's `encoding/json` spells them for BuildKit, in
/// `buildctl debug dump-llb` and in error details: fields by their name in the
/// `.proto` file, a oneof as an object of its own, bytes in base64, enums and
/// 64-bit integers as numbers, defaults left out.
pub(crate) fn derive_json(config: &mut Config, file: &FileDescriptorProto) {
    for message in &file.message_type {
        derive_message(config, file.package(), message);
    }
}

fn derive_message(config: &mut Config, package: &str, message: &DescriptorProto) {
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
