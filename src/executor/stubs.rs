//! Mount points that a runtime makes in a root, and that must not stay in it.
//!
//! What was missing before the process and is empty afterwards was made to be mounted on, and goes again. The
//! directory above gets back the time that it had, unless something else has changed in it since.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::fs::FileTime;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Root;

/// Paths that did not exist, free of symlinks, children before parents.
#[derive(Debug)]
pub struct Stubs {
    missing: Vec<PathBuf>,
    /// The directories that they would be made in, as they were.
    above: HashMap<PathBuf, Above>,
}

#[derive(Debug)]
struct Above {
    mtime: FileTime,
    names: Vec<OsString>,
}

/// A directory's time may be set this much after that of what is made in it: clocks of file systems are coarse.
const GRAIN: Duration = Duration::from_millis(10);

impl Stubs {
    /// Notes what is missing of the mount points in `paths`; `recursive`: and of the directories above them.
    pub fn note<'a>(root: &Root, paths: impl Iterator<Item = &'a str>, recursive: bool) -> Stubs {
        let (mut missing, mut above) = (Vec::new(), HashMap::new());
        for path in paths {
            // A path that can't be resolved can't be mounted on either: the runtime says so.
            let Ok(mut path) = root.resolve(path, Last::Follow) else { continue };
            while path != Path::new("") && matches!(root.stat(&path, Last::Keep), Ok(None)) {
                missing.push(path.clone());
                let parent = path.parent().unwrap_or(Path::new(""));
                if !above.contains_key(parent)
                    && let Ok(Some(meta)) = root.stat(parent, Last::Keep)
                {
                    let names = root.read_dir(parent).unwrap_or_default();
                    above.insert(parent.to_path_buf(), Above { mtime: meta.mtime, names });
                }
                if !recursive || !path.pop() {
                    break;
                }
            }
        }
        Stubs { missing, above }
    }

    /// Removes those that are there and empty. Never fails: what can't be removed is told.
    pub fn remove(&self, root: &Root) {
        let times = self.times_to_keep(root);
        for path in &self.missing {
            if let Err(error) = remove(root, path, &times) {
                tracing::warn!(path = %path.display(), %error, "an empty mount point stays in the layer");
            }
        }
    }

    /// What the directories above get once their stubs are gone.
    fn times_to_keep(&self, root: &Root) -> HashMap<PathBuf, FileTime> {
        let stat = |path: &Path| root.stat(path, Last::Keep).ok().flatten();
        let mut kept = HashMap::new();
        for (path, before) in &self.above {
            let Some(meta) = stat(path) else { continue };
            let stubs = self.missing.iter().filter(|stub| stub.parent() == Some(path.as_path()));
            let last_made = stubs.clone().filter_map(|stub| stat(stub)).map(|stub| stub.mtime).max();
            let by_a_stub =
                last_made.is_some_and(|made| made <= meta.mtime && meta.mtime <= after(made, GRAIN));
            let is_stub = |name: &OsString| stubs.clone().any(|stub| stub.file_name() == Some(name));
            let names = root.read_dir(path).unwrap_or_default().into_iter().filter(|name| !is_stub(name));
            let only_stubs = by_a_stub && names.eq(before.names.iter().cloned());
            kept.insert(path.clone(), if only_stubs { before.mtime } else { meta.mtime });
        }
        kept
    }
}

fn after(time: FileTime, more: Duration) -> FileTime {
    let nanos = u64::from(time.nanos) + u64::from(more.subsec_nanos());
    let seconds = time.seconds + i64::try_from(more.as_secs() + nanos / 1_000_000_000).unwrap_or(i64::MAX);
    FileTime { seconds, nanos: u32::try_from(nanos % 1_000_000_000).unwrap_or_default() }
}

