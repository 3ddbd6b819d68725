//! Errors of the solver as gRPC tells them: a code, a text for people, and typed details that
//! BuildKit's Go client turns into its own error types.
//!
//! Details travel as JSON inside of `Any`, the outermost first, under the type URLs of BuildKit's
//! `solver/errdefs`.

use bytes::Bytes;
use prost::Message as _;
use serde::Serialize;
use tonic::Code;
use tonic::Status;

use super::brief::told;
use super::code::code_of;
use super::code::words_of;
use super::error::Cause;
use super::error::FailedOp;
use super::error::FrontendAsked;
use super::error::Rejected;
use super::error::SolveError;
use super::error::SourceLocation;
use super::jobs::JobExists;
use super::jobs::NoSuchJob;
use crate::ops::ChecksumError;
use crate::ops::FileActionError;
use crate::ops::OpError;
use crate::ops::VertexDigest;
use crate::ops::llb::LlbError;
use crate::progress::SourceFile;
use crate::progress::SourcePosition;
use crate::progress::SourceRange;
use crate::proto::errdefs;
use crate::proto::json::protojson;
use crate::proto::pb;
use crate::proto::rpc;

const TYPE_PREFIX: &str = "github.com/moby/buildkit/";
/// What clients look for to tell a cancellation from a failure.
const CANCELLED: &str = "context canceled";
/// An op that is larger, with what is said of it, is not told: details travel in a header, where a file's content has no
/// place.
const MAX_OP_BYTES: usize = 64 << 10;

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

/// Names of file systems that a failed op had, by which a frontend may ask for them: one per mount, empty where
/// there is nothing to see.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FailedRefs {
    pub inputs: Vec<String>,
    pub mounts: Vec<String>,
}

impl From<SolveError> for Rejected {
    fn from(error: SolveError) -> Rejected {
        Rejected::with_refs(error, FailedRefs::default())
    }
}

impl Rejected {
    /// What a frontend gets for an error, with names of what it can look into.
    pub fn with_refs(error: SolveError, refs: FailedRefs) -> Rejected {
        let error = match error {
            SolveError::Frontend(rejected) => return rejected,
            error => error,
        };
        let (code, message) = if error.is_cancelled() {
            (Code::Cancelled, CANCELLED.to_owned())
        } else {
            (code(&error), words_of(&error))
        };
        let mut details = Vec::new();
        details.extend(error.exit_code().and_then(exit_detail));
        let subject = subject(&error);
        details.extend(error.op().and_then(|op| solve_detail(op, subject, refs)));
        // Clients show the first one, and expect that to be the one that was given last.
        details.extend(told(error.locations()).filter_map(source_detail));
        details.extend(error.vertex().and_then(vertex_detail));
        if let SolveError::NoSuchFrontend { name, asked } = &error {
            details.extend(frontend_details(name, asked));
        }
        Rejected { code: code as i32, message, details }.brief()
    }
}

impl From<rpc::Status> for Rejected {
    fn from(status: rpc::Status) -> Rejected {
        let details = status.details.into_iter().map(|any| (any.type_url, any.value.into()));
        Rejected { code: status.code, message: status.message, details: details.collect() }.brief()
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
            Cause::Op(error) => code_of(error),
            Cause::Index(error) => code_of(error),
            Cause::Panicked(_) | Cause::Output { .. } | Cause::CacheMap { .. } => Code::Internal,
        },
        SolveError::NotEntitled { .. } => Code::PermissionDenied,
        SolveError::DefinitionAndFrontend => Code::InvalidArgument,
        SolveError::NoSuchFrontend { .. } => Code::Unimplemented,
        SolveError::NoSuchRef { .. } => Code::NotFound,
        SolveError::Returned => Code::FailedPrecondition,
        SolveError::Frontend(rejected) => Code::from_i32(rejected.code),
    }
}

/// `gatewayapi.ExitMessage`: what a client of the build takes for its own exit code.
fn exit_detail(code: u32) -> Option<(String, Bytes)> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct ExitMessage {
        code: u32,
    }
    detail("gatewayapi.ExitMessage+json", &ExitMessage { code })
}

fn vertex_detail(vertex: VertexDigest) -> Option<(String, Bytes)> {
    detail("errdefs.Vertex+json", &errdefs::Vertex { digest: vertex.to_string() })
}

/// The part of the op that failed, where it is one.
fn subject(error: &SolveError) -> Option<errdefs::solve::Subject> {
    let SolveError::Vertex { source, .. } = error else { return None };
    let Cause::Op(OpError::Failed { source }) = &source.cause else { return None };
    let index = |index: usize| i64::try_from(index).unwrap_or(i64::MAX);
    if let Some(action) = source.downcast_ref::<FileActionError>() {
        return Some(errdefs::solve::Subject::File(errdefs::FileAction { index: index(action.index) }));
    }
    let input = source.downcast_ref::<ChecksumError>()?.input;
    Some(errdefs::solve::Subject::Cache(errdefs::ContentCache { index: index(input) }))
}

