//! [`Origin`]: a durable note of where a blob's bytes can be had.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

/// Where the bytes of a blob can be had. A blob has many.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Origin {
    /// A repository of a registry, both as in a reference. Mirrors are the registry client's affair.
    Registry { host: String, repository: String },
    /// A content store that a build client serves in its session, by its name: an OCI layout on the
    /// client's disk, for one. No client can name a directory of this machine.
    SessionStore { store: String },
}

impl Origin {
    pub fn registry(host: impl Into<String>, repository: impl Into<String>) -> Origin {
        Origin::Registry { host: host.into(), repository: repository.into() }
    }

    /// True if naming this origin shows a right to its blobs. Whoever names a repository was let in there
    /// before; a client's store has a name that the client chose.
    pub(super) fn vouches(&self) -> bool {
        match self {
            Origin::Registry { .. } => true,
            Origin::SessionStore { .. } => false,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Registry { host, repository } => write!(f, "{host}/{repository}"),
            Origin::SessionStore { store } => write!(f, "the client's store {store}"),
        }
    }
}

/// An origin of a blob, and whether it was ever seen to have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KnownOrigin {
    pub origin: Origin,
    /// The blob was read there or put there, or found there where it had been read before in another
    /// repository. Otherwise somebody only said so.
    pub proven: bool,
}
