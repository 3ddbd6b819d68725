//! A line an event: for logs, and for terminals that can't do better.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::time::Duration;
use std::time::SystemTime;

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
    /// When it ran, by when it began.
    ran: BTreeMap<SystemTime, SystemTime>,
    /// Lines that are still to be written.
    lines: Vec<String>,
    /// The end of the log that has no line break yet.
    partial: Vec<u8>,
}

/// The last line about an item.
struct Shown {
    at: SystemTime,
    ended: bool,
}

impl<W: Write> Plain<W> {
    pub(super) fn new(out: W) -> Plain<W> {
        Plain { out, steps: HashMap::new(), shown: 0 }
    }

    /// Writes what is new about a step: its name where it had none or had ended, its lines, and then its end.
    fn tell(&mut self, digest: &Digest, last: bool) -> io::Result<()> {
        let Some(step) = self.steps.get_mut(digest) else { return Ok(()) };
        if step.number.is_none() && step.vertex.started.is_none() && step.lines.is_empty() {
            return Ok(());
        }
        let is_new = step.number.is_none();
        let number = *step.number.get_or_insert_with(|| {
            self.shown += 1;
            self.shown
        });
        if is_new || (step.ended && !step.lines.is_empty()) {
            step.ended = false;
            writeln!(self.out, "#{number} {}", step.vertex.name)?;
        }
        for line in step.lines.drain(..) {
            writeln!(self.out, "#{number} {line}")?;
        }
        let is_open = step.vertex.completed.is_none() || step.items.values().any(|item| !item.ended);
        if step.ended || step.vertex.completed.is_none() || (is_open && !last) {
            return Ok(());
        }
        step.ended = true;
        if !step.partial.is_empty() {
            let line = std::mem::take(&mut step.partial);
            writeln!(self.out, "#{number} {}", String::from_utf8_lossy(&line))?;
        }
        match &step.vertex.error {
            Some(error) if error.ends_with("context canceled") => writeln!(self.out, "#{number} CANCELED"),
            Some(error) => writeln!(self.out, "#{number} ERROR: {error}"),
            None if step.vertex.cached => writeln!(self.out, "#{number} CACHED"),
            None => writeln!(self.out, "#{number} DONE {:.1}s", step.seconds()),
        }
    }
}

impl Step {
    fn new(vertex: Vertex) -> Step {
        let (items, ran) = (HashMap::new(), BTreeMap::new());
        Step { vertex, number: None, ended: false, items, ran, lines: Vec::new(), partial: Vec::new() }
    }

    /// A vertex may run again; its end is told again if there was news of it, or if it is another one.
    fn update(&mut self, vertex: Vertex) {
        if vertex.error != self.vertex.error {
            self.ended = false;
        }
        if let (Some(started), Some(completed)) = (vertex.started, vertex.completed) {
            self.ran.insert(started, completed);
        }
        self.vertex = vertex;
    }

    fn item(&mut self, item: &Item) {
        let ended = item.completed.is_some();
        let due = self.items.get(&item.id).is_none_or(|shown| {
            !shown.ended
                && (ended || item.timestamp.duration_since(shown.at).is_ok_and(|since| since >= ITEM_PACE))
        });
        if !due {
            return;
        }
        self.items.insert(item.id.clone(), Shown { at: item.timestamp, ended });
        let mut line = name(item);
        match (item.current, item.total) {
            (0, 0) => {}
            (current, 0) => line.push_str(&format!(" {}", size(current))),
            (current, total) => line.push_str(&format!(" {} / {}", size(current), size(total))),
        }
        if let (Some(started), Some(completed)) = (item.started, item.completed) {
            let seconds = completed.duration_since(started).unwrap_or_default().as_secs_f64();
            line.push_str(&format!(" {seconds:.1}s done"));
        }
        self.lines.push(line);
    }

    fn log(&mut self, data: &[u8]) {
        self.partial.extend_from_slice(data);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    }

    /// How long it ran, all of its turns together.
    fn seconds(&self) -> f64 {
        let (mut all, mut until) = (Duration::ZERO, SystemTime::UNIX_EPOCH);
        for (&started, &completed) in &self.ran {
            all += completed.duration_since(started.max(until)).unwrap_or_default();
            until = until.max(completed);
        }
        all.as_secs_f64()
    }
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
    /// What comes together is told together: the end of a vertex stands before its last items in a message.
    fn show(&mut self, updates: Vec<Update>) -> io::Result<()> {
        let (mut touched, mut warnings) = (Vec::new(), Vec::new());
        for update in updates {
            let digest = match &update {
                Update::Vertex(vertex) => vertex.digest,
                Update::Item(item) => item.vertex,
                Update::Log(log) => log.vertex,
                Update::Warning(warning) => {
                    warnings.push(String::from_utf8_lossy(&warning.short).trim_end().to_owned());
                    continue;
                }
            };
            let step = match &update {
                Update::Vertex(vertex) => {
                    Some(self.steps.entry(digest).or_insert_with(|| Step::new(vertex.clone())))
                }
                _ => self.steps.get_mut(&digest),
            };
            match (update, step) {
                (Update::Vertex(vertex), Some(step)) => step.update(vertex),
                (Update::Item(item), Some(step)) => step.item(&item),
                (Update::Log(log), Some(step)) => step.log(&log.data),
                _ => continue,
            }
            if !touched.contains(&digest) {
                touched.push(digest);
            }
        }
        for digest in &touched {
            self.tell(digest, false)?;
        }
        for warning in warnings {
            writeln!(self.out, "WARNING: {warning}")?;
        }
        self.out.flush()
    }

    fn end(&mut self) {
        let open = self.steps.iter().filter(|(_, step)| !step.ended);
        let mut open: Vec<_> = open.map(|(digest, step)| (step.number, *digest)).collect();
        open.sort();
        for (_, digest) in open {
            // A display that breaks here has nothing left to show.
            let _ = self.tell(&digest, true);
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Ends stood before the items that they end, and were told once for each of these.
    #[test]
    fn an_end_comes_after_its_items_and_again_only_for_a_vertex_that_was_opened_again() {
        let mut plain = Plain::new(Vec::new());
        plain.show(vec![Update::Vertex(started("send")), item("send", 1_000_000, 0, false)]).unwrap();
        let cached = Update::Vertex(Vertex { cached: true, ..ended("pull") });
        plain
            .show(vec![Update::Vertex(ended("send")), cached.clone(), item("send", 3_000_000, 1500, true)])
            .unwrap();
        plain.show(vec![Update::Vertex(ended("send")), cached]).unwrap();
        let again = Vertex { started: Some(at(4000)), ..started("pull") };
        plain.show(vec![Update::Vertex(again.clone()), item("pull", 1_000_000, 4000, false)]).unwrap();
        let again = Vertex { completed: Some(at(5000)), ..again };
        plain.show(vec![Update::Vertex(again), item("pull", 3_000_000, 5000, true)]).unwrap();
        plain.end();
        let told = String::from_utf8(plain.out).unwrap();
        let lines = [
            "#1 send",
            "#1 sha256:00 1.0 MB / 3.0 MB",
            "#1 sha256:00 3.0 MB / 3.0 MB 1.5s done",
            "#1 DONE 1.5s",
            "#2 pull",
            "#2 CACHED",
            "#2 pull",
            "#2 sha256:00 1.0 MB / 3.0 MB",
            "#2 sha256:00 3.0 MB / 3.0 MB 5.0s done",
            "#2 DONE 2.5s",
        ];
        assert_eq!(told.lines().collect::<Vec<_>>(), lines);
    }
}
