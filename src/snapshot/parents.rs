//! [`Parents`]: what a snapshot stands on, shared with all that stand on the same and more.
//!
//! # Invariants
//!
//! Whoever stands on something and one more adds that one and copies nothing, so that a chain takes memory and time as
//! it is long, and not as its square. Nothing recurses: chains are as deep as a client makes them.

use std::collections::HashSet;
use std::fmt;
use std::iter::successors;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::SnapshotKey;

/// So many of the lowest are a *block*, as many above them are the next one, and so on: see `squash.rs`.
pub(super) const BLOCK: usize = 50;

/// Snapshots that lie on each other. Clones are the same list.
#[derive(Clone, Default)]
pub struct Parents(Option<Arc<Level>>);

/// A snapshot on top of others.
struct Level {
    below: Parents,
    key: SnapshotKey,
    /// With those below.
    count: usize,
    /// The generation in which this one and all below it were last looked at.
    seen: AtomicU64,
    /// Of the topmost of a block.
    block: Option<Box<End>>,
}

struct End {
    /// The list up to the block below.
    below: Parents,
    name: OnceLock<String>,
}

/// A block of a list.
pub(super) struct Block<'p> {
    top: &'p Level,
    end: &'p End,
}

impl Parents {
    /// These with one on top of them.
    pub fn with(&self, key: SnapshotKey) -> Parents {
        let count = self.count() + 1;
        let block = count.is_multiple_of(BLOCK).then(|| {
            let below = self.levels().nth(BLOCK - 1).cloned();
            Box::new(End { below: Parents(below), name: OnceLock::new() })
        });
        let seen = AtomicU64::new(0);
        Parents(Some(Arc::new(Level { below: self.clone(), key, count, seen, block })))
    }

    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |level| level.count)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn top(&self) -> Option<&SnapshotKey> {
        self.0.as_ref().map(|level| &level.key)
    }

    /// From the topmost to the lowest.
    pub fn iter(&self) -> impl Iterator<Item = &SnapshotKey> {
        self.levels().map(|level| &level.key)
    }

    fn levels(&self) -> impl Iterator<Item = &Arc<Level>> {
        successors(self.0.as_ref(), |level| level.below.0.as_ref())
    }

    /// All that are in one of `lists`. What lists share is looked at once.
    pub(crate) fn union<'p>(lists: impl IntoIterator<Item = &'p Parents>) -> HashSet<&'p SnapshotKey> {
        let mut levels = HashSet::new();
        let mut keys = HashSet::new();
        for list in lists {
            let new = list.levels().take_while(|level| levels.insert(Arc::as_ptr(level)));
            keys.extend(new.map(|level| &level.key));
        }
        keys
    }

    /// Those that were not [looked at](Parents::look) in this generation, from the topmost. Nobody has to look at the
    /// others again.
    pub(super) fn unseen(&self, generation: u64) -> impl Iterator<Item = &SnapshotKey> {
        let unseen = move |level: &&Arc<Level>| level.seen.load(Ordering::Relaxed) != generation;
        self.levels().take_while(unseen).map(|level| &level.key)
    }

    /// All of these were looked at in this generation.
    pub(super) fn look(&self, generation: u64) {
        let unseen = |level: &&Arc<Level>| level.seen.swap(generation, Ordering::Relaxed) != generation;
        self.levels().take_while(unseen).for_each(drop);
    }

    /// What lies above the lowest `count` blocks, and these; both from the topmost.
    pub(super) fn blocks(
        &self,
        count: usize,
    ) -> (impl Iterator<Item = &SnapshotKey>, impl Iterator<Item = Block<'_>>) {
        let above = self.count().saturating_sub(count * BLOCK);
        let top = self.levels().nth(above).and_then(|level| Block::of(level));
        (self.iter().take(above), successors(top, |block| Block::of(block.end.below.0.as_deref()?)))
    }
}

