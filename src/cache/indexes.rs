//! [`Indexes`]: what layers have that were unpacked here, kept when their files are gone.
//!
//! With it, a look into an image that was pruned opens the layers that cover the path, and none of those above them;
//! and of those that it opens only the parts that it needs, where that pays.
//! What a layer has that implies directories, or links to files of layers below, depends on those: its index is of the
//! [chain](Of::Chain) that it is on top of.
//!
//! # Invariants
//!
//! - An index is of the layer that its row names: it was made of bytes that had the diff ID.
//! - It tells what a layer has, and so it counts only for those who may have the layer's blob. The row says where the
//!   blob was had; the store is reminded of that before it is asked whether somebody is admitted.
//! - A file that is not whole, or not of this format, is none.
//!
//! # How long they stay
//!
//! As long as a record has the layer, and longer: until everything is pruned, or until all indexes together have
//! more than [`MAX_BYTES`], when those that were used longest ago go.
//!
//! # Crash consistency
//!
//! Nothing is synced: an index that is lost is made when the layer is unpacked again. A file ends in the SHA-256 of
//! what is before. First the file is written, then its row; a file without a row, which a crash may leave, goes with
//! the next pruning.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use redb::ReadableTable as _;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest as _;
use sha2::Sha256;

use super::CacheError;
use crate::content::Origin;
use crate::db;
use crate::db::Db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::oci::ChainId;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::LayerIndex;
use crate::task::Tasks;

/// [`Stored`] as JSON by diff ID.
const INDEXES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_indexes");

/// Bytes of all files at most.
const MAX_BYTES: u64 = 256 << 20;

/// Fast rather than small: an index is written whenever a layer is unpacked.
const LEVEL: i32 = 1;

/// Bytes of the SHA-256 at a file's end.
const SUM: usize = 32;

/// Places of a blob at most that are noted.
const MAX_SHOWN: usize = 16;

/// What an index is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    /// A layer that can lie on anything.
    Layer(DiffId),
    /// The layer on top of this chain, which lies on nothing but the rest of it.
    Chain(ChainId),
}

impl Of {
    /// A name that no other layer or chain has. The chain of a single layer has the digest of that layer.
    pub(super) fn name(&self) -> DiffId {
        match self {
            Of::Layer(diff_id) => *diff_id,
            Of::Chain(chain) => DiffId(Digest::sha256(format!("chain {chain}"))),
        }
    }
}

/// What is known of a layer that was unpacked here.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) of: Of,
    /// What it was unpacked from: another blob of the layer can't be entered at the same places.
    pub(super) blob: Digest,
    pub(super) index: LayerIndex,
}

/// What is known of an index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stored {
    /// Of its file.
    bytes: u64,
    used_at: Timestamp,
    /// Newest last.
    shown: Vec<Shown>,
}

/// A blob of the layer was had at an origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Shown {
    blob: Digest,
    origin: Origin,
}

/// The indexes of this node. Clones are the same ones.
#[derive(Clone)]
pub(super) struct Indexes(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    db: Db,
    tasks: Tasks,
    /// Makes names of files that are being written.
    next: AtomicU64,
}

impl Indexes {
    pub(super) fn new(directory: PathBuf, db: Db, tasks: Tasks) -> Indexes {
        Indexes(Arc::new(Inner { directory, db, tasks, next: AtomicU64::new(0) }))
    }

    /// Writes the file of a layer's index, in place of one that is there. It counts once it is
    /// [noted](Indexes::note). Blocks.
    pub(super) fn write(&self, known: &Known) {
        if let Err(error) = self.try_write(known) {
            tracing::warn!(of = ?known.of, %error, "the file index of a layer was not kept");
        }
    }

