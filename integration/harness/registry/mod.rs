//! A registry of the OCI distribution specification on loopback, in the test's own process. It counts
//! every request and byte, and fails and waits where a test says so.
//!
//! It runs on threads of its own, so that blocking and paused-clock tests can use it, and ends when
//! it is dropped. `harness_tests.rs` holds it against Debian's docker-registry.
//!
//! ```ignore
//! let registry = TestRegistry::start(Options { auth: Auth::Bearer, ..Options::default() });
//! registry.put_image("library/app", "v1", &image);
//! registry.allow("alice", "library/app", Right::Pull);
//! registry.fail(Op::BlobGet.of(image.layers[0].digest()).once(), How::Truncate(100));
//! let hold = registry.hold_after(Op::BlobGet, 4096);
//! hold.reached().await;
//! hold.release();
//! assert_eq!(registry.count(Op::BlobGet), 2);
//! ```

mod access;
mod blobs;
mod body;
mod connection;
mod fault;
mod journal;
mod manifests;
mod point;
mod reply;
mod serve;
mod server;
mod store;
mod target;
mod tls;
mod token;
mod uploads;

use std::collections::HashSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

pub use self::access::Auth;
pub use self::access::Right;
pub use self::fault::Fault;
pub use self::fault::Hold;
pub use self::fault::How;
pub use self::journal::Connections;
pub use self::journal::Listener;
pub use self::journal::Request;
pub use self::point::Op;
pub use self::point::Point;
pub use self::store::StoredManifest;
pub use self::tls::Tls;

use self::access::Access;
use self::fault::Rules;
use self::journal::Journal;
use self::serve::Shared;
use self::server::Server;
use self::store::Store;
use super::blob::BlobSource;
use super::gate::PATIENCE;
use super::image::Image;

/// The service's name in challenges.
pub const SERVICE: &str = "test-registry";

/// What kind of registry it is. The default is open, plain HTTP, and can do everything.
#[derive(Clone, Debug)]
pub struct Options {
    pub auth: Auth,
    /// HTTPS with a certificate of [`TestRegistry::ca_pem`], HTTP/2 by ALPN.
    pub tls: bool,
    /// Reads of blobs are redirected to another address, which wants no credential and refuses any.
    pub redirect_blobs: bool,
    /// `Range` is honoured.
    pub ranges: bool,
    /// Mounts are tried; otherwise each gets an upload instead.
    pub mounts: bool,
    /// A blob may come in the body of the POST.
    pub single_post: bool,
    /// The referrers API is there.
    pub referrers: bool,
    /// The `Location` of an upload is a URL rather than a path.
    pub absolute_locations: bool,
    pub token_life: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth: Auth::Open,
            tls: false,
            redirect_blobs: false,
            ranges: true,
            mounts: true,
            single_post: true,
            referrers: true,
            absolute_locations: false,
            token_life: Duration::from_secs(300),
        }
    }
}

/// A running registry.
pub struct TestRegistry {
    shared: Arc<Shared>,
    server: Mutex<Server>,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl TestRegistry {
    /// An open registry over plain HTTP.
    pub fn open() -> Self {
        Self::start(Options::default())
    }

    pub fn start(options: Options) -> Self {
        let tls = options.tls.then(|| Arc::new(Tls::generate(&["127.0.0.1", "127.0.0.2", "localhost"])));
        let scheme = if options.tls { "https" } else { "http" };
        let mut server = Server::new(tls.clone());
        let address = server.bind(Listener::Registry, "127.0.0.1:0");
        // Another host, not only another port: clients must compare both.
        let cdn = options.redirect_blobs.then(|| server.bind(Listener::Cdn, "127.0.0.2:0"));
        let shared = Arc::new(Shared {
            url: format!("{scheme}://{address}"),
            cdn_url: cdn.map(|cdn| format!("{scheme}://{cdn}")),
            journal: Journal::new(),
            rules: Arc::new(Rules::default()),
            store: Mutex::new(Store::default()),
            access: Mutex::new(Access::new(options.auth, options.token_life)),
            signatures: Mutex::new(HashSet::new()),
            options,
        });
        server.listen(&shared);
        Self { shared, server: Mutex::new(server), address, tls }
    }

    /// `127.0.0.1:<port>`, as it stands in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http[s]://127.0.0.1:<port>`
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// `<host>/<repository>:<tag>`, or with `@` for a digest.
    pub fn reference(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{reference}", self.address)
    }

    /// The certificate authority that signed the registry's certificate, if it has one.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.ca_pem.as_str())
    }

