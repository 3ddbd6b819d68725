//! [`code_of`]: the one table from what went wrong to a code of gRPC.
//!
//! A client decides by the code: whether to log in, to ask for a right, to try again, to free space or to
//! change what it asked for. The code is that of the deepest cause that has one:
//!
//! | code | causes |
//! |---|---|
//! | `Unauthenticated` | a registry or its token server wants other credentials (401), or none could be had |
//! | `PermissionDenied` | who was let in may not do this (403) |
//! | `NotFound` | a name, manifest or blob that is nowhere (404), a platform that an image lacks |
//! | `Unavailable` | unreachable, reset, broken off, silent, 5xx; the session of the client is gone |
//! | `ResourceExhausted` | no space or memory left, too many requests (429), more than a limit allows |
//! | `DataLoss` | bytes that are not those of their digest or descriptor, damaged answers |
//! | `FailedPrecondition` | an image, registry or target that can't be used so, and would not be if asked again |
//! | `InvalidArgument` | a request that makes no sense |
//! | `Unimplemented` | what this daemon, or the client for it, can't do |
//! | `Canceled` | whoever asked has left |
//! | `Internal` | faults of our own: the stores, a panic, a failure that was injected |
//! | `Unknown` | the rest |
//!
//! What damaged bytes come to is `DataLoss` and not `FailedPrecondition`: nothing that the client could
//! change would help.

use std::error::Error;
use std::io;

use tonic::Code;

use crate::cache::CacheError;
use crate::content::ContentError;
use crate::content::FetchError;
use crate::content::ProvideError;
use crate::db::DbError;
use crate::executor::ExecError;
use crate::failpoint::Injected;
use crate::fs::FsError;
use crate::oci::InvalidManifest;
use crate::ops::ChecksumError;
use crate::ops::ExecOpError;
use crate::ops::FileActionError;
use crate::ops::FileError;
use crate::ops::HashError;
use crate::ops::HttpError;
use crate::ops::LocalError;
use crate::ops::OpError;
use crate::ops::SourceError;
use crate::registry::CredentialError;
use crate::registry::PushError;
use crate::registry::RegistryError;
use crate::session::SessionError;
use crate::snapshot::ApplyError;
use crate::snapshot::SnapshotError;
use crate::task::TaskFailed;

