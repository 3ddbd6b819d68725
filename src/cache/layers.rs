//! Blobs of a state's change sets: those that it was made of, or made now.
//!
//! A change set that was made here has no blob until somebody wants one, and then one for each
//! compression. A layer that has a blob keeps it, unless its compression is not the one that is forced, or its
//! files are to be no younger than they may be.
//!
//! # Invariants
//!
//! - One packing per change set and compression, whatever asks.
//! - The record's row of blobs and the lease rows that keep them are one transaction.
//! - A layer that is not forced into a compression stays as lazy as it was.
//!
//! # Cancellation
//!
//! A packing ends when it is done, whoever waits: the next one who asks wants the same. Who reads its blob while it
//! grows ([`ImmutableRef::layers_as_they_grow`]) neither holds it up nor ends it.

use std::io::Read as _;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use jiff::Timestamp;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::record::ChangeSet;
use super::record::Layer;
use super::record::Part;
use super::record::RecordId;
use super::unpack::Changes;
use crate::archive::Compression;
use crate::archive::Decoder;
use crate::archive::Encoder;
use crate::archive::HashingWriter;
use crate::archive::clamp_times;
use crate::content::BlobReader;
use crate::content::DescHandlers;
use crate::content::GrowingBlob;
use crate::content::Growth;
use crate::ctx::Ctx;
use crate::db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::lease;
use crate::lease::Owner;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::media_type;
use crate::snapshot::SnapshotError;
use crate::task::Flights;

/// Lists of [`Variant`]s as JSON by record ID.
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache_blobs");

/// Change sets that are packed at the same time. Each one uses every core.
const CONCURRENT: usize = 2;

/// Which blobs are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerOptions {
    /// Of blobs that are made.
    pub compression: Compression,
    /// The compression's own scale; a good default if absent.
    pub level: Option<i32>,
    /// Layers whose blobs have another compression are made anew.
    pub force: bool,
    /// No file is younger: neither in a change set that was made here, nor in a layer above those that are kept.
    pub epoch: Option<Timestamp>,
    /// Change sets, from the bottom, whose blobs keep the times that they have.
    pub kept: usize,
}

impl Default for LayerOptions {
    fn default() -> LayerOptions {
        LayerOptions { compression: Compression::Gzip, level: None, force: false, epoch: None, kept: 0 }
    }
}

/// A blob of a change set, and what it was made for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Variant {
    /// The compression with its level, and the epoch.
    of: String,
    layer: Layer,
}

/// Packings under way, by record and variant. A conversion is one whose blob nobody sees grow.
pub(super) type Packing = Flights<(RecordId, String), GrowingBlob, Result<Layer, CacheError>>;

/// Is told of each blob that is being made for a change set that has none. Must not block.
pub type OnPacking<'a> = &'a (dyn Fn(GrowingBlob) + Send + Sync);

impl LayerOptions {
    fn variant(&self) -> String {
        let level = self.level.map(|level| format!(":{level}")).unwrap_or_default();
        let epoch = self.epoch.map(|epoch| format!("@{}", epoch.as_second())).unwrap_or_default();
        format!("{}{level}{epoch}", self.compression)
    }

    /// What is wanted of one change set.
    fn of(&self, index: usize, part: &Part) -> LayerOptions {
        let is_layer = part.blob().is_some_and(|layer| media_type::is_layer(&layer.blob.media_type));
        let is_kept = match part.set {
            ChangeSet::Made(_) => false,
            _ => index < self.kept || !is_layer,
        };
        LayerOptions { epoch: self.epoch.filter(|_| !is_kept), ..*self }
    }
}

impl ImmutableRef {
    /// The layers of the state, bottom first. Blobs that there aren't are made, which needs the files of
    /// what was made here, and of a layer that is forced into another compression its bytes.
    ///
    /// Cancellation safe: what was made is kept.
    pub async fn layers(&self, ctx: &Ctx, options: &LayerOptions) -> Result<Vec<Layer>, CacheError> {
        self.layers_as_they_grow(ctx, options, &|_| ()).await
    }

