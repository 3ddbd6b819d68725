//! Extended headers (POSIX.1-2001 `pax`, "pax Extended Header"): records of `length key=value\n`.

use std::collections::BTreeMap;

use super::Extent;

pub(super) const PATH: &[u8] = b"path";
pub(super) const LINK: &[u8] = b"linkpath";
pub(super) const SIZE: &[u8] = b"size";
pub(super) const UID: &[u8] = b"uid";
pub(super) const GID: &[u8] = b"gid";
pub(super) const UNAME: &[u8] = b"uname";
pub(super) const GNAME: &[u8] = b"gname";
pub(super) const MTIME: &[u8] = b"mtime";
/// Schilling's prefix of extended attributes, which all tools of containers use.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
pub(super) const SPARSE: &[u8] = b"GNU.sparse.";

/// Records by key, as they count for an entry.
#[derive(Clone, Default, Debug)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Runs of GNU's sparse format 0.0, which repeats its keys.
    runs: Vec<Extent>,
    run_offset: Option<u64>,
    /// Bytes of keys and values, of those of runs as well.
    bytes: u64,
}

impl Records {
    /// Adds the records of an extended header; later ones win. The error says what is wrong.
    pub(super) fn add(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            data = rest;
            match key {
                b"GNU.sparse.offset" => {
                    self.run_offset = Some(decimal(value).ok_or("a sparse run's offset is no number")?);
                }
                b"GNU.sparse.numbytes" => {
                    let length = decimal(value).ok_or("a sparse run's length is no number")?;
                    let offset = self.run_offset.take().ok_or("a sparse run has no offset")?;
                    self.runs.push(Extent { offset, length });
                    self.bytes += (key.len() + value.len()) as u64;
                }
                _ if wanted(key) => self.set(key, value),
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += (key.len() + value.len()) as u64;
        if let Some(old) = self.values.insert(key.to_vec(), value.to_vec()) {
            self.bytes -= (key.len() + old.len()) as u64;
        }
    }

    /// What an entry with records of its own sees of both: its own win.
    pub(super) fn over(self, global: &Records) -> Records {
        if global.values.is_empty() {
            return self;
        }
        let mut all = global.clone();
        all.runs = self.runs;
        for (key, value) in self.values {
            all.values.insert(key, value);
        }
        all
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The value of a key. An empty one takes a global record back, and the block's field counts.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(super) fn runs(&self) -> &[Extent] {
        &self.runs
    }

    /// Extended attributes by name. Here an empty value is a value.
    pub(super) fn xattrs(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let named = self.values.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, value)));
        named.map(|(name, value)| (name.to_vec(), value.clone())).collect()
    }
}

/// True for a key that counts here. Access and change times, ACLs in text form, comments don't.
fn wanted(key: &[u8]) -> bool {
    [PATH, LINK, SIZE, UID, GID, UNAME, GNAME, MTIME].contains(&key)
        || key.starts_with(SPARSE)
        || key.len() > XATTR.len() && key.starts_with(XATTR)
}

type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record's key and value, and what follows it.
fn record(data: &[u8]) -> Result<Split<'_>, &'static str> {
    let space = data.iter().take(20).position(|&b| b == b' ').ok_or("a record has no length")?;
    let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok());
    let length = length.ok_or("a record's length is no number")?;
    if length > data.len() || length < space + 2 {
        return Err("a record's length is wrong");
    }
    let (record, rest) = data.split_at(length);
    let [content @ .., b'\n'] = &record[space + 1..] else {
        return Err("a record doesn't end its line");
    };
    let equals = content.iter().position(|&b| b == b'=').ok_or("a record has no value")?;
    let (key, value) = (&content[..equals], &content[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err("a record has no valid key");
    }
    if [PATH, LINK, UNAME, GNAME].contains(&key) && value.contains(&0) {
        return Err("a record's text contains NUL");
    }
    Ok((key, value, rest))
}

/// A natural number in decimal.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction; what is finer than nanoseconds is dropped.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    if nanos != 0 && seconds.starts_with('-') {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((whole, nanos))
}

/// A time as a record has it, the reverse of [`time`].
pub(super) fn format_time((seconds, nanos): (i64, u32)) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let text = if seconds < 0 {
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        format!("{seconds}.{nanos:09}")
    };
    text.trim_end_matches('0').to_owned()
}

/// Appends a record, whose length counts its own digits.
pub(super) fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if rest + digits(length) != length {
        length += 1;
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}
