//! Annotations for the documents of an image, from exporter attributes and frontend metadata.
//!
//! A key is `annotation[-<type>][[<platform>]].<key>`; the type is one of `index`,
//! `index-descriptor`, `manifest` (the default) and `manifest-descriptor`.

use std::collections::BTreeMap;

use crate::oci::InvalidPlatform;
use crate::oci::Platform;

/// The documents that have annotations.
const KINDS: [&str; 4] = ["index", "index-descriptor", "manifest", "manifest-descriptor"];

/// Annotations of one platform, or of all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Annotations {
    pub index: BTreeMap<String, String>,
    pub index_descriptor: BTreeMap<String, String>,
    pub manifest: BTreeMap<String, String>,
    pub manifest_descriptor: BTreeMap<String, String>,
}

/// Annotations by platform (`os/architecture[/variant]`); the empty name stands for all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnnotationsByPlatform(BTreeMap<String, Annotations>);

/// A key starts like an annotation's and is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidAnnotation {
    #[error("annotation {key:?} has the unknown type {kind:?}")]
    Type { key: String, kind: String },
    #[error("annotation {key:?} names no platform")]
    Platform {
        key: String,
        #[source]
        cause: InvalidPlatform,
    },
}

/// A key, taken apart.
struct Key<'k> {
    kind: &'k str,
    platform: Option<&'k str>,
    name: &'k str,
}

impl<'k> Key<'k> {
    /// `None` for a key that is not of an annotation at all.
    fn split(key: &'k str) -> Option<Key<'k>> {
        let rest = key.strip_prefix("annotation")?;
        let lower = |c: char| c.is_ascii_lowercase() || c == '-';
        let (kind, rest) = match rest.strip_prefix('-') {
            Some(rest) => {
                let end = rest.find(|c| !lower(c)).unwrap_or(rest.len());
                if end == 0 {
                    return None;
                }
                rest.split_at(end)
            }
            None => ("manifest", rest),
        };
        let (platform, rest) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (platform, rest) = rest.split_once(']')?;
                let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '-');
                if platform.is_empty() || !platform.chars().all(legal) {
                    return None;
                }
                (Some(platform), rest)
            }
            None => (None, rest),
        };
        let name = rest.strip_prefix('.')?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        Some(Key { kind, platform, name })
    }
}

impl AnnotationsByPlatform {
    /// Takes `key` in if it is an annotation's; `false` if it is something else.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<bool, InvalidAnnotation> {
        let Some(Key { kind, platform, name }) = Key::split(key) else { return Ok(false) };
        let platform = match platform {
            None => String::new(),
            Some(text) => text
                .parse::<Platform>()
                .map_err(|cause| InvalidAnnotation::Platform { key: key.to_owned(), cause })?
                .to_string(),
        };
        if !KINDS.contains(&kind) {
            return Err(InvalidAnnotation::Type { key: key.to_owned(), kind: kind.to_owned() });
        }
        let entry = self.0.entry(platform).or_default();
        let map = match kind {
            "index" => &mut entry.index,
            "index-descriptor" => &mut entry.index_descriptor,
            "manifest-descriptor" => &mut entry.manifest_descriptor,
            _ => &mut entry.manifest,
        };
        map.insert(name.to_owned(), value.to_owned());
        Ok(true)
    }

    /// Adds those of `other`, which win.
    pub fn merge(&mut self, other: AnnotationsByPlatform) {
        for (platform, theirs) in other.0 {
            let ours = self.0.entry(platform).or_default();
            ours.index.extend(theirs.index);
            ours.index_descriptor.extend(theirs.index_descriptor);
            ours.manifest.extend(theirs.manifest);
            ours.manifest_descriptor.extend(theirs.manifest_descriptor);
        }
    }

    /// What applies to `platform`. Index annotations count whatever platform they were given for.
    pub fn of(&self, platform: Option<&Platform>) -> Annotations {
        let mut result = Annotations::default();
        for each in self.0.values() {
            result.index.extend(each.index.clone());
            result.index_descriptor.extend(each.index_descriptor.clone());
        }
        let named = platform.map(Platform::to_string);
        for name in [Some(String::new()), named].into_iter().flatten() {
            if let Some(each) = self.0.get(&name) {
                result.manifest.extend(each.manifest.clone());
                result.manifest_descriptor.extend(each.manifest_descriptor.clone());
            }
        }
        result
    }

    /// Platforms that annotations were given for, without the one that stands for all.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter(|p| !p.is_empty()).map(String::as_str)
    }

    /// True if any stands outside of manifests, where only OCI documents have a place for them.
    pub fn need_oci(&self) -> bool {
        self.0.values().any(|a| {
            !(a.index.is_empty() && a.index_descriptor.is_empty() && a.manifest_descriptor.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_form_of_a_key_finds_its_document() {
        let mut all = AnnotationsByPlatform::default();
        for (key, value) in [
            ("annotation.a", "1"),
            ("annotation-manifest.org.x/y", "2"),
            ("annotation[linux/arm64].a", "3"),
            ("annotation-manifest-descriptor[linux/arm64/v8].d", "4"),
            ("annotation-index.i", "5"),
            ("annotation-index-descriptor[linux/amd64].j", "6"),
        ] {
            assert_eq!(all.insert(key, value), Ok(true), "{key}");
        }
        let arm = all.of(Some(&"linux/arm64".parse().unwrap()));
        assert_eq!(arm.manifest, map(&[("a", "3"), ("org.x/y", "2")]));
        assert_eq!(arm.manifest_descriptor, map(&[("d", "4")]));
        assert_eq!(arm.index, map(&[("i", "5")]));
        assert_eq!(arm.index_descriptor, map(&[("j", "6")]));
        let amd = all.of(Some(&"linux/amd64".parse().unwrap()));
        assert_eq!(amd.manifest, map(&[("a", "1"), ("org.x/y", "2")]));
        assert!(all.need_oci());
        assert_eq!(all.platforms().collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
    }

    #[test]
    fn what_is_no_annotation_is_left_and_a_wrong_one_is_refused() {
        let mut all = AnnotationsByPlatform::default();
        for key in [
            "annotations.a",
            "annotation",
            "annotation.",
            "annotation-.a",
            "annotation[].a",
            "annotation[a.a",
            "annotation. a",
            "annotation-manifest",
            "name",
        ] {
            assert_eq!(all.insert(key, ""), Ok(false), "{key}");
        }
        assert!(matches!(all.insert("annotation-foo.a", ""), Err(InvalidAnnotation::Type { .. })));
        assert!(matches!(all.insert("annotation[linux].a", ""), Err(InvalidAnnotation::Platform { .. })));
        assert_eq!(all, AnnotationsByPlatform::default());
    }

    proptest! {
        #[test]
        fn no_key_makes_the_parser_panic(key in "annotation[\\PC]{0,30}") {
            let _ = AnnotationsByPlatform::default().insert(&key, "");
        }
    }
}
