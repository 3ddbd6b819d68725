//! A cache in a temporary directory, and repositories in memory.

use std::collections::HashMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use tokio::sync::Barrier;

use crate::archive::Compression;
use crate::archive::Encoder;
use crate::archive::Entry;
use crate::archive::EntryKind;
use crate::archive::Writer;
use crate::cache::Cache;
use crate::cache::Layer;
use crate::content::Connect;
use crate::content::ContentStore;
use crate::content::DescHandler;
use crate::content::DescHandlers;
use crate::content::Opened;
use crate::content::Origin;
use crate::content::ProvideError;
use crate::content::Provider;
use crate::ctx::Ctx;
use crate::db::Db;
use crate::lease::Leases;
use crate::oci::Descriptor;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::media_type;
use crate::snapshot::BootId;
use crate::snapshot::OverlaySnapshotter;
use crate::snapshot::Snapshotter;
use crate::task::Tasks;

/// What all registries have, by digest.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    pub(crate) opens: AtomicU64,
    pub(crate) probes: AtomicU64,
    /// Parts of blobs that were given, and their bytes.
    pub(crate) parts: AtomicU64,
    pub(crate) part_bytes: AtomicU64,
    pub(crate) of_parts: Mutex<OfParts>,
    /// Nobody gets a byte before as many are open as it says.
    pub(crate) barrier: Mutex<Option<Arc<Barrier>>>,
}

/// What becomes of questions for parts of blobs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum OfParts {
    #[default]
    Given,
    /// There is the whole or nothing.
    Ignored,
    /// A byte is wrong.
    Damaged,
    Refused,
}

/// One repository, or a client's store.
#[derive(Debug)]
struct Repository {
    registries: Arc<Registries>,
    origin: Origin,
}

#[async_trait]
impl Provider for Repository {
    async fn open(&self, _: &Ctx, descriptor: &Descriptor, offset: u64) -> Result<Opened, ProvideError> {
        self.registries.opens.fetch_add(1, Ordering::SeqCst);
        let barrier = self.registries.barrier.lock().unwrap().clone();
        if let Some(barrier) = barrier {
            barrier.wait().await;
        }
        let bytes = self.registries.blobs.lock().unwrap().get(&descriptor.digest).cloned();
        let bytes = bytes.ok_or_else(|| ProvideError::gone("it is not there"))?.slice(offset as usize..);
        Ok(Opened::new(offset, stream::once(async move { Ok(bytes) })))
    }

    async fn read_range(
        &self,
        _: &Ctx,
        descriptor: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<Bytes>, ProvideError> {
        let bytes = self.registries.blobs.lock().unwrap().get(&descriptor.digest).cloned();
        let bytes = bytes.ok_or_else(|| ProvideError::gone("it is not there"))?;
        let mut bytes = bytes.slice(range.start as usize..range.end as usize).to_vec();
        match *self.registries.of_parts.lock().unwrap() {
            OfParts::Given => {}
            OfParts::Ignored => return Ok(None),
            OfParts::Damaged => bytes[0] ^= 1,
            OfParts::Refused => return Err(ProvideError::unreachable("busy")),
        }
        self.registries.parts.fetch_add(1, Ordering::SeqCst);
        self.registries.part_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(Some(bytes.into()))
    }

    async fn probe(&self, _: &Ctx, _: &Descriptor) -> Result<(), ProvideError> {
        self.registries.probes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn origin(&self) -> Option<Origin> {
        Some(self.origin.clone())
    }
}

#[derive(Debug)]
struct Ways(Arc<Registries>);

impl Connect for Ways {
    fn provider(&self, origin: &Origin) -> Option<Arc<dyn Provider>> {
        Some(Arc::new(Repository { registries: Arc::clone(&self.0), origin: origin.clone() }))
    }
}

pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    pub(crate) registries: Arc<Registries>,
    pub(crate) db: Db,
    pub(crate) content: ContentStore,
    pub(crate) cache: Cache,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    tasks: Tasks,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        Fixture::open(tempfile::tempdir().unwrap(), Arc::default(), BootId::named("first"))
    }

