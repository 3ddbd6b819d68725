//! Calls of the Control API, between its messages and plain types.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use super::BuildError;
use super::CallError;
use super::Definition;
use super::Failure;
use super::Output;
use super::Prune;
use super::Usage;
use super::Worker;
use crate::oci::Platform;
use crate::progress::Item;
use crate::progress::Log;
use crate::progress::LogStream;
use crate::progress::ProgressGroup;
use crate::progress::SourceFile;
use crate::progress::SourcePosition;
use crate::progress::SourceRange;
use crate::progress::Update;
use crate::progress::Vertex;
use crate::progress::Warning;
use crate::proto::control;
use crate::proto::control::control_client::ControlClient;
use crate::proto::errdefs;
use crate::proto::json;
use crate::proto::pb;
use crate::proto::rpc;

/// The largest message, both ways.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Type URLs of error details begin with this.
const DETAIL_PREFIX: &str = "github.com/moby/buildkit/";

/// The Control API of a daemon.
#[derive(Clone, Debug)]
pub(super) struct Control(ControlClient<Channel>);

impl Control {
    pub(super) fn new(channel: Channel) -> Control {
        let client = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Control(client)
    }

    pub(super) async fn version(&self) -> Result<String, CallError> {
        let info = self.0.clone().info(control::InfoRequest {}).await.map_err(failed("Info"))?;
        Ok(info.into_inner().buildkit_version.map(|v| v.version).unwrap_or_default())
    }

    pub(super) async fn workers(&self) -> Result<Vec<Worker>, CallError> {
        let request = control::ListWorkersRequest::default();
        let workers = self.0.clone().list_workers(request).await.map_err(failed("ListWorkers"))?;
        Ok(workers
            .into_inner()
            .record
            .into_iter()
            .map(|record| Worker {
                id: record.id,
                labels: record.labels,
                platforms: record.platforms.into_iter().map(platform).collect(),
            })
            .collect())
    }

    pub(super) async fn usage(&self, filter: Vec<String>) -> Result<Vec<Usage>, CallError> {
        let request = control::DiskUsageRequest { filter, age_limit: 0 };
        let response = self.0.clone().disk_usage(request).await.map_err(failed("DiskUsage"))?;
        Ok(response.into_inner().record.into_iter().map(usage).collect())
    }

