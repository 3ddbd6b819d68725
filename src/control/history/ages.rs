//! [`Ages`]: which records are old, without a look at them.

use std::collections::BTreeSet;
use std::collections::HashMap;

use jiff::Timestamp;

use super::Record;

/// When the builds were completed that have a record. A record that is not noted does not go by itself.
///
/// Changes are noted after their transactions, in any order: the newest state of a record counts.
#[derive(Debug, Default)]
pub(super) struct Ages {
    all: HashMap<String, Noted>,
    /// Those that are not pinned.
    oldest_first: BTreeSet<(Timestamp, String)>,
}

#[derive(Debug)]
struct Noted {
    completed: Timestamp,
    generation: i32,
}

impl Ages {
    pub(super) fn note(&mut self, record: &Record) {
        let new = Noted { completed: completed(record), generation: record.generation };
        if let Some(noted) = self.all.get(&record.build) {
            if (noted.completed, noted.generation) > (new.completed, new.generation) {
                return;
            }
            self.oldest_first.remove(&(noted.completed, record.build.clone()));
        }
        if !record.pinned {
            self.oldest_first.insert((new.completed, record.build.clone()));
        }
        self.all.insert(record.build.clone(), new);
    }

    /// Forgets the record of `build`, if that was completed at `until` or before.
    pub(super) fn forget(&mut self, build: &str, until: Timestamp) {
        if let Some(noted) = self.all.get(build)
            && noted.completed <= until
        {
            self.oldest_first.remove(&(noted.completed, build.to_owned()));
            self.all.remove(build);
        }
    }

    /// Those that are not pinned, beyond the newest `entries`, and were completed before `oldest`.
    pub(super) fn beyond(&self, entries: usize, oldest: Timestamp) -> Vec<String> {
        let beyond = self.oldest_first.len().saturating_sub(entries);
        let old = self.oldest_first.iter().take(beyond).take_while(|(completed, _)| *completed < oldest);
        old.map(|(_, build)| build.clone()).collect()
    }
}

/// When the build of a stored record was completed.
pub(super) fn completed(record: &Record) -> Timestamp {
    record.completed.unwrap_or(Timestamp::MIN)
}
