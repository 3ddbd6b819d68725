//! [`Arriving`]: a file on its way into a state of its own.

use std::io;
use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Buf as _;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures::Stream;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use http::header::CONTENT_ENCODING;
use reqwest::Url;
use tokio::sync::mpsc;

use super::HttpError;
use super::HttpFile;
use super::Web;
use super::address_key_text;
use super::key;
use super::request::Answer;
use super::request::PATIENCE;
use super::request::Validators;
use super::request::root_cause;
use super::shown;
use crate::cache::MutableOptions;
use crate::cache::MutableRef;
use crate::cache::RecordType;
use crate::ctx::Ctx;
use crate::fs::FileTime;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Owner;
use crate::fs::PIECE;
use crate::fs::Root;
use crate::fs::write_pieces_at;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::DigestHasher;
use crate::ops::op::HttpSource;
use crate::progress::TransferProgress as _;
use crate::session::Session;

/// Bytes of a file at most.
const MAX_BYTES: u64 = 256 << 30;
/// Chunks under way to the disk.
const AHEAD: usize = 16;
/// Mode of a file whose source says none.
const MODE: u32 = 0o600;

pub(super) struct Arriving {
    web: Web,
    source: HttpSource,
    filename: String,
    validators: Validators,
    mutable: MutableRef,
}

impl Arriving {
    pub(super) async fn begin(
        web: &Web,
        ctx: &Ctx,
        source: &HttpSource,
        filename: String,
        validators: Validators,
    ) -> Result<Arriving, HttpError> {
        let options = MutableOptions {
            description: format!("http url {}", shown(&source.url)),
            record_type: RecordType::Regular,
            ..MutableOptions::default()
        };
        let mutable = web.cache.create(ctx, None, options).await?;
        Ok(Arriving { web: web.clone(), source: source.clone(), filename, validators, mutable })
    }

    /// Takes the body of a reply. What the server compressed for the transfer is the file that it was before:
    /// some do that whatever they are asked.
    pub(super) async fn download(self, ctx: &Ctx, answer: Answer) -> Result<HttpFile, HttpError> {
        let address = shown(&self.source.url);
        let total = answer.0.content_length();
        if total.is_some_and(|total| total > MAX_BYTES) {
            return Err(HttpError::TooLarge { address, limit: MAX_BYTES });
        }
        let failed = move |reason: String| HttpError::Unreachable { address: address.clone(), reason };
        let gzip = answer.header(&CONTENT_ENCODING).is_some_and(|coding| coding.eq_ignore_ascii_case("gzip"));
        let body = answer.0.bytes_stream();
        let body = tokio_stream::StreamExt::timeout(body, PATIENCE).map(move |chunk| match chunk {
            Ok(chunk) => chunk.map_err(|error| failed(root_cause(&error.without_url()))),
            Err(_) => Err(failed(format!("nothing came within {PATIENCE:?}"))),
        });
        self.take(ctx, Box::pin(body), total.unwrap_or(0), gzip).await
    }

    /// Takes what the client has under the path of `url`.
    pub(super) async fn upload(self, ctx: &Ctx, url: &Url) -> Result<HttpFile, HttpError> {
        let (host, path) = (super::SESSION_HOST, url.path());
        let body = ctx.sessions().any(async |session: Session| session.upload(host, path).await).await?;
        self.take(ctx, body.map_err(HttpError::from), 0, false).await
    }

