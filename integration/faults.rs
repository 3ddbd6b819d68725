//! Every fault at every step of a build, one by one, against `thunkd` as a process.
//!
//! A case is a build during which one kind of request goes wrong in one way, once or always. It must
//! end as its table says, and whatever the end:
//!
//! - an error names the host, the repository and what was asked for, and no secret,
//! - no blob of the daemon or of the registry is anything but what its name says,
//! - a manifest at the registry has everything below it,
//! - an archive that did not become whole does not end as one,
//! - the same build succeeds once the fault is over.

mod lost;
mod matrix;
mod mirrors;
mod pull;
mod push;
mod through_buildctl;

use std::time::Duration;

use crate::harness::DaemonOptions;

/// How long the daemons here wait for a registry that says nothing.
const STALL: Duration = Duration::from_secs(2);

/// Tries of a request that fails in a way that may pass.
const TRIES: usize = 3;

/// A daemon that waits little in vain.
pub fn impatient(config: &str) -> DaemonOptions {
    let waits = format!(
        "[thunk.registry]\nretries = {}\nretryBase = \"20ms\"\nmaxRetryAfter = \"3s\"\n\
         stallTimeout = \"{STALL:?}\"\ncommitTimeout = \"{STALL:?}\"\n",
        TRIES - 1,
    );
    DaemonOptions { config: waits + config, ..DaemonOptions::default() }
}
