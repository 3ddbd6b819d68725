//! Digests as a registry spells them (`sha256:<hex>`), computed without any code under test, so that
//! the harness can be the judge of it.

use data_encoding::HEXLOWER;
use sha2::Digest as _;
use sha2::Sha256;
use sha2::Sha512;

/// The sha256 digest of `bytes`, as `sha256:<hex>`.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(bytes.as_ref())))
}

/// Hashes a stream with the algorithm that an expected digest names.
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher for the algorithm of `digest`; `None` if the digest is not well formed.
    pub fn for_digest(digest: &str) -> Option<Self> {
        let (algorithm, encoded) = digest.split_once(':')?;
        let lower_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        if !encoded.chars().all(lower_hex) {
            return None;
        }
        match (algorithm, encoded.len()) {
            ("sha256", 64) => Some(Self::Sha256(Sha256::new())),
            ("sha512", 128) => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes so far, as `<algorithm>:<hex>`.
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => format!("sha256:{}", HEXLOWER.encode(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", HEXLOWER.encode(&hasher.finalize())),
        }
    }
}
