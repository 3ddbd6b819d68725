//! Stands where a snapshotter will be: it has no snapshots and makes none.

use std::path::PathBuf;

use async_trait::async_trait;

use super::Mount;
use super::Mounted;
use super::SnapshotError;
use super::SnapshotInfo;
use super::SnapshotKey;
use super::SnapshotUsage;
use super::Snapshotter;

#[derive(Clone, Copy, Debug)]
pub struct AbsentSnapshotter;

fn missing(key: &SnapshotKey) -> SnapshotError {
    SnapshotError::NotFound { key: key.clone() }
}

#[async_trait]
impl Snapshotter for AbsentSnapshotter {
    fn name(&self) -> &'static str {
        "none"
    }

    fn stacks(&self) -> bool {
        true
    }

    async fn prepare(&self, key: &SnapshotKey, _: &[SnapshotKey]) -> Result<(), SnapshotError> {
        Err(missing(key))
    }

    async fn view(&self, key: &SnapshotKey, _: &[SnapshotKey]) -> Result<(), SnapshotError> {
        Err(missing(key))
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>, SnapshotError> {
        Err(missing(key))
    }

    async fn mount(&self, key: &SnapshotKey, _: bool) -> Result<Mounted, SnapshotError> {
        Err(missing(key))
    }

    fn upper(&self, _: &SnapshotKey) -> Option<PathBuf> {
        None
    }

    async fn commit(&self, _: &SnapshotKey, key: &SnapshotKey) -> Result<(), SnapshotError> {
        Err(missing(key))
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        Err(missing(key))
    }

    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo, SnapshotError> {
        Err(missing(key))
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<SnapshotUsage, SnapshotError> {
        Err(missing(key))
    }

    async fn walk(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        Ok(Vec::new())
    }
    async fn sync(&self) -> Result<(), SnapshotError> {
        Ok(())
    }
}
