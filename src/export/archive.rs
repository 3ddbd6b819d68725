//! The `oci` and `docker` exporters: an image as an archive, or blob by blob, to the client.
//!
//! Layers are fetched into the store, all at the same time and once for all archives that want them,
//! and sent while the others are on their way. What is in memory does not grow with the image.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ExportError;
use super::ExportTarget;
use super::Exported;
use super::Exporters;
use super::Step;
use super::assemble::Image;
use super::assemble::assemble;
use super::image::prepare;
use super::image::response;
use super::json;
use super::options::ImageOptions;
use super::options::parse_flag;
use super::source::ExportSource;
use super::tar;
use crate::content::Follower;
use crate::ctx::Ctx;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Reference;
use crate::oci::annotation;
use crate::oci::media_type;
use crate::session::ClientContent;
use crate::session::FileSend;
use crate::session::Sent;
use crate::session::Session;
use crate::session::SessionError;

/// Blobs that are sent to a client's content store at the same time.
const CONCURRENT: usize = 4;

/// Fetches of one archive that are asked for at the same time. The limits per host are the registry
/// client's.
const FETCHES: usize = 64;

/// `org.opencontainers.image.created` (OCI image specification, `annotations.md`).
const CREATED: &str = "org.opencontainers.image.created";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Oci,
    Docker,
}

/// Attributes of the `oci` and `docker` exporters.
#[derive(Clone, Debug)]
pub(super) struct ArchiveExport {
    format: Format,
    options: ImageOptions,
    /// One file; else the client's content store.
    tar: bool,
    metadata: BTreeMap<String, String>,
}

impl ArchiveExport {
    pub(super) fn parse(
        format: Format,
        attributes: BTreeMap<String, String>,
    ) -> Result<ArchiveExport, ExportError> {
        let (options, mut metadata) = ImageOptions::parse(attributes, false)?;
        let tar = match metadata.remove("tar") {
            Some(value) => parse_flag("tar", &value)?,
            None => true,
        };
        Ok(ArchiveExport { format, options, tar, metadata })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.format {
            Format::Oci => "exporting to oci image format",
            Format::Docker => "exporting to docker image format",
        }
    }

    pub(super) async fn run(
        &self,
        ctx: &Ctx,
        exporters: &Exporters,
        source: &ExportSource,
        target: ExportTarget,
    ) -> Result<Exported, ExportError> {
        if self.format == Format::Docker && source.is_multi_platform() {
            return Err(ExportError::DockerIndex);
        }
        let is_oci = self.format == Format::Oci;
        let (source, options) = prepare(&self.options, &self.metadata, source, target, is_oci)?;
        let image = Box::pin(assemble(ctx, &exporters.tasks, &source, &options, &|_| ())).await?;
        let mut root = image.root.clone();
        if !root.annotations.contains_key(CREATED) {
            let epoch = match options.epoch {
                Some(epoch) => epoch,
                None => source.epoch(None)?,
            };
            let created = epoch.unwrap_or_else(Timestamp::now).as_second();
            let created = Timestamp::from_second(created).unwrap_or(Timestamp::UNIX_EPOCH);
            root.annotations.insert(CREATED.to_owned(), created.to_string());
        }
        let mut response = response(&image, &root)?;
        let names = normalised(&options.name_of(&source))?;
        if !names.is_empty() {
            let list: Vec<String> = names.iter().map(Reference::to_string).collect();
            response.insert("image.name".to_owned(), list.join(","));
        }
        let sender = Sender { ctx, exporters, image: &image };
        if self.tar {
            let archive = Archive::new(self.format, &image, &root, &names)?;
            Box::pin(sender.send_archive(&archive, target.index, &response)).await?;
        } else {
            Box::pin(sender.send_blobs()).await?;
        }
        Ok(Exported { response, descriptor: Some(root), pending: Vec::new() })
    }
}

/// Full names with tags; none for no name.
fn normalised(names: &str) -> Result<Vec<Reference>, ExportError> {
    let parse = |name: &str| Ok(name.parse::<Reference>()?.with_default_tag());
    if names.is_empty() { Ok(Vec::new()) } else { names.split(',').map(parse).collect() }
}

/// The entries of an archive by name, which is the order in which they are written.
struct Archive {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Directory,
    /// With its mode.
    Made(u32, Bytes),
    Blob(Box<Descriptor>),
}

