//! The difference of two states.
//!
//! Where the lower state's change sets are the lowest of the upper one's, the difference is those above
//! them, and stays as lazy as they are. Otherwise both are compared file by file.

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::LayerOptions;
use super::MutableOptions;
use super::RefOptions;
use super::footing::Footing;
use super::plan::Plan;
use super::stack::Stack;
use super::unpack::Below;
use super::unpack::Changes;
use crate::content::DescHandlers;
use crate::ctx::Ctx;

impl Cache {
    /// What turns `lower` into `upper`; `None` if nothing does. A state that is `None` is empty.
    ///
    /// Cancellation safe.
    pub async fn diff(
        &self,
        ctx: &Ctx,
        lower: Option<&ImmutableRef>,
        upper: Option<&ImmutableRef>,
        options: RefOptions,
    ) -> Result<Option<ImmutableRef>, CacheError> {
        let (lower_parts, upper_parts) = (
            lower.map(ImmutableRef::parts).unwrap_or_default(),
            upper.map(ImmutableRef::parts).unwrap_or_default(),
        );
        let (lower, upper) = match (lower, upper) {
            (None, upper) => return Ok(upper.cloned()),
            (Some(lower), upper) => (lower, upper),
        };
        if let Some(upper) = upper
            && let Some(above) = upper_parts.strip_prefix(lower_parts.as_slice())
        {
            let Some(plan) = Plan::of_slice(above, options) else { return Ok(None) };
            let handlers = upper.handlers().clone();
            let stack = Stack::default().with(above.to_vec());
            return Ok(Some(self.make(plan, Vec::new(), stack, handlers).await?));
        }
        self.compare(ctx, lower, upper, options).await.map(Some)
    }

    async fn compare(
        &self,
        ctx: &Ctx,
        lower: &ImmutableRef,
        upper: Option<&ImmutableRef>,
        options: RefOptions,
    ) -> Result<ImmutableRef, CacheError> {
        let view = async |state: &ImmutableRef| {
            let footing = self.stand_on(ctx, state.stack(), state.handlers()).await?;
            self.view(footing).await
        };
        let below = view(lower).await?;
        let above = match upper {
            Some(upper) => view(upper).await?,
            None => self.view(Footing::default()).await?,
        };
        let changes = Changes::Trees { lower: Some(below), upper: above };
        if !self.0.snapshots.stacks() {
            // A whole tree can't say what is not there; an archive can.
            let (_, growth) = self.0.content.growing();
            let packed = self.pack_changes(changes, LayerOptions::default(), growth);
            let layer = ctx.run(packed).await.map_err(|_| CacheError::Cancelled)??;
            return self.get_by_blob(layer, None, &DescHandlers::new(), options).await;
        }
        let made = MutableOptions {
            description: options.description,
            record_type: options.record_type,
            ..MutableOptions::default()
        };
        let made = self.create(ctx, None, made).await?;
        let name = lower.chain().0;
        // Who leaves in the middle must not take the directory away from under the threads that fill it.
        let cache = self.clone();
        let poured = self.0.tasks.spawn("compare files", async move {
            cache.pour(move |sink| changes.write(sink, None), name, made.snapshot(), Below::Nothing).await?;
            made.commit().await
        });
        ctx.run(poured).await.map_err(|_| CacheError::Cancelled)??
    }
}
