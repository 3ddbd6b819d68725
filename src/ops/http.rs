//! `http://` and `https://`: one file of a web server.
//!
//! A file that was downloaded before is asked for with its validators (`ETag`): a server that says that it is
//! the same is believed, and nothing is downloaded. A source that pins a checksum is resolved without any
//! request. What is known of a file stands with its record, in its keys, and goes with it. A job has one file
//! for all of its sources that are the same: see [`Resolutions`](super::resolutions::Resolutions).
//!
//! The host `buildkit-session` is the client itself: its bytes come through the session.
//!
//! # Invariants
//!
//! - A file is committed once all of its bytes are there and have the checksum that the source pins.
//! - `Authorization` is sent to the scheme, host and port of the source only.
//!
//! # Crash consistency
//!
//! What a crash leaves of a download is removed at start.

mod download;
mod error;
mod name;
mod request;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use http::Method;
use http::StatusCode;
use http::header::ETAG;
use http::header::LAST_MODIFIED;
use reqwest::Url;
use serde::Serialize;

use super::kept::Place;
use super::op::HttpSource;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::oci::Digest;
use crate::registry::RegistryClient;
use crate::session::SessionId;
use crate::task::Flights;
use crate::task::Tasks;

pub use error::HttpError;
pub use name::file_name;

use download::Arriving;
use request::Answer;
use request::Validators;

/// Host that stands for the client.
const SESSION_HOST: &str = "buildkit-session";

/// What is found under an address.
#[derive(Clone, Debug)]
pub struct HttpFile {
    pub digest: Digest,
    pub filename: String,
    pub modified: Option<SystemTime>,
    /// The file, if it had to be looked at to know this.
    pub(super) reference: Option<ImmutableRef>,
}

/// What one download is shared by: where the file is kept, which tells sources and jobs apart, and the sessions
/// whose secrets it may use.
type DownloadKey = (Place<HttpFile>, BTreeSet<SessionId>);

/// Downloads files. Clones share what is under way.
#[derive(Clone, Debug)]
pub(super) struct Web {
    cache: Cache,
    registry: RegistryClient,
    tasks: Tasks,
    under_way: Flights<DownloadKey, (), Result<HttpFile, HttpError>>,
}

impl Web {
    pub(super) fn new(cache: Cache, registry: RegistryClient, tasks: Tasks) -> Web {
        Web { cache, registry, tasks, under_way: Flights::new() }
    }

    /// What the source stands for. Without a pinned checksum the server is asked, and a file that it has
    /// changed is downloaded.
    ///
    /// Cancellation safe.
    pub(super) async fn resolve(&self, ctx: &Ctx, source: &HttpSource) -> Result<HttpFile, HttpError> {
        refuse_signature(source)?;
        if let Some(digest) = source.checksum {
            let filename = file_name(&source.url, source.filename.as_deref(), None);
            return Ok(HttpFile { digest, filename, modified: None, reference: None });
        }
        self.fetch(ctx, source).await
    }

    /// The file itself.
    ///
    /// Cancellation safe.
    pub(super) async fn run(&self, ctx: &Ctx, source: &HttpSource) -> Result<ImmutableRef, HttpError> {
        refuse_signature(source)?;
        let file = self.fetch(ctx, source).await?;
        file.reference.ok_or(HttpError::Cache { source: CacheError::Empty })
    }

