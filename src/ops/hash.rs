//! Content digests: what counts of a result where its contents matter more than where it came from.
//!
//! Two results with equal content digests can stand in for each other as far as the [`Selector`]s go. Times do
//! not count. The digests are those of BuildKit, byte for byte, so that keys of results that one has made are
//! found by the other.
//!
//! # Format
//!
//! Everything is SHA-256, written out as `sha256:<hex>` where one digest goes into another.
//!
//! | of | is over |
//! |---|---|
//! | a file, link, device, directory's header | `name`, `mode`, `uid`, `gid`, `size`, `typeflag`, `linkname`, `uname`, `gname`, `devmajor`, `devminor`: each followed by its value in decimal or text, the names empty; then each extended attribute's name and value, sorted; then the bytes of a file |
//! | a directory | NUL and the digest of its header; then for each entry, sorted by bytes: NUL, name, digest |
//! | what patterns choose | for each path: the path with NUL for `/`, digest (directories by their headers alone, and only those that are chosen or have something chosen in them) |
//! | an input | the digests of all selectors, NUL between them |
//!
//! `mode` has the bits of 07777 (0777 for a link), `size` is that of a file and 0 otherwise, `typeflag` is that of
//! tar. Extended attributes count but for those of `security.` (`security.capability` does) and `system.`.
//!
//! # Sharing
//!
//! Digests are kept in memory by record and selectors, the latest of them; who asks for the same at the same time
//! waits for one run. They are not durable: cache keys that follow from them are.

mod header;
mod select;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::Semaphore;

use super::cache_map::ContentDigest;
use super::cache_map::InputKey;
use super::operate::OpError;
use super::reads::Reads;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::RecordId;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Root;
use crate::oci::Digest;
use crate::pattern::InvalidPattern;
use crate::pattern::has_wildcards;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// Digests that are kept.
const KEPT: usize = 10_000;

/// The part of a file system that counts.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Selector {
    /// As it was given; nothing is the root.
    pub path: String,
    /// The path is a pattern, if it looks like one.
    pub wildcard: bool,
    /// A link at the end of the path is followed.
    pub follow: bool,
    /// Patterns of what counts below the path; none for everything.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Beginnings of paths that something has to be chosen of.
    pub required: Vec<String>,
}

impl Selector {
    /// A path whose last part is followed.
    pub fn file(path: impl Into<String>) -> Selector {
        Selector { path: path.into(), follow: true, ..Selector::default() }
    }

    fn has_wildcard(&self) -> bool {
        self.wildcard && has_wildcards(&self.path)
    }

    /// True if it chooses by patterns.
    fn chooses(&self) -> bool {
        self.has_wildcard() || !self.include.is_empty() || !self.exclude.is_empty()
    }
}

/// The content of a result can't be hashed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HashError {
    /// Clients show this to people, and know it by its end.
    #[error("{path:?}: not found")]
    NotFound { path: String },
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: Arc<std::io::Error> },
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error("cancelled")]
    Cancelled,
}

/// A result whose content can't be hashed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("failed to compute cache key: failed to calculate checksum of ref {id}: {source}")]
pub struct ChecksumError {
    /// Of the input in its vertex.
    pub input: usize,
    /// Of the record, or `scratch`.
    pub id: String,
    pub source: HashError,
}

/// Hashes contents of results. Clones share what they know.
#[derive(Clone)]
pub struct ContentHasher(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    known: Mutex<Known>,
    /// One run for each question that is asked.
    running: Mutex<HashMap<Question, Arc<Semaphore>>>,
}

/// The record, and what counts of it.
type Question = (RecordId, Arc<[Selector]>);

#[derive(Default)]
struct Known {
    digests: HashMap<Question, Digest>,
    /// The oldest first.
    order: VecDeque<Question>,
}

impl ContentHasher {
    pub fn new(tasks: Tasks) -> ContentHasher {
        ContentHasher(Arc::new(Inner { tasks, known: Mutex::default(), running: Mutex::default() }))
    }