fn remove(root: &Root, path: &Path, times: &HashMap<PathBuf, FileTime>) -> Result<(), FsError> {
    // The process may have put symlinks on the way: what it made itself is not looked for elsewhere.
    let above = path.parent().unwrap_or(Path::new(""));
    if root.resolve(above, Last::Follow)? != above {
        return Ok(());
    }
    let Some(meta) = root.stat(path, Last::Keep)? else { return Ok(()) };
    let empty =
        if meta.is_dir() { root.read_dir(path)?.is_empty() } else { meta.is_file() && meta.size == 0 };
    if !empty {
        return Ok(());
    }
    root.remove(path)?;
    if let Some(time) = times.get(above) {
        let change = MetaChange { mtime: Some(*time), ..MetaChange::default() };
        root.set_meta(above, &change, Last::Keep)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn empty_mount_points_go_and_times_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("etc")).expect("a directory");
        fs::write(dir.path().join("etc/hosts"), "").expect("a file");
        let root = Root::open(dir.path()).expect("a root");
        let before = root.stat("etc", Last::Keep).expect("a stat").expect("etc").mtime;
        let paths = ["/etc/hosts", "/etc/resolv.conf", "/a/b", "/kept", "/full"];
        let stubs = Stubs::note(&root, paths.into_iter(), false);
        fs::write(dir.path().join("etc/resolv.conf"), "").expect("a file");
        fs::create_dir_all(dir.path().join("a/b")).expect("a directory");
        fs::create_dir_all(dir.path().join("full/x")).expect("a directory");
        fs::write(dir.path().join("kept"), "text").expect("a file");
        stubs.remove(&root);
        let left: Vec<_> = ["etc/hosts", "etc/resolv.conf", "a", "a/b", "kept", "full/x"]
            .into_iter()
            .filter(|path| dir.path().join(path).exists())
            .collect();
        assert_eq!(left, ["etc/hosts", "a", "kept", "full/x"]);
        assert_eq!(root.stat("etc", Last::Keep).expect("a stat").expect("etc").mtime, before);
    }

    #[test]
    fn where_nothing_is_missing_no_directory_is_listed() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("etc")).expect("a directory");
        fs::write(dir.path().join("etc/hosts"), "").expect("a file");
        let root = Root::open(dir.path()).expect("a root");
        let stubs = Stubs::note(&root, ["/etc/hosts", "/etc"].into_iter(), true);
        assert!(stubs.missing.is_empty() && stubs.above.is_empty(), "{stubs:?}");
        stubs.remove(&root);
        assert!(dir.path().join("etc/hosts").exists(), "it was there before");
    }

    #[test]
    fn a_directory_in_which_something_else_changed_has_the_time_of_that() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("etc")).expect("a directory");
        let root = Root::open(dir.path()).expect("a root");
        let stubs = Stubs::note(&root, ["/etc/hosts"].into_iter(), false);
        fs::write(dir.path().join("etc/hosts"), "").expect("a file");
        fs::write(dir.path().join("etc/made"), "").expect("a file");
        let later = FileTime { seconds: 4_000_000_000, nanos: 5 };
        let change = MetaChange { mtime: Some(later), ..MetaChange::default() };
        root.set_meta("etc", &change, Last::Keep).expect("a time");
        stubs.remove(&root);
        assert_eq!(root.stat("etc", Last::Keep).expect("a stat").expect("etc").mtime, later);
        assert!(!dir.path().join("etc/hosts").exists());
    }

    #[test]
    fn directories_above_go_too_if_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::open(dir.path()).expect("a root");
        let stubs = Stubs::note(&root, ["/a/b/c"].into_iter(), true);
        fs::create_dir_all(dir.path().join("a/b/c")).expect("a directory");
        stubs.remove(&root);
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_symlink_put_on_the_way_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::open(dir.path()).expect("a root");
        let stubs = Stubs::note(&root, ["/a/b"].into_iter(), false);
        fs::create_dir_all(dir.path().join("other/b")).expect("a directory");
        std::os::unix::fs::symlink("other", dir.path().join("a")).expect("a symlink");
        stubs.remove(&root);
        assert!(dir.path().join("other/b").exists());
    }
}
