//! How Go's `encoding/json` writes what serde writes differently.

use serde::de::DeserializeOwned;
use serde_json::Map;
use serde_json::Value;

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a message, or a value that holds messages, from Go's JSON. A oneof
/// without a value is an empty object there, and user 0 is one as well.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let mut value = serde_json::from_slice(text)?;
    settle_oneofs(&mut value);
    serde_json::from_value(value)
}

fn settle_oneofs(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settle_oneofs),
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let empty = field.as_object().is_some_and(Map::is_empty);
                !field.is_null() && !(empty && (name == "Op" || name == "Action"))
            });
            for (name, field) in fields {
                match field {
                    Value::Object(user) if name == "User" && user.is_empty() => {
                        user.insert("byId".to_owned(), Value::from(0));
                    }
                    field => settle_oneofs(field),
                }
            }
        }
        _ => {}
    }
}

/// Bytes as base64 with padding.
pub(crate) mod base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;
    use serde::de::Error;

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&base64::display::Base64Display::new(bytes, &STANDARD))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

/// A list of them.
pub(crate) mod base64_list {
    use bytes::Bytes;
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;

    #[derive(Serialize, Deserialize)]
    struct Item(#[serde(with = "super::base64")] Bytes);

    pub(crate) fn serialize<S: Serializer>(list: &[Bytes], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().cloned().map(Item))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes>, D::Error> {
        let list = Option::<Vec<Item>>::deserialize(deserializer)?.unwrap_or_default();
        Ok(list.into_iter().map(|Item(bytes)| bytes).collect())
    }
}
