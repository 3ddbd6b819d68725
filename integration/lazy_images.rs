//! Images from a registry through the worker, the cache and the exporters to registries, in one
//! process: what is asked of whom, request by request.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use thunk::cache::Cache;
use thunk::cache::ImageList;
use thunk::cache::ImmutableRef;
use thunk::cache::PruneOptions;
use thunk::content::ContentStore;
use thunk::ctx::Ctx;
use thunk::db::Db;
use thunk::export::ExportRefs;
use thunk::export::ExportSource;
use thunk::export::ExportTarget;
use thunk::export::Exporters;
use thunk::lease::Leases;
use thunk::oci::Platform;
use thunk::ops::Op;
use thunk::ops::Operate;
use thunk::ops::Origins;
use thunk::ops::Vertex;
use thunk::ops::Worker;
use thunk::ops::llb::Definition;
use thunk::ops::llb::Limits;
use thunk::registry::NoCredentials;
use thunk::registry::RegistryClient;
use thunk::registry::RegistryConfig;
use thunk::snapshot::OverlaySnapshotter;
use thunk::task::Tasks;

use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::disk_usage;
use crate::harness::image::host_platform;
use crate::harness::llb;
use crate::harness::registry::Op as Asked;

/// Layers of the images here.
const LAYERS: usize = 12;

/// Bytes of their layers together.
const BYTES: u64 = 24 << 20;

/// What stands behind a daemon, without the daemon.
struct Stack {
    directory: tempfile::TempDir,
    tasks: Tasks,
    db: Db,
    content: ContentStore,
    cache: Cache,
    worker: Worker,
    exporters: Exporters,
}

impl Stack {
    fn new() -> Stack {
        Stack::open(tempfile::tempdir().unwrap())
    }

    fn open(directory: tempfile::TempDir) -> Stack {
        let root: &Path = directory.path();
        let tasks = Tasks::new();
        let db = Db::open(root.join("db")).unwrap();
        let registry = RegistryClient::new(RegistryConfig::default(), Arc::new(NoCredentials), &tasks);
        let connect = Arc::new(Origins::new(registry.clone()));
        let content =
            ContentStore::open(&root.join("content"), db.clone(), Leases::new(), connect, tasks.clone())
                .unwrap();
        let snapshotter = OverlaySnapshotter::open(&root.join("snapshots"), tasks.clone()).unwrap();
        let cache = Cache::new(db.clone(), content.clone(), Arc::new(snapshotter), tasks.clone(), root);
        let images = ImageList::new(db.clone());
        let worker = Worker::new(cache.clone(), registry.clone(), images.clone(), tasks.clone());
        let exporters = Exporters::new(content.clone(), registry, images, tasks.clone());
        Stack { directory, tasks, db, content, cache, worker, exporters }
    }

    async fn restart(self) -> Stack {
        let Stack { directory, tasks, db, content, cache, worker, exporters } = self;
        tasks.shutdown().await;
        db.close();
        drop((content, cache, worker, exporters, db));
        Stack::open(directory)
    }

    /// The result of an image source.
    async fn pull(&self, ctx: &Ctx, name: &str) -> ImmutableRef {
        let vertex = source(name);
        let map = self.worker.cache_map(ctx, &vertex, 0).await.unwrap();
        assert!(map.opts.get::<thunk::content::DescHandlers>().is_some());
        let [result] = <[_; 1]>::try_from(self.worker.run(ctx, &vertex, &[]).await.unwrap()).unwrap();
        result.expect("the image has layers")
    }

    async fn export(
        &self,
        result: &ImmutableRef,
        attributes: &[(&str, &str)],
        metadata: &[(&str, &str)],
    ) -> BTreeMap<String, String> {
        let ctx = Ctx::background();
        let metadata =
            metadata.iter().map(|(k, v)| ((*k).to_owned(), bytes::Bytes::copy_from_slice(v.as_bytes())));
        let source = ExportSource {
            refs: ExportRefs::Single(Some(result.clone())),
            metadata: metadata.collect(),
            ..ExportSource::default()
        };
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let export = self.exporters.plan("image", attributes).unwrap();
        let target = ExportTarget { index: 0, compatibility_version: 0 };
        let exported = export.run(&ctx, &source, target).await.unwrap();
        exported.finish(&ctx).await.unwrap();
        exported.response
    }

