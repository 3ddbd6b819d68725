//! Changes definitions so that they stay definitions.
//!
//! An op is named by the digest of its bytes: once a byte is changed, whatever led to it leads nowhere. Here all of its
//! names are changed with it, in other ops and in what is said about ops.

use std::collections::HashMap;

use thunk::oci::Digest;

use crate::random::Random;
use crate::wire;

/// Fields of a definition.
const OP: u64 = 1;

const PREFIX: &[u8] = b"sha256:";
/// Of the name of an op.
const LENGTH: usize = PREFIX.len() + 64;

/// Most ops that a definition is changed to.
const MOST_OPS: usize = 300;

type Name = [u8; LENGTH];

/// Texts that lead somewhere, or have a meaning.
const TEXTS: [&str; 82] = [
    "",
    "/",
    ".",
    "..",
    "/a",
    "a/b",
    "a\0b",
    "0",
    "1",
    "-1",
    "0x7f",
    "00",
    "4294967296",
    "true",
    "null",
    "[]",
    "[\"a\"]",
    "{}",
    "<&>\u{2028}",
    "ü€",
    "*",
    "sh",
    "A=b",
    "linux",
    "windows",
    "amd64",
    "x86_64",
    "arm",
    "armhf",
    "arm64",
    "aarch64",
    "v7",
    "v8",
    "u+rwX,g=u,o-t",
    "a+s",
    "0644",
    "10000",
    "root",
    "sha256:",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "sha512:00",
    "docker-image://a",
    "docker-image://r.example:5000/a/b:c",
    "docker-image://",
    "oci-layout://a:b",
    "oci-layout://a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "local://a",
    "http://a.example/b",
    "https://[::1]:1/",
    "git://a",
    "image.resolvemode",
    "pull",
    "local",
    "default",
    "image.recordtype",
    "internal",
    "image.layerlimit",
    "image.checksum",
    "oci.session",
    "oci.store",
    "oci.layerlimit",
    "local.session",
    "a:b",
    "local.unique",
    "local.includepattern",
    "local.excludepatterns",
    "local.followpaths",
    "local.differ",
    "none",
    "local.metadatatransfer",
    "local.metadatatransferexclude",
    "http.checksum",
    "http.filename",
    "http.perm",
    "http.uid",
    "http.authheadersecret",
    "http.sig.pubkey",
    "http.sig.signature",
    "http.header.accept",
    "llb.customname",
    "exec.meta.base",
    "exec.teleport",
];

/// A definition taken apart.
struct Parts {
    /// With the names that others call them by.
    ops: Vec<(Name, Vec<u8>)>,
    /// What is said about them, as it is encoded.
    rest: Vec<u8>,
}

/// A definition that was changed: most often one whose ops still lead to one another.
pub(crate) fn mutate(data: &mut [u8], size: usize, max: usize, random: &mut Random) -> usize {
    let parts = if random.one_in(24) { None } else { Parts::of(&data[..size]) };
    let Some(mut parts) = parts else { return random.change(data, size, max) };
    for _ in 0..=random.below(3) {
        parts.change(random);
    }
    parts.rename();
    let bytes = parts.encode();
    if bytes.len() > max {
        return random.change(data, size, max);
    }
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
}

/// The same definition with its ops in another order, the last one apart.
pub(crate) fn reversed(definition: &[u8]) -> Option<Vec<u8>> {
    let mut parts = Parts::of(definition)?;
    if let Some((_, ops)) = parts.ops.split_last_mut() {
        ops.reverse();
    }
    Some(parts.encode())
}

impl Parts {
    fn of(definition: &[u8]) -> Option<Parts> {
        let (mut ops, mut rest) = (Vec::new(), Vec::new());
        for field in wire::parse_outermost(definition)? {
            match field.bytes(OP) {
                Some(bytes) => ops.push((name(bytes), bytes.to_vec())),
                None => rest.push(field),
            }
        }
        Some(Parts { ops, rest: wire::encode(&rest) })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.ops.iter().for_each(|(_, op)| wire::put_bytes(&mut out, OP, op));
        out.extend_from_slice(&self.rest);
        out
    }

    fn change(&mut self, random: &mut Random) {
        if self.ops.is_empty() || random.one_in(5) {
            let mut rest = wire::parse(&self.rest).unwrap_or_default();
            let other = rest.clone();
            wire::change(&mut rest, &other, &TEXTS, random);
            self.rest = wire::encode(&rest);
            return;
        }
        let (at, to) = (random.below(self.ops.len()), random.below(self.ops.len()));
        match random.below(16) {
            0 => drop(self.ops.remove(at)),
            1 => self.ops.swap(at, to),
            2 | 3 if self.ops.len() < MOST_OPS => {
                // Nothing leads to it yet.
                let bytes = self.ops[at].1.clone();
                let new = name(&[&bytes[..], &random.below(usize::MAX).to_le_bytes()].concat());
                self.ops.insert(to, (new, bytes));
            }
            4..=7 => {
                let new = self.ops[to].0;
                let names = names(&self.ops[at].1);
                if !names.is_empty() {
                    let place = *random.pick(&names);
                    self.ops[at].1[place..place + LENGTH].copy_from_slice(&new);
                }
            }
            8 => {
                let bytes = &mut self.ops[at].1;
                let used = bytes.len();
                bytes.resize(used + 32, 0);
                let room = bytes.len();
                let used = random.change(bytes, used, room);
                bytes.truncate(used);
            }
            _ => {
                let Some(mut op) = wire::parse(&self.ops[at].1) else { return };
                let other = wire::parse(&self.ops[to].1).unwrap_or_default();
                wire::change(&mut op, &other, &TEXTS, random);
                self.ops[at].1 = wire::encode(&op);
            }
        }
    }

    /// Gives each op the name that its bytes have now, wherever it is named.
    fn rename(&mut self) {
        let mut places = HashMap::new();
        for (at, (name, _)) in self.ops.iter().enumerate() {
            places.entry(*name).or_insert(at);
        }
        let mut new = HashMap::new();
        // Those that wait for their inputs, and those that have theirs, which come out again.
        let mut stack: Vec<(usize, bool)> = (0..self.ops.len()).rev().map(|at| (at, false)).collect();
        let mut seen = vec![false; self.ops.len()];
        while let Some((at, ready)) = stack.pop() {
            let (name, op) = &mut self.ops[at];
            if ready {
                replace(op, &new);
                new.entry(*name).or_insert_with(|| self::name(op));
            } else if !std::mem::replace(&mut seen[at], true) {
                stack.push((at, true));
                let inputs = names(op).into_iter().filter_map(|place| places.get(&op[place..place + LENGTH]));
                stack.extend(inputs.map(|input| (*input, false)));
            }
        }
        replace(&mut self.rest, &new);
    }
}

fn name(op: &[u8]) -> Name {
    let text = Digest::sha256(op).to_string();
    text.as_bytes().try_into().expect("its length is fixed")
}

/// Where something could be the name of an op.
fn names(bytes: &[u8]) -> Vec<usize> {
    let places = 0..=bytes.len().saturating_sub(LENGTH);
    places.filter(|at| bytes.len() >= at + LENGTH && bytes[*at..].starts_with(PREFIX)).collect()
}

/// Names are of one length, so that nothing else changes.
fn replace(bytes: &mut [u8], new: &HashMap<Name, Name>) {
    for place in names(bytes) {
        if let Some(name) = new.get(&bytes[place..place + LENGTH]) {
            bytes[place..place + LENGTH].copy_from_slice(name);
        }
    }
}
