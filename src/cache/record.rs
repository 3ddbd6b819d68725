//! Rows of cache records, and what names them.
//!
//! Where a record's content has a name, its ID is computed from it: the blobs of its layers in order, or
//! the records that it merges or slices. The same blobs are therefore the same record, on every node, and
//! an ID that is made again after its record was collected names the same thing. What was made here has
//! a random ID: it gets a digest when somebody asks for its blob.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use redb::MultimapTableDefinition;
use redb::ReadOnlyTable;
use redb::ReadableMultimapTable;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::DeserializeOwned;

use crate::db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::oci::ChainId;
use crate::oci::Descriptor;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::annotation;
use crate::oci::from_text;
use crate::snapshot::SnapshotKey;

/// [`Row`]s as JSON by record ID.
pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_records");
/// Milliseconds since 1970 of the last use, and the number of uses, by record ID.
pub(super) const USES: TableDefinition<'_, &str, (i64, u64)> = TableDefinition::new("cache_uses");
/// IDs of the records that stand on a record.
pub(super) const CHILDREN: MultimapTableDefinition<'_, &str, &str> =
    MultimapTableDefinition::new("cache_children");
/// IDs of the records that are found by a key.
pub(super) const BY_KEY: MultimapTableDefinition<'_, &str, &str> = MultimapTableDefinition::new("cache_keys");

/// Names a cache record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; 16]);

/// A text is not a record's ID.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not the ID of a cache record: 32 lower-case hex digits")]
pub struct InvalidRecordId {
    pub text: String,
}

impl RecordId {
    /// Of a record that is not named by its content.
    pub(super) fn random() -> RecordId {
        RecordId(rand::random())
    }

    fn of(identity: Digest) -> RecordId {
        let mut id = [0; 16];
        id.copy_from_slice(&identity.raw()[..16]);
        RecordId(id)
    }
}

impl RecordId {
    /// As [`fmt::Display`] writes it.
    fn text<'t>(&self, text: &'t mut [u8; 32]) -> &'t str {
        HEXLOWER.encode_mut_str(&self.0, text)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; 32]))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordId {
    type Err = InvalidRecordId;

    fn from_str(text: &str) -> Result<RecordId, InvalidRecordId> {
        let mut id = [0; 16];
        let is_read = text.len() == 2 * id.len() && HEXLOWER.decode_mut(text.as_bytes(), &mut id).is_ok();
        match is_read {
            true => Ok(RecordId(id)),
            false => Err(InvalidRecordId { text: text.chars().take(80).collect() }),
        }
    }
}

impl Serialize for RecordId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RecordId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RecordId, D::Error> {
        from_text(deserializer, "the ID of a cache record")
    }
}

/// Identity of a stack of layers by their blobs, as [`ChainId`] is by their content: two blobs of one
/// layer (gzip and zstd) give one chain and two blob chains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobChainId(Digest);

impl BlobChainId {
    pub(super) fn then(below: Option<BlobChainId>, layer: &Layer) -> BlobChainId {
        let own = Digest::sha256(format!("{} {}", layer.blob.digest, layer.diff_id));
        BlobChainId(match below {
            None => own,
            Some(below) => Digest::sha256(format!("{} {own}", below.0)),
        })
    }

    pub(super) fn merged(parents: &[BlobChainId]) -> BlobChainId {
        let parents: Vec<String> = parents.iter().map(|p| p.0.to_string()).collect();
        BlobChainId(Digest::sha256(format!("merge {}", parents.join(" "))))
    }

    /// Own change sets of records that stand on each other, lowest first.
    pub(super) fn sliced(of: &[RecordId]) -> BlobChainId {
        let of: Vec<String> = of.iter().map(RecordId::to_string).collect();
        BlobChainId(Digest::sha256(format!("slice {}", of.join(" "))))
    }

    /// Of a record that was made here.
    pub(super) fn made(id: &RecordId) -> BlobChainId {
        BlobChainId(Digest::sha256(format!("made {id}")))
    }

    pub(super) fn record(self) -> RecordId {
        RecordId::of(self.0)
    }
}

