//! [`Lanes`]: how many requests a host gets at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::LaneLimits;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;

/// Hosts remembered before idle ones are forgotten: names come from build definitions.
const MAX_HOSTS: usize = 1024;

/// What a request does, as far as limits care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    Metadata,
    Download,
    Upload,
}

/// The right to have one request under way; given back when dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Pass {
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Host {
    metadata: Arc<Semaphore>,
    download: Arc<Semaphore>,
    upload: Arc<Semaphore>,
}

/// The lanes of all hosts. First come, first served within a lane; lanes don't wait for each other.
#[derive(Debug)]
pub(super) struct Lanes {
    limits: LaneLimits,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

impl Lanes {
    pub fn new(limits: LaneLimits) -> Lanes {
        Lanes { limits, hosts: Mutex::default() }
    }

    /// Waits for a free place. Cancellation safe: a waiter that leaves has taken nothing.
    pub async fn enter(&self, ctx: &Ctx, host: &str, lane: Lane) -> Result<Pass, Cancelled> {
        let host = self.host(host);
        let semaphore = match lane {
            Lane::Metadata => &host.metadata,
            Lane::Download => &host.download,
            Lane::Upload => &host.upload,
        };
        match ctx.run(Arc::clone(semaphore).acquire_owned()).await? {
            Ok(permit) => Ok(Pass { _permit: permit }),
            Err(_) => unreachable!("lanes are never closed"),
        }
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(name) {
            return Arc::clone(host);
        }
        let lane = |limit: usize| Arc::new(Semaphore::new(limit.max(1)));
        let host = Arc::new(Host {
            metadata: lane(self.limits.metadata),
            download: lane(self.limits.download),
            upload: lane(self.limits.upload),
        });
        if hosts.len() >= MAX_HOSTS {
            // Whoever holds or awaits a permit holds a lane: such hosts stay.
            let is_used = |lane: &Arc<Semaphore>| Arc::strong_count(lane) > 1;
            hosts.retain(|_, host| {
                Arc::strong_count(host) > 1
                    || [&host.metadata, &host.download, &host.upload].into_iter().any(is_used)
            });
        }
        hosts.insert(name.to_owned(), Arc::clone(&host));
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_lane_holds_back_its_own_host_and_kind_only() {
        let lanes = Lanes::new(LaneLimits { metadata: 1, download: 1, upload: 0 });
        let ctx = Ctx::background();
        let first = lanes.enter(&ctx, "a", Lane::Download).await.unwrap();
        let mut second = Box::pin(lanes.enter(&ctx, "a", Lane::Download));
        assert!(futures::poll!(&mut second).is_pending());
        let _others = (
            lanes.enter(&ctx, "a", Lane::Metadata).await.unwrap(),
            lanes.enter(&ctx, "a", Lane::Upload).await.unwrap(),
            lanes.enter(&ctx, "b", Lane::Download).await.unwrap(),
        );
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn idle_hosts_are_forgotten_and_limits_in_use_are_not() {
        let lanes = Lanes::new(LaneLimits { metadata: 1, download: 1, upload: 1 });
        let ctx = Ctx::background();
        let busy = lanes.enter(&ctx, "busy", Lane::Download).await.unwrap();
        for n in 0..3 * MAX_HOSTS {
            drop(lanes.enter(&ctx, &n.to_string(), Lane::Metadata).await.unwrap());
        }
        assert!(lanes.hosts.lock().unwrap().len() <= MAX_HOSTS);
        let mut second = Box::pin(lanes.enter(&ctx, "busy", Lane::Download));
        assert!(futures::poll!(&mut second).is_pending());
        drop(busy);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_and_takes_nothing() {
        let lanes = Lanes::new(LaneLimits { metadata: 1, download: 1, upload: 1 });
        let (ctx, background) = (Ctx::background().child(), Ctx::background());
        let first = lanes.enter(&background, "a", Lane::Upload).await.unwrap();
        let mut waiter = Box::pin(lanes.enter(&ctx, "a", Lane::Upload));
        assert!(futures::poll!(&mut waiter).is_pending());
        ctx.cancel().cancel();
        assert!(waiter.await.is_err());
        drop(first);
        assert!(lanes.enter(&background, "a", Lane::Upload).await.is_ok());
    }
}
