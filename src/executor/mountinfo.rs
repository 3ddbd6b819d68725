//! What is mounted, as `/proc/self/mountinfo` says it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

pub struct Entry<'a> {
    /// Where it is mounted.
    pub path: PathBuf,
    pub kind: &'a str,
    pub super_options: &'a str,
}

/// The mounts in the order in which they were made. Lines that are not understood are passed over.
pub fn parse(mountinfo: &str) -> impl Iterator<Item = Entry<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let super_options = filesystem.nth(1).unwrap_or_default();
        Some(Entry { path: unescape(path), kind, super_options })
    })
}

/// Space, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| text.get(at + 1..at + 4)).flatten();
        match octal.and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_spaces_are_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\040two\\134x rw master:1 - tmpfs tmpfs rw,size=1k";
        let entry = parse(line).next().expect("a mount");
        assert_eq!(entry.path, PathBuf::from("/mnt two\\x"));
        assert_eq!((entry.kind, entry.super_options), ("tmpfs", "rw,size=1k"));
    }
}
