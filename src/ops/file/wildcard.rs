//! Paths of a file system that a pattern names.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use super::FileError;
use crate::fs::Last;
use crate::fs::Root;
use crate::pattern::Glob;
use crate::pattern::split_wildcards;

/// The paths beneath `root` that match, sorted by component. Symbolic links are followed before the first
/// wildcard, at its end where `last` says so, and not from there on. A path without a wildcard is itself,
/// whether it exists or not.
pub(in crate::ops) fn resolve(root: &Root, pattern: &str, last: Last) -> Result<Vec<PathBuf>, FileError> {
    let (before, wild) = split_wildcards(&format!("/{pattern}"));
    if wild.is_empty() {
        return Ok(vec![PathBuf::from(before)]);
    }
    let glob = Glob::new(&wild)?;
    // No component of a pattern matches two of a path.
    let depth = wild.split('/').count();
    let start = root.resolve(&before, last)?;
    let mut found = Vec::new();
    if root.stat(&start, Last::Keep)?.is_some_and(|meta| !meta.is_dir()) {
        return Ok(found);
    }
    let mut walk = root.walk(&start)?;
    while let Some(entry) = walk.next() {
        let entry = entry?;
        if entry.path.as_os_str().is_empty() {
            continue;
        }
        let matches = glob.matches(entry.path.as_os_str().as_bytes());
        if matches {
            found.push(Path::new("/").join(&start).join(&entry.path));
        }
        if matches || entry.path.components().count() >= depth {
            walk.skip_dir();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_before_the_first_wildcard_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["real/a.txt", "real/b.txt", "real/sub/c.txt", "top.txt"] {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), "").unwrap();
        }
        std::os::unix::fs::symlink("/real", at("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let found = |pattern: &str, last| -> Vec<String> {
            let found = resolve(&root, pattern, last).unwrap();
            found.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(found("/real/*.txt", Last::Keep), ["/real/a.txt", "/real/b.txt"]);
        assert_eq!(found("/link/*.txt", Last::Follow), ["/real/a.txt", "/real/b.txt"]);
        assert_eq!(found("/*/a.txt", Last::Keep), ["/real/a.txt"]);
        assert_eq!(found("r*", Last::Keep), ["/real"]);
        assert_eq!(found("/no[x]", Last::Keep), [""; 0]);
        assert_eq!(found("/not-there", Last::Keep), ["/not-there"]);
        assert_eq!(found("/link/*.txt", Last::Keep), [""; 0], "a link is no directory");
        assert!(resolve(&root, "/not-there/*", Last::Keep).is_err());
        assert!(resolve(&root, "/[", Last::Keep).is_err());
    }
}
