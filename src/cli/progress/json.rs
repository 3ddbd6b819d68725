//! The JSON of BuildKit's `rawjson`: a line a response, with the fields of its Go client.

use std::io;
use std::io::Write;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Display;
use crate::progress::LogStream;
use crate::progress::Update;

pub(super) struct Json<W> {
    out: W,
}

impl<W: Write> Json<W> {
    pub(super) fn new(out: W) -> Json<W> {
        Json { out }
    }
}

impl<W: Write + Send> Display for Json<W> {
    fn show(&mut self, updates: Vec<Update>) -> io::Result<()> {
        let mut line = Map::new();
        for update in updates {
            let (list, value) = spell(update);
            let list = line.entry(list).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(value);
            }
        }
        writeln!(self.out, "{}", Value::Object(line))?;
        self.out.flush()
    }
}

fn spell(update: Update) -> (&'static str, Value) {
    let (list, mut value) = match update {
        Update::Vertex(vertex) => (
            "vertexes",
            json!({
                "digest": vertex.digest.to_string(),
                "inputs": vertex.inputs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "name": &*vertex.name,
                "started": vertex.started.map(time),
                "completed": vertex.completed.map(time),
                "cached": vertex.cached,
                "error": vertex.error,
            }),
        ),
        Update::Item(item) => (
            "statuses",
            json!({
                "id": item.id,
                "vertex": item.vertex.to_string(),
                "name": item.name,
                "total": item.total,
                "current": item.current,
                "timestamp": time(item.timestamp),
                "started": item.started.map(time),
                "completed": item.completed.map(time),
            }),
        ),
        Update::Log(log) => (
            "logs",
            json!({
                "vertex": log.vertex.to_string(),
                "stream": match log.stream { LogStream::Stdout => 1, LogStream::Stderr => 2 },
                "data": STANDARD.encode(&log.data),
                "timestamp": time(log.timestamp),
            }),
        ),
        Update::Warning(warning) => (
            "warnings",
            json!({
                "vertex": warning.vertex.to_string(),
                "level": warning.level,
                "short": STANDARD.encode(&warning.short),
                "detail": warning.detail.iter().map(|line| STANDARD.encode(line)).collect::<Vec<_>>(),
                "url": warning.url,
            }),
        ),
    };
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| {
            !(value.is_null() || *value == json!(false) || *value == json!("") || *value == json!([]))
        });
    }
    (list, value)
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::progress::Vertex;

    #[test]
    fn a_response_is_one_line_with_the_names_of_the_go_client() {
        let mut json = Json::new(Vec::new());
        let digest = Digest::sha256("v");
        let vertex = Vertex { started: Some(SystemTime::UNIX_EPOCH), ..Vertex::new(digest, "a step") };
        json.show(vec![Update::Vertex(vertex)]).unwrap();
        assert_eq!(
            String::from_utf8(json.out).unwrap(),
            format!(
                "{{\"vertexes\":[{{\"digest\":\"{digest}\",\"name\":\"a step\",\"started\":\"1970-01-01T00:00:00Z\"}}]}}\n"
            )
        );
    }
}
