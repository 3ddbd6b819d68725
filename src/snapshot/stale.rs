//! Mounts that a process left when it was killed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::mount::UnmountFlags;

use super::SnapshotError;

const MOUNTS: &str = "/proc/self/mountinfo";

/// Unmounts all that is mounted below `root`, which is a real path. What still is in use goes when it no longer is.
pub(super) fn unmount_below(root: &Path) -> Result<(), SnapshotError> {
    // The last one first: it may lie on one before.
    for path in below(root)?.iter().rev() {
        rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(SnapshotError::io("unmount", path))?;
        tracing::info!(path = %path.display(), "unmounted what an earlier run had left");
    }
    Ok(())
}

/// Mount points below `root`, in the order in which they were mounted.
pub(super) fn below(root: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    let text = fs::read(MOUNTS).map_err(SnapshotError::io("read", Path::new(MOUNTS)))?;
    // See proc_pid_mountinfo(5): the fifth field is the mount point.
    let points = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    Ok(points.map(unescape).filter(|path| path.starts_with(root) && path != root).collect())
}

/// Spaces, tabs, newlines and backslashes stand there in octal.
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        path.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        for (text, path) in [
            (&br"/a/b"[..], &b"/a/b"[..]),
            (br"/a\040b\134c", br"/a b\c"),
            (br"/a\011\012", b"/a\t\n"),
            (br"/a\04", br"/a\04"),
            (br"/a\", br"/a\"),
            (br"/a\999", br"/a\999"),
        ] {
            assert_eq!(unescape(text).into_os_string().into_vec(), path);
        }
    }
}
