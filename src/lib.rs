//! thunk: a lazy build cache for container images.
//!
//! A *thunk* is a value that is not computed until somebody needs it, computed once, and remembered.
//! `thunkd` owns the blobs, layers and build results of one node. Each is fetched or computed only
//! when its bytes are needed, once, verified, shared by everybody who needs it, and dropped when
//! nobody does. It speaks BuildKit's gRPC API, so `buildctl`, `docker buildx` and programs on
//! BuildKit's Go client only change an address.
//!
//! # Rows
//!
//! Modules stand in rows. A module uses lower rows only: not its own row and never a higher one.
//! The `mod` lines below stand in this order and a unit test holds the rule by reading the
//! `crate::` paths.
//!
//! | row | module | what it is |
//! |---|---|---|
//! | 12 | `cli` | the command for people |
//! | 11 | `daemon` | configuration into running services; stops them in order |
//! | 10 | `control` | BuildKit's Control API, build history and health |
//! |    | `gateway` | the LLB bridge that a frontend calls |
//! |    | `client` | the client's side of the protocol, for the command |
//! | 9 | `solver` | runs a graph once for many jobs; finds, keeps and falls back from cache hits |
//! | 8 | `ops` | what each vertex does; LLB in |
//! |   | `export` | a ref becomes an image, an archive or a push |
//! | 7 | `cache` | filesystem states and their lifetime |
//! | 6 | `content` | blobs: resident or remote |
//! | 5 | `registry` | talks to OCI registries |
//! | 4 | `ctx` | what a request carries: session group, progress, cancellation |
//! | 3 | `session` | calls back into the build client over its tunnel |
//! | 2 | `lease`, `progress` | who still needs what; what is happening |
//! | 1 | `oci`, `db`, `task`, `proto` | spec values; the embedded store; owned tasks; generated code |
//! | 0 | `failpoint` | where a test kills, fails or delays the process |
//!
//! Generated protobuf types appear only in `service.rs`, `convert.rs`, `llb.rs` and in `session/`.

// Row 0.
pub mod failpoint;
// Row 1.
pub mod db;
pub mod oci;
pub mod proto;
pub mod task;
// Row 2.
pub mod identity;
pub mod lease;
pub mod progress;
// Row 3.
pub mod session;
// Row 4.
pub mod ctx;
// Row 5.
pub mod registry;
// Row 6.
pub mod content;
// Row 7.
pub mod cache;
// Row 8.
pub mod export;
pub mod ops;
// Row 9.
pub mod solver;
// Row 10.
pub mod client;
pub mod control;
pub mod gateway;
// Row 11.
pub mod daemon;
// Row 12.
pub mod cli;

#[cfg(test)]
mod rows;