    pub(super) async fn prune(
        &self,
        prune: Prune,
    ) -> Result<BoxStream<'static, Result<Usage, CallError>>, CallError> {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let request = control::PruneRequest {
            filter: prune.filters,
            all: prune.all,
            keep_duration: i64::try_from(prune.keep.as_nanos()).unwrap_or(i64::MAX),
            reserved_space: signed(prune.reserved_bytes),
            max_used_space: signed(prune.max_used_bytes),
            min_free_space: signed(prune.min_free_bytes),
        };
        let stream = self.0.clone().prune(request).await.map_err(failed("Prune"))?.into_inner();
        Ok(stream.map_ok(usage).map_err(failed("Prune")).boxed())
    }

    /// Opens the tunnel of a session: what the daemon sends comes out, `outbound` goes to it.
    pub(super) async fn session(
        &self,
        id: &str,
        shared_key: &str,
        methods: &[&'static str],
        outbound: mpsc::Receiver<Bytes>,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, CallError> {
        let messages = ReceiverStream::new(outbound).map(|data| control::BytesMessage { data });
        let mut request = Request::new(messages);
        let metadata = request.metadata_mut();
        expose(metadata, "x-docker-expose-session-uuid", id);
        expose(metadata, "x-docker-expose-session-name", "thunk");
        expose(metadata, "x-docker-expose-session-sharedkey", shared_key);
        for method in methods {
            metadata.append("x-docker-expose-session-grpc-method", AsciiMetadataValue::from_static(method));
        }
        let inbound = self.0.clone().session(request).await.map_err(failed("Session"))?.into_inner();
        Ok(inbound.map_ok(|message| message.data).map_err(io::Error::other))
    }

    pub(super) async fn solve(
        &self,
        reference: &str,
        session: &str,
        definition: Definition,
        outputs: &[Output],
    ) -> Result<BTreeMap<String, String>, BuildError> {
        let exporters: Vec<control::Exporter> = outputs
            .iter()
            .map(|output| control::Exporter {
                r#type: output.exporter.clone(),
                attrs: output.attributes.clone(),
            })
            .collect();
        let first = exporters.first().cloned().unwrap_or_default();
        let request = control::SolveRequest {
            r#ref: reference.to_owned(),
            definition: Some(definition.0),
            session: session.to_owned(),
            exporter_deprecated: first.r#type,
            exporter_attrs_deprecated: first.attrs,
            exporters,
            ..control::SolveRequest::default()
        };
        let response = self.0.clone().solve(request).await.map_err(|status| match failure(&status) {
            Some(failure) => BuildError::Failed(Box::new(failure)),
            None => BuildError::Call(failed("Solve")(status)),
        })?;
        Ok(response.into_inner().exporter_response)
    }

    /// Sends the progress of a build until it ends, or nobody listens any more.
    pub(super) async fn follow(
        &self,
        reference: &str,
        progress: &mpsc::Sender<Vec<Update>>,
    ) -> Result<(), CallError> {
        let request = control::StatusRequest { r#ref: reference.to_owned() };
        let mut stream = self.0.clone().status(request).await.map_err(failed("Status"))?.into_inner();
        while let Some(response) = stream.message().await.map_err(failed("Status"))? {
            if progress.send(updates(response)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn expose(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    if let Ok(value) = AsciiMetadataValue::try_from(value) {
        metadata.insert(key, value);
    }
}

fn failed(call: &'static str) -> impl Fn(Status) -> CallError {
    move |status| {
        // The transport hides its cause in the sources.
        let mut message = status.message().to_owned();
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.ends_with(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        CallError { call, code: code(status.code()), message }
    }
}

fn code(code: Code) -> String {
    format!("{code:?}")
}

/// The failure of a build. None if the call itself failed: the transport's statuses have a source.
fn failure(status: &Status) -> Option<Failure> {
    if std::error::Error::source(status).is_some() {
        return None;
    }
    let details = rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    let mut failure = Failure {
        code: code(status.code()),
        message: status.message().to_owned(),
        vertex: None,
        sources: Vec::new(),
    };
    for detail in details {
        match detail.type_url.strip_prefix(DETAIL_PREFIX) {
            Some("errdefs.Vertex+json") => {
                let vertex: Option<errdefs::Vertex> = json::read(&detail.value).ok();
                failure.vertex = vertex.and_then(|v| v.digest.parse().ok()).or(failure.vertex);
            }
            Some("errdefs.Source+json") => {
                let source: Option<errdefs::Source> = json::read(&detail.value).ok();
                failure.sources.extend(source.and_then(|source| {
                    Some((source_file(source.info?), source.ranges.into_iter().map(range).collect()))
                }));
            }
            _ => {}
        }
    }
    Some(failure)
}

fn updates(response: control::StatusResponse) -> Vec<Update> {
    let vertices = response.vertexes.into_iter().filter_map(vertex).map(Update::Vertex);
    let items = response.statuses.into_iter().filter_map(item).map(Update::Item);
    let logs = response.logs.into_iter().filter_map(log).map(Update::Log);
    let warnings = response.warnings.into_iter().filter_map(warning).map(Update::Warning);
    // Inside one response vertices come first.
    vertices.chain(items).chain(logs).chain(warnings).collect()
}

fn vertex(vertex: control::Vertex) -> Option<Vertex> {
    Some(Vertex {
        digest: vertex.digest.parse().ok()?,
        inputs: vertex.inputs.iter().filter_map(|input| input.parse().ok()).collect(),
        name: vertex.name.into(),
        cached: vertex.cached,
        started: vertex.started.and_then(time),
        completed: vertex.completed.and_then(time),
        error: Some(vertex.error).filter(|error| !error.is_empty()),
        group: vertex.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
        usage: None,
    })
}

fn item(status: control::VertexStatus) -> Option<Item> {
    Some(Item {
        vertex: status.vertex.parse().ok()?,
        id: status.id,
        name: status.name,
        current: u64::try_from(status.current).unwrap_or_default(),
        total: u64::try_from(status.total).unwrap_or_default(),
        timestamp: status.timestamp.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH),
        started: status.started.and_then(time),
        completed: status.completed.and_then(time),
    })
}

fn log(log: control::VertexLog) -> Option<Log> {
    Some(Log {
        vertex: log.vertex.parse().ok()?,
        timestamp: log.timestamp.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH),
        stream: if log.stream == 2 { LogStream::Stderr } else { LogStream::Stdout },
        data: log.msg,
    })
}

fn warning(warning: control::VertexWarning) -> Option<Warning> {
    Some(Warning {
        vertex: warning.vertex.parse().ok()?,
        level: warning.level,
        short: warning.short,
        detail: warning.detail,
        url: warning.url,
        source: warning.info.map(source_file),
        ranges: warning.ranges.into_iter().map(range).collect(),
    })
}

fn source_file(info: pb::SourceInfo) -> SourceFile {
    SourceFile {
        filename: info.filename,
        language: info.language,
        data: info.data,
        definition: info.definition.map(|definition| definition.encode_to_vec().into()),
    }
}

fn range(range: pb::Range) -> SourceRange {
    let position = |position: Option<pb::Position>| {
        let position = position.unwrap_or_default();
        SourcePosition { line: position.line, character: position.character }
    };
    SourceRange { start: position(range.start), end: position(range.end) }
}

fn usage(record: control::UsageRecord) -> Usage {
    Usage {
        id: record.id,
        kind: record.record_type,
        description: record.description,
        bytes: u64::try_from(record.size).unwrap_or_default(),
        in_use: record.in_use,
        shared: record.shared,
        created: record.created_at.and_then(time),
        last_used: record.last_used_at.and_then(time),
        used: u64::try_from(record.usage_count).unwrap_or_default(),
        parents: record.parents,
    }
}

fn platform(platform: pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version,
        os_features: platform.os_features,
        variant: platform.variant,
    }
}

fn time(timestamp: prost_types::Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanos = u32::try_from(timestamp.nanos).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_failure_keeps_its_vertex_and_its_places_in_the_source() {
        let vertex = Digest::sha256("v");
        let detail = |name: &str, value: serde_json::Value| prost_types::Any {
            type_url: format!("{DETAIL_PREFIX}{name}"),
            value: value.to_string().into_bytes(),
        };
        let status = rpc::Status {
            code: 5,
            message: "gone".to_owned(),
            details: vec![
                detail("stack.Stack+json", serde_json::json!({"frames": []})),
                detail("errdefs.Vertex+json", serde_json::json!({"digest": vertex.to_string()})),
                detail(
                    "errdefs.Source+json",
                    serde_json::json!({
                        "info": {"filename": "Dockerfile", "data": "RlJPTSB4Cg=="},
                        "ranges": [{"start": {"line": 1}, "end": {"line": 1}}]
                    }),
                ),
            ],
        };
        let status = Status::with_details(Code::NotFound, "gone", status.encode_to_vec().into());
        let failure = failure(&status).unwrap();
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("NotFound", "gone"));
        assert_eq!(failure.vertex, Some(vertex));
        let (file, ranges) = &failure.sources[0];
        assert_eq!((file.filename.as_str(), &file.data[..]), ("Dockerfile", &b"FROM x\n"[..]));
        assert_eq!(ranges[0].start.line, 1);
    }

    #[test]
    fn a_status_without_details_is_a_failure_as_well() {
        let failure = failure(&Status::unknown("no luck")).unwrap();
        assert_eq!(failure.message, "no luck");
        assert!(failure.sources.is_empty());
    }
}
