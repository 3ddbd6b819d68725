//! The `local` exporter: the files of a result into a directory of the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ExportError;
use super::ExportTarget;
use super::Exported;
use super::Exporters;
use super::files::FilesOptions;
use super::files::ResultFiles;
use super::options::InvalidOptions;
use super::source::ExportSource;
use crate::ctx::Ctx;
use crate::progress::TransferProgress;
use crate::session::DirectorySend;
use crate::session::Session;
use crate::session::SessionError;

/// Attributes of the `local` exporter.
#[derive(Clone, Debug)]
pub(super) struct LocalExport {
    options: FilesOptions,
    mode: Mode,
}

/// What becomes of files of the client that the result does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// They stay.
    Copy,
    /// The client removes them.
    Delete,
}

impl Mode {
    /// Takes its attribute out of `attributes`.
    pub(super) fn parse(attributes: &mut BTreeMap<String, String>) -> Result<Mode, InvalidOptions> {
        match attributes.remove("mode").as_deref() {
            None | Some("" | "copy") => Ok(Mode::Copy),
            Some("delete") => Ok(Mode::Delete),
            Some(value) => Err(InvalidOptions::Mode { value: value.to_owned() }),
        }
    }
}

impl LocalExport {
    pub(super) fn parse(mut attributes: BTreeMap<String, String>) -> Result<LocalExport, ExportError> {
        let mode = Mode::parse(&mut attributes)?;
        Ok(LocalExport { options: FilesOptions::parse(&mut attributes)?, mode })
    }

    pub(super) async fn run(
        &self,
        ctx: &Ctx,
        exporters: &Exporters,
        source: &ExportSource,
        target: ExportTarget,
    ) -> Result<Exported, ExportError> {
        let split = self.options.split.unwrap_or(source.is_multi_platform());
        let files = ResultFiles::mount(ctx, &exporters.tasks, source, &self.options, split).await?;
        let sessions = ctx.sessions().any(async |session: Session| Ok::<_, SessionError>(session));
        let session = ctx.run(sessions).await??;
        let name = match files.only_platform() {
            Some(platform) => format!("copying files {platform}"),
            None => "copying files".to_owned(),
        };
        let item = ctx.progress().map(|progress| progress.item(name, "transferring"));
        if let Some(item) = &item {
            item.start(0);
        }
        let progress = |bytes| {
            if let Some(item) = &item {
                item.update(bytes);
            }
        };
        let to = DirectorySend { exporter: target.index, whole: self.mode == Mode::Delete };
        let sent = session.file_send_dir(&exporters.tasks, to, Arc::new(files), progress);
        let sent = ctx.run(Box::pin(sent)).await?;
        if let Some(item) = &item {
            item.complete();
        }
        let sent = sent?;
        tracing::debug!(?sent, "exported to a directory");
        Ok(Exported::files())
    }
}
