//! What was written becomes a change set: it says by itself what changed.
//!
//! A change set may come to lie on other layers than those it was made on, in a merge and in any image with its layer, and
//! what it was made on may go before it is packed. So it is settled when it is committed, while that is still there
//! (`snapshot/diff/settle.rs`). Its layer then is that of a comparison of whole trees, which is what snapshotters that copy
//! do, and a merge has the same files whether it is mounted or exported.
//!
//! # Lazy bases
//!
//! What was made on some paths of a state ([`MutableOptions::looks`](super::MutableOptions)) has at these paths what the
//! state has, or nothing of what is replaced. But it has not all that is in a directory: where one was removed and made
//! anew, the layers that have something in it are needed now.
//!
//! # Cancellation
//!
//! May be dropped: the snapshot is still one that is being written to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::Look;
use super::Strange;
use super::Want;
use super::footing::Footing;
use super::materialize::Tree;
use super::snapshots::Passing;
use crate::ctx::Ctx;
use crate::fs::Last;
use crate::fs::Root;
use crate::snapshot::DiffError;
use crate::snapshot::Unsettled;
use crate::snapshot::leave_what_changed;
use crate::snapshot::spell_out;

/// What a file system that is written to was made on.
pub(super) enum Base {
    /// All layers of its parent, if it has one.
    Whole,
    /// Those that decide what is at some paths. With the request that it was made for.
    Paths { parent: ImmutableRef, ctx: Ctx },
}

impl Cache {
    /// Settles a snapshot that was written to since `since`, and that nobody has mounted. `footing` is what it stands on.
    pub(super) async fn settle_changes(
        &self,
        snapshot: &Arc<Passing>,
        since: SystemTime,
        footing: &Footing,
        base: &Base,
    ) -> Result<(), CacheError> {
        let Some(upper) = self.0.snapshots.snapshotter().upper(snapshot.key()) else { return Ok(()) };
        if footing.is_empty() {
            // A plain directory: all that is in it is new.
            return Ok(());
        }
        let upper = Root::open(upper)?;
        let look = upper.clone();
        let found = self.on_files(snapshot, move || Ok(Unsettled::find(&look, since)?)).await?;
        if found.is_empty() {
            return Ok(());
        }
        let lower = self.view(footing.clone()).await?;
        if let Base::Paths { parent, ctx } = base {
            return self.settle_on_paths(snapshot, upper, lower, found, (parent, ctx)).await;
        }
        let settle = move || {
            let lower = Root::open(lower.path())?;
            spell_out(&upper, &lower, &found.opaque)?;
            leave_what_changed(&upper, &lower, &found)
        };
        self.on_files(snapshot, settle).await
    }

    /// The same where `lower` is not all that is below.
    async fn settle_on_paths(
        &self,
        snapshot: &Arc<Passing>,
        upper: Root,
        lower: Tree,
        found: Unsettled,
        (parent, ctx): (&ImmutableRef, &Ctx),
    ) -> Result<(), CacheError> {
        let (look, dirs) = (Root::open(lower.path())?, found.opaque.clone());
        let replaced = move || {
            let mut replaced = Vec::new();
            for dir in dirs {
                if look.stat(&dir, Last::Keep)?.is_some_and(|meta| meta.is_dir()) {
                    replaced.push(dir);
                }
            }
            Ok(replaced)
        };
        let replaced = self.on_files(snapshot, replaced).await?;
        if !replaced.is_empty() {
            let look = |path: &PathBuf| Look { last: Last::Keep, want: Want::Tree, ..Look::at(path) };
            let looks: Vec<Look> = replaced.iter().map(look).collect();
            let (parts, handlers) = (parent.parts(), parent.handlers());
            let whole = Box::pin(self.stand_on_paths(ctx, &parts, handlers, &looks, Strange::Open)).await?;
            let (whole, upper) = (self.view(whole).await?, upper.clone());
            self.on_files(snapshot, move || spell_out(&upper, &Root::open(whole.path())?, &replaced)).await?;
        }
        let settle = move || {
            let lower = Root::open(lower.path())?;
            // Those that replaced nothing are left, and hide nothing.
            spell_out(&upper, &lower, &found.opaque)?;
            leave_what_changed(&upper, &lower, &found)
        };
        self.on_files(snapshot, settle).await
    }

    /// Runs what blocks, with the snapshot there to its end.
    async fn on_files<T: Send + 'static>(
        &self,
        snapshot: &Arc<Passing>,
        work: impl FnOnce() -> Result<T, DiffError> + Send + 'static,
    ) -> Result<T, CacheError> {
        let snapshot = Arc::clone(snapshot);
        let work = self.0.tasks.spawn_blocking("settle changes", move || {
            let done = work();
            drop(snapshot);
            done
        });
        work.await?.map_err(CacheError::pack)
    }
}
