//! The file `meta` in the directory of a snapshot: what it was made on, and when.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use super::Parents;
use super::SnapshotError;
use super::SnapshotInfo;
use super::SnapshotKey;
use super::SnapshotKind;

const NAME: &str = "meta";

#[derive(Serialize, Deserialize)]
struct Meta {
    /// Lowest first.
    parents: Vec<SnapshotKey>,
    created_at: Timestamp,
}

/// Notes what a snapshot is, in its directory. There must be no such note.
pub(super) fn write(info: &SnapshotInfo, directory: &Path) -> Result<(), SnapshotError> {
    write_to(info, &directory.join(NAME))
}

/// As [`write()`], in the place of the note that is there.
pub(super) fn replace(info: &SnapshotInfo, directory: &Path) -> Result<(), SnapshotError> {
    let path = directory.join(NAME);
    let new = path.with_extension("new");
    write_to(info, &new)?;
    fs::rename(&new, &path).map_err(SnapshotError::io("make", &path))
}

/// What was noted. [`SnapshotError::Damaged`] if it is not there, or not whole.
pub(super) fn read(
    directory: &Path,
    key: &SnapshotKey,
    kind: SnapshotKind,
) -> Result<SnapshotInfo, SnapshotError> {
    let damaged = |reason: String| SnapshotError::Damaged { path: directory.to_path_buf(), reason };
    let path = directory.join(NAME);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(error.to_string())),
        other => other.map_err(SnapshotError::io("read", &path))?,
    };
    let meta: Meta = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let parents: Parents = meta.parents.into_iter().collect();
    Ok(SnapshotInfo { key: key.clone(), kind, parents, created_at: meta.created_at })
}

fn write_to(info: &SnapshotInfo, path: &Path) -> Result<(), SnapshotError> {
    let mut parents: Vec<SnapshotKey> = info.parents.iter().cloned().collect();
    parents.reverse();
    let meta = Meta { parents, created_at: info.created_at };
    let text =
        serde_json::to_vec(&meta).map_err(|e| SnapshotError::io("write", path)(io::Error::other(e)))?;
    fs::write(path, text).map_err(SnapshotError::io("write", path))
}