    /// Drops all connections and listens no more: clients see resets, then refusals.
    pub fn go_down(&self) {
        self.server.lock().expect("server").stop();
    }

    /// Listens again on the same addresses with the same contents.
    pub fn come_back(&self) {
        self.server.lock().expect("server").listen(&self.shared);
    }
}

/// What it holds.
impl TestRegistry {
    /// Puts an image or index there with its blobs. Not counted.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) {
        self.shared.store().put_image(repository, tag, image);
    }

    /// `digest` must be that of `source`.
    pub fn put_blob(&self, repository: &str, digest: impl Display, source: BlobSource) {
        self.shared.store().put_blob(repository, &digest.to_string(), source);
    }

    /// By tag or digest.
    pub fn manifest(&self, repository: &str, reference: impl Display) -> Option<StoredManifest> {
        self.shared.store().manifest(repository, &reference.to_string()).cloned()
    }

    pub fn blob(&self, repository: &str, digest: impl Display) -> Option<BlobSource> {
        self.shared.store().blob(repository, &digest.to_string())
    }

    pub fn has_blob(&self, repository: &str, digest: impl Display) -> bool {
        self.blob(repository, digest).is_some()
    }

    /// In order; empty if nothing was ever put there.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        self.shared.store().tags(repository).unwrap_or_default()
    }

    /// As if deleted upstream. Says whether it was there.
    pub fn remove_blob(&self, repository: &str, digest: impl Display) -> bool {
        self.shared.store().delete_blob(repository, &digest.to_string())
    }

    /// By tag or digest. Says whether it was there.
    pub fn remove_manifest(&self, repository: &str, reference: impl Display) -> bool {
        self.shared.store().delete_manifest(repository, &reference.to_string())
    }

    /// Uploads that were begun and neither completed nor cancelled.
    pub fn open_uploads(&self) -> usize {
        self.shared.store().open_uploads()
    }
}

/// Who may do what.
impl TestRegistry {
    pub fn add_user(&self, user: &str, password: &str) {
        self.shared.access().add_user(user, password);
    }

    /// The user "" is everybody, the repository "*" any.
    pub fn allow(&self, user: &str, repository: &str, right: Right) {
        self.shared.access().allow(user, repository, right);
    }

    /// Takes a grant back; tokens that carry it are worth nothing for it from now on.
    pub fn deny(&self, user: &str, repository: &str) {
        self.shared.access().deny(user, repository);
    }

    /// A refresh (identity) token of the user, as `docker login` would have got.
    pub fn identity_token(&self, user: &str) -> String {
        self.shared.access().issue_refresh_token(user)
    }

    /// All access tokens given out so far are refused from now on.
    pub fn expire_tokens(&self) {
        self.shared.access().expire_tokens();
    }

    pub fn revoke_identity_tokens(&self) {
        self.shared.access().revoke_refresh_tokens();
    }
}

/// Faults and pauses.
impl TestRegistry {
    /// Plants a fault. Where several match one request, the oldest counts.
    pub fn fail(&self, point: impl Into<Point>, how: How) -> Fault {
        self.shared.rules.fail(point.into(), how)
    }

    /// Requests wait on arrival, before anything is done.
    pub fn hold(&self, point: impl Into<Point>) -> Hold {
        self.shared.rules.hold(point.into(), None)
    }

    /// Requests wait after `bytes` of their body: the request's for uploads and manifest PUTs, the
    /// reply's for everything else. The bytes are on their way to the client then.
    pub fn hold_after(&self, point: impl Into<Point>, bytes: u64) -> Hold {
        self.shared.rules.hold(point.into(), Some(bytes))
    }

    /// Lifts all faults and releases all holds.
    pub fn heal(&self) {
        self.shared.rules.clear();
    }
}

