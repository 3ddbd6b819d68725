//! [`package_url`]: an image's name as a package URL (purl specification, type `docker`).

use crate::oci::Platform;
use crate::oci::Reference;

/// `pkg:docker/<name>@<tag>?digest=…&platform=…`, the name as Docker shows it.
pub(in crate::export) fn package_url(reference: &Reference, platform: &Platform) -> String {
    let reference = reference.clone().with_default_tag();
    let name = match (reference.host.as_str(), reference.repository.strip_prefix("library/")) {
        ("docker.io", Some(official)) => official.to_owned(),
        ("docker.io", None) => reference.repository.clone(),
        _ => reference.name(),
    };
    let name: Vec<String> = name.split('/').map(|part| escape(part, "")).collect();
    let mut url = format!("pkg:docker/{}", name.join("/"));
    // What need not be escaped in a segment of a path.
    let segment = |text: &str| escape(text, "$&+=:@");
    if let Some(tag) = &reference.tag {
        url.push('@');
        url.push_str(&segment(tag));
    }
    let digest = reference.digest.map(|digest| format!("digest={}", segment(&digest.to_string())));
    let platform = Some(format!("platform={}", segment(&platform.clone().normalised().to_string())));
    let qualifiers: Vec<String> = digest.into_iter().chain(platform).collect();
    format!("{url}?{}", qualifiers.join("&"))
}

/// Percent-encodes everything but unreserved characters and `kept`.
fn escape(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn names_are_those_that_docker_shows() {
        let url = |name: &str| package_url(&name.parse().unwrap(), &"linux/amd64".parse().unwrap());
        assert_eq!(url("alpine"), "pkg:docker/alpine@latest?platform=linux%2Famd64");
        assert_eq!(url("team/app:v1"), "pkg:docker/team/app@v1?platform=linux%2Famd64");
        assert_eq!(url("r.example:5000/a/b:t"), "pkg:docker/r.example%3A5000/a/b@t?platform=linux%2Famd64");
        let digest = Digest::sha256("x");
        assert_eq!(
            url(&format!("alpine@{digest}")),
            format!("pkg:docker/alpine?digest={digest}&platform=linux%2Famd64")
        );
    }
}
