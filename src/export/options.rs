//! What a client asks of an image export: the attributes of the `image`, `oci` and `docker` exporters.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::annotations::AnnotationsByPlatform;
use super::annotations::InvalidAnnotation;
use super::source::ExportSource;
use crate::archive;

/// Attributes that all three exporters know.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Comma-separated names; `*` stands for the frontend's.
    pub name: String,
    /// `None` leaves it to the default of the compatibility version.
    pub oci_media_types: Option<bool>,
    pub oci_artifact: Option<bool>,
    pub attestation_inline: bool,
    pub compression: Compression,
    /// Of layers that are made, in the compression's own scale.
    pub compression_level: Option<i32>,
    pub force_compression: bool,
    pub prefer_nondistributable: bool,
    /// `Some(None)` for an epoch given as empty: the frontend's doesn't count then.
    pub epoch: Option<Option<Timestamp>>,
    pub rewrite_timestamp: bool,
    pub annotations: AnnotationsByPlatform,
}

/// How layers are to be compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    Uncompressed,
    Gzip,
    Estargz,
    Zstd,
}

impl Compression {
    fn parse(text: &str) -> Option<Compression> {
        match text {
            "uncompressed" => Some(Compression::Uncompressed),
            "gzip" => Some(Compression::Gzip),
            "estargz" => Some(Compression::Estargz),
            "zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The value of the `compression` attribute.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Uncompressed => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Estargz => "estargz",
            Compression::Zstd => "zstd",
        }
    }

    /// What layers are made in; `None` for what can't be made.
    pub(super) fn archive(self) -> Option<archive::Compression> {
        match self {
            Compression::Uncompressed => Some(archive::Compression::Uncompressed),
            Compression::Gzip => Some(archive::Compression::Gzip),
            Compression::Estargz => None,
            Compression::Zstd => Some(archive::Compression::Zstd),
        }
    }

    /// True if only OCI has a media type for it.
    fn needs_oci(self) -> bool {
        self == Compression::Estargz
    }
}

/// Attributes of an exporter are wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvalidOptions {
    #[error("non-bool value specified for {key}: {value:?}")]
    Bool { key: String, value: String },
    #[error("non-integer value {value:?} specified for {key}")]
    Integer { key: String, value: String },
    #[error("unsupported layer compression type {value:?}: use uncompressed, gzip, estargz or zstd")]
    Compression { value: String },
    #[error("invalid compression-level: {compression} has no level {level}")]
    Level { compression: archive::Compression, level: i32 },
    #[error("invalid {key}: {value:?} is not a number of seconds")]
    Epoch { key: String, value: String },
    #[error("invalid attestation-prefix {value:?}: it is the beginning of a file's name")]
    AttestationPrefix { value: String },
    #[error("invalid local exporter mode {value:?}: use copy or delete")]
    Mode { value: String },
    #[error(transparent)]
    Annotation(#[from] InvalidAnnotation),
    #[error("exporter option {option:?} conflicts with {with:?}")]
    Conflict { option: String, with: String },
}

impl ImageOptions {
    /// Takes the attributes that it knows out of `attributes` and leaves the others.
    pub fn parse(
        attributes: BTreeMap<String, String>,
        inline_attestations: bool,
    ) -> Result<(ImageOptions, BTreeMap<String, String>), InvalidOptions> {
        let mut options = ImageOptions {
            name: String::new(),
            oci_media_types: None,
            oci_artifact: None,
            attestation_inline: inline_attestations,
            compression: Compression::Gzip,
            compression_level: None,
            force_compression: false,
            prefer_nondistributable: false,
            epoch: None,
            rewrite_timestamp: false,
            annotations: AnnotationsByPlatform::default(),
        };
        let mut rest = BTreeMap::new();
        for (key, value) in attributes {
            match key.as_str() {
                "name" => options.name = value,
                "oci-mediatypes" => options.oci_media_types = Some(parse_bool(&key, &value)?),
                "oci-artifact" => options.oci_artifact = Some(parse_bool(&key, &value)?),
                "attestation-inline" => options.attestation_inline = parse_bool(&key, &value)?,
                "compression" => {
                    options.compression =
                        Compression::parse(&value).ok_or(InvalidOptions::Compression { value })?;
                }
                "force-compression" => options.force_compression = parse_flag(&key, &value)?,
                "compression-level" => match value.parse::<i32>() {
                    Ok(level) => options.compression_level = Some(level),
                    Err(_) => return Err(InvalidOptions::Integer { key, value }),
                },
                "prefer-nondist-layers" => options.prefer_nondistributable = parse_bool(&key, &value)?,
                "source-date-epoch" => options.epoch = Some(parse_epoch(&key, &value)?),
                "rewrite-timestamp" => options.rewrite_timestamp = parse_bool(&key, &value)?,
                _ => {
                    if !options.annotations.insert(&key, &value)? {
                        rest.insert(key, value);
                    }
                }
            }
        }
        if options.oci_media_types.is_some() {
            options.validate()?;
        }
        if let (Some(compression), Some(level)) = (options.compression.archive(), options.compression_level)
            && !compression.has_level(level)
        {
            return Err(InvalidOptions::Level { compression, level });
        }
        Ok((options, rest))
    }

