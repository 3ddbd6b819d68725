//! The image configuration of an export: the frontend's, or a default one, with the root filesystem
//! and the history brought in line with the layers (OCI image specification, `config.md`).
//!
//! Fields that we don't know are kept as they are. What we write ourselves is written as BuildKit
//! does, byte for byte: the same input gives the same digest there and here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde_json::value::RawValue;

use super::json;
use crate::oci::DiffId;
use crate::oci::Platform;

/// The comment of history entries that an exporter adds.
const COMMENT: &str = "buildkit.exporter.image.v0";

/// Who made a layer that says nothing about it.
const UNKNOWN_AUTHOR: &str = "created by buildkit";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A configuration can't be part of an image.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("image config for export is not valid JSON")]
    Json {
        #[source]
        cause: serde_json::Error,
    },
    #[error("invalid image config for export: missing {field}")]
    Missing { field: &'static str },
    #[error("base image config is not valid JSON")]
    Base {
        #[source]
        cause: serde_json::Error,
    },
}

/// What is known of a layer beside its digests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct LayerOrigin {
    pub(super) created: Option<Time>,
    pub(super) created_by: Option<String>,
}

/// A time as RFC 3339 text in the form in which Go writes it again, and its instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Time {
    text: String,
    instant: Timestamp,
}

impl Time {
    pub(super) fn parse(text: &str) -> Option<Time> {
        let instant = text.parse::<Timestamp>().ok()?;
        if text.as_bytes().get(10) != Some(&b'T') {
            return None;
        }
        // Go drops trailing zeros of the fraction, and the dot with them, and keeps the offset.
        let (clock, zone) = match text.rfind(['Z', '+', '-']).filter(|at| *at > 10) {
            Some(at) => text.split_at(at),
            None => return None,
        };
        let clock = match clock.split_once('.') {
            Some((seconds, fraction)) => match fraction.trim_end_matches('0') {
                "" => seconds.to_owned(),
                rest => format!("{seconds}.{rest}"),
            },
            None => clock.to_owned(),
        };
        let zone = if zone == "+00:00" || zone == "-00:00" { "Z" } else { zone };
        Some(Time { text: format!("{clock}{zone}"), instant })
    }

    pub(super) fn of(instant: Timestamp) -> Time {
        // jiff prints UTC, and a fraction only as long as it must be.
        Time { text: instant.to_string(), instant }
    }

    pub(super) fn is_after(&self, other: &Time) -> bool {
        self.instant > other.instant
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        Time::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
    }
}

/// One step of how the image came to be (`config.md#properties`, `history`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Time>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    comment: String,
    #[serde(default, skip_serializing_if = "is_false")]
    empty_layer: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize)]
struct RootFs<'l> {
    #[serde(rename = "type")]
    kind: &'static str,
    /// `None` for no layer: a nil slice is `null` in Go.
    diff_ids: Option<&'l [DiffId]>,
}

/// What [`write()`] puts together.
pub(super) struct ConfigParts<'c> {
    /// The frontend's configuration, if there is one.
    pub(super) config: Option<&'c [u8]>,
    /// The configuration of the image that the build started from: its history keeps its times.
    pub(super) base: Option<&'c [u8]>,
    /// Platform of the default configuration.
    pub(super) platform: &'c Platform,
    /// Bottom first.
    pub(super) layers: &'c [(DiffId, LayerOrigin)],
    /// Newer times than this are set back to it.
    pub(super) epoch: Option<Timestamp>,
}

