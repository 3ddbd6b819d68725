//! [`Endpoint`]: an address at which a registry is asked, and what was learned of it.
//!
//! # States
//!
//! ```text
//!   Unknown ──first reply──► Open ──401──► Basic | Bearer
//!      └───────────401────────────────────────┘
//! ```
//!
//! While nothing is known one request goes ahead as a scout and the others wait for the head of its
//! reply: twelve blobs asked for at once meet one challenge, not twelve.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Url;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::HostConfig;
use super::RegistryConfig;
use super::scope::Scopes;
use super::tls::TlsSettings;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;

/// How an endpoint wants to know who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Unknown,
    /// It answered without.
    Open,
    Basic,
    Bearer {
        realm: String,
        service: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scheme {
    Https,
    Http,
    /// HTTPS, unless what answers does not speak TLS.
    Either,
}

/// One address of a registry.
pub(super) struct Endpoint {
    /// `host[:port]`.
    authority: String,
    /// Behind `/v2/`, with its final slash; may be empty.
    prefix: String,
    /// What a mirror is told to stand for, as its `ns` parameter.
    namespace: Option<String>,
    scheme: Scheme,
    /// With [`Scheme::Either`]: it was found not to speak TLS.
    plain: AtomicBool,
    tls: Arc<TlsSettings>,
    learned: Mutex<Learned>,
    scout: Arc<Semaphore>,
}

#[derive(Debug)]
struct Learned {
    mode: Mode,
    answered: Option<Instant>,
    /// What challenges asked for instead of the scopes that we would ask for.
    scopes: HashMap<Scopes, Scopes>,
}

/// Hosts remembered before idle ones are forgotten: names come from build definitions.
const MAX_HOSTS: usize = 1024;

/// How long somebody who answered is known to be there.
const LATELY: Duration = Duration::from_secs(3600);

/// Scopes remembered at most; beyond them challenges simply come again.
const MAX_LEARNED_SCOPES: usize = 1024;

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}://{}/v2/{})", self.scheme(), self.authority, self.prefix)
    }
}

impl Endpoint {
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    pub fn tls(&self) -> &Arc<TlsSettings> {
        &self.tls
    }

