//! Deleting what nobody needs, and checking what is there.
//!
//! # Crash consistency
//!
//! A collection marks blobs as evicting, forgets them and records the deletions in one transaction,
//! deletes the files, syncs their directories, clears the records in a second transaction, and only
//! then lets go of them. After a crash the records are worked off at the next start. The first
//! transaction looks at the lease rows once more, so an owner whose transaction came before keeps its
//! blobs, and one whose transaction comes after finds them remote.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use super::ContentError;
use super::Inner;
use super::disk;
use super::disk::Disk;
use super::rows;
use super::stats::add;
use crate::db::Db;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::lease;
use crate::oci::Digest;

/// A partial blob of a blob that is still known is kept this long after its last byte came.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Deletions in one pair of transactions.
const BATCH: usize = 1000;

/// What a collection deleted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Blobs that were forgotten, whether or not they had a file.
    pub blobs: u64,
    /// Bytes of the files that are gone, partial ones included.
    pub bytes: u64,
    /// Partial blobs that were deleted.
    pub partials: u64,
}

/// What a check of the store found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fsck {
    pub checked: u64,
    /// Files that were not what their name says and were deleted.
    pub deleted: Vec<Digest>,
    /// Such files that are left since somebody holds them.
    pub held: Vec<Digest>,
}

/// Finishes what a crash interrupted.
pub(super) fn finish_deletions(disk: &Disk, db: &Db) -> Result<(), ContentError> {
    let unfinished = db.read(rows::deletions)?;
    if unfinished.is_empty() {
        return Ok(());
    }
    for digest in &unfinished {
        disk.remove_blob(digest)?;
    }
    disk.sync_directories(unfinished.iter())?;
    // A deletion is safe to repeat until its record is cleared.
    db.write_behind(move |tx| unfinished.iter().try_for_each(|digest| rows::deleted(tx, digest)));
    Ok(())
}

/// Runs a collection to its end, whatever becomes of the caller.
pub(super) async fn collect(inner: &Arc<Inner>, keep: Duration) -> Result<Collected, ContentError> {
    let owned = Arc::clone(inner);
    inner.tasks.spawn("collect", async move { run(&owned, keep).await }).await?
}

async fn run(inner: &Arc<Inner>, keep: Duration) -> Result<Collected, ContentError> {
    let mut collected = Collected::default();
    // A fetch that nobody waits for any more may be about to leave a file.
    for (digest, fetch) in inner.table.fetches() {
        if fetch.is_landing() && !inner.leases.is_held(&digest) {
            fetch.landed().await;
        }
    }
    let unneeded = {
        let inner = Arc::clone(inner);
        inner.tasks.clone().spawn_blocking("list unneeded blobs", move || unneeded(&inner, keep)).await??
    };
    for batch in unneeded.chunks(BATCH) {
        let gone = evict(inner, batch).await?;
        collected.blobs += gone.blobs;
        collected.bytes += gone.bytes;
    }
    let owned = Arc::clone(inner);
    let partials = inner.tasks.spawn_blocking("collect partial blobs", move || partials(&owned)).await??;
    collected.bytes += partials.bytes;
    collected.partials = partials.partials;
    add(&inner.counters.collected_bytes, collected.bytes);
    Ok(collected)
}

/// A blob that nobody seems to need.
struct Unneeded {
    digest: Digest,
    /// Size of its file, if it has one.
    size: Option<u64>,
}

fn unneeded(inner: &Inner, keep: Duration) -> Result<Vec<Unneeded>, ContentError> {
    let now = SystemTime::now();
    let mut known: HashMap<Digest, Option<(u64, SystemTime)>> = HashMap::new();
    for found in inner.disk.list_blobs()? {
        known.insert(found.digest, Some((found.size, found.modified)));
    }
    inner
        .db
        .read(|tx| {
            for digest in rows::all(tx)? {
                known.entry(digest).or_insert(None);
            }
            let mut unneeded = Vec::new();
            for (digest, file) in known {
                // A clock that was set back must not make everything look old.
                let young = file.is_some_and(|(_, at)| now.duration_since(at).unwrap_or_default() < keep);
                if !young && !inner.leases.is_held(&digest) && !lease::has_row(tx, &digest)? {
                    unneeded.push(Unneeded { digest, size: file.map(|(size, _)| size) });
                }
            }
            Ok(unneeded)
        })
        .map_err(ContentError::from)
}

/// Evictions under way. Whatever happens, each is ended.
struct Evictions<'a> {
    inner: &'a Inner,
    /// Those that are not ended, with the size of their files.
    open: HashMap<Digest, u64>,
}

