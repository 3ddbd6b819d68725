//! Listing and removing records: [`Cache::usage`], [`Cache::prune`], [`Cache::collect_garbage`].

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::Duration;

use async_stream::try_stream;
use futures::Stream;
use futures::TryStreamExt;
use jiff::SignedDuration;
use jiff::Timestamp;
use redb::ReadableTable;

use super::Cache;
use super::CacheError;
use super::ImageList;
use super::Inner;
use super::layers;
use super::mutable::own_snapshot;
use super::prune::PruneOptions;
use super::prune::choose;
use super::record::Kind;
use super::record::RECORDS;
use super::record::RecordId;
use super::record::Row;
use super::record::USES;
use super::record::Uses;
use super::snapshots::Content;
use super::snapshots::Snapshots;
use super::usage::Usage;
use super::usage::UsageOptions;
use crate::db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::lease;
use crate::lease::Owner;
use crate::oci::DiffId;
use crate::snapshot::SnapshotKey;

/// Records that one transaction removes at most, so that others can write in between.
const BATCH: usize = 256;

/// How long a name keeps an image that nobody sets again. Every build may set one, and nothing else
/// would ever drop it.
const IMAGE_AGE: SignedDuration = SignedDuration::from_hours(60 * 24);

impl Cache {
    /// The records that match, the oldest first.
    pub async fn usage(&self, options: &UsageOptions) -> Result<Vec<Usage>, CacheError> {
        let now = Timestamp::now();
        let mut usages = self.scan().await?;
        usages.retain(|usage| {
            let recent = !options.age_limit.is_zero()
                && usage
                    .last_used_at
                    .is_some_and(|last| now.duration_since(last).unsigned_abs() < options.age_limit);
            !recent && usage.matches(&options.filter)
        });
        Ok(usages)
    }

    /// Removes records and gives each that is gone. At the end follow the blobs that nobody needs, those
    /// that a crash left behind included.
    ///
    /// Cancellation safe: dropping the stream stops after the records of the transaction under way.
    pub fn prune(
        &self,
        options: PruneOptions,
    ) -> impl Stream<Item = Result<Usage, CacheError>> + Send + use<> {
        let (cache, everything) = (self.clone(), options.all);
        try_stream! {
            for await usage in cache.prune_records(options) {
                yield usage?;
            }
            cache.collect_unneeded(everything).await?;
        }
    }

    /// Forgets names of images that were not set for 60 days, and prunes by each policy in turn, after the parts of
    /// layers that nobody looks at: no record goes to make room for these. Returns how many bytes they took and the
    /// removed records accounted for.
    pub async fn collect_garbage(&self, policies: &[PruneOptions]) -> Result<u64, CacheError> {
        let old = Timestamp::now().saturating_sub(IMAGE_AGE).unwrap_or(Timestamp::UNIX_EPOCH);
        ImageList::new(self.0.db.clone()).expire(old).await?;
        let parts = self.0.snapshots.collect(|content| !matches!(content, Content::Part(_))).await?;
        let (mut records, mut freed) = (0_usize, parts);
        for policy in policies {
            let mut removed = std::pin::pin!(self.prune_records(policy.clone()));
            while let Some(usage) = removed.try_next().await? {
                records += 1;
                freed += usage.size;
            }
        }
        if records > 0 {
            self.collect_unneeded(false).await?;
        }
        Ok(freed)
    }

    /// Removes what no record needs any more: names of images, files and blobs. With `everything`, names of images
    /// without layers as well, and what is known of layers.
    async fn collect_unneeded(&self, everything: bool) -> Result<(), CacheError> {
        ImageList::new(self.0.db.clone()).sweep(everything).await?;
        self.collect_files(everything).await?;
        self.0.content.collect(Duration::ZERO).await?;
        Ok(())
    }

