//! Messages of the bridge to plain types and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;

use super::files::FilesError;
use crate::export;
use crate::export::Attestation;
use crate::export::Subject;
use crate::export::SubjectKind;
use crate::fs::FsError;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::ops::HttpFile;
use crate::ops::LayoutSource;
use crate::ops::Op;
use crate::ops::Operate;
use crate::ops::VertexDigest;
use crate::ops::llb;
use crate::ops::llb::Definition;
use crate::ops::llb::LlbError;
use crate::progress::Warning;
use crate::proto::caps;
use crate::proto::gateway;
use crate::proto::gateway::AttestationKind;
use crate::proto::gateway::InTotoSubjectKind;
use crate::proto::gateway::result::Result as WireResult;
use crate::proto::pb;
use crate::proto::policy;
use crate::solver::Bridge;
use crate::solver::Ref;
use crate::solver::Refs;
use crate::solver::SolveError;
use crate::solver::SolveReply;
use crate::solver::SolveRequest;
use crate::solver::convert::source_file;
use crate::solver::convert::source_range;
use crate::solver::convert::unsupported_cap;

/// `ResolverType` of an image of a client's OCI layout.
const RESOLVER_LAYOUT: i32 = 1;

pub(super) fn caps(names: &[&str]) -> Vec<caps::ApiCap> {
    let cap = |name: &&str| caps::ApiCap { id: (*name).to_owned(), enabled: true, ..caps::ApiCap::default() };
    names.iter().map(cap).collect()
}

/// What to solve. Parts of a request that would be ignored are refused.
pub(super) fn solve_request(request: gateway::SolveRequest) -> Result<SolveRequest, Status> {
    if let Some(import) = request.cache_imports.first() {
        let what = format!("importing a cache of type {:?}", import.r#type);
        return Err(unsupported_cap("importcaches", &format!("{what} is not supported")));
    }
    no_policies(&request.source_policies)?;
    Ok(SolveRequest {
        definition: request.definition.map(|definition| Arc::new(Definition::new(definition))),
        frontend: request.frontend,
        options: request.frontend_opt,
        inputs: definitions(request.frontend_inputs),
        evaluate: request.evaluate,
    })
}

/// A policy without rules allows everything, and means nothing.
pub(super) fn no_policies(policies: &[policy::Policy]) -> Result<(), Status> {
    match policies.iter().all(|policy| policy.rules.is_empty()) {
        true => Ok(()),
        false => Err(Status::unimplemented("source policies are not supported")),
    }
}

fn definitions(messages: BTreeMap<String, pb::Definition>) -> BTreeMap<String, Arc<Definition>> {
    messages.into_iter().map(|(name, message)| (name, Arc::new(Definition::new(message)))).collect()
}

/// How much a client understands of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Understands {
    /// Refs with what they are refs of, not just IDs.
    pub(super) refs: bool,
    /// Results, not just one ID.
    pub(super) results: bool,
}

pub(super) fn solve_response<O: Operate>(
    reply: &SolveReply<O>,
    understands: Understands,
) -> Result<gateway::SolveResponse, Status> {
    let many = matches!(&reply.refs, Refs::Many(many) if !many.is_empty());
    if many && !understands.results {
        return Err(Status::failed_precondition(
            "the result has several platforms, which this client is too old for",
        ));
    }
    let single = match &reply.refs {
        Refs::Single(Some(single)) => single.id.to_string(),
        _ => String::new(),
    };
    let result = match (&reply.refs, understands.refs) {
        (Refs::Single(single), true) => WireResult::Ref(wire_ref(single.as_ref())),
        (Refs::Single(_), false) => WireResult::RefDeprecated(single.clone()),
        (Refs::Many(many), true) => {
            let refs = many.iter().map(|(id, one)| (id.clone(), wire_ref_in_map(one.as_ref())));
            WireResult::Refs(gateway::RefMap { refs: refs.collect() })
        }
        (Refs::Many(many), false) => {
            let id = |one: &Option<Ref<O>>| one.as_ref().map(|one| one.id.to_string()).unwrap_or_default();
            let refs = many.iter().map(|(key, one)| (key.clone(), id(one)));
            WireResult::RefsDeprecated(gateway::RefMapDeprecated { refs: refs.collect() })
        }
    };
    Ok(gateway::SolveResponse {
        r#ref: if understands.results { String::new() } else { single },
        result: Some(gateway::Result {
            metadata: reply.metadata.clone(),
            attestations: attestations_to_wire(&reply.attestations),
            result: Some(result),
        }),
    })
}

