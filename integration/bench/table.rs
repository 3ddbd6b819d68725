//! The table that a run prints.

use std::fmt;

/// What was measured of one contestant, least is best.
#[derive(Clone, Default)]
pub struct Samples {
    values: Vec<f64>,
    /// It was given up at this value.
    beyond: Option<f64>,
}

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    pub fn give_up(&mut self, at: f64) {
        self.beyond = Some(at);
    }

    pub fn is_given_up(&self) -> bool {
        self.beyond.is_some()
    }

    fn least(&self) -> Option<f64> {
        self.values.iter().copied().min_by(f64::total_cmp)
    }

    fn most(&self) -> Option<f64> {
        self.values.iter().copied().max_by(f64::total_cmp)
    }

    /// The middle value, or the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }
}

impl From<Vec<f64>> for Samples {
    fn from(values: Vec<f64>) -> Samples {
        Samples { values, beyond: None }
    }
}

/// One row a measure, one column a contestant.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    measure: String,
    unit: &'static str,
    kind: RowKind,
    ours: Samples,
    peers: Samples,
    target: String,
}

#[derive(PartialEq, Eq)]
enum RowKind {
    /// Less is better, and the ratio says by how much.
    Measure,
    /// A number that is right or wrong.
    Count,
}

impl Table {
    /// Adds a measure where less is better, of ourselves and of the peer if there is one. `target` is what
    /// the ratio peer / ours should reach, or a bound of our own figure.
    pub fn add(
        &mut self,
        measure: impl Into<String>,
        unit: &'static str,
        samples: impl IntoIterator<Item = impl Into<Samples>>,
        target: impl Into<String>,
    ) {
        self.put(RowKind::Measure, measure.into(), unit, samples, target.into());
    }

    /// Adds a number that is not better for being smaller.
    pub fn count(
        &mut self,
        measure: impl Into<String>,
        samples: impl IntoIterator<Item = impl Into<Samples>>,
        target: impl Into<String>,
    ) {
        self.put(RowKind::Count, measure.into(), "", samples, target.into());
    }

    fn put(
        &mut self,
        kind: RowKind,
        measure: String,
        unit: &'static str,
        samples: impl IntoIterator<Item = impl Into<Samples>>,
        target: String,
    ) {
        let mut samples = samples.into_iter().map(Into::into);
        let (ours, peers) = (samples.next().unwrap_or_default(), samples.next().unwrap_or_default());
        let row = Row { measure, unit, kind, ours, peers, target };
        // A run that is broken off has told what it had.
        eprintln!("  {row}");
        self.rows.push(row);
    }
}

fn cell(samples: &Samples, unit: &str) -> String {
    if let Some(at) = samples.beyond {
        return format!("> {at:.0} {unit}");
    }
    let (Some(middle), Some(least), Some(most)) = (samples.median(), samples.least(), samples.most()) else {
        return "–".to_owned();
    };
    if samples.values.len() == 1 {
        format!("{middle:.1} {unit}")
    } else {
        format!("{middle:.1} {unit} ({least:.1}–{most:.1})")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quotient = |ours: Option<f64>, peers: Option<f64>| match (ours, peers) {
            (Some(ours), Some(peers)) if ours > 0.0 => Some(peers / ours),
            _ => None,
        };
        let ratio = match self.peers.beyond {
            _ if self.kind == RowKind::Count => None,
            Some(at) => quotient(self.ours.median(), Some(at)).map(|ratio| format!("> {ratio:.2}×")),
            None => quotient(self.ours.median(), self.peers.median()).map(|medians| {
                let least = quotient(self.ours.least(), self.peers.least()).unwrap_or(medians);
                format!("{medians:.2}× ({least:.2}×)")
            }),
        };
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} |",
            self.measure,
            cell(&self.ours, self.unit),
            cell(&self.peers, self.unit),
            ratio.as_deref().unwrap_or("–"),
            self.target,
            self.ours.values.len(),
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Median (least–most); the ratio of the medians, and that of the least values.\n")?;
        writeln!(f, "| measure | thunkd | peer | peer / thunkd | to reach | samples |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}
