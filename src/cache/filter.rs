//! containerd's filters, as `buildctl du --filter` and `prune --filter` send them.
//!
//! A text is a list of selectors joined by commas, all of which must hold; of several texts one must
//! hold. A selector is a path of fields joined by dots, alone (the field is present) or with `==`,
//! `!=` or `~=` (a regular expression) and a value. Fields and values may be quoted with `"`; after
//! `~=` also with `/` or `|`.

use regex::bytes::Regex;
use regex::bytes::RegexBuilder;

/// Bytes of one filter at most.
const MAX_FILTER: usize = 16 << 10;

/// Filters of one list at most.
const MAX_FILTERS: usize = 128;

/// Memory of one compiled regular expression at most, in bytes.
const MAX_REGEX: usize = 1 << 20;

/// A list of filters, one of which must match. The empty list matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A text is not a filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("filter {text:?} is not valid at byte {at}: {reason}")]
pub struct InvalidFilter {
    pub text: String,
    pub at: usize,
    pub reason: String,
}

impl Filter {
    /// Parses a list; an empty text among them matches everything, as no text does.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Filter, InvalidFilter> {
        let invalid = |text: &str, at, reason: String| InvalidFilter {
            text: text.chars().take(160).collect(),
            at,
            reason,
        };
        if texts.len() > MAX_FILTERS {
            let reason = format!("more than {MAX_FILTERS} filters in one list");
            return Err(invalid("", 0, reason));
        }
        let mut any = Vec::with_capacity(texts.len());
        for text in texts.iter().map(AsRef::as_ref) {
            if text.len() > MAX_FILTER {
                return Err(invalid(text, MAX_FILTER, format!("longer than {MAX_FILTER} bytes")));
            }
            if text.is_empty() {
                any.push(Vec::new());
                continue;
            }
            let mut parser = Parser { text, at: 0 };
            any.push(parser.selectors().map_err(|reason| invalid(text, parser.at, reason))?);
        }
        Ok(Filter { any })
    }

    /// True if the thing matches whose fields `field` gives: `None` is an absent field.
    pub fn matches<'v>(&self, field: impl Fn(&[&str]) -> Option<std::borrow::Cow<'v, str>>) -> bool {
        let holds = |selector: &Selector| {
            let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
            let value = field(&path);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.is_some_and(|v| v == *wanted),
                Test::NotEqual(unwanted) => value.unwrap_or_default() != *unwanted,
                Test::Matches(regex) => regex.is_match(value.unwrap_or_default().as_bytes()),
            }
        };
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(holds))
    }

    /// True if everything matches.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() || self.any.iter().any(Vec::is_empty)
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, String> {
        let mut all = vec![self.selector()?];
        loop {
            self.skip_space();
            match self.peek() {
                None => return Ok(all),
                Some(',') => {
                    self.at += 1;
                    all.push(self.selector()?);
                }
                Some(other) => return Err(format!("{other:?} stands where a comma or the end should")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        self.skip_space();
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
            self.skip_space();
        }
        let operator_at = self.at;
        while matches!(self.peek(), Some('=' | '!' | '~')) {
            self.at += 1;
        }
        let test = match &self.text[operator_at..self.at] {
            "" => Test::Present,
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => Test::Matches(self.regex()?),
            other => {
                let reason = format!("operator {other:?} is none of ==, != and ~=");
                self.at = operator_at;
                return Err(reason);
            }
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        if start == self.at {
            return Err("a field is expected".to_owned());
        }
        Ok(self.text[start..self.at].to_owned())
    }

    fn value(&mut self, for_regex: bool) -> Result<String, String> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') if for_regex => self.quoted(),
            None => Err("a value is expected".to_owned()),
            Some(c @ ('/' | '|' | ',' | '.' | '=' | '!' | '~')) => {
                Err(format!("a value that starts with {c:?} must be quoted with \""))
            }
            Some(_) => {
                let start = self.at;
                while self.peek().is_some_and(|c| c != ',' && !c.is_whitespace() && !c.is_control()) {
                    self.advance();
                }
                if start == self.at {
                    return Err("a value is expected".to_owned());
                }
                Ok(self.text[start..self.at].to_owned())
            }
        }
    }

    fn regex(&mut self) -> Result<Regex, String> {
        let pattern = self.value(true)?;
        // Go's classes are ASCII as well.
        RegexBuilder::new(&pattern)
            .unicode(false)
            .size_limit(MAX_REGEX)
            .build()
            .map_err(|cause| format!("regular expression {pattern:?}: {cause}"))
    }

    /// A literal in Go's syntax, after any of the three quotes.
    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.peek().ok_or("a quote is expected")?;
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let c = self.peek().filter(|c| *c != '\n').ok_or("a quoted text is not closed")?;
            self.advance();
            if c == quote {
                break;
            }
            if c != '\\' {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            let escape = self.peek().ok_or("a quoted text is not closed")?;
            self.advance();
            match escape {
                'a' => bytes.push(0x07),
                'b' => bytes.push(0x08),
                'f' => bytes.push(0x0c),
                'n' => bytes.push(b'\n'),
                'r' => bytes.push(b'\r'),
                't' => bytes.push(b'\t'),
                'v' => bytes.push(0x0b),
                '\\' => bytes.push(b'\\'),
                c if c == quote => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                'x' => bytes.push(u8::try_from(self.digits(16, 2)?).map_err(|e| e.to_string())?),
                'u' | 'U' => {
                    let code = self.digits(16, if escape == 'u' { 4 } else { 8 })?;
                    let c = char::from_u32(code).ok_or("an escape is not a Unicode character")?;
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                '0'..='7' => {
                    self.at -= 1;
                    let code = self.digits(8, 3)?;
                    bytes.push(u8::try_from(code).map_err(|_| "an octal escape is over \\377")?);
                }
                other => return Err(format!("escape \\{other} is not known")),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a quoted text is not UTF-8".to_owned())
    }

    fn digits(&mut self, radix: u32, count: usize) -> Result<u32, String> {
        let mut code = 0u32;
        for _ in 0..count {
            let digit = self.peek().and_then(|c| c.to_digit(radix)).ok_or("a numeric escape is too short")?;
            code =
                code.checked_mul(radix).and_then(|c| c.checked_add(digit)).ok_or("an escape is too large")?;
            self.at += 1;
        }
        Ok(code)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn advance(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn matches(filters: &[&str], fields: &[(&str, &str)]) -> bool {
        let fields: BTreeMap<&str, &str> = fields.iter().copied().collect();
        Filter::parse(filters)
            .unwrap()
            .matches(|path| fields.get(path.join(".").as_str()).map(|v| Cow::Borrowed(*v)))
    }

    #[test]
    fn a_list_is_or_and_a_comma_is_and() {
        let thing = [("id", "x1"), ("type", "regular"), ("inuse", "")];
        for (filters, expected) in [
            (&[][..], true),
            (&[""], true),
            (&["id==x1"], true),
            (&["id==x1,type==regular"], true),
            (&["id==x1,type==frontend"], false),
            (&["id==x2", "type==regular"], true),
            (&["id==x2", "type==frontend"], false),
            (&["inuse"], true),
            (&["shared"], false),
            (&["inuse==true"], false),
            (&["type!=frontend"], true),
            (&["shared!=x"], true),
            (&["absent!="], true),
        ] {
            if filters == ["absent!="] {
                assert!(Filter::parse(filters).is_err(), "a value must follow");
                continue;
            }
            assert_eq!(matches(filters, &thing), expected, "{filters:?}");
        }
    }

    #[test]
    fn values_match_by_regular_expression_in_any_quotes() {
        let thing = [("description", "pulled from docker.io/library/busybox:1")];
        for (filter, expected) in [
            ("description~=busybox", true),
            ("description~=^busybox", false),
            (r#"description~="^pulled from [a-z.]+/""#, true),
            (r"description~=/docker\\.io\/library/", true),
            (r"description~=|lib(r|x)|", false),
            (r"description~=|lib(r\|x)|", true),
            (r"description ~= \d$", true),
        ] {
            let fields: BTreeMap<&str, &str> = thing.iter().copied().collect();
            match Filter::parse(&[filter]) {
                Ok(filter) => assert_eq!(
                    filter.matches(|p| fields.get(p[0]).map(|v| Cow::Borrowed(*v))),
                    expected,
                    "{filter:?}"
                ),
                Err(e) => assert!(!expected, "{e}"),
            }
        }
    }

    #[test]
    fn quoted_fields_hold_what_a_bare_one_cannot() {
        assert!(matches(&[r#"labels."a-b\x41"==c"#], &[("labels.a-bA", "c")]));
        assert!(matches(&["labels . x == y"], &[("labels.x", "y")]));
        assert!(matches(&["a==x.y/z-1"], &[("a", "x.y/z-1")]));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_its_place() {
        for text in [
            ",",
            "a,",
            "a=b",
            "a===b",
            "a==",
            "==a",
            "a b",
            "a.",
            ".a",
            "a==\"b",
            "a==/b/",
            "a~=(",
            "a~=/x",
            "a==\"\\q\"",
            "a\0",
            "a==.b",
            "a~=\"\\u12\"",
        ] {
            let error = Filter::parse(&[text]).expect_err(text);
            assert!(error.at <= text.len());
        }
        assert!(Filter::parse(&["a".repeat(MAX_FILTER + 1)]).is_err());
        assert!(Filter::parse(&[r"a~=(\w{500}){500}"]).is_err(), "the size of an expression is bounded");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let _ = Filter::parse(&[text]);
        }

        #[test]
        fn likely_texts_do_not_panic(text in r#"[a-c.,=!~"/|\\x0-9 ]{0,24}"#) {
            if let Ok(filter) = Filter::parse(&[text]) {
                filter.matches(|_| None);
                filter.matches(|_| Some(Cow::Borrowed("abc")));
            }
        }

        #[test]
        fn a_quoted_value_equals_itself(value in "\\PC{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filter = Filter::parse(&[format!("id==\"{quoted}\"")]).unwrap();
            prop_assert!(filter.matches(|_| Some(Cow::Borrowed(value.as_str()))));
            let other = format!("{value}x");
            prop_assert!(!filter.matches(|_| Some(Cow::Borrowed(other.as_str()))));
        }

        #[test]
        fn selectors_agree_with_the_model(
            fields in proptest::collection::btree_map("[a-c]", "[xyz]", 0..3),
            filters in proptest::collection::vec(
                proptest::collection::vec(("[a-c]", 0u8..3, "[xyz]"), 1..3), 0..3),
        ) {
            let texts: Vec<String> = filters.iter().map(|all| {
                let all: Vec<String> = all.iter().map(|(f, op, v)| match op {
                    0 => f.clone(),
                    1 => format!("{f}=={v}"),
                    _ => format!("{f}!={v}"),
                }).collect();
                all.join(",")
            }).collect();
            let expected = filters.is_empty() || filters.iter().any(|all| all.iter().all(|(f, op, v)| {
                match (op, fields.get(f)) {
                    (0, value) => value.is_some(),
                    (1, value) => value == Some(v),
                    (_, value) => value != Some(v),
                }
            }));
            let filter = Filter::parse(&texts).unwrap();
            prop_assert_eq!(filter.matches(|p| fields.get(p[0]).map(|v| Cow::Borrowed(v.as_str()))), expected);
        }
    }
}
