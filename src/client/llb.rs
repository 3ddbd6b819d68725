//! Definitions of builds as files: the protobuf message `pb.Definition`, or JSON.
//!
//! # JSON
//!
//! There are two forms. Both spell an Op as `buildctl debug dump-llb` does: fields by their names in `ops.proto`,
//! the kind of an op in an object `Op`, bytes in base64, enumerations as numbers.
//!
//! - A *definition* is one object with `def`, `metadata` and `Source`, as in `pb.Definition`, except that an entry
//!   of `def` may be an Op in place of its base64. Where the message has the digest of an Op, `#n` stands for the
//!   n-th entry of `def`, from 0. So nobody has to compute a digest:
//!
//!   ```json
//!   {
//!     "def": [
//!       {"Op": {"source": {"identifier": "docker-image://docker.io/library/busybox:latest"}}},
//!       {"inputs": [{"digest": "#0"}]}
//!     ],
//!     "metadata": {"#0": {"description": {"llb.customname": "the base image"}}}
//!   }
//!   ```
//!
//! - A *dump* is what `buildctl debug dump-llb` prints: one object an Op, with `Op`, `Digest` and `OpMetadata`.
//!
//! An Op that is read from JSON is encoded here. Its bytes, and so its digest, may be others than those that the
//! JSON was made from; references to it follow.
//!
//! A key that `ops.proto` does not have is refused: it would be lost without a word.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Map;
use serde_json::Value;

use crate::oci::Digest;
use crate::proto::json;
use crate::proto::pb;

/// A daemon takes messages of 16 MiB; the rest of a request needs some of it.
pub const SIZE_LIMIT: usize = 15 << 20;

/// A definition that a daemon can be asked to solve.
#[derive(Clone, PartialEq, Debug)]
pub struct Definition(pub(super) pb::Definition);

/// A file is not a definition.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("the definition is empty: it has no op")]
    Empty,
    #[error("the definition has {size} bytes, at most {SIZE_LIMIT} can be sent")]
    TooLarge { size: usize },
    #[error(
        "this is neither a protobuf definition nor JSON (`buildctl debug dump-llb` reads the former and prints the latter)"
    )]
    Neither,
    #[error("the JSON is broken")]
    Syntax(#[source] serde_json::Error),
    #[error("{place}: {problem}")]
    Json { place: String, problem: String },
}

impl Definition {
    /// Reads a definition in any of the forms.
    pub fn parse(bytes: &[u8]) -> Result<Definition, DefinitionError> {
        if bytes.is_empty() {
            return Err(DefinitionError::Empty);
        }
        // A line break is the tag of `def` as well, so JSON that does not begin with its brace comes second.
        let definition = if bytes[0] == b'{' {
            parse_json(bytes)?
        } else if let Some(definition) = parse_protobuf(bytes) {
            definition
        } else if bytes.trim_ascii_start().first() == Some(&b'{') {
            parse_json(bytes)?
        } else if bytes.trim_ascii().is_empty() {
            return Err(DefinitionError::Empty);
        } else {
            return Err(DefinitionError::Neither);
        };
        let size = definition.encoded_len();
        if size > SIZE_LIMIT {
            return Err(DefinitionError::TooLarge { size });
        }
        Ok(Definition(definition))
    }