impl fmt::Display for BlobChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One layer of a filesystem state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// Without the annotations that say where the blob is or what it unpacks to.
    pub blob: Descriptor,
    pub diff_id: DiffId,
    /// When the layer was made, if that is known, as RFC 3339 text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What made the layer, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

impl Layer {
    /// The layer of a descriptor that carries its diff ID as annotation, as those of manifests do once
    /// the config has been read.
    pub fn from_descriptor(descriptor: &Descriptor) -> Result<Layer, MissingDiffId> {
        let missing = || MissingDiffId { digest: descriptor.digest };
        let text = descriptor.annotations.get(annotation::UNCOMPRESSED).ok_or_else(missing)?;
        let diff_id = text.parse().map_err(|_| missing())?;
        Ok(Layer::new(descriptor.clone(), diff_id))
    }

    pub fn new(mut blob: Descriptor, diff_id: DiffId) -> Layer {
        let created = blob.annotations.remove(annotation::CREATED_AT);
        blob.annotations.remove(annotation::UNCOMPRESSED);
        blob.annotations.retain(|key, _| !key.starts_with(annotation::DISTRIBUTION_SOURCE));
        Layer { blob, diff_id, created, created_by: None }
    }
}

/// A layer's descriptor does not say what the layer unpacks to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("layer {digest} has no valid {} annotation", annotation::UNCOMPRESSED)]
pub struct MissingDiffId {
    pub digest: Digest,
}

/// What disk usage lists a record as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum RecordType {
    #[default]
    #[serde(rename = "regular")]
    Regular,
    #[serde(rename = "internal")]
    Internal,
    #[serde(rename = "frontend")]
    Frontend,
    #[serde(rename = "source.local")]
    SourceLocal,
    #[serde(rename = "source.git.checkout")]
    SourceGitCheckout,
    #[serde(rename = "exec.cachemount")]
    ExecCacheMount,
}

impl RecordType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            RecordType::Regular => "regular",
            RecordType::Internal => "internal",
            RecordType::Frontend => "frontend",
            RecordType::SourceLocal => "source.local",
            RecordType::SourceGitCheckout => "source.git.checkout",
            RecordType::ExecCacheMount => "exec.cachemount",
        }
    }
}

/// What a record is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    Layer {
        layer: Box<Layer>,
        parent: Option<RecordId>,
    },
    /// From the lowest to the highest, two at least.
    Merge {
        parents: Vec<RecordId>,
    },
    /// The own change sets of records that stand on each other, lowest first, without what is below.
    Slice {
        of: Vec<RecordId>,
    },
    /// A change set that was made here; its files are in a snapshot.
    Made {
        snapshot: SnapshotKey,
        parent: Option<RecordId>,
    },
    /// A file system that is written to time and again.
    Mutable {
        snapshot: SnapshotKey,
        parent: Option<RecordId>,
    },
}

/// One change set of a state, and the record whose own it is. Every state that stands on it lists it, so it is small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub(super) record: RecordId,
    pub(super) set: ChangeSet,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ChangeSet {
    Blob(Arc<Layer>),
    Made(Arc<Made>),
}

/// What is known of a change set that was made here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Made {
    pub(super) snapshot: SnapshotKey,
    pub(super) created_at: Timestamp,
    pub(super) description: String,
}

impl Part {
    /// What names the change set among others: its diff ID, or for one made here a name like it.
    pub(super) fn identity(&self) -> DiffId {
        match &self.set {
            ChangeSet::Blob(layer) => layer.diff_id,
            ChangeSet::Made(_) => DiffId(Digest::sha256(format!("made {}", self.record))),
        }
    }

    /// The layer, if its blob is what the state was made of.
    pub fn blob(&self) -> Option<&Layer> {
        match &self.set {
            ChangeSet::Blob(layer) => Some(layer),
            ChangeSet::Made(_) => None,
        }
    }
}

/// The records as one read sees them. Opening the table costs more than a row of it.
pub(super) struct Records(Option<ReadOnlyTable<&'static str, &'static [u8]>>);

impl Records {
    pub(super) fn of(tx: &ReadTx) -> Result<Records, DbError> {
        Ok(Records(tx.table(RECORDS)?))
    }

