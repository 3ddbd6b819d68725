//! Changes that are made without a look at what they change, so that a base that is elsewhere stays there.
//!
//! A new file in the root directory is the same change on any base: its layer says that the file is there, whatever
//! was there before. Deeper paths are not, since directories on the way have attributes, or are links; nor are
//! names that a directory may have, which a copy would go into.
//!
//! Where the base has something of that name, the file replaces it. What BuildKit does, and we do on a base that is
//! here, is the same for a copy onto a file or a link; for the rest it is not:
//!
//! | there is | a copy | a file that is made |
//! |---|---|---|
//! | a file | replaces it | keeps its mode, and its owner unless one is named |
//! | a link | replaces it | is made where the link leads |
//! | a directory | is an error | is an error |

use std::path::Path;

use super::lexical;
use crate::ops::op::FileChange;

/// True if a change may need no look at what it changes; of a copy, [`onto`](super::onto) says the rest.
pub(super) fn may_be(change: &FileChange) -> bool {
    let depth = |path: &str| lexical(Path::new(path)).components().count();
    match change {
        FileChange::MakeFile(file) => depth(&file.path) == 1 && !file.path.ends_with('/'),
        FileChange::Copy(copy) => depth(&copy.dest) == 0 && !copy.unpack,
        FileChange::MakeDir(_) | FileChange::Remove(_) | FileChange::Symlink(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op::CopyFiles;
    use crate::ops::op::CopyMode;
    use crate::ops::op::FileAction;
    use crate::ops::op::FileInput;
    use crate::ops::op::MakeFile;
    use crate::ops::op::Owner;
    use crate::ops::op::Principal;
    use crate::ops::op::Wildcard;

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
            (named(BASE), true),
            (copied(FileInput::Input(1), "/"), true),
            (copied(FileInput::Input(1), "/f"), false),
            (copied(BASE, "/"), true),
        ] {
            assert_eq!(may_be(&action.change), blind, "{action:?}");
        }
    }
}