    fn try_write(&self, Known { of, blob, index }: &Known) -> io::Result<()> {
        let plain = [format!("{blob}\n").as_bytes(), &index.encode()].concat();
        let mut bytes = zstd::bulk::compress(&plain, LEVEL)?;
        bytes.extend(Sha256::digest(&bytes));
        fs::create_dir_all(&self.0.directory)?;
        let n = self.0.next.fetch_add(1, Ordering::Relaxed);
        let new = self.0.directory.join(format!("new-{}-{n}", std::process::id()));
        let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, self.path(&of.name())));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Notes that the index of a layer was written, and where the layer's blob was had. Readers see it soon.
    pub(super) fn note(&self, of: Of, blob: Digest, origins: impl IntoIterator<Item = Origin>) {
        let diff_id = of.name();
        let shown: Vec<Shown> = origins.into_iter().map(|origin| Shown { blob, origin }).collect();
        let Ok(meta) = fs::metadata(self.path(&diff_id)) else { return };
        if shown.is_empty() {
            return;
        }
        let (bytes, key) = (meta.len(), diff_id.to_string());
        self.0.db.write_behind(move |tx| {
            let mut table = tx.table(INDEXES)?;
            let stored =
                table.get(key.as_str())?.map(|v| db::decode::<Stored>(&key, v.value())).transpose()?;
            let mut stored = stored.unwrap_or(Stored { bytes, used_at: Timestamp::now(), shown: Vec::new() });
            stored.bytes = bytes;
            stored.used_at = Timestamp::now();
            stored.shown.retain(|old| !shown.contains(old));
            stored.shown.extend(shown.iter().cloned());
            let surplus = stored.shown.len().saturating_sub(MAX_SHOWN);
            stored.shown.drain(..surplus);
            table.insert(key.as_str(), db::encode(&stored)?.as_slice())?;
            Ok(())
        });
    }

    /// Where a blob was had that there is an index for; nothing if there is none.
    pub(super) fn origins(&self, of: Of, blob: &Digest) -> Result<Vec<Origin>, DbError> {
        let stored = self.0.db.read(|tx| read(tx, &of.name()))?;
        let shown = stored.map(|stored| stored.shown).unwrap_or_default();
        Ok(shown.into_iter().filter(|s| s.blob == *blob).map(|s| s.origin).collect())
    }

    /// An index; one that is damaged is none.
    pub(super) async fn load(&self, of: Of) -> Result<Option<Arc<Known>>, CacheError> {
        let diff_id = of.name();
        let path = self.path(&diff_id);
        let loaded = self.0.tasks.spawn_blocking("load index", move || match load(of, &path) {
            Ok(known) => Some(Arc::new(known)),
            Err(error) => {
                tracing::warn!(?of, %error, "the file index of a layer can't be read");
                None
            }
        });
        let loaded = loaded.await?;
        let key = diff_id.to_string();
        let found = loaded.is_some();
        self.0.db.write_behind(move |tx| {
            let mut table = tx.table(INDEXES)?;
            let stored =
                table.get(key.as_str())?.map(|v| db::decode::<Stored>(&key, v.value())).transpose()?;
            match stored {
                Some(stored) if found => {
                    let stored = Stored { used_at: Timestamp::now(), ..stored };
                    table.insert(key.as_str(), db::encode(&stored)?.as_slice())?;
                }
                Some(_) => drop(table.remove(key.as_str())?),
                None => {}
            }
            Ok(())
        });
        Ok(loaded)
    }

    /// Removes those that `needed` is false for: all of them if `everything` is to go, and otherwise as many as
    /// the rest has too many bytes.
    pub(super) async fn collect(
        &self,
        needed: impl Fn(&DiffId) -> bool,
        everything: bool,
    ) -> Result<(), CacheError> {
        let mut rows = self.0.db.read(all)?;
        rows.sort_by_key(|(_, stored)| stored.used_at);
        let mut bytes: u64 = rows.iter().map(|(_, stored)| stored.bytes).sum();
        let mut gone = Vec::new();
        let mut kept = HashSet::new();
        for (diff_id, stored) in rows {
            if !needed(&diff_id) && (everything || bytes > MAX_BYTES) {
                bytes -= stored.bytes;
                gone.push(diff_id.to_string());
            } else {
                kept.insert(self.path(&diff_id));
            }
        }
        if !gone.is_empty() {
            let forget = self.0.db.write_visible(move |tx| {
                let mut table = tx.table(INDEXES)?;
                gone.iter().try_for_each(|key| table.remove(key.as_str()).map(drop).map_err(DbError::from))
            });
            forget.await?;
        }
        let directory = self.0.directory.clone();
        let sweep = self.0.tasks.spawn_blocking("sweep indexes", move || sweep(&directory, &kept));
        if let Err(error) = sweep.await? {
            tracing::warn!(%error, "file indexes of layers were not removed");
        }
        Ok(())
    }

    fn path(&self, diff_id: &DiffId) -> PathBuf {
        self.0.directory.join(format!("{}-{}", diff_id.0.algorithm().name(), diff_id.0.hex()))
    }
}

/// Removes the files that are not `kept`. One that is being written may go as well: it is only not kept.
fn sweep(directory: &Path, kept: &HashSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if !kept.contains(&path) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

fn load(of: Of, path: &Path) -> io::Result<Known> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is not whole");
    let bytes = fs::read(path)?;
    let (bytes, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(damaged)?;
    if Sha256::digest(bytes).as_slice() != sum {
        return Err(damaged());
    }
    let plain = zstd::stream::decode_all(bytes)?;
    let end = plain.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
    let blob = str::from_utf8(&plain[..end]).ok().and_then(|blob| blob.parse().ok()).ok_or_else(damaged)?;
    let index = LayerIndex::decode(&plain[end + 1..]).map_err(io::Error::other)?;
    Ok(Known { of, blob, index })
}

fn read(tx: &ReadTx, diff_id: &DiffId) -> Result<Option<Stored>, DbError> {
    let key = diff_id.to_string();
    let Some(table) = tx.table(INDEXES)? else { return Ok(None) };
    table.get(key.as_str())?.map(|v| db::decode(&key, v.value())).transpose()
}

fn all(tx: &ReadTx) -> Result<Vec<(DiffId, Stored)>, DbError> {
    let Some(table) = tx.table(INDEXES)? else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        let invalid = || DbError::Row { key: key.value().to_owned(), reason: "it is no diff ID".to_owned() };
        let diff_id: DiffId = key.value().parse().map_err(|_| invalid())?;
        rows.push((diff_id, db::decode(key.value(), value.value())?));
    }
    Ok(rows)
}
