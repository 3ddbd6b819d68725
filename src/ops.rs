//! What each vertex does, and how a build definition is read.
//!
//! [`llb`] decodes what a client sends into a [`Graph`] of [`Vertex`]es with parsed [`Op`]s. A
//! [`CacheMap`] says how a vertex counts for the cache. [`Operate`] is the seam to the solver: it runs
//! ops on the results of their inputs, and loads the results of earlier runs.
//!
//! Invariant: nothing here knows jobs, the scheduler or the key index; an op is told for whom it works
//! by its [`Ctx`](crate::ctx::Ctx).

mod cache_map;
mod diff;
mod exec;
mod file;
mod graph;
mod hash;
mod http;
mod image;
mod kept;
mod layout;
mod left;
mod lineage;
pub mod llb;
mod local;
mod merge;
pub mod op;
mod operate;
mod provide;
mod reads;
mod resolution;
mod resolutions;
mod source_error;
mod worker;

pub use cache_map::CacheMap;
pub use cache_map::CacheOpts;
pub use cache_map::ContentDigest;
pub use cache_map::InputKey;
pub use exec::ExecOpError;
pub use exec::Execs;
pub use file::FileActionError;
pub use file::FileError;
pub use graph::Edge;
pub use graph::Graph;
pub use graph::Vertex;
pub use graph::VertexDigest;
pub use graph::VertexOptions;
pub use hash::ChecksumError;
pub use hash::ContentHasher;
pub use hash::HashError;
pub use hash::Selector;
pub use http::HttpError;
pub use http::HttpFile;
pub use image::Named;
pub use kept::Kept;
pub use left::FailedMounts;
pub use left::LeftFiles;
pub use lineage::CacheOptGetter;
pub use lineage::Lineage;
pub use local::LocalError;
pub use op::DiffOp;
pub use op::Entitlement;
pub use op::ExecOp;
pub use op::FileOp;
pub use op::HttpSource;
pub use op::ImageSource;
pub use op::LayoutSource;
pub use op::LocalSource;
pub use op::Merge;
pub use op::NoSuchEntitlement;
pub use op::Op;
pub use op::RecordType;
pub use op::ResolveMode;
pub use operate::LoadError;
pub use operate::OpError;
pub use operate::Operate;
pub use operate::Presence;
pub use operate::ResultId;
pub use provide::Origins;
pub use resolution::Resolution;
pub use resolution::Resolved;
pub use resolutions::Resolutions;
pub use source_error::SourceError;
pub use worker::ImageMeta;
pub use worker::Worker;
