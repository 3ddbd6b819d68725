//! The mount points that a process needs in its root, as far as they are known before it is mounted.

use std::path::Path;

use super::super::op::SecurityMode;
use super::key::clean;
use crate::executor::MountSource;
use crate::executor::OWN_FILES;
use crate::executor::ProcessMount;
use crate::snapshot::MountPoint;
use crate::snapshot::PointKind;

/// What a runtime would make for `mounts`. What is left out is for it to make.
pub fn points(security: SecurityMode, cwd: &str, mounts: &[ProcessMount]) -> Vec<MountPoint> {
    // It may unmount and change them.
    if security == SecurityMode::Insecure {
        return Vec::new();
    }
    let own = OWN_FILES.into_iter().map(|path| MountPoint { path: path.into(), kind: PointKind::File });
    let cwd = clean(cwd);
    // A working directory is made below it, with owners that the directories above get as well.
    let is_above = |dest: &str| Path::new(&cwd) != Path::new(dest) && Path::new(&cwd).starts_with(dest);
    let others = mounts.iter().filter(|mount| !is_above(&mount.dest)).filter_map(|mount| {
        let kind = match &mount.source {
            // Whether it is a file takes a look.
            MountSource::Directory { selector, .. } if !selector.trim_matches('/').is_empty() => return None,
            MountSource::Directory { .. } => PointKind::Directory { mode: 0o755 },
            // It gets the permissions of what it is mounted on, and these where there was nothing.
            MountSource::Tmpfs { .. } => PointKind::Directory { mode: 0o1777 },
            MountSource::Secret { .. } | MountSource::Socket { .. } => PointKind::File,
        };
        Some(MountPoint { path: mount.dest.as_str().into(), kind })
    });
    own.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(dest: &str, source: MountSource) -> ProcessMount {
        ProcessMount { dest: dest.to_owned(), source, read_only: false }
    }

    fn directory(selector: &str) -> MountSource {
        MountSource::Directory { directory: "/host".into(), selector: selector.to_owned() }
    }

    #[test]
    fn points_are_what_a_runtime_would_make() {
        let secret = MountSource::Secret { data: [].into(), uid: 0, gid: 0, mode: 0o400 };
        let mounts = [
            mount("/cache", directory("/")),
            mount("/part", directory("sub")),
            mount("/run/secrets/x", secret),
            mount("/tmp", MountSource::Tmpfs { size: None }),
            mount("/w", directory("")),
            mount("/w/here", directory("")),
        ];
        let found = points(SecurityMode::Sandbox, "/w/./here", &mounts);
        let found: Vec<_> =
            found.iter().map(|point| (point.path.to_str().unwrap_or_default(), point.kind)).collect();
        let expected = [
            ("/etc/resolv.conf", PointKind::File),
            ("/etc/hosts", PointKind::File),
            ("/cache", PointKind::Directory { mode: 0o755 }),
            ("/run/secrets/x", PointKind::File),
            ("/tmp", PointKind::Directory { mode: 0o1777 }),
            ("/w/here", PointKind::Directory { mode: 0o755 }),
        ];
        assert_eq!(found, expected);
        assert_eq!(points(SecurityMode::Insecure, "/", &mounts), []);
    }
}
