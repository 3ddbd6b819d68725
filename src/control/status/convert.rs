//! Batches of updates as messages, and messages as the bytes that are kept of a build.

use std::sync::Arc;

use bytes::Buf as _;
use bytes::Bytes;
use bytes::BytesMut;
use prost::Message as _;

use super::told;
use crate::progress::Item;
use crate::progress::Log;
use crate::progress::LogStream;
use crate::progress::Update;
use crate::progress::Vertex;
use crate::progress::Warning;
use crate::proto::control;
use crate::proto::pb;
use crate::solver::convert::range;
use crate::solver::convert::source_info;

/// A message is closed once it has this many bytes; one that a single update fills may be larger.
const SPLIT: usize = 1 << 20;

/// One message of a build's status.
pub type Response = control::StatusResponse;

/// The messages that tell a batch.
pub fn responses(batch: &[Arc<Update>]) -> Vec<Response> {
    let mut responses = Vec::new();
    let mut open = control::StatusResponse::default();
    let mut size = 0;
    for update in told(batch) {
        size += match update {
            Update::Vertex(vertex) => push(&mut open.vertexes, self::vertex(vertex)),
            Update::Item(item) => push(&mut open.statuses, self::item(item)),
            Update::Log(log) => push(&mut open.logs, self::log(log)),
            Update::Warning(warning) => push(&mut open.warnings, self::warning(warning)),
        };
        if size >= SPLIT {
            responses.push(std::mem::take(&mut open));
            size = 0;
        }
    }
    if size > 0 {
        responses.push(open);
    }
    responses
}

/// Adds a message and gives what it adds to the size, about.
fn push<M: prost::Message>(list: &mut Vec<M>, message: M) -> usize {
    const TAG_AND_LENGTH: usize = 4;
    let size = message.encoded_len() + TAG_AND_LENGTH;
    list.push(message);
    size
}

fn vertex(vertex: &Vertex) -> control::Vertex {
    control::Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
        name: vertex.name.to_string(),
        cached: vertex.cached,
        started: vertex.started.map(Into::into),
        completed: vertex.completed.map(Into::into),
        error: vertex.error.clone().unwrap_or_default(),
        progress_group: vertex.group.as_ref().map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
    }
}

fn item(item: &Item) -> control::VertexStatus {
    control::VertexStatus {
        id: item.id.clone(),
        vertex: item.vertex.to_string(),
        name: item.name.clone(),
        current: i64::try_from(item.current).unwrap_or(i64::MAX),
        total: i64::try_from(item.total).unwrap_or(i64::MAX),
        timestamp: Some(item.timestamp.into()),
        started: item.started.map(Into::into),
        completed: item.completed.map(Into::into),
    }
}

fn log(log: &Log) -> control::VertexLog {
    control::VertexLog {
        vertex: log.vertex.to_string(),
        timestamp: Some(log.timestamp.into()),
        stream: match log.stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
        },
        msg: log.data.clone(),
    }
}

fn warning(warning: &Warning) -> control::VertexWarning {
    control::VertexWarning {
        vertex: warning.vertex.to_string(),
        level: warning.level,
        short: warning.short.clone(),
        detail: warning.detail.clone(),
        url: warning.url.clone(),
        info: warning.source.as_ref().map(source_info),
        ranges: warning.ranges.iter().map(range).collect(),
    }
}

/// Appends a message as it is kept: its length in four bytes, the lowest first, and then itself.
pub fn frame(response: &Response, out: &mut BytesMut) {
    // A message is not much larger than one update, and an update than what a client may send.
    let length = u32::try_from(response.encoded_len()).expect("a status message is smaller than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    response.encode(out).expect("the buffer grows");
}

/// What is kept of a build is damaged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidFrame {
    #[error("the kept status ends {missing} bytes early")]
    Short { missing: usize },
    #[error("a kept status message can't be decoded: {reason}")]
    Message { reason: String },
}

/// The messages in what is kept of a build. Ends after the first error.
#[derive(Debug)]
pub struct Frames(pub Bytes);

impl Iterator for Frames {
    type Item = Result<Response, InvalidFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let next = self.take();
        if next.is_err() {
            self.0.clear();
        }
        Some(next)
    }
}

impl Frames {
    fn take(&mut self) -> Result<Response, InvalidFrame> {
        const HEAD: usize = 4;
        let short = |missing| InvalidFrame::Short { missing };
        if self.0.len() < HEAD {
            return Err(short(HEAD - self.0.len()));
        }
        let length = self.0.get_u32_le() as usize;
        if self.0.len() < length {
            return Err(short(length - self.0.len()));
        }
        let message = self.0.split_to(length);
        control::StatusResponse::decode(message)
            .map_err(|error| InvalidFrame::Message { reason: error.to_string() })
    }
}