    fn open(directory: tempfile::TempDir, registries: Arc<Registries>, boot: BootId) -> Fixture {
        let root = directory.path();
        let tasks = Tasks::new();
        let db = Db::open(root.join("db")).unwrap();
        let connect = Arc::new(Ways(Arc::clone(&registries)));
        let content =
            ContentStore::open(&root.join("content"), db.clone(), Leases::new(), connect, tasks.clone());
        let content = content.unwrap();
        let snapshotter = OverlaySnapshotter::open(&root.join("snapshots"), tasks.clone()).unwrap();
        let snapshotter: Arc<dyn Snapshotter> = Arc::new(snapshotter);
        let cache =
            Cache::in_boot(boot, db.clone(), content.clone(), Arc::clone(&snapshotter), tasks.clone(), root);
        // A test asks for what the upkeep does: `recover`, `checkpoint`.
        Fixture { directory, registries, db, content, cache, snapshotter, tasks }
    }

    /// Stops as a daemon does, and starts again. Refs must be dropped before.
    pub(crate) async fn restart(self) -> Fixture {
        self.restart_in("first", |_| {}).await
    }

    /// The same after `change` was made to the root of the snapshots, in a boot of this name.
    pub(super) async fn restart_in(self, boot: &str, change: impl FnOnce(&Path)) -> Fixture {
        let Fixture { directory, registries, db, content, cache, snapshotter, tasks } = self;
        tasks.shutdown().await;
        db.close();
        drop((cache, content, db, snapshotter));
        change(&directory.path().join("snapshots"));
        Fixture::open(directory, registries, BootId::named(boot))
    }

    /// A layer that the registries have, of some bytes made of `name`.
    pub(crate) fn layer(&self, name: &str) -> Layer {
        let bytes = Bytes::from(format!("layer {name}").repeat(20));
        let blob = Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes);
        self.registries.blobs.lock().unwrap().insert(blob.digest, bytes);
        Layer::new(blob, DiffId(Digest::sha256(name)))
    }

    /// A layer that the registries have, with these files.
    pub(crate) fn tar_layer(&self, files: &[(&str, &str)]) -> Layer {
        let entries = files.iter().map(|(name, text)| (Entry::new(*name, EntryKind::File), text.as_bytes()));
        self.layer_of(entries)
    }

    /// A layer that the registries have, with these entries. Sizes are those of the data.
    pub(crate) fn layer_of<'d>(&self, entries: impl IntoIterator<Item = (Entry, &'d [u8])>) -> Layer {
        self.compressed_layer_of(entries, Compression::Gzip)
    }

    /// The same in another compression.
    pub(crate) fn compressed_layer_of<'d>(
        &self,
        entries: impl IntoIterator<Item = (Entry, &'d [u8])>,
        compression: Compression,
    ) -> Layer {
        let mut writer = Writer::new(Vec::new());
        for (mut entry, data) in entries {
            entry.size = data.len() as u64;
            writer.append(&entry, data).unwrap();
        }
        let tar = writer.finish().unwrap();
        let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
        encoder.write_all(&tar).unwrap();
        let bytes = Bytes::from(encoder.finish().unwrap());
        let blob = Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes);
        self.registries.blobs.lock().unwrap().insert(blob.digest, bytes);
        Layer::new(blob, DiffId(Digest::sha256(&tar)))
    }

    /// Waits until the snapshotter has as many snapshots: some go behind.
    pub(crate) async fn snapshots_settle(&self, count: usize) {
        for _ in 0..600 {
            if self.snapshotter.walk().await.unwrap().len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("left: {:?}", self.snapshotter.walk().await.unwrap());
    }

    pub(crate) fn layers(&self, names: impl IntoIterator<Item = impl ToString>) -> Vec<Layer> {
        names.into_iter().map(|name| self.layer(&name.to_string())).collect()
    }

    pub(crate) fn handlers(&self, layers: &[Layer], origin: &Origin) -> DescHandlers {
        let mut handlers = DescHandlers::new();
        for layer in layers {
            let provider = Repository { registries: Arc::clone(&self.registries), origin: origin.clone() };
            handlers.add(layer.blob.digest, DescHandler::new(Arc::new(provider)));
        }
        handlers
    }

    /// Files that say what layers have.
    pub(crate) fn indexes(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("indexes"));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(crate) fn opens(&self) -> u64 {
        self.registries.opens.load(Ordering::SeqCst)
    }
}

pub(crate) fn repository(name: &str) -> Origin {
    Origin::registry("r.example", name)
}
