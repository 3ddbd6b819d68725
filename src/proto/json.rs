//! How Go's `encoding/json` writes what serde writes differently, and how its `protojson` does.

use serde::Serialize;
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

/// Writes a message as Go's `encoding/json` does: byte for byte, so that both can be hashed.
pub fn write<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_string(value)?;
    // Most have no user.
    if text.contains(r#""User""#) {
        let mut value = serde_json::to_value(value)?;
        write_oneofs(&mut value);
        text = serde_json::to_string(&value)?;
    }
    // The last one begins what is longer than a byte.
    if !text.bytes().any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2)) {
        return Ok(text.into_bytes());
    }
    let mut escaped = String::with_capacity(text.len());
    // Outside of texts there are none of these.
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            character => escaped.push(character),
        }
    }
    Ok(escaped.into_bytes())
}

/// The opposite of [`settle_oneofs`], for the oneofs of users.
fn write_oneofs(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(write_oneofs),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Null if name == "User" => *field = Value::Object(Map::new()),
                    Value::Object(user) if name == "User" && user.get("byId") == Some(&Value::from(0)) => {
                        user.clear();
                    }
                    field => write_oneofs(field),
                }
            }
        }
        _ => {}
    }
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

/// The oneofs of our messages, as `encoding/json` names them.
const ONEOFS: [&str; 4] = ["Op", "Action", "User", "Subject"];

/// A message as Go's `protojson` reads it, which has the set field of a oneof in the message itself. It
/// takes the names of the `.proto` file, and numbers for enums and 64-bit integers.
pub fn protojson<T: Serialize>(message: &T) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(message)?;
    lift_oneofs(&mut value);
    Ok(value)
}

fn lift_oneofs(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(lift_oneofs),
        Value::Object(fields) => {
            for name in ONEOFS {
                match fields.get_mut(name) {
                    Some(Value::Object(set)) => {
                        let set = std::mem::take(set);
                        fields.remove(name);
                        fields.extend(set);
                    }
                    Some(Value::Null) => drop(fields.remove(name)),
                    _ => {}
                }
            }
            // `encoding/json` does not mind the case of a name.
            if let Some(user) = fields.remove("byId") {
                fields.insert("byID".to_owned(), user);
            }
            fields.values_mut().for_each(lift_oneofs);
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