    /// The same for somebody who wants the bytes of what is made before it is whole.
    pub async fn layers_as_they_grow(
        &self,
        ctx: &Ctx,
        options: &LayerOptions,
        on_packing: OnPacking<'_>,
    ) -> Result<Vec<Layer>, CacheError> {
        let one = |(index, part): (usize, &'_ Part)| {
            let options = options.of(index, part);
            let (cache, handlers, part) = (self.cache(), self.handlers(), part.clone());
            async move { cache.layer(ctx, &part, handlers, &options, on_packing).await }.boxed()
        };
        let made: Vec<_> = self.parts().iter().enumerate().map(one).collect();
        let made = stream::iter(made).buffered(CONCURRENT).try_collect();
        ctx.run(made).await.map_err(|_| CacheError::Cancelled)?
    }
}

impl Cache {
    async fn layer(
        &self,
        ctx: &Ctx,
        part: &Part,
        handlers: &DescHandlers,
        options: &LayerOptions,
        on_packing: OnPacking<'_>,
    ) -> Result<Layer, CacheError> {
        if let Some(layer) = part.blob() {
            let is_layer = media_type::is_layer(&layer.blob.media_type);
            let same = compression_of(&layer.blob.media_type) == Some(options.compression);
            if !is_layer || (options.epoch.is_none() && (!options.force || same)) {
                return Ok(layer.clone());
            }
        }
        let variant = options.variant();
        if let Some(found) = self.0.db.read(|tx| find(tx, &part.record, &variant))? {
            // A blob may have been lost with the disk's contents; it is made again then.
            if self.0.content.is_resident(&found.blob) {
                return Ok(found);
            }
        }
        // With the asker's rights; who joins the packing has shown its own.
        let blob = match part.blob() {
            Some(layer) => Some(self.0.content.reader(ctx, &layer.blob, handlers).await?),
            None => None,
        };
        let (cache, part, options) = (self.clone(), part.clone(), *options);
        let key = (part.record, variant.clone());
        let start = |_| {
            let (growing, growth) = cache.0.content.growing();
            on_packing(growing.clone());
            let pack = async move {
                match blob {
                    Some(blob) => {
                        // What comes of it may be what it was.
                        drop(growth);
                        cache.convert(&part, blob, variant, options).await
                    }
                    None => cache.pack(&part, variant, options, growth).await,
                }
            };
            (Arc::new(growing), pack)
        };
        let meet = |growing: &GrowingBlob| on_packing(growing.clone());
        self.0.packing.join(&self.0.tasks, key, start, meet).await?
    }

    /// Makes the blob of a change set that was made here.
    async fn pack(
        &self,
        part: &Part,
        variant: String,
        options: LayerOptions,
        growth: Growth,
    ) -> Result<Layer, CacheError> {
        let ChangeSet::Made(made) = &part.set else { return Err(CacheError::NotFound { id: part.record }) };
        let hold = Arc::new(self.0.snapshots.hold(made.snapshot.clone()).await);
        let changes = self.changes(part, hold).await?;
        let mut layer = self.pack_changes(changes, options, growth).await?;
        layer.created = Some(made.created_at.to_string());
        layer.created_by = Some(made.description.clone()).filter(|text| !text.is_empty());
        self.note(part.record, Variant { of: variant, layer }).await
    }

    /// Writes changes into the store. The blob is nobody's until somebody notes it.
    pub(super) async fn pack_changes(
        &self,
        changes: Changes,
        options: LayerOptions,
        growth: Growth,
    ) -> Result<Layer, CacheError> {
        let media_type = media_type_of(options.compression);
        let packed = self.0.content.produce_growing(media_type, growth, move |sink| {
            let encoder = Encoder::new(sink, options.compression, options.level).map_err(CacheError::pack)?;
            let mut hashing = HashingWriter::new(encoder);
            changes.write(&mut hashing, options.epoch)?;
            let (encoder, hashed) = hashing.finish();
            encoder.finish().map_err(CacheError::pack)?;
            Ok::<_, CacheError>(DiffId(Digest::from_sha256(hashed.sha256)))
        });
        let (blob, _lease, diff_id) = packed.await??;
        Ok(Layer::new(blob, diff_id))
    }

