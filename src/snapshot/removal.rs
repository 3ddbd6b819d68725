//! Removing many snapshots in one go.
//!
//! Taking a snapshot away is a rename, and they are taken away one after the other. Deleting their files is what takes
//! long, and most of that is waiting for the disk: it is done side by side, each thread in a directory of its own, since
//! the kernel lets one at a time remove something from a directory.

use std::fs;
use std::path::PathBuf;
use std::thread;

use super::SnapshotError;
use super::SnapshotKey;
use super::store::Store;

/// Threads that delete files at most.
const LANES: usize = 4;

/// Snapshots for which a thread is worth its start.
const LANE: usize = 16;

/// Removes those of `keys` that can be, in their order, and returns the others. Their files are deleted when this
/// returns. `before` as in [`Store::remove`]. Blocks.
pub(super) fn remove_all(
    store: &Store,
    keys: Vec<SnapshotKey>,
    before: impl Fn(&SnapshotKey) -> Result<Vec<PathBuf>, SnapshotError>,
) -> Vec<(SnapshotKey, SnapshotError)> {
    let lanes: Vec<PathBuf> =
        (0..keys.len().div_ceil(LANE).clamp(1, LANES)).map(|_| store.temporary()).collect();
    for lane in &lanes {
        // Where none can be made, as on a full disk, each is taken to a place of its own and deleted at once.
        if let Err(error) = fs::create_dir(lane) {
            tracing::debug!(lane = %lane.display(), %error, "snapshots are removed one by one");
        }
    }
    let mut refused = Vec::new();
    for (n, key) in keys.into_iter().enumerate() {
        let lane = &lanes[n % lanes.len()];
        let removed = match lane.exists() {
            true => store.remove_to(lane.join(n.to_string()), &key, || before(&key)),
            false => store.remove(&key, || before(&key)),
        };
        match removed {
            Ok(paths) => store.discard_all(paths.iter().filter(|path| !path.starts_with(lane))),
            Err(error) => refused.push((key, error)),
        }
    }
    thread::scope(|scope| {
        for lane in &lanes[1..] {
            let begun = thread::Builder::new()
                .name("delete".to_owned())
                .spawn_scoped(scope, move || store.discard_all([lane]));
            if begun.is_err() {
                store.discard_all([lane]);
            }
        }
        store.discard_all([&lanes[0]]);
    });
    refused
}
