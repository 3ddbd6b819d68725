//! [`Parsed`]: an op by itself, whatever comes before it in its definition.
//!
//! Ops are parsed on several cores, and a thread drops the message of one before it reads the next one.

use bytes::Bytes;
use prost::Message as _;

use super::Limits;
use super::LlbError;
use super::MAX_NAME;
use super::clip;
use super::exec;
use super::file;
use super::invalid;
use super::invalid::InvalidOp;
use super::parts;
use super::pb;
use super::source;
use crate::oci::Digest;
use crate::oci::InvalidDigest;
use crate::oci::Platform;
use crate::ops::graph::VertexDigest;
use crate::ops::op::DiffOp;
use crate::ops::op::Merge;
use crate::ops::op::Op;

/// An op as it was sent.
pub(super) struct Parsed {
    pub digest: VertexDigest,
    pub inputs: Vec<Input>,
    /// Number of outputs, where the kind fixes it.
    pub outputs: Option<i64>,
    pub platform: Platform,
    /// What it does; nothing if it has no kind. An error counts only if the result needs the op.
    pub does: Option<Result<(Op, Name), LlbError>>,
}

/// An input as it was sent.
pub(super) struct Input {
    pub digest: Result<VertexDigest, InvalidDigest>,
    pub output: i64,
}

/// What a vertex is called that has no name of its own.
pub(super) enum Name {
    Known(String),
    /// Made of the names of its inputs.
    Merge {
        inputs: usize,
    },
    Diff {
        lower: Option<usize>,
        upper: Option<usize>,
    },
}

impl Parsed {
    pub(super) fn decode(index: usize, bytes: &Bytes, limits: &Limits) -> Result<Parsed, LlbError> {
        parts::check(bytes, limits)?;
        let op = pb::Op::decode(bytes.clone())
            .map_err(|error| LlbError::Op { index, reason: error.to_string() })?;
        let digest = VertexDigest(Digest::sha256(bytes));
        let input =
            |input: &pb::Input| Input { digest: input.digest.parse().map(VertexDigest), output: input.index };
        Ok(Parsed {
            digest,
            inputs: op.inputs.iter().map(input).collect(),
            outputs: op.op.as_ref().and_then(outputs),
            platform: platform(op.platform.as_ref()),
            does: op.op.as_ref().map(|kind| parse(kind, &op, digest)),
        })
    }
}

impl Name {
    /// The text, where `name` gives those of the inputs.
    pub(super) fn text<'n>(self, name: impl Fn(usize) -> Option<&'n str>) -> String {
        match self {
            Name::Known(text) => text,
            Name::Merge { inputs } => joined("merge (", (0..inputs).filter_map(&name), ", ", ")"),
            Name::Diff { lower, upper } => {
                let side = |input: Option<usize>| match input.and_then(&name) {
                    Some(name) => format!("({name})"),
                    None => "scratch".to_owned(),
                };
                clip(&format!("diff {} -> {}", side(lower), side(upper)))
            }
        }
    }
}

fn platform(sent: Option<&pb::Platform>) -> Platform {
    let Some(sent) = sent else { return Platform::host() };
    let platform = Platform {
        architecture: sent.architecture.clone(),
        os: sent.os.clone(),
        os_version: sent.os_version.clone(),
        os_features: sent.os_features.clone(),
        variant: sent.variant.clone(),
    };
    platform.normalised()
}

fn outputs(kind: &pb::op::Op) -> Option<i64> {
    use pb::op::Op as Sent;
    match kind {
        Sent::Source(_) | Sent::Merge(_) | Sent::Diff(_) | Sent::Build(_) => Some(1),
        Sent::Exec(op) => Some(exec::outputs(op)),
        Sent::File(op) => Some(file::outputs(op)),
        Sent::Passthrough(_) => None,
    }
}

/// What the op does, and a name for it.
fn parse(kind: &pb::op::Op, op: &pb::Op, digest: VertexDigest) -> Result<(Op, Name), LlbError> {
    use pb::op::Op as Sent;
    let inputs = op.inputs.len();
    let unsupported =
        |what: &str| Err(LlbError::Unsupported { op: digest, what: format!("the {what} operation") });
    let invalid = |reason| LlbError::Invalid { op: digest, reason };
    let input = |what: &str, sent: i64| invalid::index(|| what.to_owned(), sent, inputs).map_err(invalid);
    match kind {
        Sent::Source(source) => {
            if inputs > 0 {
                return Err(invalid(InvalidOp::SourceInputs));
            }
            Ok((source::source(source, digest)?, Name::Known(clip(&source.identifier))))
        }
        Sent::Exec(exec) => {
            let parsed = exec::exec(exec, op.platform.as_ref(), inputs).map_err(invalid)?;
            Ok((Op::Exec(Box::new(parsed)), Name::Known(joined("", exec::name(exec), " ", ""))))
        }
        Sent::File(file) => {
            let parsed = file::file(file, inputs).map_err(invalid)?;
            Ok((Op::File(parsed), Name::Known(joined("", file::names(file), ", ", ""))))
        }
        Sent::Merge(merge) => {
            let index = |m: &pb::MergeInput| {
                let none = || {
                    let what = "input of a merge".to_owned();
                    invalid(InvalidOp::Index { what, index: m.input, count: inputs })
                };
                input("input of a merge", m.input)?.ok_or_else(none)
            };
            let lowest_first = merge.inputs.iter().map(index).collect::<Result<Vec<_>, _>>()?;
            Ok((Op::Merge(Merge { inputs: lowest_first }), Name::Merge { inputs }))
        }
        Sent::Diff(diff) => {
            let missing = |what: &str| invalid(InvalidOp::Missing { what: what.to_owned() });
            let lower = diff.lower.as_ref().ok_or_else(|| missing("lower"))?;
            let upper = diff.upper.as_ref().ok_or_else(|| missing("upper"))?;
            let (lower, upper) = (input("lower", lower.input)?, input("upper", upper.input)?);
            Ok((Op::Diff(DiffOp { lower, upper }), Name::Diff { lower, upper }))
        }
        Sent::Build(_) => unsupported("build"),
        Sent::Passthrough(_) => unsupported("passthrough"),
    }
}

/// A name made of parts, no longer than it is fit for people whatever their number.
fn joined(open: &str, parts: impl Iterator<Item = impl AsRef<str>>, separator: &str, close: &str) -> String {
    let mut name = open.to_owned();
    for (at, part) in parts.enumerate() {
        if at > 0 {
            name.push_str(separator);
        }
        name.push_str(part.as_ref());
        if name.len() > MAX_NAME {
            return clip(&name);
        }
    }
    name.push_str(close);
    clip(&name)
}
