//! The table that a run prints.

use std::fmt;

/// Medians of both daemons per measure.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    measure: String,
    unit: &'static str,
    ours: Vec<f64>,
    peers: Vec<f64>,
    target: String,
}

impl Table {
    /// Adds a measure where less is better. `target` is what the ratio peer / ours should reach, or
    /// a bound of our own figure.
    pub fn add(
        &mut self,
        measure: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        peers: Vec<f64>,
        target: impl Into<String>,
    ) {
        self.rows.push(Row { measure: measure.into(), unit, ours, peers, target: target.into() });
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn cell(values: &[f64], unit: &str) -> String {
    let Some(middle) = median(values) else { return "–".to_owned() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() == 1 {
        format!("{middle:.1} {unit}")
    } else {
        format!("{middle:.1} {unit} ({least:.1}–{most:.1})")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measure | thunkd | buildkitd | buildkitd / thunkd | to reach | samples |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let ratio = match (median(&row.ours), median(&row.peers)) {
                (Some(ours), Some(peers)) if ours > 0.0 => format!("{:.2}×", peers / ours),
                _ => "–".to_owned(),
            };
            writeln!(
                f,
                "| {} | {} | {} | {ratio} | {} | {} |",
                row.measure,
                cell(&row.ours, row.unit),
                cell(&row.peers, row.unit),
                row.target,
                row.ours.len(),
            )?;
        }
        Ok(())
    }
}
