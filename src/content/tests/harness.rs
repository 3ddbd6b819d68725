//! A store in a temporary directory, and a provider that does what a test wants.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::*;
use crate::progress::TransferProgress;
use crate::session::Opening;
use crate::session::Session;
use crate::session::SessionGroup;
use crate::session::SessionId;
use crate::session::Sessions;

/// Bytes that don't repeat, the same for the same `seed`.
pub(super) fn bytes(seed: u64, size: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(size as usize + 8);
    while (all.len() as u64) < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(size as usize);
    all.into()
}

pub(super) fn layer(bytes: &Bytes) -> Descriptor {
    Descriptor::of(crate::oci::media_type::OCI_LAYER_GZIP, bytes)
}

pub(super) fn origin(repository: &str) -> Origin {
    Origin::registry("r.example", repository)
}

/// The store's own ways to durable origins.
#[derive(Debug, Default)]
pub(super) struct Ways(Mutex<HashMap<Origin, Arc<Fake>>>);

impl Ways {
    pub(super) fn add(&self, fake: &Arc<Fake>) {
        let origin = fake.origin.clone().expect("a durable way has an origin");
        self.0.lock().unwrap().insert(origin, Arc::clone(fake));
    }
}

impl Connect for Ways {
    fn provider(&self, origin: &Origin) -> Option<Arc<dyn Provider>> {
        let way = self.0.lock().unwrap().get(origin).cloned();
        way.map(|way| Arc::new(Way(way)) as Arc<dyn Provider>)
    }
}

/// A store, and what it takes to open it again.
pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub ways: Arc<Ways>,
    pub store: ContentStore,
}

impl Fixture {
    pub(super) fn new() -> Fixture {
        let (dir, ways) = (tempfile::tempdir().unwrap(), Arc::<Ways>::default());
        let store = open(dir.path(), &ways);
        Fixture { dir, ways, store }
    }

    /// Stops the store as a daemon does, and opens it again.
    pub(super) async fn restart(self) -> Fixture {
        let Fixture { dir, ways, store } = self;
        store.inner.tasks.shutdown().await;
        store.db().close();
        drop(store);
        let store = open(dir.path(), &ways);
        Fixture { dir, ways, store }
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.store.inner.disk.blob(digest)
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.store.inner.disk.partial(digest)
    }

    /// Leaves the first bytes of a blob as a fetch from `origin` does.
    pub(super) fn leave_partial(&self, digest: &Digest, bytes: &[u8], origin: Origin) {
        let disk = &self.store.inner.disk;
        let file = disk.open_partial(digest).unwrap();
        disk.note(&file, digest, &given::Given::By(origin)).unwrap();
        std::fs::write(self.partial_path(digest), bytes).unwrap();
    }

    /// Loses a blob's row, as a crash does right after the file was made.
    pub(super) async fn lose_row(&self, digest: &Digest) {
        let digest = *digest;
        let lose = move |tx: &crate::db::WriteTx| {
            rows::intend_deletion(tx, &digest)?;
            rows::deleted(tx, &digest)
        };
        self.store.db().write(lose).await.unwrap();
    }

    pub(super) fn partial_size(&self, digest: &Digest) -> u64 {
        self.store.inner.disk.partial_size(digest)
    }

    /// Bytes of every file of the store.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        let disk = &self.store.inner.disk;
        let all = disk.list_blobs().unwrap().into_iter().chain(disk.list_partials().unwrap());
        all.map(|found| found.size).sum()
    }
}

pub(super) fn open(root: &Path, ways: &Arc<Ways>) -> ContentStore {
    let db = Db::open(root.join("meta.redb")).unwrap();
    let connect = Arc::clone(ways) as Arc<dyn Connect>;
    ContentStore::open(&root.join("content"), db, Leases::new(), connect, Tasks::new()).unwrap()
}

/// A request of the client `name`.
pub(super) fn client(name: &str) -> Ctx {
    let sessions = Sessions::new(&Tasks::new());
    Ctx::background().with_sessions(SessionGroup::new(&sessions, [SessionId::new(name)])).child()
}