/// What was asked of it.
impl TestRegistry {
    /// Every request since the start (or the last `forget`), in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.journal.requests()
    }

    /// Forgets all requests and peaks, to count from here.
    pub fn forget(&self) {
        self.shared.journal.clear();
    }

    /// The requests at a point, whatever became of them.
    pub fn at(&self, point: impl Into<Point>) -> Vec<Request> {
        let point = point.into();
        let mut requests = self.requests();
        requests.retain(|request| point.matches(request));
        requests
    }

    /// How many requests came to a point, whatever became of them.
    pub fn count(&self, point: impl Into<Point>) -> usize {
        self.at(point).len()
    }

    /// GETs that were answered with bytes of this blob, here or where they were redirected to.
    pub fn gets_of(&self, digest: impl Display) -> usize {
        self.at(Op::BlobGet.of(digest)).iter().filter(|request| request.succeeded()).count()
    }

    /// GETs that were answered with bytes of any blob.
    pub fn blob_gets(&self) -> usize {
        self.at(Op::BlobGet).iter().filter(|request| request.succeeded()).count()
    }

    /// Blobs that were uploaded, bytes and all.
    pub fn uploads(&self) -> usize {
        let ends = self.at([Op::UploadPut, Op::UploadStart]);
        ends.iter().filter(|request| request.status == Some(201)).count()
    }

    /// Mounts that were granted.
    pub fn mounts_ok(&self) -> usize {
        self.at(Op::Mount).iter().filter(|request| request.status == Some(201)).count()
    }

    /// Bytes of all replies' bodies.
    pub fn bytes_out(&self) -> u64 {
        self.requests().iter().map(|request| request.bytes_out).sum()
    }

    /// Bytes of all requests' bodies.
    pub fn bytes_in(&self) -> u64 {
        self.requests().iter().map(|request| request.bytes_in).sum()
    }

    /// Bytes of this blob that were handed to clients.
    pub fn bytes_of(&self, digest: impl Display) -> u64 {
        let gets = self.at(Op::BlobGet.of(digest));
        gets.iter().filter(|request| request.succeeded()).map(|request| request.bytes_out).sum()
    }

    /// The most requests of one kind that were in progress at the same time.
    pub fn peak_concurrent(&self, op: Op) -> usize {
        self.shared.journal.peak_concurrent(op)
    }

    pub fn connections(&self) -> Connections {
        self.shared.journal.connections()
    }

    /// Redirected requests that brought a credential along.
    pub fn leaked_credentials(&self) -> usize {
        let requests = self.requests();
        let cdn = requests.iter().filter(|request| request.listener == Listener::Cdn);
        cdn.filter(|request| request.authorization.is_some()).count()
    }

    /// Waits until the requests so far are as `enough` says; panics with the journal after
    /// [`PATIENCE`].
    pub async fn until(&self, enough: impl Fn(&Self) -> bool) {
        let mut changed = self.shared.journal.watch();
        let all = async {
            while !enough(self) {
                changed.changed().await.expect("the journal lives as long as the registry");
            }
        };
        let timely = tokio::time::timeout(PATIENCE, all).await;
        assert!(timely.is_ok(), "the registry waited in vain; its journal:\n{}", self.story());
    }

    /// Waits until a request to a point has come.
    pub async fn until_asked(&self, point: impl Into<Point>) {
        let point = point.into();
        self.until(|registry| registry.count(point.clone()) > 0).await;
    }

    /// Waits until nothing is in progress.
    pub async fn until_idle(&self) {
        self.until(|registry| registry.requests().iter().all(|request| request.ended)).await;
    }

    /// The journal as text, one line a request.
    pub fn story(&self) -> String {
        let line = |request: &Request| {
            let Request { id, method, uri, status, bytes_in, bytes_out, user, range, fault, .. } = request;
            let status = status.map_or("-".to_owned(), |status| status.to_string());
            let mut line = format!("{id:4} {method} {uri} {status} in {bytes_in} out {bytes_out}");
            for (name, value) in [("user", user), ("range", range), ("fault", fault)] {
                if let Some(value) = value {
                    line += &format!(" {name} {value}");
                }
            }
            line + "\n"
        };
        self.requests().iter().map(line).collect()
    }
}
