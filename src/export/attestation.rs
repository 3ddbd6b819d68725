//! [`Attestation`]: what a frontend states of a result, and the in-toto statements that it becomes.
//!
//! A frontend gives the predicate of a statement as a file of a state, or a directory of whole statements (a
//! bundle). Exports make statements of them, about the image or about the files that they export:
//!
//! - an image gets a further manifest for each platform that has statements, `manifest.rs`;
//! - a directory or an archive of files gets a file for each statement.
//!
//! What we write is written as BuildKit writes it, byte for byte (in-toto attestation framework, "Statement"
//! v1; BuildKit, `docs/attestations/attestation-storage.md`). Only a fraction in a bundle may be spelled otherwise.
//!
//! # Invariants
//!
//! - No file is read beyond [`MAX_STATEMENT`], and none outside of its state.
//! - Provenance is a statement of the builder: a frontend can't make one.

mod files;
mod manifest;
mod purl;
mod read;
mod statement;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;

use purl::package_url;

use super::ExportError;
use super::source::ResultPlatform;
use crate::cache::ImmutableRef;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::oci::Digest;
use crate::task::Tasks;

pub(super) use files::StatementFiles;
pub(super) use files::StatementNames;
pub(super) use manifest::AttestationManifest;
pub(super) use statement::Statement;
pub(super) use statement::StatementSubject;

/// Bytes of a file that a statement is made of.
const MAX_STATEMENT: u64 = 40 << 20;

/// Predicates that only the builder may state something with.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// Keys of an attestation's metadata.
mod key {
    /// `true` if it is for images only, and only for those that ask for all.
    pub(super) const INLINE_ONLY: &str = "inline-only";
    /// The name, without its extension, of the file in a bundle that comes first.
    pub(super) const CORE: &str = "sbom-core";
}

/// Something that is stated of a platform's result. `R` is what has its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attestation<R> {
    pub kind: AttestationKind,
    pub metadata: BTreeMap<String, Bytes>,
    pub files: Option<R>,
    /// Of the predicate, or of the directory of a bundle.
    pub path: String,
    /// Of a bundle: the one that every statement in it must have, empty for any.
    pub predicate_type: String,
    /// None for the result itself. Those of a bundle are in its statements.
    pub subjects: Vec<Subject>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttestationKind {
    /// The predicate of one in-toto statement.
    InToto,
    /// A directory of in-toto statements.
    Bundle,
}

/// What is stated about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    pub kind: SubjectKind,
    /// Empty for none.
    pub name: String,
    /// Hexadecimal digits by algorithm, whatever algorithm that is.
    pub digests: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubjectKind {
    /// The result, whatever its names and digests are.
    Itself,
    Named,
}

/// An attestation can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum AttestationError {
    #[error("attestation does not have set path")]
    NoPath,
    #[error("attestation {path:?} does not have available content")]
    NoFiles { path: String },
    #[error("frontend may not set provenance attestations: {path:?} is of type {predicate_type}")]
    Provenance { path: String, predicate_type: String },
    #[error("bundle entry {path:?} of type {found:?} does not match required predicate type {required}")]
    PredicateType { path: String, found: String, required: String },
    #[error("attestation {path:?} exceeds {MAX_STATEMENT} bytes")]
    TooLarge { path: String },
    #[error("attestation {path:?} is not valid JSON: {reason}")]
    Json { path: String, reason: String },
    #[error("cannot decode the in-toto statement {path:?}: {reason}")]
    Statement { path: String, reason: String },
    #[error("cannot read in-toto attestation {path:?}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("cannot read in-toto attestation: {0}")]
    Fs(#[from] FsError),
    #[error("cannot read {path:?}, which a statement is about: {source}")]
    Subject { path: String, source: std::io::Error },
    #[error("an attestation can't be a file of the name {name:?}")]
    Name { name: String },
    #[error("duplicate attestation path name {name}")]
    Duplicate { name: String },
    #[error("cannot export attestations with \"oci-mediatypes=false\"")]
    NeedOci,
}

impl<R> Attestation<R> {
    /// The same, with other files.
    pub fn with_files<S>(&self, files: Option<S>) -> Attestation<S> {
        Attestation {
            kind: self.kind,
            metadata: self.metadata.clone(),
            files,
            path: self.path.clone(),
            predicate_type: self.predicate_type.clone(),
            subjects: self.subjects.clone(),
        }
    }

    /// True if it is not for an export that does not ask for all.
    pub(super) fn is_inline_only(&self) -> bool {
        self.metadata.get(key::INLINE_ONLY).is_some_and(|value| value.as_ref() == b"true")
    }

    fn check(&self) -> Result<(), AttestationError> {
        if self.kind == AttestationKind::InToto && self.path.is_empty() {
            return Err(AttestationError::NoPath);
        }
        if self.files.is_none() {
            return Err(AttestationError::NoFiles { path: self.path.clone() });
        }
        if self.kind == AttestationKind::InToto && self.predicate_type.starts_with(PROVENANCE) {
            let (path, predicate_type) = (self.path.clone(), self.predicate_type.clone());
            return Err(AttestationError::Provenance { path, predicate_type });
        }
        Ok(())
    }
}

/// A predicate that was read, and what it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Predicate {
    /// Within the state that it came from.
    path: String,
    predicate_type: String,
    subjects: Vec<Subject>,
    /// Valid JSON.
    json: String,
}

impl Predicate {
    /// The last name of its path.
    pub(super) fn file_name(&self) -> &str {
        self.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }

    /// What it says of `result`, by all of its names.
    pub(super) fn about(&self, result: &[StatementSubject]) -> Statement {
        Statement::new(self, result)
    }
}

/// Reads what is stated of a platform, bundles taken apart.
///
/// Cancellation safe.
pub(super) async fn read(
    ctx: &Ctx,
    tasks: &Tasks,
    attestations: Vec<Attestation<ImmutableRef>>,
) -> Result<Vec<Predicate>, ExportError> {
    for attestation in &attestations {
        attestation.check()?;
    }
    let mut predicates = Vec::new();
    for attestation in attestations {
        let Some(files) = &attestation.files else { continue };
        let tree = files.mount(ctx).await?;
        let reading = tasks.spawn_blocking("read attestation", move || {
            let root = crate::fs::Root::open(tree.path())?;
            read::predicates(&root, &attestation)
        });
        predicates.extend(ctx.run(reading).await???);
    }
    // What is core comes first, and otherwise the order stays.
    predicates.sort_by_key(|(_, is_core)| !is_core);
    Ok(predicates.into_iter().map(|(predicate, _)| predicate).collect())
}

/// The names and the digest of an image for one platform, as statements have them.
pub(super) fn image_subjects(
    names: &str,
    platform: &ResultPlatform,
    digest: Digest,
) -> Result<Vec<StatementSubject>, ExportError> {
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    let subject = |name: &str| {
        let name = package_url(&name.parse()?, &platform.platform);
        Ok(StatementSubject::new(name, digest))
    };
    names.map(subject).collect()
}
