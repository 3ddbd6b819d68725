//! [`Op`]: what a vertex does, with its attributes parsed.

mod exec;
mod file;
mod http;
mod local;
mod mode;

use super::http::HttpFile;
use super::image::Named;
use super::kept::Kept;
use super::resolution::Resolved;
use crate::oci::Digest;
use crate::oci::Reference;

pub use exec::CacheSharing;
pub use exec::CdiDevice;
pub use exec::ClientFile;
pub use exec::ContentCache;
pub use exec::Entitlement;
pub use exec::ExecMount;
pub use exec::ExecOp;
pub use exec::ExtraHost;
pub use exec::LinuxResources;
pub use exec::MountKind;
pub use exec::NetworkMode;
pub use exec::NoSuchEntitlement;
pub use exec::ProxyEnv;
pub use exec::ROOT;
pub use exec::SecretEnv;
pub use exec::SecurityMode;
pub use exec::Ulimit;
pub use file::CopyFiles;
pub use file::CopyMode;
pub use file::FileAction;
pub use file::FileChange;
pub use file::FileInput;
pub use file::FileOp;
pub use file::MakeDir;
pub use file::MakeFile;
pub use file::Owner;
pub use file::Principal;
pub use file::Remove;
pub use file::Symlink;
pub use file::Timestamp;
pub use file::Wildcard;
pub use http::HttpSignature;
pub use http::HttpSource;
pub use local::Differ;
pub use local::LocalSource;
pub use local::MetadataOnly;
pub use mode::InvalidMode;
pub use mode::ModeChange;

/// The kinds of vertex that can be solved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Image(ImageSource),
    OciLayout(LayoutSource),
    Local(LocalSource),
    Http(HttpSource),
    Exec(Box<ExecOp>),
    File(FileOp),
    Merge(Merge),
    Diff(DiffOp),
}

impl Op {
    /// The rights that it needs.
    pub fn entitlements(&self) -> impl Iterator<Item = Entitlement> + use<> {
        let exec = match self {
            Op::Exec(exec) => Some(exec.entitlements()),
            _ => None,
        };
        exec.into_iter().flatten()
    }

    /// Whether its job has been told what it stands for, which its definition alone does not say.
    pub fn is_told(&self) -> bool {
        match self {
            Op::Image(source) => source.reference.digest.is_none() && source.named.get().is_some(),
            Op::Http(source) => source.checksum.is_none() && source.resolved.get().is_some(),
            _ => false,
        }
    }

    /// Whether the same op of another job may stand for this one: not if this job was told that it stands for
    /// something else, or for something that the other job does not know.
    pub fn agrees_with(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Image(mine), Op::Image(other)) if self.is_told() => {
                let digest = |source: &ImageSource| source.named.get().map(|named| named.root.digest);
                digest(mine) == digest(other)
            }
            (Op::Http(mine), Op::Http(other)) if self.is_told() => {
                let counts = |file: HttpFile| (file.digest, file.filename, file.modified);
                mine.resolved.get().map(counts) == other.resolved.get().map(counts)
            }
            _ => true,
        }
    }

    /// Lets the same op of another job, which it agrees with, stand for this one: all of this job that share a file
    /// with it get the other's. An image is each job's own, since it is its own rights that name it.
    pub fn follow(&self, other: &Op) {
        if let (Op::Http(mine), Op::Http(other)) = (self, other) {
            mine.resolved.follow(&other.resolved);
        }
    }

    /// The kind, as messages and metrics name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Image(_) => "docker-image",
            Op::OciLayout(_) => "oci-layout",
            Op::Local(_) => "local",
            Op::Http(_) => "http",
            Op::Exec(_) => "exec",
            Op::File(_) => "file",
            Op::Merge(_) => "merge",
            Op::Diff(_) => "diff",
        }
    }
}

/// `docker-image://`: an image of a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageSource {
    /// Has a tag or a digest.
    pub reference: Reference,
    pub resolve_mode: ResolveMode,
    pub record_type: RecordType,
    /// Only the lowest layers count, never 0.
    pub layer_limit: Option<usize>,
    /// What the reference must resolve to.
    pub checksum: Option<Digest>,
    /// What the reference was found to name, for all sources of the job with the same.
    pub named: Kept<Named>,
    /// What it did resolve to.
    pub resolved: Resolved,
}

impl ImageSource {
    /// An image by its name, looked for as usual.
    pub fn new(reference: Reference) -> ImageSource {
        ImageSource {
            reference,
            resolve_mode: ResolveMode::Default,
            record_type: RecordType::Regular,
            layer_limit: None,
            checksum: None,
            named: Kept::default(),
            resolved: Resolved::default(),
        }
    }
}

/// `oci-layout://`: an image of an OCI layout that a client or a directory holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutSource {
    /// The identifier without scheme, tag and digest. Names the store where `store` does not.
    pub name: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
    /// Session whose client has the layout; any session of the build if absent.
    pub session: Option<String>,
    /// The content store within that session.
    pub store: Option<String>,
    /// Only the lowest layers count, never 0.
    pub layer_limit: Option<usize>,
    /// What it did resolve to.
    pub resolved: Resolved,
}

/// Whether a tag is asked for again although the daemon knows an image of the name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum ResolveMode {
    #[default]
    Default,
    ForcePull,
    PreferLocal,
}

/// What disk usage lists a result as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RecordType {
    #[default]
    Regular,
    Internal,
    Frontend,
}

/// Layers of several inputs on top of each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// Indices into the vertex's inputs, from the lowest to the highest.
    pub inputs: Vec<usize>,
}

/// What one file system has and another one has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiffOp {
    /// Index into the vertex's inputs; none for the empty file system.
    pub lower: Option<usize>,
    pub upper: Option<usize>,
}
