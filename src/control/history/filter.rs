//! Filters of the build history.
//!
//! A filter is a comma-separated list in the manner of CSV, all of which must hold. Fields with an
//! order, `startedAt`, `completedAt` and `duration`, are compared with `<`, `<=`, `>` or `>=`; the rest
//! is a filter on `ref`, `status` and `repository` as containerd writes them.

use std::borrow::Cow;

use jiff::SignedDuration;
use jiff::Timestamp;

use super::record::Record;
use crate::cache::Filter;
use crate::cache::InvalidFilter;

/// A list of filters, one of which must match; the empty list matches everything.
#[derive(Clone, Debug)]
pub struct HistoryFilter {
    any: Vec<(Vec<Comparison>, Filter)>,
}

#[derive(Clone, Debug)]
struct Comparison {
    field: Field,
    operator: Operator,
}

#[derive(Clone, Debug)]
enum Field {
    Started(Timestamp),
    Completed(Timestamp),
    Duration(SignedDuration),
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A text is not a filter of the history.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidHistoryFilter {
    #[error(transparent)]
    Fields(#[from] InvalidFilter),
    #[error("a quote of the filter {text:?} is not closed")]
    Quote { text: String },
    #[error("{value:?} is no time: use RFC 3339 or how long ago, such as 1h30m")]
    Time { value: String },
    #[error("{value:?} is no duration: use numbers with units, such as 1h30m")]
    Duration { value: String },
}

impl HistoryFilter {
    /// Parses `filters`; times that are given as an age count from `now`.
    pub fn parse(filters: &[String], now: Timestamp) -> Result<HistoryFilter, InvalidHistoryFilter> {
        let any = filters.iter().map(|text| {
            let mut comparisons = Vec::new();
            let mut rest = Vec::new();
            for part in split(text)? {
                match Comparison::parse(&part, now)? {
                    Some(comparison) => comparisons.push(comparison),
                    None => rest.push(part),
                }
            }
            Ok((comparisons, Filter::parse(&[rest.join(",")])?))
        });
        Ok(HistoryFilter { any: any.collect::<Result<_, InvalidHistoryFilter>>()? })
    }

    pub fn matches(&self, record: &Record) -> bool {
        let field = |path: &[&str]| match path {
            ["ref"] if !record.build.is_empty() => Some(Cow::Borrowed(record.build.as_str())),
            ["status"] => Some(Cow::Borrowed(record.state().name())),
            ["repository"] => record.repository().map(Cow::Borrowed),
            _ => None,
        };
        self.any.is_empty()
            || self.any.iter().any(|(comparisons, filter)| {
                comparisons.iter().all(|comparison| comparison.holds(record)) && filter.matches(field)
            })
    }
}

impl Comparison {
    /// None if `text` does not compare a field that has an order.
    fn parse(text: &str, now: Timestamp) -> Result<Option<Comparison>, InvalidHistoryFilter> {
        let Some(at) = text.find(['<', '>']) else { return Ok(None) };
        let (name, rest) = text.split_at(at);
        let (operator, value) = match rest.as_bytes() {
            [b'<', b'=', ..] => (Operator::LessOrEqual, &rest[2..]),
            [b'>', b'=', ..] => (Operator::GreaterOrEqual, &rest[2..]),
            [b'<', ..] => (Operator::Less, &rest[1..]),
            _ => (Operator::Greater, &rest[1..]),
        };
        let time = || match duration(value) {
            Some(age) => now.checked_sub(age).ok(),
            None => value.parse().ok(),
        };
        let invalid_time = || InvalidHistoryFilter::Time { value: clip(value) };
        let field = match name {
            "startedAt" => Field::Started(time().ok_or_else(invalid_time)?),
            "completedAt" => Field::Completed(time().ok_or_else(invalid_time)?),
            "duration" => Field::Duration(
                duration(value).ok_or_else(|| InvalidHistoryFilter::Duration { value: clip(value) })?,
            ),
            _ => return Ok(None),
        };
        Ok(Some(Comparison { field, operator }))
    }

    /// Times are compared by the second. What a running build does not have yet is zero.
    fn holds(&self, record: &Record) -> bool {
        match &self.field {
            Field::Started(limit) => self.operator.holds(record.created.as_second(), limit.as_second()),
            Field::Completed(limit) => {
                let completed = record.completed.map_or(0, Timestamp::as_second);
                self.operator.holds(completed, limit.as_second())
            }
            Field::Duration(limit) => {
                let taken = record.completed.map(|completed| completed.duration_since(record.created));
                self.operator.holds(taken.unwrap_or_default(), *limit)
            }
        }
    }
}

impl Operator {
    fn holds<T: Ord>(self, value: T, limit: T) -> bool {
        match self {
            Operator::Less => value < limit,
            Operator::LessOrEqual => value <= limit,
            Operator::Greater => value > limit,
            Operator::GreaterOrEqual => value >= limit,
        }
    }
}

/// Fields between commas; one in quotes may hold commas, and quotes by doubling them. Quotes within a
/// field belong to what the field says.
fn split(text: &str) -> Result<Vec<String>, InvalidHistoryFilter> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            match rest.split_once(',') {
                Some((field, after)) => {
                    fields.push(field.to_owned());
                    rest = after;
                    continue;
                }
                None => {
                    fields.push(rest.to_owned());
                    return Ok(fields);
                }
            }
        };
        let mut field = String::new();
        let mut tail = quoted;
        loop {
            let unclosed = || InvalidHistoryFilter::Quote { text: clip(text) };
            let (part, after) = tail.split_once('"').ok_or_else(unclosed)?;
            field.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    tail = after;
                }
                None => {
                    tail = after;
                    break;
                }
            }
        }
        fields.push(field);
        match tail.strip_prefix(',') {
            Some(after) => rest = after,
            None if tail.is_empty() => return Ok(fields),
            None => return Err(InvalidHistoryFilter::Quote { text: clip(text) }),
        }
    }
}