    /// Removes the files of layers that no record has any more; with `everything`, what is known of them as well.
    async fn collect_files(&self, everything: bool) -> Result<(), CacheError> {
        let inner = self.0.clone();
        let needed = self.0.tasks.spawn_blocking("cache scan", move || inner.db.read(Needed::read));
        let needed = needed.await??;
        self.0.snapshots.collect(|content| needed.has(content)).await?;
        self.0.indexes.collect(|diff_id| needed.layers.contains(diff_id), everything).await
    }

    fn prune_records(
        &self,
        options: PruneOptions,
    ) -> impl Stream<Item = Result<Usage, CacheError>> + Send + use<> {
        let cache = self.clone();
        try_stream! {
            // The semaphore is never closed.
            let _pruning = cache.0.pruning.acquire().await.ok();
            let usages = cache.scan().await?;
            let free = if options.min_free_space == 0 { 0 } else { cache.0.free_space() };
            let chosen = choose(&usages, &options, free, Timestamp::now());
            let mut by_id: HashMap<RecordId, Usage> = usages.into_iter().map(|u| (u.id, u)).collect();
            for batch in chosen.chunks(BATCH) {
                for id in cache.remove(batch.to_vec()).await? {
                    if let Some(usage) = by_id.remove(&id) {
                        yield usage;
                    }
                }
            }
        }
    }

    /// Removes those of `ids` that are still there, that nobody uses and that nothing stands on, in
    /// order, in one transaction.
    pub(super) async fn remove(&self, ids: Vec<RecordId>) -> Result<Vec<RecordId>, CacheError> {
        let doomed = self.0.live.doom(ids);
        let inner = self.0.clone();
        // A task of its own: the doom must outlast the transaction even if nobody waits for it.
        let removal = self.0.tasks.spawn("cache removal", async move {
            let ids = doomed.ids().to_vec();
            let (live, listener) = (inner.live.clone(), inner.listener.get().cloned());
            let removed = inner.db.write(move |tx| {
                let mut removed = Vec::new();
                for id in &ids {
                    // Who makes the record again holds it before queueing its own write.
                    let Some(row) = Row::read_within(tx, id)? else { continue };
                    if live.is_held(id) || Row::has_children(tx, id)? {
                        continue;
                    }
                    if let Some(listener) = &listener {
                        listener.removed(tx, id)?;
                    }
                    lease::release_rows(tx, &Owner::Record(id.to_string()))?;
                    layers::forget(tx, id)?;
                    let snapshot = own_snapshot(&row.kind).cloned();
                    if let Some(snapshot) = &snapshot {
                        Snapshots::forget_row(tx, snapshot)?;
                    }
                    row.remove(tx, id)?;
                    removed.push((*id, snapshot));
                }
                Ok(removed)
            });
            let (removed, snapshots): (Vec<RecordId>, Vec<_>) = removed.await?.into_iter().unzip();
            doomed.forget(&removed);
            if let Err(injected) = failpoint::hit(Failpoint::RecordsRemoved) {
                inner.snapshots.litter();
                return Err(injected.into());
            }
            inner.snapshots.remove(snapshots.into_iter().flatten().collect()).await;
            Ok::<_, DbError>(removed)
        });
        Ok(removal.await??)
    }

    /// All records, the oldest first, on a thread where blocking is allowed.
    async fn scan(&self) -> Result<Vec<Usage>, CacheError> {
        let inner = self.0.clone();
        let kept = self.0.snapshots.kept_sizes().await?;
        let list = move || inner.db.read(|tx| inner.list(tx, &kept));
        let scan = self.0.tasks.spawn_blocking("cache scan", list);
        Ok(scan.await??)
    }
}

/// Whose files records need.
struct Needed {
    records: HashSet<RecordId>,
    layers: HashSet<DiffId>,
}

impl Needed {
    fn read(tx: &ReadTx) -> Result<Needed, DbError> {
        let mut needed = Needed { records: HashSet::new(), layers: HashSet::new() };
        for (id, row) in rows(tx)? {
            needed.records.insert(id);
            if let Kind::Layer { layer, .. } = row.kind {
                needed.layers.insert(layer.diff_id);
            }
        }
        Ok(needed)
    }

