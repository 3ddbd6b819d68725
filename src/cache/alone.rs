//! States that stand on nothing, of those whose change sets are nobody's.
//!
//! A transfer of a client's directory stands on the one before it, and so says what has changed since. That is how it is
//! stored, not what it is: what was in the directory before is no part of it, and what has gone from there takes
//! nothing from what it is merged with. Who shows change sets to others, or lays them over others', does that with the
//! ones of [`ImmutableRef::alone`].

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::MutableOptions;
use super::MutableRef;
use super::RecordType;
use crate::content::DescHandlers;
use crate::ctx::Ctx;
use crate::fs;
use crate::fs::CopyOptions;
use crate::fs::Root;

/// What the copy of a state is found by, before the ID of the state.
const KEY: &str = "alone:";

impl ImmutableRef {
    /// The same files as one change set, if they are a client's directory; the state as it is if not.
    ///
    /// Cancellation safe: a copy that was made and not taken is found the next time, or pruned.
    pub async fn alone(&self, ctx: &Ctx) -> Result<ImmutableRef, CacheError> {
        if self.record_type() != RecordType::SourceLocal || self.depth() < 2 {
            return Ok(self.clone());
        }
        let key = format!("{KEY}{}", self.id());
        for id in self.cache().find_by_key(&key)? {
            if let Ok(found) = self.cache().get(&id, &DescHandlers::new()) {
                return Ok(found);
            }
        }
        let options = MutableOptions {
            description: self.description().to_owned(),
            record_type: self.record_type(),
            keys: vec![key],
            ..MutableOptions::default()
        };
        Box::pin(self.cache().create_copy(ctx, self, options)).await?.commit().await
    }
}

impl Cache {
    /// A file system with the files of `original` that stands on nothing, to be written to.
    ///
    /// Cancellation safe: what was begun is removed.
    pub async fn create_copy(
        &self,
        ctx: &Ctx,
        original: &ImmutableRef,
        options: MutableOptions,
    ) -> Result<MutableRef, CacheError> {
        let mutable = self.create(ctx, None, options).await?;
        let (from, to) = (original.mount(ctx).await?, mutable.mount().await?);
        let copy = move || {
            let roots = (Root::open(from.path())?, Root::open(to.path())?);
            fs::copy_tree(&roots.0, "", &roots.1, "", &CopyOptions::default()).map(drop)
        };
        self.0.tasks.spawn_blocking("copy of a state", copy).await??;
        Ok(mutable)
    }
}