/// The bytes of the configuration.
pub(super) fn write(parts: &ConfigParts<'_>) -> Result<Vec<u8>, InvalidConfig> {
    let default;
    let text = match parts.config {
        Some(text) if !text.is_empty() => text,
        _ => {
            default = default_config(parts.platform).map_err(|cause| InvalidConfig::Json { cause })?;
            default.as_slice()
        }
    };
    let invalid = |cause| InvalidConfig::Json { cause };
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(text).map_err(invalid)?;
    for field in ["os", "architecture"] {
        let value = fields.get(field).map(|v| serde_json::from_str::<Option<String>>(v.get()));
        if value.transpose().map_err(invalid)?.flatten().unwrap_or_default().is_empty() {
            return Err(InvalidConfig::Missing { field });
        }
    }
    let mut history: Option<Vec<History>> = match fields.get("history") {
        Some(value) => serde_json::from_str(value.get()).map_err(invalid)?,
        None => None,
    };
    complete_history(&mut history, parts.layers);
    let epoch = parts.epoch.map(Time::of);
    if let (Some(epoch), Some(history)) = (&epoch, &mut history) {
        clamp_history(history, epoch, parts.base)?;
    }
    let created = created(fields.get("created").map(AsRef::as_ref), history.as_deref(), epoch.as_ref())
        .map_err(invalid)?;
    if let Some(created) = created {
        fields.insert("created".to_owned(), raw(&created).map_err(invalid)?);
    }
    let diff_ids: Vec<DiffId> = parts.layers.iter().map(|(diff_id, _)| *diff_id).collect();
    let root_fs = RootFs { kind: "layers", diff_ids: (!diff_ids.is_empty()).then_some(diff_ids.as_slice()) };
    fields.insert("rootfs".to_owned(), raw(&root_fs).map_err(invalid)?);
    fields.insert("history".to_owned(), raw(&history).map_err(invalid)?);
    json::to_vec(&fields).map_err(invalid)
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(value)
}

fn default_config(platform: &Platform) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Default<'p> {
        #[serde(flatten)]
        platform: &'p Platform,
        config: serde_json::Value,
    }
    let mut config = serde_json::Map::new();
    if platform.os != "windows" {
        config.insert("Env".to_owned(), serde_json::json!([DEFAULT_PATH]));
    }
    config.insert("WorkingDir".to_owned(), "/".into());
    serde_json::to_vec(&Default { platform, config: config.into() })
}

/// Makes as many entries stand for a layer as there are layers, and gives each a time if any has one.
fn complete_history(history: &mut Option<Vec<History>>, layers: &[(DiffId, LayerOrigin)]) {
    let mut entries = history.take().unwrap_or_default();
    let was_listed = !entries.is_empty();
    // Entries that stand for more layers than there are: the lowest ones count.
    let mut counted = 0;
    for entry in entries.iter_mut().filter(|e| !e.empty_layer) {
        if counted == layers.len() {
            entry.empty_layer = true;
        } else {
            counted += 1;
        }
    }
    entries.extend(layers[counted..].iter().map(|(_, origin)| History {
        created: origin.created.clone(),
        created_by: origin.created_by.clone().unwrap_or_else(|| UNKNOWN_AUTHOR.to_owned()),
        comment: COMMENT.to_owned(),
        ..History::default()
    }));
    for (entry, (_, origin)) in entries.iter_mut().filter(|e| !e.empty_layer).zip(layers) {
        if entry.created.is_none() {
            entry.created.clone_from(&origin.created);
        }
    }
    fill_times(&mut entries);
    *history = (was_listed || !entries.is_empty()).then_some(entries);
}

/// Entries without a time get that of the first new layer, or that of the entry before.
fn fill_times(entries: &mut [History]) {
    // The first time after an entry without one belongs to the first new layer. Without such a time
    // it is the last one of all.
    let first_gap = entries.iter().position(|e| e.created.is_none());
    let Some(first_gap) = first_gap else { return };
    let after = entries[first_gap..].iter().find_map(|e| e.created.clone());
    let mut time = after.or_else(|| entries[..first_gap].iter().rev().find_map(|e| e.created.clone()));
    for entry in &mut entries[first_gap..] {
        match &entry.created {
            Some(own) => time = Some(own.clone()),
            None => entry.created.clone_from(&time),
        }
    }
}

