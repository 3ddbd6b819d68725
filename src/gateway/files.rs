//! Files of a result, as frontends read them. Blocking, but for [`FilesError`] everything is beneath a root.

use std::ffi::OsStr;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Meta;
use crate::fs::Root;
use crate::pattern::InvalidPattern;
use crate::pattern::Patterns;
use crate::session::fsutil::FileStat;

/// Bytes of a file that are given out at once: a message holds no more.
pub const MAX_READ: u64 = (16 << 20) - (64 << 10);

/// A file can't be read. The texts are those of Go's `os`, which frontends know.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{operation} {path}: no such file or directory")]
    NotFound { operation: &'static str, path: String },
    #[error("{path} is not a regular file")]
    NotRegular { path: String },
    #[error("{operation} {path}: not a directory")]
    NotDirectory { operation: &'static str, path: String },
    #[error("{path} has {size} bytes, {MAX_READ} can be read at once: ask for a range")]
    TooLarge { path: String, size: u64 },
    #[error("a range of {offset} and {length} is none")]
    Range { offset: i64, length: i64 },
    #[error("read {path}: {source}")]
    Read { path: String, source: Arc<std::io::Error> },
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// A part of a file; one that begins behind its end is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRange {
    pub offset: i64,
    pub length: i64,
}

/// The bytes of a regular file, links followed.
pub fn read_file(root: &Root, path: &str, range: Option<ReadRange>) -> Result<Vec<u8>, FilesError> {
    let meta = find(root, path, "open", Last::Follow)?;
    if !meta.is_file() {
        return Err(FilesError::NotRegular { path: path.to_owned() });
    }
    let (offset, length) = match range {
        None => (0, meta.size),
        Some(ReadRange { offset, length }) => match (u64::try_from(offset), u64::try_from(length)) {
            (Ok(offset), Ok(length)) => (offset, length.min(meta.size.saturating_sub(offset))),
            _ => return Err(FilesError::Range { offset, length }),
        },
    };
    if length > MAX_READ {
        return Err(FilesError::TooLarge { path: path.to_owned(), size: length });
    }
    if length == 0 {
        // Behind the end there may be no place to read at.
        return Ok(Vec::new());
    }
    let mut file = root.open_file(path)?;
    let mut data = Vec::new();
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(length).read_to_end(&mut data));
    match read {
        Ok(_) => Ok(data),
        Err(source) => Err(FilesError::Read { path: path.to_owned(), source: Arc::new(source) }),
    }
}

/// What a directory has in it, one level, names sorted; only names that match `include`, if it is not empty.
pub fn read_dir(root: &Root, path: &str, include: &str) -> Result<Vec<FileStat>, FilesError> {
    let meta = find(root, path, "open", Last::Follow)?;
    if !meta.is_dir() {
        return Err(FilesError::NotDirectory { operation: "open", path: path.to_owned() });
    }
    let include = match include {
        "" => None,
        // A directory is wanted for what could be in it.
        include => Some(Patterns::new([include.split('/').next().unwrap_or(include)])?),
    };
    let resolved = root.resolve(path, Last::Follow)?;
    let mut entries = Vec::new();
    let mut walk = root.walk(&resolved)?;
    while let Some(entry) = walk.next() {
        let entry = entry?;
        if entry.path.as_os_str().is_empty() {
            continue;
        }
        walk.skip_dir();
        let name = entry.path.as_os_str().as_bytes();
        if include.as_ref().is_none_or(|include| include.matches(name)) {
            let link = entry.meta.is_symlink().then(|| entry.read_link()).transpose()?;
            entries.push(FileStat::of(name, &entry.meta, link.as_deref(), entry.xattrs()?));
        }
    }
    Ok(entries)
}

