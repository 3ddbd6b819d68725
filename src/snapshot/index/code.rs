//! The compact form of an index; see [the module](super).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::IndexContent;
use super::IndexEntry;
use super::IndexedFile;
use super::InvalidIndex;
use super::LayerIndex;
use super::by_component;
use crate::archive::CheckState;
use crate::archive::Checks;
use crate::archive::EntryKind;
use crate::archive::Member;
use crate::archive::Members;

const MAGIC: &[u8] = b"TLI2";

const WHITEOUT: u8 = 0;
const OPAQUE: u8 = 1;
const FILE: u8 = 2;
const DIR: u8 = 3;
const SYMLINK: u8 = 4;
const HARDLINK: u8 = 5;
const CHAR_DEVICE: u8 = 6;
const BLOCK_DEVICE: u8 = 7;
const FIFO: u8 = 8;

const IS_OPAQUE: u8 = 0x10;
const IS_CONTIGUOUS: u8 = 0x20;
const HAS_XATTRS: u8 = 0x80;

pub(super) fn encode(LayerIndex { entries, checks, members }: &LayerIndex) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    put_number(&mut out, entries.len() as u64);
    let mut last: &[u8] = &[];
    for entry in entries {
        let shared = last.iter().zip(&entry.path).take_while(|(one, other)| one == other).count();
        put_number(&mut out, shared as u64);
        put_bytes(&mut out, &entry.path[shared..]);
        last = &entry.path;
        match &entry.content {
            IndexContent::Whiteout => out.push(WHITEOUT),
            IndexContent::Opaque => out.push(OPAQUE),
            IndexContent::Present(file) => put_file(&mut out, file),
        }
    }
    put_number(&mut out, checks.apart());
    put_number(&mut out, checks.states().len() as u64);
    checks.states().iter().for_each(|state| out.extend_from_slice(state));
    let (end, last) = checks.last();
    put_number(&mut out, end);
    out.extend_from_slice(last);
    put_number(&mut out, members.as_slice().len() as u64);
    let mut before = Member::default();
    for member in members.as_slice() {
        put_number(&mut out, member.compressed - before.compressed);
        put_number(&mut out, member.plain - before.plain);
        before = *member;
    }
    out
}