    /// How input number `input` counts, of which `selectors` matter. Without any it counts as it is.
    pub fn input_key(&self, input: usize, selectors: Vec<Selector>) -> InputKey<ImmutableRef> {
        if selectors.is_empty() {
            return InputKey::default();
        }
        let mut paths: Vec<&str> = selectors.iter().map(|selector| selector.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        let selector = Some(Digest::sha256(paths.join("\0")));
        InputKey { selector, content: Some(self.content(input, deduplicated(selectors))) }
    }

    /// Hashes what `selectors` name of the result of input number `input`; of none, all of it.
    pub fn content(&self, input: usize, selectors: Vec<Selector>) -> ContentDigest<ImmutableRef> {
        let selectors = if selectors.is_empty() { vec![Selector::default()] } else { selectors };
        let (hasher, selectors): (_, Arc<[Selector]>) = (self.clone(), selectors.into());
        Arc::new(move |ctx, result| {
            let (hasher, selectors) = (hasher.clone(), Arc::clone(&selectors));
            Box::pin(async move { hasher.digest(&ctx, input, result, selectors).await })
        })
    }

    async fn digest(
        &self,
        ctx: &Ctx,
        input: usize,
        result: Option<ImmutableRef>,
        selectors: Arc<[Selector]>,
    ) -> Result<Digest, OpError> {
        let id = result.as_ref().map_or_else(|| "scratch".to_owned(), |result| result.id().to_string());
        let digest = match result {
            Some(result) => self.of_record(ctx, &result, selectors).await,
            None => of_nothing(&selectors),
        };
        digest.map_err(|source| match source {
            HashError::Cancelled | HashError::Cache(CacheError::Cancelled) => OpError::Cancelled,
            _ if ctx.check().is_err() => OpError::Cancelled,
            // Bytes that are nowhere to be had can be made anew.
            HashError::Cache(error) => match OpError::of_input(input, error.clone()) {
                OpError::Failed { .. } => {
                    OpError::failed(ChecksumError { input, id, source: HashError::Cache(error) })
                }
                lost => lost,
            },
            source => OpError::failed(ChecksumError { input, id, source }),
        })
    }

    /// Cancellation safe: a run that is given up ends soon, and the next who waits begins anew.
    async fn of_record(
        &self,
        ctx: &Ctx,
        result: &ImmutableRef,
        selectors: Arc<[Selector]>,
    ) -> Result<Digest, HashError> {
        let question = (result.id(), Arc::clone(&selectors));
        if let Some(digest) = self.known(&question) {
            return Ok(digest);
        }
        let turn = Arc::clone(lock(&self.0.running).entry(question.clone()).or_insert_with(one));
        let held = ctx.run(turn.acquire()).await;
        let digest = match (held, self.known(&question)) {
            (Err(_), _) => Err(HashError::Cancelled),
            (Ok(_), Some(digest)) => Ok(digest),
            (Ok(_held), None) => {
                let digest = self.run(ctx, result, selectors).await;
                if let Ok(digest) = &digest {
                    lock(&self.0.known).keep(question.clone(), *digest);
                }
                digest
            }
        };
        let mut running = lock(&self.0.running);
        // The map and this call.
        if Arc::strong_count(&turn) <= 2 {
            running.remove(&question);
        }
        digest
    }

    async fn run(
        &self,
        ctx: &Ctx,
        result: &ImmutableRef,
        selectors: Arc<[Selector]>,
    ) -> Result<Digest, HashError> {
        let mut reads = Reads::default();
        for selector in selectors.iter() {
            let last = if selector.follow { Last::Follow } else { Last::Keep };
            reads.named(&selector.path, selector.wildcard, last);
        }
        let tree = reads.mount(ctx, &self.0.tasks, result).await?;
        let cancel = ctx.cancel().child_token();
        let _guard = cancel.clone().drop_guard();
        let work = move || {
            let root = Root::open(tree.path())?;
            let digests = selectors.iter().map(|selector| select::checksum(&root, selector, &cancel));
            combined(digests)
        };
        self.0.tasks.spawn_blocking("content hash", work).await?
    }

    fn known(&self, question: &Question) -> Option<Digest> {
        lock(&self.0.known).digests.get(question).copied()
    }
}

/// One at a time.
fn one() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

impl Known {
    fn keep(&mut self, question: Question, digest: Digest) {
        if self.digests.insert(question.clone(), digest).is_none() {
            self.order.push_back(question);
        }
        while self.order.len() > KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.digests.remove(&oldest);
            }
        }
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentHasher")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of the empty file system, which has nothing but its root.
fn of_nothing(selectors: &[Selector]) -> Result<Digest, HashError> {
    combined(selectors.iter().map(|selector| match select::absolute(&selector.path).as_str() {
        "/" => Ok(Digest::sha256("")),
        path => Err(HashError::NotFound { path: path.to_owned() }),
    }))
}

fn combined(digests: impl Iterator<Item = Result<Digest, HashError>>) -> Result<Digest, HashError> {
    let texts = digests.map(|digest| digest.map(|digest| digest.to_string()));
    Ok(Digest::sha256(texts.collect::<Result<Vec<_>, _>>()?.join("\0")))
}

/// The selectors without those that another one covers.
fn deduplicated(selectors: Vec<Selector>) -> Vec<Selector> {
    let (choosing, plain): (Vec<_>, Vec<_>) = selectors.into_iter().partition(Selector::chooses);
    let mut kept = Vec::new();
    for follow in [false, true] {
        let paths = plain.iter().filter(|s| s.follow == follow).map(|s| s.path.clone()).collect();
        kept.extend(outermost(paths).into_iter().map(|path| Selector {
            path,
            follow,
            ..Selector::default()
        }));
    }
    kept.extend(choosing);
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    kept
}

/// The paths that are in none of the others.
fn outermost(mut paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    paths.sort_unstable();
    paths.dedup();
    let covers = |outer: &str, path: &str| {
        outer != path
            && path.strip_prefix(outer).is_some_and(|rest| outer.ends_with('/') || rest.starts_with('/'))
    };
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|outer| covers(outer, path)));
    paths
}

#[cfg(test)]
mod tests;
