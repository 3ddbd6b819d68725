//! Changes that are made without a look at what they change, so that a base that is elsewhere stays there.
//!
//! A new file in the root directory is the same change on any base: its layer says that the file is there, whatever
//! was there before. Deeper paths are not, since directories on the way have attributes, or are links; nor are
//! names that a directory may have, which a copy would go into.
//!
//! What is known of the base is looked at nevertheless, which takes none of its bytes: its layers that are here, or
//! were unpacked before (`cache/indexes.rs`), and what was made on top. If these decide what is at all the paths, the
//! change is what it is on a base that is here. If a layer decides that nobody here has seen, nothing is taken to be
//! there; what is cached may be either, since both have one key.
//!
//! What BuildKit does, and we do on a base that is known, is the same for a copy onto a file or a link, and where
//! nothing is there; for the rest it is not:
//!
//! | there is | a copy of a file | a file that is made |
//! |---|---|---|
//! | a file | replaces it | keeps its mode, and its owner unless one is named |
//! | a link | replaces it | is made where the link leads, or fails if that is no place for a file |
//! | a directory | is an error | is an error |

use std::path::Component;
use std::path::Path;

use super::lexical;
use crate::ops::op::FileChange;

/// True if a change may need no look at what it changes; of a copy, [`onto`](super::onto) says the rest.
pub(super) fn may_be(change: &FileChange) -> bool {
    // What `..` leads to depends on what is there.
    let depth = |path: &str| {
        let path = Path::new(path);
        let up = path.components().any(|component| component == Component::ParentDir);
        (!up).then(|| lexical(path).components().count())
    };
    match change {
        FileChange::MakeFile(file) => depth(&file.path) == Some(1) && !file.path.ends_with('/'),
        FileChange::Copy(copy) => depth(&copy.dest) == Some(0) && !copy.unpack,
        FileChange::MakeDir(_) | FileChange::Remove(_) | FileChange::Symlink(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op::CopyFiles;
    use crate::ops::op::FileAction;
    use crate::ops::op::FileInput;
    use crate::ops::op::MakeFile;
    use crate::ops::op::Owner;
    use crate::ops::op::Principal;

    const BASE: FileInput = FileInput::Input(0);

    fn make(path: &str, owner: Option<Owner>) -> FileAction {
        let made = MakeFile { path: path.into(), mode: 0o644, data: "".into(), owner, timestamp: None };
        FileAction { base: BASE, change: FileChange::MakeFile(made) }
    }

    #[test]
    fn only_new_files_of_the_root_need_no_look() {
        let copied = |from, dest: &str| FileAction {
            base: BASE,
            change: FileChange::Copy(Box::new(CopyFiles::plain(from, "/f", dest))),
        };
        let named = |input| {
            let user = Some(Principal::Name { name: "u".into(), input });
            make("/f", Some(Owner { user, group: None }))
        };
        for (action, blind) in [
            (make("/f", None), true),
            (make("f", None), true),
            (make("/d/f", None), false),
            (make("/d/../f", None), false),
            (make("/", None), false),
            (named(FileInput::Input(1)), true),
            (named(BASE), true),
            (copied(FileInput::Input(1), "/"), true),
            (copied(FileInput::Input(1), "/f"), false),
            (copied(BASE, "/"), true),
            (copied(BASE, "/./"), true),
            (copied(BASE, "/d/.."), false),
        ] {
            assert_eq!(may_be(&action.change), blind, "{action:?}");
        }
    }
}
