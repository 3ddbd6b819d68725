//! Sizes and durations as `buildkitd.toml` spells them.

use std::time::Duration;

/// An amount of disk space: so many bytes, or a share of the disk that holds the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    Bytes(u64),
    /// 0 to 100.
    Percent(u8),
}

impl Space {
    /// The amount in bytes on a disk of `total` bytes.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Space::Bytes(bytes) => bytes,
            Space::Percent(percent) => {
                u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
        }
    }
}

pub(super) const SPACE: &str =
    "a number of bytes, a size such as \"512MB\" or \"10GB\", or a share of the disk such as \"20%\"";
pub(super) const DURATION: &str = "a number of seconds or a duration such as \"48h\" or \"1h30m\"";

/// Reads a size. Units are binary whatever their spelling (`1k`, `1kB` and `1KiB` are 1024 bytes),
/// as they are for `buildkitd`; fractions are cut to whole bytes.
pub fn parse_space(text: &str) -> Option<Space> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u8 = digits(percent)?.parse().ok()?;
        return (percent <= 100).then_some(Space::Percent(percent));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let (value, scale) = decimal(number)?;
    let bytes = value.checked_mul(1 << shift)? / scale;
    u64::try_from(bytes).ok().map(Space::Bytes)
}

/// Reads a duration: whole seconds, or Go's form (`1h30m`, `1.5s`, `300ms`). Never negative.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(seconds) = digits(text) {
        return seconds.parse().ok().map(Duration::from_secs);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanoseconds: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (value, scale) = decimal(number)?;
        total = total.checked_add(value.checked_mul(nanoseconds)? / scale)?;
        rest = after;
    }
    // Go counts nanoseconds in 63 bits; what does not fit there is a typing error.
    i64::try_from(total).ok().map(|n| Duration::from_nanos(n.unsigned_abs()))
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// `12.5` as (125, 10). At most 18 digits after the point count.
fn decimal(text: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    Some((parse(whole)?.checked_mul(scale)? + parse(fraction)?, scale))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_buildkitd_reads_them() {
        for (text, space) in [
            ("0", Space::Bytes(0)),
            ("123456789", Space::Bytes(123_456_789)),
            ("40MB", Space::Bytes(40 << 20)),
            ("10GB", Space::Bytes(10 << 30)),
            ("10 GiB", Space::Bytes(10 << 30)),
            ("1.5k", Space::Bytes(1536)),
            (".5k", Space::Bytes(512)),
            ("20b", Space::Bytes(20)),
            ("20%", Space::Percent(20)),
            ("100%", Space::Percent(100)),
        ] {
            assert_eq!(parse_space(text), Some(space), "{text}");
        }
        for text in [
            "",
            "GB",
            "-1",
            "-5GB",
            "101%",
            "1.5%",
            "%",
            "10 XB",
            "10GBB",
            "1.2.3",
            ".",
            "1  k",
            "99999999999PB",
        ] {
            assert_eq!(parse_space(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_seconds_or_go_durations() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("3600", 3_600_000_000_000),
            ("48h", 172_800_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            ("300ms", 300_000_000),
            ("7\u{b5}s", 7_000),
            ("+2s", 2_000_000_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for text in ["", "+", "-1s", "-5", "1d", "h", "1h30", "1..5s", ".s", "s1", "9999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_share_of_the_largest_disk_does_not_overflow() {
        assert_eq!(Space::Percent(100).bytes(u64::MAX), u64::MAX);
        assert_eq!(Space::Percent(20).bytes(1000), 200);
    }

    proptest! {
        #[test]
        fn whole_bytes_are_kept(bytes: u64) {
            prop_assert_eq!(parse_space(&bytes.to_string()), Some(Space::Bytes(bytes)));
        }

        #[test]
        fn hours_minutes_and_seconds_add_up(h in 0u64..9999, m in 0u64..9999, s in 0u64..9999) {
            prop_assert_eq!(
                parse_duration(&format!("{h}h{m}m{s}s")),
                Some(Duration::from_secs(h * 3600 + m * 60 + s))
            );
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.kKmMgGiIbBhs% ]{0,24}") {
            let _ = parse_space(&text);
            let _ = parse_duration(&text);
        }
    }
}