impl Archive {
    fn new(
        format: Format,
        image: &Image,
        root: &Descriptor,
        names: &[Reference],
    ) -> Result<Archive, ExportError> {
        let mut entries = BTreeMap::new();
        let mut algorithms = BTreeSet::new();
        for (digest, entry) in image
            .documents()
            .map(|d| (d.descriptor.digest, Entry::Made(0o444, d.bytes.clone())))
            .chain(image.layers.iter().map(|l| (l.blob.digest, Entry::Blob(Box::new(l.blob.clone())))))
        {
            algorithms.insert(digest.algorithm().name());
            entries.insert(blob_path(&digest), entry);
        }
        entries.insert("blobs/".to_owned(), Entry::Directory);
        for algorithm in algorithms {
            entries.insert(format!("blobs/{algorithm}/"), Entry::Directory);
        }
        let layout = Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#);
        entries.insert("oci-layout".to_owned(), Entry::Made(0o444, layout));
        entries.insert("index.json".to_owned(), Entry::Made(0o644, index(root, names)?));
        if format == Format::Docker {
            entries.insert("manifest.json".to_owned(), Entry::Made(0o644, docker_manifest(image, names)?));
        }
        Ok(Archive { entries })
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// `index.json` (OCI image specification, `image-layout.md`): the image once per name.
fn index(root: &Descriptor, names: &[Reference]) -> Result<Bytes, ExportError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'i> {
        schema_version: u32,
        media_type: &'i str,
        manifests: Vec<Descriptor>,
    }
    let named = |name: &Reference| {
        let mut descriptor = root.clone();
        let annotations = &mut descriptor.annotations;
        annotations.insert(annotation::IMAGE_NAME.to_owned(), name.to_string());
        annotations.insert(annotation::REF_NAME.to_owned(), short_name(name));
        descriptor
    };
    let manifests = if names.is_empty() { vec![root.clone()] } else { names.iter().map(named).collect() };
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    Ok(json::to_vec(&index).map_err(ExportError::json)?.into())
}

/// The tag, where there is one; what names an image within a layout.
fn short_name(name: &Reference) -> String {
    match (&name.tag, &name.digest) {
        (Some(tag), None) => tag.clone(),
        (Some(tag), Some(digest)) => format!("{tag}@{digest}"),
        (None, _) => name.to_string(),
    }
}

/// `manifest.json`, which `docker load` reads.
fn docker_manifest(image: &Image, names: &[Reference]) -> Result<Bytes, ExportError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    #[derive(serde::Deserialize)]
    struct Written {
        #[serde(default)]
        layers: Option<Vec<Descriptor>>,
    }
    let manifests: Vec<Manifest> = image
        .manifests
        .iter()
        .zip(&image.configs)
        .map(|(manifest, config)| {
            let written: Written = serde_json::from_slice(&manifest.bytes).map_err(ExportError::json)?;
            Ok(Manifest {
                config: blob_path(&config.descriptor.digest),
                repo_tags: (!names.is_empty()).then(|| names.iter().map(familiar).collect()),
                layers: written.layers.map(|l| l.iter().map(|l| blob_path(&l.digest)).collect()),
            })
        })
        .collect::<Result<_, ExportError>>()?;
    Ok(json::to_vec(&manifests).map_err(ExportError::json)?.into())
}

/// The name as Docker shows it: without what it implies.
fn familiar(name: &Reference) -> String {
    let full = name.to_string();
    let short = full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/"));
    short.map_or(full.clone(), str::to_owned)
}

/// The layers that a place has begun to give, or that are here.
struct Answered {
    missing: AtomicUsize,
    all: CancellationToken,
}

impl Answered {
    fn of(layers: usize) -> Answered {
        let answered = Answered { missing: AtomicUsize::new(layers), all: CancellationToken::new() };
        if layers == 0 {
            answered.all.cancel();
        }
        answered
    }

    fn count(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.cancel();
        }
    }

    async fn all(&self) {
        self.all.cancelled().await;
    }
}

/// An image on its way to a client.
struct Sender<'s> {
    ctx: &'s Ctx,
    exporters: &'s Exporters,
    image: &'s Image,
}

