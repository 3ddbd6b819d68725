//! Rows of snapshots, and what names them.
//!
//! A snapshot is named by what is in it: `layer-<diff ID>` for a layer's own files, `part-<digest>` for some of them,
//! `chain-<digest>` for a whole tree (where the snapshotter can't put layers on top of each other, or a layer can't be
//! unpacked alone), `made-<record>` for a change set that was made here, `kept-<record>` for what is written to time and
//! again. A row says what of it is known to stay.
//!
//! # Invariants
//!
//! - A row is believed if its snapshot was synced, or in the boot in which it was made (`durable.rs`): every look-up here
//!   compares the boot.
//! - A look-up reads rows only. Who wants what it says to last holds the snapshot first (`holds.rs`).

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redb::ReadOnlyTable;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;

use super::Snapshots;
use crate::cache::record::ChangeSet;
use crate::cache::record::Layer;
use crate::cache::record::Part;
use crate::cache::record::RecordId;
use crate::db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::oci::Algorithm;
use crate::oci::ChainId;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::BootId;
use crate::snapshot::SnapshotKey;

/// [`Stored`] as JSON by snapshot.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_snapshots");

/// What the names of snapshots begin with that have some of a layer's files.
const PART: &str = "part-";

/// What is known of a snapshot that stays.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::cache) struct Stored {
    /// Bytes on disk. Of one that is kept nobody knows but who looks: see [`Snapshots::kept_sizes`].
    pub(super) bytes: u64,
    pub(super) of: Content,
    /// The boot in which it was made, or written to, until it is synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cache) unsynced: Option<BootId>,
}

impl Stored {
    /// True if all that was written of it is there.
    pub(super) fn is_whole(&self, boot: &BootId) -> bool {
        self.unsynced.as_ref().is_none_or(|unsynced| unsynced == boot)
    }

    /// Of a snapshot that is kept, and about to be written to.
    pub(in crate::cache) fn of_kept(record: RecordId, boot: &BootId) -> Stored {
        Stored { bytes: 0, of: Content::Kept(record), unsynced: Some(boot.clone()) }
    }

    pub(in crate::cache) fn write(&self, tx: &WriteTx, key: &SnapshotKey) -> Result<(), DbError> {
        tx.table(SNAPSHOTS)?.insert(key.as_str(), db::encode(self)?.as_slice())?;
        Ok(())
    }

    pub(super) fn read(tx: &WriteTx, key: &SnapshotKey) -> Result<Option<Stored>, DbError> {
        let table = tx.table(SNAPSHOTS)?;
        let row = table.get(key.as_str())?;
        row.map(|row| db::decode(key.as_str(), row.value())).transpose()
    }
}

/// Whose files a snapshot has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::cache) enum Content {
    Layer(DiffId),
    /// Some of a layer's files, for looks at them. Nobody needs it but who has it.
    Part(DiffId),
    /// Of the state of this record, or of one that it stands on.
    Chain(RecordId),
    Made(RecordId),
    /// Written to time and again.
    Kept(RecordId),
}

impl Content {
    /// The record that goes if the files are lost: nothing can make them again.
    pub(super) fn only_copy_of(&self) -> Option<RecordId> {
        match self {
            Content::Made(record) | Content::Kept(record) => Some(*record),
            Content::Layer(_) | Content::Part(_) | Content::Chain(_) => None,
        }
    }
}

/// Bytes on disk, by whose files they are.
#[derive(Default, Debug)]
pub(in crate::cache) struct Sizes {
    /// Of a layer's files, and of parts of it.
    pub(in crate::cache) layers: HashMap<DiffId, u64>,
    /// Of what was made, and of states that were unpacked as a whole.
    pub(in crate::cache) records: HashMap<RecordId, u64>,
}

impl Snapshots {
    /// True if there is a whole snapshot of this name.
    pub(in crate::cache) fn is_present(&self, key: &SnapshotKey) -> Result<bool, DbError> {
        self.0.db.read(|tx| self.among(tx)?.has(key))
    }

    /// The snapshots as `tx` sees them.
    pub(in crate::cache) fn among(&self, tx: &ReadTx) -> Result<Among, DbError> {
        Ok(Among { table: tx.table(SNAPSHOTS)?, boot: self.0.boot.clone() })
    }

