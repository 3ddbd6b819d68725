//! Bars that move, on a terminal.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use super::Display;
use super::plain;
use crate::oci::Digest;
use crate::progress::Item;
use crate::progress::Update;
use crate::progress::Vertex;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

pub(super) struct Tty {
    screen: MultiProgress,
    steps: HashMap<Digest, Step>,
}

struct Step {
    bar: ProgressBar,
    name: String,
    items: HashMap<String, ProgressBar>,
}

impl Tty {
    pub(super) fn new() -> Tty {
        Tty { screen: MultiProgress::new(), steps: HashMap::new() }
    }

    fn vertex(&mut self, vertex: &Vertex) -> io::Result<()> {
        let Some(started) = vertex.started else { return Ok(()) };
        let Some(completed) = vertex.completed else {
            self.step(vertex);
            return Ok(());
        };
        // A step that ends becomes a line above the bars.
        if let Some(step) = self.steps.remove(&vertex.digest) {
            for bar in step.items.into_values() {
                bar.finish_and_clear();
            }
            step.bar.finish_and_clear();
        }
        let seconds = completed.duration_since(started).unwrap_or_default().as_secs_f64();
        self.screen.println(match &vertex.error {
            Some(error) if error.ends_with("context canceled") => format!(" - {} (canceled)", vertex.name),
            Some(error) => format!(" x {}: {error}", vertex.name),
            None if vertex.cached => format!(" = {}", vertex.name),
            None => format!(" + {} {seconds:.1}s", vertex.name),
        })
    }

    fn step(&mut self, vertex: &Vertex) -> &mut Step {
        let screen = &self.screen;
        self.steps.entry(vertex.digest).or_insert_with(|| {
            let bar = screen.add(ProgressBar::new_spinner().with_style(style(" {spinner} {msg} {elapsed}")));
            bar.set_message(vertex.name.to_string());
            bar.enable_steady_tick(TICK);
            Step { bar, name: vertex.name.to_string(), items: HashMap::new() }
        })
    }

    fn item(&mut self, item: &Item) {
        let Some(step) = self.steps.get_mut(&item.vertex) else { return };
        let bar = step.items.entry(item.id.clone()).or_insert_with(|| {
            let template = match item.total {
                0 => "   {wide_msg} {decimal_bytes}",
                _ => "   {msg} {bar:30} {decimal_bytes} / {decimal_total_bytes} {decimal_bytes_per_sec}",
            };
            let bar = ProgressBar::new(item.total).with_style(style(template));
            self.screen.insert_after(&step.bar, bar)
        });
        let mut name = plain::name(item);
        if let Some(end) = name.find("sha256:").map(|at| at + 7 + 12).filter(|end| *end < name.len()) {
            name.truncate(end);
        }
        bar.set_message(name);
        bar.set_length(item.total);
        bar.set_position(item.current);
        if item.completed.is_some() {
            bar.finish_and_clear();
            step.items.remove(&item.id);
        }
    }
}

/// A template of ours; indicatif's own if it does not like it.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Display for Tty {
    fn show(&mut self, updates: Vec<Update>) -> io::Result<()> {
        for update in updates {
            match update {
                Update::Vertex(vertex) => self.vertex(&vertex)?,
                Update::Item(item) => self.item(&item),
                Update::Log(log) => {
                    if let Some(step) = self.steps.get(&log.vertex) {
                        let text = String::from_utf8_lossy(&log.data);
                        let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
                        step.bar.set_message(format!("{}: {last}", step.name));
                    }
                }
                Update::Warning(warning) => {
                    let short = String::from_utf8_lossy(&warning.short);
                    self.screen.println(format!(" ! {}", short.trim_end()))?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        for step in self.steps.values() {
            step.items.values().for_each(ProgressBar::finish_and_clear);
            step.bar.finish_and_clear();
        }
        // The terminal is gone if this fails, and with it the need.
        let _ = self.screen.clear();
    }
}
