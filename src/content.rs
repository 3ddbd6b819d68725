//! Blobs: resident or remote, fetched once when somebody reads them.
//!
//! A [`ContentStore`] knows blobs by digest. Registering one notes what it is and where it is said to
//! be ([`Origin`]); nothing moves. [`ContentStore::fetch`] makes it resident, [`ContentStore::open`]
//! reads it, [`ContentStore::stream`] passes a remote one through without keeping it, and
//! [`ContentStore::read_parts`] gets parts of one that is not fetched.
//!
//! # Who may have a blob
//!
//! Bytes that are here came with somebody's credentials. An asker who comes with handlers
//! ([`DescHandlers`]) gets them if one of its handlers names an origin that is *proven* to have the
//! blob and knows that the asker is let in there ([`Provider::vouches_for`]); otherwise its own
//! providers are asked ([`Provider::probe`]) with its own credentials, and proven by a yes. The yes of a
//! registry that was never seen to have the blob is worth nothing, nor is that of a client's content
//! store: they have to show the bytes (`access.rs`). Blobs made here, and askers without any handler (the
//! node itself, by a ref that it holds), have no such rule.
//!
//! # Invariants
//!
//! - Nothing is visible before it was verified: a final name holds a whole file, a reader gets bytes
//!   after the digest held, and a stream gives its last bytes only then.
//! - One fetch per blob, whatever asks, and none while the blob is resident.
//! - One asker's refusal is never another's error.
//! - A blob that is held by a [`Lease`] or a lease row is never deleted.
//!
//! # Cancellation
//!
//! Every method may be dropped at any time. Fetches, commits and collections are owned tasks: a fetch
//! ends when its last asker has left and keeps its bytes for the next one; the others run to their end.
//!
//! # Crash consistency
//!
//! The disk says what is resident (`disk.rs`), the metadata store what is known (`rows.rs`). A blob's
//! row may lag behind its file by a second: a file without a row is an orphan that the collector takes,
//! and the file itself says where it came from (`given.rs`).
//! A deletion is recorded, done, then cleared, and done again at the next start if it was not cleared.

mod access;
mod blob;
mod candidate;
mod collect;
mod disk;
mod error;
mod fetch;
mod follow;
mod given;
mod growing;
mod ingest;
mod origin;
mod parts;
mod provider;
mod reader;
mod rows;
mod slow;
mod stats;
mod stream;
mod write;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;

use crate::ctx::Ctx;
use crate::db::Db;
use crate::lease::Lease;
use crate::lease::Leases;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::task::Tasks;

pub use collect::Collected;
pub use collect::Fsck;
pub use error::ContentError;
pub use error::FetchError;
pub use error::Refusal;
pub use follow::Follower;
pub use growing::GrowingBlob;
pub use growing::GrowingError;
pub use growing::Growth;
pub use growing::NotMade;
pub use origin::KnownOrigin;
pub use origin::Origin;
pub use provider::Body;
pub use provider::ByteStream;
pub use provider::Cause;
pub use provider::Connect;
pub use provider::DescHandler;
pub use provider::DescHandlers;
pub use provider::Opened;
pub use provider::ProvideError;
pub use provider::Provider;
pub use reader::BlobReader;
pub use reader::BlobStream;
pub use reader::StreamSource;
pub use rows::register;
pub use stats::ContentStats;

use access::Proofs;
use blob::BlobTable;
use disk::Disk;
use fetch::Until;
use fetch::flight::Fetch;
use slow::Slow;
use stats::Counters;

/// The blobs of this node. Clones are handles of the same store.
#[derive(Clone, Debug)]
pub struct ContentStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<Disk>,
    db: Db,
    leases: Leases,
    connect: Arc<dyn Connect>,
    tasks: Tasks,
    table: BlobTable<Fetch>,
    /// Blobs that pass through now.
    passing: Mutex<HashSet<Digest>>,
    proofs: Proofs,
    slow: Slow,
    counters: Arc<Counters>,
}

/// Where the bytes of a blob are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residency {
    Remote,
    Fetching,
    Resident,
    Evicting,
}

/// What is known of a blob.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobStat {
    pub size: u64,
    pub media_type: String,
    pub residency: Residency,
    pub origins: Vec<KnownOrigin>,
}

/// Bytes to be stored as a blob.
#[derive(Clone, Debug)]
pub struct NewBlob {
    pub media_type: String,
    pub bytes: Bytes,
}

impl ContentStore {
    /// Opens the store in `root`, and finishes what a crash interrupted. Its cost doesn't grow with
    /// the number of blobs.
    pub fn open(
        root: &Path,
        db: Db,
        leases: Leases,
        connect: Arc<dyn Connect>,
        tasks: Tasks,
    ) -> Result<ContentStore, ContentError> {
        let counters = Arc::new(Counters::default());
        let disk = Arc::new(Disk::open(root, Arc::clone(&counters))?);
        collect::finish_deletions(&disk, &db)?;
        let (table, passing) = (BlobTable::default(), Mutex::default());
        let (proofs, slow) = (Proofs::new(), Slow::default());
        let inner = Inner { disk, db, leases, connect, tasks, table, passing, proofs, slow, counters };
        Ok(ContentStore { inner: Arc::new(inner) })
    }

