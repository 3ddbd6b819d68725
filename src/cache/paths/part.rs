//! A layer of which a part is enough: its entries come from what is known of it, and the bytes of its files from the
//! ranges of its blob that have them.
//!
//! # Invariants
//!
//! - The snapshot has a name of its own, which says what is in it. Nobody takes it for that of the layer.
//! - Every byte that is used led from one noted state of the diff ID's SHA-256 to the next; the snapshot is committed
//!   only after that.
//! - What can't be had in parts, or is not what it was, is had as a whole: that is no error.
//! - It is made as a layer is, of an archive: of some entries, that is all the difference.
//!
//! # Crash consistency
//!
//! As for every snapshot: one without a row goes after the next start, one with a row when nobody looks at it any more
//! and something is collected.

use std::collections::BTreeSet;
use std::io;
use std::io::Cursor;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;

use super::Look;
use super::select;
use super::select::Access;
use super::select::Part;
use super::select::Selection;
use super::select::Spot;
use crate::archive::ArchiveError;
use crate::archive::Decoder;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Writer;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::footing::Footing;
use crate::cache::indexes::Known;
use crate::cache::materialize::MAX_PARTS;
use crate::cache::materialize::Target;
use crate::cache::record::Layer;
use crate::cache::snapshots::Content;
use crate::cache::snapshots::SnapshotHold;
use crate::cache::snapshots::part_key;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::ctx::Ctx;
use crate::snapshot::IndexContent;
use crate::snapshot::IndexEntry;
use crate::snapshot::IndexedFile;
use crate::snapshot::LayerIndex;
use crate::snapshot::Parents;

impl Cache {
    /// The snapshot of what a layer has at `spots`. `None` if the whole layer costs as little, or there is no other
    /// way. Whoever asks was admitted to the blob.
    ///
    /// Cancellation safe.
    pub(super) async fn open_part(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
        known: &Arc<Known>,
        spots: &Arc<BTreeSet<Spot>>,
        looks: &Arc<[Look]>,
    ) -> Result<Option<Arc<SnapshotHold>>, CacheError> {
        let access = match layer.blob.digest {
            digest if digest == layer.diff_id.0 => Access::Plain,
            _ => Access::Members,
        };
        // Where another blob of the layer can be entered is not known: no bytes of it can be had in parts.
        let enterable = access == Access::Plain || layer.blob.digest == known.blob;
        let (planned, spots, looks) = (Arc::clone(known), Arc::clone(spots), Arc::clone(looks));
        let size = layer.blob.size;
        let plan = self.0.tasks.spawn_blocking("plan a part of a layer", move || {
            let selection = select::select(&planned.index, &spots, &looks)?;
            let parts = select::parts(&planned.index, access, size, &selection)?;
            let paths = selection.iter().map(|at| planned.index.entries()[*at].path.as_slice());
            let key = part_key(planned.of.name(), paths);
            Some((selection, parts, key))
        });
        let Some((selection, parts, key)) = plan.await? else { return Ok(None) };
        let length: u64 = parts.iter().map(Part::length).sum();
        if length > MAX_PARTS as u64 || length > 0 && !enterable {
            return Ok(None);
        }
        let hold = Arc::new(self.0.snapshots.hold(key.clone()).await);
        if self.0.snapshots.is_present(&key)? {
            return Ok(Some(hold));
        }
        let kilobytes = length.div_ceil(1 << 10).min(MAX_PARTS as u64 >> 10) as u32;
        let room = ctx.run(self.0.files.parts.acquire_many(kilobytes)).await;
        // The semaphore is never closed.
        let _room = room.map_err(|_| CacheError::Cancelled)?.ok();
        let read = if parts.is_empty() {
            Some(Vec::new())
        } else {
            let ranges: Vec<_> = parts.iter().map(|part| part.blob.clone()).collect();
            match self.0.content.read_parts(ctx, &layer.blob, handlers, &ranges).await {
                Ok(read) => read,
                Err(FetchError::Cancelled { .. }) => return Err(CacheError::Cancelled),
                // Who asks for all of it is told.
                Err(_) => None,
            }
        };
        let Some(read) = read else { return Ok(None) };
        let parts: Vec<(Part, Bytes)> = parts.into_iter().zip(read).collect();
        let target = Target {
            key,
            of: Content::Part(layer.diff_id),
            parents: Parents::default(),
            lower: Footing::default(),
            alone: true,
            index: None,
        };
        let (cache, known, digest) = (self.clone(), Arc::clone(known), layer.blob.digest);
        let made = self.make_snapshot(ctx, target, move |key, below, _token| async move {
            let write = move |sink: &mut dyn Write| {
                write(&known.index, access, &selection, parts, sink).map_err(CacheError::pack)
            };
            cache.pour(write, digest, &key, below).await
        });
        match made.await {
            Ok(()) => Ok(Some(hold)),
            Err(CacheError::Cancelled) => Err(CacheError::Cancelled),
            Err(error) => {
                tracing::info!(layer = %digest, %error, "a layer is fetched as a whole: a part of it was not to be had");
                Ok(None)
            }
        }
    }
}