/// A client with an open session, which ends when this is dropped.
pub(super) struct Client {
    pub ctx: Ctx,
    pub session: Session,
    _inbound: mpsc::Sender<std::io::Result<Bytes>>,
    _outbound: BoxStream<'static, Bytes>,
}

impl Client {
    pub(super) async fn open(sessions: &Sessions, name: &str) -> Client {
        let id = SessionId::new(name);
        let opening = Opening {
            id: id.clone(),
            name: String::new(),
            shared_key: String::new(),
            methods: Vec::new(),
            health: None,
        };
        let (inbound, receiver) = mpsc::channel(1);
        let outbound = sessions.open(opening, Box::pin(ReceiverStream::new(receiver))).await.unwrap();
        let ctx = Ctx::background().with_sessions(SessionGroup::new(sessions, [id.clone()]));
        Client { ctx, session: sessions.get(&id).unwrap(), _inbound: inbound, _outbound: outbound }
    }

    pub(super) async fn close(self) {
        let session = self.session.clone();
        drop(self);
        session.ended().await;
    }
}

/// A provider that serves some bytes, and misbehaves as it is told.
#[derive(Debug)]
pub(super) struct Fake {
    pub origin: Option<Origin>,
    bytes: Bytes,
    pub script: Mutex<Script>,
    pub opens: AtomicU64,
    pub probes: AtomicU64,
    /// Bytes that were taken from it.
    pub served: AtomicU64,
    /// Offsets that it was opened at.
    pub offsets: Mutex<Vec<u64>>,
    pub condemned: AtomicU64,
    /// Bodies that came to a stall.
    pub stalls: AtomicU64,
    /// A permit lets a stalled body go on for good.
    pub gate: Semaphore,
}

/// How a [`Fake`] behaves. Offsets count from the blob's first byte.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Clients that are not let in.
    pub strangers: Vec<&'static str>,
    /// Nobody finds the blob.
    pub gone: bool,
    /// Who asks for its word waits for ever.
    pub silent: bool,
    /// Bodies wait here for the gate.
    pub stall_at: Option<u64>,
    /// Bodies break here, so often.
    pub break_at: Option<(u64, u32)>,
    /// Bodies end here without an error.
    pub end_at: Option<u64>,
    /// Bodies have one wrong bit here, so often.
    pub flip_at: Option<(u64, u32)>,
    /// Bodies have this many bytes too many.
    pub surplus: u64,
    /// Bodies start at the first byte whatever is asked.
    pub ignores_offset: bool,
}

const CHUNK: usize = 16 << 10;

impl Fake {
    pub(super) fn new(origin: impl Into<Option<Origin>>, bytes: &Bytes) -> Arc<Fake> {
        Fake::with(origin, bytes, Script::default())
    }

    pub(super) fn with(origin: impl Into<Option<Origin>>, bytes: &Bytes, script: Script) -> Arc<Fake> {
        Arc::new(Fake {
            origin: origin.into(),
            bytes: bytes.clone(),
            script: Mutex::new(script),
            opens: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            served: AtomicU64::new(0),
            offsets: Mutex::default(),
            condemned: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            gate: Semaphore::new(0),
        })
    }

    pub(super) fn opens(&self) -> u64 {
        self.opens.load(Ordering::SeqCst)
    }

