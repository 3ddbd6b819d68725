//! [`Statement`]: an in-toto statement as it is written.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::Predicate;
use super::SubjectKind;
use crate::export::ExportError;
use crate::export::json;
use crate::oci::Digest;

/// `_type` of what we write (in-toto attestation framework, `spec/v1/statement.md`).
const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// An in-toto statement.
#[derive(Clone, Debug, Serialize)]
pub(in crate::export) struct Statement {
    #[serde(rename = "_type")]
    statement_type: &'static str,
    #[serde(rename = "predicateType")]
    pub(super) predicate_type: String,
    subject: Vec<StatementSubject>,
    predicate: Box<RawValue>,
}

/// Something with a name and digests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::export) struct StatementSubject {
    name: String,
    /// Hexadecimal digits by algorithm.
    digest: BTreeMap<String, String>,
}

impl StatementSubject {
    pub(in crate::export) fn new(name: impl Into<String>, digest: Digest) -> StatementSubject {
        let digest = BTreeMap::from([(digest.algorithm().name().to_owned(), digest.hex())]);
        StatementSubject { name: name.into(), digest }
    }
}

impl Statement {
    pub(super) fn new(predicate: &Predicate, result: &[StatementSubject]) -> Statement {
        let mut subject = Vec::new();
        if predicate.subjects.is_empty() {
            subject.extend_from_slice(result);
        }
        for one in &predicate.subjects {
            match one.kind {
                SubjectKind::Named => {
                    let name = if one.name.is_empty() { "_" } else { &one.name };
                    subject.push(StatementSubject { name: name.to_owned(), digest: one.digests.clone() });
                }
                SubjectKind::Itself => {
                    for itself in result {
                        subject.push(itself.clone());
                        if !one.name.is_empty() && one.name != "_" {
                            subject.push(StatementSubject { name: one.name.clone(), ..itself.clone() });
                        }
                    }
                }
            }
        }
        // The text is valid: it was checked when it was read.
        let raw = RawValue::from_string(predicate.json.clone()).unwrap_or_default();
        Statement {
            statement_type: STATEMENT,
            predicate_type: predicate.predicate_type.clone(),
            subject,
            predicate: raw,
        }
    }

    /// As it is stored in an image.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, ExportError> {
        json::to_vec(self).map_err(ExportError::json)
    }

    /// As it is a file for people.
    pub(in crate::export) fn to_json_indented(&self) -> Result<Vec<u8>, ExportError> {
        let compact = serde_json::to_string(self).map_err(ExportError::json)?;
        Ok(json::indent(&compact).into_bytes())
    }
}
