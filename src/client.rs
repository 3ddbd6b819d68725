//! The client's side of BuildKit's protocol, as `thunk` needs it.
//!
//! A [`Client`] speaks to a daemon over a socket, over TLS, or inside this process. For a build it opens a session:
//! a tunnel through which the daemon calls back for credentials, directories, secrets and the blobs of OCI layouts, and
//! with the archives, layouts and files that it made.
//!
//! # Cancellation
//!
//! Dropping the future of [`Client::build`] ends the call and the session, and the daemon cancels the build. A file
//! is written under another name and takes its place at the end: a build that is cancelled or fails leaves what was
//! there before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::progress::SourceFile;
use crate::progress::SourceRange;
use crate::progress::Update;
use crate::registry::DockerConfig;
use crate::task::Tasks;

mod attach;
mod broken;
mod connect;
mod convert;
mod directories;
mod layout;
mod llb;
mod output;
mod secrets;
mod service;
mod session;
mod store;

use store::LayoutStore;

pub use connect::ConnectError;
pub use connect::Endpoint;
pub use connect::TlsFiles;
pub use layout::Layout;
pub use layout::LayoutError;
pub use llb::Definition;
pub use llb::DefinitionError;
pub use secrets::SecretSource;

use convert::Control;

/// How long the end of a build's status may keep us waiting after its result is there.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    control: Control,
}

/// Keys that exporters answer with.
const DESCRIPTOR_KEY: &str = "containerimage.descriptor";
const NAME_KEY: &str = "image.name";

/// What to build, and what to do with it.
#[derive(Debug)]
pub struct Build {
    pub definition: Definition,
    pub outputs: Vec<Output>,
    /// By the name that the definition has for them.
    pub layouts: BTreeMap<String, Layout>,
    pub lent: Lent,
    /// Who we are to registries, told when the daemon asks.
    pub credentials: DockerConfig,
}

/// What a build may have of this machine, by the names that the definition has for it.
#[derive(Clone, Debug, Default)]
pub struct Lent {
    pub directories: BTreeMap<String, PathBuf>,
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of SSH agents.
    pub agents: BTreeMap<String, PathBuf>,
}

/// One export of the result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// The name of an exporter: `image`, `oci`, `docker`, …
    pub exporter: String,
    pub attributes: BTreeMap<String, String>,
    pub destination: Destination,
}

/// Where the bytes of an export go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// They stay with the daemon, or go to a registry.
    Daemon,
    File(PathBuf),
    Stdout,
    /// The files of the result. What else is in the directory stays, or is deleted.
    Directory {
        path: PathBuf,
        delete: bool,
    },
    /// An image as an OCI layout, beside those that are in the directory. A build has one at most.
    Layout(PathBuf),
}

/// A build failed, or could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{}", .0.message)]
    Failed(Box<Failure>),
    #[error("the daemon could not be asked")]
    Call(#[from] CallError),
    #[error("the image can't be named in the OCI layout {path:?}: {source}")]
    Layout { path: PathBuf, source: std::io::Error },
}

/// What a daemon says of a build that failed.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// The gRPC code by name.
    pub code: String,
    pub message: String,
    pub vertex: Option<Digest>,
    /// Where in the sources of the build it failed, outermost first.
    pub sources: Vec<(SourceFile, Vec<SourceRange>)>,
}

/// A call failed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{call}: {message} ({code})")]
pub struct CallError {
    pub call: &'static str,
    pub code: String,
    pub message: String,
}

/// One record of the cache.
#[derive(Clone, PartialEq, Debug)]
pub struct Usage {
    pub id: String,
    pub kind: String,
    pub description: String,
    pub bytes: u64,
    pub in_use: bool,
    pub shared: bool,
    pub created: Option<SystemTime>,
    pub last_used: Option<SystemTime>,
    pub used: u64,
    pub parents: Vec<String>,
}

