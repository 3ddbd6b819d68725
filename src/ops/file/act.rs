//! One action, on files that are mounted. Blocking.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::FileError;
use super::copy;
use super::owner;
use super::wildcard;
use crate::cache::Tree;
use crate::fs;
use crate::fs::FileTime;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::NewDirs;
use crate::fs::Root;
use crate::ops::op::FileAction;
use crate::ops::op::FileChange;
use crate::ops::op::MakeDir;
use crate::ops::op::MakeFile;
use crate::ops::op::Remove;
use crate::ops::op::Symlink;
use crate::ops::op::Timestamp;

/// An action with the files that it needs. The mounts end with it.
pub(super) struct Act {
    pub(super) action: FileAction,
    /// What is changed.
    pub(super) base: Arc<Tree>,
    /// What is copied from.
    pub(super) from: Option<Arc<Tree>>,
    /// What the names of the owner are of.
    pub(super) users: Option<Arc<Tree>>,
    pub(super) groups: Option<Arc<Tree>>,
    pub(super) cancel: CancellationToken,
}

impl Act {
    pub(super) fn run(self) -> Result<(), FileError> {
        let root = Root::open(self.base.path())?;
        let open = |tree: &Option<Arc<Tree>>| tree.as_ref().map(|tree| Root::open(tree.path())).transpose();
        let (users, groups) = (open(&self.users)?, open(&self.groups)?);
        let owner = owner::resolve(self.action.owner(), users.as_ref(), groups.as_ref())?;
        match &self.action.change {
            FileChange::Copy(copy) => {
                let from = open(&self.from)?.ok_or(FileError::NoSource)?;
                copy::copy(&from, &root, copy, owner, &self.cancel)
            }
            FileChange::MakeFile(file) => make_file(&root, file, owner),
            FileChange::MakeDir(dir) => make_dir(&root, dir, owner),
            FileChange::Remove(removed) => remove(&root, removed),
            FileChange::Symlink(link) => symlink(&root, link, owner),
        }
    }
}

pub(super) fn time(timestamp: Option<Timestamp>) -> Option<FileTime> {
    timestamp.map(|timestamp| FileTime::from(timestamp.parts()))
}

/// An existing file keeps its mode, and its owner unless one is stated.
fn make_file(root: &Root, file: &MakeFile, owner: Option<fs::Owner>) -> Result<(), FileError> {
    let mut made = root.overwrite_file(&file.path, file.mode)?;
    made.write_all(&file.data).map_err(|source| FileError::write(&file.path, source))?;
    drop(made);
    let change = MetaChange { owner, mtime: time(file.timestamp), ..MetaChange::default() };
    Ok(root.set_meta(&file.path, &change, Last::Follow)?)
}

/// What is there stays as it is.
fn make_dir(root: &Root, dir: &MakeDir, owner: Option<fs::Owner>) -> Result<(), FileError> {
    let mtime = time(dir.timestamp);
    if dir.parents {
        let made = root.create_dir_all(&dir.path, &NewDirs { mode: dir.mode, owner, mtime })?;
        return set_times(root, &made, mtime);
    }
    let path = root.resolve(&dir.path, Last::Follow)?;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match root.create_dir(&path, dir.mode) {
        Err(error) if error.is_exists() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => {
            let change = MetaChange { owner, mtime, ..MetaChange::default() };
            Ok(root.set_meta(&path, &change, Last::Keep)?)
        }
    }
}

/// Gives directories that were made their time again, which their contents have changed.
pub(super) fn set_times(
    root: &Root,
    made: &[impl AsRef<Path>],
    mtime: Option<FileTime>,
) -> Result<(), FileError> {
    if mtime.is_some() {
        let change = MetaChange { mtime, ..MetaChange::default() };
        for path in made.iter().rev() {
            root.set_meta(path, &change, Last::Keep)?;
        }
    }
    Ok(())
}

/// The last part of the path is never followed.
fn remove(root: &Root, removed: &Remove) -> Result<(), FileError> {
    if !removed.wildcard {
        return remove_path(root, Path::new(&removed.path), removed.allow_not_found);
    }
    for path in wildcard::resolve(root, &removed.path, Last::Keep)? {
        remove_path(root, &path, removed.allow_not_found)?;
    }
    Ok(())
}

