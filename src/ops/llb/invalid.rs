//! [`InvalidOp`]: why an op is not valid.

use crate::ops::op::InvalidMode;

/// What is wrong with an op, its place in the graph apart. A `what` names a field as `ops.proto` does, with the
/// number of the action or mount that it belongs to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidOp {
    #[error("a source has no inputs")]
    SourceInputs,
    #[error("{reason}")]
    Source { reason: String },
    #[error("{name} {value:?} is not {expected}")]
    Attribute { name: String, value: String, expected: &'static str },
    #[error("there is no {what}")]
    Missing { what: String },
    #[error("{what} is {index}, and there are {count}")]
    Index { what: String, index: i64, count: usize },
    #[error("{what} has the value {value}, which is not known here: is the client newer than the daemon?")]
    Enumeration { what: String, value: i32 },
    #[error("{what} is {value}, which is below 0")]
    Negative { what: String, value: i64 },
    #[error("{what} is {value}, and at most {limit} is allowed")]
    TooLarge { what: String, value: u64, limit: u64 },
    #[error("{what}: {source}")]
    Mode { what: String, source: InvalidMode },
    #[error("{what} has a NUL byte")]
    Nul { what: String },
    #[error("output {output} is there twice")]
    DuplicateOutput { output: i64 },
    #[error("there is no output {output}, and there are {count}")]
    OutputGap { output: usize, count: usize },
    #[error("action {action} needs its own result")]
    Loop { action: usize },
    #[error("the root file system is a mount of another kind than bind")]
    RootKind,
    #[error(
        "the contents of mount {mount} are to count for the cache, but the op may change what they don't cover"
    )]
    UnsafeContentCache { mount: usize },
}

/// `text`, unless the system could not take it.
pub(super) fn no_nul(what: impl FnOnce() -> String, text: &str) -> Result<String, InvalidOp> {
    if text.contains('\0') { Err(InvalidOp::Nul { what: what() }) } else { Ok(text.to_owned()) }
}

/// An index, -1 for none, of `count` things.
pub(super) fn index(
    what: impl FnOnce() -> String,
    index: i64,
    count: usize,
) -> Result<Option<usize>, InvalidOp> {
    match usize::try_from(index) {
        Ok(index) if index < count => Ok(Some(index)),
        Err(_) if index == -1 => Ok(None),
        _ => Err(InvalidOp::Index { what: what(), index, count }),
    }
}
