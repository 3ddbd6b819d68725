//! A compressed stream out of plain bytes.
//!
//! The bytes are cut into members of a fixed size, each a whole gzip member or zstd frame, which are
//! compressed on several threads and written in order. So the output depends on the input and the level
//! alone: not on how the input was split into writes, nor on threads or time.
//!
//! # Memory
//!
//! At most two members a worker are under way. A writer that is ahead of its sink waits.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Write;
use std::mem;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;

use libdeflater::CompressionLvl;

use super::ArchiveError;
use super::Compression;

/// Uncompressed bytes of a gzip member.
const GZIP_MEMBER: usize = 1 << 20;

/// Uncompressed bytes of a zstd frame: larger, since each starts with an empty window.
const ZSTD_FRAME: usize = 2 << 20;

/// More workers would take memory rather than time: the hash of the output has one thread.
const MAX_WORKERS: usize = 8;

const DEFAULT_GZIP: i32 = 3;
const DEFAULT_ZSTD: i32 = 3;

/// Compresses what is written to it, on several threads. Dropped without `finish`, it leaves a stream
/// that is cut, and no thread.
pub struct Encoder<W> {
    sink: W,
    /// `None` for streams that stay as they are.
    codec: Option<Codec>,
    member: Vec<u8>,
    written_any: bool,
    pool: Option<Pool>,
    /// Members under way, oldest first.
    pending: VecDeque<mpsc::Receiver<Compressed>>,
}

/// How a member is compressed.
#[derive(Clone, Copy)]
enum Codec {
    Gzip(CompressionLvl),
    Zstd(i32),
}

type Compressed = Result<Vec<u8>, ArchiveError>;

struct Job {
    member: Vec<u8>,
    result: mpsc::SyncSender<Compressed>,
}

/// The workers. They end when `jobs` is dropped.
struct Pool {
    jobs: Option<mpsc::Sender<Job>>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl<W: Write> Encoder<W> {
    /// `level` is gzip's -1 to 9 or zstd's -7 to 22 as their programs count them; `None`, gzip's -1 and
    /// zstd's 0 mean a good default.
    pub fn new(sink: W, compression: Compression, level: Option<i32>) -> Result<Encoder<W>, ArchiveError> {
        let refused = |level| ArchiveError::Level { compression, level };
        if let Some(level) = level.filter(|&level| !compression.has_level(level)) {
            return Err(refused(level));
        }
        let codec = match compression {
            Compression::Uncompressed => None,
            Compression::Gzip => {
                let level = level.filter(|&level| level != -1).unwrap_or(DEFAULT_GZIP);
                Some(Codec::Gzip(CompressionLvl::new(level).map_err(|_| refused(level))?))
            }
            Compression::Zstd => Some(Codec::Zstd(level.filter(|&level| level != 0).unwrap_or(DEFAULT_ZSTD))),
        };
        Ok(Encoder {
            sink,
            codec,
            member: Vec::new(),
            written_any: false,
            pool: None,
            pending: VecDeque::new(),
        })
    }

    /// Compresses the rest and gives the sink back, unflushed. Without it the stream is not whole.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        let Some(codec) = self.codec else { return Ok(self.sink) };
        while self.write_oldest()? {}
        // Nothing at all is an empty member: a stream of no bytes is none of gzip's.
        if !self.member.is_empty() || !self.written_any {
            let compressed = codec.compress(&self.member)?;
            self.sink.write_all(&compressed)?;
        }
        Ok(self.sink)
    }

    /// Gives the member that is full to a worker.
    fn submit(&mut self, codec: Codec) -> Result<(), ArchiveError> {
        let pool = match &mut self.pool {
            Some(pool) => pool,
            none => none.insert(Pool::start(codec)?),
        };
        let most = 2 * pool.workers.len();
        let (result, receiver) = mpsc::sync_channel(1);
        let member = mem::take(&mut self.member);
        let jobs = pool.jobs.as_ref().expect("the pool runs");
        jobs.send(Job { member, result }).map_err(|_| worker_ended())?;
        self.pending.push_back(receiver);
        self.written_any = true;
        while self.pending.len() >= most {
            self.write_oldest()?;
        }
        Ok(())
    }

