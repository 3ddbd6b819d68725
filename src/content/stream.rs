//! Passing a remote blob through.

use std::sync::Arc;

use super::BlobStream;
use super::DescHandlers;
use super::FetchError;
use super::Inner;
use crate::ctx::Ctx;
use crate::oci::Descriptor;

impl Inner {
    pub(super) async fn stream(
        self: &Arc<Self>,
        _ctx: &Ctx,
        _descriptor: &Descriptor,
        _handlers: &DescHandlers,
    ) -> Result<BlobStream, FetchError> {
        todo!()
    }
}