/// What to delete. All unused records that are neither internal nor shared, unless limited.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Prune {
    pub filters: Vec<String>,
    pub all: bool,
    /// Keeps what was used within this time.
    pub keep: Duration,
    pub reserved_bytes: u64,
    pub max_used_bytes: u64,
    pub min_free_bytes: u64,
}

/// A worker of the daemon.
#[derive(Clone, PartialEq, Debug)]
pub struct Worker {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// The first is the default.
    pub platforms: Vec<Platform>,
}

impl Client {
    /// Connects to the daemon at `endpoint`.
    ///
    /// Cancellation safe.
    pub async fn connect(endpoint: &Endpoint) -> Result<Client, ConnectError> {
        Ok(Client { control: Control::new(connect::channel(endpoint).await?) })
    }

    /// The daemon's version.
    pub async fn version(&self) -> Result<String, CallError> {
        self.control.version().await
    }

    pub async fn workers(&self) -> Result<Vec<Worker>, CallError> {
        self.control.workers().await
    }

    /// The records of the cache that a filter, if there is one, matches.
    pub async fn usage(&self, filters: Vec<String>) -> Result<Vec<Usage>, CallError> {
        self.control.usage(filters).await
    }

    /// Deletes from the cache. Each record comes when it is gone.
    pub async fn prune(
        &self,
        prune: Prune,
    ) -> Result<BoxStream<'static, Result<Usage, CallError>>, CallError> {
        self.control.prune(prune).await
    }

    /// Builds, and answers with the keys that the exporters gave.
    ///
    /// Progress goes to `progress`, in batches whose order counts; the sender is dropped when there is no more.
    ///
    /// Cancellation safe: see the module.
    pub async fn build(
        &self,
        build: Build,
        progress: mpsc::Sender<Vec<Update>>,
    ) -> Result<BTreeMap<String, String>, BuildError> {
        let tasks = Tasks::new();
        // Whatever way this future ends, what it started ends with it.
        let _stop = tasks.token().clone().drop_guard();
        let Build { definition, outputs, layouts, lent, credentials } = build;
        let reference = session::random_id();
        let attachments = session::Attachments::new(&outputs, layouts, lent, credentials, &tasks);
        let session = session::open(&self.control, attachments, &tasks).await?;

        let id = session.id().to_owned();
        let mut status = std::pin::pin!(self.control.follow(&reference, &progress));
        let solve = self.control.solve(&reference, &id, definition, &outputs);
        let mut solve = std::pin::pin!(solve);
        let mut followed = false;
        let result = loop {
            tokio::select! {
                result = &mut solve => break result,
                ended = &mut status, if !followed => {
                    followed = true;
                    if let Err(error) = ended {
                        tracing::debug!(%error, "the status of the build can't be followed");
                    }
                }
            }
        };
        session.close().await;
        if !followed {
            let _ = tokio::time::timeout(STATUS_PATIENCE, status).await;
        }
        let response = result?;
        for output in &outputs {
            if let Destination::Layout(path) = &output.destination {
                name(&tasks, path.clone(), response.clone()).await?;
            }
        }
        Ok(response)
    }
}

/// Gives the image that was written into a layout the names that the daemon says it has.
async fn name(tasks: &Tasks, path: PathBuf, response: BTreeMap<String, String>) -> Result<(), BuildError> {
    let store = LayoutStore::new(&path);
    let naming = tasks.spawn_blocking("name image", move || {
        let encoded = response.get(DESCRIPTOR_KEY).map(String::as_str).unwrap_or_default();
        let decoded = STANDARD.decode(encoded).map_err(std::io::Error::other)?;
        let image: Descriptor = serde_json::from_slice(&decoded)?;
        let names = response.get(NAME_KEY).map(String::as_str).unwrap_or_default();
        let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        store.name(&image, &names)
    });
    let named = naming.await.map_err(std::io::Error::other).flatten();
    named.map_err(|source| BuildError::Layout { path, source })
}
