//! Between files and archives: unpacking a layer, and writing the change set of a snapshot as one.

use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Cache;
use super::CacheError;
use super::adopt::UnpackedAlone;
use super::indexes::Known;
use super::indexes::Of;
use super::materialize::Target;
use super::materialize::Tree;
use super::record::ChangeSet;
use super::record::Layer;
use super::record::Part;
use super::snapshots::SnapshotHold;
use crate::archive::Limits;
use crate::content::BlobReader;
use crate::content::Follower;
use crate::ctx::Ctx;
use crate::fs::Root;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::snapshot::ApplyError;
use crate::snapshot::ApplyOptions;
use crate::snapshot::DiffError;
use crate::snapshot::SnapshotKey;
use crate::snapshot::WhiteoutStyle;
use crate::snapshot::WriteLayer;
use crate::snapshot::apply;
use crate::snapshot::diff_trees;
use crate::snapshot::diff_upper;
use crate::snapshot::write_layer;

/// Bytes that are read of a blob at a time.
const READ_BYTES: usize = 256 << 10;

/// What a change set is read from, on a thread where that may block.
pub(super) enum Changes {
    /// A settled directory.
    Upper { upper: Root, _hold: Arc<SnapshotHold> },
    /// Two whole trees.
    Trees { lower: Option<Tree>, upper: Tree },
}

impl Changes {
    /// Writes them as an uncompressed archive.
    pub(super) fn write(&self, sink: &mut dyn Write, epoch: Option<Timestamp>) -> Result<(), CacheError> {
        let written = || -> Result<(), DiffError> {
            let changes = match self {
                Changes::Upper { upper, .. } => diff_upper(upper)?,
                Changes::Trees { lower, upper } => {
                    let lower = lower.as_ref().map(|tree| Root::open(tree.path())).transpose()?;
                    diff_trees(lower.as_ref(), &Root::open(upper.path())?)?
                }
            };
            write_layer(&changes, &WriteLayer { epoch: epoch.map(Timestamp::as_second) }, sink)
        };
        written().map_err(CacheError::pack)
    }
}

impl Cache {
    /// Unpacks a layer into an active snapshot.
    pub(super) async fn unpack(
        &self,
        layer: &Layer,
        source: Source,
        key: &SnapshotKey,
        below: Below,
        index: Option<Of>,
        token: CancellationToken,
    ) -> Result<(), CacheError> {
        let (digest, expected) = (layer.blob.digest, Some(Expected { diff_id: layer.diff_id, index }));
        match source {
            Source::File(blob) => {
                let reader = Cancellable { inner: Positioned::new(blob), token };
                self.apply_to(digest, expected, reader, key, below).await
            }
            Source::Follower(follower) => {
                self.apply_to(digest, expected, follower.until(token), key, below).await
            }
        }
    }