/// A duration as Go writes it: numbers, maybe with fractions, each with its unit.
fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut total = SignedDuration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    Some(if negative { -total } else { total })
}

fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::RecordedError;
    use super::*;

    fn record() -> Record {
        let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Record {
            created,
            completed: Some(created + SignedDuration::from_secs(90)),
            frontend_attributes: [("context".to_owned(), "https://example.test/r.git#main".to_owned())]
                .into(),
            ..Record::new("abc")
        }
    }

    fn matches(filters: &[&str], record: &Record) -> bool {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let filters: Vec<String> = filters.iter().map(|&text| text.to_owned()).collect();
        HistoryFilter::parse(&filters, now).unwrap().matches(record)
    }

    #[test]
    fn one_filter_of_the_list_and_all_its_parts_must_hold() {
        let record = record();
        for (filters, expected) in [
            (&[][..], true),
            (&["ref==abc"], true),
            (&["ref==x", "ref==abc"], true),
            (&["ref==abc,status==error"], false),
            (&["status==completed,duration>=1m30s"], true),
            (&["duration<1m30s"], false),
            (&["duration>1.5m"], false),
            (&["duration<=90000ms"], true),
            (&["startedAt>=2026-01-01T00:00:00Z"], true),
            (&["startedAt>2026-01-01T00:00:00Z"], false),
            (&["startedAt>61m"], true),
            (&["startedAt>59m"], false),
            (&["completedAt<=2026-01-01T00:01:30Z"], true),
            (&["repository==\"https://example.test/r.git\""], true),
            (&["\"repository~=/^https:/\",ref==abc"], true),
        ] {
            assert_eq!(matches(filters, &record), expected, "{filters:?}");
        }
    }

    #[test]
    fn a_status_follows_from_completion_and_error() {
        let mut record = record();
        let error = |message: &str| Some(RecordedError { code: 1, message: message.to_owned() });
        record.error = error("exit code: 1");
        assert!(matches(&["status==error"], &record));
        record.error = error("solve: context canceled");
        assert!(matches(&["status==canceled"], &record));
        record.completed = None;
        assert!(matches(&["status==running,completedAt<1h"], &record), "not completed is long ago");
    }

    #[test]
    fn what_is_no_filter_is_refused_by_its_kind() {
        let parse = |text: &str| HistoryFilter::parse(&[text.to_owned()], Timestamp::now()).unwrap_err();
        assert!(matches!(parse("duration>soon"), InvalidHistoryFilter::Duration { .. }));
        assert!(matches!(parse("startedAt>1parsec"), InvalidHistoryFilter::Time { .. }));
        assert!(matches!(parse("\"ref==abc"), InvalidHistoryFilter::Quote { .. }));
        assert!(matches!(parse("ref=abc"), InvalidHistoryFilter::Fields(_)));
    }
}