impl<'p> Block<'p> {
    fn of(top: &'p Level) -> Option<Block<'p>> {
        Some(Block { top, end: top.block.as_deref()? })
    }

    /// From the lowest to the topmost.
    pub(super) fn keys(&self) -> Vec<SnapshotKey> {
        let levels = successors(Some(self.top), |level| level.below.0.as_deref());
        let mut keys: Vec<_> = levels.take(BLOCK).map(|level| level.key.clone()).collect();
        keys.reverse();
        keys
    }

    /// True if nothing is below it.
    pub(super) fn is_lowest(&self) -> bool {
        self.end.below.is_empty()
    }

    /// What `name` gives for it, which is asked once.
    pub(super) fn name(&self, name: impl FnOnce() -> String) -> &str {
        self.end.name.get_or_init(name)
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let mut below = self.below.0.take();
        while let Some(mut level) = below.and_then(Arc::into_inner) {
            below = level.below.0.take();
        }
    }
}

/// Lowest first.
impl FromIterator<SnapshotKey> for Parents {
    fn from_iter<I: IntoIterator<Item = SnapshotKey>>(keys: I) -> Parents {
        keys.into_iter().fold(Parents::default(), |below, key| below.with(key))
    }
}

impl PartialEq for Parents {
    fn eq(&self, other: &Parents) -> bool {
        let levels = self.levels().zip(other.levels());
        let mut own = levels.take_while(|(one, other)| !Arc::ptr_eq(one, other));
        self.count() == other.count() && own.all(|(one, other)| one.key == other.key)
    }
}

impl Eq for Parents {}

impl fmt::Debug for Parents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<usize>) -> Vec<SnapshotKey> {
        range.map(|n| SnapshotKey::new(&n.to_string()).expect("a valid key")).collect()
    }

    fn list(range: std::ops::Range<usize>) -> Parents {
        keys(range).into_iter().collect()
    }

    #[test]
    fn lists_on_each_other_share_what_is_below() {
        let below = list(0..3);
        let above = [below.with(keys(3..4).remove(0)), below.with(keys(4..5).remove(0))];
        for list in &above {
            let level = list.0.as_deref().expect("a level");
            assert!(Arc::ptr_eq(
                level.below.0.as_ref().expect("a level"),
                below.0.as_ref().expect("a level")
            ));
        }
        assert!(above[0].iter().eq(keys(0..4).iter().rev()));
        assert_eq!((above[0].count(), above[0].top()), (4, keys(3..4).first()));
        assert_eq!(above[0], list(0..4));
        assert_ne!(above[0], above[1]);
        assert_ne!(above[0], below);
        assert_eq!(Parents::union(&above).len(), 5);
    }

    #[test]
    fn what_was_looked_at_in_a_generation_is_not_looked_at_again() {
        let below = list(0..4);
        assert_eq!(below.unseen(7).count(), 4);
        below.look(7);
        let above = below.with(keys(4..5).remove(0));
        assert!(above.unseen(7).eq(&keys(4..5)));
        above.look(7);
        assert_eq!((above.unseen(7).count(), above.unseen(8).count()), (0, 5));
    }

    #[test]
    fn blocks_are_the_lowest_of_a_list() {
        let all = list(0..3 * BLOCK + 7);
        for count in 0..=3 {
            let (above, blocks) = all.blocks(count);
            assert!(above.eq(keys(count * BLOCK..3 * BLOCK + 7).iter().rev()));
            let blocks: Vec<_> = blocks.map(|block| (block.keys(), block.is_lowest())).collect();
            let expected = (0..count).rev().map(|n| (keys(n * BLOCK..(n + 1) * BLOCK), n == 0));
            assert!(blocks.into_iter().eq(expected));
        }
        let whole = list(0..BLOCK);
        assert_eq!(whole.blocks(1).0.count(), 0);
        assert_eq!(whole.blocks(1).1.count(), 1);
    }

    #[test]
    fn a_long_list_goes_without_recursion() {
        let long = list(0..200_000);
        let half = long.clone();
        drop(long);
        assert_eq!(half.count(), 200_000);
        drop(half);
    }
}
