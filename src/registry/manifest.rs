//! Names, manifests and referrers: what is read whole and verified here.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::ACCEPT;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use http::header::LINK;
use reqwest::Response;
use reqwest::Url;
use serde::Deserialize;

use super::Place;
use super::RegistryClient;
use super::RegistryError;
use super::Repository;
use super::Resolved;
use super::Selector;
use super::auth::Refusals;
use super::client::Ask;
use super::client::place;
use super::endpoint::Endpoint;
use super::endpoint::Purpose;
use super::lanes::Lane;
use super::scope::Scopes;
use crate::ctx::Ctx;
use crate::oci::Algorithm;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::DigestHasher;
use crate::oci::Index;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::Reference;
use crate::oci::media_type;

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Pages of a list of referrers at most.
const MAX_PAGES: usize = 64;

impl RegistryClient {
    /// The descriptor of what `reference` names: by HEAD for a tag, by GET if HEAD does not tell it
    /// or if the reference has a digest (its bytes are wanted next).
    pub async fn resolve(&self, ctx: &Ctx, reference: &Reference) -> Result<Resolved, RegistryError> {
        let repository = Repository::from(reference);
        let selector = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => Selector::Digest(*digest),
            (None, tag) => Selector::Tag(tag.clone().unwrap_or_else(|| "latest".to_owned())),
        };
        let whole = place(&repository, selector.subject(), None);
        let mut route = self.shared.route(&repository, self.trusts(&repository.host), Purpose::Read);
        loop {
            let endpoint = route.next(ctx, &whole).await?;
            let resolved = match &selector {
                Selector::Tag(_) => self.resolve_tag(ctx, &repository, &endpoint, &selector).await,
                Selector::Digest(_) => self.read_manifest(ctx, &repository, &endpoint, &selector).await,
            };
            match resolved {
                Ok(resolved) => return Ok(resolved),
                Err(error) => route.failed(error)?,
            }
        }
    }

    /// The verified bytes of a manifest.
    pub async fn manifest(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let selector = Selector::Digest(descriptor.digest);
        let whole = place(repository, selector.subject(), None);
        let limit = MAX_MANIFEST_BYTES as u64;
        if descriptor.size > limit {
            return Err(RegistryError::TooLarge { place: whole, size: descriptor.size, limit });
        }
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Read);
        loop {
            let endpoint = route.next(ctx, &whole).await?;
            let error = match self.read_manifest(ctx, repository, &endpoint, &selector).await {
                Ok(Resolved { bytes: Some(bytes), descriptor: read }) if read.size == descriptor.size => {
                    return Ok(bytes);
                }
                // The digest holds, so that it is the descriptor that is wrong about the size.
                Ok(Resolved { descriptor: read, .. }) => {
                    let problem = format!(
                        "the manifest has {} bytes, its descriptor says {}",
                        read.size, descriptor.size
                    );
                    return Err(RegistryError::Protocol { place: whole, problem });
                }
                Err(error) => error,
            };
            route.failed(error)?;
        }
    }

    /// Descriptors of the manifests whose subject is `digest`, by the referrers API or its tag schema
    /// (distribution specification, "Listing Referrers").
    pub async fn referrers(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let whole = place(repository, format!("@{digest}"), None);
        let mut route = self.shared.route(repository, self.trusts(&repository.host), Purpose::Read);
        let mut found = loop {
            let endpoint = route.next(ctx, &whole).await?;
            match self.referrers_at(ctx, repository, &endpoint, digest, artifact_type).await {
                Ok(found) => break found,
                Err(error) => route.failed(error)?,
            }
        };
        // Registries need not filter, and the tag schema can't.
        if let Some(wanted) = artifact_type {
            found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(wanted));
        }
        Ok(found)
    }

    async fn resolve_tag(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
        selector: &Selector,
    ) -> Result<Resolved, RegistryError> {
        let place = place(repository, selector.subject(), Some(endpoint));
        let path = selector.path();
        let ask = ask_for_manifest(&place, Method::HEAD, repository, endpoint, &path);
        let answer = self.shared.ask(ctx, endpoint, ask).await?;
        let told = match answer.response.status() {
            StatusCode::OK => describe(&place, &answer.response)?,
            // HEAD is not everywhere.
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => None,
            _ => return Err(self.shared.refusal(ctx, &place, answer.response).await),
        };
        drop(answer);
        match told {
            Some(descriptor) => Ok(Resolved { descriptor, bytes: None }),
            None => self.read_manifest(ctx, repository, endpoint, selector).await,
        }
    }

    async fn read_manifest(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
        selector: &Selector,
    ) -> Result<Resolved, RegistryError> {
        let place = place(repository, selector.subject(), Some(endpoint));
        let path = selector.path();
        let ask = ask_for_manifest(&place, Method::GET, repository, endpoint, &path);
        let answer = self.shared.ask(ctx, endpoint, ask).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(self.shared.refusal(ctx, &place, answer.response).await);
        }
        let stated = content_type(&answer.response);
        let told = match selector {
            Selector::Digest(digest) => Some(*digest),
            // Bytes that are not what the registry itself says are damaged.
            Selector::Tag(_) => digest_header(&answer.response),
        };
        let bytes = self.shared.read(ctx, &place, answer.response, MAX_MANIFEST_BYTES as u64).await?;
        let mut hasher = DigestHasher::new(told.map_or(Algorithm::Sha256, |digest| digest.algorithm()));
        hasher.update(&bytes);
        let got = hasher.finish();
        if told.is_some_and(|told| told != got) {
            return Err(RegistryError::Corrupt { place, got });
        }
        let descriptor = Descriptor::new(true_media_type(stated, &bytes), got, bytes.len() as u64);
        Ok(Resolved { descriptor, bytes: Some(bytes) })
    }

    async fn referrers_at(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let place = place(repository, format!("@{digest}"), Some(endpoint));
        let path = format!("referrers/{digest}");
        let mut found = Vec::new();
        let mut query: Vec<(String, String)> =
            artifact_type.iter().map(|t| ("artifactType".to_owned(), (*t).to_owned())).collect();
        for _ in 0..MAX_PAGES {
            let pairs: Vec<(&str, &str)> = query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let mut ask = ask_for_manifest(&place, Method::GET, repository, endpoint, &path);
            ask.query = &pairs;
            let answer = self.shared.ask(ctx, endpoint, ask).await?;
            match answer.response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                    drop(answer);
                    return self.referrers_by_tag(ctx, repository, endpoint, digest).await;
                }
                _ => return Err(self.shared.refusal(ctx, &place, answer.response).await),
            }
            let next = next_page(&answer.response);
            let bytes = self.shared.read(ctx, &place, answer.response, MAX_MANIFEST_BYTES as u64).await?;
            found.extend(parse_index(&place, &bytes)?.manifests);
            match next {
                Some(next) => query = next,
                None => break,
            }
        }
        Ok(found)
    }

    async fn referrers_by_tag(
        &self,
        ctx: &Ctx,
        repository: &Repository,
        endpoint: &Arc<Endpoint>,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = Selector::Tag(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        match self.read_manifest(ctx, repository, endpoint, &tag).await {
            Ok(Resolved { bytes, .. }) => {
                let place = place(repository, tag.subject(), Some(endpoint));
                Ok(parse_index(&place, &bytes.unwrap_or_default())?.manifests)
            }
            Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl Selector {
    /// Behind the repository in a URL. Tags and digests need no encoding; what is neither ends in 404.
    pub(super) fn path(&self) -> String {
        match self {
            Selector::Tag(tag) => {
                let tag: String = url_safe(tag).collect();
                format!("manifests/{tag}")
            }
            Selector::Digest(digest) => format!("manifests/{digest}"),
        }
    }

    pub(super) fn subject(&self) -> String {
        match self {
            Selector::Tag(tag) => format!(":{tag}"),
            Selector::Digest(digest) => format!("@{digest}"),
        }
    }
}

fn url_safe(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
}

fn ask_for_manifest<'a>(
    place: &'a Arc<Place>,
    method: Method,
    repository: &'a Repository,
    endpoint: &Endpoint,
    path: &'a str,
) -> Ask<'a> {
    let mut headers = HeaderMap::new();
    let accept = format!("{}, */*", media_type::MANIFESTS.join(", "));
    headers.insert(ACCEPT, HeaderValue::from_str(&accept).expect("media types are a header's value"));
    Ask {
        place,
        method,
        repository: &repository.name,
        path,
        query: &[],
        headers,
        body: None,
        lane: Lane::Metadata,
        wanted: Scopes::pull(&endpoint.repository(&repository.name)),
        refusals: Refusals::Concealed,
        verified: path.contains(':'),
    }
}

/// What the reply to a HEAD tells; `None` if that is not a whole descriptor of a manifest.
fn describe(place: &Arc<Place>, response: &Response) -> Result<Option<Descriptor>, RegistryError> {
    // A client that sends HEAD sees no body and so no length of it: the header counts.
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let media_type = content_type(response);
    let known = media_type::is_index(&media_type)
        || media_type::is_manifest(&media_type)
        || media_type::is_schema1(&media_type);
    let (Some(digest), Some(size), true) = (digest_header(response), length, known) else { return Ok(None) };
    let limit = MAX_MANIFEST_BYTES as u64;
    if size > limit {
        return Err(RegistryError::TooLarge { place: Arc::clone(place), size, limit });
    }
    Ok(Some(Descriptor::new(media_type, digest, size)))
}

/// The digest that a registry says its answer has.
pub(super) fn digest_header(response: &Response) -> Option<Digest> {
    response.headers().get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

fn content_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// What the document says it is, where the registry says nothing of use.
fn true_media_type(stated: String, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let known =
        media_type::is_index(&stated) || media_type::is_manifest(&stated) || media_type::is_schema1(&stated);
    let generic =
        matches!(stated.as_str(), "" | "application/json" | "text/plain" | "application/octet-stream");
    if known || !generic {
        return stated;
    }
    match serde_json::from_slice::<Document>(bytes) {
        Ok(document) if !document.media_type.is_empty() => document.media_type,
        Ok(document) if document.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
        Ok(document) if document.layers.is_some() => media_type::OCI_MANIFEST.to_owned(),
        _ => stated,
    }
}

fn parse_index(place: &Arc<Place>, bytes: &[u8]) -> Result<Index, RegistryError> {
    serde_json::from_slice(bytes).map_err(|error| RegistryError::Garbled {
        place: Arc::clone(place),
        problem: format!("the list of referrers is not an index: {error}"),
    })
}

/// The query of the page that a `Link` header calls `next`.
fn next_page(response: &Response) -> Option<Vec<(String, String)>> {
    let link = response.headers().get(LINK)?.to_str().ok()?;
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.contains("next") {
        return None;
    }
    let url: Url = response.url().join(target).ok()?;
    Some(url.query_pairs().into_owned().filter(|(name, _)| name != "ns").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generic_content_type_gives_way_to_the_document() {
        let kind = |stated: &str, bytes: &str| true_media_type(stated.to_owned(), bytes.as_bytes());
        assert_eq!(kind("application/json", r#"{"mediaType":"x/y"}"#), "x/y");
        assert_eq!(kind("", r#"{"manifests":[]}"#), media_type::OCI_INDEX);
        assert_eq!(kind("text/plain", r#"{"layers":[]}"#), media_type::OCI_MANIFEST);
        assert_eq!(kind(media_type::DOCKER_MANIFEST, r#"{"mediaType":"x/y"}"#), media_type::DOCKER_MANIFEST);
        assert_eq!(kind("application/vnd.other+json", "{}"), "application/vnd.other+json");
        assert_eq!(kind("application/json", "no JSON"), "application/json");
    }

    #[test]
    fn a_tag_never_leaves_its_path() {
        let path = Selector::Tag("../../x?y#z".to_owned()).path();
        assert_eq!(path, "manifests/.._.._x_y_z");
    }
}
