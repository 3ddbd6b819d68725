//! [`Slow`]: registries that did not answer in time, lately.
//!
//! Others are asked before them, so that one that is gone is waited for once, and not for each blob.

use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;

use super::Origin;

/// So long a registry counts as slow.
const LATELY: Duration = Duration::from_secs(60);

/// By host. What is no registry is never slow.
#[derive(Debug, Default)]
pub(super) struct Slow(DashMap<String, Instant>);

impl Slow {
    /// It did not answer in time.
    pub(super) fn note(&self, origin: Option<&Origin>) {
        if let Some(Origin::Registry { host, .. }) = origin {
            self.0.insert(host.clone(), Instant::now());
        }
    }

    pub(super) fn has(&self, origin: Option<&Origin>) -> bool {
        let Some(Origin::Registry { host, .. }) = origin else { return false };
        self.0.remove_if(host, |_, since| since.elapsed() > LATELY);
        self.0.contains_key(host)
    }
}
