//! Messages of the Control API to plain types and back, and errors to gRPC's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message as _;
use tonic::Code;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::build::BuildError;
use super::build::BuildRequest;
use super::build::ExporterRequest;
use super::history::Event;
use super::history::HistoryError;
use super::history::HistoryFilter;
use super::history::HistoryQuery;
use super::history::Record;
use super::status::InvalidFrame;
use crate::cache::CacheError;
use crate::cache::Filter;
use crate::cache::PruneOptions;
use crate::cache::Usage;
use crate::cache::UsageOptions;
use crate::export::ExportError;
use crate::export::PushFailure;
use crate::identity::Identity;
use crate::oci::Descriptor;
use crate::ops::llb::Definition;
use crate::proto::control;
use crate::proto::pb;
use crate::session::OpenError;
use crate::session::Opening;
use crate::session::SessionId;
use crate::session::fsutil::TransferError;
use crate::solver::Rejected;
use crate::solver::code_of;
use crate::solver::convert::status_message;
use crate::solver::words_of;

/// What a client says of its session, in the metadata of the call.
mod header {
    pub(super) const ID: &str = "x-docker-expose-session-uuid";
    pub(super) const NAME: &str = "x-docker-expose-session-name";
    pub(super) const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
    pub(super) const METHOD: &str = "x-docker-expose-session-grpc-method";
    pub(super) const HEALTH: &str = "x-buildkit-session-health-custom-timeout";
}

/// Frontend attributes that ask for attestations begin with this.
const ATTESTATION: &str = "attest:";

pub(super) fn opening(metadata: &MetadataMap) -> Opening {
    let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let methods = metadata.get_all(header::METHOD).iter().filter_map(|value| value.to_str().ok());
    let health: Option<u64> = text(header::HEALTH).parse().ok().filter(|&millis| millis > 0);
    Opening {
        // The whole text is the ID: there is no context to tell apart.
        id: SessionId::new(text(header::ID)),
        name: text(header::NAME).to_owned(),
        shared_key: text(header::SHARED_KEY).to_owned(),
        methods: methods.map(str::to_owned).collect(),
        health: health.map(Duration::from_millis),
    }
}

pub(super) fn build_request(request: control::SolveRequest) -> BuildRequest {
    let mut unsupported = unsupported(&request);
    let mut exporters: Vec<ExporterRequest> = request.exporters.into_iter().map(exporter).collect();
    if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        exporters.push(ExporterRequest {
            kind: request.exporter_deprecated,
            attributes: request.exporter_attrs_deprecated,
        });
    }
    if request.definition.is_some() && !request.frontend.is_empty() {
        unsupported.push("a solve with both a definition and a frontend".to_owned());
    }
    BuildRequest {
        build: request.r#ref,
        session: (!request.session.is_empty()).then(|| SessionId::new(&request.session)),
        definition: request.definition.map(definition),
        frontend: request.frontend,
        attributes: request.frontend_attrs,
        inputs: request.frontend_inputs.into_iter().map(|(name, d)| (name, definition(d))).collect(),
        exporters,
        session_exporter: request.enable_session_exporter,
        entitlements: request.entitlements,
        internal: request.internal,
        compatibility_version: request.compatibility_version,
        unsupported,
    }
}

