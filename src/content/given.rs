//! [`Given`]: who gave the bytes of a blob, and the note of it on the blob's file.
//!
//! An origin that gave all the bytes of a blob is proven to have it. The row that says so is written
//! behind, and a crash can lose it when the file is already there. So the file says it too, in an
//! extended attribute: it is set when the first bytes come, becomes durable with the file's own sync, and
//! is renamed with it.
//!
//! Only registries are noted, since the name of a client's store proves nothing. Nothing is noted on a
//! file system without extended attributes: after a crash an origin there has to show its bytes once
//! more, and a partial blob is fetched anew.
//!
//! # Crash consistency
//!
//! The note is set or taken off before the bytes that it speaks of are written. So it never claims more
//! than is true, at whatever step a crash comes.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Origin;

const NOTE: &str = "user.thunk.origin";

/// A longer note is none: a host and a repository take less.
const MAX_NOTE: usize = 2048;

/// Who gave the bytes that are here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Given {
    /// There are none.
    Nothing,
    /// This origin alone, or with it other repositories of its registry.
    By(Origin),
    /// Several, or somebody who is not known.
    ByMany,
}

impl Given {
    /// After more bytes, from `origin`.
    ///
    /// A registry checks what is put into any of its repositories, so its repositories count as one.
    pub(super) fn and(&self, origin: Option<&Origin>) -> Given {
        match (self, origin) {
            (Given::Nothing, Some(origin)) => Given::By(origin.clone()),
            (
                Given::By(Origin::Registry { host: before, .. }),
                Some(origin @ Origin::Registry { host, .. }),
            ) if before == host => Given::By(origin.clone()),
            _ => Given::ByMany,
        }
    }

    /// The origin that is proven to have the blob if these are all of its bytes.
    pub(super) fn origin(&self) -> Option<&Origin> {
        match self {
            Given::By(origin) => Some(origin),
            Given::Nothing | Given::ByMany => None,
        }
    }

    /// Notes this on a file.
    pub(super) fn note_on(&self, file: &File) -> io::Result<()> {
        let note = match self.origin() {
            Some(origin @ Origin::Registry { .. }) => serde_json::to_vec(origin).ok(),
            _ => None,
        };
        if let Some(note) = note.filter(|note| note.len() <= MAX_NOTE)
            && rustix::fs::fsetxattr(file, NOTE, &note, XattrFlags::empty()).is_ok()
        {
            return Ok(());
        }
        match rustix::fs::fremovexattr(file, NOTE) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            // Where notes can't be read, there is none to contradict.
            Err(_) if rustix::fs::fgetxattr(file, NOTE, &mut [0; MAX_NOTE][..]).is_err() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The registry that a file's note names.
pub(super) fn noted(path: &Path) -> Option<Origin> {
    let mut note = [0; MAX_NOTE];
    let length = rustix::fs::getxattr(path, NOTE, &mut note[..]).ok()?;
    let origin = serde_json::from_slice(&note[..length]).ok()?;
    matches!(origin, Origin::Registry { .. }).then_some(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(host: &str, repository: &str) -> Origin {
        Origin::registry(host, repository)
    }

    #[test]
    fn only_one_registry_can_be_said_to_have_given_everything() {
        let (here, beside, elsewhere) = (registry("r", "a"), registry("r", "b"), registry("s", "a"));
        let store = Origin::SessionStore { store: "oci:a".into() };
        let given = Given::Nothing.and(Some(&here));
        assert_eq!(given.origin(), Some(&here));
        assert_eq!(given.and(Some(&beside)).origin(), Some(&beside));
        assert_eq!(given.and(Some(&elsewhere)), Given::ByMany);
        assert_eq!(given.and(None), Given::ByMany);
        assert_eq!(Given::Nothing.and(None), Given::ByMany);
        assert_eq!(Given::ByMany.and(Some(&here)), Given::ByMany);
        let lent = Given::Nothing.and(Some(&store));
        assert_eq!(lent.origin(), Some(&store));
        assert_eq!(lent.and(Some(&store)), Given::ByMany, "the name may be another client's");
    }

    #[test]
    fn a_note_is_read_back_and_is_gone_when_others_give_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let origin = registry("r.example", "team/app");
        assert_eq!(noted(file.path()), None);
        Given::By(origin.clone()).note_on(file.as_file()).unwrap();
        assert_eq!(noted(file.path()), Some(origin.clone()));
        for other in [
            Given::ByMany,
            Given::By(Origin::SessionStore { store: "oci:a".into() }),
            Given::By(registry(&"h".repeat(MAX_NOTE), "a")),
        ] {
            Given::By(origin.clone()).note_on(file.as_file()).unwrap();
            other.note_on(file.as_file()).unwrap();
            assert_eq!(noted(file.path()), None, "{other:?}");
        }
        rustix::fs::setxattr(file.path(), NOTE, b"{not a note", XattrFlags::empty()).unwrap();
        assert_eq!(noted(file.path()), None);
    }
}
