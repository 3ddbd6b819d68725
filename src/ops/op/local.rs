//! [`LocalSource`]: files of a client.

/// `local://`: a directory of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalSource {
    /// Of the directory within the session.
    pub name: String,
    /// Session whose client has the directory; any session of the build if absent, or if it is gone.
    pub session: Option<String>,
    /// Sets transfers apart that are equal otherwise.
    pub unique: Option<String>,
    /// Empty for everything.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Paths whose symbolic links are followed, and their targets sent as well.
    pub follow: Vec<String>,
    /// What a previous transfer is found by.
    pub shared_key_hint: String,
    pub differ: Differ,
    /// Set if only metadata is transferred.
    pub metadata_only: Option<MetadataOnly>,
}

/// How a file of the previous transfer is known to be unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Differ {
    /// By its metadata.
    #[default]
    Metadata,
    /// Not at all: everything is sent again.
    None,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataOnly {
    /// Patterns of files that are transferred with their contents.
    pub except: Vec<String>,
}