    pub(super) fn row(&self, id: &RecordId) -> Result<Option<Row>, DbError> {
        self.read(id)
    }

    /// What those that stand on the record have to know of it.
    pub(super) fn below(&self, id: &RecordId) -> Result<Option<Below>, DbError> {
        self.read(id)
    }

    pub(super) fn kind(&self, id: &RecordId) -> Result<Option<Kind>, DbError> {
        #[derive(Deserialize)]
        struct Only {
            kind: Kind,
        }
        Ok(self.read(id)?.map(|Only { kind }| kind))
    }

    /// Those fields of a row that `T` has.
    fn read<T: DeserializeOwned>(&self, id: &RecordId) -> Result<Option<T>, DbError> {
        let Some(table) = &self.0 else { return Ok(None) };
        let mut text = [0; 32];
        let key = id.text(&mut text);
        table.get(key)?.map(|row| db::decode(key, row.value())).transpose()
    }
}

/// The fields of a [`Row`] that states above it are made from.
#[derive(Deserialize)]
pub(super) struct Below {
    pub(super) kind: Kind,
    created_at: Timestamp,
    #[serde(default)]
    description: String,
}

impl Below {
    /// The record's own change set, if it has one.
    pub(super) fn part(&self, id: &RecordId) -> Option<Part> {
        self.kind.part(id, self.created_at, &self.description)
    }
}

impl Kind {
    fn part(&self, id: &RecordId, created_at: Timestamp, description: &str) -> Option<Part> {
        let set = match self {
            Kind::Layer { layer, .. } => ChangeSet::Blob(Arc::new(Layer::clone(layer))),
            Kind::Made { snapshot, .. } | Kind::Mutable { snapshot, .. } => ChangeSet::Made(Arc::new(Made {
                snapshot: snapshot.clone(),
                created_at,
                description: description.to_owned(),
            })),
            Kind::Merge { .. } | Kind::Slice { .. } => return None,
        };
        Some(Part { record: *id, set })
    }

    pub(super) fn parents(&self) -> &[RecordId] {
        match self {
            Kind::Layer { parent, .. } | Kind::Made { parent, .. } | Kind::Mutable { parent, .. } => {
                parent.as_slice()
            }
            Kind::Merge { parents } => parents,
            Kind::Slice { of } => of,
        }
    }
}

/// A record as it stands in its table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) blob_chain: BlobChainId,
    pub(super) chain: ChainId,
    pub(super) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) description: String,
    #[serde(default)]
    pub(super) record_type: RecordType,
    /// Blobs that are held together with the layer's, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) companions: Vec<Digest>,
    /// What it is found by, besides its ID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) keys: Vec<String>,
}

impl Row {
    /// The record's own change set, if it has one.
    pub(super) fn part(&self, id: &RecordId) -> Option<Part> {
        self.kind.part(id, self.created_at, &self.description)
    }

    pub(super) fn read(tx: &ReadTx, id: &RecordId) -> Result<Option<Row>, DbError> {
        Records::of(tx)?.row(id)
    }

    pub(super) fn read_within(tx: &WriteTx, id: &RecordId) -> Result<Option<Row>, DbError> {
        let key = id.to_string();
        tx.table(RECORDS)?.get(key.as_str())?.map(|v| db::decode(&key, v.value())).transpose()
    }

    /// Writes the row, that it stands on its parents, and what it is found by.
    pub(super) fn insert(&self, tx: &WriteTx, id: &RecordId) -> Result<(), DbError> {
        let key = id.to_string();
        tx.table(RECORDS)?.insert(key.as_str(), db::encode(self)?.as_slice())?;
        let mut by_key = tx.multimap(BY_KEY)?;
        for name in &self.keys {
            by_key.insert(name.as_str(), key.as_str())?;
        }
        let mut children = tx.multimap(CHILDREN)?;
        for parent in self.kind.parents() {
            children.insert(parent.to_string().as_str(), key.as_str())?;
        }
        Ok(())
    }

