//! Which part of a blob a reply has (RFC 9110 section 14.4).

use std::ops::Range;

use http::HeaderValue;
use http::header::CONTENT_RANGE;
use reqwest::Response;

/// True if a reply has just the part that was asked for.
pub(super) fn is_answer(response: &Response, range: &Range<u64>, size: u64) -> bool {
    let header = response.headers().get(CONTENT_RANGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let length = response.content_length();
    parse_content_range(&String::from_utf8_lossy(header)).is_some_and(|(first, last, total)| {
        first == range.start
            && last == range.end - 1
            && total.is_none_or(|total| total == size)
            && length.is_none_or(|length| length == range.end - range.start)
    })
}

/// `bytes first-last/total` (RFC 9110 section 14.4); the total may be `*`.
pub(super) fn parse_content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = header.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (unit.eq_ignore_ascii_case("bytes") && first <= last && total.is_none_or(|total| last < total))
        .then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges_are_read_by_the_rules() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_content_range("Bytes 0-0/*"), Some((0, 0, None)));
        for bad in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "items 5-9/10",
            "bytes 5-9",
            "5-9/10",
            "bytes -5-9/10",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_panics(first in any::<u64>(), length in 0u64..1000, text in "\\PC{0,40}") {
            let last = first.saturating_add(length);
            if last < u64::MAX {
                let header = format!("bytes {first}-{last}/{}", u64::MAX);
                prop_assert_eq!(parse_content_range(&header), Some((first, last, Some(u64::MAX))));
            }
            let _ = parse_content_range(&text);
        }
    }
}