/// Writes a selection as an archive: first what has no bytes, then files, then further names of them.
fn write(
    index: &LayerIndex,
    access: Access,
    selection: &Selection,
    parts: Vec<(Part, Bytes)>,
    sink: &mut dyn Write,
) -> Result<(), ArchiveError> {
    let mut archive = Writer::new(sink);
    let mut links = Vec::new();
    for &at in selection {
        let IndexEntry { path, content } = &index.entries()[at];
        match content {
            IndexContent::Whiteout => archive.append(&whiteout(path), io::empty())?,
            IndexContent::Opaque => archive.append(&opaque(path), io::empty())?,
            IndexContent::Present(file) => match &file.kind {
                EntryKind::Hardlink { .. } => links.push(entry(path, file)),
                EntryKind::File if file.size > 0 => {}
                kind => {
                    archive.append(&entry(path, file), io::empty())?;
                    if *kind == EntryKind::Dir && file.opaque {
                        archive.append(&opaque(path), io::empty())?;
                    }
                }
            },
        }
    }
    for (part, bytes) in parts {
        write_files(index, access, &part, bytes, &mut archive)?;
    }
    for link in links {
        archive.append(&link, io::empty())?;
    }
    archive.finish()?;
    Ok(())
}

/// Writes the files whose bytes are in a part, and fails unless they are right.
fn write_files<W: Write>(
    index: &LayerIndex,
    access: Access,
    part: &Part,
    bytes: Bytes,
    archive: &mut Writer<W>,
) -> Result<(), ArchiveError> {
    let bytes = Cursor::new(bytes);
    let mut plain = match access {
        Access::Plain => Decoder::uncompressed(bytes),
        Access::Members => Decoder::new(bytes),
    };
    skip(&mut plain, part.verified.start - part.start)?;
    let verifier = index.checks().verify(&part.verified, plain);
    let mut verified = verifier.ok_or_else(|| damaged("it can't be verified"))?;
    let mut at = part.verified.start;
    for &number in &part.files {
        let Some(file) = select::file(index, number) else { continue };
        let Some(ahead) = file.offset.checked_sub(at) else { return Err(damaged("files overlap").into()) };
        skip(&mut verified, ahead)?;
        let path = &index.entries()[number].path;
        archive.append(&entry(path, file), (&mut verified).take(file.size))?;
        at = file.offset + file.size;
    }
    // Only the end says that all of it was right.
    io::copy(&mut verified, &mut io::sink())?;
    Ok(())
}

fn skip(reader: &mut impl Read, count: u64) -> io::Result<()> {
    if io::copy(&mut reader.take(count), &mut io::sink())? == count {
        return Ok(());
    }
    Err(damaged("it ends too early"))
}

fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a part of a layer: {reason}"))
}

fn entry(path: &[u8], file: &IndexedFile) -> Entry {
    Entry {
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        mtime: file.mtime,
        size: if file.kind == EntryKind::File { file.size } else { 0 },
        xattrs: file.xattrs.clone(),
        ..Entry::new(path, file.kind.clone())
    }
}

/// OCI image specification, `layer.md#whiteouts`.
fn whiteout(path: &[u8]) -> Entry {
    let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    Entry::new([&path[..name], b".wh.", &path[name..]].concat(), EntryKind::File)
}

fn opaque(path: &[u8]) -> Entry {
    Entry::new([path, b"/.wh..wh..opq"].concat(), EntryKind::File)
}