    /// Waits for the oldest member under way and writes it. False if there is none.
    fn write_oldest(&mut self) -> Result<bool, ArchiveError> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(false) };
        let compressed = oldest.recv().map_err(|_| worker_ended())??;
        self.sink.write_all(&compressed)?;
        Ok(true)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(codec) = self.codec else { return self.sink.write(bytes) };
        if self.member.capacity() == 0 {
            self.member.reserve_exact(codec.member_bytes());
        }
        let count = bytes.len().min(codec.member_bytes() - self.member.len());
        self.member.extend_from_slice(&bytes[..count]);
        if self.member.len() == codec.member_bytes() {
            self.submit(codec)?;
        }
        Ok(count)
    }

    /// Writes all members that are whole. What is less stays: members have a fixed size.
    fn flush(&mut self) -> io::Result<()> {
        while self.write_oldest()? {}
        self.sink.flush()
    }
}

impl Codec {
    fn member_bytes(self) -> usize {
        match self {
            Codec::Gzip(_) => GZIP_MEMBER,
            Codec::Zstd(_) => ZSTD_FRAME,
        }
    }

    fn compress(self, member: &[u8]) -> Compressed {
        self.compressor()?.compress(member)
    }

    fn compressor(self) -> Result<Compressor, ArchiveError> {
        Ok(match self {
            Codec::Gzip(level) => Compressor::Gzip(libdeflater::Compressor::new(level)),
            Codec::Zstd(level) => {
                let failed = |e| failed(Compression::Zstd, e);
                let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
                compressor.include_checksum(true).map_err(failed)?;
                Compressor::Zstd(compressor)
            }
        })
    }
}

/// What a worker keeps from member to member.
enum Compressor {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    fn compress(&mut self, member: &[u8]) -> Compressed {
        match self {
            // libdeflate's header has no time and no name, and 255 for the system.
            Compressor::Gzip(compressor) => {
                let mut out = vec![0; compressor.gzip_compress_bound(member.len())];
                let size = compressor.gzip_compress(member, &mut out);
                out.truncate(size.map_err(|e| failed(Compression::Gzip, e))?);
                out.shrink_to_fit();
                Ok(out)
            }
            Compressor::Zstd(compressor) => {
                compressor.compress(member).map_err(|e| failed(Compression::Zstd, e))
            }
        }
    }
}

impl Pool {
    fn start(codec: Codec) -> Result<Pool, ArchiveError> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Pool { jobs: Some(jobs), workers: Vec::new() };
        for _ in 0..count {
            let queue = queue.clone();
            let worker = thread::Builder::new().name("compress".to_owned());
            pool.workers.push(worker.spawn(move || work(codec, &queue))?);
        }
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked has dropped its result, which its receiver has seen.
            let _ = worker.join();
        }
    }
}

/// Compresses members until there will be no more.
fn work(codec: Codec, queue: &Mutex<mpsc::Receiver<Job>>) {
    let mut compressor = None;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { member, result }) = next else { return };
        let compressed = match &mut compressor {
            Some(compressor) => Ok(compressor),
            none => codec.compressor().map(|made| none.insert(made)),
        };
        let compressed = compressed.and_then(|compressor| compressor.compress(&member));
        // Nobody waits if the encoder was dropped.
        let _ = result.send(compressed);
    }
}

fn failed(compression: Compression, error: impl ToString) -> ArchiveError {
    ArchiveError::Compressed { compression, reason: error.to_string() }
}

fn worker_ended() -> ArchiveError {
    io::Error::other("a thread that compresses ended").into()
}

impl<W> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}
