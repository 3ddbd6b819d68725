//! Errors of the solver as gRPC tells them: a code, a text for people, and typed details that
//! BuildKit's Go client turns into its own error types.
//!
//! Details travel as JSON inside of `Any`, the outermost first, under the type URLs of BuildKit's
//! `solver/errdefs`.

use std::error::Error;
use std::io;

use bytes::Bytes;
use prost::Message as _;
use serde::Serialize;
use tonic::Code;
use tonic::Status;

use super::error::Cause;
use super::error::Rejected;
use super::error::SolveError;
use super::error::SourceLocation;
use super::jobs::JobExists;
use super::jobs::NoSuchJob;
use crate::cache::CacheError;
use crate::content::ContentError;
use crate::content::FetchError;
use crate::db::DbError;
use crate::ops::OpError;
use crate::ops::SourceError;
use crate::ops::VertexDigest;
use crate::ops::llb::LlbError;
use crate::progress::SourceFile;
use crate::progress::SourcePosition;
use crate::progress::SourceRange;
use crate::proto::errdefs;
use crate::proto::pb;
use crate::proto::rpc;
use crate::registry::RegistryError;
use crate::snapshot::SnapshotError;
use crate::task::TaskFailed;

const TYPE_PREFIX: &str = "github.com/moby/buildkit/";
/// What clients look for to tell a cancellation from a failure.
const CANCELLED: &str = "context canceled";

impl From<SolveError> for Status {
    fn from(error: SolveError) -> Status {
        Status::from(Rejected::from(error))
    }
}

impl From<Rejected> for Status {
    fn from(rejected: Rejected) -> Status {
        let code = Code::from_i32(rejected.code);
        // An error that says it is none must still be one.
        let code = if code == Code::Ok { Code::Unknown } else { code };
        if rejected.details.is_empty() {
            return Status::new(code, rejected.message);
        }
        let details = status_message(&rejected).encode_to_vec();
        Status::with_details(code, rejected.message, details.into())
    }
}

impl From<NoSuchJob> for Status {
    fn from(error: NoSuchJob) -> Status {
        Status::not_found(error.to_string())
    }
}

impl From<JobExists> for Status {
    fn from(error: JobExists) -> Status {
        Status::already_exists(error.to_string())
    }
}

impl From<SolveError> for Rejected {
    fn from(error: SolveError) -> Rejected {
        let error = match error {
            SolveError::Frontend(rejected) => return rejected,
            error => error,
        };
        let (code, message) = if error.is_cancelled() {
            (Code::Cancelled, CANCELLED.to_owned())
        } else {
            (code(&error), error.to_string())
        };
        let mut details = Vec::new();
        details.extend(error.locations().iter().filter_map(source_detail));
        details.extend(error.vertex().and_then(vertex_detail));
        Rejected { code: code as i32, message, details }
    }
}

impl From<rpc::Status> for Rejected {
    fn from(status: rpc::Status) -> Rejected {
        let details = status.details.into_iter().map(|any| (any.type_url, any.value.into()));
        Rejected { code: status.code, message: status.message, details: details.collect() }
    }
}

/// As it travels in `Return` and lies in the build history.
pub fn status_message(rejected: &Rejected) -> rpc::Status {
    let any = |(type_url, value): &(String, Bytes)| prost_types::Any {
        type_url: type_url.clone(),
        value: value.to_vec(),
    };
    rpc::Status {
        code: rejected.code,
        message: rejected.message.clone(),
        details: rejected.details.iter().map(any).collect(),
    }
}

fn code(error: &SolveError) -> Code {
    match error {
        SolveError::Cancelled => Code::Cancelled,
        SolveError::Definition { source, .. } => match source {
            LlbError::Unsupported { .. } | LlbError::UnknownKind { .. } => Code::Unimplemented,
            LlbError::TooLarge { .. } => Code::ResourceExhausted,
            _ => Code::InvalidArgument,
        },
        SolveError::Vertex { source, .. } => match &source.cause {
            Cause::Op(error) => op_code(error),
            Cause::Index(DbError::NoSpace) => Code::ResourceExhausted,
            Cause::Index(_) | Cause::Panicked(_) | Cause::Output { .. } | Cause::CacheMap { .. } => {
                Code::Internal
            }
        },
        SolveError::DefinitionAndFrontend => Code::InvalidArgument,
        SolveError::NoSuchFrontend { .. } => Code::Unimplemented,
        SolveError::NoSuchRef { .. } => Code::NotFound,
        SolveError::Returned => Code::FailedPrecondition,
        SolveError::Frontend(rejected) => Code::from_i32(rejected.code),
    }
}