    pub fn leases(&self) -> &Leases {
        &self.inner.leases
    }

    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    pub fn stats(&self) -> ContentStats {
        self.inner.counters.read()
    }

    /// Holds the blob in this process, resident or not.
    pub fn hold(&self, digest: &Digest) -> Lease {
        self.inner.leases.hold(*digest)
    }

    /// What is known of a blob; `None` if it was never registered, written or fetched.
    pub fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, ContentError> {
        let row = self.inner.db.read(|tx| rows::get(tx, digest))?;
        Ok(row.map(|row| BlobStat {
            residency: self.residency(digest),
            size: row.size,
            media_type: row.media_type,
            origins: row.origins,
        }))
    }

    /// True if the blob's bytes are here. They may go unless the caller holds the blob.
    pub fn is_resident(&self, descriptor: &Descriptor) -> bool {
        self.residency(&descriptor.digest) == Residency::Resident
    }

    fn residency(&self, digest: &Digest) -> Residency {
        match self.inner.table.get(digest) {
            Some(blob::Residency::Remote) => Residency::Remote,
            // All of it is here.
            Some(blob::Residency::Fetching(fetch)) if fetch.is_landing() => Residency::Resident,
            Some(blob::Residency::Fetching(_)) => Residency::Fetching,
            Some(blob::Residency::Resident { .. }) => Residency::Resident,
            Some(blob::Residency::Evicting { .. }) => Residency::Evicting,
            None if self.inner.disk.size_of(digest).is_some() => Residency::Resident,
            None => Residency::Remote,
        }
    }

    /// Where the blob can be had, oldest first.
    pub fn origins(&self, digest: &Digest) -> Result<Vec<KnownOrigin>, ContentError> {
        let row = self.inner.db.read(|tx| rows::get(tx, digest))?;
        Ok(row.map(|row| row.origins).unwrap_or_default())
    }

    /// Notes that `origin` says that it has the blob: it was found or mounted there. Written behind.
    pub fn note_origin(&self, digest: &Digest, origin: Origin) {
        let digest = *digest;
        self.inner.db.write_behind(move |tx| rows::note(tx, &digest, &origin));
    }

    /// Notes that `origin` has the blob: all of its bytes were sent there. Written behind.
    pub fn record_origin(&self, digest: &Digest, origin: Origin) {
        let digest = *digest;
        self.inner.db.write_behind(move |tx| rows::prove(tx, &digest, &origin));
    }

    /// Notes a blob that may be anywhere (see [`register`]) as a transaction of its own.
    pub async fn register(&self, descriptor: &Descriptor, origins: &[Origin]) -> Result<(), ContentError> {
        let (descriptor, origins) = (descriptor.clone(), origins.to_vec());
        Ok(self.inner.db.write(move |tx| register(tx, &descriptor, &origins)).await?)
    }

    /// Makes a blob resident and holds it.
    ///
    /// Joins the fetch that runs, if one does. Tries the asker's `handlers` first and the blob's durable
    /// origins then, all with the rights of `ctx`. See the module for who may have what is here already.
    pub async fn fetch(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
    ) -> Result<Lease, FetchError> {
        self.inner.fetch(ctx, descriptor, handlers, Until::Resident, &mut drop).await
    }

    /// Fails unless `ctx` may have the blob, wherever its bytes or what was made of them are. Asks nobody if
    /// its origin is proven and vouches for the asker; see the module.
    pub async fn admit(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
    ) -> Result<(), FetchError> {
        let digest = descriptor.digest;
        let admitted = self.inner.entitle(ctx, descriptor, handlers.get(&digest), Vec::new());
        ctx.run(admitted).await.map_err(|_| FetchError::Cancelled { digest })?
    }

    /// Notes again that a blob was read at `origin` once, which a row said that has gone since. Nothing if the blob
    /// is not known.
    pub async fn recall(&self, digest: &Digest, origin: &Origin) -> Result<(), ContentError> {
        let known = self.inner.db.read(|tx| rows::get(tx, digest))?;
        if known.is_none_or(|row| row.proven().any(|proven| proven == origin)) {
            return Ok(());
        }
        let (digest, origin) = (*digest, origin.clone());
        Ok(self.inner.db.write_visible(move |tx| rows::prove(tx, &digest, &origin)).await?)
    }

    /// Makes a blob resident and opens it.
    pub async fn reader(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
    ) -> Result<BlobReader, FetchError> {
        self.reader_with(ctx, descriptor, handlers, &mut drop).await
    }