fn wire_ref<O: Operate>(one: Option<&Ref<O>>) -> gateway::Ref {
    match one {
        Some(one) => {
            gateway::Ref { id: one.id.to_string(), def: Some(one.result.definition().message().clone()) }
        }
        None => gateway::Ref::default(),
    }
}

/// A value of a map that is all default is left out on the wire, and Go's client then has a nil where
/// it expects a ref. An empty definition makes it one.
fn wire_ref_in_map<O: Operate>(one: Option<&Ref<O>>) -> gateway::Ref {
    let wire = wire_ref(one);
    gateway::Ref { def: Some(wire.def.unwrap_or_default()), ..wire }
}

/// A result that a frontend returns, in refs of its job.
pub(super) fn returned<O: Operate>(
    bridge: &Bridge<'_, O>,
    result: gateway::Result,
) -> Result<SolveReply<O>, Status> {
    let find = |id: &str| -> Result<Option<Ref<O>>, SolveError> { bridge.reference(id) };
    let refs = match result.result {
        None => Refs::Single(None),
        Some(WireResult::RefDeprecated(id)) => Refs::Single(find(&id)?),
        Some(WireResult::Ref(one)) => Refs::Single(find(&one.id)?),
        Some(WireResult::RefsDeprecated(map)) => {
            let found = map.refs.into_iter().map(|(key, id)| Ok((key, find(&id)?)));
            Refs::Many(found.collect::<Result<_, SolveError>>()?)
        }
        Some(WireResult::Refs(map)) => {
            let found = map.refs.into_iter().map(|(key, one)| Ok((key, find(&one.id)?)));
            Refs::Many(found.collect::<Result<_, SolveError>>()?)
        }
    };
    let attestations = result.attestations.into_iter().map(|(platform, list)| {
        let list = list.attestation.into_iter().map(|one| attestation(bridge, one));
        Ok((platform, list.collect::<Result<Vec<_>, Status>>()?))
    });
    let attestations = attestations.collect::<Result<_, Status>>()?;
    Ok(SolveReply { refs, metadata: result.metadata, attestations })
}

fn attestation<O: Operate>(
    bridge: &Bridge<'_, O>,
    one: gateway::Attestation,
) -> Result<Attestation<Ref<O>>, Status> {
    let kind = match AttestationKind::try_from(one.kind) {
        Ok(AttestationKind::InToto) => export::AttestationKind::InToto,
        Ok(AttestationKind::Bundle) => export::AttestationKind::Bundle,
        Err(_) => return Err(Status::unimplemented(format!("unknown attestation kind {}", one.kind))),
    };
    let subjects = one.in_toto_subjects.into_iter().map(subject);
    Ok(Attestation {
        kind,
        metadata: one.metadata,
        files: match one.r#ref {
            Some(files) => bridge.reference(&files.id)?,
            None => None,
        },
        path: one.path,
        predicate_type: one.in_toto_predicate_type,
        subjects: subjects.collect::<Result<_, Status>>()?,
    })
}

fn subject(subject: gateway::InTotoSubject) -> Result<Subject, Status> {
    let kind = match InTotoSubjectKind::try_from(subject.kind) {
        Ok(InTotoSubjectKind::Self_) => SubjectKind::Itself,
        Ok(InTotoSubjectKind::Raw) => SubjectKind::Named,
        Err(_) => {
            return Err(Status::unimplemented(format!("unknown attestation subject type {}", subject.kind)));
        }
    };
    let digests = subject.digest.into_iter().map(|digest| match digest.split_once(':') {
        Some((algorithm, hex)) => Ok((algorithm.to_owned(), hex.to_owned())),
        None => Err(Status::invalid_argument(format!("the subject's digest {digest:?} has no algorithm"))),
    });
    Ok(Subject { kind, name: subject.name, digests: digests.collect::<Result<_, Status>>()? })
}

