//! A line an event: for logs, and for terminals that can't do better.

use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::time::Duration;

use super::Display;
use super::size;
use crate::oci::Digest;
use crate::progress::Item;
use crate::progress::Update;
use crate::progress::Vertex;

/// How much time of an item must pass before it has another line.
const ITEM_PACE: Duration = Duration::from_secs(5);

pub(super) struct Plain<W> {
    out: W,
    steps: HashMap<Digest, Step>,
    shown: usize,
}

/// A vertex that has been mentioned.
struct Step {
    vertex: Vertex,
    /// None until it has its first line.
    number: Option<usize>,
    /// Its end has been told, and nothing since.
    ended: bool,
    items: HashMap<String, Shown>,
    /// The end of the log that has no line break yet.
    partial: Vec<u8>,
}

/// The last line about an item.
struct Shown {
    at: std::time::SystemTime,
    ended: bool,
}

impl<W: Write> Plain<W> {
    pub(super) fn new(out: W) -> Plain<W> {
        Plain { out, steps: HashMap::new(), shown: 0 }
    }

    fn vertex(&mut self, vertex: Vertex) -> io::Result<()> {
        let step = self.steps.entry(vertex.digest).or_insert_with(|| Step {
            vertex: vertex.clone(),
            number: None,
            ended: false,
            items: HashMap::new(),
            partial: Vec::new(),
        });
        // A vertex may run again; its end is told again if there was news of it, or if it is another one.
        if vertex.error != step.vertex.error {
            step.ended = false;
        }
        step.vertex = vertex;
        if step.vertex.started.is_none() {
            return Ok(());
        }
        let number = introduce(&mut self.out, &mut self.shown, step)?;
        let vertex = &step.vertex;
        if let (Some(started), Some(completed), false) = (vertex.started, vertex.completed, step.ended) {
            step.ended = true;
            if !step.partial.is_empty() {
                let line = std::mem::take(&mut step.partial);
                writeln!(self.out, "#{number} {}", String::from_utf8_lossy(&line))?;
            }
            let seconds = completed.duration_since(started).unwrap_or_default().as_secs_f64();
            match &vertex.error {
                Some(error) if error.ends_with("context canceled") => {
                    writeln!(self.out, "#{number} CANCELED")?;
                }
                Some(error) => writeln!(self.out, "#{number} ERROR: {error}")?,
                None if vertex.cached => writeln!(self.out, "#{number} CACHED")?,
                None => writeln!(self.out, "#{number} DONE {seconds:.1}s")?,
            }
        }
        Ok(())
    }

    fn item(&mut self, item: &Item) -> io::Result<()> {
        let Some(step) = self.steps.get_mut(&item.vertex) else { return Ok(()) };
        let ended = item.completed.is_some();
        let due = step.items.get(&item.id).is_none_or(|shown| {
            !shown.ended
                && (ended || item.timestamp.duration_since(shown.at).is_ok_and(|since| since >= ITEM_PACE))
        });
        if !due {
            return Ok(());
        }
        step.ended = false;
        step.items.insert(item.id.clone(), Shown { at: item.timestamp, ended });
        let number = introduce(&mut self.out, &mut self.shown, step)?;
        write!(self.out, "#{number} {}", name(item))?;
        match (item.current, item.total) {
            (0, 0) => {}
            (current, 0) => write!(self.out, " {}", size(current))?,
            (current, total) => write!(self.out, " {} / {}", size(current), size(total))?,
        }
        if let (Some(started), Some(completed)) = (item.started, item.completed) {
            let seconds = completed.duration_since(started).unwrap_or_default().as_secs_f64();
            write!(self.out, " {seconds:.1}s done")?;
        }
        writeln!(self.out)
    }

    fn log(&mut self, vertex: &Digest, data: &[u8]) -> io::Result<()> {
        let Some(step) = self.steps.get_mut(vertex) else { return Ok(()) };
        let number = introduce(&mut self.out, &mut self.shown, step)?;
        step.ended = false;
        step.partial.extend_from_slice(data);
        while let Some(end) = step.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = step.partial.drain(..=end).collect();
            writeln!(self.out, "#{number} {}", String::from_utf8_lossy(&line).trim_end())?;
        }
        Ok(())
    }
}

/// Writes the name of a step that has none on the screen yet.
fn introduce(out: &mut impl Write, shown: &mut usize, step: &mut Step) -> io::Result<usize> {
    if let Some(number) = step.number {
        return Ok(number);
    }
    *shown += 1;
    step.number = Some(*shown);
    writeln!(out, "#{shown} {}", step.vertex.name)?;
    Ok(*shown)
}

/// What an item is called: its action, and what it is about.
pub(super) fn name(item: &Item) -> String {
    if item.name.is_empty() || item.id.starts_with(&item.name) {
        item.id.clone()
    } else {
        format!("{} {}", item.name, item.id)
    }
}

impl<W: Write + Send> Display for Plain<W> {
    fn show(&mut self, updates: Vec<Update>) -> io::Result<()> {
        for update in updates {
            match update {
                Update::Vertex(vertex) => self.vertex(vertex)?,
                Update::Item(item) => self.item(&item)?,
                Update::Log(log) => self.log(&log.vertex, &log.data)?,
                Update::Warning(warning) => {
                    let short = String::from_utf8_lossy(&warning.short).into_owned();
                    writeln!(self.out, "WARNING: {}", short.trim_end())?;
                }
            }
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::progress::Log;
    use crate::progress::LogStream;
    use crate::progress::Warning;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_000 + milliseconds)
    }

    fn started(name: &str) -> Vertex {
        Vertex { started: Some(at(0)), ..Vertex::new(Digest::sha256(name), name) }
    }

    fn ended(name: &str) -> Vertex {
        Vertex { completed: Some(at(1500)), ..started(name) }
    }

    fn item(vertex: &str, current: u64, time: u64, completed: bool) -> Update {
        Update::Item(Item {
            vertex: Digest::sha256(vertex),
            id: "sha256:00".to_owned(),
            name: String::new(),
            current,
            total: 3_000_000,
            timestamp: at(time),
            started: Some(at(0)),
            completed: completed.then(|| at(time)),
        })
    }

    #[test]
    fn a_build_is_told_line_by_line() {
        let mut plain = Plain::new(Vec::new());
        let log = |data: &'static str| {
            Update::Log(Log {
                vertex: Digest::sha256("run"),
                timestamp: at(1),
                stream: LogStream::Stdout,
                data: data.into(),
            })
        };
        let failed = Vertex { error: Some("no luck".to_owned()), ..ended("run") };
        plain
            .show(vec![
                Update::Vertex(Vertex::new(Digest::sha256("later"), "later")),
                Update::Vertex(started("pull")),
                item("pull", 1_000_000, 0, false),
                item("pull", 1_500_000, 100, false),
                item("pull", 2_000_000, 6000, false),
                Update::Vertex(started("run")),
                log("one\ntwo"),
                log(" more\nlast"),
                item("pull", 3_000_000, 6100, true),
                item("pull", 3_000_000, 6200, true),
                Update::Vertex(ended("pull")),
                Update::Vertex(ended("pull")),
                Update::Vertex(failed),
                Update::Vertex(Vertex { cached: true, ..ended("copy") }),
                Update::Warning(Warning {
                    vertex: Digest::sha256("run"),
                    level: 1,
                    short: "old syntax\n".into(),
                    detail: Vec::new(),
                    url: String::new(),
                    source: None,
                    ranges: Vec::new(),
                }),
            ])
            .unwrap();
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(String::from_utf8(plain.out).unwrap());
        });
    }
}