    /// What the source counts as, given what it stands for.
    pub(super) fn cache_key(source: &HttpSource, file: &HttpFile) -> Digest {
        #[derive(Serialize)]
        struct Key<'s> {
            filename: &'s str,
            perm: Option<u32>,
            uid: u32,
            gid: u32,
            digest: String,
            modified: Option<String>,
            auth_header_secret: Option<&'s str>,
            headers: &'s [(String, String)],
        }
        let key = Key {
            filename: &file.filename,
            perm: source.perm,
            uid: source.uid,
            gid: source.gid,
            digest: file.digest.to_string(),
            modified: file.modified.map(httpdate::fmt_http_date),
            auth_header_secret: source.auth_header_secret.as_deref(),
            headers: &source.headers,
        };
        // Texts and numbers can always be written.
        Digest::sha256(format!("http:{}", serde_json::to_string(&key).unwrap_or_default()))
    }

    /// The file that the job has, or else downloaded or found, and kept. Those with the same secrets share a
    /// download.
    async fn fetch(&self, ctx: &Ctx, source: &HttpSource) -> Result<HttpFile, HttpError> {
        if let Some(file) = kept(source) {
            return Ok(file);
        }
        let key = (source.resolved.place(), ctx.sessions().ids().into_iter().collect());
        let (web, source, work) = (self.clone(), source.clone(), ctx.clone());
        let start = move |token| {
            let ctx = work.with_cancel(token);
            let fetch = async move {
                // One that ended since the caller looked has kept it.
                if let Some(file) = kept(&source) {
                    return Ok(file);
                }
                match ctx.run(Box::pin(web.look_or_download(&ctx, &source))).await {
                    // Before the end of the flight, so that whoever comes after it finds the file.
                    Ok(fetched) => fetched.map(|file| source.resolved.keep(file)),
                    Err(cancelled) => Err(cancelled.into()),
                }
            };
            (Arc::new(()), fetch)
        };
        ctx.run(self.under_way.join(&self.tasks, key, start, |()| ())).await??
    }

    async fn look_or_download(&self, ctx: &Ctx, source: &HttpSource) -> Result<HttpFile, HttpError> {
        let url = Url::parse(&source.url).map_err(|_| HttpError::Address { address: shown(&source.url) })?;
        if url.host_str() == Some(SESSION_HOST) {
            let arriving = self.begin(ctx, source, &url, &Validators::default(), None).await?;
            return arriving.upload(ctx, &url).await;
        }
        let known = self.known(source)?;
        let headers = request::headers(ctx, source, &url).await?;
        if !known.is_empty() {
            // Some servers have ETags and ignore If-None-Match: so the first question is for the ETag only.
            let tags: Vec<&str> = known.keys().map(String::as_str).collect();
            let head = request::send(&self.registry, ctx, Method::HEAD, &url, &headers, &tags).await;
            if let Ok(answer) = head
                && let Some(file) = same(&known, &answer)
            {
                return pinned(source, file);
            }
        }
        let tags: Vec<&str> = known.keys().map(String::as_str).collect();
        let answer = request::send(&self.registry, ctx, Method::GET, &url, &headers, &tags).await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return match same(&known, &answer) {
                Some(file) => pinned(source, file),
                None => Err(HttpError::NotModified { address: shown(&source.url) }),
            };
        }
        if !answer.status().is_success() {
            return Err(HttpError::Status { address: shown(&source.url), status: answer.status().as_u16() });
        }
        let validators = Validators {
            etag: answer.header(&ETAG).map(request::strong),
            modified: answer.header(&LAST_MODIFIED).and_then(request::time),
        };
        let arriving = self.begin(ctx, source, &url, &validators, Some(&answer)).await?;
        arriving.download(ctx, answer).await
    }

    async fn begin(
        &self,
        ctx: &Ctx,
        source: &HttpSource,
        url: &Url,
        validators: &Validators,
        answer: Option<&Answer>,
    ) -> Result<Arriving, HttpError> {
        let disposition = answer.and_then(|a| a.header(&http::header::CONTENT_DISPOSITION));
        let filename = file_name(url.as_str(), source.filename.as_deref(), disposition);
        Arriving::begin(self, ctx, source, filename, validators.clone()).await
    }

    /// Files that were downloaded for this source, by their ETag.
    fn known(&self, source: &HttpSource) -> Result<BTreeMap<String, HttpFile>, HttpError> {
        let mut known = BTreeMap::new();
        for id in self.cache.find_by_key(&address_key_text(source))? {
            let keys = self.cache.keys(&id)?;
            let value = |prefix: &str| keys.iter().find_map(|key| key.strip_prefix(prefix));
            let (Some(etag), Some(digest)) = (value(key::ETAG), value(key::DIGEST)) else { continue };
            let (Ok(digest), Ok(reference)) = (digest.parse(), self.cache.get(&id, &DescHandlers::new()))
            else {
                continue;
            };
            let modified = value(key::MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok());
            let filename = value(key::NAME).unwrap_or_default().to_owned();
            let file = HttpFile { digest, filename, modified, reference: Some(reference) };
            known.entry(etag.to_owned()).or_insert(file);
        }
        Ok(known)
    }
}

/// What the job already has for the source.
fn kept(source: &HttpSource) -> Option<HttpFile> {
    let is_pinned = |file: &HttpFile| Some(file.digest) == source.checksum;
    source.resolved.get().or_else(|| source.unpinned.get().filter(is_pinned))
}

