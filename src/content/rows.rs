//! What the store knows of blobs across restarts.
//!
//! A row says what a blob *is* and where it can be had. Whether it is resident is not in the row: the
//! file is there under its final name, whole, or it is not.

use redb::ReadableTable as _;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;

use super::KnownOrigin;
use super::Origin;
use crate::db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::oci::Descriptor;
use crate::oci::Digest;

/// Digest to [`BlobRow`].
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("content_blobs");
/// Digests whose file is to be deleted, whatever happens to the process.
const DELETIONS: TableDefinition<'_, &str, ()> = TableDefinition::new("content_deletions");

/// Origins of one blob at most. A popular base layer is pushed to ever more repositories; the
/// newest are those that are most likely still there.
const MAX_ORIGINS: usize = 64;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct BlobRow {
    pub size: u64,
    pub media_type: String,
    /// Made on this node, so that no origin has to be asked who may have it.
    #[serde(default)]
    pub local: bool,
    /// Oldest first.
    #[serde(default)]
    pub origins: Vec<KnownOrigin>,
}

impl BlobRow {
    fn new(descriptor: &Descriptor) -> BlobRow {
        BlobRow {
            size: descriptor.size,
            media_type: descriptor.media_type.clone(),
            local: false,
            origins: Vec::new(),
        }
    }

    /// The origins that are proven to have the blob.
    pub(super) fn proven(&self) -> impl Iterator<Item = &Origin> {
        self.origins.iter().filter(|known| known.proven).map(|known| &known.origin)
    }

    /// Sets the size that the bytes have, whatever a descriptor said. Returns whether that changed it.
    fn resize(&mut self, size: u64) -> bool {
        std::mem::replace(&mut self.size, size) != size
    }

    /// Adds an origin, or proves one that is there. Returns whether that changed anything.
    fn note(&mut self, origin: &Origin, proven: bool) -> bool {
        if let Some(known) = self.origins.iter_mut().find(|k| k.origin == *origin) {
            let changed = proven && !known.proven;
            known.proven |= proven;
            return changed;
        }
        if self.origins.len() >= MAX_ORIGINS {
            let unproven = self.origins.iter().position(|k| !k.proven);
            if unproven.is_none() && !proven {
                return false;
            }
            self.origins.remove(unproven.unwrap_or(0));
        }
        self.origins.push(KnownOrigin { origin: origin.clone(), proven });
        true
    }
}

/// Notes a blob that may be anywhere, in the transaction of whoever needs it to stay known.
///
/// `origins` are where it is said to be; the descriptor's own distribution sources are noted as well.
/// What is known already stays. The caller holds the blob by a lease row written in the same
/// transaction; without one, the next collection forgets it.
pub fn register(tx: &WriteTx, descriptor: &Descriptor, origins: &[Origin]) -> Result<(), DbError> {
    let sources =
        descriptor.distribution_sources().map(|(host, repository)| Origin::registry(host, repository));
    let origins: Vec<Origin> = origins.iter().cloned().chain(sources).collect();
    update(
        tx,
        &descriptor.digest,
        || Some(BlobRow::new(descriptor)),
        |row| {
            let mut changed = false;
            for origin in &origins {
                changed |= row.note(origin, false);
            }
            changed
        },
    )
}

/// Notes that `origin` says that it has the blob. Nothing if the blob is not known.
pub(super) fn note(tx: &WriteTx, digest: &Digest, origin: &Origin) -> Result<(), DbError> {
    update(tx, digest, || None, |row| row.note(origin, false))
}

/// Notes that `origin` has the blob. Nothing if the blob is not known.
pub(super) fn prove(tx: &WriteTx, digest: &Digest, origin: &Origin) -> Result<(), DbError> {
    update(tx, digest, || None, |row| row.note(origin, true))
}

/// Notes that the blob was had from or seen at `origin`, so that its size is known for sure.
pub(super) fn arrived(tx: &WriteTx, descriptor: &Descriptor, origin: Option<&Origin>) -> Result<(), DbError> {
    update(
        tx,
        &descriptor.digest,
        || Some(BlobRow::new(descriptor)),
        |row| row.resize(descriptor.size) | origin.is_some_and(|origin| row.note(origin, true)),
    )
}

/// Notes that the blob was made here.
pub(super) fn made(tx: &WriteTx, descriptor: &Descriptor) -> Result<(), DbError> {
    update(
        tx,
        &descriptor.digest,
        || Some(BlobRow::new(descriptor)),
        |row| row.resize(descriptor.size) | !std::mem::replace(&mut row.local, true),
    )
}

fn update(
    tx: &WriteTx,
    digest: &Digest,
    new: impl FnOnce() -> Option<BlobRow>,
    change: impl FnOnce(&mut BlobRow) -> bool,
) -> Result<(), DbError> {
    let key = digest.to_string();
    let mut table = tx.table(BLOBS)?;
    let known = table.get(key.as_str())?.map(|v| db::decode::<BlobRow>(&key, v.value())).transpose()?;
    let is_new = known.is_none();
    let Some(mut row) = known.or_else(new) else { return Ok(()) };
    if change(&mut row) || is_new {
        table.insert(key.as_str(), db::encode(&row)?.as_slice())?;
    }
    if is_new {
        // A blob that is known again must not lose its file to a deletion that a crash left unfinished.
        tx.table(DELETIONS)?.remove(key.as_str())?;
    }
    Ok(())
}

pub(super) fn get(tx: &ReadTx, digest: &Digest) -> Result<Option<BlobRow>, DbError> {
    let Some(table) = tx.table(BLOBS)? else { return Ok(None) };
    let key = digest.to_string();
    table.get(key.as_str())?.map(|v| db::decode(&key, v.value())).transpose()
}

/// Every digest that has a row.
pub(super) fn all(tx: &ReadTx) -> Result<Vec<Digest>, DbError> {
    let Some(table) = tx.table(BLOBS)? else { return Ok(Vec::new()) };
    table.iter()?.map(|entry| parse(entry?.0.value())).collect()
}

/// Forgets a blob and records that its file is to go.
pub(super) fn intend_deletion(tx: &WriteTx, digest: &Digest) -> Result<(), DbError> {
    let key = digest.to_string();
    tx.table(BLOBS)?.remove(key.as_str())?;
    tx.table(DELETIONS)?.insert(key.as_str(), ())?;
    Ok(())
}

/// The file is gone, and its directory synced.
pub(super) fn deleted(tx: &WriteTx, digest: &Digest) -> Result<(), DbError> {
    tx.table(DELETIONS)?.remove(digest.to_string().as_str())?;
    Ok(())
}

/// Deletions that a crash left unfinished.
pub(super) fn deletions(tx: &ReadTx) -> Result<Vec<Digest>, DbError> {
    let Some(table) = tx.table(DELETIONS)? else { return Ok(Vec::new()) };
    table.iter()?.map(|entry| parse(entry?.0.value())).collect()
}

fn parse(key: &str) -> Result<Digest, DbError> {
    key.parse().map_err(|e| DbError::Row { key: key.to_owned(), reason: format!("{e}") })
}