    /// Makes a blob of another compression from a blob, or one without times that are too late.
    async fn convert(
        &self,
        part: &Part,
        blob: BlobReader,
        variant: String,
        options: LayerOptions,
    ) -> Result<Layer, CacheError> {
        let Some(layer) = part.blob().cloned() else { return Err(CacheError::NotFound { id: part.record }) };
        let converted = self.0.content.produce(media_type_of(options.compression), move |sink| {
            let encoder = Encoder::new(sink, options.compression, options.level).map_err(CacheError::pack)?;
            let mut hashing = HashingWriter::new(encoder);
            let mut plain = Decoder::new(super::unpack::Positioned::new(blob));
            match options.epoch {
                Some(epoch) => {
                    clamp_times(plain, epoch.as_second(), &mut hashing).map_err(CacheError::pack)?
                }
                None => drop(std::io::copy(&mut plain.by_ref(), &mut hashing).map_err(CacheError::pack)?),
            }
            let (encoder, hashed) = hashing.finish();
            encoder.finish().map_err(CacheError::pack)?;
            Ok::<_, CacheError>(DiffId(Digest::from_sha256(hashed.sha256)))
        });
        let (blob, _lease, diff_id) = converted.await??;
        if options.epoch.is_some() {
            // What needs no change stays what it was, unless another compression is asked for.
            let is_same = diff_id == layer.diff_id && !options.force;
            let layer = if is_same { layer } else { Layer { blob, diff_id, ..layer } };
            return self.note(part.record, Variant { of: variant, layer }).await;
        }
        if diff_id != layer.diff_id {
            let (digest, expected) = (layer.blob.digest, layer.diff_id);
            return Err(CacheError::WrongDiffId { digest, expected, actual: diff_id });
        }
        let layer = Layer { blob, ..layer };
        self.note(part.record, Variant { of: variant, layer }).await
    }

    /// Notes a blob of a record, and keeps it as long as that.
    async fn note(&self, record: RecordId, variant: Variant) -> Result<Layer, CacheError> {
        failpoint::hit(Failpoint::LayerPacked).map_err(SnapshotError::from)?;
        let layer = variant.layer.clone();
        let written = self.0.db.write_visible(move |tx| {
            let key = record.to_string();
            let mut variants = read(tx, &key)?;
            variants.retain(|v| v.of != variant.of);
            variants.push(variant.clone());
            tx.table(BLOBS)?.insert(key.as_str(), db::encode(&variants)?.as_slice())?;
            let digests: Vec<Digest> = variants.iter().map(|v| v.layer.blob.digest).collect();
            lease::hold_rows(tx, &Owner::Blobs(key), &digests)?;
            Ok(())
        });
        written.await?;
        Ok(layer)
    }
}

fn read(tx: &WriteTx, key: &str) -> Result<Vec<Variant>, DbError> {
    let table = tx.table(BLOBS)?;
    let row = table.get(key)?;
    Ok(row.map(|v| db::decode(key, v.value())).transpose()?.unwrap_or_default())
}

fn find(tx: &ReadTx, record: &RecordId, variant: &str) -> Result<Option<Layer>, DbError> {
    let of = variants(tx, record)?;
    Ok(of.into_iter().find(|v| v.of == variant).map(|v| v.layer))
}

fn variants(tx: &ReadTx, record: &RecordId) -> Result<Vec<Variant>, DbError> {
    let key = record.to_string();
    let Some(table) = tx.table(BLOBS)? else { return Ok(Vec::new()) };
    Ok(table.get(key.as_str())?.map(|v| db::decode(&key, v.value())).transpose()?.unwrap_or_default())
}

/// The layers that were made for a record.
pub(super) fn made_for(tx: &ReadTx, record: &RecordId) -> Result<Vec<Layer>, DbError> {
    Ok(variants(tx, record)?.into_iter().map(|v| v.layer).collect())
}

/// Forgets the blobs of a record, in the transaction that removes it.
pub(super) fn forget(tx: &WriteTx, record: &RecordId) -> Result<(), DbError> {
    let key = record.to_string();
    tx.table(BLOBS)?.remove(key.as_str())?;
    lease::release_rows(tx, &Owner::Blobs(key))?;
    Ok(())
}

fn compression_of(media_type: &str) -> Option<Compression> {
    Some(match media_type::compression(media_type)? {
        media_type::Compression::Uncompressed => Compression::Uncompressed,
        media_type::Compression::Gzip => Compression::Gzip,
        media_type::Compression::Zstd => Compression::Zstd,
    })
}

fn media_type_of(compression: Compression) -> &'static str {
    match compression {
        Compression::Uncompressed => media_type::OCI_LAYER,
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    }
}
