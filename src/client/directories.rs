//! Directories that a daemon asks for (`FileSync`).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Owner;
use crate::fs::Root;
use crate::pattern::Glob;
use crate::pattern::InvalidPattern;
use crate::pattern::Patterns;
use crate::pattern::clean;
use crate::pattern::has_wildcards;
use crate::session::fsutil::Directory;
use crate::session::fsutil::FileStat;
use crate::session::fsutil::Select;
use crate::session::fsutil::Selected;
use crate::session::fsutil::TransferError;

/// What of a directory a daemon asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) follow: Vec<String>,
}

/// A directory can't be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error("no access allowed to dir {name:?}: give it with --local {name}=DIR")]
    Unknown { name: String },
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Open(#[from] TransferError),
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// What is selected of the directory that a daemon asks for.
pub(super) fn select(
    directories: &BTreeMap<String, PathBuf>,
    wanted: &Wanted,
) -> Result<Directory, DirectoryError> {
    let unknown = || DirectoryError::Unknown { name: wanted.name.clone() };
    let directory = Directory::open(directories.get(&wanted.name).ok_or_else(unknown)?)?;
    let mut include = wanted.include.clone();
    include.extend(followed(directory.root(), &wanted.follow)?);
    let filter = Filter {
        plain: (!include.is_empty()
            && !include.iter().any(|text| has_wildcards(text) || text.starts_with('!')))
        .then(|| include.iter().map(|text| clean(text)).collect()),
        include: if include.is_empty() { None } else { Some(Patterns::new(&include)?) },
        exclude: Patterns::new(&wanted.exclude)?,
    };
    Ok(directory.select(filter))
}

/// Everything is root's, whoever has it here.
struct Filter {
    include: Option<Patterns>,
    /// The included paths, if none of them is a pattern.
    plain: Option<Vec<String>>,
    exclude: Patterns,
}

impl Select for Filter {
    fn select(&self, stat: &mut FileStat) -> Selected {
        stat.owner = Owner { uid: 0, gid: 0 };
        let path = stat.path.as_slice();
        let included = self.include.as_ref().is_none_or(|include| include.matches(path));
        let excluded = self.exclude.matches(path);
        let may_include = included
            || self.plain.as_ref().is_none_or(|plain| {
                plain
                    .iter()
                    .any(|text| text.as_bytes().strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/")))
            });
        let beneath = may_include && (!excluded || self.exclude.has_exceptions());
        Selected { entry: included && !excluded, beneath }
    }
}

/// The paths, and what the symlinks on their way lead to. Nothing if that is the whole directory.
fn followed(root: &Root, paths: &[String]) -> Result<Vec<String>, DirectoryError> {
    let mut found = BTreeSet::new();
    for path in paths {
        follow(root, path, &mut found)?;
    }
    if found.contains("") {
        return Ok(Vec::new());
    }
    Ok(found.into_iter().collect())
}

fn follow(root: &Root, path: &str, found: &mut BTreeSet<String>) -> Result<(), DirectoryError> {
    // A list instead of recursion: links may be many.
    let mut left = vec![relative(path)];
    'paths: while let Some(path) = left.pop() {
        let mut current = String::new();
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        if names.peek().is_none() {
            found.insert(String::new());
            continue;
        }
        while let Some(name) = names.next() {
            let parent = current.clone();
            current = if current.is_empty() { name.to_owned() } else { format!("{current}/{name}") };
            let targets = links(root, &parent, name)?;
            let last = names.peek().is_none();
            if (last || !targets.is_empty()) && !found.insert(current.clone()) {
                continue 'paths;
            }
            if !targets.is_empty() {
                let rest: Vec<&str> = names.collect();
                left.extend(targets.iter().map(|target| relative(&format!("{target}/{}", rest.join("/")))));
                continue 'paths;
            }
        }
    }
    Ok(())
}

/// Where the symlinks lead that `name` names in `parent`.
fn links(root: &Root, parent: &str, name: &str) -> Result<Vec<String>, DirectoryError> {
    let names = if has_wildcards(name) {
        let glob = Glob::new(name)?;
        let names = match root.read_dir(parent) {
            Ok(names) => names,
            Err(FsError::NotFound { .. } | FsError::WrongKind { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        names.into_iter().filter(|n| glob.matches(n.as_encoded_bytes())).collect()
    } else {
        vec![name.into()]
    };
    let mut targets = Vec::new();
    for name in names {
        let path = Path::new(parent).join(name);
        let is_link = match root.stat(&path, Last::Keep) {
            Ok(meta) => meta.is_some_and(|meta| meta.is_symlink()),
            Err(FsError::NotFound { .. } | FsError::WrongKind { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if is_link {
            let target = root.read_link(&path)?;
            let target = target.to_string_lossy();
            targets.push(if target.starts_with('/') {
                target.into_owned()
            } else {
                format!("{parent}/{target}")
            });
        }
    }
    Ok(targets)
}

/// Clean and relative to the directory, which `..` does not leave.
fn relative(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::session::fsutil::TreeSource as _;

    fn sent(dir: &Path, include: &[&str], exclude: &[&str], follow: &[&str]) -> Vec<String> {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let wanted = Wanted {
            name: "context".to_owned(),
            include: texts(include),
            exclude: texts(exclude),
            follow: texts(follow),
        };
        let directories = BTreeMap::from([("context".to_owned(), dir.to_path_buf())]);
        let mut paths = Vec::new();
        let walked = select(&directories, &wanted).unwrap().walk(&mut |stat| {
            assert_eq!(stat.owner, Owner { uid: 0, gid: 0 });
            paths.push(String::from_utf8(stat.path).unwrap());
            ControlFlow::Continue(())
        });
        walked.unwrap();
        paths
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c.go", "a/b/c.log", "a/d", "e/f", "real/target", "g"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        symlink("../real", dir.path().join("a/link")).unwrap();
        symlink("/e", dir.path().join("elsewhere")).unwrap();
        dir
    }

    #[test]
    fn patterns_select_entries_and_the_directories_above_them() {
        let dir = tree();
        let all = sent(dir.path(), &[], &[], &[]);
        assert_eq!(all.len(), 12, "{all:?}");
        assert_eq!(sent(dir.path(), &["a/b"], &[], &[]), ["a", "a/b", "a/b/c.go", "a/b/c.log"]);
        assert_eq!(sent(dir.path(), &["**/*.go"], &[], &[]), ["a", "a/b", "a/b/c.go"]);
        assert_eq!(
            sent(dir.path(), &["a", "g"], &["**/*.log", "a/d", "a/link"], &[]),
            ["a", "a/b", "a/b/c.go", "g"]
        );
        assert_eq!(sent(dir.path(), &[], &["*", "!e/f"], &[]), ["e", "e/f"]);
    }

    #[test]
    fn followed_paths_bring_what_links_lead_to() {
        let dir = tree();
        assert_eq!(sent(dir.path(), &[], &[], &["a/link/target"]), ["a", "a/link", "real", "real/target"]);
        assert_eq!(sent(dir.path(), &["g"], &[], &["else*"]), ["e", "e/f", "elsewhere", "g"]);
        assert_eq!(sent(dir.path(), &[], &[], &["../../g"]), ["g"]);
        assert_eq!(sent(dir.path(), &[], &[], &["."]).len(), 12, "the whole directory");
        symlink("loop", dir.path().join("loop")).unwrap();
        assert_eq!(sent(dir.path(), &[], &[], &["loop"]), ["loop"]);
    }

    #[test]
    fn a_directory_that_was_not_given_is_not_sent() {
        let wanted = Wanted { name: "other".to_owned(), ..Wanted::default() };
        let error = select(&BTreeMap::new(), &wanted).err().unwrap().to_string();
        assert_eq!(error, r#"no access allowed to dir "other": give it with --local other=DIR"#);
    }
}