fn attestations_to_wire<O: Operate>(
    attestations: &BTreeMap<String, Vec<Attestation<Ref<O>>>>,
) -> BTreeMap<String, gateway::Attestations> {
    let subject = |subject: &Subject| gateway::InTotoSubject {
        kind: match subject.kind {
            SubjectKind::Itself => InTotoSubjectKind::Self_,
            SubjectKind::Named => InTotoSubjectKind::Raw,
        } as i32,
        digest: subject.digests.iter().map(|(algorithm, hex)| format!("{algorithm}:{hex}")).collect(),
        name: subject.name.clone(),
    };
    let attestation = |one: &Attestation<Ref<O>>| gateway::Attestation {
        kind: match one.kind {
            export::AttestationKind::InToto => AttestationKind::InToto,
            export::AttestationKind::Bundle => AttestationKind::Bundle,
        } as i32,
        metadata: one.metadata.clone(),
        r#ref: Some(wire_ref(one.files.as_ref())),
        path: one.path.clone(),
        in_toto_predicate_type: one.predicate_type.clone(),
        in_toto_subjects: one.subjects.iter().map(subject).collect(),
    };
    let list = |(platform, list): (&String, &Vec<_>)| {
        let attestation = list.iter().map(attestation).collect();
        (platform.clone(), gateway::Attestations { attestation })
    };
    attestations.iter().map(list).collect()
}

/// Metadata in the form of clients from before `Return`: a JSON object of base64 values.
pub(super) fn exporter_attributes(json: &[u8]) -> Result<BTreeMap<String, Bytes>, Status> {
    use base64::Engine as _;
    if json.is_empty() {
        return Ok(BTreeMap::new());
    }
    let invalid = |reason: String| Status::invalid_argument(format!("exporter attributes: {reason}"));
    let texts: BTreeMap<String, Option<String>> =
        serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    let bytes = |text: Option<String>| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text.unwrap_or_default());
        decoded.map(Bytes::from).map_err(|error| invalid(error.to_string()))
    };
    texts.into_iter().map(|(key, text)| Ok((key, bytes(text)?))).collect()
}

/// What an image is to be asked for, and how its progress is named.
pub(super) struct MetaRequest {
    pub(super) op: Op,
    pub(super) platform: Platform,
    pub(super) vertex: Digest,
    pub(super) name: String,
}

impl MetaRequest {
    pub(super) fn of_source(
        source: &pb::SourceOp,
        platform: Option<&pb::Platform>,
        mode: &str,
        log_name: String,
    ) -> Result<MetaRequest, Status> {
        let mut source = source.clone();
        if !mode.is_empty() && source.identifier.starts_with("docker-image://") {
            source.attrs.entry("image.resolvemode".to_owned()).or_insert_with(|| mode.to_owned());
        }
        let op = llb::source(&source).map_err(source_status)?;
        if !matches!(op, Op::Image(_) | Op::OciLayout(_) | Op::Http(_) | Op::Local(_)) {
            let kind = op.kind();
            return Err(Status::unimplemented(format!("metadata of a source {kind}:// is not supported")));
        }
        let platform = crate::identity::convert::parse_platform(platform);
        let name = if log_name.is_empty() {
            match &op {
                Op::Http(_) | Op::Local(_) => format!("resolve {}", source.identifier),
                _ => format!("resolve image config for {}", source.identifier),
            }
        } else {
            log_name
        };
        let vertex = Digest::sha256(format!("{}@{platform}", source.identifier));
        Ok(MetaRequest { op, platform, vertex, name })
    }

