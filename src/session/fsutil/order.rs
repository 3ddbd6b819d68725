//! [`Order`]: that entries come in the order of a walk, with clean paths.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use super::FileKind;
use super::FileStat;
use super::TransferError;

/// Of a path, in bytes.
const MAX_PATH: usize = 4095;
/// Of one of its names.
const MAX_NAME: usize = 255;

/// Checks one entry after the other.
#[derive(Default)]
pub(super) struct Order {
    /// The directory of the last entry and those above it, each with the last name that was seen in it.
    above: Vec<(Vec<u8>, Vec<u8>)>,
    last: Vec<u8>,
    /// Hashes of the paths of files, with a key of our own: a sender can't make two meet.
    files: HashSet<u64>,
    hasher: RandomState,
}

impl Order {
    pub(super) fn new() -> Order {
        Order { above: vec![(Vec::new(), Vec::new())], ..Order::default() }
    }

    pub(super) fn check(&mut self, stat: &FileStat) -> Result<(), TransferError> {
        let path = stat.path.as_slice();
        clean(path)?;
        let (parent, name) = split(path);
        while self.above.len() > 1 && self.above.last().is_some_and(|(dir, _)| dir != parent) {
            self.above.pop();
        }
        match self.above.last_mut() {
            Some((dir, last)) if dir == parent && last.as_slice() < name => {
                last.clear();
                last.extend_from_slice(name);
            }
            _ => return Err(TransferError::Order { path: text(path), after: text(&self.last) }),
        }
        match &stat.kind {
            FileKind::Directory => self.above.push((path.to_vec(), Vec::new())),
            FileKind::Symlink { .. } => {}
            FileKind::HardLink { target } => {
                if !self.files.contains(&self.hasher.hash_one(target.as_slice())) {
                    return Err(TransferError::Link { path: text(path), target: text(target) });
                }
            }
            _ => {
                self.files.insert(self.hasher.hash_one(path));
            }
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        Ok(())
    }
}

pub(super) fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The directory, empty for the root, and the name in it.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn clean(path: &[u8]) -> Result<(), TransferError> {
    let reason = if path.is_empty() {
        "it is empty"
    } else if path.starts_with(b"/") {
        "it is absolute"
    } else if path.len() > MAX_PATH {
        "it is too long"
    } else if path.contains(&0) {
        "it contains NUL"
    } else if path.split(|&b| b == b'/').any(|name| name == b"..") {
        "it leaves its directory"
    } else if path.split(|&b| b == b'/').any(|name| name.is_empty() || name == b".") {
        "it is not clean"
    } else if path.split(|&b| b == b'/').any(|name| name.len() > MAX_NAME) {
        "a name in it is too long"
    } else {
        return Ok(());
    };
    Err(TransferError::Path { path: text(path), reason })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(entries: &[(&str, FileKind)]) -> Result<(), TransferError> {
        let mut order = Order::new();
        entries.iter().try_for_each(|(path, kind)| order.check(&FileStat::new(*path, kind.clone(), 0o644)))
    }

    use FileKind::Directory;
    use FileKind::File;

    fn link(target: &str) -> FileKind {
        FileKind::HardLink { target: target.into() }
    }

    #[test]
    fn a_walk_is_in_order() {
        check(&[
            ("a", Directory),
            ("a/b", Directory),
            ("a/b/c", File),
            ("a/d", File),
            ("a-b", File),
            ("b", Directory),
            ("b/x", link("a/b/c")),
        ])
        .unwrap();
    }

    #[test]
    fn what_is_no_walk_is_refused() {
        for entries in [
            &[("b", File), ("a", File)][..],
            &[("a", File), ("a", File)],
            &[("a", Directory), ("a-b", File), ("a/c", File)],
            &[("a/b", File)],
            &[("a", File), ("a/b", File)],
            &[("a", Directory), ("b", Directory), ("a/b", File)],
            &[("a", Directory), ("a/b", Directory), ("a/c", File), ("a/b/d", File)],
        ] {
            let error = check(entries).unwrap_err();
            assert!(matches!(error, TransferError::Order { .. }), "{entries:?}: {error}");
        }
    }

    #[test]
    fn a_path_that_could_lead_elsewhere_is_refused() {
        let long = "n".repeat(256);
        for path in ["", "/a", "..", "../a", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b", &long] {
            let error = check(&[("a", Directory), (path, File)]).unwrap_err();
            assert!(matches!(error, TransferError::Path { .. }), "{path:?}: {error}");
        }
    }

    #[test]
    fn a_link_leads_to_a_file_that_came_before() {
        for entries in [
            &[("a", link("b")), ("b", File)][..],
            &[("a", Directory), ("b", link("a"))],
            &[("a", link("../../etc/shadow"))],
            &[("a", File), ("b", link("a")), ("c", link("b"))],
        ] {
            let error = check(entries).unwrap_err();
            assert!(matches!(error, TransferError::Link { .. }), "{entries:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_sorted_tree_passes_and_no_other_order_does(
            names in proptest::collection::btree_set("[ab./-]{1,2}", 2..6),
            swap in 0usize..4,
        ) {
            let names = names.iter().filter(|n| clean(n.as_bytes()).is_ok() && !n.contains('/'));
            let mut entries: Vec<(String, FileKind)> = Vec::new();
            for name in names {
                entries.push((name.clone(), Directory));
                entries.push((format!("{name}/f"), File));
            }
            let key = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            entries.sort_by_key(|(path, _)| key(path));
            let check = |entries: &[(String, FileKind)]| {
                let mut order = Order::new();
                entries.iter().try_for_each(|(p, k)| order.check(&FileStat::new(p.as_str(), k.clone(), 0)))
            };
            prop_assert!(check(&entries).is_ok());
            if swap + 1 < entries.len() {
                entries.swap(swap, swap + 1);
                prop_assert!(check(&entries).is_err());
            }
        }
    }
}
