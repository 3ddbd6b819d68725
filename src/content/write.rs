//! Blobs that are made here.

use std::sync::Arc;

use bytes::Bytes;

use super::ContentError;
use super::Inner;
use super::NewBlob;
use super::blob::Residency;
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
