//! Where the bytes of a test blob come from: memory, a spooled file, or a seed.
//!
//! A generated blob is a real gzip'd tar with one file of random bytes, in stored (uncompressed)
//! deflate blocks, so that every offset can be computed without the bytes before it. A blob of
//! 600 MB therefore needs no memory and no disk, and ranges of it are as cheap as the whole.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::OnceLock;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::aead::AES_128_GCM;
use ring::aead::Aad;
use ring::aead::LessSafeKey;
use ring::aead::Nonce;
use ring::aead::UnboundKey;
use sha2::Digest as _;
use sha2::Sha256;

/// Bytes per chunk that a reader yields, and per page of the generator.
const CHUNK: usize = 64 * 1024;
/// Payload of one stored deflate block, the most that its 16 bit length allows.
const STORED: u64 = 65535;
const STORED_HEADER: u64 = 5;
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
const GZIP_TRAILER: u64 = 8;
const TAR_BLOCK: u64 = 512;

/// All generated blobs of this process, so that each is hashed once.
static GENERATED: LazyLock<Mutex<BySeed>> = LazyLock::new(Mutex::default);

/// By seed and content.
type BySeed = HashMap<(u64, u64), Arc<Generated>>;

/// The bytes of one blob. Cheap to clone.
#[derive(Clone, Debug)]
pub enum BlobSource {
    Bytes(Bytes),
    /// An unlinked temporary file of the given length.
    File(Arc<File>, u64),
    Generated(Arc<Generated>),
}

impl BlobSource {
    /// A layer blob (gzip'd tar) that holds one file of `content` random bytes made from `seed`.
    /// Equal arguments give equal bytes, in every process.
    pub fn generated(seed: u64, content: u64) -> Self {
        let mut all = GENERATED.lock().expect("generated blobs");
        Self::Generated(
            all.entry((seed, content)).or_insert_with(|| Arc::new(Generated::new(seed, content))).clone(),
        )
    }

    /// The generated blob with this digest, if any was made whose digest somebody asked for.
    pub fn known(digest: &str) -> Option<Self> {
        let all = GENERATED.lock().expect("generated blobs");
        let found = all.values().find(|blob| blob.sums.get().is_some_and(|sums| sums.digest == digest));
        found.cloned().map(Self::Generated)
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
            Self::Generated(generated) => generated.len(),
        }
    }

    /// Reads from `start` up to, not including, `end`.
    pub fn read(&self, start: u64, end: u64) -> BlobReader {
        let end = end.min(self.len());
        BlobReader { source: self.clone(), at: start, end, page: Page::default(), sent: Chunks::default() }
    }

    /// The whole blob in memory: for small blobs and for assertions.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            other => {
                let mut all = Vec::with_capacity(other.len() as usize);
                other.read(0, other.len()).for_each(|chunk| all.extend_from_slice(&chunk));
                all.into()
            }
        }
    }
}

impl From<Vec<u8>> for BlobSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Yields a range of a blob in chunks of at most 64 KiB.
pub struct BlobReader {
    source: BlobSource,
    at: u64,
    end: u64,
    page: Page,
    sent: Chunks,
}

impl Iterator for BlobReader {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.at >= self.end {
            return None;
        }
        let len = (self.end - self.at).min(CHUNK as u64) as usize;
        let chunk = match &self.source {
            BlobSource::Bytes(bytes) => bytes.slice(self.at as usize..self.at as usize + len),
            BlobSource::File(file, _) => self.sent.fill(len, |chunk| {
                file.read_exact_at(chunk, self.at).expect("read a spooled blob");
            }),
            BlobSource::Generated(generated) => self.sent.fill(len, |chunk| {
                generated.fill(self.at, chunk, &mut self.page);
            }),
        };
        self.at += len as u64;
        Some(chunk)
    }
}

/// The chunks that a reader has yielded, to be filled again once nobody has them: fresh memory for every chunk
/// costs a registry as much as all else that it does for a layer, on processors that the measured share with it.
#[derive(Default)]
struct Chunks(VecDeque<Bytes>);

impl Chunks {
    /// As many as a connection has before it.
    const KEPT: usize = 8;

    fn fill(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Bytes {
        let is_full = self.0.len() >= Self::KEPT;
        let oldest = self.0.pop_front_if(|oldest| is_full || oldest.is_unique());
        let mut chunk = oldest.and_then(|chunk| chunk.try_into_mut().ok()).unwrap_or_default();
        chunk.resize(len, 0);
        fill(&mut chunk);
        let chunk = chunk.freeze();
        self.0.push_back(chunk.clone());
        chunk
    }
}

/// A layer made from a seed; see [`BlobSource::generated`].
#[derive(Debug)]
pub struct Generated {
    seed: u64,
    content: u64,
    header: [u8; TAR_BLOCK as usize],
    sums: OnceLock<Sums>,
}

#[derive(Debug)]
struct Sums {
    digest: String,
    diff_id: String,
    crc: u32,
}

impl Generated {
    fn new(seed: u64, content: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("random-{seed}.bin")).expect("a short path");
        header.set_size(content);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        Self { seed, content, header: *header.as_bytes(), sums: OnceLock::new() }
    }

    /// The blob's digest. The first call generates the whole blob once.
    pub fn digest(&self) -> &str {
        &self.sums().digest
    }

    /// The digest of the tar stream inside.
    pub fn diff_id(&self) -> &str {
        &self.sums().diff_id
    }

