//! The crate as a fuzzer links it: the modules that take bytes of strangers and need no daemon for it, under the paths
//! that they have in `lib.rs`. No row above them is built, and none of what those depend on.
//!
//! This is the root of the library in `integration/fuzz`, and stands here since a module is looked for beside its root.

pub mod archive;
pub mod failpoint;
pub mod fs;
pub mod oci;
pub mod pattern;
pub mod snapshot;
pub mod task;
