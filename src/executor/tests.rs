//! Real processes in a root that holds busybox and nothing else. They need root and a runtime; both are there in CI.

mod ending;
mod fixture;
mod leftovers;
mod mounts;
mod sandbox;

use fixture::Fixture;
use fixture::installed;