/// What the request asks for and would otherwise be ignored.
fn unsupported(request: &control::SolveRequest) -> Vec<String> {
    let mut unsupported = Vec::new();
    if let Some(cache) = &request.cache {
        unsupported.extend(cache.exports.iter().map(|e| format!("a cache export of type {:?}", e.r#type)));
        unsupported.extend(cache.imports.iter().map(|e| format!("a cache import of type {:?}", e.r#type)));
        if !cache.export_ref_deprecated.is_empty() {
            unsupported.push("a cache export of type \"registry\"".to_owned());
        }
        if !cache.import_refs_deprecated.is_empty() {
            unsupported.push("a cache import of type \"registry\"".to_owned());
        }
    }
    let attestations = request.frontend_attrs.iter().filter(|(key, value)| {
        key.starts_with(ATTESTATION) && !value.split(',').any(|field| field == "disabled=true")
    });
    unsupported.extend(attestations.map(|(key, _)| format!("the attestation {key:?}")));
    if request.source_policy.as_ref().is_some_and(|policy| !policy.rules.is_empty()) {
        unsupported.push("a source policy".to_owned());
    }
    if !request.source_policy_session.is_empty() {
        // There need be no policy: docker buildx asks for one whose file may turn out to be missing.
        unsupported.push("a source policy in the session (docker buildx: --policy disabled=true)".to_owned());
    }
    if request.proxy_network {
        unsupported.push("a proxy network".to_owned());
    }
    unsupported
}

fn exporter(exporter: control::Exporter) -> ExporterRequest {
    ExporterRequest { kind: exporter.r#type, attributes: exporter.attrs }
}

fn definition(message: pb::Definition) -> Arc<Definition> {
    Arc::new(Definition::new(message))
}

/// Selects by `id` and `labels.<key>`.
pub(super) fn selects(filters: &[String], identity: &Identity) -> Result<bool, Status> {
    let filter = parse_filter(filters)?;
    Ok(filter.matches(|path| match path {
        ["id"] => Some(identity.worker.as_str().into()),
        ["labels", key @ ..] => identity.labels.get(&key.join(".")).map(|label| label.as_str().into()),
        _ => None,
    }))
}

pub(super) fn usage_options(request: &control::DiskUsageRequest) -> Result<UsageOptions, Status> {
    Ok(UsageOptions { filter: parse_filter(&request.filter)?, age_limit: nanos(request.age_limit) })
}

pub(super) fn prune_options(request: &control::PruneRequest) -> Result<PruneOptions, Status> {
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(PruneOptions {
        all: request.all,
        filter: parse_filter(&request.filter)?,
        keep_duration: nanos(request.keep_duration),
        reserved_space: bytes(request.reserved_space),
        max_used_space: bytes(request.max_used_space),
        min_free_space: bytes(request.min_free_space),
    })
}

fn parse_filter(filters: &[String]) -> Result<Filter, Status> {
    Filter::parse(filters).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn nanos(number: i64) -> Duration {
    Duration::from_nanos(u64::try_from(number).unwrap_or(0))
}

pub(super) fn usage_record(usage: &Usage) -> control::UsageRecord {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    control::UsageRecord {
        id: usage.id.to_string(),
        mutable: usage.mutable,
        in_use: usage.in_use,
        size: number(usage.size),
        parent: match usage.parents.as_slice() {
            [parent] => parent.to_string(),
            _ => String::new(),
        },
        created_at: Some(timestamp(usage.created_at)),
        last_used_at: usage.last_used_at.map(timestamp),
        usage_count: number(usage.usage_count),
        description: usage.description.clone(),
        record_type: usage.record_type.name().to_owned(),
        shared: false,
        parents: usage.parents.iter().map(ToString::to_string).collect(),
    }
}

fn timestamp(timestamp: Timestamp) -> prost_types::Timestamp {
    SystemTime::from(timestamp).into()
}

pub(super) fn history_query(request: control::BuildHistoryRequest) -> Result<HistoryQuery, Status> {
    let limit = usize::try_from(request.limit)
        .map_err(|_| Status::invalid_argument(format!("invalid limit {}", request.limit)))?;
    let filter = match request.filter.is_empty() {
        true => None,
        false => {
            let parsed = HistoryFilter::parse(&request.filter, Timestamp::now());
            Some(parsed.map_err(|error| Status::invalid_argument(error.to_string()))?)
        }
    };
    Ok(HistoryQuery {
        active_only: request.active_only,
        build: request.r#ref,
        early_exit: request.early_exit,
        filter,
        limit,
    })
}

pub(super) fn history_event(event: &Event) -> control::BuildHistoryEvent {
    use control::BuildHistoryEventType as Type;
    let (kind, record) = match event {
        Event::Started(record) => (Type::Started, history_record(record)),
        Event::Complete(record) => (Type::Complete, history_record(record)),
        Event::Deleted(build) => {
            (Type::Deleted, control::BuildHistoryRecord { r#ref: build.clone(), ..Default::default() })
        }
    };
    control::BuildHistoryEvent { r#type: kind as i32, record: Some(record) }
}

fn history_record(record: &Record) -> control::BuildHistoryRecord {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let exporters = record.exporters.iter().map(|exporter| control::Exporter {
        r#type: exporter.kind.clone(),
        attrs: exporter.attributes.clone(),
    });
    let results: BTreeMap<i64, control::Descriptor> = record
        .results
        .iter()
        .map(|(&index, result)| (i64::try_from(index).unwrap_or(i64::MAX), descriptor(result)))
        .collect();
    let result = (!results.is_empty()).then(|| control::BuildResultInfo {
        result_deprecated: results.values().next().cloned(),
        attestations: Vec::new(),
        results,
    });
    control::BuildHistoryRecord {
        r#ref: record.build.clone(),
        frontend: record.frontend.clone(),
        frontend_attrs: record.frontend_attributes.clone(),
        exporters: exporters.collect(),
        error: record.error.as_ref().map(|error| crate::proto::rpc::Status {
            code: error.code,
            message: error.message.clone(),
            details: Vec::new(),
        }),
        created_at: Some(timestamp(record.created)),
        completed_at: record.completed.map(timestamp),
        logs: record.logs.as_ref().map(descriptor),
        exporter_response: record.exporter_response.clone(),
        result,
        results: BTreeMap::new(),
        generation: record.generation,
        trace: None,
        pinned: record.pinned,
        num_cached_steps: number(record.steps.cached),
        num_total_steps: number(record.steps.total),
        num_completed_steps: number(record.steps.completed),
        external_error: record.external_error.as_ref().map(descriptor),
        num_warnings: number(record.steps.warnings),
    }
}

fn descriptor(descriptor: &Descriptor) -> control::Descriptor {
    control::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone(),
    }
}

/// An error with its details, as the history keeps it.
pub(super) fn encode_status(rejected: &Rejected) -> Bytes {
    status_message(rejected).encode_to_vec().into()
}

impl From<&BuildError> for Rejected {
    fn from(error: &BuildError) -> Rejected {
        let code = match error {
            BuildError::Solve(error) => return Rejected::from(error.clone()),
            error if error.is_cancelled() => {
                return Rejected::from(crate::solver::SolveError::Cancelled);
            }
            BuildError::NoRef | BuildError::CompatibilityVersion { .. } => Code::InvalidArgument,
            BuildError::Exists(_) => Code::AlreadyExists,
            BuildError::Unsupported { .. } => Code::Unimplemented,
            BuildError::Entitlement { .. } => Code::PermissionDenied,
            BuildError::Export(error) => export_code(error),
            BuildError::Session(error) => code_of(error),
            BuildError::Task(_) => Code::Internal,
        };
        Rejected { code: code as i32, message: words_of(error), details: Vec::new() }.brief()
    }
}

impl From<BuildError> for Status {
    fn from(error: BuildError) -> Status {
        Rejected::from(&error).into()
    }
}

fn export_code(error: &ExportError) -> Code {
    match error {
        ExportError::Unsupported { .. } | ExportError::DockerIndex => Code::Unimplemented,
        ExportError::Options(_)
        | ExportError::Config(_)
        | ExportError::Metadata { .. }
        | ExportError::SinglePlatform { .. }
        | ExportError::AnnotationPlatform { .. }
        | ExportError::AnnotationsNeedOci
        | ExportError::Attestation(_)
        | ExportError::NoIndex
        | ExportError::TaggedByDigest { .. }
        | ExportError::Name(_) => Code::InvalidArgument,
        ExportError::MissingRef { .. } => Code::NotFound,
        ExportError::Push { source, .. } => match source {
            PushFailure::Push(error) => code_of(error.as_ref()),
            PushFailure::Content(error) => code_of(error),
            PushFailure::Task(_) | PushFailure::Injected(_) => Code::Internal,
            PushFailure::Cancelled => Code::Cancelled,
        },
        ExportError::Fetch(error) | ExportError::BrokeOff(error) => code_of(error),
        ExportError::Session(error) => code_of(error),
        ExportError::Content(error) => code_of(error),
        ExportError::Cache(error) => code_of(error),
        ExportError::Db(error) => code_of(error),
        ExportError::Transfer(TransferError::Session(error)) => error.refusal().unwrap_or(Code::Unknown),
        ExportError::Clash(_) => Code::InvalidArgument,
        ExportError::Transfer(_) => Code::Unknown,
        ExportError::Json { .. } | ExportError::Archive(_) | ExportError::Task(_) => Code::Internal,
        ExportError::Cancelled => Code::Cancelled,
    }
}

impl From<HistoryError> for Status {
    fn from(error: HistoryError) -> Status {
        let code = match &error {
            HistoryError::NotFound { .. } | HistoryError::Deleted { .. } => Code::NotFound,
            HistoryError::Behind => Code::ResourceExhausted,
            HistoryError::Db(error) => code_of(error),
            HistoryError::Content(error) => code_of(error),
            HistoryError::Read(error) => code_of(error),
            HistoryError::Task(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

impl From<InvalidFrame> for Status {
    fn from(error: InvalidFrame) -> Status {
        Status::data_loss(error.to_string())
    }
}

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Status {
        let code = match &error {
            OpenError::NoId => Code::InvalidArgument,
            OpenError::AlreadyOpen { .. } => Code::AlreadyExists,
            OpenError::Tunnel { .. } => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

pub(super) fn cache_status(error: &CacheError) -> Status {
    Status::new(code_of(error), words_of(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentError;
    use crate::content::FetchError;
    use crate::control::history::RecordedError;
    use crate::db::DbError;
    use crate::failpoint::Failpoint;
    use crate::failpoint::Injected;
    use crate::identity::Version;
    use crate::oci::Digest;
    use crate::oci::Platform;
    use crate::proto::policy;
    use crate::registry::Place;
    use crate::registry::Reason;
    use crate::registry::RegistryError;

    fn exporter(kind: &str) -> control::Exporter {
        control::Exporter { r#type: kind.to_owned(), attrs: BTreeMap::new() }
    }

    fn refused(change: impl FnOnce(&mut control::SolveRequest)) -> Vec<String> {
        let mut request = control::SolveRequest { cache: Some(Default::default()), ..Default::default() };
        change(&mut request);
        build_request(request).unsupported
    }

    #[test]
    fn what_would_be_ignored_is_named() {
        assert_eq!(refused(|_| {}), [""; 0]);
        let entry =
            |kind: &str| control::CacheOptionsEntry { r#type: kind.to_owned(), attrs: BTreeMap::new() };
        let cache = |request: &mut control::SolveRequest| request.cache.take().unwrap();
        let inline = refused(|r| {
            r.cache = Some(control::CacheOptions { exports: vec![entry("inline")], ..cache(r) });
        });
        assert_eq!(inline, ["a cache export of type \"inline\""]);
        let old = refused(|r| {
            r.cache = Some(control::CacheOptions { import_refs_deprecated: vec!["x".into()], ..cache(r) });
        });
        assert_eq!(old, ["a cache import of type \"registry\""]);
        let attest = |value: &str| {
            refused(|r| drop(r.frontend_attrs.insert("attest:provenance".into(), value.into())))
        };
        assert_eq!(attest("mode=max"), ["the attestation \"attest:provenance\""]);
        assert_eq!(attest("mode=max,disabled=true"), [""; 0]);
        let policy = policy::Policy { rules: vec![policy::Rule::default()], ..Default::default() };
        assert_eq!(refused(|r| r.source_policy = Some(policy)), ["a source policy"]);
        let session = "a source policy in the session (docker buildx: --policy disabled=true)";
        assert_eq!(refused(|r| r.source_policy_session = "session".to_owned()), [session]);
        assert_eq!(refused(|r| r.proxy_network = true), ["a proxy network"]);
        let both = refused(|r| {
            r.definition = Some(Default::default());
            r.frontend = "f".into();
        });
        assert_eq!(both, ["a solve with both a definition and a frontend"]);
    }

    /// Clients put the first exporter into the old field as well.
    #[test]
    fn the_old_exporter_counts_only_if_there_is_no_new_one() {
        let mut request = control::SolveRequest {
            exporter_deprecated: "image".to_owned(),
            exporters: vec![exporter("oci"), exporter("image")],
            ..Default::default()
        };
        let kinds = |request: &control::SolveRequest| -> Vec<String> {
            build_request(request.clone()).exporters.into_iter().map(|e| e.kind).collect()
        };
        assert_eq!(kinds(&request), ["oci", "image"]);
        request.exporters.clear();
        assert_eq!(kinds(&request), ["image"]);
        request.exporter_deprecated.clear();
        assert_eq!(kinds(&request), [""; 0]);
    }

    #[test]
    fn a_session_says_what_it_is_in_its_headers() {
        let mut metadata = MetadataMap::new();
        metadata.insert(header::ID, "abc".parse().unwrap());
        metadata.insert(header::SHARED_KEY, "key".parse().unwrap());
        metadata.append(header::METHOD, "/a/B".parse().unwrap());
        metadata.append(header::METHOD, "/c/D".parse().unwrap());
        metadata.insert(header::HEALTH, "2500".parse().unwrap());
        let expected = Opening {
            id: SessionId::new("abc"),
            name: String::new(),
            shared_key: "key".to_owned(),
            methods: vec!["/a/B".to_owned(), "/c/D".to_owned()],
            health: Some(Duration::from_millis(2500)),
        };
        assert_eq!(opening(&metadata), expected);
        metadata.insert(header::HEALTH, "soon".parse().unwrap());
        assert_eq!(opening(&metadata).health, None);
    }

    #[test]
    fn workers_are_selected_by_id_and_label() {
        let identity = Identity {
            worker: "w".to_owned(),
            labels: BTreeMap::from([("org.example.a".to_owned(), "1".to_owned())]),
            platforms: vec![Platform::host()],
            gc: Vec::new(),
            version: Version::default(),
        };
        for (filter, selected) in [
            ("", true),
            ("id==w", true),
            ("id==x", false),
            ("labels.\"org.example.a\"==1", true),
            ("labels.\"org.example.b\"", false),
        ] {
            assert_eq!(selects(&[filter.to_owned()], &identity).unwrap(), selected, "{filter}");
        }
        assert_eq!(selects(&["=".to_owned()], &identity).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn a_record_carries_its_results_by_exporter_and_the_first_one_in_the_old_field() {
        let result = |text: &str| Descriptor::new("m", Digest::sha256(text), 1);
        let record = Record {
            results: BTreeMap::from([(1, result("b")), (2, result("c"))]),
            error: Some(RecordedError { code: 5, message: "no".to_owned() }),
            ..Record::new("r")
        };
        let told = history_record(&record);
        let info = told.result.unwrap();
        assert_eq!(info.result_deprecated.unwrap().digest, Digest::sha256("b").to_string());
        assert_eq!(info.results.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(told.error.unwrap().code, 5);
        assert!(told.completed_at.is_none());
        assert!(history_record(&Record::new("r")).result.is_none());
    }

    #[test]
    fn every_failure_of_a_build_has_its_code() {
        let text = || "x".to_owned();
        let (reason, digest) = (Reason::default, Digest::sha256("b"));
        let place =
            || Arc::new(Place { host: text(), repository: text(), subject: text(), mirror: String::new() });
        let failed = |source| BuildError::Export(ExportError::Push { name: text(), source });
        let pushed = |error: RegistryError| failed(error.into());
        let injected = Injected(Failpoint::ManifestPushed);
        for (error, code) in [
            (BuildError::NoRef, Code::InvalidArgument),
            (BuildError::Unsupported { what: text() }, Code::Unimplemented),
            (BuildError::Entitlement { name: text() }, Code::PermissionDenied),
            (BuildError::CompatibilityVersion { version: 7 }, Code::InvalidArgument),
            (BuildError::Export(ExportError::Unsupported { what: text() }), Code::Unimplemented),
            (BuildError::Export(ExportError::MissingRef { id: text() }), Code::NotFound),
            (BuildError::Export(ExportError::Cancelled), Code::Cancelled),
            (pushed(RegistryError::Unauthorized { place: place(), reason: reason() }), Code::Unauthenticated),
            (pushed(RegistryError::Forbidden { place: place(), reason: reason() }), Code::PermissionDenied),
            (pushed(RegistryError::NotFound { place: place(), reason: reason() }), Code::NotFound),
            (pushed(RegistryError::Cancelled { place: place() }), Code::Cancelled),
            (failed(PushFailure::Injected(injected)), Code::Internal),
            (failed(PushFailure::Cancelled), Code::Cancelled),
            (failed(PushFailure::Content(ContentError::NoSpace)), Code::ResourceExhausted),
            (
                BuildError::Export(ExportError::Fetch(FetchError::Gone { digest, tried: vec![] })),
                Code::NotFound,
            ),
            (BuildError::Export(ExportError::Db(DbError::Injected(injected))), Code::Internal),
            (BuildError::Solve(crate::solver::SolveError::Cancelled), Code::Cancelled),
        ] {
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{status:?}");
            if code == Code::Cancelled {
                assert_eq!(status.message(), "context canceled");
            }
        }
    }

    #[test]
    fn a_limit_below_zero_is_no_limit_of_the_history() {
        let request = control::BuildHistoryRequest { limit: -1, ..Default::default() };
        assert_eq!(history_query(request).map(drop).unwrap_err().code(), Code::InvalidArgument);
    }
}