    /// The definition as protobuf.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    /// The names of the OCI layouts that the definition wants from the session of the build.
    pub fn layouts(&self) -> Vec<String> {
        let sources = self.0.def.iter().filter_map(|op| match pb::Op::decode(op.clone()).ok()?.op? {
            pb::op::Op::Source(source) => Some(source),
            _ => None,
        });
        let mut names: Vec<String> = sources
            .filter_map(|source| {
                let name = source.identifier.strip_prefix("oci-layout://")?;
                let attribute = |key| source.attrs.get(key).filter(|value| !value.is_empty());
                if attribute("oci.session").is_some() {
                    return None;
                }
                let store = attribute("oci.store");
                Some(store.cloned().unwrap_or_else(|| name.split('@').next().unwrap_or_default().to_owned()))
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn parse_protobuf(bytes: &[u8]) -> Option<pb::Definition> {
    let definition = pb::Definition::decode(bytes).ok()?;
    let sound =
        !definition.def.is_empty() && definition.def.iter().all(|op| pb::Op::decode(op.clone()).is_ok());
    sound.then_some(definition)
}

fn parse_json(bytes: &[u8]) -> Result<pb::Definition, DefinitionError> {
    let values = serde_json::Deserializer::from_slice(bytes)
        .into_iter::<Value>()
        .collect::<Result<Vec<Value>, _>>()
        .map_err(DefinitionError::Syntax)?;
    match values.as_slice() {
        [Value::Object(definition)] if definition.contains_key("def") => from_definition(definition),
        values => from_dump(values),
    }
}

fn from_definition(fields: &Map<String, Value>) -> Result<pb::Definition, DefinitionError> {
    if let Some(key) = fields.keys().find(|key| !["def", "metadata", "Source"].contains(&key.as_str())) {
        return Err(wrong(key, "there is no such key: expected def, metadata or Source"));
    }
    let Some(Value::Array(ops)) = fields.get("def") else {
        return Err(wrong("def", "expected a list of ops"));
    };
    let mut encoder = Encoder::default();
    for (n, op) in ops.iter().enumerate() {
        let place = format!("def[{n}]");
        let bytes = match op {
            Value::String(base64) => {
                let bytes = STANDARD.decode(base64).map_err(|e| wrong(&place, e))?;
                pb::Op::decode(bytes.as_slice()).map_err(|e| wrong(&place, e))?;
                Bytes::from(bytes)
            }
            op => encoder.encode(&place, op)?,
        };
        encoder.add(format!("#{n}"), bytes);
    }
    let mut metadata = BTreeMap::new();
    for (key, value) in section(fields, "metadata")? {
        let place = format!("metadata.{key}");
        metadata.insert(encoder.resolve(&place, key)?, read(&place, value)?);
    }
    let source = match fields.get("Source") {
        None | Some(Value::Null) => None,
        Some(source) => {
            let mut source: pb::Source = read("Source", source)?;
            let mut locations = BTreeMap::new();
            for (key, value) in std::mem::take(&mut source.locations) {
                locations.insert(encoder.resolve("Source.locations", &key)?, value);
            }
            source.locations = locations;
            Some(source)
        }
    };
    encoder.finish(metadata, source)
}

fn from_dump(values: &[Value]) -> Result<pb::Definition, DefinitionError> {
    let mut encoder = Encoder::default();
    let mut metadata = BTreeMap::new();
    for (n, value) in values.iter().enumerate() {
        let place = format!("op {n}");
        let Value::Object(fields) = value else {
            return Err(wrong(&place, "expected an object"));
        };
        if let Some(key) = fields.keys().find(|key| !["Op", "Digest", "OpMetadata"].contains(&key.as_str())) {
            return Err(wrong(
                &place,
                format!(
                    "there is no key {key:?}: expected a definition (def, …) or a dump (Op, Digest, OpMetadata)"
                ),
            ));
        }
        let Some(op) = fields.get("Op") else {
            return Err(wrong(&place, "expected the key Op"));
        };
        let bytes = encoder.encode(&place, op)?;
        let digest = Digest::sha256(&bytes).to_string();
        let stated = fields.get("Digest").and_then(Value::as_str);
        encoder.add(stated.unwrap_or(&digest).to_owned(), bytes);
        if let Some(of_op) = fields.get("OpMetadata").filter(|value| !value.is_null()) {
            metadata.insert(digest, read(&format!("{place}.OpMetadata"), of_op)?);
        }
    }
    encoder.finish(metadata, None)
}

/// The ops so far, and what they are called in the JSON.
#[derive(Default)]
struct Encoder {
    ops: Vec<Bytes>,
    digests: BTreeMap<String, String>,
}

impl Encoder {
    fn encode(&self, place: &str, op: &Value) -> Result<Bytes, DefinitionError> {
        let mut op: pb::Op = read(place, op)?;
        for (n, input) in op.inputs.iter_mut().enumerate() {
            input.digest = self.resolve(&format!("{place}.inputs[{n}]"), &input.digest)?;
        }
        Ok(op.encode_to_vec().into())
    }

    fn add(&mut self, name: String, op: Bytes) {
        let digest = Digest::sha256(&op).to_string();
        self.digests.insert(digest.clone(), digest.clone());
        self.digests.insert(name, digest);
        self.ops.push(op);
    }

    fn resolve(&self, place: &str, name: &str) -> Result<String, DefinitionError> {
        self.digests
            .get(name)
            .cloned()
            .ok_or_else(|| wrong(place, format!("{name:?} is no op that stands before this")))
    }

    fn finish(
        self,
        metadata: BTreeMap<String, pb::OpMetadata>,
        source: Option<pb::Source>,
    ) -> Result<pb::Definition, DefinitionError> {
        if self.ops.is_empty() {
            return Err(DefinitionError::Empty);
        }
        Ok(pb::Definition { def: self.ops, metadata, source })
    }
}

fn section<'v>(
    fields: &'v Map<String, Value>,
    key: &str,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, DefinitionError> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None.into_iter().flatten()),
        Some(Value::Object(section)) => Ok(Some(section.iter()).into_iter().flatten()),
        Some(_) => Err(wrong(key, "expected an object")),
    }
}

/// Reads one message, and refuses keys that got lost on the way.
fn read<T: Serialize + DeserializeOwned>(place: &str, value: &Value) -> Result<T, DefinitionError> {
    let text = serde_json::to_vec(value).map_err(|e| wrong(place, e))?;
    let message: T = json::read(&text).map_err(|e| wrong(place, e))?;
    let kept = serde_json::to_value(&message).map_err(|e| wrong(place, e))?;
    match lost(value, &kept) {
        None => Ok(message),
        Some(path) => Err(wrong(&format!("{place}{path}"), "there is no such key")),
    }
}

/// The path of a key that says something in `given` and is not in `kept`.
fn lost(given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), kept) => given.iter().find_map(|(key, value)| {
            let path = match kept.get(key) {
                None if says_nothing(value) => None,
                None => Some(String::new()),
                Some(kept) => lost(value, kept),
            };
            path.map(|path| format!(".{key}{path}"))
        }),
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(n, (given, kept))| lost(given, kept).map(|path| format!("[{n}]{path}"))),
        _ => None,
    }
}

