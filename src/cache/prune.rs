//! What pruning takes: a decision over a list of records, without any I/O (BuildKit's semantics).
//!
//! Only what nobody uses and nothing stands on can go; taking a record sets its parents free. Without
//! a cap everything that matches goes. Under a cap the records that are oldest and least used go
//! first, one by one, until the bytes left are below the cap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::filter::Filter;
use super::record::RecordId;
use super::record::RecordType;
use super::usage::Usage;

/// What to prune. The default takes every unused record that is neither internal nor a frontend's.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Internal and frontend records as well.
    pub all: bool,
    pub filter: Filter,
    /// Records used within this time stay.
    pub keep_duration: Duration,
    /// Bytes that stay whatever else is said.
    pub reserved_space: u64,
    /// Bytes that may stay.
    pub max_used_space: u64,
    /// Free bytes that the disk should have.
    pub min_free_space: u64,
}

impl PruneOptions {
    /// Bytes that may stay, given what is used and what the disk has free; 0 is no cap.
    pub(super) fn keep_bytes(&self, used: u64, free: u64) -> u64 {
        if self.reserved_space == 0 && self.max_used_space == 0 && self.min_free_space == 0 {
            return 0;
        }
        let shortfall = self.min_free_space.saturating_sub(free);
        let keep = match (shortfall, self.max_used_space) {
            (0, 0) if self.min_free_space != 0 => return u64::MAX,
            (0, max) => max,
            (shortfall, 0) => used.saturating_sub(shortfall),
            (shortfall, max) => max.min(used.saturating_sub(shortfall)),
        };
        // 0 would mean no cap, and a cap of nothing takes everything, too.
        keep.max(self.reserved_space)
    }

    fn allows(&self, usage: &Usage, now: Timestamp) -> bool {
        let kept_kind = matches!(usage.record_type, RecordType::Internal | RecordType::Frontend);
        if !self.all && kept_kind {
            return false;
        }
        if !self.keep_duration.is_zero()
            && let Some(last) = usage.last_used_at
            && now.duration_since(last).unsigned_abs() < self.keep_duration
        {
            return false;
        }
        usage.matches(&self.filter)
    }
}

/// The records to take, in order: one that stands on another comes before it.
pub(super) fn choose(usages: &[Usage], options: &PruneOptions, free: u64, now: Timestamp) -> Vec<RecordId> {
    let used = usages.iter().map(|u| u.size).sum();
    let keep = options.keep_bytes(used, free);
    let by_id: HashMap<RecordId, usize> = usages.iter().enumerate().map(|(n, u)| (u.id, n)).collect();
    let mut standing = vec![0usize; usages.len()];
    for usage in usages {
        for parent in &usage.parents {
            if let Some(&parent) = by_id.get(parent) {
                standing[parent] += 1;
            }
        }
    }
    let candidate =
        |n: usize, standing: &[usize]| standing[n] == 0 && !usages[n].held && options.allows(&usages[n], now);
    let worth = worth(usages);
    let entry = |n: usize| Reverse((worth[n], usages[n].id, n));
    let mut open: BinaryHeap<_> = (0..usages.len()).filter(|&n| candidate(n, &standing)).map(entry).collect();
    let mut chosen = Vec::new();
    let mut left: u64 = used;
    while keep == 0 || left >= keep {
        let Some(Reverse((_, id, taken))) = open.pop() else { break };
        left = left.saturating_sub(usages[taken].size);
        chosen.push(id);
        for parent in &usages[taken].parents {
            let Some(&parent) = by_id.get(parent) else { continue };
            standing[parent] -= 1;
            if candidate(parent, &standing) {
                open.push(entry(parent));
            }
        }
    }
    chosen
}

