//! Directories from layers.
//!
//! A [`Snapshotter`] keeps file trees by key. An *active* snapshot can be written; committing it makes it a
//! *committed* one under its final name, which is never written again and can be a parent. A *view* shows parents
//! read-only.

mod apply;
mod blank;
mod boot;
#[cfg(test)]
mod conformance;
mod diff;
mod error;
mod index;
mod key;
mod meta;
mod mount;
mod names;
mod native;
mod overlay;
mod parents;
mod points;
mod removal;
mod slot;
mod spots;
mod squash;
mod stale;
mod store;
mod table;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use jiff::Timestamp;

pub use apply::Applied;
pub use apply::ApplyError;
pub use apply::ApplyOptions;
pub use apply::WhiteoutStyle;
pub use apply::adopt;
pub use apply::apply;
pub use boot::BootId;
pub use diff::Change;
pub use diff::ChangeKind;
pub use diff::Changes;
pub use diff::DiffError;
pub use diff::Unsettled;
pub use diff::WriteLayer;
pub use diff::diff_trees;
pub use diff::diff_upper;
pub use diff::leave_what_changed;
pub use diff::spell_out;
pub use diff::write_layer;
pub use error::SnapshotError;
pub use index::Cover;
pub use index::IndexContent;
pub use index::IndexEntry;
pub use index::IndexedFile;
pub use index::InvalidIndex;
pub use index::LayerIndex;
pub use key::InvalidSnapshotKey;
pub use key::SnapshotKey;
pub use mount::Mount;
pub use mount::Mounted;
pub use native::NativeSnapshotter;
pub use overlay::OverlaySnapshotter;
pub use parents::Parents;
pub use points::MountPoint;
pub use points::PointKind;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SnapshotKind {
    /// Can be written, and committed.
    Active,
    /// Shows its parents, read-only.
    View,
    /// Never changes again. Can be a parent, and is seen through a view.
    Committed,
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotKind::Active => "active",
            SnapshotKind::View => "a view",
            SnapshotKind::Committed => "committed",
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotInfo {
    pub key: SnapshotKey,
    pub kind: SnapshotKind,
    /// Of a committed one none, if it [stands alone](Snapshotter::stacks).
    pub parents: Parents,
    pub created_at: Timestamp,
}

/// What a snapshot itself occupies, without its parents. A file with several hard links counts once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SnapshotUsage {
    /// Allocated on the disk.
    pub bytes: u64,
    pub inodes: u64,
}

/// Keeps file trees by key.
///
/// # Cancellation
///
/// Work goes on to its end when a future is dropped: afterwards a snapshot may or may not be there. A mount
/// that nobody waits for is unmounted.
#[async_trait]
pub trait Snapshotter: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// True if a committed snapshot holds its own changes only, needs none of those that it was made on and can stand on
    /// any others: `parents` of `prepare` and `view` is then any list. False if it is a whole tree: one parent at most.
    fn stacks(&self) -> bool;

    /// Makes an active snapshot over committed ones.
    async fn prepare(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError>;

    /// Makes a view of committed ones.
    async fn view(&self, key: &SnapshotKey, parents: &Parents) -> Result<(), SnapshotError>;

    /// What has to be mounted, one over the other, to see an active snapshot or a view.
    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>, SnapshotError>;

    /// Mounts an active snapshot or a view, which always is read-only. Several holders see one mount.
    async fn mount(&self, key: &SnapshotKey, read_only: bool) -> Result<Mounted, SnapshotError>;

    /// Mounts an active snapshot that something will be mounted in. Where `points` are missing they may be seen, so that
    /// nobody has to make them; they are no change. No directory is seen for their sake alone.
    async fn mount_with(&self, key: &SnapshotKey, points: &[MountPoint]) -> Result<Mounted, SnapshotError>;

    /// The directory with only this snapshot's own changes, if [`Snapshotter::stacks`] and it is not a view. In overlay's format:
    /// a character device 0:0 hides what is below, `trusted.overlay.opaque` = `y` hides what is in directories below.
    fn upper(&self, key: &SnapshotKey) -> Option<PathBuf>;

    /// Makes an active snapshot the committed one `name`. Atomic, but not synced: who needs it to last calls
    /// [`Snapshotter::sync`] before saying so elsewhere.
    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey) -> Result<(), SnapshotError>;

    /// Refused while another snapshot stands on it, or it is mounted.
    async fn remove(&self, key: &SnapshotKey) -> Result<(), SnapshotError>;

    /// Removes those of `keys` that can be, in this order, and returns the others with what is in the way: one that
    /// stands on another has to come before it. Takes much less than as many removals.
    async fn remove_all(
        &self,
        keys: Vec<SnapshotKey>,
    ) -> Result<Vec<(SnapshotKey, SnapshotError)>, SnapshotError>;

    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo, SnapshotError>;

    async fn usage(&self, key: &SnapshotKey) -> Result<SnapshotUsage, SnapshotError>;

    /// All snapshots, sorted by key.
    async fn walk(&self) -> Result<Vec<SnapshotInfo>, SnapshotError>;

    /// Makes what was done so far outlast a power cut.
    async fn sync(&self) -> Result<(), SnapshotError>;
}