fn op_code(error: &OpError) -> Code {
    match error {
        OpError::Cancelled => Code::Cancelled,
        OpError::Unsupported { .. } => Code::Unimplemented,
        OpError::InputGone { source, .. } | OpError::Failed { source } => code_of(source.as_ref()),
    }
}

/// The code that the causes of an error call for; the default of the protocol is `Unknown`.
pub fn code_of(error: &(dyn Error + 'static)) -> Code {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = own_code(error) {
            return code;
        }
        next = error.source();
    }
    Code::Unknown
}

/// `#[error(transparent)]` hides an error from `source`, so that enums are looked into as well.
fn own_code(error: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(error) = error.downcast_ref::<SourceError>() {
        return match error {
            SourceError::Registry(inner) => own_code(inner),
            SourceError::Fetch(inner) => own_code(inner),
            SourceError::Content(inner) => own_code(inner),
            SourceError::Db(inner) => own_code(inner),
            SourceError::Task(inner) => own_code(inner),
            SourceError::NotLocal { .. } => Some(Code::NotFound),
            SourceError::Cancelled => Some(Code::Cancelled),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<CacheError>() {
        return match error {
            CacheError::Db(inner) => own_code(inner),
            CacheError::Content(inner) => own_code(inner),
            CacheError::Fetch(inner) => own_code(inner),
            CacheError::Task(inner) => own_code(inner),
            CacheError::Snapshot(SnapshotError::NoSpace) => Some(Code::ResourceExhausted),
            CacheError::Snapshot(_) => Some(Code::Internal),
            CacheError::Cancelled => Some(Code::Cancelled),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return match error {
            RegistryError::NotFound { .. } => Some(Code::NotFound),
            RegistryError::Unauthorized { .. } => Some(Code::Unauthenticated),
            RegistryError::Forbidden { .. } => Some(Code::PermissionDenied),
            RegistryError::Cancelled { .. } => Some(Code::Cancelled),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<FetchError>() {
        return match error {
            FetchError::Gone { .. } => Some(Code::NotFound),
            FetchError::NoSpace { .. } => Some(Code::ResourceExhausted),
            FetchError::Store { .. } => Some(Code::Internal),
            FetchError::Cancelled { .. } => Some(Code::Cancelled),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<ContentError>() {
        let full = matches!(error, ContentError::NoSpace | ContentError::Db { source: DbError::NoSpace });
        return Some(if full { Code::ResourceExhausted } else { Code::Internal });
    }
    if let Some(error) = error.downcast_ref::<DbError>() {
        let full = matches!(error, DbError::NoSpace);
        return Some(if full { Code::ResourceExhausted } else { Code::Internal });
    }
    if error.is::<TaskFailed>() {
        return Some(Code::Internal);
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Some(Code::ResourceExhausted)
        }
        _ => None,
    }
}

fn vertex_detail(vertex: VertexDigest) -> Option<(String, Bytes)> {
    detail("errdefs.Vertex+json", &errdefs::Vertex { digest: vertex.to_string() })
}

fn source_detail(location: &SourceLocation) -> Option<(String, Bytes)> {
    let info = source_info(&location.file);
    let ranges = location.ranges.iter().map(range).collect();
    detail("errdefs.Source+json", &errdefs::Source { info: Some(info), ranges })
}

fn detail<T: Serialize>(name: &str, value: &T) -> Option<(String, Bytes)> {
    let json = serde_json::to_vec(value).ok()?;
    Some((format!("{TYPE_PREFIX}{name}"), json.into()))
}

/// A source file as clients get it, in error details and warnings.
pub fn source_info(file: &SourceFile) -> pb::SourceInfo {
    pb::SourceInfo {
        filename: file.filename.clone(),
        data: file.data.clone(),
        definition: file.definition.as_ref().and_then(|bytes| pb::Definition::decode(bytes.clone()).ok()),
        language: file.language.clone(),
    }
}

/// A source file as a frontend sends it.
pub fn source_file(info: pb::SourceInfo) -> SourceFile {
    SourceFile {
        filename: info.filename,
        language: info.language,
        data: info.data,
        definition: info.definition.map(|definition| definition.encode_to_vec().into()),
    }
}

/// Lines of a source file as clients get them.
pub fn range(range: &SourceRange) -> pb::Range {
    let position = |p: SourcePosition| pb::Position { line: p.line, character: p.character };
    pb::Range { start: Some(position(range.start)), end: Some(position(range.end)) }
}

/// Lines of a source file as a frontend sends them.
pub fn source_range(range: &pb::Range) -> SourceRange {
    let position = |p: &Option<pb::Position>| {
        let p = p.unwrap_or_default();
        SourcePosition { line: p.line, character: p.character }
    };
    SourceRange { start: position(&range.start), end: position(&range.end) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::error::VertexError;
    use super::*;
    use crate::oci::Digest;

    fn failed(source: impl Error + Send + Sync + 'static) -> SolveError {
        let cause = Cause::Op(OpError::failed(source));
        let vertex = VertexDigest(Digest::sha256("v"));
        let file = SourceFile {
            filename: "Dockerfile".to_owned(),
            language: "Dockerfile".to_owned(),
            data: "FROM x".into(),
            definition: None,
        };
        let at = |line| SourcePosition { line, character: 0 };
        let ranges = vec![SourceRange { start: at(1), end: at(2) }];
        let locations = vec![SourceLocation { file: Arc::new(file), ranges }];
        SolveError::Vertex {
            source: Arc::new(VertexError { vertex, name: "x".to_owned(), cause }),
            locations,
        }
    }

    fn details(status: &Status) -> Vec<(String, serde_json::Value)> {
        let message = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(message.code, status.code() as i32);
        assert_eq!(message.message, status.message());
        let one = |any: prost_types::Any| (any.type_url, serde_json::from_slice(&any.value).unwrap());
        message.details.into_iter().map(one).collect()
    }

    #[test]
    fn a_failed_vertex_names_itself_and_its_place_in_the_source() {
        let status = Status::from(failed(io::Error::other("broken")));
        assert_eq!(status.code(), Code::Unknown);
        let details = details(&status);
        let names: Vec<&str> = details.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["github.com/moby/buildkit/errdefs.Source+json", "github.com/moby/buildkit/errdefs.Vertex+json"]
        );
        let source = serde_json::json!({
            "info": {"filename": "Dockerfile", "data": "RlJPTSB4", "language": "Dockerfile"},
            "ranges": [{"start": {"line": 1}, "end": {"line": 2}}],
        });
        assert_eq!(details[0].1, source);
        assert_eq!(details[1].1, serde_json::json!({"digest": Digest::sha256("v").to_string()}));
    }

    #[test]
    fn the_code_follows_from_the_deepest_cause_that_has_one() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let digest = Digest::sha256("b");
        for (error, code) in [
            (failed(io::Error::other("x")), Code::Unknown),
            (failed(full()), Code::ResourceExhausted),
            (failed(ContentError::NoSpace), Code::ResourceExhausted),
            (failed(FetchError::Gone { digest, tried: Vec::new() }), Code::NotFound),
            (failed(SourceError::Fetch(FetchError::NoSpace { digest })), Code::ResourceExhausted),
            (failed(SourceError::Db(DbError::Closed)), Code::Internal),
            (SolveError::NoSuchRef { id: "r".to_owned() }, Code::NotFound),
            (SolveError::NoSuchFrontend { name: "f".to_owned() }, Code::Unimplemented),
            (SolveError::DefinitionAndFrontend, Code::InvalidArgument),
        ] {
            assert_eq!(Status::from(error.clone()).code(), code, "{error:?}");
        }
    }

    #[test]
    fn a_cancelled_solve_says_so_in_the_words_of_go() {
        for error in [SolveError::Cancelled, {
            let cause = Cause::Op(OpError::Cancelled);
            let vertex = VertexDigest(Digest::sha256("v"));
            let source = Arc::new(VertexError { vertex, name: "x".to_owned(), cause });
            SolveError::Vertex { source, locations: Vec::new() }
        }] {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (Code::Cancelled, "context canceled"));
        }
    }

    #[test]
    fn a_frontends_error_passes_through_with_all_its_details() {
        let any = prost_types::Any { type_url: "example.test/T".to_owned(), value: vec![1, 2] };
        let sent = rpc::Status { code: 9, message: "no".to_owned(), details: vec![any] };
        let status = Status::from(SolveError::Frontend(Rejected::from(sent.clone())));
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "no"));
        assert_eq!(rpc::Status::decode(status.details()).unwrap(), sent);
        let fine = Rejected { code: 0, message: "odd".to_owned(), details: Vec::new() };
        assert_eq!(Status::from(fine).code(), Code::Unknown);
    }
}