    async fn push(&self, result: &ImmutableRef, name: &str, label: &str) -> BTreeMap<String, String> {
        let config = config(label);
        self.export(result, &[("name", name), ("push", "true")], &[("containerimage.config", &config)]).await
    }
}

/// The vertex of an image, decoded from what a client would send.
fn source(name: &str) -> Vertex {
    let definition = Arc::new(Definition::from_protobuf(&llb::image(name).marshal()).unwrap());
    let graph = definition.decode(&Limits::default()).unwrap().unwrap();
    let vertex = graph.inputs_first().find(|v| matches!(v.op, Op::Image(_))).unwrap();
    Vertex::clone(vertex)
}

/// A configuration as a frontend makes it of a label.
fn config(label: &str) -> String {
    let Platform { os, architecture, .. } = host_platform().parse().unwrap();
    format!(r#"{{"architecture":"{architecture}","os":"{os}","config":{{"Labels":{{"l":"{label}"}}}}}}"#)
}

fn image() -> Image {
    Image::incompressible(7, LAYERS as u64, BYTES)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_asks_for_the_manifest_and_the_config_and_no_layer() {
    let (registry, stack, image) = (TestRegistry::open(), Stack::new(), image());
    registry.put_image("team/base", "1", &image);
    let pulled = stack.pull(&Ctx::background(), &registry.reference("team/base", "1")).await;
    assert_eq!(pulled.parts().len(), LAYERS);
    assert!(pulled.is_lazy());
    assert_eq!(pulled.blobs().map(|l| l.blob.size).sum::<u64>(), image.layer_bytes());
    assert_eq!(registry.blob_gets(), 1, "{}", registry.story());
    registry.forget();
    let again = stack.pull(&Ctx::background(), &registry.reference("team/base", "1")).await;
    assert_eq!(again.id(), pulled.id());
    assert_eq!(
        registry.requests().len(),
        1,
        "one HEAD says that the tag has not moved: {}",
        registry.story()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_change_pushed_to_the_same_repository_moves_no_layer() {
    let (registry, stack, image) = (TestRegistry::open(), Stack::new(), image());
    registry.put_image("team/app", "1", &image);
    let pulled = stack.pull(&Ctx::background(), &registry.reference("team/app", "1")).await;
    registry.forget();
    let response = stack.push(&pulled, &registry.reference("team/app", "2"), "new").await;
    assert_eq!(registry.blob_gets(), 0, "{}", registry.story());
    assert_eq!(registry.uploads(), 1, "the config alone: {}", registry.story());
    assert_eq!(registry.mounts_ok(), 0);
    let stored = registry.manifest("team/app", "2").unwrap();
    assert_eq!(stored.digest, response["containerimage.digest"]);
    registry.forget();
    stack.push(&pulled, &registry.reference("team/app", "2"), "new").await;
    assert_eq!(registry.requests().len(), 1, "what is there is left alone: {}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_of_the_host_mounts_every_layer_lazy_or_not() {
    let (registry, stack, image) = (TestRegistry::open(), Stack::new(), image());
    registry.put_image("team/base", "1", &image);
    let pulled = stack.pull(&Ctx::background(), &registry.reference("team/base", "1")).await;
    registry.forget();
    stack.push(&pulled, &registry.reference("team/app", "1"), "a").await;
    assert_eq!((registry.blob_gets(), registry.mounts_ok()), (0, LAYERS), "{}", registry.story());
    assert_eq!(registry.uploads(), 1, "the config alone");
    pulled.unlazy(&Ctx::background()).await.unwrap();
    registry.forget();
    stack.push(&pulled, &registry.reference("other/app", "1"), "a").await;
    assert_eq!((registry.blob_gets(), registry.mounts_ok()), (0, LAYERS), "{}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_registry_gets_each_blob_once_and_the_disk_none() {
    let (from, to, stack, image) = (TestRegistry::open(), TestRegistry::open(), Stack::new(), image());
    from.put_image("team/base", "1", &image);
    let pulled = stack.pull(&Ctx::background(), &from.reference("team/base", "1")).await;
    from.forget();
    stack.push(&pulled, &to.reference("copy/base", "1"), "a").await;
    for digest in image.layer_digests() {
        assert_eq!(from.gets_of(digest), 1);
        assert!(to.has_blob("copy/base", digest));
    }
    assert_eq!(to.uploads(), LAYERS + 1, "{}", to.story());
    assert!(pulled.is_lazy(), "nothing was kept");
    let used = disk_usage(stack.directory.path());
    assert!(used < 4 << 20, "{used} bytes on disk");
    // What was pushed is an origin: a second repository there mounts.
    to.forget();
    stack.push(&pulled, &to.reference("copy/other", "1"), "a").await;
    assert_eq!(to.mounts_ok(), LAYERS, "{}", to.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_and_a_prune_of_all_else_the_layers_are_mounted_still() {
    let (registry, stack, image) = (TestRegistry::open(), Stack::new(), image());
    registry.put_image("team/base", "1", &image);
    registry.put_image("team/other", "1", &Image::incompressible(8, 2, 1 << 20));
    let id = stack.pull(&Ctx::background(), &registry.reference("team/base", "1")).await.id();
    let stack = stack.restart().await;
    let kept = stack.cache.get(&id, &thunk::content::DescHandlers::new()).unwrap();
    drop(stack.pull(&Ctx::background(), &registry.reference("team/other", "1")).await);
    let pruned: Vec<_> =
        stack.cache.prune(PruneOptions { all: true, ..PruneOptions::default() }).try_collect().await.unwrap();
    assert_eq!(pruned.len(), 2);
    registry.forget();
    stack.push(&kept, &registry.reference("team/app", "1"), "a").await;
    assert_eq!((registry.blob_gets(), registry.mounts_ok()), (0, LAYERS), "{}", registry.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pushes_of_one_image_send_each_blob_once() {
    let (from, to, stack, image) = (TestRegistry::open(), TestRegistry::open(), Stack::new(), image());
    from.put_image("team/base", "1", &image);
    let pulled = stack.pull(&Ctx::background(), &from.reference("team/base", "1")).await;
    from.forget();
    let hold = to.hold(Asked::BlobHead);
    let names: Vec<String> = (0..8).map(|n| to.reference("copy/base", &n.to_string())).collect();
    let pushes = futures::future::join_all(names.iter().map(|name| stack.push(&pulled, name, "a")));
    let release = async {
        hold.reached().await;
        hold.release();
    };
    let (responses, ()) = tokio::join!(pushes, release);
    assert!(
        responses.windows(2).all(|pair| pair[0]["containerimage.digest"] == pair[1]["containerimage.digest"])
    );
    for digest in image.layer_digests() {
        assert_eq!(from.gets_of(digest), 1, "{}", from.story());
    }
    assert_eq!(to.tags("copy/base").len(), 8);
    assert_eq!(to.uploads(), LAYERS + 1, "{}", to.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_named_here_is_resolved_without_its_registry() {
    let (registry, stack, image) = (TestRegistry::open(), Stack::new(), image());
    registry.put_image("team/base", "1", &image);
    let name = registry.reference("team/base", "1");
    let pulled = stack.pull(&Ctx::background(), &name).await;
    let response =
        stack.export(&pulled, &[("name", &name)], &[("containerimage.config", &config("x"))]).await;
    assert_eq!(response["image.name"], name);
    drop(pulled);
    registry.go_down();
    let found = stack.pull(&Ctx::background(), &name).await;
    assert_eq!(found.parts().len(), LAYERS);
    assert!(found.is_lazy());
}