    async fn take(
        mut self,
        ctx: &Ctx,
        mut body: impl Stream<Item = Result<Bytes, HttpError>> + Send + Unpin,
        total: u64,
        gzip: bool,
    ) -> Result<HttpFile, HttpError> {
        let item = ctx.progress().map(|p| p.item(format!("downloading {}", self.filename), "downloading"));
        if let Some(item) = &item {
            item.start(total);
        }
        let tree = self.mutable.mount().await?;
        let (chunks, received) = mpsc::channel::<Bytes>(AHEAD);
        let (source, name, validators) =
            (self.source.clone(), self.filename.clone(), self.validators.clone());
        let written = self.web.tasks.spawn_blocking("download", move || {
            // The tree stays until the last byte is written.
            let root = Root::open(tree.path())?;
            write(&root, &source, &name, validators.modified, received, gzip)
        });
        let mut bytes = 0;
        let copied = async {
            while let Some(chunk) = body.try_next().await? {
                bytes += chunk.len() as u64;
                if bytes > MAX_BYTES {
                    let address = shown(&self.source.url);
                    return Err(HttpError::TooLarge { address, limit: MAX_BYTES });
                }
                if let Some(item) = &item {
                    item.update(bytes);
                }
                if chunks.send(chunk).await.is_err() {
                    // The end of the writer says why.
                    break;
                }
            }
            Ok(())
        };
        let copied = copied.await;
        drop(chunks);
        let digest = written.await?;
        if let Some(item) = &item {
            item.complete();
        }
        copied?;
        let digest = digest?;
        if let Some(expected) = self.source.checksum
            && expected != digest
        {
            let address = shown(&self.source.url);
            return Err(HttpError::Checksum { address, actual: digest, expected });
        }
        self.mutable.add_key(format!("{}{digest}", key::DIGEST));
        self.mutable.add_key(format!("{}{}", key::NAME, self.filename));
        if let Some(etag) = &self.validators.etag {
            self.mutable.add_key(address_key_text(&self.source));
            self.mutable.add_key(format!("{}{etag}", key::ETAG));
        }
        if let Some(modified) = self.validators.modified {
            self.mutable.add_key(format!("{}{}", key::MODIFIED, httpdate::fmt_http_date(modified)));
        }
        let reference = Some(self.mutable.commit().await?);
        Ok(HttpFile { digest, filename: self.filename, modified: self.validators.modified, reference })
    }
}

/// What has arrived, as a stream of bytes.
struct Arrived {
    chunk: Bytes,
    chunks: mpsc::Receiver<Bytes>,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let Some(chunk) = self.chunks.blocking_recv() else { return Ok(0) };
            self.chunk = chunk;
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Writes what comes, and its attributes at the end; the digest of it all.
fn write(
    root: &Root,
    source: &HttpSource,
    name: &str,
    modified: Option<SystemTime>,
    mut chunks: mpsc::Receiver<Bytes>,
    gzip: bool,
) -> Result<Digest, HttpError> {
    let file = root.create_file(name, source.perm.unwrap_or(MODE))?;
    let mut hasher = match &source.checksum {
        Some(pinned) => pinned.hasher(),
        None => DigestHasher::new(Algorithm::Sha256),
    };
    let mut size = 0;
    let mut take = |bytes: &[u8]| {
        if size + bytes.len() as u64 > MAX_BYTES {
            return Err(HttpError::TooLarge { address: shown(&source.url), limit: MAX_BYTES });
        }
        hasher.update(bytes);
        write_pieces_at(&file, bytes, size)
            .map_err(|error| HttpError::Write { name: name.to_owned(), source: Arc::new(error) })?;
        size += bytes.len() as u64;
        Ok(())
    };
    match chunks.blocking_recv() {
        None => {}
        Some(chunk) if gzip => {
            let mut decoder = MultiGzDecoder::new(Arrived { chunk, chunks });
            let mut piece = vec![0; PIECE];
            loop {
                let count = decoder.read(&mut piece).map_err(|error| HttpError::Encoding {
                    address: shown(&source.url),
                    reason: error.to_string(),
                })?;
                if count == 0 {
                    break;
                }
                take(&piece[..count])?;
            }
        }
        Some(chunk) => {
            take(&chunk)?;
            while let Some(chunk) = chunks.blocking_recv() {
                take(&chunk)?;
            }
        }
    }
    drop(file);
    let since =
        modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    let change = MetaChange {
        owner: Some(Owner { uid: source.uid, gid: source.gid }),
        mode: Some(source.perm.unwrap_or(MODE)),
        mtime: Some(FileTime { seconds: i64::try_from(since.as_secs()).unwrap_or(0), nanos: 0 }),
        ..MetaChange::default()
    };
    root.set_meta(name, &change, Last::Keep)?;
    Ok(hasher.finish())
}
