//! [`VertexProgress`]: the writing end for one vertex, and [`ItemProgress`] for a part of it.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use super::Item;
use super::Log;
use super::LogStream;
use super::Sample;
use super::Sink;
use super::Update;
use super::Vertex;
use super::Warning;
use crate::oci::Digest;

/// An item is reported this often at most; its first and its last value always are.
const ITEM_INTERVAL: Duration = Duration::from_millis(150);

/// What a provider of bytes reports. It knows no vertex and no solver.
pub trait TransferProgress: fmt::Debug + Send + Sync {
    /// The transfer begins (again); `total` in bytes.
    fn start(&self, total: u64);
    /// Bytes so far, counted from the first byte of the content.
    fn update(&self, current: u64);
    /// The transfer is over, whole or not.
    fn complete(&self);
}

/// Reports one vertex. Clones are the same vertex.
#[derive(Clone)]
pub struct VertexProgress(Arc<Inner>);

struct Inner {
    digest: Digest,
    sink: Arc<dyn Sink>,
    state: Mutex<State>,
}

/// A vertex is open while its step runs or somebody works under its name, and is reported as
/// completed when neither is so:
///
/// ```text
/// announced --start/busy--> open --(step over and nobody busy)--> completed --busy/start--> open
/// ```
struct State {
    vertex: Vertex,
    running: bool,
    busy: usize,
}

impl State {
    /// Makes the vertex open; false if it is.
    fn begin(&mut self) -> bool {
        let vertex = &mut self.vertex;
        let begins = vertex.started.is_none() || vertex.completed.is_some();
        if begins {
            vertex.started = Some(SystemTime::now());
            vertex.completed = None;
            vertex.error = None;
        }
        begins
    }
}

impl VertexProgress {
    /// Announces `vertex` to `sink`.
    pub fn new(vertex: Vertex, sink: Arc<dyn Sink>) -> VertexProgress {
        sink.send(Update::Vertex(vertex.clone()));
        let digest = vertex.digest;
        let state = Mutex::new(State { vertex, running: false, busy: 0 });
        VertexProgress(Arc::new(Inner { digest, sink, state }))
    }

    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The step begins, or begins anew.
    pub fn start(&self) {
        let mut state = self.state();
        state.running = true;
        // What was passed over for one build may have to run for another.
        state.vertex.cached = false;
        state.vertex.usage = None;
        self.open(&mut state);
    }

    /// What the step's process used, which is told with its end.
    pub fn used(&self, samples: Vec<Sample>) {
        self.state().vertex.usage = Some(samples.into());
    }

    /// The step is over; `error` says why it failed.
    pub fn complete(&self, error: Option<String>) {
        let mut state = self.state();
        state.running = false;
        state.vertex.error = error;
        self.close(&mut state);
    }

    /// The step began and is over, both at this moment; `error` says why it failed.
    pub fn done(&self, error: Option<String>) {
        let mut state = self.state();
        state.running = false;
        state.vertex.cached = false;
        state.vertex.usage = None;
        state.begin();
        state.vertex.error = error;
        self.close(&mut state);
    }

    /// The step was not run since its result was known. Starts and completes the vertex.
    pub fn cached(&self) {
        let mut state = self.state();
        state.running = false;
        state.vertex.cached = true;
        state.vertex.started.get_or_insert_with(SystemTime::now);
        self.close(&mut state);
    }

    /// Work under the vertex's name that may outlive or follow its step, such as a lazy layer's
    /// download. The vertex is open while one of these lives.
    pub fn busy(&self) -> Busy {
        let mut state = self.state();
        state.busy += 1;
        self.open(&mut state);
        Busy(self.clone())
    }

    /// A part of the work; `id` is unique within the vertex, `name` says what is done.
    pub fn item(&self, id: impl Into<String>, name: impl Into<String>) -> ItemProgress {
        let item = Item {
            vertex: self.0.digest,
            id: id.into(),
            name: name.into(),
            current: 0,
            total: 0,
            timestamp: SystemTime::now(),
            started: None,
            completed: None,
        };
        ItemProgress { vertex: self.clone(), state: Mutex::new(ItemState { item, sent: None, busy: None }) }
    }

    pub fn log(&self, stream: LogStream, data: bytes::Bytes) {
        let log = Log { vertex: self.0.digest, timestamp: SystemTime::now(), stream, data };
        self.0.sink.send(Update::Log(log));
    }

    /// `warning` is reported under this vertex, whatever it says of its own.
    pub fn warn(&self, warning: Warning) {
        self.0.sink.send(Update::Warning(Warning { vertex: self.0.digest, ..warning }));
    }

    fn open(&self, state: &mut State) {
        if state.begin() {
            self.0.sink.send(Update::Vertex(state.vertex.clone()));
        }
    }

    fn close(&self, state: &mut State) {
        if !state.running && state.busy == 0 {
            state.vertex.completed = Some(SystemTime::now());
            self.0.sink.send(Update::Vertex(state.vertex.clone()));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VertexProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VertexProgress({})", self.0.digest)
    }
}

/// Keeps a vertex open.
#[must_use = "the vertex is open only while this lives"]
#[derive(Debug)]
pub struct Busy(VertexProgress);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy -= 1;
        self.0.close(&mut state);
    }
}

/// Reports one part of a vertex's work. The vertex is open between `start` and `complete`.
pub struct ItemProgress {
    vertex: VertexProgress,
    state: Mutex<ItemState>,
}

struct ItemState {
    item: Item,
    sent: Option<Instant>,
    busy: Option<Busy>,
}

impl ItemProgress {
    /// Sets how far the item has come.
    pub fn set(&self, current: u64, total: u64) {
        let mut state = self.state();
        state.item.total = total;
        self.advance(&mut state, current);
    }

    fn advance(&self, state: &mut ItemState, current: u64) {
        state.item.current = current;
        let due = state.sent.is_none_or(|sent| sent.elapsed() >= ITEM_INTERVAL);
        if due || current == state.item.total {
            self.send(state);
        }
    }

    fn send(&self, state: &mut ItemState) {
        state.item.timestamp = SystemTime::now();
        state.sent = Some(Instant::now());
        self.vertex.0.sink.send(Update::Item(state.item.clone()));
    }

    fn state(&self) -> MutexGuard<'_, ItemState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TransferProgress for ItemProgress {
    fn start(&self, total: u64) {
        let mut state = self.state();
        if state.busy.is_none() {
            state.busy = Some(self.vertex.busy());
        }
        state.item.total = total;
        state.item.current = 0;
        state.item.started = Some(SystemTime::now());
        state.item.completed = None;
        self.send(&mut state);
    }

    fn update(&self, current: u64) {
        self.advance(&mut self.state(), current);
    }

    fn complete(&self) {
        let mut state = self.state();
        if state.item.completed.is_none() {
            state.item.started.get_or_insert_with(SystemTime::now);
            state.item.completed = Some(SystemTime::now());
            self.send(&mut state);
        }
        let busy = state.busy.take();
        drop(state);
        drop(busy);
    }
}

impl fmt::Debug for ItemProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemProgress({} {})", self.vertex.0.digest, self.state().item.id)
    }
}
