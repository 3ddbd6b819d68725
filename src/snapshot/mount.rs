//! What has to be mounted to see a snapshot, and what is.

use std::path::Path;
use std::path::PathBuf;

/// What `mount(8)` would be given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `overlay` or `bind`.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// A snapshot that can be seen at a path, until this is dropped.
#[must_use = "dropping it unmounts"]
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// A directory of the host.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
