//! [`AttestationManifest`]: the statements of a platform as a manifest beside that of its image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Statement;
use crate::export::ExportError;
use crate::export::assemble::Document;
use crate::export::assemble::document;
use crate::export::json;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::oci::media_type;

/// What statements are (in-toto attestation framework, `spec/v1/envelope.md`).
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// What the manifest is where it is an artifact.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Of nothing (OCI image specification, `manifest.md`, "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EMPTY_JSON: &[u8] = b"{}";

/// Says by its descriptor of which manifest it speaks.
pub(in crate::export) struct AttestationManifest {
    /// With its platform and annotations, as the index lists it.
    pub(in crate::export) manifest: Document,
    /// The config and the statements.
    pub(in crate::export) attached: Vec<Document>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestOut<'m> {
    schema_version: u32,
    media_type: &'m str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'m str>,
    config: ConfigOut<'m>,
    /// `None` for no layer: a nil slice is `null` in Go.
    layers: Option<Vec<&'m Descriptor>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigOut<'m> {
    #[serde(flatten)]
    descriptor: &'m Descriptor,
    /// The bytes in base64, where they are given in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'m str>,
}

impl AttestationManifest {
    /// `about` is the image's manifest, `artifact` whether it is referred to as an artifact's subject.
    pub(in crate::export) fn new(
        about: &Descriptor,
        statements: &[Statement],
        artifact: bool,
    ) -> Result<AttestationManifest, ExportError> {
        let mut attached = Vec::with_capacity(statements.len() + 1);
        for statement in statements {
            let mut layer = document(IN_TOTO, statement.to_json()?);
            let predicate_type = statement.predicate_type.clone();
            layer.descriptor.annotations.insert("in-toto.io/predicate-type".to_owned(), predicate_type);
            attached.push(layer);
        }
        let config = match artifact {
            true => document(EMPTY, EMPTY_JSON.to_vec()),
            false => document(media_type::OCI_CONFIG, config(&attached)?),
        };
        let layers: Vec<&Descriptor> = attached.iter().map(|layer| &layer.descriptor).collect();
        let subject = || Descriptor::new(about.media_type.clone(), about.digest, about.size);
        let written = ManifestOut {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST,
            artifact_type: artifact.then_some(ARTIFACT),
            config: ConfigOut { descriptor: &config.descriptor, data: artifact.then_some("e30=") },
            layers: (!layers.is_empty()).then_some(layers),
            subject: artifact.then(subject),
        };
        let written = json::to_vec_indented(&written).map_err(ExportError::json)?;
        let mut manifest = document(media_type::OCI_MANIFEST, written);
        manifest.descriptor.platform =
            Some(Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() });
        manifest.descriptor.annotations = BTreeMap::from([
            ("vnd.docker.reference.digest".to_owned(), about.digest.to_string()),
            ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
        ]);
        attached.push(config);
        Ok(AttestationManifest { manifest, attached })
    }
}

/// The config of an image that has the statements for layers.
fn config(layers: &[Document]) -> Result<Vec<u8>, ExportError> {
    #[derive(Serialize)]
    struct Config {
        architecture: &'static str,
        os: &'static str,
        config: BTreeMap<String, String>,
        rootfs: RootFs,
    }
    #[derive(Serialize)]
    struct RootFs {
        #[serde(rename = "type")]
        kind: &'static str,
        diff_ids: Option<Vec<Digest>>,
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
    let config = Config {
        architecture: "unknown",
        os: "unknown",
        config: BTreeMap::new(),
        rootfs: RootFs { kind: "layers", diff_ids: (!diff_ids.is_empty()).then_some(diff_ids) },
    };
    json::to_vec(&config).map_err(ExportError::json)
}
