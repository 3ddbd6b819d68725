//! The LLB bridge: what the frontend of a build may ask, whether it runs in the client or here.
//!
//! A call names its build in its metadata. It is answered by the [`Bridge`](crate::solver::Bridge) of
//! that build's job; nothing is kept here. Calls that have no answer yet are refused with
//! `Unimplemented`, and the capabilities say so beforehand.
//!
//! # Cancellation
//!
//! A call ends when its client drops it, and when its build ends.

mod convert;
mod files;
mod service;

pub use service::GatewayService;

/// What the bridge can do, by the names that frontends check. A frontend must not find more here than
/// is true, and an empty list would stand for a set from long ago.
pub const CAPS: &[&str] = &[
    "solve.base",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "readdir",
    "statfile",
    "return",
    "returnmap",
    "proto.refarray",
    "reference.output",
    "reference.attestations",
    "frontend.inputs",
    "gateway.solve.metadata",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "source.metaresolver",
];
