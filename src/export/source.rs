//! [`ExportSource`]: what a build produced, as exporters see it.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;

use super::ExportError;
use super::attestation::Attestation;
use super::options::parse_epoch;
use crate::cache::ImmutableRef;
use crate::oci::Platform;

/// Metadata keys that frontends set.
mod key {
    pub(super) const PLATFORMS: &str = "refs.platforms";
    pub(super) const CONFIG: &str = "containerimage.config";
    pub(super) const BASE_CONFIG: &str = "containerimage.base.config";
    pub(super) const EPOCH: &str = "source.date.epoch";
    pub(super) const NAME: &str = "image.name";
}

/// The result of a build: one state or one per platform, and what the frontend says of it.
#[derive(Clone, Debug, Default)]
pub struct ExportSource {
    pub refs: ExportRefs,
    pub metadata: BTreeMap<String, Bytes>,
    /// By platform ID.
    pub attestations: BTreeMap<String, Vec<Attestation<ImmutableRef>>>,
}

/// The states of a result. `None` is the empty file system.
#[derive(Clone, Debug)]
pub enum ExportRefs {
    Single(Option<ImmutableRef>),
    /// By the platform IDs that the metadata `refs.platforms` explains.
    Platforms(BTreeMap<String, Option<ImmutableRef>>),
}

impl Default for ExportRefs {
    fn default() -> ExportRefs {
        ExportRefs::Single(None)
    }
}

/// A platform of a result: the ID under which its state and its metadata are found.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct ResultPlatform {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Platform")]
    pub(super) platform: Platform,
}

impl ExportSource {
    /// The states of the platforms.
    pub fn states(&self) -> impl Iterator<Item = &ImmutableRef> {
        let (single, many) = match &self.refs {
            ExportRefs::Single(single) => (single.as_ref(), None),
            ExportRefs::Platforms(many) => (None, Some(many)),
        };
        single.into_iter().chain(many.into_iter().flat_map(|many| many.values().flatten()))
    }

    /// Those, and the states of the attestations.
    pub fn all_states(&self) -> impl Iterator<Item = &ImmutableRef> {
        let stated = self.attestations.values().flatten().filter_map(|one| one.files.as_ref());
        self.states().chain(stated)
    }

    /// Metadata of the result that clients get as response keys.
    pub fn frontend_response(&self) -> BTreeMap<String, String> {
        let theirs = self.metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
        theirs.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
    }

    pub(super) fn is_multi_platform(&self) -> bool {
        matches!(self.refs, ExportRefs::Platforms(_))
    }

    /// The state for a platform ID; the outer `None` if there is none.
    #[expect(clippy::option_option, reason = "not found, the empty file system, a state")]
    pub(super) fn find(&self, id: &str) -> Option<Option<ImmutableRef>> {
        match &self.refs {
            ExportRefs::Single(one) => Some(one.clone()),
            ExportRefs::Platforms(refs) => match refs.get(id) {
                Some(found) => Some(found.clone()),
                None if refs.len() == 1 => refs.values().next().cloned(),
                None => None,
            },
        }
    }

