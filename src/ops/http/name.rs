//! What a downloaded file is called.

use reqwest::Url;

/// For a file that has no name.
const DEFAULT: &str = "download";

/// The name that the source gives, else that of the header `Content-Disposition`, else the last part of
/// the address. Never a path.
pub fn file_name(address: &str, given: Option<&str>, disposition: Option<&str>) -> String {
    if let Some(given) = given.filter(|name| !name.is_empty()) {
        return safe(given);
    }
    if let Some(name) = disposition.and_then(disposition_name).filter(|name| !name.ends_with('/')) {
        return safe(&name);
    }
    let path = Url::parse(address).map(|url| url.path().to_owned()).unwrap_or_default();
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        Some(last) => safe(&unescape(last)),
        None => DEFAULT.to_owned(),
    }
}

fn safe(name: &str) -> String {
    let name = name.trim().trim_end_matches('/');
    let name = name.rsplit('/').next().unwrap_or_default();
    let usable = !matches!(name, "" | "." | "..") && !name.chars().any(char::is_control) && name.len() <= 255;
    if usable { name.to_owned() } else { DEFAULT.to_owned() }
}

/// The parameter `filename*` or `filename` (RFC 6266).
fn disposition_name(header: &str) -> Option<String> {
    let (mut plain, mut extended) = (None, None);
    let mut rest = header.split_once(';')?.1;
    while !rest.trim().is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let key = key.trim().to_ascii_lowercase();
        let (value, behind) = parameter(behind.trim_start())?;
        match key.as_str() {
            "filename" => plain = Some(value),
            "filename*" => {
                let (charset, text) = value.split_once('\'')?;
                let (_, text) = text.split_once('\'')?;
                if charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("us-ascii") {
                    extended = Some(unescape(text));
                }
            }
            _ => {}
        }
        rest = behind;
    }
    extended.or(plain).filter(|name| !name.is_empty())
}

/// A value, quoted or not, and what is behind its semicolon.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, behind) = text.split_once(';').unwrap_or((text, ""));
        return Some((value.trim().to_owned(), behind));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?.1),
            '"' => {
                let behind = quoted[at + 1..].trim_start();
                return Some((value, behind.strip_prefix(';').unwrap_or(behind)));
            }
            other => value.push(other),
        }
    }
    None
}

/// Resolves `%41`.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let digit = |at: usize| behind.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(0), digit(1)) {
            // Two hexadecimal digits fit.
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = &behind[2..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_names_the_file_then_the_server_then_the_address() {
        let name = |given: Option<&str>, header: Option<&str>| {
            file_name("https://h.test/a/b%20c.tar?x=/y", given, header)
        };
        assert_eq!(name(Some("mine"), Some("attachment; filename=theirs")), "mine");
        assert_eq!(name(None, Some("attachment; filename=theirs")), "theirs");
        assert_eq!(name(None, Some(r#"attachment; size=3; filename="a \"b\"; c" ; x=y"#)), r#"a "b"; c"#);
        assert_eq!(name(None, Some("attachment; filename=x; filename*=UTF-8''caf%C3%A9")), "café");
        assert_eq!(name(None, Some("attachment")), "b c.tar");
        assert_eq!(name(None, Some("inline; filename=dir/")), "b c.tar");
        assert_eq!(name(None, None), "b c.tar");
    }

    #[test]
    fn no_name_leads_elsewhere() {
        for (address, header, expected) in [
            ("http://h.test", None, "download"),
            ("http://h.test/", None, "download"),
            ("http://h.test/%2e%2e", None, "download"),
            ("http://h.test/a%2f..%2fb", None, "b"),
            ("http://h.test/x", Some("a; filename=../../etc/passwd"), "passwd"),
            ("http://h.test/x", Some("a; filename=\"..\""), "download"),
            ("http://h.test/x", Some("a; filename*=utf-8''a%00b"), "download"),
            ("http://h.test/x", Some("a; filename=\"never ends"), "x"),
        ] {
            assert_eq!(file_name(address, None, header), expected, "{address} {header:?}");
        }
    }
}