/// Sets newer times back to `epoch`, but for the entries that the base image brought.
fn clamp_history(history: &mut [History], epoch: &Time, base: Option<&[u8]>) -> Result<(), InvalidConfig> {
    #[derive(Deserialize)]
    struct Base {
        #[serde(default)]
        history: Option<Vec<History>>,
    }
    let base = match base.filter(|b| !b.is_empty()) {
        Some(text) => {
            let base: Base = serde_json::from_slice(text).map_err(|cause| InvalidConfig::Base { cause })?;
            base.history.unwrap_or_default()
        }
        None => Vec::new(),
    };
    let kept = history.iter().zip(&base).take_while(|(ours, theirs)| ours == theirs).count();
    for entry in &mut history[kept..] {
        if entry.created.as_ref().is_none_or(|t| t.is_after(epoch)) {
            entry.created = Some(epoch.clone());
        }
    }
    Ok(())
}

/// The creation time to write; `None` to leave what stands there.
#[expect(clippy::option_option, reason = "the field is absent, null or a time")]
fn created(
    stated: Option<&RawValue>,
    history: Option<&[History]>,
    epoch: Option<&Time>,
) -> Result<Option<Option<Time>>, serde_json::Error> {
    match (stated, epoch) {
        (Some(stated), Some(epoch)) => {
            let time: Option<Time> = serde_json::from_str(stated.get())?;
            Ok(time.is_some_and(|t| t.is_after(epoch)).then(|| Some(epoch.clone())))
        }
        (Some(_), None) => Ok(None),
        (None, _) => Ok(Some(history.and_then(|h| h.iter().rev().find_map(|e| e.created.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    fn layer(created: Option<&str>) -> (DiffId, LayerOrigin) {
        let created = created.map(|t| Time::parse(t).unwrap());
        (DiffId(Digest::sha256("layer")), LayerOrigin { created, created_by: Some("COPY x".into()) })
    }

    fn written(config: Option<&str>, layers: &[(DiffId, LayerOrigin)], epoch: Option<i64>) -> String {
        let platform = "linux/arm/v7".parse().unwrap();
        let parts = ConfigParts {
            config: config.map(str::as_bytes),
            base: None,
            platform: &platform,
            layers,
            epoch: epoch.map(|s| Timestamp::from_second(s).unwrap()),
        };
        String::from_utf8(write(&parts).unwrap()).unwrap()
    }

    #[test]
    fn without_a_config_the_default_one_is_written() {
        assert_eq!(
            written(None, &[], None),
            r#"{"architecture":"arm","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"created":null,"history":null,"os":"linux","rootfs":{"type":"layers","diff_ids":null},"variant":"v7"}"#
        );
    }

    #[test]
    fn unknown_fields_stay_and_history_is_completed() {
        let id = DiffId(Digest::sha256("layer"));
        assert_eq!(
            written(
                Some(
                    r#"{"os": "linux", "x": {"b": 1.0, "a": "<"}, "architecture": "amd64",
                    "history": [{"created": "2020-01-01T00:00:00.100Z", "created_by": "a & b", "unknown": 1}]}"#
                ),
                &[layer(None), layer(Some("2021-01-01T02:00:00+02:00"))],
                None
            ),
            format!(
                concat!(
                    r#"{{"architecture":"amd64","created":"2021-01-01T02:00:00+02:00","#,
                    r#""history":[{{"created":"2020-01-01T00:00:00.1Z","created_by":"a \u0026 b"}},"#,
                    r#"{{"created":"2021-01-01T02:00:00+02:00","created_by":"COPY x","comment":"buildkit.exporter.image.v0"}}],"#,
                    r#""os":"linux","rootfs":{{"type":"layers","diff_ids":["{0}","{0}"]}},"x":{{"b":1.0,"a":"\u003c"}}}}"#
                ),
                id
            )
        );
    }

    #[test]
    fn an_epoch_clamps_what_is_newer_and_leaves_the_base() {
        let base = r#"{"history":[{"created":"2030-01-01T00:00:00Z","created_by":"base"}]}"#;
        let config = r#"{"os":"linux","architecture":"amd64","created":"2031-01-01T00:00:00Z","history":[
            {"created":"2030-01-01T00:00:00Z","created_by":"base"},
            {"created":"2031-01-01T00:00:00Z","created_by":"new"},
            {"created":"1999-01-01T00:00:00Z","created_by":"old","empty_layer":true}]}"#;
        let platform = Platform::host();
        let bytes = write(&ConfigParts {
            config: Some(config.as_bytes()),
            base: Some(base.as_bytes()),
            platform: &platform,
            layers: &[layer(None), layer(None)],
            epoch: Some(Timestamp::from_second(1_700_000_000).unwrap()),
        })
        .unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let times: Vec<_> =
            value["history"].as_array().unwrap().iter().map(|h| h["created"].as_str().unwrap()).collect();
        assert_eq!(times, ["2030-01-01T00:00:00Z", "2023-11-14T22:13:20Z", "1999-01-01T00:00:00Z"]);
        assert_eq!(value["created"], "2023-11-14T22:13:20Z");
    }

    #[test]
    fn history_for_more_layers_than_there_are_counts_from_the_bottom() {
        let config =
            r#"{"os":"linux","architecture":"amd64","history":[{"created_by":"a"},{"created_by":"b"}]}"#;
        let text = written(Some(config), &[layer(Some("2020-01-01T00:00:00Z"))], None);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["history"][0].get("empty_layer"), None);
        assert_eq!(value["history"][1]["empty_layer"], true);
        assert_eq!(value["history"][1]["created"], "2020-01-01T00:00:00Z", "it takes the time before it");
    }

    #[test]
    fn metadata_commands_take_the_time_of_the_first_new_layer() {
        let config = r#"{"os":"linux","architecture":"amd64","history":[
            {"created":"2020-01-01T00:00:00Z"},{"empty_layer":true},{"created_by":"new"}]}"#;
        let text = written(Some(config), &[layer(None), layer(Some("2024-01-01T00:00:00Z"))], None);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["history"][1]["created"], "2024-01-01T00:00:00Z");
        assert_eq!(value["created"], "2024-01-01T00:00:00Z");
    }

    #[test]
    fn a_config_that_cannot_be_an_image_is_refused() {
        let platform = Platform::host();
        for config in
            ["null", "[]", "{", r#"{"os":"linux"}"#, r#"{"os":"","architecture":"a"}"#, r#"{"os":1}"#]
        {
            let parts = ConfigParts {
                config: Some(config.as_bytes()),
                base: None,
                platform: &platform,
                layers: &[],
                epoch: None,
            };
            assert!(write(&parts).is_err(), "{config}");
        }
    }

    proptest! {
        #[test]
        fn times_keep_their_instant_and_their_offset(
            seconds in 0i64..4_000_000_000, nanos in 0u32..1_000_000_000, zone in "(Z|[+-]0[0-9]:[0-5]0)"
        ) {
            let clock = Timestamp::new(seconds, 0).unwrap().to_string();
            let text = format!("{}.{nanos:09}{zone}", clock.trim_end_matches('Z'));
            let time = Time::parse(&text).unwrap();
            prop_assert_eq!(time.text.parse::<Timestamp>().unwrap(), text.parse::<Timestamp>().unwrap());
            prop_assert_eq!(Time::parse(&time.text), Some(time));
        }

        #[test]
        fn no_bytes_make_it_panic(config in "\\PC{0,80}") {
            let platform = Platform::host();
            let _ = write(&ConfigParts {
                config: Some(config.as_bytes()), base: None, platform: &platform, layers: &[], epoch: None,
            });
        }
    }
}
