//! One owned task per blob.

use std::sync::Arc;

use super::ContentError;
use super::DescHandlers;
use super::FetchError;
use super::Inner;
use super::NewBlob;
use crate::ctx::Ctx;
use crate::lease::Lease;
use crate::oci::Descriptor;

#[derive(Debug)]
pub(super) struct Fetch;

impl Inner {
    pub(super) async fn fetch(
        self: &Arc<Self>,
        _ctx: &Ctx,
        _descriptor: &Descriptor,
        _handlers: &DescHandlers,
    ) -> Result<Lease, FetchError> {
        todo!()
    }

    pub(super) async fn write_all(
        self: &Arc<Self>,
        _blobs: Vec<NewBlob>,
    ) -> Result<Vec<(Descriptor, Lease)>, ContentError> {
        todo!()
    }
}
