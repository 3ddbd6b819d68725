//! Blobs that are made here: from bytes in memory, or written by somebody on a thread of its own. The latter can be
//! read while they are written: see `growing.rs`.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::ContentError;
use super::Inner;
use super::NewBlob;
use super::blob::Residency;
use super::growing::Growth;
use super::rows;
use crate::lease::Lease;
use crate::oci::Descriptor;
use crate::oci::Digest;

impl Inner {
    pub(super) async fn write_all(
        self: &Arc<Self>,
        blobs: Vec<NewBlob>,
    ) -> Result<Vec<(Descriptor, Lease)>, ContentError> {
        let mut written = Vec::new();
        let mut new: Vec<(Digest, Bytes)> = Vec::new();
        for NewBlob { media_type, bytes } in blobs {
            let descriptor = Descriptor::of(media_type, &bytes);
            let lease = self.leases.hold(descriptor.digest);
            if !self.is_here(&descriptor).await?
                && !new.iter().any(|(digest, _)| *digest == descriptor.digest)
            {
                new.push((descriptor.digest, bytes));
            }
            written.push((descriptor, lease));
        }
        if !new.is_empty() {
            let disk = Arc::clone(&self.disk);
            let write = self.tasks.spawn_blocking("write blobs", move || {
                let blobs: Vec<_> = new.iter().map(|(digest, bytes)| (*digest, &bytes[..])).collect();
                disk.write_blobs(&blobs)
            });
            write.await??;
        }
        let descriptors: Vec<Descriptor> = written.iter().map(|(descriptor, _)| descriptor.clone()).collect();
        for descriptor in &descriptors {
            self.table.written(&descriptor.digest, descriptor.size);
        }
        // The owner's transaction comes later in the queue, so it never becomes durable without this.
        let noted = self.db.write_visible(move |tx| descriptors.iter().try_for_each(|d| rows::made(tx, d)));
        noted.await?;
        Ok(written)
    }

    pub(super) async fn produce<T, E>(
        self: &Arc<Self>,
        media_type: String,
        growth: Growth,
        make: impl FnOnce(&mut dyn Write) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<(Descriptor, Lease, T), E>, ContentError>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let inner = Arc::clone(self);
        let write = self.tasks.spawn_blocking("produce blob", move || {
            let mut new = inner.disk.create_new(growth)?;
            let made = match make(&mut new) {
                Ok(made) => made,
                Err(error) => return Ok(Err(error)),
            };
            let (digest, size) = (new.digest(), new.size());
            // First held, then visible: the collector takes what nobody holds.
            let lease = inner.leases.hold(digest);
            // An eviction that began before that would take the new file for the old one.
            while let Some(Residency::Evicting { ended, .. }) = inner.table.get(&digest) {
                Handle::current().block_on(ended.cancelled());
            }
            let descriptor = Descriptor::new(media_type, digest, size);
            let growth = new.commit()?;
            inner.table.written(&digest, size);
            growth.end(descriptor.clone());
            Ok::<_, ContentError>(Ok((descriptor, lease, made)))
        });
        let (descriptor, lease, made) = match write.await?? {
            Ok(written) => written,
            Err(error) => return Ok(Err(error)),
        };
        let noted = descriptor.clone();
        self.db.write_visible(move |tx| rows::made(tx, &noted)).await?;
        Ok(Ok((descriptor, lease, made)))
    }

    /// True if the blob need not be written. Waits for the end of an eviction. The caller holds it.
    async fn is_here(self: &Arc<Self>, descriptor: &Descriptor) -> Result<bool, ContentError> {
        loop {
            match self.look(descriptor).await? {
                Residency::Resident { .. } => return Ok(true),
                Residency::Remote | Residency::Fetching(_) => return Ok(false),
                Residency::Evicting { ended, .. } => ended.cancelled().await,
            }
        }
    }
}
