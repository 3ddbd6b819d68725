//! Content digests (OCI image specification, `descriptor.md#digests`) and the IDs made of them.

use std::fmt;
use std::hash;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use sha2::Digest as _;
use sha2::Sha256;
use sha2::Sha512;

use super::from_text;

/// A registered digest algorithm. Others are refused: a digest that can't be verified is no digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the raw hash in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    pub fn len(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

/// The digest of some bytes, `algorithm:lower-case hex`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The first `algorithm.len()` bytes count, the rest is zero.
    hash: [u8; 64],
}

/// A text is not a digest that can be verified.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidDigest {
    #[error("digest {text:?} has no algorithm: expected <algorithm>:<hex>")]
    NoAlgorithm { text: String },
    #[error("digest algorithm {algorithm:?} is not supported: use sha256 or sha512")]
    Algorithm { algorithm: String },
    #[error("digest {text:?} is not {expected} lower-case hex digits after the colon")]
    Hex { text: String, expected: usize },
}

impl Digest {
    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: impl AsRef<[u8]>) -> Digest {
        Digest::from_raw(Algorithm::Sha256, &Sha256::digest(bytes.as_ref()))
    }

    /// Of a SHA-256 hash that was computed elsewhere.
    pub fn from_sha256(raw: [u8; 32]) -> Digest {
        let mut hash = [0; 64];
        hash[..32].copy_from_slice(&raw);
        Digest { algorithm: Algorithm::Sha256, hash }
    }

    /// SHA-512 of `bytes`.
    pub fn sha512(bytes: impl AsRef<[u8]>) -> Digest {
        Digest::from_raw(Algorithm::Sha512, &Sha512::digest(bytes.as_ref()))
    }

    fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Digest {
        let mut hash = [0; 64];
        hash[..algorithm.len()].copy_from_slice(raw);
        Digest { algorithm, hash }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash, 32 or 64 bytes.
    pub fn raw(&self) -> &[u8] {
        &self.hash[..self.algorithm.len()]
    }

    /// The hash as lower-case hex, without the algorithm.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(self.raw())
    }

    /// A hasher of the same algorithm, to verify bytes against this digest.
    pub fn hasher(&self) -> DigestHasher {
        DigestHasher::new(self.algorithm)
    }

    /// True if `bytes` hash to this digest.
    pub fn verifies(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl hash::Hash for Digest {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        // Where it begins the same as another one they are equal, or one is longer.
        state.write(self.raw());
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, length) = (self.algorithm.name().as_bytes(), 2 * self.algorithm.len());
        let mut buffer = [b':'; 136];
        buffer[..name.len()].copy_from_slice(name);
        let text = &mut buffer[..name.len() + 1 + length];
        HEXLOWER.encode_mut(self.raw(), &mut text[name.len() + 1..]);
        f.write_str(str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        let Some((algorithm, encoded)) = text.split_once(':') else {
            return Err(InvalidDigest::NoAlgorithm { text: clip(text) });
        };
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(InvalidDigest::Algorithm { algorithm: clip(other) }),
        };
        let expected = 2 * algorithm.len();
        let invalid = || InvalidDigest::Hex { text: clip(text), expected };
        if encoded.len() != expected {
            return Err(invalid());
        }
        let mut hash = [0; 64];
        HEXLOWER.decode_mut(encoded.as_bytes(), &mut hash[..algorithm.len()]).map_err(|_| invalid())?;
        Ok(Digest { algorithm, hash })
    }
}

/// Keeps hostile input out of error messages beyond what helps to find it.
fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        from_text(deserializer, "a digest")
    }
}

/// Computes a [`Digest`] while bytes pass by.
#[derive(Clone)]
pub struct DigestHasher(Hasher);

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl DigestHasher {
    pub fn new(algorithm: Algorithm) -> DigestHasher {
        DigestHasher(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self.0 {
            Hasher::Sha256(h) => Digest::from_raw(Algorithm::Sha256, &h.finalize()),
            Hasher::Sha512(h) => Digest::from_raw(Algorithm::Sha512, &h.finalize()),
        }
    }
}

/// Digest of a layer's uncompressed tar (OCI image specification, `config.md#layer-diffid`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Identity of a stack of layers (OCI image specification, `config.md#layer-chainid`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain of a single layer.
    pub fn of(bottom: DiffId) -> ChainId {
        ChainId(bottom.0)
    }

    /// The chain with `diff` on top of `self`.
    pub fn then(self, diff: DiffId) -> ChainId {
        ChainId(Digest::sha256(format!("{} {}", self.0, diff.0)))
    }

    /// The chain of layers listed bottom first; `None` for no layer.
    pub fn of_all(diffs: impl IntoIterator<Item = DiffId>) -> Option<ChainId> {
        diffs.into_iter().fold(None, |chain, diff| {
            Some(match chain {
                None => ChainId::of(diff),
                Some(chain) => chain.then(diff),
            })
        })
    }
}

macro_rules! shows_as_its_digest {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = InvalidDigest;
            fn from_str(text: &str) -> Result<$name, InvalidDigest> {
                text.parse().map($name)
            }
        }
    )*};
}

shows_as_its_digest!(DiffId, ChainId);

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_bytes_give_the_same_digest() {
        assert_eq!(Digest::sha256(""), EMPTY.parse().unwrap());
        assert_eq!(Digest::sha256("").to_string(), EMPTY);
        let long = Digest::sha512("x");
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
        assert!(long.verifies(b"x") && !long.verifies(b"y"));
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &EMPTY[..EMPTY.len() - 1],
            &EMPTY.to_uppercase(),
            &EMPTY.replace('e', "E"),
            &EMPTY.replace('e', "g"),
            &format!("{EMPTY}00"),
            "sha256:../../../../../../../../../../../../../../../../../../etc/passwd",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_chain_hashes_the_chain_below_and_the_diff() {
        let (a, b) = (DiffId(Digest::sha256("a")), DiffId(Digest::sha256("b")));
        assert_eq!(ChainId::of_all([]), None);
        assert_eq!(ChainId::of_all([a]), Some(ChainId(a.0)));
        let both = ChainId::of_all([a, b]).unwrap();
        assert_eq!(both.0, Digest::sha256(format!("{a} {b}")));
    }
}