    pub(super) fn probes(&self) -> u64 {
        self.probes.load(Ordering::SeqCst)
    }

    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Waits until so many bytes were taken.
    pub(super) async fn has_served(&self, count: u64) {
        while self.served() < count {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn handlers(self: &Arc<Self>, descriptor: &Descriptor) -> DescHandlers {
        let mut handlers = DescHandlers::new();
        handlers.add(descriptor.digest, DescHandler::new(Arc::new(Way(Arc::clone(self)))));
        handlers
    }

    fn knows(&self, ctx: &Ctx) -> bool {
        let script = self.script.lock().unwrap();
        !ctx.sessions().ids().iter().any(|id| script.strangers.contains(&id.as_str()))
    }

    fn let_in(&self, ctx: &Ctx) -> Result<(), ProvideError> {
        if !self.knows(ctx) {
            return Err(ProvideError::unauthorized("401"));
        }
        let script = self.script.lock().unwrap();
        if script.gone { Err(ProvideError::gone("404")) } else { Ok(()) }
    }
}

/// Takes one from a counter of how often something is still to happen.
fn due(what: &mut Option<(u64, u32)>) -> Option<u64> {
    let (at, left) = what.as_mut()?;
    let at = *at;
    *left -= 1;
    if *left == 0 {
        *what = None;
    }
    Some(at)
}

struct FakeBody {
    fake: Arc<Fake>,
    stream: ByteStream,
}

impl futures::Stream for FakeBody {
    type Item = Result<Bytes, ProvideError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

impl Body for FakeBody {
    fn condemn(&self) {
        self.fake.condemned.fetch_add(1, Ordering::SeqCst);
    }
}

/// A handle of a [`Fake`] that lives as long as its bodies.
#[derive(Clone, Debug)]
pub(super) struct Way(pub Arc<Fake>);

#[async_trait]
impl Provider for Way {
    async fn open(&self, ctx: &Ctx, _descriptor: &Descriptor, offset: u64) -> Result<Opened, ProvideError> {
        let fake = Arc::clone(&self.0);
        fake.opens.fetch_add(1, Ordering::SeqCst);
        fake.offsets.lock().unwrap().push(offset);
        fake.let_in(ctx)?;
        let mut script = fake.script.lock().unwrap();
        let offset = if script.ignores_offset { 0 } else { offset };
        let (stall_at, end_at) = (script.stall_at, script.end_at);
        let (break_at, flip_at) = (due(&mut script.break_at), due(&mut script.flip_at));
        let mut all = fake.bytes.to_vec();
        all.extend(std::iter::repeat_n(0, script.surplus as usize));
        drop(script);
        if let Some(at) = flip_at {
            all[at as usize] ^= 1;
        }
        all.truncate(end_at.unwrap_or(u64::MAX).min(all.len() as u64) as usize);
        let all = Bytes::from(all);
        let body = Arc::clone(&fake);
        let stream = async_stream::stream! {
            let mut at = offset as usize;
            while at < all.len() {
                let stops = [stall_at, break_at].into_iter().flatten().map(|s| s as usize);
                if stall_at == Some(at as u64) {
                    body.stalls.fetch_add(1, Ordering::SeqCst);
                    let permit = body.gate.acquire().await.expect("the gate is never closed");
                    drop(permit);
                }
                if break_at == Some(at as u64) {
                    yield Err(ProvideError::unreachable("connection reset"));
                    return;
                }
                let next = stops.filter(|s| *s > at).min().unwrap_or(usize::MAX);
                let end = (at + CHUNK).min(next).min(all.len());
                body.served.fetch_add((end - at) as u64, Ordering::SeqCst);
                let chunk = all.slice(at..end);
                at = end;
                yield Ok(chunk);
            }
        };
        Ok(Opened { offset, body: Box::pin(FakeBody { fake, stream: Box::pin(stream) }) })
    }

    async fn probe(&self, ctx: &Ctx, _descriptor: &Descriptor) -> Result<(), ProvideError> {
        self.0.probes.fetch_add(1, Ordering::SeqCst);
        let is_silent = self.0.script.lock().unwrap().silent;
        if is_silent {
            std::future::pending::<()>().await;
        }
        self.0.let_in(ctx)
    }

    fn origin(&self) -> Option<Origin> {
        self.0.origin.clone()
    }

    fn vouches_for(&self, ctx: &Ctx) -> bool {
        self.0.knows(ctx)
    }
}

/// Remembers what it was told.
#[derive(Debug, Default)]
pub(super) struct Watcher(pub Mutex<Vec<Told>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Start(u64),
    Update(u64),
    Complete,
}

impl TransferProgress for Watcher {
    fn start(&self, total: u64) {
        self.0.lock().unwrap().push(Told::Start(total));
    }

    fn update(&self, current: u64) {
        self.0.lock().unwrap().push(Told::Update(current));
    }

    fn complete(&self) {
        self.0.lock().unwrap().push(Told::Complete);
    }
}
