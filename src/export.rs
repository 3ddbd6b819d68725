//! A result becomes an image, an archive or a push.
//!
//! [`Exporters::plan`] checks what a client asks for before anything is built. [`Export::run`] makes
//! the documents of the image, which needs no bytes of its layers, and then names it or sends it to
//! the client; [`Exported::finish`] pushes it. Only what reads bytes fetches them: an archive fetches
//! its layers into the store, once for all archives; a push passes what the target lacks through.
//!
//! # Cancellation
//!
//! Everything ends with its [`Ctx`] and may be dropped. A push of a blob that others wait for goes on
//! for them. A client's file or blob that was not finished is never taken for whole.

mod annotations;
mod archive;
mod assemble;
mod config;
mod error;
mod image;
mod json;
mod options;
mod push;
mod source;
mod tar;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::content::ContentStore;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::progress::ItemProgress;
use crate::progress::TransferProgress;
use crate::registry::RegistryClient;
use crate::task::Tasks;

pub use crate::cache::ImageList;
pub use annotations::InvalidAnnotation;
pub use config::InvalidConfig;
pub use error::ExportError;
pub use options::Compression;
pub use options::ImageOptions;
pub use options::InvalidOptions;
pub use push::Push;
pub use push::PushFailure;
pub use source::ExportRefs;
pub use source::ExportSource;

use archive::ArchiveExport;
use archive::Format;
use image::ImageExport;
use image::PendingPush;

/// What the exporters of this node share. Clones are the same.
#[derive(Clone, Debug)]
pub struct Exporters {
    content: ContentStore,
    images: ImageList,
    push: Push,
}

/// One export that a client asked for, checked.
#[derive(Clone, Debug)]
pub struct Export {
    exporters: Exporters,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Image(ImageExport),
    Archive(ArchiveExport),
}

/// Where and how the client wants an export.
#[derive(Clone, Copy, Debug)]
pub struct ExportTarget {
    /// Place among the request's exporters, by which the client tells its files apart.
    pub index: usize,
    /// `CompatibilityVersion` of the request; 0 stands for the newest.
    pub compatibility_version: u32,
}

/// An export that is done but for its pushes.
#[derive(Debug)]
pub struct Exported {
    /// Keys for the client.
    pub response: BTreeMap<String, String>,
    /// The image that was exported.
    pub descriptor: Descriptor,
    pending: Vec<PendingPush>,
}

impl Exporters {
    pub fn new(
        content: ContentStore,
        registry: RegistryClient,
        images: ImageList,
        tasks: Tasks,
    ) -> Exporters {
        let push = Push::new(content.clone(), registry, tasks);
        Exporters { content, images, push }
    }

    /// The export of type `kind` with these attributes.
    pub fn plan(&self, kind: &str, attributes: BTreeMap<String, String>) -> Result<Export, ExportError> {
        let kind = match kind {
            "image" => Kind::Image(ImageExport::parse(attributes)?),
            "oci" => Kind::Archive(ArchiveExport::parse(Format::Oci, attributes)?),
            "docker" => Kind::Archive(ArchiveExport::parse(Format::Docker, attributes)?),
            other => return Err(ExportError::Unsupported { what: format!("exporter {other:?}") }),
        };
        Ok(Export { exporters: self.clone(), kind })
    }
}

impl Export {
    /// For people: the name of the vertex that reports the export.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Image(_) => "exporting to image",
            Kind::Archive(archive) => archive.name(),
        }
    }

    /// Exports `source`, reported under the progress of `ctx`.
    ///
    /// Cancellation safe: what was named stays named.
    pub async fn run(
        &self,
        ctx: &Ctx,
        source: &ExportSource,
        target: ExportTarget,
    ) -> Result<Exported, ExportError> {
        match &self.kind {
            Kind::Image(image) => Box::pin(image.run(ctx, &self.exporters, source, target)).await,
            Kind::Archive(archive) => Box::pin(archive.run(ctx, &self.exporters, source, target)).await,
        }
    }
}

impl Exported {
    /// Pushes what is to be pushed, one name after the other.
    ///
    /// Cancellation safe: blobs that arrived stay and are found the next time.
    pub async fn finish(&self, ctx: &Ctx) -> Result<(), ExportError> {
        for push in &self.pending {
            Box::pin(push.run(ctx)).await?;
        }
        Ok(())
    }
}

impl ExportTarget {
    /// True if OCI media types are the default.
    fn defaults_to_oci(self) -> bool {
        self.compatibility_version == 0 || self.compatibility_version >= 30
    }
}

/// A part of the work that is reported as an item while it lives.
struct Step(Option<ItemProgress>);

impl Step {
    fn start(ctx: &Ctx, name: impl Into<String>) -> Step {
        let item = ctx.progress().map(|progress| progress.item(name, ""));
        if let Some(item) = &item {
            item.start(0);
        }
        Step(item)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(item) = &self.0 {
            item.complete();
        }
    }
}