/// The code that the causes of an error call for.
pub fn code_of(error: &(dyn Error + 'static)) -> Code {
    find(error).unwrap_or(Code::Unknown)
}

/// An error in words, with what to do where those of the system don't say it.
pub fn words_of(error: &dyn Error) -> String {
    let text = error.to_string();
    if text.contains("No space left on device") && !text.contains("free some") {
        return format!("{text}: free some space and try again");
    }
    text
}

fn find(error: &(dyn Error + 'static)) -> Option<Code> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = own(error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// `#[error(transparent)]` hides an error from `source`, so that enums are looked into as well.
fn own(error: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(error) = error.downcast_ref::<OpError>() {
        return match error {
            OpError::Cancelled => Some(Code::Cancelled),
            OpError::Unsupported { .. } => Some(Code::Unimplemented),
            OpError::InputGone { source, .. } | OpError::Failed { source } => find(source.as_ref()),
        };
    }
    if let Some(error) = error.downcast_ref::<SourceError>() {
        return source(error);
    }
    if let Some(error) = error.downcast_ref::<ExecOpError>() {
        return exec(error);
    }
    if let Some(error) = error.downcast_ref::<PushError>() {
        return match error {
            PushError::Registry(inner) => Some(registry(inner)),
            PushError::Body { cause, .. } => find(cause.as_ref()),
            PushError::BodyLength { .. } => Some(Code::DataLoss),
            PushError::Refused { status: 413, .. } => Some(Code::ResourceExhausted),
            PushError::Refused { .. } => Some(Code::FailedPrecondition),
        };
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return Some(registry(error));
    }
    if let Some(error) = error.downcast_ref::<FetchError>() {
        return Some(fetch(error));
    }
    if let Some(error) = error.downcast_ref::<ProvideError>() {
        return Some(provide(error));
    }
    if let Some(error) = error.downcast_ref::<CacheError>() {
        return Some(cache(error));
    }
    if let Some(error) = error.downcast_ref::<ContentError>() {
        return Some(content(error));
    }
    if let Some(error) = error.downcast_ref::<SnapshotError>() {
        return Some(snapshot(error));
    }
    if let Some(error) = error.downcast_ref::<DbError>() {
        return Some(db(error));
    }
    if let Some(error) = error.downcast_ref::<FileActionError>() {
        return file(&error.source);
    }
    if let Some(error) = error.downcast_ref::<ChecksumError>() {
        return hash(&error.source);
    }
    if let Some(FsError::NoSpace { .. }) = error.downcast_ref::<FsError>() {
        return Some(Code::ResourceExhausted);
    }
    if let Some(ApplyError::NoSpace) = error.downcast_ref::<ApplyError>() {
        return Some(Code::ResourceExhausted);
    }
    if let Some(error) = error.downcast_ref::<SessionError>() {
        return Some(session(error));
    }
    match error.downcast_ref::<LocalError>() {
        Some(LocalError::Session(error)) => return Some(session(error)),
        Some(LocalError::NoSession) => return Some(Code::Unavailable),
        _ => {}
    }
    match error.downcast_ref::<HttpError>() {
        Some(HttpError::Session(error)) => return Some(session(error)),
        Some(HttpError::Unreachable { .. }) => return Some(Code::Unavailable),
        _ => {}
    }
    if error.is::<TaskFailed>() || error.is::<Injected>() {
        return Some(Code::Internal);
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Some(Code::ResourceExhausted)
        }
        _ => None,
    }
}

fn exec(error: &ExecOpError) -> Option<Code> {
    match error {
        ExecOpError::Exec(error) | ExecOpError::Process { source: error, .. } => match error {
            ExecError::Exit { oom_killed: true, .. } => Some(Code::ResourceExhausted),
            ExecError::RuntimeMissing { .. } | ExecError::NoCgroups { .. } => Some(Code::FailedPrecondition),
            ExecError::Invalid { .. } => Some(Code::InvalidArgument),
            ExecError::Cancelled(_) => Some(Code::Cancelled),
            ExecError::Task(_) => Some(Code::Internal),
            ExecError::Io { source, .. } => own(source),
            _ => None,
        },
        ExecOpError::NotRoot => Some(Code::FailedPrecondition),
        ExecOpError::Cache(inner) => Some(cache(inner)),
        ExecOpError::Session(inner) => Some(session(inner)),
        ExecOpError::SecretMissing { .. } | ExecOpError::AgentMissing { .. } => Some(Code::NotFound),
        ExecOpError::SecretNotText { .. } | ExecOpError::ExtraHost { .. } | ExecOpError::Device { .. } => {
            Some(Code::InvalidArgument)
        }
        ExecOpError::Socket { .. } => Some(Code::Internal),
    }
}

fn file(error: &FileError) -> Option<Code> {
    match error {
        error if error.is_no_space() => Some(Code::ResourceExhausted),
        FileError::NotFound { .. } | FileError::NoSource | FileError::Fs(FsError::NotFound { .. }) => {
            Some(Code::NotFound)
        }
        FileError::TooLarge { .. } => Some(Code::ResourceExhausted),
        FileError::RemoveRoot { .. } | FileError::Pattern(_) => Some(Code::InvalidArgument),
        FileError::Cache(inner) => Some(cache(inner)),
        FileError::Task(_) => Some(Code::Internal),
        FileError::Cancelled => Some(Code::Cancelled),
        FileError::NotDirectory { .. }
        | FileError::IsDirectory { .. }
        | FileError::Id { .. }
        | FileError::Read { .. }
        | FileError::Write { .. }
        | FileError::Archive { .. }
        | FileError::Fs(_) => None,
    }
}

fn hash(error: &HashError) -> Option<Code> {
    match error {
        HashError::NotFound { .. } | HashError::Fs(FsError::NotFound { .. }) => Some(Code::NotFound),
        HashError::Pattern(_) => Some(Code::InvalidArgument),
        HashError::Cache(inner) => Some(cache(inner)),
        HashError::Task(_) => Some(Code::Internal),
        HashError::Cancelled => Some(Code::Cancelled),
        HashError::Read { .. } | HashError::Fs(_) => None,
    }
}

fn source(error: &SourceError) -> Option<Code> {
    Some(match error {
        SourceError::Registry(inner) => registry(inner),
        SourceError::Read { cause, .. } => fetch(cause),
        SourceError::Layout { cause, .. } => provide(cause),
        SourceError::Manifest { cause, .. } => match **cause {
            InvalidManifest::TooLarge { .. } => Code::ResourceExhausted,
            _ => Code::FailedPrecondition,
        },
        SourceError::NoPlatform { .. } | SourceError::NotLocal { .. } => Code::NotFound,
        SourceError::IndexDepth { .. }
        | SourceError::NotAnImage { .. }
        | SourceError::LayerMismatch { .. }
        | SourceError::Checksum { .. } => Code::FailedPrecondition,
        SourceError::LayerLimit { .. } | SourceError::NoDigest { .. } => Code::InvalidArgument,
        SourceError::Cache(inner) => cache(inner),
        SourceError::Content(inner) => content(inner),
        SourceError::Db(inner) => db(inner),
        SourceError::Task(_) => Code::Internal,
        SourceError::Cancelled => Code::Cancelled,
    })
}

fn registry(error: &RegistryError) -> Code {
    match error {
        RegistryError::NotFound { .. } => Code::NotFound,
        RegistryError::Unauthorized { .. } => Code::Unauthenticated,
        RegistryError::Forbidden { .. } => Code::PermissionDenied,
        RegistryError::RateLimited { .. } | RegistryError::TooLarge { .. } => Code::ResourceExhausted,
        RegistryError::Server { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Stalled { .. }
        | RegistryError::Truncated { .. } => Code::Unavailable,
        RegistryError::WrongLength { .. }
        | RegistryError::BadRange { .. }
        | RegistryError::Corrupt { .. }
        | RegistryError::Garbled { .. } => Code::DataLoss,
        RegistryError::RedirectLoop { .. } | RegistryError::Protocol { .. } | RegistryError::Tls { .. } => {
            Code::FailedPrecondition
        }
        RegistryError::Credentials { cause, .. } => match cause {
            // A client that is gone can't say who it is.
            CredentialError::Session { cause, .. } if session(cause) == Code::Unavailable => {
                Code::Unavailable
            }
            _ => Code::Unauthenticated,
        },
        RegistryError::Cancelled { .. } => Code::Cancelled,
    }
}

/// What a cause says in more detail comes before what the kind of the error says.
fn fetch(error: &FetchError) -> Code {
    match error {
        FetchError::Gone { .. } => Code::NotFound,
        FetchError::Unauthorized { cause, .. } => find(cause.as_ref()).unwrap_or(Code::Unauthenticated),
        FetchError::Unreachable { cause, .. } => find(cause.as_ref()).unwrap_or(Code::Unavailable),
        FetchError::Corrupt { .. } | FetchError::WrongSize { .. } => Code::DataLoss,
        FetchError::TooLarge { .. } | FetchError::NoSpace { .. } => Code::ResourceExhausted,
        FetchError::Store { source, .. } => content(source),
        FetchError::Cancelled { .. } => Code::Cancelled,
    }
}

fn provide(error: &ProvideError) -> Code {
    match error {
        ProvideError::Gone { .. } => Code::NotFound,
        ProvideError::Unauthorized { cause } => find(cause.as_ref()).unwrap_or(Code::Unauthenticated),
        ProvideError::Unreachable { cause } => find(cause.as_ref()).unwrap_or(Code::Unavailable),
        ProvideError::Corrupt { .. } => Code::DataLoss,
        ProvideError::Cancelled => Code::Cancelled,
    }
}

fn cache(error: &CacheError) -> Code {
    match error {
        CacheError::NotFound { .. } | CacheError::NeedsRemoteProvider { .. } => Code::NotFound,
        CacheError::TooManyLayers { .. } => Code::ResourceExhausted,
        CacheError::Locked { .. } | CacheError::Busy { .. } => Code::FailedPrecondition,
        CacheError::WrongDiffId { .. } => Code::DataLoss,
        // The bytes are those of the digest: it is the archive that can't be used.
        CacheError::Unpack { source, .. } => find(source.as_ref()).unwrap_or(Code::FailedPrecondition),
        CacheError::Pack { source } => find(source.as_ref()).unwrap_or(Code::Internal),
        CacheError::Fetch(inner) => fetch(inner),
        CacheError::Snapshot(inner) => snapshot(inner),
        CacheError::Db(inner) => db(inner),
        CacheError::Content(inner) => content(inner),
        CacheError::Cancelled => Code::Cancelled,
        CacheError::NeedsLower { .. } | CacheError::Look(_) | CacheError::Empty | CacheError::Task(_) => {
            Code::Internal
        }
    }
}

fn content(error: &ContentError) -> Code {
    match error {
        ContentError::NoSpace => Code::ResourceExhausted,
        ContentError::Db { source } => db(source),
        ContentError::Io { .. } | ContentError::Task(_) | ContentError::Injected(_) => Code::Internal,
    }
}

fn snapshot(error: &SnapshotError) -> Code {
    if matches!(error, SnapshotError::NoSpace) { Code::ResourceExhausted } else { Code::Internal }
}

fn db(error: &DbError) -> Code {
    if matches!(error, DbError::NoSpace) { Code::ResourceExhausted } else { Code::Internal }
}

fn session(error: &SessionError) -> Code {
    match error {
        SessionError::NoActiveSessions
        | SessionError::NotFound { .. }
        | SessionError::Lost { .. }
        | SessionError::TimedOut { .. } => Code::Unavailable,
        // Its own word, unless that is that all is well.
        SessionError::Refused { code, .. } if *code != Code::Ok => *code,
        SessionError::Refused { .. } | SessionError::Protocol { .. } => Code::Unknown,
        SessionError::Unsupported { .. } => Code::Unimplemented,
        SessionError::Unsendable { .. } => Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::content::Origin;
    use crate::oci::Digest;
    use crate::registry::Place;
    use crate::registry::Reason;

    fn place() -> Arc<Place> {
        Arc::new(Place {
            host: "r".to_owned(),
            repository: "a".to_owned(),
            subject: String::new(),
            mirror: String::new(),
        })
    }

    fn refused(status: u16) -> RegistryError {
        let (place, reason) = (place(), Reason::default());
        match status {
            401 => RegistryError::Unauthorized { place, reason },
            403 => RegistryError::Forbidden { place, reason },
            404 => RegistryError::NotFound { place, reason },
            429 => RegistryError::RateLimited { place, retry_after: None, reason },
            status => RegistryError::Server { place, status, retry_after: None, reason },
        }
    }

    fn unreachable() -> RegistryError {
        let cause = Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
        RegistryError::Unreachable { place: place(), address: "r:1".to_owned(), cause }
    }

    /// Every way in which an answer of a registry reaches a client: its own request, a fetch, a push of
    /// its own, and a push whose bytes come from elsewhere.
    fn ways(error: &RegistryError) -> Vec<Box<dyn Error + 'static>> {
        let digest = Digest::sha256("b");
        let origin = Some(Origin::registry("r", "a"));
        let cause: Arc<dyn Error + Send + Sync> = Arc::new(error.clone());
        let fetch = match error {
            RegistryError::Unauthorized { .. } | RegistryError::Forbidden { .. } => {
                FetchError::Unauthorized { digest, origin, cause }
            }
            RegistryError::NotFound { .. } => FetchError::Gone { digest, tried: Vec::new() },
            RegistryError::Corrupt { .. } => FetchError::Corrupt { digest, origin, cause },
            _ => FetchError::Unreachable { digest, origin, cause },
        };
        let body = PushError::Body { place: place(), cause: Arc::new(fetch.clone()) };
        vec![
            Box::new(error.clone()),
            Box::new(OpError::failed(SourceError::Registry(error.clone()))),
            Box::new(OpError::failed(SourceError::Read { image: "r".to_owned(), cause: fetch.clone() })),
            Box::new(fetch),
            Box::new(PushError::Registry(error.clone())),
            Box::new(body),
        ]
    }

    #[test]
    fn an_answer_of_a_registry_has_its_code_whichever_way_it_comes() {
        let corrupt = RegistryError::Corrupt { place: place(), got: Digest::sha256("x") };
        let stalled =
            RegistryError::Stalled { place: place(), address: "r".to_owned(), after: Duration::from_secs(1) };
        for (error, code) in [
            (refused(401), Code::Unauthenticated),
            (refused(403), Code::PermissionDenied),
            (refused(404), Code::NotFound),
            (refused(429), Code::ResourceExhausted),
            (refused(500), Code::Unavailable),
            (refused(503), Code::Unavailable),
            (unreachable(), Code::Unavailable),
            (stalled, Code::Unavailable),
            (corrupt, Code::DataLoss),
        ] {
            for way in ways(&error) {
                assert_eq!(code_of(way.as_ref()), code, "{way:?}");
            }
        }
    }

    #[test]
    fn faults_of_our_own_are_internal_and_a_full_disk_is_not() {
        let digest = Digest::sha256("b");
        let injected = Injected(crate::failpoint::Failpoint::ManifestPushed);
        let internal: Vec<Box<dyn Error + 'static>> = vec![
            Box::new(injected),
            Box::new(DbError::Injected(injected)),
            Box::new(DbError::Closed),
            Box::new(ContentError::Injected(injected)),
            Box::new(OpError::failed(SourceError::Cache(CacheError::Db(DbError::Injected(injected))))),
            Box::new(FetchError::Store { digest, source: ContentError::Injected(injected) }),
            Box::new(TaskFailed { name: "x", reason: "y".to_owned() }),
        ];
        for error in internal {
            assert_eq!(code_of(error.as_ref()), Code::Internal, "{error:?}");
        }
        let full: Vec<Box<dyn Error + 'static>> = vec![
            Box::new(io::Error::from(io::ErrorKind::StorageFull)),
            Box::new(OpError::failed(io::Error::from(io::ErrorKind::QuotaExceeded))),
            Box::new(DbError::NoSpace),
            Box::new(CacheError::Content(ContentError::Db { source: DbError::NoSpace })),
            Box::new(FetchError::NoSpace { digest }),
        ];
        for error in full {
            assert_eq!(code_of(error.as_ref()), Code::ResourceExhausted, "{error:?}");
        }
        assert_eq!(code_of(&io::Error::other("x")), Code::Unknown);
    }

    #[test]
    fn a_clients_own_word_counts_and_one_that_is_gone_is_unavailable() {
        let session = crate::session::SessionId::new("s");
        let refused = |code| SessionError::Refused {
            session: session.clone(),
            method: "m",
            code,
            message: String::new(),
        };
        for (error, code) in [
            (refused(Code::PermissionDenied), Code::PermissionDenied),
            (refused(Code::Ok), Code::Unknown),
            (SessionError::NoActiveSessions, Code::Unavailable),
        ] {
            assert_eq!(code_of(&error), code, "{error}");
            let layout = SourceError::Layout {
                name: "l".to_owned(),
                digest: Digest::sha256("b"),
                cause: ProvideError::unreachable(error.clone()),
            };
            assert_eq!(code_of(&layout), code, "{error}");
            let files: [OpError; 2] = [
                OpError::failed(LocalError::Session(error.clone())),
                OpError::failed(HttpError::Session(error.clone())),
            ];
            files.iter().for_each(|files| assert_eq!(code_of(files), code, "{error}"));
        }
        let page = HttpError::Unreachable { address: "http://a".to_owned(), reason: "refused".to_owned() };
        assert_eq!(code_of(&page), Code::Unavailable);
        assert_eq!(code_of(&LocalError::NoSession), Code::Unavailable);
        let gone = CredentialError::Session { host: "r".to_owned(), cause: SessionError::NoActiveSessions };
        let error = RegistryError::Credentials { place: place(), cause: gone };
        assert_eq!(code_of(&error), Code::Unavailable);
    }
}