fn put_file(out: &mut Vec<u8>, file: &IndexedFile) {
    let kind = match file.kind {
        EntryKind::File => FILE,
        EntryKind::Dir => DIR,
        EntryKind::Symlink { .. } => SYMLINK,
        EntryKind::Hardlink { .. } => HARDLINK,
        EntryKind::CharDevice { .. } => CHAR_DEVICE,
        EntryKind::BlockDevice { .. } => BLOCK_DEVICE,
        EntryKind::Fifo => FIFO,
    };
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        kind | flag(file.opaque, IS_OPAQUE)
            | flag(file.contiguous, IS_CONTIGUOUS)
            | flag(!file.xattrs.is_empty(), HAS_XATTRS),
    );
    for number in [file.mode.into(), file.uid, file.gid, zigzag(file.mtime.0), file.mtime.1.into()] {
        put_number(out, number);
    }
    match &file.kind {
        EntryKind::File => {
            put_number(out, file.size);
            put_number(out, file.offset);
        }
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => put_bytes(out, target),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put_number(out, (*major).into());
            put_number(out, (*minor).into());
        }
        EntryKind::Dir | EntryKind::Fifo => {}
    }
    if !file.xattrs.is_empty() {
        put_number(out, file.xattrs.len() as u64);
        for (name, value) in &file.xattrs {
            put_bytes(out, name);
            put_bytes(out, value);
        }
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

pub(super) fn decode(bytes: &[u8]) -> Result<LayerIndex, InvalidIndex> {
    let mut input = Input { bytes, at: 0 };
    if input.take(MAGIC.len())? != MAGIC {
        return Err(InvalidIndex { offset: 0 });
    }
    let count = input.number()?;
    // Each entry has some bytes, so that a wrong count takes no memory.
    let mut entries: Vec<IndexEntry> = Vec::with_capacity((count as usize).min(bytes.len() / 4));
    for _ in 0..count {
        let last = entries.last().map_or(&[][..], |entry| entry.path.as_slice());
        let shared = input.number()?;
        let shared = usize::try_from(shared).ok().and_then(|shared| last.get(..shared));
        let mut path = shared.ok_or_else(|| input.invalid())?.to_vec();
        path.extend_from_slice(input.bytes()?);
        if path.is_empty() || !entries.is_empty() && by_component(last, &path) != Ordering::Less {
            return Err(input.invalid());
        }
        let tag = input.take(1)?[0];
        let content = match tag {
            WHITEOUT => IndexContent::Whiteout,
            OPAQUE => IndexContent::Opaque,
            tag => IndexContent::Present(Box::new(input.file(tag)?)),
        };
        entries.push(IndexEntry { path, content });
    }
    let (checks, members) = (input.checks()?, input.members()?);
    if input.at != bytes.len() {
        return Err(input.invalid());
    }
    Ok(LayerIndex { entries, checks, members })
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn invalid(&self) -> InvalidIndex {
        InvalidIndex { offset: self.at }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], InvalidIndex> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| self.invalid())?;
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, InvalidIndex> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.invalid())
    }

    fn small(&mut self) -> Result<u32, InvalidIndex> {
        u32::try_from(self.number()?).map_err(|_| self.invalid())
    }

    fn bytes(&mut self) -> Result<&'a [u8], InvalidIndex> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| self.invalid())?)
    }

    fn state(&mut self) -> Result<CheckState, InvalidIndex> {
        let mut state = CheckState::default();
        state.copy_from_slice(self.take(size_of::<CheckState>())?);
        Ok(state)
    }

    fn checks(&mut self) -> Result<Checks, InvalidIndex> {
        let (apart, count) = (self.number()?, self.number()?);
        let states = (0..count).map(|_| self.state()).collect::<Result<Vec<_>, _>>()?;
        let (end, last) = (self.number()?, self.state()?);
        if apart == 0 && states.is_empty() {
            return Ok(Checks::default());
        }
        Checks::new(apart, states, end, last).ok_or_else(|| self.invalid())
    }

    fn members(&mut self) -> Result<Members, InvalidIndex> {
        let mut member = Member::default();
        let mut members = Vec::new();
        for _ in 0..self.number()? {
            let (compressed, plain) = (self.number()?, self.number()?);
            let sums = member.compressed.checked_add(compressed).zip(member.plain.checked_add(plain));
            let (compressed, plain) = sums.ok_or_else(|| self.invalid())?;
            member = Member { compressed, plain };
            members.push(member);
        }
        Members::new(members).ok_or_else(|| self.invalid())
    }

    fn file(&mut self, tag: u8) -> Result<IndexedFile, InvalidIndex> {
        let (mode, uid, gid) = (self.small()?, self.number()?, self.number()?);
        let seconds = self.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
        let mtime = (seconds, self.small()?);
        let (mut size, mut offset) = (0, 0);
        let kind = match tag & 0x0f {
            FILE => {
                (size, offset) = (self.number()?, self.number()?);
                EntryKind::File
            }
            DIR => EntryKind::Dir,
            SYMLINK => EntryKind::Symlink { target: self.bytes()?.to_vec() },
            HARDLINK => EntryKind::Hardlink { target: self.bytes()?.to_vec() },
            CHAR_DEVICE => EntryKind::CharDevice { major: self.small()?, minor: self.small()? },
            BLOCK_DEVICE => EntryKind::BlockDevice { major: self.small()?, minor: self.small()? },
            FIFO => EntryKind::Fifo,
            _ => return Err(self.invalid()),
        };
        let mut xattrs = BTreeMap::new();
        if tag & HAS_XATTRS != 0 {
            for _ in 0..self.number()? {
                let name = self.bytes()?.to_vec();
                xattrs.insert(name, self.bytes()?.to_vec());
            }
        }
        Ok(IndexedFile {
            kind,
            opaque: tag & IS_OPAQUE != 0,
            mode,
            uid,
            gid,
            mtime,
            size,
            xattrs,
            offset,
            contiguous: tag & IS_CONTIGUOUS != 0,
        })
    }
}