impl Sender<'_> {
    /// Fetches all layers, while `send` sends those that are here. Once that is done, nothing more is
    /// needed.
    async fn while_fetching(
        &self,
        answered: &Answered,
        send: impl Future<Output = Result<(), ExportError>>,
    ) -> Result<(), ExportError> {
        // Collected, or the whole would not be `Send` for every lifetime.
        let layers = self.image.layers.iter();
        let fetches: Vec<_> = layers.map(|layer| self.fetch(&layer.blob, answered)).collect();
        let fetch = stream::iter(fetches).buffer_unordered(FETCHES).try_collect::<()>();
        let both = async {
            tokio::pin!(send, fetch);
            tokio::select! {
                sent = &mut send => sent,
                fetched = &mut fetch => {
                    fetched?;
                    send.await
                }
            }
        };
        self.ctx.run(both).await?
    }

    /// The records of the image hold what was fetched.
    async fn fetch(&self, blob: &Descriptor, answered: &Answered) -> Result<(), ExportError> {
        let (content, handlers) = (&self.exporters.content, &self.image.handlers);
        let (followed, mut followers) = mpsc::unbounded_channel();
        let mut follow = |follower: Follower| drop(followed.send(follower.begun()));
        let fetch = content.reader_with(self.ctx, blob, handlers, &mut follow);
        tokio::pin!(fetch);
        let mut begun = FuturesUnordered::new();
        let fetched = loop {
            tokio::select! {
                biased;
                fetched = &mut fetch => break fetched.map(drop),
                Some(one) = followers.recv() => begun.push(one),
                Some(()) = begun.next() => {
                    answered.count();
                    return Ok(fetch.await.map(drop)?);
                }
            }
        };
        if fetched.is_ok() {
            answered.count();
        }
        Ok(fetched?)
    }

    /// The client takes one archive, so it is told of none before a place has begun to give each layer:
    /// until then another record of the result can take the place of this one.
    async fn send_archive(
        &self,
        archive: &Archive,
        index: usize,
        response: &BTreeMap<String, String>,
    ) -> Result<(), ExportError> {
        let answered = Answered::of(self.image.layers.len());
        let opened = AtomicBool::new(false);
        let send = async {
            answered.all().await;
            opened.store(true, Ordering::Relaxed);
            let file =
                self.ctx.sessions().any(async |session: Session| session.file_send(index, response).await);
            let mut file = file.await?;
            let step = Step::start(self.ctx, "sending tarball");
            self.write_entries(archive, &mut file).await?;
            // Either way the client has the archive.
            let (Sent::Written | Sent::AlreadyThere) = file.finish().await?;
            drop(step);
            Ok(())
        };
        match self.while_fetching(&answered, Box::pin(send)).await {
            Err(ExportError::Fetch(error)) if opened.load(Ordering::Relaxed) => {
                Err(ExportError::BrokeOff(error))
            }
            sent => sent,
        }
    }

    async fn write_entries(&self, archive: &Archive, file: &mut FileSend) -> Result<(), ExportError> {
        for (name, entry) in &archive.entries {
            if !self.write_entry(name, entry, file).await? {
                // The client has the archive already and takes no more of it.
                return Ok(());
            }
        }
        file.append(Bytes::from_static(&tar::END)).await?;
        Ok(())
    }

    /// False if the client takes no more.
    async fn write_entry(&self, name: &str, entry: &Entry, file: &mut FileSend) -> Result<bool, ExportError> {
        let (mode, kind, size) = match entry {
            Entry::Directory => (0o755, tar::Kind::Directory, 0),
            Entry::Made(mode, bytes) => (*mode, tar::Kind::File, bytes.len() as u64),
            Entry::Blob(descriptor) => (0o444, tar::Kind::File, descriptor.size),
        };
        let mut takes = file.append(tar::header(name, mode, kind, size).into()).await?;
        match entry {
            Entry::Directory => {}
            Entry::Made(_, bytes) => takes = takes && file.append(bytes.clone()).await?,
            Entry::Blob(descriptor) => {
                let (content, handlers) = (&self.exporters.content, &self.image.handlers);
                let reader = content.reader(self.ctx, descriptor, handlers).await?;
                let mut bytes = reader.stream(0..descriptor.size);
                while takes && let Some(chunk) = bytes.try_next().await? {
                    takes = file.append(chunk).await?;
                }
            }
        }
        Ok(takes && file.append(Bytes::from_static(tar::padding(size))).await?)
    }

    /// Blobs to the content store `export` of the client, what is listed before what lists it. The
    /// client writes its `index.json` by itself.
    async fn send_blobs(&self) -> Result<(), ExportError> {
        let stores = self
            .ctx
            .sessions()
            .any(async |session: Session| Ok::<_, SessionError>(session.content("export")));
        let store = self.ctx.run(stores).await??;
        let made: HashMap<Digest, Bytes> =
            self.image.documents().map(|d| (d.descriptor.digest, d.bytes.clone())).collect();
        let leaves = self.image.leaves().map(|d| &d.descriptor);
        let layers = self.image.layers.iter().map(|l| &l.blob);
        let blobs: Vec<&Descriptor> = layers.chain(leaves).collect();
        let send = async {
            let sends = blobs.into_iter().map(|blob| self.send_blob(&store, blob, made.get(&blob.digest)));
            stream::iter(sends.collect::<Vec<_>>()).buffer_unordered(CONCURRENT).try_collect::<()>().await?;
            for manifest in &self.image.manifests {
                self.send_blob(&store, &manifest.descriptor, Some(&manifest.bytes)).await?;
            }
            Ok(())
        };
        let answered = Answered::of(self.image.layers.len());
        self.while_fetching(&answered, Box::pin(send)).await
    }

    async fn send_blob(
        &self,
        store: &ClientContent,
        descriptor: &Descriptor,
        made: Option<&Bytes>,
    ) -> Result<(), ExportError> {
        let Descriptor { digest, size, .. } = descriptor;
        let Some(mut ingest) = store.write(&digest.to_string(), digest, *size).await? else { return Ok(()) };
        let offset = ingest.offset().min(*size);
        match made {
            Some(bytes) => ingest.append(bytes.slice(offset as usize..)).await?,
            None => {
                let (content, handlers) = (&self.exporters.content, &self.image.handlers);
                let reader = content.reader(self.ctx, descriptor, handlers).await?;
                let mut bytes = reader.stream(offset..*size);
                while let Some(chunk) = bytes.try_next().await? {
                    ingest.append(chunk).await?;
                }
            }
        }
        ingest.commit().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::DescHandlers;
    use crate::export::assemble::Document;
    use crate::export::assemble::ImageLayer;

    fn image() -> Image {
        let document = |media_type: &str, text: String| Document {
            descriptor: Descriptor::of(media_type, text.as_bytes()),
            bytes: text.into(),
        };
        let layer = Descriptor::of(media_type::OCI_LAYER_GZIP, b"layer");
        let config = document(media_type::OCI_CONFIG, "{}".to_owned());
        let text = format!(r#"{{"layers":[{}]}}"#, serde_json::to_string(&layer).unwrap());
        let manifest = document(media_type::OCI_MANIFEST, text);
        Image {
            root: manifest.descriptor.clone(),
            config_digest: Some(config.descriptor.digest),
            manifests: vec![manifest],
            configs: vec![config],
            attached: Vec::new(),
            layers: vec![ImageLayer { listed: layer.clone(), blob: layer }],
            handlers: DescHandlers::new(),
            _refs: Vec::new(),
        }
    }

    fn made(archive: &Archive, name: &str) -> String {
        match &archive.entries[name] {
            Entry::Made(_, bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => panic!("{name} is no document"),
        }
    }

    #[test]
    fn an_archive_has_a_layout_an_index_and_every_blob_in_the_order_of_names() {
        let image = image();
        let archive = Archive::new(Format::Oci, &image, &image.root, &[]).unwrap();
        let names: Vec<&str> = archive.entries.keys().map(String::as_str).collect();
        let digests = image.documents().map(|document| document.descriptor.digest);
        let digests = digests.chain(image.layers.iter().map(|layer| layer.blob.digest));
        let mut blobs: Vec<String> = digests.map(|digest| blob_path(&digest)).collect();
        blobs.sort();
        let mut expected = vec!["blobs/", "blobs/sha256/"];
        expected.extend(blobs.iter().map(String::as_str));
        expected.extend(["index.json", "oci-layout"]);
        assert_eq!(names, expected);
        assert_eq!(made(&archive, "oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = made(&archive, "index.json");
        let descriptor = serde_json::to_string(&image.root).unwrap();
        assert_eq!(
            index,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{descriptor}]}}"#
            )
        );
    }

    #[test]
    fn names_are_tags_in_the_index_and_familiar_in_dockers_list() {
        let image = image();
        let names = normalised("busybox,r.example:5000/a/b:t").unwrap();
        let archive = Archive::new(Format::Docker, &image, &image.root, &names).unwrap();
        let index: serde_json::Value = serde_json::from_str(&made(&archive, "index.json")).unwrap();
        let annotation =
            |n: usize, key: &str| index["manifests"][n]["annotations"][key].as_str().unwrap().to_owned();
        assert_eq!(annotation(0, "io.containerd.image.name"), "docker.io/library/busybox:latest");
        assert_eq!(annotation(0, "org.opencontainers.image.ref.name"), "latest");
        assert_eq!(annotation(1, "org.opencontainers.image.ref.name"), "t");
        assert_eq!(
            made(&archive, "manifest.json"),
            format!(
                r#"[{{"Config":"{}","RepoTags":["busybox:latest","r.example:5000/a/b:t"],"Layers":["{}"]}}]"#,
                blob_path(&image.configs[0].descriptor.digest),
                blob_path(&image.layers[0].blob.digest)
            )
        );
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        assert!(normalised("UPPER").is_err());
        assert!(normalised("").unwrap().is_empty());
    }
}