/// True for the values that a message leaves out.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

fn wrong(place: &str, problem: impl ToString) -> DefinitionError {
    DefinitionError::Json { place: place.to_owned(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READABLE: &str = r##"
    {
      "def": [
        {"Op": {"source": {"identifier": "oci-layout://base@sha256:00"}}, "platform": {"OS": "linux", "Architecture": "arm64"}},
        {"inputs": [{"digest": "#0"}]}
      ],
      "metadata": {"#0": {"description": {"llb.customname": "the base"}, "caps": {"source.ocilayout": true}}}
    }"##;

    fn ops(definition: &Definition) -> Vec<pb::Op> {
        definition.0.def.iter().map(|op| pb::Op::decode(op.clone()).unwrap()).collect()
    }

    #[test]
    fn numbers_become_the_digests_of_the_encoded_ops() {
        let definition = Definition::parse(READABLE.as_bytes()).unwrap();
        let first = Digest::sha256(&definition.0.def[0]).to_string();
        assert_eq!(ops(&definition)[1].inputs[0].digest, first);
        assert_eq!(definition.0.metadata[&first].description["llb.customname"], "the base");
        assert_eq!(definition.layouts(), ["base"]);
    }

    #[test]
    fn protobuf_json_and_a_dump_are_the_same_definition() {
        let definition = Definition::parse(READABLE.as_bytes()).unwrap();
        assert_eq!(Definition::parse(&definition.0.encode_to_vec()).unwrap(), definition);

        let base64 = Value::from_iter([
            ("def".to_owned(), Value::from_iter(definition.0.def.iter().map(|op| STANDARD.encode(op)))),
            ("metadata".to_owned(), serde_json::to_value(&definition.0.metadata).unwrap()),
        ]);
        assert_eq!(Definition::parse(base64.to_string().as_bytes()).unwrap(), definition);

        let dump: String = definition
            .0
            .def
            .iter()
            .map(|bytes| {
                let digest = Digest::sha256(bytes).to_string();
                let line = serde_json::json!({
                    "Op": serde_json::to_value(pb::Op::decode(bytes.clone()).unwrap()).unwrap(),
                    "Digest": digest,
                    "OpMetadata": definition.0.metadata.get(&digest),
                });
                format!("{line}\n")
            })
            .collect();
        assert_eq!(Definition::parse(dump.as_bytes()).unwrap(), definition);
    }

    #[test]
    fn a_dump_whose_bytes_were_others_keeps_its_edges() {
        let dump = r#"{"Op":{"Op":{"source":{"identifier":"docker-image://a"}}},"Digest":"sha256:from-elsewhere"}
            {"Op":{"inputs":[{"digest":"sha256:from-elsewhere"}],"Op":{}},"Digest":"sha256:last"}"#;
        let definition = Definition::parse(dump.as_bytes()).unwrap();
        let first = Digest::sha256(&definition.0.def[0]).to_string();
        assert_eq!(ops(&definition)[1].inputs[0].digest, first);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let said = |text: &str| match Definition::parse(text.as_bytes()).unwrap_err() {
            DefinitionError::Syntax(e) => format!("syntax: {e}"),
            other => other.to_string(),
        };
        let cases = [
            "",
            " \n",
            "hello",
            "{",
            "{}",
            r#"{"def": []}"#,
            r#"{"def": {}}"#,
            r#"{"def": ["?"]}"#,
            r#"{"def": [{"Op": {"sauce": {}}}]}"#,
            r#"{"def": [{"Op": {"source": {"identifier": 3}}}]}"#,
            r#"{"def": [{"Op": {"source": {"identifier": "a", "attributes": {"x": "y"}}}}]}"#,
            r##"{"def": [{"inputs": [{"digest": "#0"}]}]}"##,
            r#"{"def": [{}], "metadata": {"sha256:00": {}}}"#,
            r#"{"def": [{}], "definitions": 1}"#,
            r#"{"Op": {}, "Digset": ""}"#,
            "[1]",
        ];
        let said: Vec<String> = cases.iter().map(|case| format!("{case}\n    {}", said(case))).collect();
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(said.join("\n"));
        });
    }

    #[test]
    fn a_definition_that_no_daemon_takes_is_refused_before_it_is_sent() {
        let name = "x".repeat(SIZE_LIMIT);
        let text = serde_json::json!({"def": [{"Op": {"source": {"identifier": name}}}]}).to_string();
        assert!(matches!(Definition::parse(text.as_bytes()), Err(DefinitionError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Definition::parse(&bytes);
        }

        #[test]
        fn any_json_is_read_or_refused(
            key in "def|metadata|Source|Op|Digest",
            value in "null|1|\"x\"|\\[\\]|\\[\\{\\}\\]|\\{\\}|\\{\"a\":1\\}|\\[\\{\"Op\":\\{\\}\\}\\]",
        ) {
            let _ = Definition::parse(format!("{{\"{key}\": {value}}}").as_bytes());
        }
    }
}
