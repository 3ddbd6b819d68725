//! `oci-layout://`: images of OCI layouts that clients serve through their sessions.
//!
//! The name must have a digest: a client looks tags up in its own `index.json`.

use std::sync::Arc;

use futures::TryStreamExt;

use super::op::LayoutSource;
use super::provide::SessionProvider;
use super::provide::session_error;
use super::resolution::Origin;
use super::resolution::Resolution;
use super::source_error::SourceError;
use crate::content::ContentStore;
use crate::content::ProvideError;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::MAX_MANIFEST_BYTES;
use crate::oci::ManifestOrIndex;
use crate::oci::Platform;
use crate::oci::media_type;
use crate::progress::TransferProgress;
use crate::session::ClientContent;
use crate::session::SessionId;

/// Resolves images of layouts.
#[derive(Clone, Debug)]
pub(super) struct Layouts {
    content: ContentStore,
}

impl Layouts {
    pub(super) fn new(content: ContentStore) -> Layouts {
        Layouts { content }
    }

    /// What `source` stands for at `platform`, reported as `resolve <name>`.
    ///
    /// Cancellation safe: documents that were read are kept.
    pub(super) async fn resolve(
        &self,
        ctx: &Ctx,
        source: &LayoutSource,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let Some(digest) = source.digest else {
            return Err(SourceError::NoDigest { name: source.name.clone() });
        };
        let name = format!("{}@{digest}", source.name);
        let item = ctx.progress().map(|progress| progress.item(format!("resolve {name}"), ""));
        if let Some(item) = &item {
            item.start(0);
        }
        let resolved = ctx.run(Box::pin(self.read(ctx, source, name, digest, platform))).await;
        if let Some(item) = &item {
            item.complete();
        }
        let mut resolution = resolved??;
        resolution.limit(source.layer_limit)?;
        Ok(resolution)
    }

    async fn read(
        &self,
        ctx: &Ctx,
        source: &LayoutSource,
        name: String,
        digest: Digest,
        platform: &Platform,
    ) -> Result<Resolution, SourceError> {
        let store = source.store.as_ref().unwrap_or(&source.name);
        let session = source.session.as_deref().map(SessionId::new);
        let provider = SessionProvider::new(format!("oci:{store}"), session);
        let failed = |cause| SourceError::Layout { name: source.name.clone(), digest, cause };
        // A client's word is needed for the size; nothing else says how large the root is.
        let bytes = Box::pin(root(ctx, &provider, digest)).await.map_err(failed)?;
        let invalid = |cause| SourceError::Manifest { image: name.clone(), digest, cause: Arc::new(cause) };
        let media_type = match ManifestOrIndex::parse("", &bytes).map_err(invalid)? {
            ManifestOrIndex::Manifest(manifest) => stated(manifest.media_type, media_type::OCI_MANIFEST),
            ManifestOrIndex::Index(index) => stated(index.media_type, media_type::OCI_INDEX),
        };
        let root = Descriptor::new(media_type, digest, bytes.len() as u64);
        let origin = Origin { content: &self.content, provider: Arc::new(provider), name };
        Resolution::read(ctx, origin, root, Some(bytes.into()), platform).await
    }
}

fn stated(media_type: String, default: &str) -> String {
    if media_type.is_empty() { default.to_owned() } else { media_type }
}

async fn root(ctx: &Ctx, provider: &SessionProvider, digest: Digest) -> Result<Vec<u8>, ProvideError> {
    let read = move |content: ClientContent| async move {
        let missing = || ProvideError::gone(format!("the client does not have {digest}"));
        let blob = content.info(&digest).await.map_err(session_error)?.ok_or_else(missing)?;
        if blob.size > MAX_MANIFEST_BYTES as u64 {
            return Err(ProvideError::corrupt(format!("{} bytes are too many for a manifest", blob.size)));
        }
        let mut bytes = Vec::new();
        let mut stream = content.read(&digest, 0).await.map_err(session_error)?;
        while let Some(chunk) = stream.try_next().await.map_err(session_error)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_MANIFEST_BYTES {
                return Err(ProvideError::corrupt("more bytes than a manifest may have"));
            }
        }
        if !digest.verifies(&bytes) {
            return Err(ProvideError::corrupt(format!("the client's bytes are not those of {digest}")));
        }
        Ok(bytes)
    };
    Box::pin(provider.with(ctx, read)).await
}