    /// The platforms of the result: those that the frontend says, else the config's, else this node's.
    pub(super) fn platforms(&self) -> Result<Vec<ResultPlatform>, ExportError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(rename = "Platforms", default)]
            platforms: Vec<ResultPlatform>,
        }
        let invalid = |reason: String| ExportError::Metadata { key: key::PLATFORMS.to_owned(), reason };
        if let Some(text) = self.metadata.get(key::PLATFORMS) {
            let list: List = serde_json::from_slice(text).map_err(|e| invalid(e.to_string()))?;
            if list.platforms.is_empty() {
                return Err(invalid("it lists no platform".to_owned()));
            }
            let checked = list.platforms.into_iter().map(|p| {
                if p.id.is_empty() || p.platform.os.is_empty() || p.platform.architecture.is_empty() {
                    return Err(invalid(format!("entry {:?} lacks an ID, os or architecture", p.id)));
                }
                Ok(ResultPlatform { platform: p.platform.normalised(), ..p })
            });
            return checked.collect();
        }
        if self.is_multi_platform() {
            return Err(invalid("it is missing: multiple refs need a mapping of platforms".to_owned()));
        }
        let platform = match self.metadata.get(key::CONFIG) {
            Some(config) => platform_of_config(config)?,
            None => Platform::host(),
        };
        let platform = platform.normalised();
        Ok(vec![ResultPlatform { id: platform.to_string(), platform }])
    }

    pub(super) fn config(&self, platform: &ResultPlatform) -> Option<&Bytes> {
        self.of_platform(key::CONFIG, platform)
    }

    pub(super) fn base_config(&self, platform: &ResultPlatform) -> Option<&Bytes> {
        self.of_platform(key::BASE_CONFIG, platform)
    }

    /// The epoch that the frontend asks for.
    pub(super) fn epoch(&self, platform: Option<&ResultPlatform>) -> Result<Option<Timestamp>, ExportError> {
        let text = match platform {
            Some(platform) => self.of_platform(key::EPOCH, platform),
            None => self.metadata.get(key::EPOCH),
        };
        match text {
            Some(text) => Ok(parse_epoch(key::EPOCH, &String::from_utf8_lossy(text))?),
            None => Ok(None),
        }
    }

    /// The name that the frontend gives the image.
    pub(super) fn name(&self) -> Option<String> {
        self.metadata.get(key::NAME).map(|name| String::from_utf8_lossy(name).into_owned())
    }

    fn of_platform(&self, key: &str, platform: &ResultPlatform) -> Option<&Bytes> {
        self.metadata.get(&format!("{key}/{}", platform.id)).or_else(|| self.metadata.get(key))
    }
}

fn platform_of_config(config: &[u8]) -> Result<Platform, ExportError> {
    let invalid = |reason: String| ExportError::Metadata { key: key::CONFIG.to_owned(), reason };
    let platform: Platform = serde_json::from_slice(config).map_err(|e| invalid(e.to_string()))?;
    if platform.os.is_empty() != platform.architecture.is_empty() {
        return Err(invalid("os and architecture must be specified together".to_owned()));
    }
    Ok(platform)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(refs: ExportRefs, metadata: &[(&str, &str)]) -> ExportSource {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), Bytes::copy_from_slice(v.as_bytes())));
        ExportSource { refs, metadata: metadata.collect(), ..ExportSource::default() }
    }

    #[test]
    fn platforms_come_from_the_frontend_then_the_config_then_the_node() {
        let ids = |s: &ExportSource| -> Vec<(String, String)> {
            s.platforms().unwrap().into_iter().map(|p| (p.id, p.platform.to_string())).collect()
        };
        let list = r#"{"Platforms":[{"ID":"a","Platform":{"architecture":"aarch64","os":"linux"}}]}"#;
        let said = source(ExportRefs::default(), &[("refs.platforms", list)]);
        assert_eq!(ids(&said), [("a".to_owned(), "linux/arm64".to_owned())]);
        let config = r#"{"architecture":"arm","os":"linux","variant":"v6","other":1}"#;
        let configured = source(ExportRefs::default(), &[("containerimage.config", config)]);
        assert_eq!(ids(&configured), [("linux/arm/v6".to_owned(), "linux/arm/v6".to_owned())]);
        assert_eq!(ids(&ExportSource::default())[0].1, Platform::host().to_string());
    }

    #[test]
    fn contradictory_metadata_is_refused_with_its_key() {
        for (refs, metadata) in [
            (ExportRefs::Platforms(BTreeMap::new()), &[][..]),
            (ExportRefs::default(), &[("refs.platforms", "{}")]),
            (ExportRefs::default(), &[("refs.platforms", "[")]),
            (ExportRefs::default(), &[("refs.platforms", r#"{"Platforms":[{"ID":"","Platform":{}}]}"#)]),
            (ExportRefs::default(), &[("containerimage.config", r#"{"os":"linux"}"#)]),
        ] {
            let error = source(refs, metadata).platforms().unwrap_err();
            assert!(matches!(error, ExportError::Metadata { .. }), "{error}");
        }
    }

    #[test]
    fn metadata_of_a_platform_comes_before_that_of_all() {
        let source = source(
            ExportRefs::default(),
            &[("containerimage.config", "all"), ("containerimage.config/a", "a"), ("frontend.x", "y")],
        );
        let platform = |id: &str| ResultPlatform { id: id.to_owned(), platform: Platform::host() };
        assert_eq!(source.config(&platform("a")).unwrap().as_ref(), b"a");
        assert_eq!(source.config(&platform("b")).unwrap().as_ref(), b"all");
        assert_eq!(source.frontend_response()["frontend.x"], "y");
    }
}
