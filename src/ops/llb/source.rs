//! Decodes sources: an identifier with a scheme, and attributes.
//!
//! An attribute that is not known is left alone: those that matter come with a capability.

use std::collections::BTreeMap;

use super::LlbError;
use super::clip;
use super::invalid::InvalidOp;
use super::pb;
use crate::oci::Reference;
use crate::ops::graph::VertexDigest;
use crate::ops::op::Differ;
use crate::ops::op::HttpSignature;
use crate::ops::op::HttpSource;
use crate::ops::op::ImageSource;
use crate::ops::op::LayoutSource;
use crate::ops::op::LocalSource;
use crate::ops::op::MetadataOnly;
use crate::ops::op::Op;
use crate::ops::op::RecordType;
use crate::ops::op::ResolveMode;
use crate::ops::resolution::Resolved;

type Attrs = BTreeMap<String, String>;

pub(super) fn source(source: &pb::SourceOp, digest: VertexDigest) -> Result<Op, LlbError> {
    let invalid = |reason| LlbError::Invalid { op: digest, reason };
    let reasoned = |reason: String| invalid(InvalidOp::Source { reason });
    let Some((scheme, name)) = source.identifier.split_once("://") else {
        return Err(reasoned(format!("source {:?} has no scheme", clip(&source.identifier))));
    };
    match scheme {
        "docker-image" => Ok(Op::Image(image(name, &source.attrs).map_err(reasoned)?)),
        "oci-layout" => Ok(Op::OciLayout(layout(name, &source.attrs).map_err(reasoned)?)),
        "local" => Ok(Op::Local(local(name, &source.attrs).map_err(invalid)?)),
        "http" | "https" => Ok(Op::Http(http(&source.identifier, &source.attrs).map_err(invalid)?)),
        _ => Err(LlbError::Unsupported { op: digest, what: format!("a source {}://", clip(scheme)) }),
    }
}

fn image(name: &str, attrs: &Attrs) -> Result<ImageSource, String> {
    let reference: Reference = name.parse().map_err(|error| format!("{error}"))?;
    let mut image = ImageSource::new(reference.with_default_tag());
    for (key, value) in attrs {
        match key.as_str() {
            "image.resolvemode" => {
                image.resolve_mode = match value.as_str() {
                    "" | "default" => ResolveMode::Default,
                    "pull" => ResolveMode::ForcePull,
                    "local" => ResolveMode::PreferLocal,
                    _ => return Err(format!("image.resolvemode {:?} is not known", clip(value))),
                }
            }
            "image.recordtype" => {
                image.record_type = match value.as_str() {
                    "" | "regular" => RecordType::Regular,
                    "internal" => RecordType::Internal,
                    "frontend" => RecordType::Frontend,
                    _ => return Err(format!("image.recordtype {:?} is not known", clip(value))),
                }
            }
            "image.layerlimit" => image.layer_limit = Some(layer_limit(value)?),
            "image.checksum" => {
                let digest = value.parse().map_err(|error| format!("image.checksum: {error}"))?;
                image.checksum = Some(digest);
            }
            // Attributes that matter come with a capability.
            _ => {}
        }
    }
    Ok(image)
}

fn layout(name: &str, attrs: &Attrs) -> Result<LayoutSource, String> {
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|error| format!("{error}"))?)),
        None => (name, None),
    };
    let (rest, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(rest[at + 1..].to_owned())),
        _ => (rest, None),
    };
    if rest.is_empty() || (tag.is_none() && digest.is_none()) {
        return Err(format!("{:?} is not <name>@<digest> or <name>:<tag>", clip(name)));
    }
    let filled = |key: &str| attrs.get(key).filter(|value| !value.is_empty()).cloned();
    Ok(LayoutSource {
        name: rest.to_owned(),
        tag,
        digest,
        session: filled("oci.session"),
        store: filled("oci.store"),
        layer_limit: attrs.get("oci.layerlimit").map(|value| layer_limit(value)).transpose()?,
        resolved: Resolved::default(),
    })
}

fn layer_limit(value: &str) -> Result<usize, String> {
    let limit = value.parse().ok().filter(|limit| *limit > 0);
    limit.ok_or_else(|| format!("layer limit {:?} is not a number above 0", clip(value)))
}

