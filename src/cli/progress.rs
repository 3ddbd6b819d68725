//! Shows how a build comes along, on standard error.

use std::io;
use std::io::IsTerminal as _;

use clap::ValueEnum;
use tokio::sync::mpsc;

use crate::progress::Update;

mod json;
mod plain;
mod tty;

/// How to show progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(super) enum Style {
    /// tty on a terminal, else plain.
    #[default]
    Auto,
    /// A line an event.
    Plain,
    /// Bars that move.
    Tty,
    /// BuildKit's JSON, a line a response.
    Rawjson,
    /// Nothing.
    Quiet,
}

trait Display: Send {
    fn show(&mut self, updates: Vec<Update>) -> io::Result<()>;

    /// Leaves the terminal as it was found.
    fn end(&mut self) {}
}

struct Nothing;

impl Display for Nothing {
    fn show(&mut self, _: Vec<Update>) -> io::Result<()> {
        Ok(())
    }
}

/// Shows what comes until the sender is gone. A display that breaks stops showing and lets the build go on.
pub(super) async fn show(style: Style, mut updates: mpsc::Receiver<Vec<Update>>) {
    let mut display: Box<dyn Display> = match style {
        Style::Auto if io::stderr().is_terminal() => Box::new(tty::Tty::new()),
        Style::Tty => Box::new(tty::Tty::new()),
        Style::Auto | Style::Plain => Box::new(plain::Plain::new(io::stderr())),
        Style::Rawjson => Box::new(json::Json::new(io::stderr())),
        Style::Quiet => Box::new(Nothing),
    };
    while let Some(batch) = updates.recv().await {
        if let Err(error) = display.show(batch) {
            tracing::debug!(%error, "progress can't be shown any more");
            display = Box::new(Nothing);
        }
    }
    display.end();
}

/// `12.3 MB`, in powers of ten.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut unit = 0;
    let mut divisor = 1u64;
    while bytes / divisor >= 1000 && unit + 1 < UNITS.len() {
        divisor *= 1000;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18446.7 PB");
    }
}
