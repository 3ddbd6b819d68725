//! [`predicates`]: the files of an attestation. Everything here blocks.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Attestation;
use super::AttestationError;
use super::AttestationKind;
use super::MAX_STATEMENT;
use super::PROVENANCE;
use super::Predicate;
use super::Subject;
use super::SubjectKind;
use super::key;
use crate::fs::Root;

/// A statement as somebody else wrote it.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "predicateType", default)]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<WrittenSubject>>,
    #[serde(default)]
    predicate: serde_json::Value,
}

#[derive(Deserialize)]
struct WrittenSubject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: Option<BTreeMap<String, String>>,
}

/// What an attestation states, each with whether it is the core one of its bundle.
pub(super) fn predicates<R>(
    root: &Root,
    attestation: &Attestation<R>,
) -> Result<Vec<(Predicate, bool)>, AttestationError> {
    let core = attestation.metadata.get(key::CORE);
    let is_core = |path: &str| {
        let name = path.split('.').next().unwrap_or_default();
        core.is_some_and(|core| core.as_ref() == name.as_bytes())
    };
    match attestation.kind {
        AttestationKind::InToto => {
            let path = &attestation.path;
            let text = read(root, path)?;
            let json = if text.is_empty() { "null".to_owned() } else { text };
            let invalid = |error: serde_json::Error| AttestationError::Json {
                path: path.clone(),
                reason: error.to_string(),
            };
            serde_json::from_str::<&RawValue>(&json).map_err(invalid)?;
            let predicate = Predicate {
                path: path.clone(),
                predicate_type: attestation.predicate_type.clone(),
                subjects: attestation.subjects.clone(),
                json,
            };
            Ok(vec![(predicate, is_core(path))])
        }
        AttestationKind::Bundle => {
            let directory = &attestation.path;
            let names = root.read_dir(Path::new(directory))?;
            let statements = names.into_iter().map(|name| {
                let name = name.to_string_lossy();
                let path = match directory.as_str() {
                    "" => name.into_owned(),
                    directory => format!("{}/{name}", directory.trim_end_matches('/')),
                };
                let predicate = statement(root, &path, &attestation.predicate_type)?;
                let is_core = is_core(&path);
                Ok((predicate, is_core))
            });
            statements.collect()
        }
    }
}

/// One statement of a bundle. An empty `required` allows every type.
fn statement(root: &Root, path: &str, required: &str) -> Result<Predicate, AttestationError> {
    let text = read(root, path)?;
    let invalid = |reason: String| AttestationError::Statement { path: path.to_owned(), reason };
    // A list would be taken for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(invalid("it is no object".to_owned()));
    }
    let written: Written = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let predicate_type = written.predicate_type;
    if !required.is_empty() && predicate_type != required {
        let (path, required) = (path.to_owned(), required.to_owned());
        return Err(AttestationError::PredicateType { path, found: predicate_type, required });
    }
    if predicate_type.starts_with(PROVENANCE) {
        return Err(AttestationError::Provenance { path: path.to_owned(), predicate_type });
    }
    let subjects = written.subject.unwrap_or_default().into_iter().map(|subject| Subject {
        kind: SubjectKind::Named,
        name: subject.name,
        digests: subject.digest.unwrap_or_default(),
    });
    let mut predicate = written.predicate;
    predicate.sort_all_objects();
    let (path, subjects) = (path.to_owned(), subjects.collect());
    Ok(Predicate { path, predicate_type, subjects, json: predicate.to_string() })
}

/// A regular file of a state as text, links in the state followed.
fn read(root: &Root, path: &str) -> Result<String, AttestationError> {
    let file = root.open_file(Path::new(path))?;
    let mut bytes = Vec::new();
    let failed = |source| AttestationError::Read { path: path.to_owned(), source };
    file.take(MAX_STATEMENT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_STATEMENT {
        return Err(AttestationError::TooLarge { path: path.to_owned() });
    }
    let invalid = |_| AttestationError::Json { path: path.to_owned(), reason: "it is not UTF-8".to_owned() };
    String::from_utf8(bytes).map_err(invalid)
}