    /// Applies an archive to an active snapshot. `digest` names the layer in errors.
    async fn apply_to(
        &self,
        digest: Digest,
        expected: Option<Expected>,
        reader: impl Read + Send + 'static,
        key: &SnapshotKey,
        below: Below,
    ) -> Result<(), CacheError> {
        let (snapshotter, indexes) = (self.0.snapshots.snapshotter(), self.0.indexes.clone());
        let (path, mounted, style) = match snapshotter.upper(key) {
            Some(path) => (path, None, WhiteoutStyle::Overlay),
            None => {
                let mounted = snapshotter.mount(key, false).await?;
                (mounted.path().to_path_buf(), Some(mounted), WhiteoutStyle::Plain)
            }
        };
        let work = self.0.tasks.spawn_blocking("unpack layer", move || {
            let unpack = |source: ApplyError| match source {
                ApplyError::NeedsLower { .. } if matches!(below, Below::Unknown) => {
                    CacheError::NeedsLower { digest, unpacked: None }
                }
                source => CacheError::Unpack { digest, source: Arc::new(source) },
            };
            let open = |path: &Path| {
                Root::open(path).map_err(|e| CacheError::Unpack { digest, source: Arc::new(e) })
            };
            let root = open(&path)?;
            let lower = match &below {
                Below::Tree(tree) => Some(open(tree.path())?),
                Below::Nothing | Below::Unknown => None,
            };
            let options = ApplyOptions { style, lower: lower.as_ref(), limits: Limits::default() };
            let applied = apply(&root, &options, reader).map_err(unpack)?;
            drop((root, mounted));
            match expected {
                Some(Expected { diff_id, .. }) if applied.diff_id != diff_id => {
                    Err(CacheError::WrongDiffId { digest, expected: diff_id, actual: applied.diff_id })
                }
                // Those directories would hide the owners and modes of the ones below.
                _ if !applied.implied.is_empty() && matches!(below, Below::Unknown) => {
                    let alone = UnpackedAlone::new(applied.implied, applied.index);
                    Err(CacheError::NeedsLower { digest, unpacked: Some(Arc::new(alone)) })
                }
                Some(Expected { index: Some(of), .. }) if style == WhiteoutStyle::Overlay => {
                    indexes.write(&Known { of, blob: digest, index: applied.index });
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        work.await?
    }

    /// A whole tree with a change set that was made on another one.
    pub(super) async fn replay(
        &self,
        ctx: &Ctx,
        part: &Part,
        made: Arc<SnapshotHold>,
        target: Target,
    ) -> Result<Arc<SnapshotHold>, CacheError> {
        let hold = Arc::new(self.0.snapshots.hold(target.key.clone()).await);
        if self.0.snapshots.is_present(&target.key)? {
            return Ok(hold);
        }
        let changes = self.changes(part, made).await?;
        let cache = self.clone();
        let digest = part.identity().0;
        let done = self.make_snapshot(ctx, target, move |key, below, _token| async move {
            cache.pour(move |sink| changes.write(sink, None), digest, &key, below).await
        });
        done.await?;
        Ok(hold)
    }

    /// Applies the archive that `write` gives to an active snapshot at the same time.
    pub(super) async fn pour(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), CacheError> + Send + 'static,
        digest: Digest,
        key: &SnapshotKey,
        below: Below,
    ) -> Result<(), CacheError> {
        let (reader, mut writer) = io::pipe().map_err(CacheError::pack)?;
        let write = self.0.tasks.spawn_blocking("write changes", move || {
            let written = write(&mut writer);
            drop(writer);
            written
        });
        let applied = self.apply_to(digest, None, reader, key, below).await;
        // The writer's error is the cause of the reader's.
        write.await??;
        applied
    }

    /// What a part changes. The hold keeps its files.
    pub(super) async fn changes(&self, part: &Part, hold: Arc<SnapshotHold>) -> Result<Changes, CacheError> {
        let ChangeSet::Made(made) = &part.set else { return Err(CacheError::NotFound { id: part.record }) };
        let snapshotter = self.0.snapshots.snapshotter();
        if let Some(upper) = snapshotter.upper(&made.snapshot) {
            return Ok(Changes::Upper { upper: Root::open(upper).map_err(CacheError::pack)?, _hold: hold });
        }
        let parents = snapshotter.stat(&made.snapshot).await?.parents;
        let lower = match parents.top() {
            Some(parent) => {
                let hold = Arc::new(self.0.snapshots.hold(parent.clone()).await);
                Some(self.view(vec![hold]).await?)
            }
            None => None,
        };
        Ok(Changes::Trees { lower, upper: self.view(vec![hold]).await? })
    }
}

/// What an archive must be.
#[derive(Clone, Copy, Debug)]
struct Expected {
    diff_id: DiffId,
    /// What its index is of.
    index: Option<Of>,
}

/// Where the bytes of a layer are.
#[derive(Debug)]
pub(super) enum Source {
    File(BlobReader),
    /// On their way.
    Follower(Follower),
}

/// What lies below a change set that is unpacked.
#[derive(Debug)]
pub(super) enum Below {
    Nothing,
    Tree(Tree),
    /// It may lie on anything: it is unpacked alone.
    Unknown,
}

impl CacheError {
    pub(super) fn pack(source: impl std::error::Error + Send + Sync + 'static) -> CacheError {
        CacheError::Pack { source: Arc::new(source) }
    }
}

/// Reads a blob from its start, whatever others do with the file.
pub(super) struct Positioned {
    blob: BlobReader,
    at: u64,
}

impl Positioned {
    pub(super) fn new(blob: BlobReader) -> Positioned {
        Positioned { blob, at: 0 }
    }
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size() - self.at;
        let wanted = buffer.len().min(READ_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX));
        self.blob.read_exact_at(&mut buffer[..wanted], self.at)?;
        self.at += wanted as u64;
        Ok(wanted)
    }
}

/// Fails once its token is cancelled.
struct Cancellable<R> {
    inner: R,
    token: CancellationToken,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.token.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}