fn remove_path(root: &Root, path: &Path, allow_not_found: bool) -> Result<(), FileError> {
    let cleaned = super::lexical(path);
    if cleaned.as_os_str().is_empty() {
        return Err(FileError::RemoveRoot { path: path.to_path_buf() });
    }
    if !allow_not_found && root.stat(&cleaned, Last::Keep)?.is_none() {
        return Err(FileError::NotFound { path: Path::new("/").join(cleaned) });
    }
    match root.remove_all(&cleaned) {
        // Something on the way is no directory, so that there is nothing.
        Err(fs::FsError::WrongKind { .. }) if allow_not_found => Ok(()),
        other => Ok(other?),
    }
}

/// The parent has to be there, the link not.
fn symlink(root: &Root, link: &Symlink, owner: Option<fs::Owner>) -> Result<(), FileError> {
    let path = root.resolve(&link.path, Last::Follow)?;
    root.symlink(&link.target, &path)?;
    let change = MetaChange { owner, mtime: time(link.timestamp), ..MetaChange::default() };
    Ok(root.set_meta(&path, &change, Last::Keep)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::fs::symlink as link_to;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        root: Root,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::open(dir.path()).unwrap();
            Fixture { dir, root }
        }

        fn at(&self, path: &str) -> std::path::PathBuf {
            self.dir.path().join(path)
        }

        fn stat(&self, path: &str) -> std::fs::Metadata {
            std::fs::symlink_metadata(self.at(path)).unwrap()
        }

        fn there(&self, path: &str) -> bool {
            std::fs::symlink_metadata(self.at(path)).is_ok()
        }
    }

    fn file(path: &str, data: &'static str) -> MakeFile {
        let (path, data) = (path.to_owned(), data.into());
        MakeFile { path, mode: 0o640, data, owner: None, timestamp: Some(Timestamp(5_000_000_007)) }
    }

    fn dir(path: &str, parents: bool) -> MakeDir {
        let timestamp = Some(Timestamp(5_000_000_007));
        MakeDir { path: path.to_owned(), mode: 0o750, parents, owner: None, timestamp }
    }

    fn rm(path: &str, allow_not_found: bool, wildcard: bool) -> Remove {
        Remove { path: path.to_owned(), allow_not_found, wildcard }
    }

    #[test]
    fn a_file_has_what_was_stated() {
        let f = Fixture::new();
        make_file(&f.root, &file("/f", "text"), Some(fs::Owner { uid: 3, gid: 4 })).unwrap();
        let stat = f.stat("f");
        assert_eq!(std::fs::read(f.at("f")).unwrap(), b"text");
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o640, 3, 4));
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (5, 7));
        make_file(&f.root, &MakeFile { mode: 0o777, ..file("/f", "t") }, None).unwrap();
        let stat = f.stat("f");
        assert_eq!(std::fs::read(f.at("f")).unwrap(), b"t");
        assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o640, 3), "what is there keeps both");
        make_file(&f.root, &file("/no/f", ""), None).unwrap_err();
        std::fs::create_dir(f.at("d")).unwrap();
        make_file(&f.root, &file("/d", ""), None).unwrap_err();
    }

    #[test]
    fn a_file_is_written_through_links_that_stay_inside() {
        let f = Fixture::new();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("victim");
        link_to(&target, f.at("link")).unwrap();
        // There is no such directory inside.
        make_file(&f.root, &file("/link", "x"), None).unwrap_err();
        link_to("../../../etc", f.at("up")).unwrap();
        std::fs::create_dir(f.at("etc")).unwrap();
        make_file(&f.root, &file("/up/f", "x"), None).unwrap();
        assert_eq!(std::fs::read(f.at("etc/f")).unwrap(), b"x");
        assert!(!target.exists());
    }

    #[test]
    fn directories_are_made_with_parents_where_asked() {
        let f = Fixture::new();
        make_dir(&f.root, &dir("/a/b", false), None).unwrap_err();
        make_dir(&f.root, &dir("/a/b", true), Some(fs::Owner { uid: 1, gid: 2 })).unwrap();
        for path in ["a", "a/b"] {
            let stat = f.stat(path);
            assert_eq!(
                (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()),
                (0o750, 1, 2, 5),
                "{path}"
            );
        }
        let before = f.stat("a/b");
        make_dir(&f.root, &MakeDir { mode: 0o700, ..dir("/a/b", false) }, None).unwrap();
        make_dir(&f.root, &MakeDir { mode: 0o700, ..dir("/a/b", true) }, None).unwrap();
        make_dir(&f.root, &dir("/", false), None).unwrap();
        assert_eq!(f.stat("a/b").mode(), before.mode());
        std::fs::write(f.at("file"), "").unwrap();
        make_dir(&f.root, &dir("/file/x", true), None).unwrap_err();
    }

    #[test]
    fn removing_takes_the_link_and_not_what_it_leads_to() {
        let f = Fixture::new();
        std::fs::create_dir_all(f.at("real/sub")).unwrap();
        std::fs::write(f.at("real/keep"), "").unwrap();
        link_to("/real", f.at("link")).unwrap();
        link_to("nowhere", f.at("dangling")).unwrap();
        remove(&f.root, &rm("/link", false, false)).unwrap();
        remove(&f.root, &rm("/dangling", false, false)).unwrap();
        assert!(f.there("real/keep") && !f.there("link") && !f.there("dangling"));
        link_to("/real", f.at("link")).unwrap();
        remove(&f.root, &rm("/link/keep", false, false)).unwrap();
        assert!(!f.there("real/keep") && f.there("link"), "links on the way are followed");
        remove(&f.root, &rm("real", false, false)).unwrap();
        assert!(!f.there("real"));
    }

    #[test]
    fn what_is_not_there_may_be_allowed_not_to_be() {
        let f = Fixture::new();
        std::fs::write(f.at("file"), "").unwrap();
        for path in ["/a", "/a/b", "/file/x"] {
            remove(&f.root, &rm(path, false, false)).unwrap_err();
            remove(&f.root, &rm(path, true, false)).unwrap();
        }
        for path in ["", "/", "/.", "/a/.."] {
            let error = remove(&f.root, &rm(path, true, false)).unwrap_err();
            assert!(matches!(error, FileError::RemoveRoot { .. }), "{path}: {error}");
        }
        assert!(f.there("file"));
    }

    #[test]
    fn wildcards_remove_what_they_match() {
        let f = Fixture::new();
        for path in ["a.txt", "b.txt", "c.md", "d/x.txt"] {
            std::fs::create_dir_all(f.at(path).parent().unwrap()).unwrap();
            std::fs::write(f.at(path), "").unwrap();
        }
        remove(&f.root, &rm("/*.txt", false, true)).unwrap();
        assert!(!f.there("a.txt") && !f.there("b.txt") && f.there("c.md") && f.there("d/x.txt"));
        remove(&f.root, &rm("/*.none", false, true)).unwrap();
        remove(&f.root, &rm("/c.md", false, true)).unwrap();
        assert!(!f.there("c.md"));
    }

    #[test]
    fn a_link_says_what_it_was_told_to() {
        let f = Fixture::new();
        let link = |target: &str, path: &str| Symlink {
            target: target.to_owned(),
            path: path.to_owned(),
            owner: None,
            timestamp: Some(Timestamp(9_000_000_000)),
        };
        symlink(&f.root, &link("../../x", "/l"), Some(fs::Owner { uid: 5, gid: 6 })).unwrap();
        let stat = f.stat("l");
        assert_eq!(std::fs::read_link(f.at("l")).unwrap(), Path::new("../../x"));
        assert_eq!((stat.uid(), stat.gid(), stat.mtime()), (5, 6, 9));
        std::fs::write(f.at("there"), "").unwrap();
        symlink(&f.root, &link("x", "/there"), None).unwrap_err();
        symlink(&f.root, &link("x", "/no/l"), None).unwrap_err();
    }
}
