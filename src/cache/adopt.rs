//! Layers that imply directories: unpacked alone like all others, and then laid over what is below.
//!
//! A layer without entries for the directories of its files says nothing of their owners and modes. That is known only
//! when it was unpacked, at the same time as those below it. So its files wait until those are there, get the
//! directories that they have, and become the snapshot of the layer *on this chain*.
//!
//! # Invariants
//!
//! - The bytes had the diff ID before the files wait.
//! - Files that wait are used once: whoever comes second, with another chain, unpacks again.
//!
//! # Cancellation, crash consistency
//!
//! Files that wait are an active snapshot without a row, which goes with the last that knows of it, and at the next
//! start.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio_util::sync::CancellationToken;

use super::Cache;
use super::CacheError;
use super::indexes::Known;
use super::materialize::Target;
use super::record::Layer;
use super::snapshots::Passing;
use super::snapshots::SnapshotHold;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::fs::Root;
use crate::snapshot::LayerIndex;
use crate::snapshot::adopt;

/// A layer that implies directories, without those.
pub struct UnpackedAlone {
    implied: Vec<PathBuf>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    index: LayerIndex,
    files: Option<Passing>,
}

impl UnpackedAlone {
    pub(super) fn new(implied: Vec<PathBuf>, index: LayerIndex) -> UnpackedAlone {
        UnpackedAlone { implied, waiting: Mutex::new(Waiting { index, files: None }) }
    }

    /// The directories, parents first.
    pub(super) fn implied(&self) -> &[PathBuf] {
        &self.implied
    }

    /// Has the files wait.
    pub(super) fn keep(&self, files: Passing) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).files = Some(files);
    }

    fn take(&self) -> Option<(Passing, LayerIndex)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let files = waiting.files.take()?;
        Some((files, std::mem::take(&mut waiting.index)))
    }
}

impl fmt::Debug for UnpackedAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnpackedAlone").field("implied", &self.implied).finish_non_exhaustive()
    }
}

impl Cache {
    /// The snapshot of a layer that needs what is below it, which `target` has.
    pub(super) async fn lay_over(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
        target: Target,
        unpacked: Option<Arc<UnpackedAlone>>,
    ) -> Result<Arc<SnapshotHold>, CacheError> {
        if let Some(alone) = unpacked {
            let hold = Arc::new(self.0.snapshots.hold(target.key.clone()).await);
            match self.adopt(ctx, layer, target.clone(), alone).await {
                Err(CacheError::NeedsLower { .. }) => {}
                adopted => {
                    adopted?;
                    self.note_index(target.index, layer)?;
                    return Ok(hold);
                }
            }
        }
        self.unpack_into(ctx, layer, handlers, target).await
    }

    /// Commits files that wait; [`CacheError::NeedsLower`] if the layer has to be unpacked again.
    async fn adopt(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        target: Target,
        alone: Arc<UnpackedAlone>,
    ) -> Result<(), CacheError> {
        let (cache, blob, key) = (self.clone(), layer.blob.digest, target.key.clone());
        let start = |_: CancellationToken| {
            let work = async move {
                let snapshots = &cache.0.snapshots;
                if snapshots.is_present(&target.key)? {
                    return Ok(());
                }
                let again = CacheError::NeedsLower { digest: blob, unpacked: None };
                let Some((files, index)) = alone.take() else { return Err(again) };
                let Some(upper) = snapshots.snapshotter().upper(files.key()) else { return Err(again) };
                let below = match target.lower.is_empty() {
                    true => None,
                    false => Some(cache.view(target.lower).await?),
                };
                let (indexes, of) = (cache.0.indexes.clone(), target.index);
                let adopt = cache.0.tasks.spawn_blocking("lay a layer over others", move || {
                    if let Some(below) = below
                        && !adopt(&Root::open(upper)?, &Root::open(below.path())?, alone.implied(), &index)?
                    {
                        return Ok(false);
                    }
                    if let Some(of) = of {
                        indexes.write(&Known { of, blob, index });
                    }
                    Ok::<_, CacheError>(true)
                });
                if !adopt.await?? {
                    return Err(again);
                }
                snapshots.commit(&target.key, files.key(), target.of, |_| Ok(())).await?;
                files.settle();
                Ok(())
            };
            (Arc::new(()), work)
        };
        let run = self.0.files.unpacking.join(&self.0.tasks, key, start, |()| ());
        ctx.run(run).await.map_err(|_| CacheError::Cancelled)??
    }
}