    /// `http` or `https`, as it is to be addressed now.
    pub fn scheme(&self) -> &'static str {
        match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
            Scheme::Either if self.plain.load(Ordering::Relaxed) => "http",
            Scheme::Either => "https",
        }
    }

    /// True if plain HTTP is allowed here: then it is for the token server as well.
    pub fn allows_plain(&self) -> bool {
        self.scheme != Scheme::Https
    }

    /// What answers does not speak TLS. True if plain HTTP is worth a try.
    pub fn fall_back_to_plain(&self) -> bool {
        self.scheme == Scheme::Either && !self.plain.swap(true, Ordering::Relaxed)
    }

    /// The repository as it is called here.
    pub fn repository(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The URL of `path` (already encoded) in a repository; `None` if the names make no URL.
    pub fn url(&self, repository: &str, path: &str, query: &[(&str, &str)]) -> Option<Url> {
        if !is_repository(repository) {
            return None;
        }
        let Endpoint { authority, prefix, .. } = self;
        let mut url: Url =
            format!("{}://{authority}/v2/{prefix}{repository}/{path}", self.scheme()).parse().ok()?;
        if !url.username().is_empty() || url.password().is_some() || !url.path().starts_with("/v2/") {
            return None;
        }
        let namespace = self.namespace.as_deref().map(|ns| ("ns", ns));
        if namespace.is_some() || !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().copied().chain(namespace));
        }
        Some(url)
    }

    /// True if `url` is this very address, so that our credentials may go there.
    pub fn owns(&self, url: &Url) -> bool {
        let own: Option<Url> = format!("{}://{}/", self.scheme(), self.authority).parse().ok();
        own.is_some_and(|own| own.origin() == url.origin())
    }

    pub fn mode(&self) -> Mode {
        self.learned().mode.clone()
    }

    /// Waits while a scout is out. `Some` makes the caller the scout, until it is dropped.
    pub async fn scout(&self, ctx: &Ctx) -> Result<Option<OwnedSemaphorePermit>, Cancelled> {
        if self.mode() != Mode::Unknown {
            return Ok(None);
        }
        let permit = ctx.run(Arc::clone(&self.scout).acquire_owned()).await?;
        // The lane is never closed; whoever waited for a scout looks again at what it learned.
        Ok(permit.ok().filter(|_| self.mode() == Mode::Unknown))
    }

    pub fn learn(&self, mode: Mode) {
        self.learned().mode = mode;
    }

    /// A reply came from it, or from where it led.
    pub fn answered(&self) {
        self.learned().answered = Some(Instant::now());
    }

    /// True if it answered a short while ago: what is wrong with it now will pass.
    pub fn is_known(&self) -> bool {
        self.learned().answered.is_some_and(|at| at.elapsed() < LATELY)
    }

    /// It answered without credentials.
    pub fn learn_open(&self) {
        let mut learned = self.learned();
        if learned.mode == Mode::Unknown {
            learned.mode = Mode::Open;
        }
    }

    /// Scopes to ask a token for when `wanted` is needed.
    pub fn scopes_for(&self, wanted: &Scopes) -> Scopes {
        self.learned().scopes.get(wanted).unwrap_or(wanted).clone()
    }

    pub fn learn_scopes(&self, wanted: &Scopes, asked: &Scopes) {
        let mut learned = self.learned();
        if learned.scopes.len() < MAX_LEARNED_SCOPES {
            learned.scopes.insert(wanted.clone(), asked.clone());
        }
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn for_test(authority: &str, mirror: bool) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            namespace: mirror.then(|| "ns".to_owned()),
            ..Endpoint::new(authority, "", None, &HostConfig::default(), None)
        })
    }

    fn new(
        authority: &str,
        prefix: &str,
        namespace: Option<String>,
        config: &HostConfig,
        default_http: Option<bool>,
    ) -> Endpoint {
        let http = config.http.or(default_http).unwrap_or_else(|| is_loopback(authority));
        let insecure = config.insecure.unwrap_or(false);
        let scheme = match (insecure, http) {
            (true, true) => Scheme::Either,
            (false, true) => Scheme::Http,
            (_, false) => Scheme::Https,
        };
        Endpoint {
            authority: authority.to_owned(),
            prefix: prefix.to_owned(),
            namespace,
            scheme,
            plain: AtomicBool::new(false),
            tls: Arc::new(TlsSettings::of(config)),
            learned: Mutex::new(Learned { mode: Mode::Unknown, answered: None, scopes: HashMap::new() }),
            scout: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Which endpoints an operation may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Mirrors in order, then the host.
    Read,
    /// The host alone.
    Write,
}

/// A host, and whether it is to be trusted blindly.
type HostKey = (String, bool);

/// The endpoints of every host that was asked for.
#[derive(Debug)]
pub(super) struct Endpoints {
    config: HashMap<String, HostConfig>,
    known: Mutex<HashMap<HostKey, Vec<Arc<Endpoint>>>>,
}

impl Endpoints {
    pub fn new(config: &RegistryConfig) -> Endpoints {
        let config = config.hosts.iter().map(|(host, config)| (host.clone(), config.clone())).collect();
        Endpoints { config, known: Mutex::default() }
    }

    /// The endpoints of `host`, itself last. `trusting` is as [`super::RegistryClient::trusting`] says.
    pub fn of(&self, host: &str, trusting: bool, purpose: Purpose) -> Vec<Arc<Endpoint>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_HOSTS {
            // What was learned of an idle host is learned again when it is asked again.
            known.retain(|_, endpoints| endpoints.iter().any(|endpoint| Arc::strong_count(endpoint) > 1));
        }
        let all = known.entry((host.to_owned(), trusting)).or_insert_with(|| self.make(host, trusting));
        match purpose {
            Purpose::Read => all.clone(),
            Purpose::Write => all.iter().filter(|e| !e.is_mirror()).cloned().collect(),
        }
    }

    /// The TLS settings of whatever listens at `authority`, if there are any.
    pub fn tls_of(&self, authority: &str) -> Option<TlsSettings> {
        self.config.get(authority).map(TlsSettings::of)
    }

    fn make(&self, host: &str, trusting: bool) -> Vec<Arc<Endpoint>> {
        let nothing = HostConfig::default();
        let mut config = self.config.get(host).unwrap_or(&nothing).clone();
        if trusting {
            (config.insecure, config.http) = (Some(true), Some(true));
        }
        let mut endpoints = Vec::new();
        for mirror in &config.mirrors {
            let (plain, rest) = match mirror.split_once("://") {
                Some((scheme, rest)) => (scheme.eq_ignore_ascii_case("http").then_some(true), rest),
                None => (None, mirror.as_str()),
            };
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path.trim_matches('/');
            let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
            let own = self.config.get(authority).unwrap_or(&nothing);
            let namespace = Some(host.to_owned());
            endpoints.push(Arc::new(Endpoint::new(authority, &prefix, namespace, own, plain)));
        }
        let authority = if host == "docker.io" { "registry-1.docker.io" } else { host };
        endpoints.push(Arc::new(Endpoint::new(authority, "", None, &config, None)));
        endpoints
    }
}

