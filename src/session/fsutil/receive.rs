//! [`receive`]: the receiving end of a transfer.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt as _;
use prost::Message as _;
use tokio::sync::mpsc;

use super::FileStat;
use super::TransferError;
use super::order::Order;
use super::plan::Planner;
use super::plan::Rest;
use super::write::Wants;
use super::write::Written;
use super::write::write_files;
use crate::fs::Owner;
use crate::fs::Root;
use crate::proto::fsutil::Packet;
use crate::proto::fsutil::packet::PacketType;
use crate::task::Task;
use crate::task::Tasks;

/// Threads that write files.
const WRITERS: usize = 4;
/// Pieces of files under way to one of them.
const PIECES: usize = 16;
/// Entries under way to the thread that compares.
const ENTRIES: usize = 1024;
/// Entries of one tree at most.
const MAX_ENTRIES: u64 = 16_000_000;

/// How a file that is there is known to be the sender's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Differ {
    /// By size, time, mode and owner.
    #[default]
    Metadata,
    /// By its bytes: all are asked for.
    None,
}

/// Tells which entries of a transfer of metadata come with their bytes.
#[derive(Clone)]
pub struct DataFilter(Arc<dyn Fn(&FileStat) -> bool + Send + Sync>);

impl DataFilter {
    pub fn new(takes: impl Fn(&FileStat) -> bool + Send + Sync + 'static) -> DataFilter {
        DataFilter(Arc::new(takes))
    }

    pub(super) fn takes(&self, stat: &FileStat) -> bool {
        (self.0)(stat)
    }
}

impl fmt::Debug for DataFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataFilter")
    }
}

/// How a tree is received.
#[derive(Clone, Debug, Default)]
pub struct ReceiveOptions {
    pub differ: Differ,
    /// What the target has and the sender has not, stays. All files are sent.
    pub merge: bool,
    /// Everything is this owner's, whatever the sender says.
    pub owner: Option<Owner>,
    /// All metadata goes into the file [`METADATA`](super::METADATA), and only these entries are made.
    pub metadata_only: Option<DataFilter>,
    /// Kept until the last thread has left the target.
    pub hold: Option<Hold>,
}

impl ReceiveOptions {
    /// A process that is not root can't give files away.
    pub(super) fn sets_owner(&self) -> bool {
        rustix::process::geteuid().is_root()
    }
}