/// What a file is, links followed. Its path is its name alone.
pub fn stat_file(root: &Root, path: &str) -> Result<FileStat, FilesError> {
    let meta = find(root, path, "lstat", Last::Follow)?;
    let resolved = root.resolve(path, Last::Follow)?;
    let name = resolved.file_name().unwrap_or(OsStr::new("/"));
    Ok(FileStat::of(name.as_bytes(), &meta, None, root.xattrs(&resolved, Last::Keep)?))
}

fn find(root: &Root, path: &str, operation: &'static str, last: Last) -> Result<Meta, FilesError> {
    match root.stat(Path::new(path), last) {
        Ok(Some(meta)) => Ok(meta),
        Ok(None) => Err(FilesError::NotFound { operation, path: path.to_owned() }),
        Err(FsError::WrongKind { .. }) => Err(FilesError::NotDirectory { operation, path: path.to_owned() }),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::fsutil::FileKind;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a.txt"), "0123456789").unwrap();
        std::fs::write(dir.path().join("d/b.md"), "").unwrap();
        std::fs::create_dir(dir.path().join("d/sub")).unwrap();
        std::fs::write(dir.path().join("d/sub/c.txt"), "").unwrap();
        std::os::unix::fs::symlink("/d/a.txt", dir.path().join("d/link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn a_file_is_read_in_ranges() {
        let (_dir, root) = root();
        let read = |offset, length| read_file(&root, "/d/link", Some(ReadRange { offset, length }));
        assert_eq!(read_file(&root, "d/a.txt", None).unwrap(), b"0123456789");
        assert_eq!(read(2, 3).unwrap(), b"234");
        assert_eq!(read(8, 100).unwrap(), b"89");
        assert_eq!(read(100, 1).unwrap(), b"");
        assert_eq!(read(i64::MAX, i64::MAX).unwrap(), b"");
        assert_eq!(read(0, 0).unwrap(), b"");
        assert!(matches!(read(-1, 1), Err(FilesError::Range { .. })));
        assert!(matches!(read(1, -1), Err(FilesError::Range { .. })));
    }

    #[test]
    fn a_directory_is_listed_one_level_deep() {
        let (_dir, root) = root();
        let names = |include: &str| -> Vec<String> {
            let entries = read_dir(&root, "/d", include).unwrap();
            entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
        };
        assert_eq!(names(""), ["a.txt", "b.md", "link", "sub"]);
        assert_eq!(names("*.txt"), ["a.txt"]);
        assert_eq!(names("sub/*.txt"), ["sub"]);
        let entries = read_dir(&root, "/d", "").unwrap();
        assert_eq!(entries[2].kind, FileKind::Symlink { target: b"/d/a.txt".to_vec() });
        assert!(read_dir(&root, "/", "").unwrap().iter().all(|entry| entry.path == b"d"));
    }

    #[test]
    fn a_stat_is_that_of_what_a_link_leads_to() {
        let (_dir, root) = root();
        let stat = stat_file(&root, "/d/link").unwrap();
        assert_eq!((stat.path.as_slice(), stat.size, stat.is_dir()), (b"a.txt".as_slice(), 10, false));
        assert!(stat_file(&root, "/").unwrap().is_dir());
    }

    #[test]
    fn errors_are_those_that_frontends_know() {
        let (_dir, root) = root();
        let text = |error: FilesError| error.to_string();
        assert_eq!(text(read_file(&root, "/no", None).unwrap_err()), "open /no: no such file or directory");
        assert_eq!(text(read_file(&root, "/d", None).unwrap_err()), "/d is not a regular file");
        assert_eq!(text(stat_file(&root, "/no").unwrap_err()), "lstat /no: no such file or directory");
        assert_eq!(text(read_dir(&root, "/d/a.txt", "").unwrap_err()), "open /d/a.txt: not a directory");
        assert_eq!(text(read_dir(&root, "/d/b.md/x", "").unwrap_err()), "open /d/b.md/x: not a directory");
        assert!(matches!(read_dir(&root, "/d", "["), Err(FilesError::Pattern(_))));
    }
}