    /// Removes the row and everything that is kept beside it.
    pub(super) fn remove(&self, tx: &WriteTx, id: &RecordId) -> Result<(), DbError> {
        let key = id.to_string();
        tx.table(RECORDS)?.remove(key.as_str())?;
        tx.table(USES)?.remove(key.as_str())?;
        let mut by_key = tx.multimap(BY_KEY)?;
        for name in &self.keys {
            by_key.remove(name.as_str(), key.as_str())?;
        }
        let mut children = tx.multimap(CHILDREN)?;
        for parent in self.kind.parents() {
            children.remove(parent.to_string().as_str(), key.as_str())?;
        }
        Ok(())
    }

    /// Takes a key away from the record, if there is such a record.
    pub(super) fn forget_key(tx: &WriteTx, id: &RecordId, name: &str) -> Result<(), DbError> {
        let key = id.to_string();
        if let Some(mut row) = Row::read_within(tx, id)? {
            row.keys.retain(|own| own != name);
            tx.table(RECORDS)?.insert(key.as_str(), db::encode(&row)?.as_slice())?;
        }
        tx.multimap(BY_KEY)?.remove(name, key.as_str())?;
        Ok(())
    }

    pub(super) fn has_children(tx: &WriteTx, id: &RecordId) -> Result<bool, DbError> {
        Ok(!tx.multimap(CHILDREN)?.get(id.to_string().as_str())?.is_empty())
    }
}

/// When and how often a record was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Uses {
    pub(super) last: Timestamp,
    pub(super) count: u64,
}

impl Uses {
    pub(super) fn read(tx: &ReadTx, id: &RecordId) -> Result<Option<Uses>, DbError> {
        let Some(table) = tx.table(USES)? else { return Ok(None) };
        Ok(table.get(id.to_string().as_str())?.map(|v| Uses::from_row(v.value())))
    }

    pub(super) fn from_row((millis, count): (i64, u64)) -> Uses {
        Uses { last: Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH), count }
    }

    pub(super) fn to_row(self) -> (i64, u64) {
        (self.last.as_millisecond(), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> Layer {
        Layer::new(Descriptor::of("t", text.as_bytes()), DiffId(Digest::sha256(text)))
    }

    #[test]
    fn a_blob_chain_depends_on_every_blob_and_its_place() {
        let (a, b) = (layer("a"), layer("b"));
        let chain = |layers: &[&Layer]| {
            layers.iter().fold(None, |below, layer| Some(BlobChainId::then(below, layer))).unwrap()
        };
        let all = [chain(&[&a]), chain(&[&b]), chain(&[&a, &b]), chain(&[&b, &a]), chain(&[&a, &a])];
        for (n, one) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|other| other != one && other.record() != one.record()));
        }
        let other_diff = Layer::new(a.blob.clone(), DiffId(Digest::sha256("c")));
        assert_ne!(chain(&[&other_diff]), all[0]);
    }

    /// Each of a thousand merges on each other lists all that are below it.
    #[test]
    fn a_part_of_a_state_takes_no_room_of_its_own() {
        assert!(size_of::<Part>() <= 32, "{}", size_of::<Part>());
    }

    #[test]
    fn a_layer_keeps_no_annotation_that_says_where_it_is() {
        let mut descriptor = Descriptor::of("t", b"x");
        for (key, value) in [
            (annotation::UNCOMPRESSED, Digest::sha256("y").to_string()),
            (annotation::CREATED_AT, "2020-01-01T00:00:00Z".to_owned()),
            ("containerd.io/distribution.source.r", "a".to_owned()),
            ("other", "kept".to_owned()),
        ] {
            descriptor.annotations.insert(key.to_owned(), value);
        }
        let layer = Layer::from_descriptor(&descriptor).unwrap();
        assert_eq!(layer.diff_id, DiffId(Digest::sha256("y")));
        assert_eq!(layer.created.as_deref(), Some("2020-01-01T00:00:00Z"));
        assert_eq!(layer.blob.annotations.keys().collect::<Vec<_>>(), ["other"]);
        assert!(Layer::from_descriptor(&layer.blob).is_err());
    }

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = BlobChainId::then(None, &layer("a")).record();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "00", &id.to_string().to_uppercase(), &format!("{id}0")] {
            assert!(text.parse::<RecordId>().is_err() || text.bytes().all(|b| b.is_ascii_digit()), "{text}");
        }
    }
}
