//! What the cache uses of the disk, record by record.
//!
//! A record's size is that of its own blobs and files, as far as they are here, parts of its layer included: what is
//! remote takes no room. What several records share counts for the one that was made first, so that the sum is what the
//! disk holds.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;

use super::filter::Filter;
use super::record::RecordId;
use super::record::RecordType;

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct UsageOptions {
    pub filter: Filter,
    /// Only records that were not used within this time.
    pub age_limit: Duration,
}

/// One record, as disk usage lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    pub id: RecordId,
    pub parents: Vec<RecordId>,
    /// Bytes on disk that this record accounts for.
    pub size: u64,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    pub usage_count: u64,
    pub description: String,
    pub record_type: RecordType,
    /// Somebody uses the record itself, or one that stands on it.
    pub in_use: bool,
    /// It can be written.
    pub mutable: bool,
    /// Somebody uses the record itself.
    pub(super) held: bool,
}

impl Usage {
    /// Fields as BuildKit names them.
    pub(super) fn matches(&self, filter: &Filter) -> bool {
        let present = |is: bool| is.then_some(Cow::Borrowed(""));
        filter.matches(|path| match *path.first()? {
            "id" => Some(Cow::Owned(self.id.to_string())),
            "parents" if !self.parents.is_empty() => {
                let parents: Vec<String> = self.parents.iter().map(RecordId::to_string).collect();
                Some(Cow::Owned(parents.join(";")))
            }
            "description" if !self.description.is_empty() => Some(Cow::Borrowed(self.description.as_str())),
            "type" => Some(Cow::Borrowed(self.record_type.name())),
            "inuse" => present(self.in_use),
            "mutable" => present(self.mutable),
            "immutable" => present(!self.mutable),
            // Nothing but the cache has what is in it.
            "shared" => present(false),
            "private" => present(true),
            _ => None,
        })
    }
}
