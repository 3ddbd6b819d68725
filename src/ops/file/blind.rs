//! Changes that are made without a look at what they change, so that a base that is elsewhere stays there.
//!
//! A new file in the root directory is the same change on any base: its layer says that the file is there, whatever
//! was there before. Deeper paths are not, since directories on the way have attributes, or are links; nor are
//! names that a directory may have, which a copy would go into, nor names of the base's users.
//!
//! Where a directory of the base has the name of such a file, the file replaces it. On a base that is here this is
//! an error instead.

use std::path::Path;
use std::path::PathBuf;

use super::FileError;
use super::lexical;
use super::wildcard;
use crate::fs::Last;
use crate::fs::Root;
use crate::ops::op::CopyFiles;
use crate::ops::op::FileAction;
use crate::ops::op::FileChange;
use crate::ops::op::FileInput;
use crate::ops::op::Wildcard;

/// True if the action may be a change that needs no look at `base`; of a copy, [`only_files`] says the rest.
pub(super) fn may_be(action: &FileAction, base: FileInput) -> bool {
    let reads_base = action.needs().skip(1).any(|input| input == base);
    let depth = |path: &str| lexical(Path::new(path)).components().count();
    !reads_base
        && match &action.change {
            FileChange::MakeFile(file) => depth(&file.path) == 1 && !file.path.ends_with('/'),
            FileChange::Copy(copy) => depth(&copy.dest) == 0 && !copy.unpack,
            FileChange::MakeDir(_) | FileChange::Remove(_) | FileChange::Symlink(_) => false,
        }
}

/// True if a copy has files alone for its sources.
pub(super) fn only_files(from: &Root, copy: &CopyFiles) -> Result<bool, FileError> {
    let last = if copy.follow_symlink { Last::Follow } else { Last::Keep };
    let sources = match copy.wildcard {
        Wildcard::No => vec![PathBuf::from(&copy.src)],
        Wildcard::Required | Wildcard::MayBeEmpty => wildcard::resolve(from, &copy.src, last)?,
    };
    for source in sources {
        if from.stat(lexical(&source), last)?.is_none_or(|meta| meta.is_dir()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op::CopyMode;
    use crate::ops::op::MakeFile;
    use crate::ops::op::Owner;
    use crate::ops::op::Principal;

    const BASE: FileInput = FileInput::Input(0);

    fn make(path: &str, owner: Option<Owner>) -> FileAction {
        let made = MakeFile { path: path.into(), mode: 0o644, data: "".into(), owner, timestamp: None };
        FileAction { base: BASE, change: FileChange::MakeFile(made) }
    }

    fn copy(from: FileInput, src: &str, dest: &str) -> CopyFiles {
        CopyFiles {
            from,
            src: src.into(),
            dest: dest.into(),
            owner: None,
            mode: CopyMode::Keep,
            follow_symlink: false,
            contents_only: false,
            unpack: false,
            create_dest_path: true,
            wildcard: Wildcard::Required,
            timestamp: None,
            include: vec![],
            exclude: vec![],
            required: vec![],
            replace: false,
        }
    }

    #[test]
    fn only_new_files_of_the_root_need_no_look() {
        let copied = |from, dest: &str| FileAction {
            base: BASE,
            change: FileChange::Copy(Box::new(copy(from, "/f", dest))),
        };
        let named = |input| {
            let user = Some(Principal::Name { name: "u".into(), input });
            make("/f", Some(Owner { user, group: None }))
        };
        for (action, blind) in [
            (make("/f", None), true),
            (make("f", None), true),
            (make("/d/f", None), false),
            (make("/d/../f", None), true),
            (make("/", None), false),
            (named(FileInput::Input(1)), true),
            (named(BASE), false),
            (copied(FileInput::Input(1), "/"), true),
            (copied(FileInput::Input(1), "/f"), false),
            (copied(BASE, "/"), false),
        ] {
            assert_eq!(may_be(&action, BASE), blind, "{action:?}");
        }
    }

    #[test]
    fn a_copy_of_a_directory_needs_a_look() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("d", dir.path().join("l")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let files = |src: &str| only_files(&root, &copy(FileInput::Scratch, src, "/")).unwrap();
        assert!(files("/f") && files("/l") && files("/[fl]"));
        assert!(!files("/d") && !files("/*") && !files("/none"));
    }
}
