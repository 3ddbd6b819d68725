//! [`Executions`]: the runs that vertices of the same key can share.
//!
//! A run is found as records are: by the keys of its vertex, or by links that lead to it from every
//! input. It is there from its start for as long as its node, so that a result without a record is
//! shared as well.

use super::key::Key;
use super::key::Link;
use super::state::NodeId;
use crate::oci::QuickMap;

/// Runs by the keys and links that lead to them.
#[derive(Debug, Default)]
pub struct Executions {
    by_key: QuickMap<Key, Vec<NodeId>>,
    by_link: QuickMap<Link, Vec<NodeId>>,
    /// What leads to each run, to take it out again.
    ways: QuickMap<NodeId, (Vec<Key>, Vec<Link>)>,
}

impl Executions {
    /// Registers a run. Twice is once.
    pub fn insert(&mut self, id: NodeId, keys: Vec<Key>, links: Vec<Link>) {
        self.remove(id);
        for key in &keys {
            self.by_key.entry(*key).or_default().push(id);
        }
        for link in &links {
            self.by_link.entry(*link).or_default().push(id);
        }
        self.ways.insert(id, (keys, links));
    }

    /// Takes a run out; false if there is none.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let Some((keys, links)) = self.ways.remove(&id) else { return false };
        for key in keys {
            take(&mut self.by_key, &key, id);
        }
        for link in links {
            take(&mut self.by_link, &link, id);
        }
        true
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty() && self.by_key.is_empty() && self.by_link.is_empty()
    }

    /// A run with one of `keys`, or one that is reached from each of the inputs through one of the
    /// input's links.
    pub fn find(
        &self,
        keys: &[Key],
        inputs: impl Iterator<Item = Vec<Link>>,
        fits: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let by_key = keys.iter().filter_map(|key| self.by_key.get(key)).flatten().copied();
        if let Some(found) = by_key.into_iter().find(|id| fits(*id)) {
            return Some(found);
        }
        let mut left: Option<Vec<NodeId>> = None;
        for links in inputs {
            let reached = links.iter().filter_map(|link| self.by_link.get(link)).flatten().copied();
            let next: Vec<NodeId> = match &left {
                None => reached.filter(|id| fits(*id)).collect(),
                Some(left) => reached.filter(|id| left.contains(id)).collect(),
            };
            if next.is_empty() {
                return None;
            }
            left = Some(next);
        }
        left?.first().copied()
    }
}

fn take<K: std::hash::Hash + Eq>(map: &mut QuickMap<K, Vec<NodeId>>, key: &K, id: NodeId) {
    if let Some(list) = map.get_mut(key) {
        list.retain(|other| *other != id);
        if list.is_empty() {
            map.remove(key);
        }
    }
}
