//! The `tar` exporter: the files of a result as one archive for the client.
//!
//! A thread writes the archive into a channel of a few chunks, so that memory does not grow with it.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ExportError;
use super::ExportTarget;
use super::Exported;
use super::Exporters;
use super::Step;
use super::files::FilesOptions;
use super::files::ResultFiles;
use super::local::Mode;
use super::source::ExportSource;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Writer;
use crate::ctx::Ctx;
use crate::fs::FileTime;
use crate::session::FileSend;
use crate::session::Session;
use crate::session::fsutil::FileKind;
use crate::session::fsutil::FileStat;
use crate::session::fsutil::TreeSource as _;

/// Bytes of a chunk, and chunks under way to the client.
const CHUNK: usize = 256 << 10;
const AHEAD: usize = 4;

const HALF_A_SECOND: u32 = 500_000_000;

/// Attributes of the `tar` exporter.
#[derive(Clone, Debug)]
pub(super) struct TarExport {
    options: FilesOptions,
}

impl TarExport {
    pub(super) fn parse(mut attributes: BTreeMap<String, String>) -> Result<TarExport, ExportError> {
        // A client may send it, and it counts for nothing here.
        Mode::parse(&mut attributes)?;
        Ok(TarExport { options: FilesOptions::parse(&mut attributes)? })
    }

    pub(super) async fn run(
        &self,
        ctx: &Ctx,
        exporters: &Exporters,
        source: &ExportSource,
        target: ExportTarget,
    ) -> Result<Exported, ExportError> {
        let files =
            ResultFiles::mount(ctx, &exporters.tasks, source, &self.options, source.is_multi_platform())
                .await?;
        let opened = ctx
            .sessions()
            .any(async |session: Session| session.file_send(target.index, &BTreeMap::new()).await);
        let mut file = ctx.run(opened).await??;
        let step = Step::start(ctx, "sending tarball");
        let (chunks, written) = mpsc::channel(AHEAD);
        let archive = exporters.tasks.spawn_blocking("tar exporter", move || write(&files, chunks));
        ctx.run(send(&mut file, written)).await??;
        // An archive that was not written whole is never finished: the drop of the file says so to the client.
        archive.await??;
        ctx.run(file.finish()).await??;
        drop(step);
        Ok(Exported::files())
    }
}

/// Sends chunks until there are no more, or the client takes no more.
async fn send(file: &mut FileSend, mut chunks: mpsc::Receiver<Bytes>) -> Result<(), ExportError> {
    while let Some(chunk) = chunks.recv().await {
        if !file.append(chunk).await? {
            // The writer finds the channel closed, and that is no failure of the export.
            while chunks.recv().await.is_some() {}
            break;
        }
    }
    Ok(())
}

fn write(files: &ResultFiles, chunks: mpsc::Sender<Bytes>) -> Result<(), ExportError> {
    let mut writer = Writer::new(Chunks { chunk: Vec::with_capacity(CHUNK), chunks });
    let mut failed = None;
    files.walk(&mut |stat| {
        let entry = entry(&stat);
        let appended = match entry.kind {
            EntryKind::File if entry.size > 0 => match files.open(&stat.path) {
                Ok(data) => writer.append(&entry, data),
                Err(error) => Err(error.into()),
            },
            _ => writer.append(&entry, io::empty()),
        };
        match appended {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    writer.finish()?.flush().map_err(crate::archive::ArchiveError::from)?;
    Ok(())
}

fn entry(stat: &FileStat) -> Entry {
    let kind = match &stat.kind {
        FileKind::File => EntryKind::File,
        FileKind::Directory => EntryKind::Dir,
        FileKind::Symlink { target } => EntryKind::Symlink { target: target.clone() },
        FileKind::HardLink { target } => EntryKind::Hardlink { target: target.clone() },
        FileKind::CharDevice { major, minor } => EntryKind::CharDevice { major: *major, minor: *minor },
        FileKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major: *major, minor: *minor },
        FileKind::Fifo => EntryKind::Fifo,
    };
    let size = if kind == EntryKind::File { stat.size } else { 0 };
    let xattrs = stat.xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone()));
    Entry {
        mode: stat.mode,
        uid: stat.owner.uid.into(),
        gid: stat.owner.gid.into(),
        mtime: (rounded(stat.mtime), 0),
        size,
        xattrs: xattrs.collect(),
        ..Entry::new(stat.path.clone(), kind)
    }
}

/// To the nearest second: archives of this exporter have no finer times.
fn rounded(time: FileTime) -> i64 {
    time.seconds.saturating_add(i64::from(time.nanos >= HALF_A_SECOND))
}

/// Collects what is written into chunks.
struct Chunks {
    chunk: Vec<u8>,
    chunks: mpsc::Sender<Bytes>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        let closed = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client takes no more");
        self.chunks.blocking_send(chunk.into()).map_err(closed)
    }
}
