//! Short names for the directories below a snapshotter's root, for the kernel.
//!
//! What an overlay is mounted from is in one page at most, and in every reading of `/proc/self/mountinfo`: a runtime
//! reads that several times for each process, and with long paths of many layers that takes longer than anything else it
//! does. So the lower directories are named by symlinks of a few characters in `<root>/l/`, which is the working directory
//! while it is mounted. A link says whose it is, and stays until that is removed.
//!
//! The name is the beginning of a digest of the path, as long as it takes to differ from those that are there. So nothing
//! has to be kept or synced: whoever needs a link finds it or makes it, and one that a crash left behind is that of the
//! same path again. One that was damaged is as good as another's.
//!
//! # Locking
//!
//! One mutex over the names that are known to be there, for look-ups only. A link is made and removed without it: nobody
//! needs the name of what is being removed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;

use super::SnapshotError;
use crate::oci::Digest;

const DIRECTORY: &str = "l";
/// Characters that a name has, 5 bits each: with 20,000 directories one of 1,700 needs more.
const SHORTEST: usize = 5;
const LONGEST: usize = 25;
/// Paths of as many characters are used as they are.
const SHORT: usize = 12;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

#[derive(Debug)]
pub(super) struct Names {
    root: PathBuf,
    directory: PathBuf,
    /// The directory is there.
    made: OnceLock<()>,
    known: Mutex<HashMap<PathBuf, Box<str>>>,
}

impl Names {
    /// For the directories below `root`.
    pub(super) fn new(root: &Path) -> Names {
        Names {
            root: root.to_path_buf(),
            directory: root.join(DIRECTORY),
            made: OnceLock::new(),
            known: Mutex::default(),
        }
    }

    /// Where the names are valid.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path from where the names are valid; what is not below the root keeps its own.
    pub(super) fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_path_buf(), |below| Path::new("..").join(below))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Box<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of directories with colons between them. They are there from now on.
    pub(super) fn list(&self, paths: &[PathBuf]) -> io::Result<String> {
        if self.made.get().is_none() {
            match fs::create_dir(&self.directory) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            self.made.get_or_init(|| ());
        }
        let mut names: Vec<Option<Box<str>>> = {
            let known = self.known();
            paths.iter().map(|path| known.get(path).cloned()).collect()
        };
        for (name, path) in names.iter_mut().zip(paths) {
            if name.is_none() {
                let found: Box<str> = self.name(path)?.into();
                self.known().insert(path.clone(), found.clone());
                *name = Some(found);
            }
        }
        Ok(names.iter().flatten().map(|name| &**name).collect::<Vec<_>>().join(":"))
    }

    fn name(&self, path: &Path) -> io::Result<String> {
        let to = self.relative(path);
        if let Some(short) = to.to_str().filter(|to| to.len() <= SHORT) {
            return Ok(short.to_owned());
        }
        for name in candidates(&to) {
            let link = self.directory.join(&name);
            // Most are there: a look is cheaper than an attempt.
            match fs::read_link(&link) {
                Ok(there) if there == to => return Ok(name),
                Err(e) if e.kind() == io::ErrorKind::NotFound => match symlink(&to, &link) {
                    // Made at the same time, for this path or another.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        if fs::read_link(&link).is_ok_and(|there| there == to) {
                            return Ok(name);
                        }
                    }
                    made => return made.map(|()| name),
                },
                _ => {}
            }
        }
        Err(io::Error::other(format!("no name for {} in {}", path.display(), self.directory.display())))
    }

    /// To be called before a directory goes, or when it has gone; one without a name is no error.
    pub(super) fn forget(&self, path: &Path) -> Result<(), SnapshotError> {
        self.known().remove(path);
        let to = self.relative(path);
        for name in candidates(&to) {
            let link = self.directory.join(name);
            match fs::read_link(&link) {
                Ok(there) if there == to => {
                    return fs::remove_file(&link).map_err(SnapshotError::io("remove", &link));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The names that a path may have, in the order in which they are tried.
fn candidates(to: &Path) -> impl Iterator<Item = String> {
    let hex = Digest::sha256(to.as_os_str().as_encoded_bytes()).hex();
    let bits = u128::from_str_radix(&hex[..32], 16).unwrap_or_default();
    (SHORTEST..=LONGEST).map(move |length| {
        let character = |n: usize| char::from(ALPHABET[(bits >> (123 - 5 * n)) as usize & 31]);
        (0..length).map(character).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_name_until_it_goes() {
        let root = tempfile::tempdir().expect("a directory");
        let names = Names::new(root.path());
        let [a, b] = ["committed/a/fs", "committed/b/fs"].map(|path| root.path().join(path));
        let list = |names: &Names, paths: &[&PathBuf]| {
            let paths: Vec<_> = paths.iter().map(|path| (*path).clone()).collect();
            names.list(&paths).expect("a list")
        };
        let both = list(&names, &[&a, &b]);
        let (first, second) = both.split_once(':').expect("two names");
        assert_eq!((first.len(), second.len()), (SHORTEST, SHORTEST));
        assert_ne!(first, second);
        let target = fs::read_link(names.directory().join(first)).expect("a link");
        assert_eq!(target, Path::new("../committed/a/fs"));
        assert_eq!(list(&names, &[&b, &a]), format!("{second}:{first}"));
        assert_eq!(list(&Names::new(root.path()), &[&a, &b]), both, "it is found again");
        names.forget(&a).expect("forgotten");
        names.forget(&a).expect("nothing to forget");
        assert_eq!(fs::read_dir(names.directory()).expect("listed").count(), 1);
        assert_eq!(list(&names, &[&a, &b]), both, "it is made anew");
        let short = root.path().join("nothing");
        assert_eq!(list(&names, &[&short]), "../nothing");
        assert_eq!(fs::read_dir(names.directory()).expect("listed").count(), 2);
    }

    #[test]
    fn a_name_that_is_taken_or_damaged_gets_longer() {
        let root = tempfile::tempdir().expect("a directory");
        let names = Names::new(root.path());
        let path = root.path().join("committed/a/fs");
        names.forget(&path).expect("nothing was ever named");
        fs::create_dir(names.directory()).expect("a directory");
        let all: Vec<_> = candidates(&names.relative(&path)).collect();
        symlink("../committed/other/fs", names.directory().join(&all[0])).expect("a link");
        fs::write(names.directory().join(&all[1]), "").expect("a file");
        assert_eq!(names.list(std::slice::from_ref(&path)).expect("a name"), all[2]);
        assert_eq!(Names::new(root.path()).list(std::slice::from_ref(&path)).expect("a name"), all[2]);
        names.forget(&path).expect("forgotten");
        assert_eq!(fs::read_dir(names.directory()).expect("listed").count(), 2);
        assert_eq!(all.last().map(String::len), Some(LONGEST));
    }
}
