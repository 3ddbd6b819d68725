//! [`SnapshotKey`]: the name of a snapshot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use crate::oci::from_text;

const MAX_LENGTH: usize = 128;

/// 1 to 128 of `A-Z a-z 0-9 . _ : -`, not all dots, so that it is a file name wherever it is used as one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotKey(Arc<str>);

/// A text can't name a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a snapshot key: 1 to {MAX_LENGTH} of A-Z a-z 0-9 . _ : - that are not all dots")]
pub struct InvalidSnapshotKey {
    pub text: String,
}

impl SnapshotKey {
    pub fn new(text: &str) -> Result<SnapshotKey, InvalidSnapshotKey> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if text.len() > MAX_LENGTH || !text.bytes().all(allowed) || text.bytes().all(|b| b == b'.') {
            return Err(InvalidSnapshotKey { text: text.chars().take(160).collect() });
        }
        Ok(SnapshotKey(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotKey {
    type Err = InvalidSnapshotKey;

    fn from_str(text: &str) -> Result<SnapshotKey, InvalidSnapshotKey> {
        SnapshotKey::new(text)
    }
}

impl Serialize for SnapshotKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SnapshotKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SnapshotKey, D::Error> {
        from_text(deserializer, "the name of a snapshot")
    }
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}