/// What each record is worth, in thousandths: its rank in age and its rank in use, both relative to
/// the number of ranks. Records of one age, or one count, share a rank.
fn worth(usages: &[Usage]) -> Vec<u64> {
    let ranks = |key: fn(&Usage) -> i64| {
        let mut distinct: Vec<i64> = usages.iter().map(key).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let rank = |u: &Usage| 1000 * (distinct.partition_point(|k| *k < key(u)) + 1) / distinct.len();
        usages.iter().map(rank).collect::<Vec<usize>>()
    };
    let by_age = ranks(|u| u.last_used_at.map_or(i64::MIN, Timestamp::as_millisecond));
    let by_use = ranks(|u| i64::try_from(u.usage_count).unwrap_or(i64::MAX));
    by_age.iter().zip(by_use).map(|(age, uses)| (age + uses) as u64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::record::BlobChainId;
    use crate::cache::record::Layer;
    use crate::oci::Descriptor;
    use crate::oci::DiffId;
    use crate::oci::Digest;

    fn id(n: usize) -> RecordId {
        let text = n.to_string();
        let layer = Layer::new(Descriptor::of("t", text.as_bytes()), DiffId(Digest::sha256(&text)));
        BlobChainId::then(None, &layer).record()
    }

    fn usage(n: usize, parents: &[usize], size: u64, last: i64, count: u64) -> Usage {
        Usage {
            id: id(n),
            parents: parents.iter().map(|&p| id(p)).collect(),
            size,
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: (last >= 0).then(|| Timestamp::from_second(last).unwrap()),
            usage_count: count,
            description: String::new(),
            record_type: RecordType::Regular,
            held: false,
            in_use: false,
            mutable: false,
        }
    }

    fn chosen(usages: &[Usage], options: &PruneOptions) -> Vec<usize> {
        let ids = choose(usages, options, 0, Timestamp::from_second(1000).unwrap());
        ids.iter().map(|i| usages.iter().position(|u| u.id == *i).unwrap()).collect()
    }

    #[test]
    fn the_cap_follows_the_formula() {
        let gb = 1 << 30;
        let keep = |reserved, max, min_free, used, free| {
            let options = PruneOptions {
                reserved_space: reserved * gb,
                max_used_space: max * gb,
                min_free_space: min_free * gb,
                ..PruneOptions::default()
            };
            options.keep_bytes(used * gb, free * gb) / gb
        };
        assert_eq!(keep(0, 0, 0, 100, 0), 0, "no cap");
        assert_eq!(keep(10, 0, 0, 100, 0), 10);
        assert_eq!(keep(0, 50, 0, 100, 0), 50);
        assert_eq!(keep(10, 5, 0, 100, 0), 10, "what is reserved stays");
        assert_eq!(keep(0, 0, 30, 100, 50), u64::MAX / gb, "there is enough room");
        assert_eq!(keep(0, 0, 30, 100, 10), 80, "20 are missing");
        assert_eq!(keep(0, 50, 30, 100, 10), 50);
        assert_eq!(keep(0, 90, 30, 100, 10), 80);
        assert_eq!(keep(85, 90, 30, 100, 10), 85);
    }

    #[test]
    fn a_chain_goes_from_the_top_and_stops_at_what_is_in_use() {
        let mut chain = vec![usage(0, &[], 1, 1, 1), usage(1, &[0], 1, 1, 1), usage(2, &[1], 1, 1, 1)];
        assert_eq!(chosen(&chain, &PruneOptions::default()), [2, 1, 0]);
        chain[1].held = true;
        assert_eq!(chosen(&chain, &PruneOptions::default()), [2]);
    }

    #[test]
    fn without_all_internal_and_frontend_records_stay() {
        let mut all = vec![usage(0, &[], 1, 1, 1), usage(1, &[], 1, 1, 1), usage(2, &[], 1, 1, 1)];
        all[0].record_type = RecordType::Internal;
        all[1].record_type = RecordType::Frontend;
        assert_eq!(chosen(&all, &PruneOptions::default()), [2]);
        assert_eq!(chosen(&all, &PruneOptions { all: true, ..PruneOptions::default() }).len(), 3);
    }

    #[test]
    fn what_was_used_lately_stays() {
        let all = vec![usage(0, &[], 1, 990, 1), usage(1, &[], 1, 900, 1), usage(2, &[], 1, -1, 0)];
        let options = PruneOptions { keep_duration: Duration::from_secs(50), ..PruneOptions::default() };
        let mut left = chosen(&all, &options);
        left.sort_unstable();
        assert_eq!(left, [1, 2]);
    }

    #[test]
    fn under_a_cap_the_oldest_and_least_used_go_until_it_fits() {
        let all = vec![usage(0, &[], 10, 100, 1), usage(1, &[], 10, 200, 1), usage(2, &[], 10, 300, 9)];
        let options = PruneOptions { max_used_space: 15, ..PruneOptions::default() };
        assert_eq!(chosen(&all, &options), [0, 1]);
        let options = PruneOptions { max_used_space: 25, ..PruneOptions::default() };
        assert_eq!(chosen(&all, &options), [0]);
        let options = PruneOptions { max_used_space: 31, ..PruneOptions::default() };
        assert!(chosen(&all, &options).is_empty());
    }

    proptest! {
        #[test]
        fn a_choice_never_takes_what_is_used_or_stood_on(
            records in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(any::<proptest::sample::Index>(), 0..3), 0u64..5, 0i64..9), 1..24),
            cap in 0u64..40,
        ) {
            let usages: Vec<Usage> = records.iter().enumerate().map(|(n, (held, parents, size, last))| {
                let parents: Vec<usize> = if n == 0 { vec![] } else {
                    let mut parents: Vec<usize> = parents.iter().map(|p| p.index(n)).collect();
                    parents.sort_unstable();
                    parents.dedup();
                    parents
                };
                Usage { held: *held, ..usage(n, &parents, *size, *last, 1) }
            }).collect();
            let options = PruneOptions { max_used_space: cap, ..PruneOptions::default() };
            let taken = chosen(&usages, &options);
            let mut gone = std::collections::HashSet::new();
            for n in taken {
                prop_assert!(!usages[n].held);
                for (other, u) in usages.iter().enumerate() {
                    prop_assert!(!u.parents.contains(&usages[n].id) || gone.contains(&other), "{other} stands on {n}");
                }
                prop_assert!(gone.insert(n), "taken once");
            }
            let left: u64 = usages.iter().enumerate().filter(|(n, _)| !gone.contains(n)).map(|(_, u)| u.size).sum();
            let removable = |n: usize| !usages[n].held && !gone.contains(&n)
                && usages.iter().enumerate().all(|(o, u)| gone.contains(&o) || !u.parents.contains(&usages[n].id));
            prop_assert!((cap != 0 && left < cap) || !(0..usages.len()).any(removable), "it stops early only at the cap");
        }
    }
}
