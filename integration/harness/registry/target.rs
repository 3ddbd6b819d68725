//! Reads a request's line: which operation on what.

use http::Method;
use http::Uri;
use reqwest::Url;

use super::journal::Listener;
use super::point::Op;

/// An operation with its operands. Source: OCI distribution specification 1.1, "Endpoints".
#[derive(Debug)]
pub(super) struct Target {
    pub op: Op,
    pub repository: String,
    /// Tag, digest or upload id; empty where the operation has none.
    pub reference: String,
    pub query: Query,
}

impl Target {
    pub fn parse(listener: Listener, method: &Method, uri: &Uri) -> Self {
        let query = Query::parse(uri.query().unwrap_or_default());
        let (op, repository, reference) = Self::parse_path(listener, method, uri.path(), &query);
        Self { op, repository: repository.to_owned(), reference, query }
    }

    fn parse_path<'a>(
        listener: Listener,
        method: &Method,
        path: &'a str,
        query: &Query,
    ) -> (Op, &'a str, String) {
        let nothing = (Op::Unknown, "", String::new());
        let root = match (listener, path) {
            (Listener::Registry, "/v2" | "/v2/") => return (Op::Ping, "", String::new()),
            (Listener::Registry, "/token") => return (Op::Token, "", String::new()),
            (Listener::Registry, _) => "/v2/",
            (Listener::Cdn, _) => "/cdn/",
        };
        let path = path.strip_prefix(root);
        let Some((rest, last)) = path.and_then(|path| path.rsplit_once('/')) else { return nothing };
        if let Some(repository) = rest.strip_suffix("/blobs/uploads") {
            let op = match (method, last) {
                (&Method::POST, "") if query.get("mount").is_some() => Op::Mount,
                (&Method::POST, "") => Op::UploadStart,
                (_, "") => Op::Unknown,
                (&Method::PATCH, _) => Op::UploadPatch,
                (&Method::PUT, _) => Op::UploadPut,
                (&Method::GET, _) => Op::UploadStatus,
                (&Method::DELETE, _) => Op::UploadCancel,
                _ => Op::Unknown,
            };
            let reference = query.get("mount").or(query.get("digest")).unwrap_or(last);
            return (op, repository, reference.to_owned());
        }
        let Some((repository, kind)) = rest.rsplit_once('/') else { return nothing };
        let op = match (kind, method) {
            ("manifests", &Method::GET) => Op::ManifestGet,
            ("manifests", &Method::HEAD) => Op::ManifestHead,
            ("manifests", &Method::PUT) => Op::ManifestPut,
            ("manifests", &Method::DELETE) => Op::ManifestDelete,
            ("blobs", &Method::GET) => Op::BlobGet,
            ("blobs", &Method::HEAD) => Op::BlobHead,
            ("blobs", &Method::DELETE) => Op::BlobDelete,
            ("referrers", &Method::GET) => Op::Referrers,
            ("tags", &Method::GET) if last == "list" => Op::Tags,
            _ => Op::Unknown,
        };
        (op, repository, last.to_owned())
    }
}

/// Whether the distribution specification allows the name.
pub(super) fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        ends(part.chars().next()) && ends(part.chars().last()) && part.chars().all(inner)
    };
    name.split('/').all(part)
}

/// A decoded query string or form.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = Url::parse(&format!("http://registry/?{text}"));
        let pairs = pairs.map(|url| url.query_pairs().into_owned().collect());
        Self(pairs.unwrap_or_default())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    pub fn all<'a, 'k>(&'a self, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}