    fn tar_len(&self) -> u64 {
        TAR_BLOCK + self.content.next_multiple_of(TAR_BLOCK) + 2 * TAR_BLOCK
    }

    fn len(&self) -> u64 {
        let tar = self.tar_len();
        GZIP_HEADER.len() as u64 + tar + tar.div_ceil(STORED) * STORED_HEADER + GZIP_TRAILER
    }

    fn sums(&self) -> &Sums {
        self.sums.get_or_init(|| {
            let mut page = Page::default();
            let (mut blob, mut diff, mut crc) = (Sha256::new(), Sha256::new(), flate2::Crc::new());
            blob.update(GZIP_HEADER);
            let mut chunk = vec![0; STORED as usize];
            let mut at = 0;
            while at < self.tar_len() {
                let len = (self.tar_len() - at).min(STORED) as usize;
                self.fill_tar(at, &mut chunk[..len], &mut page);
                blob.update(self.stored_header(at / STORED));
                for sum in [&mut blob, &mut diff] {
                    sum.update(&chunk[..len]);
                }
                crc.update(&chunk[..len]);
                at += len as u64;
            }
            blob.update(self.trailer(crc.sum()));
            Sums {
                digest: format!("sha256:{}", HEXLOWER.encode(&blob.finalize())),
                diff_id: format!("sha256:{}", HEXLOWER.encode(&diff.finalize())),
                crc: crc.sum(),
            }
        })
    }

    fn trailer(&self, crc: u32) -> [u8; GZIP_TRAILER as usize] {
        let mut trailer = [0; GZIP_TRAILER as usize];
        trailer[..4].copy_from_slice(&crc.to_le_bytes());
        trailer[4..].copy_from_slice(&(self.tar_len() as u32).to_le_bytes());
        trailer
    }

    /// RFC 1951, 3.2.4: a final bit, the type 00, the length and its complement.
    fn stored_header(&self, block: u64) -> [u8; STORED_HEADER as usize] {
        let start = block * STORED;
        let len = (self.tar_len() - start).min(STORED) as u16;
        let last = u8::from(start + u64::from(len) == self.tar_len());
        let [low, high] = len.to_le_bytes();
        [last, low, high, !low, !high]
    }

    /// Fills `out` with the bytes of the gzip stream from `at` on.
    fn fill(&self, mut at: u64, mut out: &mut [u8], page: &mut Page) {
        let deflate_end = self.len() - GZIP_TRAILER;
        let prefix = GZIP_HEADER.len() as u64;
        while !out.is_empty() {
            let taken = if at < prefix {
                copy_from(&GZIP_HEADER, at, out)
            } else if at >= deflate_end {
                copy_from(&self.trailer(self.sums().crc), at - deflate_end, out)
            } else {
                let block = (at - prefix) / (STORED_HEADER + STORED);
                let inside = (at - prefix) % (STORED_HEADER + STORED);
                if inside < STORED_HEADER {
                    copy_from(&self.stored_header(block), inside, out)
                } else {
                    let tar_at = block * STORED + inside - STORED_HEADER;
                    let block_end = ((block + 1) * STORED).min(self.tar_len());
                    let len = (block_end - tar_at).min(out.len() as u64) as usize;
                    self.fill_tar(tar_at, &mut out[..len], page);
                    len
                }
            };
            at += taken as u64;
            out = &mut out[taken..];
        }
    }

    fn fill_tar(&self, mut at: u64, mut out: &mut [u8], page: &mut Page) {
        let content_end = TAR_BLOCK + self.content;
        while !out.is_empty() {
            let taken = if at < TAR_BLOCK {
                copy_from(&self.header, at, out)
            } else if at < content_end {
                let number = (at - TAR_BLOCK) / CHUNK as u64;
                let bytes = page.load(self.seed, number);
                let inside = at - TAR_BLOCK - number * CHUNK as u64;
                let len = (content_end - at).min(out.len() as u64) as usize;
                copy_from(bytes, inside, &mut out[..len])
            } else {
                out.fill(0);
                out.len()
            };
            at += taken as u64;
            out = &mut out[taken..];
        }
    }
}

/// Copies `from[at..]` to the front of `out`, as much as fits, and says how much that was.
fn copy_from(from: &[u8], at: u64, out: &mut [u8]) -> usize {
    let rest = &from[at as usize..];
    let len = rest.len().min(out.len());
    out[..len].copy_from_slice(&rest[..len]);
    len
}

/// The last page of random bytes, kept because reads rarely begin where pages do.
///
/// The bytes are a key stream, which machine code makes at gigabytes a second in debug builds too.
#[derive(Default)]
struct Page {
    number: Option<u64>,
    bytes: Vec<u8>,
}

impl Page {
    fn load(&mut self, seed: u64, number: u64) -> &[u8] {
        if self.number != Some(number) {
            self.bytes.clear();
            self.bytes.resize(CHUNK, 0);
            let (mut key, mut nonce) = ([0; 16], [0; 12]);
            key[..8].copy_from_slice(&seed.to_le_bytes());
            nonce[..8].copy_from_slice(&number.to_le_bytes());
            let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).expect("a key of 16 bytes"));
            let nonce = Nonce::assume_unique_for_key(nonce);
            let _tag =
                key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.bytes).expect("a short page");
            self.number = Some(number);
        }
        &self.bytes
    }
}