    /// As [`ContentStore::reader`]; `follow` is given the way to read along while the blob is fetched, each
    /// time that a fetch is begun or joined.
    pub async fn reader_with(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        follow: &mut (dyn FnMut(Follower) + Send),
    ) -> Result<BlobReader, FetchError> {
        let lease = self.inner.fetch(ctx, descriptor, handlers, Until::Resident, follow).await?;
        self.inner.reader(descriptor.digest, lease)
    }

    /// Returns once the blob's digest has held and `ctx` may have it; `follow` is given the way to read along,
    /// each time that a fetch is begun or joined. What is followed is on its way to its file by then, and who
    /// needs that asks for a [`ContentStore::reader`]. A blob that nobody had to fetch is resident:
    /// [`ContentStore::open_held`].
    pub async fn follow(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        follow: &mut (dyn FnMut(Follower) + Send),
    ) -> Result<Lease, FetchError> {
        self.inner.fetch(ctx, descriptor, handlers, Until::Verified, follow).await
    }

    /// Opens a resident blob that the caller holds and may have.
    pub fn open_held(&self, lease: Lease) -> Result<BlobReader, FetchError> {
        self.inner.reader(lease.digest(), lease)
    }

    /// The bytes of a small blob, made resident; more than `limit` is an error before any request.
    pub async fn read(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        limit: u64,
    ) -> Result<Bytes, FetchError> {
        let Descriptor { digest, size, .. } = *descriptor;
        if size > limit {
            return Err(FetchError::TooLarge { digest, size, limit });
        }
        self.reader(ctx, descriptor, handlers).await?.read_all().await
    }

    /// The bytes of a blob from its first to its last, wherever they are: a remote blob passes through
    /// from its origin without touching the disk, one that is here or being fetched is read from its
    /// file.
    ///
    /// The stream ends well only if the digest held: the last bytes are kept back until then, and a blob
    /// that fails ends in an error instead of them.
    pub async fn stream(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
    ) -> Result<BlobStream, FetchError> {
        self.inner.stream(ctx, descriptor, handlers).await
    }

    /// Parts of a blob, wherever it is, without the rest of it being fetched; `None` if that can't be had. Unverified:
    /// the caller knows what is in the blob. All of them are in memory at the same time. Nothing is kept.
    ///
    /// Cancellation safe.
    pub async fn read_parts(
        &self,
        ctx: &Ctx,
        descriptor: &Descriptor,
        handlers: &DescHandlers,
        parts: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>, FetchError> {
        self.inner.read_parts(ctx, descriptor, handlers, parts).await
    }

    /// Stores bytes that were made here.
    pub async fn write(
        &self,
        media_type: impl Into<String>,
        bytes: impl Into<Bytes>,
    ) -> Result<(Descriptor, Lease), ContentError> {
        let blob = NewBlob { media_type: media_type.into(), bytes: bytes.into() };
        let mut written = self.write_all(vec![blob]).await?;
        Ok(written.remove(0))
    }

    /// Stores several blobs that were made here: one sync for each that is new, and one for all.
    pub async fn write_all(&self, blobs: Vec<NewBlob>) -> Result<Vec<(Descriptor, Lease)>, ContentError> {
        self.inner.write_all(blobs).await
    }

    /// Stores what `make` writes, on a thread where it may block. The inner error is its own; nothing of a
    /// blob that failed is kept. The writer fails when the disk is full.
    ///
    /// A blob that is dropped in mid-way is made to its end and then nobody's.
    pub async fn produce<T, E>(
        &self,
        media_type: impl Into<String>,
        make: impl FnOnce(&mut dyn std::io::Write) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<(Descriptor, Lease, T), E>, ContentError>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.produce_growing(media_type, self.growing().1, make).await
    }

    /// A blob that [`ContentStore::produce_growing`] is going to make, for its readers and for its maker.
    pub fn growing(&self) -> (GrowingBlob, Growth) {
        let blob = GrowingBlob::new(self.inner.tasks.clone());
        let growth = blob.growth();
        (blob, growth)
    }

    /// As [`ContentStore::produce`], for a blob that others read meanwhile.
    pub async fn produce_growing<T, E>(
        &self,
        media_type: impl Into<String>,
        growth: Growth,
        make: impl FnOnce(&mut dyn std::io::Write) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<(Descriptor, Lease, T), E>, ContentError>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.inner.produce(media_type.into(), growth, make).await
    }

    /// Deletes what nobody holds: files and rows of blobs without a lease or a lease row, and
    /// partial blobs that nobody asks for any more. Files younger than `keep` stay.
    pub async fn collect(&self, keep: std::time::Duration) -> Result<Collected, ContentError> {
        collect::collect(&self.inner, keep).await
    }

    /// Hashes every file of the store, and deletes those that are not what their name says and that
    /// nobody holds.
    pub async fn fsck(&self) -> Result<Fsck, ContentError> {
        collect::fsck(&self.inner).await
    }
}

#[cfg(test)]
mod tests;
