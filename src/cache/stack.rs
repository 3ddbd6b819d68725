//! [`Stack`]: the change sets of a state, shared with the states that stand on it.
//!
//! # Invariants
//!
//! Each state of a chain adds its own change sets to those of the one below and copies none, so that a chain takes
//! memory as it is long, and not as its square. Nothing recurses: chains are as deep as a client makes them.

use std::iter::successors;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::footing::Seen;
use super::record::Layer;
use super::record::Part;
use super::snapshots::Generation;
use crate::snapshot::Parents;

/// Change sets, bottom first. Clones are the same stack.
#[derive(Clone, Default)]
pub(super) struct Stack(Option<Arc<Level>>);

struct Level {
    below: Stack,
    own: Box<[Part]>,
    /// With those below.
    count: usize,
    /// Those that were given as blobs, with those below.
    blobs: usize,
    /// What was last found of the files.
    seen: Mutex<Option<Seen>>,
}

/// What is known of the files of a state.
pub(super) struct Known {
    /// The snapshots of the lowest change sets, which were all there.
    pub(super) parents: Parents,
    /// How many change sets these are.
    pub(super) count: usize,
}

impl Stack {
    /// This stack with `own` on top of it.
    pub(super) fn with(&self, own: impl IntoIterator<Item = Part>) -> Stack {
        let own: Box<[Part]> = own.into_iter().collect();
        if own.is_empty() {
            return self.clone();
        }
        let blobs = own.iter().filter(|part| part.blob().is_some()).count();
        Stack(Some(Arc::new(Level {
            below: self.clone(),
            count: self.count() + own.len(),
            blobs: self.blob_count() + blobs,
            seen: Mutex::default(),
            own,
        })))
    }

    /// The number of those that were given as blobs.
    pub(super) fn blob_count(&self) -> usize {
        self.0.as_ref().map_or(0, |level| level.blobs)
    }

    pub(super) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |level| level.count)
    }

    /// The change sets, bottom first. Goes through all levels at once.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Part> {
        self.above(0)
    }

    /// The change sets above the lowest `count`, bottom first, where a state that this one stands on has as many.
    pub(super) fn above(&self, count: usize) -> impl DoubleEndedIterator<Item = &Part> {
        let mut levels: Vec<&Level> = self.levels().take_while(|level| level.count > count).collect();
        levels.reverse();
        levels.into_iter().flat_map(|level| &level.own)
    }

    /// The layers that were given as blobs, bottom first. Goes through the levels above the lowest of them.
    pub(super) fn blobs(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        let mut levels: Vec<&Level> = self.levels().take_while(|level| level.blobs > 0).collect();
        levels.reverse();
        levels.into_iter().flat_map(|level| level.own.iter().filter_map(Part::blob))
    }

    fn levels(&self) -> impl Iterator<Item = &Level> {
        successors(self.0.as_deref(), |level| level.below.0.as_deref())
    }

    /// Notes that the files of all change sets are here.
    pub(super) fn note(&self, seen: Seen) {
        if let Some(level) = &self.0 {
            *level.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        }
    }

    /// What was noted of this state, or of the highest one below it, if that is of this generation.
    pub(super) fn known(&self, now: Generation) -> Known {
        let known = self.levels().find_map(|level| {
            let seen = level.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.as_ref().filter(|seen| seen.when == now)?;
            Some(Known { parents: seen.parents.clone(), count: level.count })
        });
        known.unwrap_or_else(|| Known { parents: Parents::default(), count: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::record::ChangeSet;
    use crate::cache::record::Layer;
    use crate::cache::record::RecordId;
    use crate::oci::Descriptor;
    use crate::oci::DiffId;
    use crate::oci::Digest;

    fn part() -> Part {
        let layer = Layer::new(Descriptor::of("t", b"x"), DiffId(Digest::sha256("x")));
        Part { record: RecordId::random(), set: ChangeSet::Blob(Arc::new(layer)) }
    }

    #[test]
    fn a_stack_lists_what_is_below_first() {
        let parts: Vec<Part> = (0..6).map(|_| part()).collect();
        let stack = Stack::default().with(parts[..2].to_vec()).with(Vec::new()).with(parts[2..5].to_vec());
        let stack = stack.with([parts[5].clone()]);
        assert_eq!(stack.count(), 6);
        assert!(stack.iter().eq(&parts));
        assert!(stack.iter().rev().eq(parts.iter().rev()));
        assert_eq!(Stack::default().iter().count(), 0);
    }

    /// A chain of 3,000 steps took 420 MB: each listed all that are below it.
    #[test]
    fn states_on_each_other_share_what_is_below() {
        let below = Stack::default().with([part(), part()]);
        let above = [below.with([part()]), below.with([part()])];
        for stack in &above {
            let level = stack.0.as_deref().unwrap();
            assert!(Arc::ptr_eq(level.below.0.as_ref().unwrap(), below.0.as_ref().unwrap()));
            assert_eq!(level.own.len(), 1);
        }
    }

    #[test]
    fn a_deep_stack_goes_without_recursion() {
        let one = part();
        let deep = (0..200_000).fold(Stack::default(), |below, _| below.with([one.clone()]));
        let half = deep.clone();
        drop(deep);
        assert_eq!(half.count(), 200_000);
        drop(half);
    }
}
