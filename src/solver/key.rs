//! Cache keys: content addresses of results that may exist.
//!
//! A [`Key`] belongs to a vertex: it is computed from the digest of the vertex's cache map and, for each
//! input, the selector and the *first* key of that input's edge. Further keys of an input, such as the
//! hash of its content, only add links to it. An [`EdgeKey`] adds the output.
//!
//! Invariant: no key depends on a name, a time, a path or a node of the cluster.

use std::fmt;

use data_encoding::HEXLOWER;

use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::DigestHasher;

/// Cache key of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The key of an op over the first keys of its inputs.
    pub fn of(op: &Digest, inputs: &[(EdgeKey, Option<Digest>)]) -> Key {
        let mut hash = Hasher::new("op");
        hash.digest(op);
        for (key, selector) in inputs {
            hash.bytes(&key.bytes());
            match selector {
                Some(selector) => hash.digest(selector),
                None => hash.bytes(b""),
            }
        }
        hash.finish()
    }

    /// The key of content, wherever it comes from.
    pub fn of_content(content: &Digest) -> Key {
        let mut hash = Hasher::new("content");
        hash.digest(content);
        hash.finish()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0[..6]))
    }
}

/// Cache key of one output of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EdgeKey {
    pub key: Key,
    pub output: u32,
}

impl EdgeKey {
    /// As the index stores it: sorted by key, then by output.
    pub fn bytes(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..32].copy_from_slice(&self.key.0);
        bytes[32..].copy_from_slice(&self.output.to_be_bytes());
        bytes
    }
}

/// Says that key `from` of input `input`, through an op and a selector, leads to a key of that op.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link {
    pub from: EdgeKey,
    pub input: u32,
    /// Of the op's digest and the selector.
    pub through: [u8; 32],
}

impl Link {
    pub fn new(from: EdgeKey, input: u32, op: &Digest, selector: Option<&Digest>) -> Link {
        let mut hash = Hasher::new("link");
        hash.digest(op);
        match selector {
            Some(selector) => hash.digest(selector),
            None => hash.bytes(b""),
        }
        Link { from, input, through: hash.finish().0 }
    }

    /// As the index stores it: sorted by `from`.
    pub fn bytes(&self) -> [u8; 72] {
        let mut bytes = [0; 72];
        bytes[..36].copy_from_slice(&self.from.bytes());
        bytes[36..40].copy_from_slice(&self.input.to_be_bytes());
        bytes[40..].copy_from_slice(&self.through);
        bytes
    }
}

/// Each part goes in with its length, so that no two lists of parts are the same bytes.
struct Hasher(DigestHasher);

impl Hasher {
    fn new(kind: &str) -> Hasher {
        let mut hash = Hasher(DigestHasher::new(Algorithm::Sha256));
        hash.bytes(kind.as_bytes());
        hash
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn digest(&mut self, digest: &Digest) {
        self.bytes(digest.algorithm().name().as_bytes());
        self.bytes(digest.raw());
    }

    fn finish(self) -> Key {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.finish().raw());
        Key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_ops_inputs_selectors_and_content_apart() {
        let (a, b) = (Digest::sha256("a"), Digest::sha256("b"));
        let root = |digest| EdgeKey { key: Key::of(digest, &[]), output: 0 };
        let second = EdgeKey { output: 1, ..root(&a) };
        let keys = [
            Key::of(&a, &[]),
            Key::of(&b, &[]),
            Key::of(&a, &[(root(&a), None)]),
            Key::of(&a, &[(root(&b), None)]),
            Key::of(&a, &[(second, None)]),
            Key::of(&a, &[(root(&a), Some(b))]),
            Key::of(&a, &[(root(&a), None), (root(&b), None)]),
            Key::of(&a, &[(root(&b), None), (root(&a), None)]),
            Key::of_content(&a),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(Key::of(&a, &[(root(&a), Some(b))]), keys[5]);
    }
}
