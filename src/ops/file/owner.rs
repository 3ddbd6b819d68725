//! Who owns what an action makes.
//!
//! A name that the files of its input don't have is root's, as is one of an input without such files: images
//! without users are common, and so are actions that name `root` there.

use std::io::Read as _;
use std::path::PathBuf;

use super::FileError;
use crate::fs;
use crate::fs::Last;
use crate::fs::Root;
use crate::ops::op::Owner;
use crate::ops::op::Principal;

/// Bytes of a passwd or group file at most.
const MAX_FILE: u64 = 10 << 20;

pub(super) const PASSWD: &str = "/etc/passwd";
pub(super) const GROUP: &str = "/etc/group";

/// The IDs that `owner` stands for. `users` and `groups` are the file systems that its names are of.
pub(super) fn resolve(
    owner: Option<&Owner>,
    users: Option<&Root>,
    groups: Option<&Root>,
) -> Result<Option<fs::Owner>, FileError> {
    let Some(owner) = owner else { return Ok(None) };
    let mut ids = fs::Owner { uid: 0, gid: 0 };
    match &owner.user {
        None => {}
        Some(Principal::Id(id)) => ids = fs::Owner { uid: *id, gid: *id },
        Some(Principal::Name { name, .. }) => {
            if let Some([uid, gid]) = look_up(users, PASSWD, name, [2, 3])? {
                ids = fs::Owner { uid, gid };
            }
        }
    }
    match &owner.group {
        None => {}
        Some(Principal::Id(id)) => ids.gid = *id,
        Some(Principal::Name { name, .. }) => {
            if let Some([gid]) = look_up(groups, GROUP, name, [2])? {
                ids.gid = gid;
            }
        }
    }
    Ok(Some(ids))
}

/// The numbers in `fields` of the first line for `name`.
fn look_up<const N: usize>(
    root: Option<&Root>,
    file: &'static str,
    name: &str,
    fields: [usize; N],
) -> Result<Option<[u32; N]>, FileError> {
    let Some(root) = root else { return Ok(None) };
    match root.stat(file, Last::Follow) {
        Ok(None) => return Ok(None),
        // Something on the way is no directory.
        Err(fs::FsError::WrongKind { .. }) => return Ok(None),
        Ok(Some(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut text = Vec::new();
    let opened = root.open_file(file)?;
    let read = opened.take(MAX_FILE + 1).read_to_end(&mut text);
    read.map_err(|source| FileError::Read { path: PathBuf::from(file), source: source.into() })?;
    if text.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge { path: PathBuf::from(file), limit: MAX_FILE });
    }
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let parts: Vec<&str> = line.split(':').collect();
        if parts[0] != name {
            continue;
        }
        let number = |n: usize| parts.get(n).and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
        return Ok(Some(fields.map(number)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op::FileInput;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn named(name: &str) -> Option<Principal> {
        Some(Principal::Name { name: name.to_owned(), input: FileInput::Input(0) })
    }

    fn ids(owner: &Owner, root: &Root) -> (u32, u32) {
        let ids = resolve(Some(owner), Some(root), Some(root)).unwrap().unwrap();
        (ids.uid, ids.gid)
    }

    #[test]
    fn names_are_those_of_the_input_and_a_user_brings_its_group() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# app:x:1:1\n\napp:x:10:20:::\napp:x:11:21:::\n";
        let (_dir, root) = root(&[("etc/passwd", passwd), ("etc/group", "root:x:0:\nstaff:x:50:app\n")]);
        let owner = |user, group| Owner { user, group };
        assert_eq!(ids(&owner(named("app"), None), &root), (10, 20));
        assert_eq!(ids(&owner(named("app"), named("staff")), &root), (10, 50));
        assert_eq!(ids(&owner(None, named("staff")), &root), (0, 50));
        assert_eq!(ids(&owner(Some(Principal::Id(7)), None), &root), (7, 7));
        assert_eq!(ids(&owner(Some(Principal::Id(7)), Some(Principal::Id(8))), &root), (7, 8));
        assert_eq!(ids(&owner(named("nobody"), None), &root), (0, 0));
        assert_eq!(resolve(None, Some(&root), None).unwrap(), None);
    }

    #[test]
    fn an_input_without_the_files_has_only_root() {
        let (_dir, empty) = root(&[]);
        assert_eq!(ids(&Owner { user: named("app"), group: named("staff") }, &empty), (0, 0));
        let (_dir, blocked) = root(&[("etc", "no directory")]);
        assert_eq!(ids(&Owner { user: named("app"), group: None }, &blocked), (0, 0));
    }

    #[test]
    fn a_link_to_the_hosts_file_stays_inside() {
        let (dir, root) = root(&[("other/passwd", "app:x:3:4:::\n")]);
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/other/passwd", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(ids(&Owner { user: named("app"), group: None }, &root), (3, 4));
    }
}
