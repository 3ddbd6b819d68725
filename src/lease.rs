//! Proof that somebody still needs a blob.
//!
//! In the process a [`Lease`] holds a blob while it lives: a reader, a running export, a ref. On disk
//! a row per owner holds it across restarts: a cache record, a named image, a build's history. The
//! rows are written in the owner's own transaction, so that there is never a record without its
//! blobs' rows or the other way round.
//!
//! # Invariants
//!
//! A blob is deleted only if it has neither. Whoever looks a blob up takes the lease first and looks
//! second: otherwise the collector may come in between.
//!
//! # Locking
//!
//! Dropping a [`Lease`] changes a sharded map and wakes the collector. No I/O, no other lock.

use std::fmt;
use std::sync::Arc;

use dashmap::DashMap;
use redb::MultimapTableDefinition;
use redb::ReadTransaction;
use redb::ReadableMultimapTable;
use redb::WriteTransaction;
use tokio::sync::Notify;

use crate::oci::Digest;

/// Digests by owner.
const BY_OWNER: MultimapTableDefinition<&str, &str> = MultimapTableDefinition::new("lease_by_owner");
/// Owners by digest.
const BY_DIGEST: MultimapTableDefinition<&str, &str> = MultimapTableDefinition::new("lease_by_digest");

/// Who holds blobs across restarts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// A cache record, by its ID.
    Record(String),
    /// A cache record, by its ID, for blobs that were made of it.
    Blobs(String),
    /// A named image of this node.
    Image(String),
    /// The history of a build, by its ref.
    History(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Record(id) => write!(f, "record/{id}"),
            Owner::Blobs(id) => write!(f, "blobs/{id}"),
            Owner::Image(name) => write!(f, "image/{name}"),
            Owner::History(build) => write!(f, "history/{build}"),
        }
    }
}

/// Adds rows by which `owner` holds `digests`. A row that is there already stays one row.
pub fn hold_rows<'a>(
    tx: &WriteTransaction,
    owner: &Owner,
    digests: impl IntoIterator<Item = &'a Digest>,
) -> Result<(), redb::Error> {
    let owner = owner.to_string();
    let mut by_owner = tx.open_multimap_table(BY_OWNER)?;
    let mut by_digest = tx.open_multimap_table(BY_DIGEST)?;
    for digest in digests {
        let digest = digest.to_string();
        by_owner.insert(owner.as_str(), digest.as_str())?;
        by_digest.insert(digest.as_str(), owner.as_str())?;
    }
    Ok(())
}

/// Removes all rows of `owner`. None is no error.
pub fn release_rows(tx: &WriteTransaction, owner: &Owner) -> Result<(), redb::Error> {
    let owner = owner.to_string();
    let mut by_owner = tx.open_multimap_table(BY_OWNER)?;
    let mut by_digest = tx.open_multimap_table(BY_DIGEST)?;
    for digest in by_owner.remove_all(owner.as_str())? {
        by_digest.remove(digest?.value(), owner.as_str())?;
    }
    Ok(())
}

/// True if some owner has a row for `digest`, as `tx` sees it.
pub fn has_row(tx: &ReadTransaction, digest: &Digest) -> Result<bool, redb::Error> {
    match tx.open_multimap_table(BY_DIGEST) {
        Ok(table) => Ok(table.get(digest.to_string().as_str())?.next().is_some()),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

/// As [`has_row`], within a transaction that may have changed rows itself.
pub fn has_row_within(tx: &WriteTransaction, digest: &Digest) -> Result<bool, redb::Error> {
    let table = tx.open_multimap_table(BY_DIGEST)?;
    Ok(table.get(digest.to_string().as_str())?.next().is_some())
}

/// The same of owners that are no named images.
pub fn has_row_but_images(tx: &WriteTransaction, digest: &Digest) -> Result<bool, redb::Error> {
    let prefix = Owner::Image(String::new()).to_string();
    let table = tx.open_multimap_table(BY_DIGEST)?;
    for owner in table.get(digest.to_string().as_str())? {
        if !owner?.value().starts_with(&prefix) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The leases held in this process. Clones share them.
#[derive(Clone, Default)]
pub struct Leases(Arc<Inner>);

#[derive(Default)]
struct Inner {
    held: DashMap<Digest, usize>,
    released: Notify,
}

impl Leases {
    pub fn new() -> Leases {
        Leases::default()
    }

    /// Holds the blob of `digest`, whether it is resident or not.
    pub fn hold(&self, digest: Digest) -> Lease {
        *self.0.held.entry(digest).or_insert(0) += 1;
        Lease { digest, leases: self.clone() }
    }

    pub fn is_held(&self, digest: &Digest) -> bool {
        self.0.held.contains_key(digest)
    }

    /// Number of blobs held.
    pub fn len(&self) -> usize {
        self.0.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.held.is_empty()
    }

    /// Waits until some blob's last lease was dropped since the last call.
    ///
    /// Cancellation safe.
    pub async fn released(&self) {
        self.0.released.notified().await;
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leases({})", self.len())
    }
}

/// Holds one blob.
#[must_use = "the blob may be collected as soon as this is dropped"]
#[derive(Debug)]
pub struct Lease {
    digest: Digest,
    leases: Leases,
}

impl Lease {
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Clone for Lease {
    fn clone(&self) -> Lease {
        self.leases.hold(self.digest)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = &self.leases.0.held;
        if let Some(mut count) = held.get_mut(&self.digest) {
            *count -= 1;
        }
        if held.remove_if(&self.digest, |_, count| *count == 0).is_some() {
            self.leases.0.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use redb::Database;
    use redb::ReadableDatabase;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[tokio::test]
    async fn a_blob_is_held_until_its_last_lease_is_dropped() {
        let leases = Leases::new();
        let digest = Digest::sha256("x");
        let first = leases.hold(digest);
        let second = first.clone();
        drop(first);
        assert!(leases.is_held(&digest));
        let mut released = Box::pin(leases.released());
        assert!(futures::poll!(&mut released).is_pending());
        drop(second);
        released.await;
        assert!(leases.is_empty());
    }

    #[test]
    fn rows_of_one_owner_go_together_and_those_of_others_stay() {
        let db = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let (a, b) = (Digest::sha256("a"), Digest::sha256("b"));
        let (record, image) = (Owner::Record("1".into()), Owner::Image("1".into()));
        assert!(!has_row(&db.begin_read().unwrap(), &a).unwrap());
        let tx = db.begin_write().unwrap();
        hold_rows(&tx, &record, [&a, &b, &a]).unwrap();
        hold_rows(&tx, &image, [&b]).unwrap();
        tx.commit().unwrap();
        let tx = db.begin_write().unwrap();
        release_rows(&tx, &record).unwrap();
        assert!(!has_row_within(&tx, &a).unwrap());
        tx.commit().unwrap();
        let tx = db.begin_read().unwrap();
        assert!(!has_row(&tx, &a).unwrap());
        assert!(has_row(&tx, &b).unwrap());
    }
}
