//! Images made of layers that nobody may read.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::assemble::Image;
use super::assemble::assemble;
use super::image::prepare;
use super::*;
use crate::cache::Cache;
use crate::cache::ImmutableRef;
use crate::cache::Layer;
use crate::cache::RefOptions;
use crate::content::Connect;
use crate::content::DescHandler;
use crate::content::DescHandlers;
use crate::content::Opened;
use crate::content::Origin;
use crate::content::ProvideError;
use crate::content::Provider;
use crate::db::Db;
use crate::lease::Leases;
use crate::oci::DiffId;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::oci::media_type;
use crate::snapshot::OverlaySnapshotter;

/// Fails the test when a byte is wanted.
#[derive(Debug)]
struct Untouched;

#[async_trait]
impl Provider for Untouched {
    async fn open(&self, _: &Ctx, descriptor: &Descriptor, _: u64) -> Result<Opened, ProvideError> {
        panic!("{} was opened", descriptor.digest)
    }

    async fn probe(&self, _: &Ctx, descriptor: &Descriptor) -> Result<(), ProvideError> {
        panic!("{} was probed", descriptor.digest)
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin::registry("r.example", "base"))
    }
}

impl Connect for Untouched {
    fn provider(&self, _: &Origin) -> Option<Arc<dyn Provider>> {
        Some(Arc::new(Untouched))
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    cache: Cache,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let (root, tasks) = (directory.path(), Tasks::new());
        let db = Db::open(root.join("db")).unwrap();
        let connect = Arc::new(Untouched);
        let content =
            ContentStore::open(&root.join("content"), db.clone(), Leases::new(), connect, tasks.clone());
        let snapshotter = OverlaySnapshotter::open(&root.join("snapshots"), tasks.clone()).unwrap();
        let cache = Cache::new(db, content.unwrap(), Arc::new(snapshotter), tasks, root);
        Fixture { _directory: directory, cache }
    }

    async fn state(&self, layers: Vec<Layer>) -> ImmutableRef {
        let mut handlers = DescHandlers::new();
        for layer in &layers {
            handlers.add(layer.blob.digest, DescHandler::new(Arc::new(Untouched)));
        }
        self.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap()
    }
}

fn layer(name: &str, media_type: &str) -> Layer {
    let mut blob = Descriptor::of(media_type, name.as_bytes());
    blob.annotations.insert("vendor".into(), "dropped".into());
    let mut layer = Layer::new(blob, DiffId(Digest::sha256(format!("diff {name}"))));
    layer.created = Some("2020-01-02T03:04:05Z".into());
    layer.created_by = Some(format!("ADD {name}"));
    layer
}

async fn exported(
    refs: ExportRefs,
    metadata: &[(&str, &str)],
    attributes: &[(&str, &str)],
) -> Result<Image, ExportError> {
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let metadata = text(metadata).into_iter().map(|(k, v)| (k, Bytes::from(v))).collect();
    let source = ExportSource { refs, metadata, ..ExportSource::default() };
    let (options, rest) = ImageOptions::parse(text(attributes), true)?;
    let target = ExportTarget { index: 0, compatibility_version: 0 };
    let (source, options) = prepare(&options, &rest, &source, target, false)?;
    assemble(&Ctx::background(), &Tasks::new(), &source, &options, &|_| ()).await
}

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux"}"#;

fn manifest(image: &Image) -> &str {
    str::from_utf8(&image.manifests.last().unwrap().bytes).unwrap()
}

#[tokio::test]
async fn a_manifest_is_written_as_other_builders_write_it() {
    let f = Fixture::new();
    let state = f.state(vec![layer("a", media_type::DOCKER_LAYER_GZIP)]).await;
    let image = exported(
        ExportRefs::Single(Some(state)),
        &[("containerimage.config", CONFIG)],
        &[("annotation.org.example", "a&b")],
    )
    .await
    .unwrap();
    let (diff, blob) = (Digest::sha256("diff a"), Digest::sha256("a"));
    let config = format!(
        concat!(
            r#"{{"architecture":"amd64","created":"2020-01-02T03:04:05Z","history":[{{"created":"2020-01-02T03:04:05Z","#,
            r#""created_by":"ADD a","comment":"buildkit.exporter.image.v0"}}],"os":"linux","#,
            r#""rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#
        ),
        diff
    );
    assert_eq!(str::from_utf8(&image.configs[0].bytes).unwrap(), config);
    let expected = format!(
        r#"{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {{
    "mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "{}",
    "size": {}
  }},
  "layers": [
    {{
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "{blob}",
      "size": 1
    }}
  ],
  "annotations": {{
    "org.example": "a\u0026b"
  }}
}}"#,
        Digest::sha256(&config),
        config.len()
    );
    assert_eq!(manifest(&image), expected);
    assert_eq!(image.root.digest, Digest::sha256(&expected));
    assert_eq!(image.root.platform, Some("linux/amd64".parse().unwrap()));
}

#[tokio::test]
async fn an_empty_result_is_an_image_without_layers() {
    let image = exported(ExportRefs::default(), &[("containerimage.config", CONFIG)], &[]).await.unwrap();
    assert!(manifest(&image).contains("\"layers\": null"), "as Go writes it");
    assert!(image.layers.is_empty());
}

