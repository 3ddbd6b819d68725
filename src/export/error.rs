//! [`ExportError`]: why an export failed.

use super::attestation::AttestationError;
use super::config::InvalidConfig;
use super::options::InvalidOptions;
use super::push::PushFailure;
use crate::archive::ArchiveError;
use crate::cache::CacheError;
use crate::content::ContentError;
use crate::content::FetchError;
use crate::ctx::Cancelled;
use crate::db::DbError;
use crate::oci::InvalidReference;
use crate::session::SessionError;
use crate::session::fsutil::TransferError;
use crate::task::TaskFailed;

/// A result could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("invalid {key} from the frontend: {reason}")]
    Metadata { key: String, reason: String },
    #[error("failed to find ref for ID {id}")]
    MissingRef { id: String },
    #[error("cannot export {platforms} platforms without multi-platform enabled")]
    SinglePlatform { platforms: usize },
    #[error("invalid annotation: no platform {platform} found in source")]
    AnnotationPlatform { platform: String },
    #[error("cannot export annotations with \"oci-mediatypes=false\"")]
    AnnotationsNeedOci,
    #[error(transparent)]
    Attestation(#[from] AttestationError),
    #[error("index annotations not supported for single platform export")]
    NoIndex,
    #[error("docker exporter does not currently support exporting manifest lists")]
    DockerIndex,
    #[error("can't push tagged ref {name} by digest")]
    TaggedByDigest { name: String },
    #[error(transparent)]
    Name(#[from] InvalidReference),
    #[error("failed to push {name}: {}", without(name, source))]
    Push { name: String, source: PushFailure },
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The client has taken a part of the archive and takes no other one in its place.
    #[error("the archive broke off, build again: {0}")]
    BrokeOff(FetchError),
    #[error("the client did not take the export: {0}")]
    Session(#[from] SessionError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Cache(CacheError),
    #[error("the client did not take the files: {0}")]
    Transfer(TransferError),
    /// Two platforms, or the result and what is stated of it, have a file of one name.
    #[error("{0}")]
    Clash(TransferError),
    #[error("the files can't be put into an archive: {0}")]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("a document of the image can't be written or read")]
    Json {
        #[source]
        cause: serde_json::Error,
    },
    #[error("cancelled")]
    Cancelled,
}

/// What went wrong with `name`, which is told already.
fn without(name: &str, source: &PushFailure) -> String {
    let text = source.to_string();
    let rest = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
    rest.map(str::to_owned).unwrap_or(text)
}

impl ExportError {
    pub(super) fn json(cause: serde_json::Error) -> ExportError {
        ExportError::Json { cause }
    }

    /// True if the export ended because its request did.
    pub fn is_cancelled(&self) -> bool {
        match self {
            ExportError::Cancelled
            | ExportError::Fetch(FetchError::Cancelled { .. })
            | ExportError::BrokeOff(FetchError::Cancelled { .. })
            | ExportError::Cache(CacheError::Cancelled) => true,
            ExportError::Push { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }
}

impl From<TransferError> for ExportError {
    fn from(error: TransferError) -> ExportError {
        match error {
            TransferError::Clash { .. } => ExportError::Clash(error),
            error => ExportError::Transfer(error),
        }
    }
}

impl From<CacheError> for ExportError {
    fn from(error: CacheError) -> ExportError {
        match error {
            CacheError::Cancelled => ExportError::Cancelled,
            CacheError::Fetch(error) => ExportError::Fetch(error),
            CacheError::Content(error) => ExportError::Content(error),
            CacheError::Db(error) => ExportError::Db(error),
            error => ExportError::Cache(error),
        }
    }
}

impl From<Cancelled> for ExportError {
    fn from(_: Cancelled) -> ExportError {
        ExportError::Cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_name_are_not_the_clients_fault() {
        let clash =
            TransferError::Clash { path: "f".into(), one: "linux/amd64".into(), other: "linux/arm64".into() };
        let told = "cannot overwrite f from linux/arm64 with linux/amd64 when split option is disabled";
        assert_eq!(ExportError::from(clash).to_string(), told);
        assert!(ExportError::from(TransferError::Ended).to_string().starts_with("the client did not take"));
    }
}
