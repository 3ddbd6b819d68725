//! Names of images in registries: `[host/]repository[:tag][@digest]`, with Docker's defaults
//! (distribution's `reference` grammar).

use std::fmt;
use std::str::FromStr;

use super::Digest;

const DEFAULT_HOST: &str = "docker.io";

/// Characters of the whole name at most, without tag and digest (distribution, `NameTotalLengthMax`).
const MAX_NAME: usize = 255;

/// A fully qualified image name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reference {
    /// Host with an optional port, as written; `docker.io` for the default.
    pub host: String,
    /// Path within the registry, `library/` included where Docker implies it.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// A text is not an image name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("image reference {text:?} is not valid: {reason}")]
pub struct InvalidReference {
    pub text: String,
    pub reason: &'static str,
}

impl Reference {
    /// Adds `:latest` if there is neither tag nor digest.
    pub fn with_default_tag(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// `host/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What names the manifest in a request: the digest, else the tag, else `latest`.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository pinned to `digest`, tag kept.
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Reference, InvalidReference> {
        parse(text).map_err(|reason| InvalidReference { text: text.chars().take(300).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        return Err("64 hexadecimal digits are an image ID, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| "what follows `@` is not a digest")?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rfind(':') {
        // A colon before the last slash belongs to the port.
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path.to_owned()),
        _ => (DEFAULT_HOST, name.to_owned()),
    };
    let (host, path) = match host {
        "docker.io" | "index.docker.io" if !path.contains('/') => (DEFAULT_HOST, format!("library/{path}")),
        "index.docker.io" => (DEFAULT_HOST, path),
        other => (other, path),
    };
    check_host(host)?;
    for component in path.split('/') {
        check_component(component)?;
    }
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    Ok(Reference { host: host.to_owned(), repository: path, tag: tag.map(str::to_owned), digest })
}

/// Docker's rule: the first component is a host if it looks like one or has capital letters.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let (address, rest) = v6.split_once(']').ok_or("the host has an unclosed bracket")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "the host is not an IPv6 address")?;
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return Err("the host has text after its bracket"),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port
        && (port.is_empty() || port.parse::<u16>().is_err())
    {
        return Err("the port is not a number up to 65535");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    match name {
        Some(name) if !name.split('.').all(label) => Err("the host is not a domain name"),
        _ => Ok(()),
    }
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or hyphens.
fn check_component(component: &str) -> Result<(), &'static str> {
    if component.is_empty() {
        return Err("the name has an empty component");
    }
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository name must be lower case");
    }
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    let mut after = false;
    for b in component.bytes() {
        if alphanumeric(b) {
            if !separator.is_empty() {
                let joins =
                    matches!(separator.as_str(), "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
                if !after || !joins {
                    return Err("a name component has letters, digits and single separators in between");
                }
                separator.clear();
            }
            after = true;
        } else if matches!(b, b'.' | b'_' | b'-') {
            separator.push(char::from(b));
        } else {
            return Err("the name has a character outside a-z, 0-9, `.`, `_`, `-` and `/`");
        }
    }
    if separator.is_empty() { Ok(()) } else { Err("a name component ends with a separator") }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(legal) || tag.starts_with(['.', '-']) {
        return Err(
            "a tag has 1 to 128 letters, digits, `_`, `.` or `-` and starts with none of the last two",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_names_get_dockers_defaults() {
        let digest = Digest::sha256("x");
        for (text, full) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/busybox", "docker.io/library/busybox"),
            ("moby/buildkit", "docker.io/moby/buildkit"),
            ("localhost/a", "localhost/a"),
            ("localhost:5000/a:t", "localhost:5000/a:t"),
            ("Host/a", "Host/a"),
            ("[::1]:5000/a", "[::1]:5000/a"),
            ("r.example/a__b/c---d.e_f:1.0-x", "r.example/a__b/c---d.e_f:1.0-x"),
            (&format!("r:5000/a:t@{digest}"), &format!("r:5000/a:t@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for text in [
            "",
            ":t",
            "a:",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a:t:u/b c",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:.t",
            "a@sha256:12",
            "r:99999/a",
            "r:/a",
            "[::1/a",
            "../etc",
            "a/../b",
            "a\0b",
            &"a".repeat(300),
            &"0".repeat(64),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_to_the_same(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn likely_names_print_and_parse_to_the_same(
            text in "([a-z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9_.-]{1,8})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
