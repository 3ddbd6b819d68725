//! A result becomes an image, an archive, files of the client or a push.
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
mod attestation;
mod config;
mod error;
mod files;
mod image;
mod json;
mod local;
mod options;
mod push;
mod source;
mod tar;
mod tarball;

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
pub use attestation::Attestation;
pub use attestation::AttestationError;
pub use attestation::AttestationKind;
pub use attestation::Subject;
pub use attestation::SubjectKind;
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
use local::LocalExport;
use tarball::TarExport;

/// What the exporters of this node share. Clones are the same.
#[derive(Clone, Debug)]
pub struct Exporters {
    content: ContentStore,
    images: ImageList,
    push: Push,
    /// Run what blocks.
    tasks: Tasks,
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
    Local(LocalExport),
    Tar(TarExport),
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
    /// The image that was exported, if it was one.
    pub descriptor: Option<Descriptor>,
    pending: Vec<PendingPush>,
}

impl Exporters {
    pub fn new(
        content: ContentStore,
        registry: RegistryClient,
        images: ImageList,
        tasks: Tasks,
    ) -> Exporters {
        let push = Push::new(content.clone(), registry, tasks.clone());
        Exporters { content, images, push, tasks }
    }

    /// The export of type `kind` with these attributes.
    pub fn plan(&self, kind: &str, attributes: BTreeMap<String, String>) -> Result<Export, ExportError> {
        let kind = match kind {
            "image" => Kind::Image(ImageExport::parse(attributes)?),
            "oci" => Kind::Archive(ArchiveExport::parse(Format::Oci, attributes)?),
            "docker" => Kind::Archive(ArchiveExport::parse(Format::Docker, attributes)?),
            "local" => Kind::Local(LocalExport::parse(attributes)?),
            "tar" => Kind::Tar(TarExport::parse(attributes)?),
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
            Kind::Local(_) => "exporting to client directory",
            Kind::Tar(_) => "exporting to client tarball",
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
            Kind::Local(local) => Box::pin(local.run(ctx, &self.exporters, source, target)).await,
            Kind::Tar(tar) => Box::pin(tar.run(ctx, &self.exporters, source, target)).await,
        }
    }
}

impl Exported {
    /// An export that clients need no keys for.
    fn files() -> Exported {
        Exported { response: BTreeMap::new(), descriptor: None, pending: Vec::new() }
    }

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
