//! Reads a TOML file key by key and keeps the place of everything that it reads.
//!
//! A [`Section`] hands out values of the type that is asked for. What has another type, or a value that is
//! refused, becomes a [`Finding`] with its line, column and key, and reading goes on, so that one look shows all
//! of them. What nobody asked for is found at the end by [`Document::unread`].
//!
//! Keys are found whatever the case of their letters, as `buildkitd` finds them; the exact spelling goes first.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

/// Something to say about one place of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The whole key, such as `worker.oci.gc`. Empty for a fault of the syntax.
    pub key: String,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// A parsed file and what was found in it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    root: Spanned<DeTable<'t>>,
    /// Where the keys start that somebody asked for. A leaf key has a place of its own.
    read: RefCell<HashSet<usize>>,
    faults: RefCell<Vec<Finding>>,
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Document<'t>, Finding> {
        let root = DeTable::parse(text).map_err(|e| {
            let (line, column) = place(text, e.span().map_or(0, |span| span.start));
            Finding { line, column, key: String::new(), what: e.message().trim_end().replace('\n', ", ") }
        })?;
        Ok(Document { text, root, read: RefCell::default(), faults: RefCell::default() })
    }

    pub(super) fn root(&self) -> Section<'_> {
        Section { document: self, table: Some(self.root.get_ref()), path: String::new(), at: 0 }
    }

    /// What was refused, by place.
    pub(super) fn faults(&self) -> Vec<Finding> {
        let mut faults = self.faults.borrow().clone();
        faults.sort_by_key(|f| (f.line, f.column));
        // A section may be entered, and found to be none, more than once.
        faults.dedup();
        faults
    }

    /// Every key that nobody asked for: its place, its whole path and its value's type.
    pub(super) fn unread(&self) -> Vec<Finding> {
        let mut unread = Vec::new();
        self.collect_unread(self.root.get_ref(), "", &mut unread);
        unread.sort_by_key(|f| (f.line, f.column));
        unread
    }

    fn collect_unread(&self, table: &DeTable<'_>, path: &str, out: &mut Vec<Finding>) {
        for (key, value) in table {
            if self.read.borrow().contains(&key.span().start) && !holds_tables(value.get_ref()) {
                continue;
            }
            let path = join(path, key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) if !inner.is_empty() => self.collect_unread(inner, &path, out),
                DeValue::Array(items) if holds_tables(value.get_ref()) => {
                    for item in items.iter() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.collect_unread(inner, &path, out);
                        }
                    }
                }
                _ if self.read.borrow().contains(&key.span().start) => {}
                other => out.push(self.finding(key.span(), &path, kind(other).to_owned())),
            }
        }
    }

    fn finding(&self, span: Range<usize>, key: &str, what: String) -> Finding {
        let (line, column) = place(self.text, span.start);
        Finding { line, column, key: key.to_owned(), what }
    }

    fn fault(&self, span: Range<usize>, key: &str, what: String) {
        let finding = self.finding(span, key, what);
        self.faults.borrow_mut().push(finding);
    }
}

/// A table of the file, or the absence of one: then every key is absent.
#[derive(Clone)]
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    table: Option<&'d DeTable<'d>>,
    path: String,
    at: usize,
}

