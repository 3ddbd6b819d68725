//! Removing many snapshots in one go.
//!
//! Taking a snapshot away is a rename, and they are taken away one after the other. Deleting their files is what takes
//! long, and most of that is waiting for the disk: it is done side by side.

use std::path::Path;
use std::path::PathBuf;
use std::thread;

use super::SnapshotError;
use super::SnapshotKey;
use super::store::Store;

/// Threads that delete files at most.
const LANES: usize = 4;

/// Directories for which a thread is worth its start.
const LANE: usize = 16;

/// Removes those of `keys` that can be, in their order, and returns the others. Their files are deleted when this
/// returns. `before` as in [`Store::remove`]. Blocks.
pub(super) fn remove_all(
    store: &Store,
    keys: Vec<SnapshotKey>,
    before: impl Fn(&SnapshotKey) -> Result<Vec<PathBuf>, SnapshotError>,
) -> Vec<(SnapshotKey, SnapshotError)> {
    let (mut trash, mut refused) = (Vec::new(), Vec::new());
    for key in keys {
        match store.remove(&key, || before(&key)) {
            Ok(paths) => trash.extend(paths),
            Err(error) => refused.push((key, error)),
        }
    }
    let paths: Vec<&Path> = trash.iter().map(PathBuf::as_path).collect();
    let lane = paths.len().div_ceil(LANES).max(LANE);
    thread::scope(|scope| {
        let mut lanes = paths.chunks(lane);
        let own = lanes.next();
        for paths in lanes {
            let begun = thread::Builder::new()
                .name("delete".to_owned())
                .spawn_scoped(scope, move || store.discard_all(paths.iter().copied()));
            if begun.is_err() {
                store.discard_all(paths.iter().copied());
            }
        }
        store.discard_all(own.into_iter().flatten().copied());
    });
    refused
}
