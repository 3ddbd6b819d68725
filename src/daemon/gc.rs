//! Collecting garbage without being asked.
//!
//! The rules are those of `buildkitd`. They are applied soon after the start, since rules and room may have changed
//! meanwhile, and soon after something was let go of, at most once in [`PACE`]. They are applied every [`INTERVAL`] in any
//! case, for what only time makes garbage.

use std::path::Path;
use std::time::Duration;

use super::config::GcConfig;
use super::config::GcLimits;
use super::config::GcRule;
use super::units::Space;
use crate::cache::Cache;
use crate::cache::Filter;
use crate::cache::InvalidFilter;
use crate::cache::PruneOptions;
use crate::identity::GcPolicy;
use crate::task::Tasks;

/// From what is the reason for a collection until it begins: a build lets go of much at once.
const SETTLE: Duration = Duration::from_secs(1);
/// The shortest time between two collections.
const PACE: Duration = Duration::from_secs(60);
/// The longest time between two collections.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Parts of a fetch that nobody came back for.
const PARTIALS: Duration = Duration::from_secs(24 * 3600);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What `config` says for a disk of `total` bytes.
pub(super) fn policies(config: &GcConfig, total: u64) -> Vec<GcPolicy> {
    match config {
        GcConfig::Off => Vec::new(),
        GcConfig::Rules(rules) => rules.iter().map(|rule| policy(rule, total)).collect(),
        GcConfig::Standard(limits) => {
            let limits = if *limits == GcLimits::default() { limits_of(total) } else { *limits };
            let rules = [
                // What is quickly made again goes first, once it is more than a little.
                GcRule {
                    filters: ["source.local", "exec.cachemount", "source.git.checkout"]
                        .map(|kind| format!("type=={kind}"))
                        .to_vec(),
                    keep: 2 * DAY,
                    limits: GcLimits { max_used: Some(Space::Bytes(512_000_000)), ..GcLimits::default() },
                    ..GcRule::default()
                },
                GcRule { keep: 60 * DAY, limits, ..GcRule::default() },
                GcRule { limits, ..GcRule::default() },
                GcRule { all: true, limits, ..GcRule::default() },
            ];
            rules.iter().map(|rule| policy(rule, total)).collect()
        }
    }
}

/// The limits that follow from the size of a disk alone.
fn limits_of(total: u64) -> GcLimits {
    let at_most = |percent, bytes| Space::Bytes(Space::Percent(percent).bytes(total).min(bytes));
    GcLimits {
        reserved: Some(at_most(10, 10_000_000_000)),
        max_used: Some(at_most(80, 100_000_000_000)),
        min_free: Some(Space::Percent(20)),
    }
}

fn policy(rule: &GcRule, total: u64) -> GcPolicy {
    let bytes = |space: Option<Space>| space.map_or(0, |space| space.bytes(total));
    GcPolicy {
        all: rule.all,
        keep: rule.keep,
        filters: rule.filters.clone(),
        reserved: bytes(rule.limits.reserved),
        max_used: bytes(rule.limits.max_used),
        min_free: bytes(rule.limits.min_free),
    }
}

/// Bytes of the file system that holds `root`, 0 if nobody knows.
pub(super) fn disk_size(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(0, |fs| fs.f_blocks.saturating_mul(fs.f_frsize))
}

/// The policies as the cache takes them.
pub(super) fn prunes(policies: &[GcPolicy]) -> Result<Vec<PruneOptions>, InvalidFilter> {
    let prune = |policy: &GcPolicy| {
        Ok(PruneOptions {
            all: policy.all,
            filter: Filter::parse(&policy.filters)?,
            keep_duration: policy.keep,
            reserved_space: policy.reserved,
            max_used_space: policy.max_used,
            min_free_space: policy.min_free,
        })
    };
    policies.iter().map(prune).collect()
}

/// Collects by `prunes` until `tasks` is shut down.
pub(super) fn start(cache: Cache, prunes: Vec<PruneOptions>, tasks: &Tasks) {
    if prunes.is_empty() {
        return;
    }
    let stop = tasks.token().clone();
    tasks.spawn("garbage collection", async move {
        stop.run_until_cancelled(collect(&cache, &prunes)).await;
    });
}

async fn collect(cache: &Cache, prunes: &[PruneOptions]) {
    loop {
        tokio::time::sleep(SETTLE).await;
        match cache.collect_garbage(prunes).await {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "collected garbage"),
            Err(error) => tracing::warn!(%error, "garbage can't be collected"),
        }
        match cache.content().collect(PARTIALS).await {
            Ok(collected) => tracing::debug!(?collected, "collected blobs"),
            Err(error) => tracing::warn!(%error, "blobs can't be collected"),
        }
        tokio::time::sleep(PACE).await;
        // Whatever comes first; a timeout is no error.
        let _ = tokio::time::timeout(INTERVAL, cache.content().leases().released()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERABYTE: u64 = 1_000_000_000_000;

    #[test]
    fn the_standard_rules_follow_from_the_disk() {
        let policies = policies(&GcConfig::Standard(GcLimits::default()), TERABYTE);
        assert_eq!(policies.len(), 4);
        assert_eq!((policies[0].max_used, policies[0].keep), (512_000_000, 2 * DAY));
        assert_eq!(policies[2].reserved, 10_000_000_000);
        assert_eq!(policies[2].max_used, 100_000_000_000);
        assert_eq!(policies[2].min_free, TERABYTE / 5);
        assert!(policies[3].all && !policies[2].all);
        assert!(prunes(&policies).is_ok());
    }

    #[test]
    fn what_is_said_replaces_what_follows_from_the_disk() {
        let limits = GcLimits { max_used: Some(Space::Percent(60)), ..GcLimits::default() };
        let standard = policies(&GcConfig::Standard(limits), TERABYTE);
        assert_eq!((standard[3].reserved, standard[3].max_used), (0, 600_000_000_000));
        let rule = GcRule { all: true, keep: DAY, ..GcRule::default() };
        let rules = policies(&GcConfig::Rules(vec![rule]), TERABYTE);
        assert_eq!(rules, [GcPolicy { all: true, keep: DAY, ..GcPolicy::default() }]);
        assert_eq!(policies(&GcConfig::Off, TERABYTE), []);
    }
}