impl Evictions<'_> {
    fn end(&mut self, digest: &Digest, kept: bool) -> u64 {
        let Some(size) = self.open.remove(digest) else { return 0 };
        self.inner.table.end_eviction(digest, kept);
        if kept { 0 } else { size }
    }
}

impl Drop for Evictions<'_> {
    fn drop(&mut self) {
        for digest in self.open.keys() {
            self.inner.table.end_eviction(digest, self.inner.disk.size_of(digest).is_some());
        }
    }
}

async fn evict(inner: &Arc<Inner>, batch: &[Unneeded]) -> Result<Collected, ContentError> {
    let mut evictions = Evictions { inner, open: HashMap::new() };
    let mut wanted = Vec::new();
    for Unneeded { digest, size } in batch {
        match size {
            Some(size) if inner.table.begin_eviction(digest, *size, &inner.leases) => {
                evictions.open.insert(*digest, *size);
                wanted.push(*digest);
            }
            Some(_) => {}
            None => wanted.push(*digest),
        }
    }
    let (leases, remote) = (inner.leases.clone(), {
        let open: HashSet<Digest> = evictions.open.keys().copied().collect();
        move |digest: &Digest| !open.contains(digest)
    });
    let forgotten = inner.db.write(move |tx| {
        let mut forgotten = Vec::new();
        for digest in &wanted {
            // Who holds a remote blob may be about to fetch it, and needs its origins.
            let held = remote(digest) && leases.is_held(digest);
            if !held && !lease::has_row_within(tx, digest)? {
                rows::intend_deletion(tx, digest)?;
                forgotten.push(*digest);
            }
        }
        Ok(forgotten)
    });
    let forgotten = forgotten.await?;
    let going: HashSet<&Digest> = forgotten.iter().collect();
    let kept: Vec<Digest> = evictions.open.keys().filter(|d| !going.contains(d)).copied().collect();
    for digest in &kept {
        evictions.end(digest, true);
    }
    failpoint::hit(Failpoint::DeletionRecorded)?;
    let gone: Vec<Digest> = evictions.open.keys().copied().collect();
    delete_files(inner, gone.clone()).await?;
    let mut collected = Collected { blobs: forgotten.len() as u64, ..Collected::default() };
    inner.db.write(move |tx| forgotten.iter().try_for_each(|digest| rows::deleted(tx, digest))).await?;
    for digest in &gone {
        collected.bytes += evictions.end(digest, false);
    }
    Ok(collected)
}

async fn delete_files(inner: &Arc<Inner>, digests: Vec<Digest>) -> Result<(), ContentError> {
    let disk = Arc::clone(&inner.disk);
    let delete = inner.tasks.spawn_blocking("delete blobs", move || {
        for digest in &digests {
            disk.remove_blob(digest)?;
            failpoint::hit(Failpoint::BlobDeleted)?;
        }
        disk.sync_directories(digests.iter())
    });
    delete.await?
}

/// Deletes partial blobs whose blob is not known any more, or that nobody added to for long.
fn partials(inner: &Inner) -> Result<Collected, ContentError> {
    let mut collected = Collected::default();
    let now = SystemTime::now();
    for found in inner.disk.list_partials()? {
        let digest = &found.digest;
        let old = now.duration_since(found.modified).unwrap_or_default() >= PARTIAL_LIFE;
        if !old && inner.db.read(|tx| rows::get(tx, digest))?.is_some() {
            continue;
        }
        let trashed = inner.table.while_idle(digest, &inner.leases, || inner.disk.trash_partial(digest));
        if let Some(path) = trashed.transpose()?.flatten() {
            disk::remove(&path)?;
            collected.partials += 1;
            collected.bytes += found.size;
        }
    }
    Ok(collected)
}

/// Hashes everything.
pub(super) async fn fsck(inner: &Arc<Inner>) -> Result<Fsck, ContentError> {
    let owned = Arc::clone(inner);
    let check = inner.tasks.spawn_blocking("check blobs", move || {
        let mut fsck = Fsck::default();
        for found in owned.disk.list_blobs()? {
            let digest = found.digest;
            match owned.disk.verify(&digest) {
                Ok(true) => {}
                // Collected since the listing.
                Err(_) if owned.disk.size_of(&digest).is_none() => continue,
                Ok(false) if owned.table.begin_eviction(&digest, found.size, &owned.leases) => {
                    let removed = owned.disk.remove_blob(&digest);
                    owned.table.end_eviction(&digest, removed.is_err());
                    removed?;
                    fsck.deleted.push(digest);
                }
                Ok(false) => fsck.held.push(digest),
                Err(error) => return Err(error),
            }
            fsck.checked += 1;
        }
        Ok(fsck)
    });
    check.await?
}