    /// Settles what was left to the defaults. `oci` is the default for the media types.
    pub(super) fn settle(&mut self, oci: bool, artifact: bool) -> Result<(), InvalidOptions> {
        let oci = *self.oci_media_types.get_or_insert(oci);
        self.oci_artifact.get_or_insert(artifact && oci);
        self.validate()
    }

    pub(super) fn is_oci(&self) -> bool {
        self.oci_media_types == Some(true)
    }

    /// Its names, the frontend's where they are asked for.
    pub(super) fn name_of(&self, source: &ExportSource) -> String {
        match self.name.as_str() {
            "*" => source.name().unwrap_or_else(|| "*".to_owned()),
            name => name.to_owned(),
        }
    }

    fn validate(&self) -> Result<(), InvalidOptions> {
        let conflict =
            |option: String| InvalidOptions::Conflict { option, with: "oci-mediatypes=false".into() };
        if self.is_oci() {
            return Ok(());
        }
        if self.compression.needs_oci() {
            return Err(conflict(format!("compression={}", self.compression.name())));
        }
        if self.oci_artifact == Some(true) {
            return Err(conflict("oci-artifact=true".to_owned()));
        }
        Ok(())
    }
}

/// Go's spellings of a boolean.
pub(super) fn parse_bool(key: &str, value: &str) -> Result<bool, InvalidOptions> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(InvalidOptions::Bool { key: key.to_owned(), value: value.to_owned() }),
    }
}

/// As [`parse_bool`], with the empty value for true.
pub(super) fn parse_flag(key: &str, value: &str) -> Result<bool, InvalidOptions> {
    if value.is_empty() { Ok(true) } else { parse_bool(key, value) }
}

/// Seconds since 1970; empty for none.
pub(super) fn parse_epoch(key: &str, value: &str) -> Result<Option<Timestamp>, InvalidOptions> {
    if value.is_empty() {
        return Ok(None);
    }
    let invalid = || InvalidOptions::Epoch { key: key.to_owned(), value: value.to_owned() };
    let seconds = value.parse::<i64>().map_err(|_| invalid())?;
    Timestamp::from_second(seconds).map(Some).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        attributes: &[(&str, &str)],
    ) -> Result<(ImageOptions, BTreeMap<String, String>), InvalidOptions> {
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ImageOptions::parse(attributes, true)
    }

    #[test]
    fn what_is_known_is_taken_and_the_rest_is_left() {
        let (options, rest) = parse(&[
            ("name", "a,b"),
            ("oci-mediatypes", "f"),
            ("force-compression", ""),
            ("source-date-epoch", "1700000000"),
            ("annotation-manifest.x", "y"),
            ("push", ""),
            ("other", "z"),
        ])
        .unwrap();
        assert_eq!(options.name, "a,b");
        assert_eq!(options.oci_media_types, Some(false));
        assert!(options.force_compression);
        assert_eq!(options.epoch, Some(Some(Timestamp::from_second(1_700_000_000).unwrap())));
        assert_eq!(options.annotations.of(None).manifest["x"], "y");
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["other", "push"]);
    }

    #[test]
    fn wrong_and_contradictory_values_are_refused() {
        for attributes in [
            &[("oci-mediatypes", "")][..],
            &[("oci-mediatypes", "yes")],
            &[("compression", "lz4")],
            &[("compression-level", "high")],
            &[("compression-level", "10")],
            &[("compression", "zstd"), ("compression-level", "23")],
            &[("source-date-epoch", "soon")],
            &[("source-date-epoch", "9999999999999999")],
            &[("annotation-foo.x", "y")],
            &[("oci-mediatypes", "false"), ("compression", "estargz")],
            &[("oci-mediatypes", "false"), ("oci-artifact", "true")],
        ] {
            assert!(parse(attributes).is_err(), "{attributes:?}");
        }
    }

    #[test]
    fn a_level_is_of_the_compression_that_is_asked_for() {
        let (options, _) = parse(&[("compression-level", "19"), ("compression", "zstd")]).unwrap();
        assert_eq!(options.compression_level, Some(19));
        let (options, _) = parse(&[("compression-level", "19"), ("compression", "uncompressed")]).unwrap();
        assert_eq!(options.compression_level, Some(19), "it counts for nothing");
    }

    #[test]
    fn defaults_settle_what_was_not_said() {
        let (mut options, _) = parse(&[]).unwrap();
        options.settle(true, true).unwrap();
        assert!(options.is_oci() && options.oci_artifact == Some(true));
        let (mut options, _) = parse(&[("compression", "estargz")]).unwrap();
        assert!(options.settle(false, false).is_err(), "Docker has no media type for it");
    }
}