impl<'d> Section<'d> {
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.value(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key, "true or false", |v| v.as_bool())
    }

    pub(super) fn number(&self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let expected = if *range.end() == i64::MAX {
            format!("a whole number of at least {}", range.start())
        } else {
            format!("a whole number from {} to {}", range.start(), range.end())
        };
        self.value(key, &expected, |v| integer(v).filter(|n| range.contains(n)))
    }

    /// A string or a whole number that `parse` understands.
    pub(super) fn scalar<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, expected, |v| match v {
            DeValue::String(text) => parse(text),
            v => integer(v).and_then(|n| parse(&n.to_string())),
        })
    }

    /// A string that `parse` understands; its error says what was expected.
    pub(super) fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (path, value) = self.find(key)?;
        self.parse_one(&path, value, &parse)
    }

    /// A list of strings, each of which `parse` understands.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let (path, value) = self.find(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.mismatch(&path, value, "a list of strings");
            return None;
        };
        Some(items.iter().filter_map(|item| self.parse_one(&path, item, &parse)).collect())
    }

    /// The section `key`, empty if there is none.
    pub(super) fn section(&self, key: &str) -> Section<'d> {
        let Some((path, value)) = self.find(key) else {
            return Section {
                document: self.document,
                table: None,
                path: join(&self.path, key),
                at: self.at,
            };
        };
        self.enter(path, value)
    }

    /// The sections `[[key]]`, in order.
    pub(super) fn sections(&self, key: &str) -> Option<Vec<Section<'d>>> {
        let (path, value) = self.find(key)?;
        match value.get_ref() {
            DeValue::Array(items) => Some(items.iter().map(|item| self.enter(path.clone(), item)).collect()),
            _ => {
                self.mismatch(&path, value, "a list of tables");
                None
            }
        }
    }

    /// Every key of this section, as a section each.
    pub(super) fn named_sections(&self) -> Vec<(String, Section<'d>)> {
        let keys = self.table.into_iter().flatten();
        keys.map(|(key, value)| {
            self.document.read.borrow_mut().insert(key.span().start);
            (key.get_ref().to_string(), self.enter(join(&self.path, key.get_ref()), value))
        })
        .collect()
    }

    /// Every key of this section, as a string each.
    pub(super) fn named_texts(&self) -> Vec<(String, String)> {
        let keys = self.table.into_iter().flatten();
        keys.filter_map(|(key, value)| {
            self.document.read.borrow_mut().insert(key.span().start);
            let path = join(&self.path, key.get_ref());
            let text = self.parse_one(&path, value, &|text: &str| Ok(text.to_owned()))?;
            Some((key.get_ref().to_string(), text))
        })
        .collect()
    }

    /// Refuses the section as a whole, or the value of one of its keys.
    pub(super) fn refuse(&self, key: &str, what: impl Into<String>) {
        let at = self.lookup(key).map_or(self.at..self.at, |(_, _, value)| value.span());
        let path = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        self.document.fault(at, &path, what.into());
    }

    /// Looks at the type of a key that has no use here.
    pub(super) fn check(&self, key: &str, kind: Kind) {
        // The key stays unread, so that it is still reported as not used.
        let Some((path, _, value)) = self.lookup(key) else { return };
        let fits = match (kind, value.get_ref()) {
            (Kind::Text, DeValue::String(_))
            | (Kind::Flag, DeValue::Boolean(_))
            | (Kind::Number, DeValue::Integer(_))
            | (Kind::Scalar, DeValue::String(_) | DeValue::Integer(_))
            | (Kind::Table, DeValue::Table(_)) => true,
            (Kind::Texts, DeValue::Array(items)) => items.iter().all(|i| i.get_ref().is_str()),
            (Kind::Tables, DeValue::Array(items)) => items.iter().all(|i| i.get_ref().is_table()),
            _ => false,
        };
        if !fits {
            self.mismatch(&path, value, kind.expectation());
        }
    }

    fn enter(&self, path: String, value: &'d Spanned<DeValue<'d>>) -> Section<'d> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mismatch(&path, value, "a table");
        }
        Section { document: self.document, table, path, at: value.span().start }
    }

    fn lookup(&self, key: &str) -> Option<(String, usize, &'d Spanned<DeValue<'d>>)> {
        let table = self.table?;
        let exact = table.iter().find(|(k, _)| k.get_ref() == key);
        let (found, value) =
            exact.or_else(|| table.iter().find(|(k, _)| k.get_ref().eq_ignore_ascii_case(key)))?;
        Some((join(&self.path, found.get_ref()), found.span().start, value))
    }

    fn find(&self, key: &str) -> Option<(String, &'d Spanned<DeValue<'d>>)> {
        let (path, at, value) = self.lookup(key)?;
        self.document.read.borrow_mut().insert(at);
        Some((path, value))
    }

    fn value<T>(&self, key: &str, expected: &str, take: impl Fn(&DeValue<'_>) -> Option<T>) -> Option<T> {
        let (path, value) = self.find(key)?;
        let taken = take(value.get_ref());
        if taken.is_none() {
            self.mismatch(&path, value, expected);
        }
        taken
    }

    fn parse_one<T>(
        &self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(text) = value.get_ref().as_str() else {
            self.mismatch(path, value, "a string");
            return None;
        };
        parse(text).map_err(|what| self.document.fault(value.span(), path, what)).ok()
    }

    fn mismatch(&self, path: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = match value.get_ref() {
            DeValue::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Integer(number) => number.to_string(),
            other => kind(other).to_owned(),
        };
        self.document.fault(value.span(), path, format!("expected {expected}, found {found}"));
    }
}

/// The type of a key that is known and not used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    Texts,
    Flag,
    Number,
    Scalar,
    Table,
    Tables,
}

impl Kind {
    fn expectation(self) -> &'static str {
        match self {
            Kind::Text => "a string",
            Kind::Texts => "a list of strings",
            Kind::Flag => "true or false",
            Kind::Number => "a whole number",
            Kind::Scalar => "a whole number or a string",
            Kind::Table => "a table",
            Kind::Tables => "a list of tables",
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn holds_tables(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(inner) => !inner.is_empty(),
        DeValue::Array(items) => items.iter().any(|i| i.get_ref().is_table()),
        _ => false,
    }
}

/// `path.key`, with the key quoted where TOML wants it quoted.
fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The line and column of an offset, both from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}
