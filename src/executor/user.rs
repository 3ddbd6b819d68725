//! Who a process runs as: `user[:group]`, looked up in the root's `/etc/passwd` and `/etc/group`.

use std::io::Read;

use super::ExecError;
use crate::fs::FsError;
use crate::fs::Root;

/// Larger files are taken for an attack.
const MAX_FILE: u64 = 10 << 20;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// With `gid` first.
    pub groups: Vec<u32>,
}

impl User {
    fn new(uid: u32, gid: u32, additional: Vec<u32>) -> User {
        let mut groups = additional;
        if !groups.contains(&gid) {
            groups.insert(0, gid);
        }
        User { uid, gid, groups }
    }
}

/// Looks `user` up in a root. Numbers need no entry; nothing at all means root.
pub fn find(root: &Root, user: &str) -> Result<User, ExecError> {
    if let Some((uid, gid)) = numeric(user) {
        return Ok(User::new(uid, gid, Vec::new()));
    }
    let wanted = if user.is_empty() { "0" } else { user };
    let found = read(root, "/etc/passwd")
        .and_then(|passwd| Ok((passwd, read(root, "/etc/group")?)))
        .and_then(|(passwd, group)| lookup(wanted, &passwd, &group));
    match found {
        Ok(found) => Ok(found),
        // Whatever is wrong with the files, root is root.
        Err(_) if user.is_empty() => Ok(User::new(0, 0, Vec::new())),
        Err(reason) => Err(ExecError::User { user: user.to_owned(), reason }),
    }
}

/// `uid:gid` needs no files; `root` is 0 in both places.
fn numeric(user: &str) -> Option<(u32, u32)> {
    let id = |text: &str| if text == "root" { Some(0) } else { text.parse().ok() };
    let (user, group) = user.split_once(':')?;
    Some((id(user)?, id(group)?))
}

/// The text of a file; empty if there is none.
fn read(root: &Root, path: &str) -> Result<String, String> {
    let file = match root.open_file(path) {
        Ok(file) => file,
        Err(FsError::NotFound { .. } | FsError::WrongKind { .. }) => return Ok(String::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("can't read {path}: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{path} exceeds {MAX_FILE} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some(PasswdEntry { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn id(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let id = text.parse().ok().filter(|id| *id <= i32::MAX as u32);
    id.map(Some).ok_or_else(|| format!("{text} is not a user or group number: they end at {}", i32::MAX))
}

/// The first matching entry counts. Additional groups only where no group is named.
fn lookup(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, named_group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let (user_id, group_id) = (id(user)?, id(named_group)?);
    let entry = passwd_entries(passwd).find(|e| match user_id {
        Some(uid) => e.uid == uid,
        None => e.name == user,
    });
    let (uid, default_gid, name) = match (&entry, user_id) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, None),
        (None, None) => return Err("no matching entries in passwd file".to_owned()),
    };
    if !named_group.is_empty() {
        let entry = group_entries(group).find(|e| match group_id {
            Some(gid) => e.gid == gid,
            None => e.name == named_group,
        });
        let gid = match (entry, group_id) {
            (Some(entry), _) => entry.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(format!("no group {named_group} in group file")),
        };
        return Ok(User::new(uid, gid, Vec::new()));
    }
    let member = |e: &GroupEntry<'_>| name.is_some_and(|name| e.members.split(',').any(|m| m == name));
    let additional = group_entries(group).filter(member).map(|e| e.gid).collect();
    Ok(User::new(uid, default_gid, additional))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:44::/:/bin/false\n";
    const GROUP: &str = "root:x:0:root\nwww:x:44:\naudio:x:29:web,other\nvideo:x:30:web\n";

    fn found(wanted: &str) -> User {
        lookup(wanted, PASSWD, GROUP).unwrap_or_else(|error| panic!("{wanted}: {error}"))
    }

    #[test]
    fn a_name_brings_its_group_and_additional_groups() {
        assert_eq!(found("web"), User { uid: 33, gid: 44, groups: vec![44, 29, 30] });
        assert_eq!(found("33"), found("web"));
    }

    #[test]
    fn a_named_group_replaces_all_others() {
        assert_eq!(found("web:video"), User { uid: 33, gid: 30, groups: vec![30] });
        assert_eq!(found("web:30"), found("web:video"));
        assert_eq!(found("root:7"), User { uid: 0, gid: 7, groups: vec![7] });
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        assert_eq!(found("1000"), User { uid: 1000, gid: 0, groups: vec![0] });
        assert!(lookup("nobody", PASSWD, GROUP).is_err());
        assert!(lookup("web:nobody", PASSWD, GROUP).is_err());
        assert!(lookup("4294967295", PASSWD, GROUP).is_err());
    }

    #[test]
    fn numbers_for_both_are_taken_without_a_look() {
        assert_eq!(numeric("1:2"), Some((1, 2)));
        assert_eq!(numeric("root:root"), Some((0, 0)));
        assert_eq!(numeric("web:2"), None);
        assert_eq!(numeric("1"), None);
    }
}
