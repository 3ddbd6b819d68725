//! `WWW-Authenticate`: how a registry asks who we are (RFC 9110 section 11.6.1, Docker token
//! specification).
//!
//! Registries and the proxies before them write this header in every way there is, so the parser takes
//! what it can read and steps over the rest. It never fails and never panics.

/// Challenges and parameters beyond these are not looked at.
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 32;

/// A challenge that we can answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Challenge {
    Bearer {
        realm: String,
        service: String,
        /// As written: scopes apart by spaces.
        scope: String,
        /// Why the token that was sent did not do.
        error: String,
    },
    Basic,
}

/// The challenge to answer: `Bearer` before `Basic`; `None` if there is no other.
pub(super) fn choose<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for raw in parse(&String::from_utf8_lossy(header)) {
            match raw.scheme.as_str() {
                "bearer" if !raw.parameter("realm").is_empty() => {
                    return Some(Challenge::Bearer {
                        realm: raw.parameter("realm").to_owned(),
                        service: raw.parameter("service").to_owned(),
                        scope: raw.parameter("scope").to_owned(),
                        error: raw.parameter("error").to_owned(),
                    });
                }
                "basic" => basic = Some(Challenge::Basic),
                _ => {}
            }
        }
    }
    basic
}

#[derive(PartialEq, Eq, Debug)]
struct Raw {
    /// Lower case.
    scheme: String,
    /// Names in lower case. The first of a name counts.
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

fn parse(header: &str) -> Vec<Raw> {
    let mut found: Vec<Raw> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = token(rest);
        if name.is_empty() {
            // Not a place where a scheme or a parameter can begin: step over one character.
            match rest.chars().next() {
                Some(c) => rest = &rest[c.len_utf8()..],
                None => return found,
            }
            continue;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = quoted_or_token(value.trim_start_matches([' ', '\t']));
                if challenge.parameters.len() < MAX_PARAMETERS {
                    challenge.parameters.push((name.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            // A parameter before any scheme.
            (Some(value), None) => rest = quoted_or_token(value).1,
            (None, _) => {
                if found.len() == MAX_CHALLENGES {
                    return found;
                }
                found.push(Raw { scheme: name.to_ascii_lowercase(), parameters: Vec::new() });
                rest = skip_token68(after);
            }
        }
    }
}

fn is_token_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn token(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_token_character(c)).unwrap_or(text.len()))
}

/// A quoted string without its quotes and escapes, or everything up to the next comma or space: URLs
/// without quotes occur. A string that is not closed ends with the header.
fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Steps over credentials in one piece, as `Negotiate` sends them.
fn skip_token68(text: &str) -> &str {
    let trimmed = text.trim_start_matches([' ', '\t']);
    let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let after = trimmed.trim_start_matches(is_token68).trim_start_matches('=');
    let next = after.trim_start_matches([' ', '\t']);
    if next.is_empty() || next.starts_with(',') { next } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choose_from(headers: &[&str]) -> Option<Challenge> {
        choose(headers.iter().map(|h| h.as_bytes()))
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Option<Challenge> {
        let (realm, service, scope) = (realm.to_owned(), service.to_owned(), scope.to_owned());
        Some(Challenge::Bearer { realm, service, scope, error: String::new() })
    }

    #[test]
    fn headers_as_registries_write_them_are_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#;
        let expected =
            bearer("https://auth.docker.io/token", "registry.docker.io", "repository:library/busybox:pull");
        assert_eq!(choose_from(&[hub]), expected);
        for (header, expected) in [
            (r#"bearer realm="https://r/t" , service = "s" "#, bearer("https://r/t", "s", "")),
            (r"BEARER Realm=https://r/t?a=b,Service=s", bearer("https://r/t?a=b", "s", "")),
            (
                r#"Bearer realm="a\"b\\c",scope="x:y:pull,push z:z:*""#,
                bearer(r#"a"b\c"#, "", "x:y:pull,push z:z:*"),
            ),
            (r#"Basic realm="r", Bearer realm="https://r/t""#, bearer("https://r/t", "", "")),
            (r#"Negotiate YWJj==, Bearer realm="https://r/t""#, bearer("https://r/t", "", "")),
            (r#"Basic realm="https://r",charset="UTF-8""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            (r#"Bearer service="s", Basic"#, Some(Challenge::Basic)),
            ("Bearer realm=", None),
            ("Digest realm=x, nonce=y", None),
            (r#"Bearer realm="https://r/t"#, bearer("https://r/t", "", "")),
            ("", None),
        ] {
            assert_eq!(choose_from(&[header]), expected, "{header}");
        }
        assert_eq!(choose_from(&["Basic realm=x", hub]), expected, "in a header of its own");
    }

    #[test]
    fn the_reason_of_a_refused_token_is_read() {
        let header = r#"Bearer realm="https://r/t",error="insufficient_scope""#;
        assert!(
            matches!(choose_from(&[header]), Some(Challenge::Bearer { error, .. }) if error == "insufficient_scope")
        );
    }

    fn quote(value: &str) -> String {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(headers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
            choose(headers.iter().map(Vec::as_slice));
        }

        #[test]
        fn likely_headers_never_make_the_parser_panic_or_loop(text in "(Bearer|Basic|realm|scope|[=\",\\\\ \ta:/é]){0,40}") {
            choose_from(&[&text]);
        }

        #[test]
        fn what_is_written_by_the_rules_is_read(
            realm in "[ -~]{1,40}", service in "[ -~]{0,20}", scope in "[ -~]{0,40}",
            before in prop::sample::select(vec!["", "Basic, ", "Digest a=b, ", "Negotiate ab/+=, ", "Basic realm=\"x, y\", "]),
            comma in prop::sample::select(vec![",", ", ", " , "]), equals in prop::sample::select(vec!["=", " = "]),
        ) {
            let header = format!(
                "{before}Bearer realm{equals}{}{comma}service{equals}{}{comma}scope{equals}{}",
                quote(&realm), quote(&service), quote(&scope),
            );
            prop_assert_eq!(choose_from(&[&header]), bearer(&realm, &service, &scope));
        }
    }
}