    fn has(&self, content: &Content) -> bool {
        match content {
            Content::Layer(diff_id) => self.layers.contains(diff_id),
            Content::Part(_) => false,
            Content::Chain(record) | Content::Made(record) | Content::Kept(record) => {
                self.records.contains(record)
            }
        }
    }
}

fn rows(tx: &ReadTx) -> Result<Vec<(RecordId, Row)>, DbError> {
    let Some(records) = tx.table(RECORDS)? else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for entry in records.iter()? {
        let (key, value) = entry?;
        let reason = |e: super::InvalidRecordId| DbError::Row { key: e.text.clone(), reason: e.to_string() };
        let id: RecordId = key.value().parse().map_err(reason)?;
        rows.push((id, db::decode::<Row>(key.value(), value.value())?));
    }
    Ok(rows)
}

impl Inner {
    fn list(&self, tx: &ReadTx, kept: &HashMap<SnapshotKey, u64>) -> Result<Vec<Usage>, DbError> {
        let mut rows = rows(tx)?;
        let uses = tx.table(USES)?;
        rows.sort_by_key(|(id, row)| (row.created_at, *id));
        let files = self.snapshots.sizes(tx)?;
        let mut counted = HashSet::new();
        let mut counted_files = HashSet::new();
        let mut usages = Vec::with_capacity(rows.len());
        for (id, row) in &rows {
            let stored = match &uses {
                Some(uses) => uses.get(id.to_string().as_str())?.map(|v| Uses::from_row(v.value())),
                None => None,
            };
            let uses = self.live.uses(id, stored);
            let own = match &row.kind {
                Kind::Layer { layer, .. } => Some(&layer.blob),
                _ => None,
            };
            let made = layers::made_for(tx, id)?;
            let mut size = 0;
            for blob in own.into_iter().chain(made.iter().map(|layer| &layer.blob)) {
                if self.content.is_resident(blob) && counted.insert(blob.digest) {
                    size += blob.size;
                }
            }
            size += files.records.get(id).copied().unwrap_or(0);
            size += match &row.kind {
                Kind::Layer { layer, .. } if counted_files.insert(layer.diff_id) => {
                    files.layers.get(&layer.diff_id).copied().unwrap_or(0)
                }
                Kind::Mutable { snapshot, .. } => kept.get(snapshot).copied().unwrap_or(0),
                _ => 0,
            };
            let held = self.live.is_held(id);
            usages.push(Usage {
                id: *id,
                parents: row.kind.parents().to_vec(),
                size,
                created_at: row.created_at,
                last_used_at: uses.map(|u| u.last),
                usage_count: uses.map_or(0, |u| u.count),
                description: row.description.clone(),
                record_type: row.record_type,
                in_use: held,
                mutable: matches!(row.kind, Kind::Mutable { .. }),
                held,
            });
        }
        mark_ancestors_in_use(&mut usages);
        Ok(usages)
    }

    /// Bytes that the file system of the cache has free; none if it can't tell.
    fn free_space(&self) -> u64 {
        match rustix::fs::statvfs(&self.root) {
            Ok(stat) => stat.f_bfree.saturating_mul(stat.f_frsize),
            Err(error) => {
                tracing::warn!(path = %self.root.display(), %error, "can't tell the free space");
                u64::MAX
            }
        }
    }
}

fn mark_ancestors_in_use(usages: &mut [Usage]) {
    let by_id: HashMap<RecordId, usize> = usages.iter().enumerate().map(|(n, u)| (u.id, n)).collect();
    let mut stack: Vec<usize> = (0..usages.len()).filter(|&n| usages[n].held).collect();
    while let Some(n) = stack.pop() {
        for parent in usages[n].parents.clone() {
            if let Some(&parent) = by_id.get(&parent)
                && !usages[parent].in_use
            {
                usages[parent].in_use = true;
                stack.push(parent);
            }
        }
    }
}