    /// The first made change set among `parts` whose files are gone.
    pub(in crate::cache) fn first_missing<'p>(
        &self,
        parts: impl IntoIterator<Item = &'p Part>,
    ) -> Result<Option<&'p Part>, DbError> {
        self.0.db.read(|tx| {
            let here = self.among(tx)?;
            for part in parts {
                if let ChangeSet::Made(made) = &part.set {
                    self.0.looked.fetch_add(1, Ordering::Relaxed);
                    if !here.has(&made.snapshot)? {
                        return Ok(Some(part));
                    }
                }
            }
            Ok(None)
        })
    }

    /// Rows of made change sets that were looked up so far, to stand on them.
    #[cfg(test)]
    pub(in crate::cache) fn looked(&self) -> u64 {
        self.0.looked.load(Ordering::Relaxed)
    }

    /// The layers whose own files are not here.
    pub(in crate::cache) fn without_files<'l>(
        &self,
        layers: impl Iterator<Item = &'l Layer>,
    ) -> Result<Vec<&'l Layer>, DbError> {
        let mut layers = layers.peekable();
        if layers.peek().is_none() {
            return Ok(Vec::new());
        }
        self.0.db.read(|tx| {
            let here = self.among(tx)?;
            let mut without = Vec::new();
            for layer in layers {
                if !here.has(&layer_key(layer.diff_id))? {
                    without.push(layer);
                }
            }
            Ok(without)
        })
    }

    /// Bytes of all committed snapshots.
    pub(in crate::cache) fn sizes(&self, tx: &ReadTx) -> Result<Sizes, DbError> {
        let mut sizes = Sizes::default();
        for (_, stored) in all(tx)?.into_iter().filter(|(_, stored)| stored.is_whole(&self.0.boot)) {
            let bytes = match stored.of {
                Content::Layer(diff_id) | Content::Part(diff_id) => sizes.layers.entry(diff_id).or_default(),
                Content::Chain(record) | Content::Made(record) => sizes.records.entry(record).or_default(),
                // What its row says is not its size.
                Content::Kept(_) => continue,
            };
            *bytes += stored.bytes;
        }
        Ok(sizes)
    }

    pub(in crate::cache) fn stored(&self, key: &SnapshotKey) -> Result<Option<Stored>, DbError> {
        self.0.db.read(|tx| {
            let Some(table) = tx.table(SNAPSHOTS)? else { return Ok(None) };
            table.get(key.as_str())?.map(|row| db::decode(key.as_str(), row.value())).transpose()
        })
    }

    /// Takes the row of a made snapshot out, in the transaction that removes its record.
    pub(in crate::cache) fn forget_row(tx: &WriteTx, key: &SnapshotKey) -> Result<(), DbError> {
        tx.table(SNAPSHOTS)?.remove(key.as_str())?;
        Ok(())
    }
}

/// The snapshots as one read sees them.
pub(in crate::cache) struct Among {
    table: Option<ReadOnlyTable<&'static str, &'static [u8]>>,
    boot: BootId,
}

impl Among {
    /// True if there is a whole snapshot of this name.
    pub(in crate::cache) fn has(&self, key: &SnapshotKey) -> Result<bool, DbError> {
        let Some(table) = &self.table else { return Ok(false) };
        let Some(row) = table.get(key.as_str())? else { return Ok(false) };
        Ok(db::decode::<Stored>(key.as_str(), row.value())?.is_whole(&self.boot))
    }

    /// For each of `parts` whether its own files are here, whatever became of its blob.
    pub(in crate::cache) fn have_files(&self, parts: &[Part]) -> Result<Vec<bool>, DbError> {
        let here = |part: &Part| match &part.set {
            ChangeSet::Made(made) => self.has(&made.snapshot),
            ChangeSet::Blob(layer) => self.has(&layer_key(layer.diff_id)),
        };
        parts.iter().map(here).collect()
    }
}

pub(super) fn all(tx: &ReadTx) -> Result<Vec<(SnapshotKey, Stored)>, DbError> {
    let Some(table) = tx.table(SNAPSHOTS)? else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        rows.push((name(key.value().to_owned()), db::decode(key.value(), value.value())?));
    }
    Ok(rows)
}

pub(in crate::cache) fn layer_key(diff_id: DiffId) -> SnapshotKey {
    name(format!("layer-{}", short(diff_id.0)))
}

/// The snapshot of some entries of a layer, which `paths` names; `index` is the name of the index that has them.
pub(in crate::cache) fn part_key<'p>(index: DiffId, paths: impl Iterator<Item = &'p [u8]>) -> SnapshotKey {
    let mut named = index.to_string().into_bytes();
    for path in paths {
        named.push(0);
        named.extend_from_slice(path);
    }
    name(format!("{PART}{}", short(Digest::sha256(named))))
}

/// True if a snapshot has some of a layer's files only.
pub(in crate::cache) fn is_part(key: &SnapshotKey) -> bool {
    key.as_str().starts_with(PART)
}

pub(in crate::cache) fn chain_key(chain: ChainId) -> SnapshotKey {
    name(format!("chain-{}", short(chain.0)))
}

/// The snapshot of a file system that is written to time and again.
pub(in crate::cache) fn kept_key(id: &RecordId) -> SnapshotKey {
    name(format!("kept-{id}"))
}

pub(in crate::cache) fn made_key(id: &RecordId) -> SnapshotKey {
    name(format!("made-{id}"))
}

/// Names have a limit, which the longer digests would exceed.
fn short(digest: Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => digest.hex(),
        Algorithm::Sha512 => Digest::sha256(digest.to_string()).hex(),
    }
}

/// Names made here are of letters, digits and dashes, and short.
pub(super) fn name(text: String) -> SnapshotKey {
    text.parse().expect("a valid name of a snapshot")
}
