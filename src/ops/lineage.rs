//! [`Lineage`]: what a vertex and its ancestors know that helps to load a result.
//!
//! The solver keeps one node per vertex for as long as the vertex, finished or not. Nodes point at
//! those of their inputs, so that [`CacheOptGetter`] can walk them without the solver's loop.
//!
//! # Locking
//!
//! One mutex per node, held to copy or to add an `Arc`.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;

use super::cache_map::CacheOpts;

/// The options of one vertex, and the way to those of its inputs.
#[derive(Default)]
pub struct Lineage {
    opts: Mutex<Vec<CacheOpts>>,
    inputs: Vec<Arc<Lineage>>,
}

impl Lineage {
    pub fn new(inputs: Vec<Arc<Lineage>>) -> Arc<Lineage> {
        Arc::new(Lineage { opts: Mutex::default(), inputs })
    }

    /// Adds the options of one cache map. Empty ones say nothing and are not kept.
    pub fn learn(&self, opts: CacheOpts) {
        if !opts.is_empty() {
            self.opts.lock().unwrap_or_else(PoisonError::into_inner).push(opts);
        }
    }

    /// Forgets them, when the vertex failed: what it offered may be why.
    pub fn forget(&self) {
        self.opts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({} inputs)", self.inputs.len())
    }
}

impl Drop for Lineage {
    /// A loop, since a chain of vertices may be deeper than the stack.
    fn drop(&mut self) {
        let mut rest = std::mem::take(&mut self.inputs);
        while let Some(node) = rest.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                rest.append(&mut node.inputs);
            }
        }
    }
}

/// Finds options of a vertex and its ancestors: depth first, each vertex once, finished ones included.
/// The walk is made when it is first needed, and remembered.
#[derive(Debug, Default)]
pub struct CacheOptGetter {
    start: Arc<Lineage>,
    found: OnceLock<Vec<CacheOpts>>,
}

impl CacheOptGetter {
    pub fn new(start: Arc<Lineage>) -> CacheOptGetter {
        CacheOptGetter { start, found: OnceLock::new() }
    }

    /// Every value of type `T`, from the vertex upwards. Where two ancestors offer the same thing,
    /// both are given: both are candidates.
    pub fn all<T: Any + Send + Sync>(&self) -> impl Iterator<Item = &T> {
        self.found.get_or_init(|| walk(&self.start)).iter().filter_map(CacheOpts::get)
    }
}

fn walk(start: &Arc<Lineage>) -> Vec<CacheOpts> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([Arc::as_ptr(start)]);
    let mut stack = vec![start];
    while let Some(node) = stack.pop() {
        found.extend(node.opts.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        stack.extend(node.inputs.iter().rev().filter(|input| seen.insert(Arc::as_ptr(input))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: u32, inputs: &[&Arc<Lineage>]) -> Arc<Lineage> {
        let node = Lineage::new(inputs.iter().map(|&i| Arc::clone(i)).collect());
        node.learn(CacheOpts::new().with(value));
        node
    }

    #[test]
    fn the_walk_goes_up_from_the_vertex_and_meets_each_ancestor_once() {
        let root = node(0, &[]);
        let (left, right) = (node(1, &[&root]), node(2, &[&root]));
        let top = node(3, &[&left, &right]);
        let getter = CacheOptGetter::new(top);
        let mut all: Vec<u32> = getter.all::<u32>().copied().collect();
        assert_eq!(all[0], 3);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn a_failed_ancestor_offers_nothing() {
        let root = node(0, &[]);
        root.forget();
        let getter = CacheOptGetter::new(node(1, &[&root]));
        assert_eq!(getter.all::<u32>().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_diamond_of_depth_60_is_walked_and_a_chain_of_100_000_dropped() {
        let mut top = node(0, &[]);
        for n in 1..=60 {
            let (left, right) = (node(n, &[&top, &top]), node(n, &[&top, &top]));
            top = node(n, &[&left, &right]);
        }
        assert_eq!(CacheOptGetter::new(top).all::<u32>().count(), 181);
        let mut top = node(0, &[]);
        for n in 0..100_000 {
            top = node(n, &[&top]);
        }
        drop(top);
    }
}
