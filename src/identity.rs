//! Who this daemon is: its version, and the worker that it shows to clients.

pub mod convert;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::oci::Platform;

/// The package that clients expect a daemon of this protocol to be.
pub const PACKAGE: &str = "github.com/moby/buildkit";

/// The version of BuildKit whose protocol this is. Clients choose what to ask by it.
const PROTOCOL: &str = "v0.33.0";

/// What clients are told of this daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Stays the same across restarts.
    pub worker: String,
    pub labels: BTreeMap<String, String>,
    /// The first is the default. Never empty.
    pub platforms: Vec<Platform>,
    /// What is collected without being asked, in order.
    pub gc: Vec<GcPolicy>,
    pub version: Version,
}

/// One rule of collection, amounts in bytes, 0 for no limit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GcPolicy {
    pub all: bool,
    pub keep: Duration,
    pub filters: Vec<String>,
    pub reserved: u64,
    pub max_used: u64,
    pub min_free: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    pub package: String,
    pub version: String,
    pub revision: String,
}

impl Default for Version {
    fn default() -> Version {
        Version {
            package: PACKAGE.to_owned(),
            version: format!("{PROTOCOL}+thunk.{}", env!("CARGO_PKG_VERSION")),
            revision: String::new(),
        }
    }
}
