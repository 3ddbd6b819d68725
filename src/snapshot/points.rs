//! [`MountPoint`]: a path in a snapshot that something will be mounted on.
//!
//! A runtime makes the mount points that are missing, and in an overlay copies up the directories that they are in, for
//! each command of a build anew: all of them are listed before and after to see what has to go again, and those of a
//! long row of commands are looked for through all their layers. So the points are in one more layer instead, below all
//! others: they are seen where no layer has anything else, and are no change.
//!
//! # Invariants
//!
//! - A directory is seen only if it is in a layer or was made by who writes. What would be in another one is left out:
//!   the runtime makes both, and the directory is a change.
//! - What the layers have wins, with all its attributes. Where they have links, the points are where these lead.

use std::collections::BTreeMap;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::NewDirs;
use crate::fs::Root;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountPoint {
    /// Absolute. One with `..` in it, or below another one, is ignored.
    pub path: PathBuf,
    pub kind: PointKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PointKind {
    File,
    Directory { mode: u32 },
}

/// Permissions of the directories that points are in. No layer's directory has these but by accident, and then is taken
/// for one that is in no layer, which costs a mount.
const UNSEEN: u32 = 0;

/// The mount points that a layer can have, by paths relative to its root.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Points(BTreeMap<PathBuf, PointKind>);

impl Points {
    pub(super) fn among(all: &[MountPoint]) -> Points {
        let mut points = BTreeMap::new();
        for point in all {
            let mut components = point.path.components();
            let is_absolute = components.next() == Some(Component::RootDir);
            let path = components.as_path();
            let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            if is_absolute && is_plain && path != Path::new("") {
                points.insert(path.to_path_buf(), point.kind);
            }
        }
        Points(outermost(points))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes them in an empty directory.
    pub(super) fn make(&self, layer: &Root) -> Result<(), FsError> {
        let above = NewDirs { mode: UNSEEN, ..NewDirs::default() };
        for (path, kind) in &self.0 {
            if let Some(parent) = path.parent() {
                layer.create_dir_all(parent, &above)?;
            }
            match kind {
                PointKind::File => drop(layer.create_file(path, 0o755)?),
                PointKind::Directory { mode } => layer.create_dir(path, *mode)?,
            }
        }
        Ok(())
    }

    /// Fits them to `tree`, which shows them below its layers: those in a directory of no layer are forgotten, and links
    /// are followed. True if that changed any, so that they have to be made and shown anew.
    pub(super) fn settle(&mut self, tree: &Root) -> Result<bool, FsError> {
        let mut settled = BTreeMap::new();
        for (path, kind) in &self.0 {
            // What can't be resolved can't be mounted on either: the runtime says so.
            let Ok(path) = tree.resolve(path, Last::Follow) else { continue };
            let Some(above) = path.parent() else { continue };
            let seen = tree.stat(above, Last::Keep)?;
            let is_alone = above != Path::new("") && seen.is_some_and(|seen| seen.mode == UNSEEN);
            if !is_alone {
                settled.insert(path, *kind);
            }
        }
        let settled = outermost(settled);
        let is_changed = settled != self.0;
        self.0 = settled;
        Ok(is_changed)
    }
}

/// Without what is below another one.
fn outermost(mut points: BTreeMap<PathBuf, PointKind>) -> BTreeMap<PathBuf, PointKind> {
    // It comes right after it.
    let mut above: Option<PathBuf> = None;
    points.retain(|path, _| {
        let is_below = above.as_ref().is_some_and(|above| path.starts_with(above));
        if !is_below {
            above = Some(path.clone());
        }
        !is_below
    });
    points
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(path: &str) -> MountPoint {
        MountPoint { path: path.into(), kind: PointKind::File }
    }

    fn paths(points: &Points) -> Vec<&str> {
        points.0.keys().filter_map(|path| path.to_str()).collect()
    }

    #[test]
    fn what_lies_in_another_mount_is_none_of_the_roots() {
        let all = ["/etc/hosts", "/c/d/e", "/c/d", "/c/d-e", "/x/../y", "relative", "/", "/c/d", "/b"];
        assert_eq!(paths(&Points::among(&all.map(file))), ["b", "c/d", "c/d-e", "etc/hosts"]);
    }

    #[test]
    fn points_are_where_the_layers_have_their_directories() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::open(dir.path()).expect("a root");
        let mut points = Points::among(&["/b", "/etc/hosts", "/a/b/c"].map(file));
        points.make(&root).expect("made");
        assert_eq!(root.stat("etc/hosts", Last::Keep).expect("a stat").expect("a file").mode, 0o755);
        fs::set_permissions(dir.path().join("etc"), fs::Permissions::from_mode(0o700)).expect("permissions");
        assert!(points.settle(&root).expect("a look"));
        assert_eq!(paths(&points), ["b", "etc/hosts"]);
        assert!(!points.settle(&root).expect("a look"));
        fs::remove_file(dir.path().join("etc/hosts")).expect("removed");
        symlink("/etc/real", dir.path().join("etc/hosts")).expect("a link");
        assert!(points.settle(&root).expect("a look"));
        assert_eq!(paths(&points), ["b", "etc/real"]);
        assert!(!points.settle(&root).expect("a look"));
        fs::remove_file(dir.path().join("b")).expect("removed");
        symlink("etc/real/below", dir.path().join("b")).expect("a link");
        assert!(points.settle(&root).expect("a look"));
        assert_eq!(paths(&points), ["etc/real"]);
    }
}
