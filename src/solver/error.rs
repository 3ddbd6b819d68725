//! [`SolveError`]: why a solve failed, with what a client can show of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::db::DbError;
use crate::ops::Entitlement;
use crate::ops::ExecOpError;
use crate::ops::FailedMounts;
use crate::ops::FileActionError;
use crate::ops::OpError;
use crate::ops::VertexDigest;
use crate::ops::llb::LlbError;
use crate::progress::SourceFile;
use crate::progress::SourceRange;
use crate::task::TaskFailed;

/// A solve, or a call on the bridge of its job, failed. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SolveError {
    #[error("cancelled")]
    Cancelled,
    #[error("{source}")]
    Definition { source: LlbError, locations: Vec<SourceLocation> },
    #[error("{source}")]
    Vertex { source: Arc<VertexError>, locations: Vec<SourceLocation>, op: Option<FailedOp> },
    /// A right that the build was not granted.
    #[error("{entitlement} is not allowed")]
    NotEntitled { entitlement: Entitlement, vertex: VertexDigest, locations: Vec<SourceLocation> },
    #[error("a solve has either a definition or a frontend, not both")]
    DefinitionAndFrontend,
    #[error("frontend {name:?} is not supported")]
    NoSuchFrontend { name: String, asked: FrontendAsked },
    #[error("no such ref {id:?} in this job")]
    NoSuchRef { id: String },
    #[error("the result of this job was returned before")]
    Returned,
    /// A frontend failed with an error of its own.
    #[error("{0}")]
    Frontend(Rejected),
}

impl SolveError {
    pub fn is_cancelled(&self) -> bool {
        match self {
            SolveError::Cancelled => true,
            SolveError::Vertex { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }

    /// The vertex at fault, where it is one.
    pub fn vertex(&self) -> Option<VertexDigest> {
        match self {
            SolveError::Vertex { source, .. } => Some(source.vertex),
            SolveError::Definition { source, .. } => source.vertex(),
            SolveError::NotEntitled { vertex, .. } => Some(*vertex),
            _ => None,
        }
    }

    /// Where the vertex at fault comes from.
    pub fn locations(&self) -> &[SourceLocation] {
        match self {
            SolveError::Vertex { locations, .. }
            | SolveError::Definition { locations, .. }
            | SolveError::NotEntitled { locations, .. } => locations,
            _ => &[],
        }
    }

    /// The code that a process of the vertex ended with, where that is what failed.
    pub fn exit_code(&self) -> Option<u32> {
        self.exec_error()?.exit_code()
    }

    /// The file systems of the vertex's process or file action, where that is what failed.
    pub fn failed_mounts(&self) -> Option<&FailedMounts> {
        match self.op_error::<FileActionError>() {
            Some(error) => error.mounts.as_deref(),
            None => self.exec_error()?.failed_mounts(),
        }
    }

    fn exec_error(&self) -> Option<&ExecOpError> {
        self.op_error()
    }

    fn op_error<E: std::error::Error + 'static>(&self) -> Option<&E> {
        let SolveError::Vertex { source, .. } = self else { return None };
        match &source.cause {
            Cause::Op(OpError::Failed { source }) => source.downcast_ref(),
            _ => None,
        }
    }

    /// The op of the vertex at fault, if it ran.
    pub fn op(&self) -> Option<&FailedOp> {
        match self {
            SolveError::Vertex { op, .. } => op.as_ref(),
            _ => None,
        }
    }
}

/// The op of a vertex, as its definition has it.
#[derive(Clone, PartialEq, Debug)]
pub struct FailedOp {
    /// The message, encoded.
    pub bytes: Bytes,
    pub description: BTreeMap<String, String>,
}

/// What a frontend was asked for besides to solve.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrontendAsked {
    /// A request of another kind.
    pub request: Option<String>,
    /// Capabilities that it must have.
    pub caps: Vec<String>,
}

/// Part of a file that a vertex comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct SourceLocation {
    pub file: Arc<SourceFile>,
    pub ranges: Vec<SourceRange>,
}

/// What a frontend failed with, in the words of gRPC: it passes through as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// A code of gRPC.
    pub code: i32,
    pub message: String,
    /// Type URL and value of each detail.
    pub details: Vec<(String, Bytes)>,
}

/// A vertex could not be solved. Every job that waits for it gets this one.
///
/// Its text does not name the vertex: clients know it by its digest, and show it beside.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{phase}{cause}")]
pub struct VertexError {
    pub vertex: VertexDigest,
    pub phase: Phase,
    #[source]
    pub cause: Cause,
}

/// How far a vertex had come, in BuildKit's words before the cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    CacheMap,
    /// Inputs hashed, results loaded or made: the causes say which.
    Result,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phase::CacheMap => f.write_str("failed to load cache key: "),
            Phase::Result => Ok(()),
        }
    }
}

impl VertexError {
    pub fn is_cancelled(&self) -> bool {
        matches!(&self.cause, Cause::Op(error) if error.is_cancelled())
    }
}

/// What went wrong in a vertex.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Op(#[from] OpError),
    #[error("the key index failed: {0}")]
    Index(#[from] DbError),
    #[error(transparent)]
    Panicked(#[from] TaskFailed),
    #[error("the operation has no output {output}, it has {outputs}")]
    Output { output: u32, outputs: usize },
    #[error("the cache map is for {found} inputs, the operation has {inputs}")]
    CacheMap { found: usize, inputs: usize },
}
