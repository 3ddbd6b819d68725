//! Deleting what nobody needs.

use std::sync::Arc;
use std::time::Duration;

use super::ContentError;
use super::Inner;
use super::disk::Disk;
use super::rows;
use crate::db::Db;
use crate::oci::Digest;

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

pub(super) async fn collect(_inner: &Arc<Inner>, _keep: Duration) -> Result<Collected, ContentError> {
    todo!()
}

pub(super) async fn fsck(_inner: &Arc<Inner>) -> Result<Fsck, ContentError> {
    todo!()
}