/// A signature that nobody checks is no signature.
fn refuse_signature(source: &HttpSource) -> Result<(), HttpError> {
    match source.signature {
        Some(_) => Err(HttpError::Unsupported { what: "verifying the signature of an HTTP source" }),
        None => Ok(()),
    }
}

/// What the keys of a record begin with.
mod key {
    pub(super) const ADDRESS: &str = "http:";
    pub(super) const ETAG: &str = "http-etag:";
    pub(super) const DIGEST: &str = "http-digest:";
    pub(super) const MODIFIED: &str = "http-modified:";
    pub(super) const NAME: &str = "http-name:";
}

/// The known file that the answer speaks of.
fn same(known: &BTreeMap<String, HttpFile>, answer: &Answer) -> Option<HttpFile> {
    if !matches!(answer.status(), StatusCode::OK | StatusCode::NOT_MODIFIED) {
        return None;
    }
    match answer.header(&ETAG).map(request::strong) {
        Some(etag) => known.get(&etag).cloned(),
        // A server need not repeat the one that it was asked for.
        None if answer.status() == StatusCode::NOT_MODIFIED && known.len() == 1 => {
            known.values().next().cloned()
        }
        None => None,
    }
}

/// The file, if it is the one that the source pins.
fn pinned(source: &HttpSource, file: HttpFile) -> Result<HttpFile, HttpError> {
    match source.checksum {
        Some(expected) if expected.algorithm() == file.digest.algorithm() && expected != file.digest => {
            Err(HttpError::Checksum { address: shown(&source.url), actual: file.digest, expected })
        }
        _ => Ok(file),
    }
}

/// What sources share a file of a server by.
pub(super) fn address_key(source: &HttpSource) -> Digest {
    #[derive(Serialize)]
    struct Key<'s> {
        url: &'s str,
        filename: Option<&'s str>,
        perm: Option<u32>,
        uid: u32,
        gid: u32,
        checksum: Option<String>,
        auth_header_secret: Option<&'s str>,
        headers: &'s [(String, String)],
    }
    let key = Key {
        url: &source.url,
        filename: source.filename.as_deref(),
        perm: source.perm,
        uid: source.uid,
        gid: source.gid,
        checksum: source.checksum.map(|digest| digest.to_string()),
        auth_header_secret: source.auth_header_secret.as_deref(),
        headers: &source.headers,
    };
    // Texts and numbers can always be written.
    Digest::sha256(serde_json::to_string(&key).unwrap_or_default())
}

fn address_key_text(source: &HttpSource) -> String {
    // A file is the same whatever checksum is pinned.
    format!("{}{}", key::ADDRESS, address_key(&HttpSource { checksum: None, ..source.clone() }))
}

/// An address without what may be a secret in it.
fn shown(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    match Url::parse(address) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op::HttpSignature;

    #[test]
    fn a_signature_is_never_taken_on_trust() {
        let (public_key, signature) = ("key".to_owned(), "signature".to_owned());
        let signed = HttpSource {
            signature: Some(HttpSignature { public_key, signature }),
            ..HttpSource::new("http://h.test/a")
        };
        assert!(matches!(refuse_signature(&signed), Err(HttpError::Unsupported { .. })));
        assert!(refuse_signature(&HttpSource::new("http://h.test/a")).is_ok());
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        assert_eq!(shown("https://me:word@h.test:1/a/b?token=x#y"), "https://h.test:1/a/b");
    }

    #[test]
    fn a_file_is_found_whatever_is_pinned_and_counts_by_what_it_is() {
        let (plain, digest) = (HttpSource::new("http://h.test/a"), Digest::sha256("a"));
        let pinned = HttpSource { checksum: Some(digest), ..plain.clone() };
        assert_eq!(address_key_text(&plain), address_key_text(&pinned));
        assert_ne!(
            address_key(&plain),
            address_key(&pinned),
            "a download is shared by those who pin the same"
        );
        let other = HttpSource { uid: 1, ..plain.clone() };
        assert_ne!(address_key_text(&plain), address_key_text(&other));
        let file =
            |name: &str| HttpFile { digest, filename: name.to_owned(), modified: None, reference: None };
        assert_eq!(
            Web::cache_key(&plain, &file("a")),
            Web::cache_key(&HttpSource::new("http://h.test/b"), &file("a"))
        );
        assert_ne!(Web::cache_key(&plain, &file("a")), Web::cache_key(&plain, &file("b")));
        assert_ne!(Web::cache_key(&plain, &file("a")), Web::cache_key(&other, &file("a")));
    }
}
