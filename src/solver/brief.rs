//! How much of an error is told. It travels in the headers of an answer, for which every client has a limit of its own:
//! one that is larger ends the call, or the connection, and nobody learns why.

use std::borrow::Cow;

use super::error::Rejected;
use super::error::SourceLocation;

/// Bytes of a text at most, which a person reads.
pub const MAX_WORDS: usize = 8 << 10;
/// Bytes of all details together. Go clients take 16 MiB of headers.
const MAX_DETAILS: usize = 1 << 20;
/// Bytes of the files that an error comes from: in JSON, and once more in a header, they take twice as much.
const MAX_SOURCES: usize = 256 << 10;
/// Bytes of a range of lines in JSON, about.
const RANGE: usize = 80;

/// The beginning and the end of a text that is longer than a person reads: how a process ended stands behind its
/// arguments.
pub fn brief(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_WORDS {
        return Cow::Borrowed(text);
    }
    const CUT: &str = " [...] ";
    let end = text.floor_char_boundary(MAX_WORDS / 4 * 3);
    let begin = text.ceil_char_boundary(text.len() - (MAX_WORDS / 4 - CUT.len()));
    Cow::Owned(format!("{}{CUT}{}", &text[..end], &text[begin..]))
}

impl Rejected {
    /// As much of it as can be told: the details that fit, the first ones first.
    pub fn brief(mut self) -> Rejected {
        if let Cow::Owned(brief) = brief(&self.message) {
            self.message = brief;
        }
        let mut left = MAX_DETAILS;
        self.details.retain(|(name, value)| take(&mut left, name.len() + value.len()));
        self
    }
}

/// Those places whose files can be told, the last ones first.
pub(super) fn told(locations: &[SourceLocation]) -> impl Iterator<Item = &SourceLocation> {
    let mut left = MAX_SOURCES;
    locations.iter().rev().filter(move |location| {
        let file = &location.file;
        let definition = file.definition.as_ref().map_or(0, bytes::Bytes::len);
        let texts = file.filename.len() + file.language.len() + file.data.len() + definition;
        take(&mut left, texts + location.ranges.len() * RANGE)
    })
}

fn take(left: &mut usize, size: usize) -> bool {
    let rest = left.checked_sub(size);
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::progress::SourceFile;

    #[test]
    fn a_long_text_has_its_beginning_and_its_end() {
        assert!(matches!(brief(&"x".repeat(MAX_WORDS)), Cow::Borrowed(_)));
        let long = format!("process {} ended: 7", "é".repeat(1 << 20));
        let brief = brief(&long);
        assert!(brief.len() <= MAX_WORDS + 4, "{}", brief.len());
        assert!(brief.starts_with("process é") && brief.ends_with("é ended: 7"));
    }

    #[test]
    fn details_that_do_not_fit_are_left_out() {
        let detail = |size| ("name".to_owned(), vec![0; size].into());
        let details = vec![detail(10), detail(2 << 20), detail(MAX_DETAILS - 100), detail(200), detail(10)];
        let rejected = Rejected { code: 2, message: "m".repeat(1 << 20), details }.brief();
        let sizes: Vec<usize> = rejected.details.iter().map(|(_, value)| value.len()).collect();
        assert_eq!(sizes, [10, MAX_DETAILS - 100, 10]);
        assert!(rejected.message.len() <= MAX_WORDS);
    }

    /// One file in a thousand places was a thousand files, each twice as large as it was sent.
    #[test]
    fn places_in_large_files_are_told_while_they_fit() {
        let file = SourceFile {
            filename: "f".to_owned(),
            language: String::new(),
            data: vec![b'#'; MAX_SOURCES / 4].into(),
            definition: None,
        };
        let file = Arc::new(file);
        let locations = vec![SourceLocation { file, ranges: Vec::new() }; 1000];
        assert_eq!(told(&locations).count(), 3);
    }
}