/// Something that is kept as long as somebody works in a directory.
#[derive(Clone)]
pub struct Hold(#[expect(dead_code, reason = "kept, not read")] Arc<dyn Any + Send + Sync>);

impl Hold {
    pub fn new(held: Arc<dyn Any + Send + Sync>) -> Hold {
        Hold(held)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// What a transfer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// Entries of the sender.
    pub entries: u64,
    /// Files whose bytes were sent.
    pub files: u64,
    /// Bytes of all packets.
    pub bytes: u64,
    /// Entries that were made or changed.
    pub changed: u64,
    /// Entries that were removed, each with what was in it.
    pub removed: u64,
    /// Names of a file with several that are of files of their own now, which may have its bytes.
    pub parted: u64,
}

impl Received {
    /// True if the target was what the sender has.
    pub fn is_unchanged(&self) -> bool {
        self.changed == 0 && self.removed == 0
    }
}

enum Event {
    Planned(Rest),
    Written(Written),
    Failed(TransferError),
}

/// Makes the directory `target` what the sender at the other end of `packets` and `answers` has.
/// `progress` is told of the bytes that came.
///
/// Cancellation safe as the module says: the target is then something between what it was and what the
/// sender has.
pub async fn receive<S, E>(
    tasks: &Tasks,
    packets: S,
    answers: mpsc::UnboundedSender<Packet>,
    target: &Path,
    options: ReceiveOptions,
    progress: impl FnMut(u64) + Send,
) -> Result<Received, TransferError>
where
    S: Stream<Item = Result<Packet, E>> + Send + Unpin,
    E: Into<TransferError> + Send,
{
    let mut receiver = Receiver::start(tasks, packets, answers.clone(), target, options, progress)?;
    let received = receiver.run(tasks, target).await;
    let failure = receiver.stop().await;
    let received = match received {
        // A sender that breaks off may do so because of what a thread of ours has against it.
        Err(TransferError::Ended) => Err(failure.unwrap_or(TransferError::Ended)),
        received => received,
    };
    if let Err(error) = &received
        && !matches!(error, TransferError::Peer { .. } | TransferError::Session(_))
    {
        let _ = answers.send(Packet {
            r#type: PacketType::Err as i32,
            data: error.to_string().into(),
            ..Packet::default()
        });
    }
    received
}

struct Receiver<S, P> {
    packets: S,
    answers: mpsc::UnboundedSender<Packet>,
    progress: P,
    order: Order,
    entries: mpsc::Sender<Option<(u32, FileStat)>>,
    listed: bool,
    writers: Vec<mpsc::Sender<(u32, Bytes)>>,
    events: mpsc::UnboundedReceiver<Event>,
    threads: Vec<Task<()>>,
    received: Received,
    rest: Option<Rest>,
}

impl<S, P, E> Receiver<S, P>
where
    S: Stream<Item = Result<Packet, E>> + Send + Unpin,
    E: Into<TransferError> + Send,
    P: FnMut(u64) + Send,
{
    fn start(
        tasks: &Tasks,
        packets: S,
        answers: mpsc::UnboundedSender<Packet>,
        target: &Path,
        options: ReceiveOptions,
        progress: P,
    ) -> Result<Receiver<S, P>, TransferError> {
        let root = Root::open(target)?;
        let (send_event, events) = mpsc::unbounded_channel();
        let (entries, received_entries) = mpsc::channel(ENTRIES);
        let wants = Arc::new(Wants::default());
        let (mut writers, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..WRITERS {
            let (pieces, received_pieces) = mpsc::channel(PIECES);
            writers.push(pieces);
            let (root, wants, events) = (root.clone(), Arc::clone(&wants), send_event.clone());
            let (hold, sets_owner) = (options.hold.clone(), options.sets_owner());
            threads.push(tasks.spawn_blocking("transfer writer", move || {
                let _hold = hold;
                let written = |written| drop(events.send(Event::Written(written)));
                if let Err(error) = write_files(&root, sets_owner, &wants, received_pieces, written) {
                    let _ = events.send(Event::Failed(error));
                }
            }));
        }
        let (target, requests) = (target.to_path_buf(), answers.clone());
        threads.push(tasks.spawn_blocking("transfer planner", move || {
            let _hold = options.hold.clone();
            let planned = plan(&target, options, wants, requests, received_entries);
            let event = match planned {
                Ok(Some(rest)) => Event::Planned(rest),
                // Given up.
                Ok(None) => return,
                Err(error) => Event::Failed(error),
            };
            let _ = send_event.send(event);
        }));
        let (order, received) = (Order::new(), Received::default());
        Ok(Receiver {
            packets,
            answers,
            progress,
            order,
            entries,
            listed: false,
            writers,
            events,
            threads,
            received,
            rest: None,
        })
    }

    async fn run(&mut self, tasks: &Tasks, target: &Path) -> Result<Received, TransferError> {
        while !self.is_whole() {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(Event::Planned(rest)) => self.rest = Some(rest),
                    Some(Event::Written(written)) => {
                        self.received.files += 1;
                        self.received.changed += u64::from(written == Written::New);
                    }
                    Some(Event::Failed(error)) => return Err(error),
                    None => return Err(TransferError::Ended),
                },
                packet = self.packets.next() => {
                    let packet = packet.ok_or(TransferError::Ended)?.map_err(Into::into)?;
                    self.count(&packet);
                    self.packet(packet).await?;
                }
            }
        }
        self.writers.clear();
        for thread in self.threads.drain(..) {
            thread.await?;
        }
        if let Some(rest) = self.rest.take() {
            self.received.removed = rest.removed;
            self.received.parted = rest.parted;
            self.received.changed += rest.changed;
            let target = target.to_path_buf();
            let links = tasks.spawn_blocking("transfer end", move || rest.finish(&target)).await??;
            self.received.changed += links;
        }
        let fin = Packet { r#type: PacketType::Fin as i32, ..Packet::default() };
        self.answers.send(fin).map_err(|_| TransferError::Ended)?;
        let mut ended = false;
        while let Some(packet) = self.packets.next().await {
            let packet = packet.map_err(Into::into)?;
            self.count(&packet);
            match packet.r#type() {
                PacketType::Fin => ended = true,
                PacketType::Err => return Err(TransferError::peer(&packet.data)),
                _ => return Err(TransferError::Packet { kind: packet.r#type }),
            }
        }
        if ended { Ok(self.received) } else { Err(TransferError::Ended) }
    }

    /// Lets the threads end what they are at, and waits for them; what one of them failed with.
    async fn stop(self) -> Option<TransferError> {
        let Receiver { entries, writers, threads, mut events, .. } = self;
        drop((entries, writers));
        for thread in threads {
            let _ = thread.await;
        }
        std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
            Event::Failed(error) => Some(error),
            Event::Planned(_) | Event::Written(_) => None,
        })
    }

    fn is_whole(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.wanted == self.received.files)
    }

    fn count(&mut self, packet: &Packet) {
        self.received.bytes += packet.encoded_len() as u64;
        (self.progress)(self.received.bytes);
    }

    async fn packet(&mut self, packet: Packet) -> Result<(), TransferError> {
        match packet.r#type() {
            PacketType::Stat => match packet.stat {
                None => {
                    self.listed = true;
                    if self.entries.send(None).await.is_err() {
                        return Err(self.failure().await);
                    }
                }
                Some(_) if self.listed => return Err(TransferError::Packet { kind: packet.r#type }),
                Some(stat) => {
                    let stat = FileStat::decode(stat)?;
                    self.order.check(&stat)?;
                    if self.received.entries >= MAX_ENTRIES {
                        return Err(TransferError::TooMany { what: "entries", limit: MAX_ENTRIES });
                    }
                    let id = u32::try_from(self.received.entries).unwrap_or(u32::MAX);
                    self.received.entries += 1;
                    if self.entries.send(Some((id, stat))).await.is_err() {
                        return Err(self.failure().await);
                    }
                }
            },
            PacketType::Data => {
                let writer = &self.writers[packet.id as usize % WRITERS];
                if writer.send((packet.id, packet.data)).await.is_err() {
                    return Err(self.failure().await);
                }
            }
            PacketType::Err => return Err(TransferError::peer(&packet.data)),
            PacketType::Fin | PacketType::Req => {
                return Err(TransferError::Packet { kind: packet.r#type });
            }
        }
        Ok(())
    }

    /// Why a thread has ended.
    async fn failure(&mut self) -> TransferError {
        while let Some(event) = self.events.recv().await {
            if let Event::Failed(error) = event {
                return error;
            }
        }
        TransferError::Ended
    }
}

/// `None` if the transfer was given up.
fn plan(
    target: &Path,
    options: ReceiveOptions,
    wants: Arc<Wants>,
    requests: mpsc::UnboundedSender<Packet>,
    mut entries: mpsc::Receiver<Option<(u32, FileStat)>>,
) -> Result<Option<Rest>, TransferError> {
    let mut planner = Planner::new(target, options, wants, requests)?;
    while let Some(entry) = entries.blocking_recv() {
        match entry {
            Some((id, stat)) => planner.entry(id, stat)?,
            // Only now is it known what the sender has not.
            None => return planner.end().map(Some),
        }
    }
    Ok(None)
}
