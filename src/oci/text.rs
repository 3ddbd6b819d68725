//! Reads values that are written as text.
//!
//! Rows and manifests have many of them, so that the text is parsed where it stands, and not copied first.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::Error;
use serde::de::Visitor;

/// What the text in `deserializer` says. `expected` is what it should be, for the error where there is no text.
pub fn from_text<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_str(Text { expected, value: PhantomData })
}

struct Text<T> {
    expected: &'static str,
    value: PhantomData<T>,
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::oci::Digest;

    /// Where a text stood that was parsed.
    struct Place(*const u8);

    impl FromStr for Place {
        type Err = Infallible;

        fn from_str(text: &str) -> Result<Place, Infallible> {
            Ok(Place(text.as_ptr()))
        }
    }

    #[test]
    fn a_text_is_parsed_where_it_stands() {
        let json = r#""a text""#;
        let place: Place = from_text(&mut serde_json::Deserializer::from_str(json), "a text").unwrap();
        assert_eq!(place.0, json[1..].as_ptr());
    }

    #[test]
    fn a_text_is_read_from_whatever_has_it() {
        let digest = Digest::sha256("");
        let json = serde_json::to_string(&digest).unwrap();
        let escaped = json.replace("sha", r"\u0073ha");
        assert_eq!(serde_json::from_str::<Digest>(&escaped).unwrap(), digest);
        assert_eq!(serde_json::from_reader::<_, Digest>(json.as_bytes()).unwrap(), digest);
        assert_eq!(serde_json::from_value::<Digest>(digest.to_string().into()).unwrap(), digest);
    }

    #[test]
    fn what_is_no_text_is_told_from_a_wrong_one() {
        let error = |json: &str| serde_json::from_str::<Digest>(json).unwrap_err().to_string();
        assert!(error("7").contains("expected a digest"), "{}", error("7"));
        assert!(error(r#""md5:00""#).contains("md5"), "{}", error(r#""md5:00""#));
    }
}