fn local(name: &str, attrs: &Attrs) -> Result<LocalSource, InvalidOp> {
    let mut local = LocalSource {
        name: name.to_owned(),
        session: None,
        unique: None,
        include: Vec::new(),
        exclude: Vec::new(),
        follow: Vec::new(),
        shared_key_hint: String::new(),
        differ: Differ::default(),
        metadata_only: None,
    };
    let mut only_metadata = false;
    let mut except = Vec::new();
    for (key, value) in attrs {
        match key.as_str() {
            "local.session" if value.is_empty() => {}
            "local.session" => {
                let session = match value.split_once(':') {
                    Some((prefix, session)) => {
                        local.name = format!("{prefix}-{name}");
                        session
                    }
                    None => value,
                };
                local.session = Some(session.to_owned());
            }
            "local.unique" => local.unique = Some(value.clone()),
            "local.includepattern" => local.include = list(key, value)?,
            "local.excludepatterns" => local.exclude = list(key, value)?,
            "local.followpaths" => local.follow = list(key, value)?,
            "local.sharedkeyhint" => local.shared_key_hint.clone_from(value),
            "local.differ" => {
                local.differ = match value.as_str() {
                    "" | "metadata" => Differ::Metadata,
                    "none" => Differ::None,
                    _ => return Err(attribute(key, value, "metadata or none")),
                }
            }
            "local.metadatatransfer" => only_metadata = boolean(key, value)?,
            "local.metadatatransferexclude" => except = list(key, value)?,
            _ => {}
        }
    }
    local.metadata_only = only_metadata.then_some(MetadataOnly { except });
    Ok(local)
}

fn http(url: &str, attrs: &Attrs) -> Result<HttpSource, InvalidOp> {
    let parsed = url.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    if parsed.is_none() {
        return Err(attribute("identifier", url, "an address of a server"));
    }
    let mut source = HttpSource::new(url);
    let (mut public_key, mut signature) = (String::new(), String::new());
    for (key, value) in attrs {
        match key.as_str() {
            "http.checksum" => {
                let digest = value.parse().map_err(|_| attribute(key, value, "a digest"))?;
                source.checksum = Some(digest);
            }
            "http.filename" if value.is_empty() => {}
            "http.filename" => {
                if value.contains(['/', '\0']) || value == "." || value == ".." {
                    return Err(attribute(key, value, "the name of a file"));
                }
                source.filename = Some(value.clone());
            }
            "http.perm" => {
                let perm = number(key, value)?;
                if perm > 0o7777 {
                    return Err(attribute(key, value, "permission bits"));
                }
                source.perm = (perm != 0).then_some(perm);
            }
            "http.uid" => source.uid = number(key, value)?,
            "http.gid" => source.gid = number(key, value)?,
            "http.authheadersecret" if value.is_empty() => {}
            "http.authheadersecret" => source.auth_header_secret = Some(value.clone()),
            "http.sig.pubkey" => public_key.clone_from(value),
            "http.sig.signature" => signature.clone_from(value),
            _ => {
                // The headers that a definition may set.
                let name = match key.strip_prefix("http.header.").map(str::to_ascii_lowercase).as_deref() {
                    Some("accept") => "Accept",
                    Some("user-agent") => "User-Agent",
                    _ => continue,
                };
                if http::HeaderValue::from_str(value).is_err() {
                    return Err(attribute(key, value, "the value of a header"));
                }
                source.headers.push((name.to_owned(), value.clone()));
            }
        }
    }
    source.headers.sort();
    source.signature = match (public_key.is_empty(), signature.is_empty()) {
        (true, true) => None,
        (false, false) => Some(HttpSignature { public_key, signature }),
        (true, false) => return Err(InvalidOp::Missing { what: "http.sig.pubkey".to_owned() }),
        (false, true) => return Err(InvalidOp::Missing { what: "http.sig.signature".to_owned() }),
    };
    Ok(source)
}

/// A list of texts in JSON; null is none.
fn list(key: &str, value: &str) -> Result<Vec<String>, InvalidOp> {
    let list: Option<Vec<String>> =
        serde_json::from_str(value).map_err(|_| attribute(key, value, "a list of texts in JSON"))?;
    Ok(list.unwrap_or_default())
}

/// As Go's `strconv.ParseBool` reads it.
fn boolean(key: &str, value: &str) -> Result<bool, InvalidOp> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(attribute(key, value, "true or false")),
    }
}

/// A number that is not negative, in the bases that Go's literals have.
fn number(key: &str, value: &str) -> Result<u32, InvalidOp> {
    let (digits, base) = match value.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (&value[2..], 16),
        Some("0o") => (&value[2..], 8),
        Some("0b") => (&value[2..], 2),
        _ if value.len() > 1 && value.starts_with('0') => (&value[1..], 8),
        _ => (value, 10),
    };
    let valid = !digits.starts_with('+');
    let parsed = u32::from_str_radix(digits, base).ok().filter(|_| valid);
    parsed.ok_or_else(|| attribute(key, value, "a number that is not negative"))
}

fn attribute(name: &str, value: &str, expected: &'static str) -> InvalidOp {
    InvalidOp::Attribute { name: name.to_owned(), value: clip(value), expected }
}

#[cfg(test)]
mod tests;