/// What failed, and what debuggers can look into.
fn solve_detail(
    failed: &FailedOp,
    subject: Option<errdefs::solve::Subject>,
    refs: FailedRefs,
) -> Option<(String, Bytes)> {
    let said: usize = failed.description.iter().map(|(key, value)| key.len() + value.len()).sum();
    if failed.bytes.len() + said > MAX_OP_BYTES {
        return None;
    }
    let op = pb::Op::decode(failed.bytes.clone()).ok()?;
    let description = failed.description.clone();
    let FailedRefs { inputs, mounts } = refs;
    let solve = errdefs::Solve { input_ids: inputs, mount_ids: mounts, op: Some(op), description, subject };
    detail("errdefs.Solve+json", &protojson(&solve).ok()?)
}

/// Clients ask frontends for capabilities and requests, and go on without if they learn that one is
/// not supported.
fn frontend_details<'a>(
    name: &str,
    asked: &'a FrontendAsked,
) -> impl Iterator<Item = (String, Bytes)> + use<'a> {
    let frontend = errdefs::Frontend { name: name.to_owned(), source: String::new() };
    let cap = |name: &String| cap_detail(name);
    let request =
        |name: &String| detail("errdefs.Subrequest+json", &errdefs::Subrequest { name: name.clone() });
    let asked = asked.request.iter().filter_map(request).chain(asked.caps.iter().filter_map(cap));
    detail("errdefs.Frontend+json", &frontend).into_iter().chain(asked)
}

fn cap_detail(name: &str) -> Option<(String, Bytes)> {
    detail("errdefs.FrontendCap+json", &errdefs::FrontendCap { name: name.to_owned() })
}

/// Refuses what a frontend asks for beyond the capabilities that it was told.
pub fn unsupported_cap(cap: &str, message: &str) -> Status {
    let details = cap_detail(cap).into_iter().collect();
    Rejected { code: Code::Unimplemented as i32, message: message.to_owned(), details }.brief().into()
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
    use std::collections::BTreeMap;
    use std::error::Error;
    use std::io;
    use std::sync::Arc;

    use super::super::error::Phase;
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
        let source = pb::SourceOp { identifier: "docker-image://x".to_owned(), ..pb::SourceOp::default() };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() };
        let description = BTreeMap::from([("llb.customname".to_owned(), "FROM x".to_owned())]);
        let op = FailedOp { bytes: op.encode_to_vec().into(), description };
        let source = Arc::new(VertexError { vertex, phase: Phase::Result, cause });
        SolveError::Vertex { source, locations, op: Some(op) }
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
            ["Solve", "Source", "Vertex"].map(|name| format!("{TYPE_PREFIX}errdefs.{name}+json"))
        );
        // As Go's protojson reads it: no object around what is one of several.
        let solve = serde_json::json!({
            "op": {"source": {"identifier": "docker-image://x"}},
            "description": {"llb.customname": "FROM x"},
        });
        assert_eq!(details[0].1, solve);
        let source = serde_json::json!({
            "info": {"filename": "Dockerfile", "data": "RlJPTSB4", "language": "Dockerfile"},
            "ranges": [{"start": {"line": 1}, "end": {"line": 2}}],
        });
        assert_eq!(details[1].1, source);
        assert_eq!(details[2].1, serde_json::json!({"digest": Digest::sha256("v").to_string()}));
    }

    #[test]
    fn a_solve_has_the_code_of_its_cause() {
        for (error, code) in [
            (failed(io::Error::other("x")), Code::Unknown),
            (failed(io::Error::from(io::ErrorKind::StorageFull)), Code::ResourceExhausted),
            (SolveError::NoSuchRef { id: "r".to_owned() }, Code::NotFound),
            (SolveError::DefinitionAndFrontend, Code::InvalidArgument),
        ] {
            assert_eq!(Status::from(error.clone()).code(), code, "{error:?}");
        }
    }

    #[test]
    fn an_op_that_is_too_large_for_a_header_is_not_told() {
        let mut error = failed(io::Error::other("broken"));
        let SolveError::Vertex { op, .. } = &mut error else { panic!() };
        let source = pb::SourceOp { identifier: "x".repeat(MAX_OP_BYTES), ..pb::SourceOp::default() };
        let large = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() };
        op.as_mut().unwrap().bytes = large.encode_to_vec().into();
        assert_eq!(details(&error.into()).len(), 2);
    }

    #[test]
    fn a_frontend_that_is_not_there_supports_nothing_that_it_was_asked_for() {
        let asked =
            FrontendAsked { request: Some("frontend.outline".to_owned()), caps: vec!["moby.x".to_owned()] };
        let status = Status::from(SolveError::NoSuchFrontend { name: "f".to_owned(), asked });
        assert_eq!(status.code(), Code::Unimplemented);
        let told = |name: &str, value: &str| {
            (format!("{TYPE_PREFIX}errdefs.{name}+json"), serde_json::json!({"name": value}))
        };
        let expected =
            [told("Frontend", "f"), told("Subrequest", "frontend.outline"), told("FrontendCap", "moby.x")];
        assert_eq!(details(&status), expected);
    }

    #[test]
    fn a_cancelled_solve_says_so_in_the_words_of_go() {
        for error in [SolveError::Cancelled, {
            let cause = Cause::Op(OpError::Cancelled);
            let vertex = VertexDigest(Digest::sha256("v"));
            let source = Arc::new(VertexError { vertex, phase: Phase::Result, cause });
            SolveError::Vertex { source, locations: Vec::new(), op: None }
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
