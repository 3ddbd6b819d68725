//! JSON as Go's `encoding/json` writes it, so that equal images have equal digests whoever made them.
//!
//! Go differs from `serde_json` in what it escapes: `<`, `>`, `&`, U+2028 and U+2029 are written as
//! `\u` escapes, inside values that are only passed on as well. Such values are compacted, otherwise
//! kept as they are: numbers and the order of their keys don't change.

use serde::Serialize;

/// `value` as `json.Marshal` writes it.
pub(super) fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    Ok(compact(&serde_json::to_string(value)?).into_bytes())
}

/// `value` as `json.MarshalIndent` with two spaces writes it.
pub(super) fn to_vec_indented(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    Ok(escape(&serde_json::to_string_pretty(value)?).into_bytes())
}

/// Valid JSON without the white space between its tokens, and with Go's escapes.
pub(super) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_text, mut escaped) = (false, false);
    for c in json.chars() {
        if in_text {
            push_escaped(&mut out, c);
            (in_text, escaped) = match c {
                _ if escaped => (true, false),
                '\\' => (true, true),
                '"' => (false, false),
                _ => (true, false),
            };
        } else if !matches!(c, ' ' | '\t' | '\n' | '\r') {
            in_text = c == '"';
            out.push(c);
        }
    }
    out
}

/// Valid JSON as `json.MarshalIndent` with two spaces writes it, values that are only passed on as well.
pub(super) fn indent(json: &str) -> String {
    let compact = compact(json);
    let mut out = String::with_capacity(compact.len() * 2);
    let (mut in_text, mut escaped, mut depth) = (false, false, 0_usize);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    let mut chars = compact.chars().peekable();
    while let Some(c) = chars.next() {
        if in_text {
            out.push(c);
            (in_text, escaped) = match c {
                _ if escaped => (true, false),
                '\\' => (true, true),
                '"' => (false, false),
                _ => (true, false),
            };
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// The characters in question occur inside of strings only, so that no parsing is needed.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    json.chars().for_each(|c| push_escaped(&mut out, c));
    out
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '<' => out.push_str("\\u003c"),
        '>' => out.push_str("\\u003e"),
        '&' => out.push_str("\\u0026"),
        '\u{2028}' => out.push_str("\\u2028"),
        '\u{2029}' => out.push_str("\\u2029"),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn a_value_passed_on_keeps_its_numbers_and_the_order_of_its_keys() {
        let raw: Box<RawValue> =
            serde_json::from_str("{ \"b\" : 1.50,\n\t\"a\" : [ 1e3 , \"x \\\" y \\\\\" ] , \"c\":\"<&>\" }")
                .unwrap();
        assert_eq!(
            String::from_utf8(to_vec(&raw).unwrap()).unwrap(),
            r#"{"b":1.50,"a":[1e3,"x \" y \\"],"c":"\u003c\u0026\u003e"}"#
        );
    }

    #[test]
    fn indented_values_look_like_gos() {
        let value = serde_json::json!({"a": [1], "e": [], "o": {}, "s": "a&\u{2028}\u{1}"});
        assert_eq!(
            String::from_utf8(to_vec_indented(&value).unwrap()).unwrap(),
            "{\n  \"a\": [\n    1\n  ],\n  \"e\": [],\n  \"o\": {},\n  \"s\": \"a\\u0026\\u2028\\u0001\"\n}"
        );
    }

    #[test]
    fn a_value_passed_on_is_indented_too_and_keeps_its_numbers() {
        assert_eq!(
            indent(r#"{"b" :1.50,"a":[{ }, [] ,"x\"{,"]}"#),
            "{\n  \"b\": 1.50,\n  \"a\": [\n    {},\n    [],\n    \"x\\\"{,\"\n  ]\n}"
        );
    }

    proptest! {
        #[test]
        fn both_ways_to_indent_agree(text in "\\PC{0,20}", n in any::<i64>()) {
            let value = serde_json::json!({"k": text, "n": [n, null, {"x": [], "y": {}}], text.clone(): {}});
            let pretty = String::from_utf8(to_vec_indented(&value).unwrap()).unwrap();
            prop_assert_eq!(indent(&serde_json::to_string(&value).unwrap()), pretty);
        }

        #[test]
        fn what_is_written_reads_back_the_same(text in "\\PC{0,40}", n in any::<i64>()) {
            let value = serde_json::json!({"k": text, "n": [n, null, {"x": text}]});
            for bytes in [to_vec(&value).unwrap(), to_vec_indented(&value).unwrap()] {
                prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), value.clone());
            }
        }
    }
}