#[tokio::test]
async fn platforms_become_an_index_with_the_annotations_of_each() {
    let f = Fixture::new();
    let (amd, arm) = (
        f.state(vec![layer("shared", media_type::OCI_LAYER), layer("amd", media_type::OCI_LAYER_ZSTD)]).await,
        f.state(vec![layer("shared", media_type::OCI_LAYER), layer("arm", media_type::OCI_LAYER_ZSTD)]).await,
    );
    let platforms = r#"{"Platforms":[
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
        {"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#;
    let arm_config = CONFIG.replace("amd64", "arm64");
    let metadata = [
        ("refs.platforms", platforms),
        ("containerimage.config/linux/amd64", CONFIG),
        ("containerimage.config/linux/arm64", &arm_config),
        ("annotation-index.i", "1"),
        ("annotation-manifest-descriptor[linux/arm64].d", "2"),
        ("annotation[linux/arm64].m", "3"),
    ];
    let refs = [("linux/amd64".to_owned(), Some(amd)), ("linux/arm64".to_owned(), Some(arm))];
    let refs = ExportRefs::Platforms(refs.into());
    let image = exported(refs.clone(), &metadata, &[]).await.unwrap();
    let index: crate::oci::Index = serde_json::from_str(manifest(&image)).unwrap();
    assert_eq!(image.root.media_type, media_type::OCI_INDEX);
    assert_eq!(index.annotations["i"], "1");
    let offered: Vec<_> = index.manifests.iter().map(|m| m.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(offered, ["linux/amd64", "linux/arm64"]);
    assert_eq!(index.manifests[1].annotations["d"], "2");
    assert!(index.manifests[0].annotations.is_empty());
    let second: crate::oci::Manifest = serde_json::from_slice(&image.manifests[1].bytes).unwrap();
    assert_eq!(second.annotations["m"], "3");
    assert_eq!(image.layers.len(), 3, "a shared layer is listed once");
    assert_eq!(image.config_digest, None);
    assert!(matches!(
        exported(refs.clone(), &metadata, &[("oci-mediatypes", "false")]).await,
        Err(ExportError::AnnotationsNeedOci)
    ));
    let unknown = [("annotation[linux/s390x].m", "3")];
    assert!(matches!(
        exported(refs, &metadata, &unknown).await,
        Err(ExportError::AnnotationPlatform { platform }) if platform == "linux/s390x"
    ));
}

#[tokio::test]
async fn layers_stay_as_they_are_or_the_export_says_what_it_cannot_do() {
    let f = Fixture::new();
    let state = f.state(vec![layer("z", media_type::OCI_LAYER_ZSTD)]).await;
    let single = async |attributes: &[(&str, &str)]| {
        let refs = ExportRefs::Single(Some(state.clone()));
        exported(refs, &[("containerimage.config", CONFIG)], attributes).await
    };
    let kept = single(&[("compression", "gzip")]).await.unwrap();
    assert_eq!(kept.layers[0].listed.media_type, media_type::OCI_LAYER_ZSTD);
    let docker = single(&[("oci-mediatypes", "false"), ("oci-artifact", "false")]).await.unwrap();
    assert_eq!(docker.layers[0].listed.media_type, media_type::DOCKER_LAYER_ZSTD);
    assert_eq!(docker.configs[0].descriptor.media_type, media_type::DOCKER_CONFIG);
    assert!(single(&[("compression", "zstd"), ("force-compression", "true")]).await.is_ok());
    let estargz = single(&[("compression", "estargz"), ("force-compression", "")]).await;
    assert!(matches!(estargz, Err(ExportError::Unsupported { .. })));
    let rewritten = single(&[("rewrite-timestamp", "true")]).await;
    assert!(rewritten.is_ok(), "without an epoch there is nothing to rewrite");
    let base = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::sha256("diff z"));
    let metadata = [("containerimage.config", CONFIG), ("containerimage.base.config", &base)];
    let attributes = [("rewrite-timestamp", "true"), ("source-date-epoch", "1")];
    assert!(
        exported(ExportRefs::Single(Some(state.clone())), &metadata, &attributes).await.is_ok(),
        "layers of the base keep their times"
    );
}

#[tokio::test]
async fn a_foreign_layer_is_distributed_unless_that_is_not_wanted() {
    let f = Fixture::new();
    let mut foreign = layer("windows", media_type::DOCKER_FOREIGN_LAYER_GZIP);
    foreign.blob.urls = vec!["https://example.com/x".into()];
    let state = f.state(vec![foreign.clone()]).await;
    let image = async |attributes: &[(&str, &str)]| {
        let refs = ExportRefs::Single(Some(state.clone()));
        exported(refs, &[("containerimage.config", CONFIG)], attributes).await.unwrap()
    };
    let shared = image(&[]).await;
    assert_eq!(shared.layers[0].listed.media_type, media_type::OCI_LAYER_GZIP);
    assert!(shared.layers[0].listed.urls.is_empty());
    assert_eq!(shared.layers[0].blob, foreign.blob, "its bytes still come from its own URL");
    let kept = image(&[("prefer-nondist-layers", "true")]).await;
    assert_eq!(kept.layers[0].listed.media_type, media_type::OCI_FOREIGN_LAYER_GZIP);
    assert_eq!(kept.layers[0].listed.urls, foreign.blob.urls);
}

#[tokio::test]
async fn one_platform_has_neither_an_index_nor_annotations_of_one() {
    let metadata = [("containerimage.config", CONFIG)];
    for (attributes, ok) in [
        (&[("annotation-index.a", "b")][..], false),
        (&[("annotation-index-descriptor.a", "b")], false),
        (&[("annotation-manifest-descriptor.a", "b")], true),
    ] {
        let image = exported(ExportRefs::default(), &metadata, attributes).await;
        assert_eq!(image.is_ok(), ok, "{attributes:?}");
        if let Ok(image) = image {
            assert_eq!(image.root.annotations["a"], "b");
        }
    }
    assert_eq!(Platform::host().os, "linux");
}