    pub(super) fn of_image(request: gateway::ResolveImageConfigRequest) -> Result<MetaRequest, Status> {
        no_policies(&request.source_policies)?;
        let scheme = if request.resolver_type == RESOLVER_LAYOUT { "oci-layout" } else { "docker-image" };
        let identifier = format!("{scheme}://{}", request.r#ref);
        let source = pb::SourceOp { identifier, ..pb::SourceOp::default() };
        let platform = request.platform.as_ref();
        let mut meta = MetaRequest::of_source(&source, platform, &request.resolve_mode, request.log_name)?;
        if let Op::OciLayout(layout) = &mut meta.op {
            let filled = |text: String| (!text.is_empty()).then_some(text);
            let LayoutSource { session, store, .. } = layout;
            *session = filled(request.session_id);
            *store = filled(request.store_id);
        }
        Ok(meta)
    }
}

/// Here a source is an argument and no part of a build, so that no vertex is at fault.
fn source_status(error: LlbError) -> Status {
    match error {
        LlbError::Unsupported { what, .. } => Status::unimplemented(format!("{what} is not supported")),
        error => Status::invalid_argument(error.to_string()),
    }
}

pub(super) fn http_meta(file: &HttpFile) -> gateway::ResolveSourceHttpResponse {
    gateway::ResolveSourceHttpResponse {
        checksum: file.digest.to_string(),
        filename: file.filename.clone(),
        last_modified: file.modified.map(Into::into),
        checksum_response: None,
    }
}

pub(super) fn files_status(error: FilesError) -> Status {
    let text = error.to_string();
    match error {
        FilesError::NotFound { .. } => Status::not_found(text),
        FilesError::TooLarge { .. } => Status::resource_exhausted(text),
        FilesError::Range { .. } | FilesError::Pattern(_) => Status::invalid_argument(text),
        FilesError::NotRegular { .. } | FilesError::NotDirectory { .. } => Status::unknown(text),
        FilesError::Fs(FsError::NotFound { .. }) => Status::not_found(text),
        FilesError::Fs(_) | FilesError::Read { .. } => Status::unknown(text),
    }
}

pub(super) fn warning(request: gateway::WarnRequest) -> Result<Warning, Status> {
    let vertex: Digest =
        request.digest.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    Ok(Warning {
        vertex: VertexDigest(vertex).0,
        level: if request.level == 0 { 1 } else { request.level },
        short: request.short,
        detail: request.detail,
        url: request.url,
        source: request.info.map(source_file),
        ranges: request.ranges.iter().map(source_range).collect(),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tonic::Code;

    use super::*;
    use crate::ops::Worker;

    fn source(identifier: &str) -> pb::SourceOp {
        pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() }
    }

    fn platforms(ids: &[&str]) -> SolveReply<Worker> {
        let refs = ids.iter().map(|&id| (id.to_owned(), None)).collect();
        let metadata = BTreeMap::from([("k".to_owned(), "v".into())]);
        SolveReply { metadata, ..SolveReply::of(Refs::Many(refs)) }
    }

    /// Go's client crashed on the empty ref of a platform: a map value that is all default is not on the
    /// wire, and is nil there.
    #[test]
    fn an_empty_ref_in_a_map_is_on_the_wire() {
        let all = Understands { refs: true, results: true };
        let response = solve_response(&platforms(&["linux/amd64"]), all).unwrap();
        let Some(WireResult::Refs(map)) = response.result.unwrap().result else { panic!() };
        assert_eq!(map.refs["linux/amd64"].def, Some(pb::Definition::default()));
        assert!(!map.refs["linux/amd64"].encode_to_vec().is_empty());
    }

    #[test]
    fn a_client_gets_a_result_in_the_form_that_it_understands() {
        let old = Understands { refs: false, results: true };
        let response = solve_response(&platforms(&["p"]), old).unwrap();
        let result = response.result.unwrap();
        assert_eq!(result.metadata["k"], "v");
        assert!(matches!(result.result, Some(WireResult::RefsDeprecated(_))));
        let oldest = Understands { refs: false, results: false };
        let refused = solve_response(&platforms(&["p"]), oldest).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let empty = solve_response(&SolveReply::<Worker>::empty(), oldest).unwrap();
        assert_eq!(empty.r#ref, "");
        assert_eq!(empty.result.unwrap().result, Some(WireResult::RefDeprecated(String::new())));
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let import = gateway::CacheOptionsEntry { r#type: "registry".to_owned(), attrs: BTreeMap::new() };
        let request = gateway::SolveRequest { cache_imports: vec![import], ..Default::default() };
        let refused = solve_request(request).unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert_eq!(refused.message(), "importing a cache of type \"registry\" is not supported");
        let policy = policy::Policy { rules: vec![policy::Rule::default()], ..Default::default() };
        assert_eq!(no_policies(&[policy]).unwrap_err().code(), Code::Unimplemented);
        assert!(no_policies(&[policy::Policy::default()]).is_ok());
    }

    #[test]
    fn a_definition_that_is_there_and_empty_is_not_one_that_is_missing() {
        let request = gateway::SolveRequest { definition: Some(Default::default()), ..Default::default() };
        assert!(solve_request(request).unwrap().definition.is_some());
        assert!(solve_request(gateway::SolveRequest::default()).unwrap().definition.is_none());
    }

    #[test]
    fn an_image_is_asked_for_in_the_mode_of_the_request_unless_the_source_has_its_own() {
        let mode = |source: &pb::SourceOp, mode: &str| {
            let request = MetaRequest::of_source(source, None, mode, String::new()).unwrap();
            let Op::Image(image) = request.op else { panic!() };
            image.resolve_mode
        };
        use crate::ops::ResolveMode;
        let mut image = source("docker-image://docker.io/library/alpine:1");
        assert_eq!(mode(&image, ""), ResolveMode::Default);
        assert_eq!(mode(&image, "pull"), ResolveMode::ForcePull);
        image.attrs.insert("image.resolvemode".to_owned(), "local".to_owned());
        assert_eq!(mode(&image, "pull"), ResolveMode::PreferLocal);
    }

    #[test]
    fn a_source_that_can_not_be_resolved_is_refused_by_its_kind() {
        let of = |identifier: &str| {
            let source = source(identifier);
            MetaRequest::of_source(&source, None, "", String::new()).map(drop).unwrap_err().code()
        };
        assert_eq!(of("git://github.com/a/b"), Code::Unimplemented);
        assert_eq!(of("docker-image://%%"), Code::InvalidArgument);
        assert_eq!(of("nothing"), Code::InvalidArgument);
    }

    #[test]
    fn a_layout_is_asked_for_in_its_session_and_store() {
        let digest = Digest::sha256("m");
        let request = gateway::ResolveImageConfigRequest {
            r#ref: format!("name@{digest}"),
            resolver_type: RESOLVER_LAYOUT,
            session_id: "s".to_owned(),
            store_id: "st".to_owned(),
            log_name: "[internal] load".to_owned(),
            ..Default::default()
        };
        let meta = MetaRequest::of_image(request).unwrap();
        assert_eq!(meta.name, "[internal] load");
        let Op::OciLayout(layout) = meta.op else { panic!() };
        assert_eq!((layout.session.as_deref(), layout.store.as_deref()), (Some("s"), Some("st")));
        assert_eq!(layout.digest, Some(digest));
    }

    #[test]
    fn a_warning_without_a_level_has_the_first_one() {
        let request = gateway::WarnRequest { digest: Digest::sha256("v").to_string(), ..Default::default() };
        assert_eq!(warning(request).unwrap().level, 1);
        assert_eq!(warning(gateway::WarnRequest::default()).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn attributes_from_before_return_are_base64_in_json() {
        let read = exporter_attributes(br#"{"a":"YWJj","b":null}"#).unwrap();
        assert_eq!(read, BTreeMap::from([("a".to_owned(), "abc".into()), ("b".to_owned(), "".into())]));
        assert!(exporter_attributes(b"").unwrap().is_empty());
        assert_eq!(exporter_attributes(b"{").unwrap_err().code(), Code::InvalidArgument);
    }
}
