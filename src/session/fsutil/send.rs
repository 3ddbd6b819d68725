//! [`send`]: the sending end of a transfer.

use std::collections::HashMap;
use std::io;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt as _;
use prost::Message as _;
use tokio::sync::mpsc;

use super::FileStat;
use super::TransferError;
use crate::proto::fsutil::Packet;
use crate::proto::fsutil::packet::PacketType;
use crate::task::Task;
use crate::task::Tasks;

/// Files that are sent at the same time.
const FILES: usize = 4;
/// Bytes of a file in one packet.
const PIECE: usize = 64 << 10;

/// A tree that can be sent. Its methods block.
pub trait TreeSource: Send + Sync + 'static {
    /// Tells of each entry, in the order of a walk, the root left out, until it is told to break.
    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError>;

    /// Opens a file that the walk has told of.
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>>;
}

/// Takes the entries of a walk.
pub type Visit<'v> = dyn FnMut(FileStat) -> ControlFlow<()> + 'v;

/// What a transfer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    pub entries: u64,
    /// Files whose bytes were asked for.
    pub files: u64,
    /// Bytes of all packets.
    pub bytes: u64,
}

/// Sends `source` to the receiver at the other end of `packets` and `out`, whose end is the end of our
/// side. `progress` is told of the bytes that were sent. What the receiver says after its `FIN` is the
/// caller's to read.
///
/// Cancellation safe as the module says.
pub async fn send<S, E>(
    tasks: &Tasks,
    mut packets: S,
    out: mpsc::Sender<Packet>,
    source: Arc<dyn TreeSource>,
    mut progress: impl FnMut(u64) + Send,
) -> Result<Sent, TransferError>
where
    S: Stream<Item = Result<Packet, E>> + Send + Unpin,
    E: Into<TransferError> + Send,
{
    let shared = Arc::new(Shared { source, out, files: Mutex::default(), bytes: AtomicU64::new(0) });
    let mut threads = Threads::start(tasks, &shared);
    let mut sent = Sent::default();
    let ended = loop {
        tokio::select! {
            biased;
            end = threads.ends.recv() => match end {
                Some(Ok(entries)) => sent.entries = entries,
                Some(Err(error)) => break Err(error),
                // All threads have ended, and none says why: the receiver takes nothing more.
                None => break Err(TransferError::Ended),
            },
            packet = packets.next() => {
                let packet = match packet {
                    None => break Err(TransferError::Ended),
                    Some(Err(error)) => break Err(error.into()),
                    Some(Ok(packet)) => packet,
                };
                progress(shared.bytes.load(Ordering::Relaxed));
                match packet.r#type() {
                    PacketType::Req => match shared.ask(packet.id) {
                        Some(path) => {
                            sent.files += 1;
                            // They end with `asked`, which is still here.
                            let _ = threads.asked.send((packet.id, path));
                        }
                        None => break Err(TransferError::NotAsked { id: packet.id }),
                    },
                    PacketType::Fin => break Ok(()),
                    PacketType::Err => break Err(TransferError::peer(&packet.data)),
                    PacketType::Stat | PacketType::Data => {
                        break Err(TransferError::Packet { kind: packet.r#type });
                    }
                }
            }
        }
    };
    let Threads { asked, handles, .. } = threads;
    drop(asked);
    match ended {
        Ok(()) => {
            let fin = Packet { r#type: PacketType::Fin as i32, ..Packet::default() };
            shared.out.send(fin).await.map_err(|_| TransferError::Ended)?;
            for thread in handles {
                thread.await?;
            }
            sent.bytes = shared.bytes.load(Ordering::Relaxed);
            progress(sent.bytes);
            Ok(sent)
        }
        Err(error) => {
            if !matches!(error, TransferError::Peer { .. } | TransferError::Session(_)) {
                let data = error.to_string().into();
                let packet = Packet { r#type: PacketType::Err as i32, data, ..Packet::default() };
                // A receiver that takes nothing has no need for it.
                let _ = shared.out.try_send(packet);
            }
            Err(error)
        }
    }
}

struct Shared {
    source: Arc<dyn TreeSource>,
    out: mpsc::Sender<Packet>,
    /// Files that may be asked for, by number.
    files: Mutex<HashMap<u32, Vec<u8>>>,
    bytes: AtomicU64,
}

struct Threads {
    asked: mpsc::UnboundedSender<(u32, Vec<u8>)>,
    /// The number of entries, once they are sent, or why a thread has ended.
    ends: mpsc::UnboundedReceiver<Result<u64, TransferError>>,
    handles: Vec<Task<()>>,
}

impl Threads {
    fn start(tasks: &Tasks, shared: &Arc<Shared>) -> Threads {
        let (asked, queue) = mpsc::unbounded_channel();
        let (end, ends) = mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut handles = Vec::new();
        for _ in 0..FILES {
            let (shared, queue, end) = (Arc::clone(shared), Arc::clone(&queue), end.clone());
            handles.push(tasks.spawn_blocking("transfer reader", move || {
                while let Some((id, path)) = next(&queue) {
                    match shared.send_file(id, &path) {
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => break,
                        Err(error) => {
                            let _ = end.send(Err(error));
                            break;
                        }
                    }
                }
                // The channel of ends closes when nobody is left who sends.
                drop(end);
            }));
        }
        let shared = Arc::clone(shared);
        handles.push(tasks.spawn_blocking("transfer walk", move || {
            let _ = match shared.walk() {
                Ok(Some(entries)) => end.send(Ok(entries)),
                Ok(None) => Ok(()),
                Err(error) => end.send(Err(error)),
            };
        }));
        Threads { asked, ends, handles }
    }
}

/// The next file that is asked for. Readers wait in turn.
fn next(queue: &Mutex<mpsc::UnboundedReceiver<(u32, Vec<u8>)>>) -> Option<(u32, Vec<u8>)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
}

impl Shared {
    fn ask(&self, id: u32) -> Option<Vec<u8>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    /// Breaks if the receiver takes nothing more.
    fn put(&self, packet: Packet) -> ControlFlow<()> {
        self.bytes.fetch_add(packet.encoded_len() as u64, Ordering::Relaxed);
        match self.out.blocking_send(packet) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// `None` if the receiver takes nothing more.
    fn walk(&self) -> Result<Option<u64>, TransferError> {
        let mut entries = 0u64;
        let mut broken = None;
        self.source.walk(&mut |stat| {
            let Ok(id) = u32::try_from(entries) else {
                let limit = u64::from(u32::MAX);
                broken = Some(Err(TransferError::TooMany { what: "entries", limit }));
                return ControlFlow::Break(());
            };
            entries += 1;
            if stat.has_data() {
                self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stat.path.clone());
            }
            let stat = Some(stat.encode());
            let put = self.put(Packet { r#type: PacketType::Stat as i32, stat, ..Packet::default() });
            if put.is_break() {
                broken = Some(Ok(None));
            }
            put
        })?;
        if let Some(broken) = broken {
            return broken;
        }
        match self.put(Packet { r#type: PacketType::Stat as i32, ..Packet::default() }) {
            ControlFlow::Continue(()) => Ok(Some(entries)),
            ControlFlow::Break(()) => Ok(None),
        }
    }

    fn send_file(&self, id: u32, path: &[u8]) -> Result<ControlFlow<()>, TransferError> {
        let piece = |data| Packet { r#type: PacketType::Data as i32, id, data, ..Packet::default() };
        // A file that is gone meanwhile is empty.
        if let Ok(mut file) = self.source.open(path) {
            loop {
                let mut bytes = Vec::with_capacity(PIECE);
                (&mut file)
                    .take(PIECE as u64)
                    .read_to_end(&mut bytes)
                    .map_err(TransferError::file("read", String::from_utf8_lossy(path).into_owned()))?;
                if bytes.is_empty() {
                    break;
                }
                if self.put(piece(Bytes::from(bytes))).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(self.put(piece(Bytes::new())))
    }
}