/// Names that are safe in a path. Registries differ in what they allow beyond this.
pub(super) fn is_repository(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let component = |c: &str| !c.is_empty() && c != "." && c != ".." && c.bytes().all(legal);
    name.split('/').all(component)
}

/// True for an address of this machine: it is reached over plain HTTP and never through a proxy.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None if authority.matches(':').count() == 1 => authority.split(':').next().unwrap_or_default(),
        None => authority,
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(host: &str, hosts: &[(&str, HostConfig)], trusting: bool) -> Vec<String> {
        let hosts = hosts.iter().map(|(name, config)| ((*name).to_owned(), config.clone())).collect();
        let endpoints = Endpoints::new(&RegistryConfig { hosts, ..RegistryConfig::default() });
        let all = endpoints.of(host, trusting, Purpose::Read);
        all.iter().map(|e| e.url("a/b", "manifests/t", &[]).unwrap().to_string()).collect()
    }

    fn http(http: bool) -> HostConfig {
        HostConfig { http: Some(http), ..HostConfig::default() }
    }

    #[test]
    fn loopback_is_plain_http_and_everything_else_https_unless_configured() {
        for (host, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/t"),
            ("r.example", "https://r.example/v2/a/b/manifests/t"),
            ("localhost:5000", "http://localhost:5000/v2/a/b/manifests/t"),
            ("127.3.2.1", "http://127.3.2.1/v2/a/b/manifests/t"),
            ("[::1]:5000", "http://[::1]:5000/v2/a/b/manifests/t"),
            ("localhost.example", "https://localhost.example/v2/a/b/manifests/t"),
        ] {
            assert_eq!(endpoints(host, &[], false), [url]);
        }
        let configured = [("localhost", http(false)), ("r", http(true))];
        assert_eq!(endpoints("localhost", &configured, false), ["https://localhost/v2/a/b/manifests/t"]);
        assert_eq!(endpoints("r", &configured, false), ["http://r/v2/a/b/manifests/t"]);
        assert_eq!(endpoints("r", &configured, true), ["https://r/v2/a/b/manifests/t"], "TLS is tried first");
    }

    #[test]
    fn mirrors_come_first_with_their_own_settings_and_say_whom_they_stand_for() {
        let mirrors = ["m1", "m2:80/proxy/hub/", "http://m3", "https://m4"].map(str::to_owned).to_vec();
        let hosts = [("docker.io", HostConfig { mirrors, ..HostConfig::default() }), ("m1", http(true))];
        assert_eq!(
            endpoints("docker.io", &hosts, false),
            [
                "http://m1/v2/a/b/manifests/t?ns=docker.io",
                "https://m2:80/v2/proxy/hub/a/b/manifests/t?ns=docker.io",
                "http://m3/v2/a/b/manifests/t?ns=docker.io",
                "https://m4/v2/a/b/manifests/t?ns=docker.io",
                "https://registry-1.docker.io/v2/a/b/manifests/t",
            ]
        );
    }

    #[test]
    fn names_that_leave_their_place_make_no_url() {
        let endpoint = Endpoint::for_test("r", false);
        for name in ["", "a/../b", "a//b", "/a", "a/", "a?x", "a#x", "a b", "a%2fb", "..", "é"] {
            assert!(endpoint.url(name, "blobs/x", &[]).is_none(), "{name}");
        }
        for authority in ["user:pw@r", "r/x?", "r#", "", "r\\x"] {
            let url = Endpoint::for_test(authority, false).url("a", "blobs/x", &[]);
            assert!(url.is_none(), "{authority}: {url:?}");
        }
    }

    #[test]
    fn only_the_same_scheme_host_and_port_is_the_endpoint_itself() {
        let endpoint = Endpoint::for_test("r.example:443", false);
        let owns = |url: &str| endpoint.owns(&url.parse().unwrap());
        assert!(owns("https://r.example/x") && owns("https://R.example:443/x"));
        assert!(
            !owns("http://r.example:443/x")
                && !owns("https://r.example:444/")
                && !owns("https://x.r.example/")
        );
    }

    #[tokio::test]
    async fn one_scout_goes_ahead_and_the_rest_wait_for_what_it_learns() {
        let (endpoint, ctx) = (Endpoint::for_test("r", false), Ctx::background());
        let scout = endpoint.scout(&ctx).await.unwrap();
        assert!(scout.is_some());
        let mut second = Box::pin(endpoint.scout(&ctx));
        assert!(futures::poll!(&mut second).is_pending());
        drop(scout);
        let second = second.await.unwrap();
        assert!(second.is_some(), "the first learned nothing");
        endpoint.learn_open();
        drop(second);
        assert!(endpoint.scout(&ctx).await.unwrap().is_none());
    }
}
