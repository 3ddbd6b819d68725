//! [`KeyIndex`]: which keys lead to which, and the results known under each, across restarts.
//!
//! # Tables
//!
//! | table | row |
//! |---|---|
//! | `key_link` | link (from, input, op and selector) → key |
//! | `key_link_into` | key → link: the same, from the other end |
//! | `key_record` | key, output, result → time of creation in µs since the epoch |
//! | `key_result` | result → key and output: the same, from the other end |
//! | `key_sequence` | number of the last addition that a snapshot contains |
//!
//! # Invariants
//!
//! A lookup writes nothing. Both ends of a link, and of a record, are written in one transaction. A
//! key without records and without a link that starts at it leads nowhere: [`KeyIndex::forget`]
//! removes the links into it, and so on backwards.
//!
//! # Crash consistency
//!
//! Additions are written behind: a crash loses the last second of them, which costs a run of an op and
//! nothing else. Until an addition is in the snapshots that readers get, it is found in memory, so
//! that a run is never repeated because its record was not written yet. The sequence row says when
//! that is so.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use redb::MultimapTableDefinition;
use redb::ReadableMultimapTable;
use redb::ReadableTable;
use redb::TableDefinition;

use super::key::EdgeKey;
use super::key::Key;
use super::key::Link;
use crate::cache::RecordId;
use crate::cache::RecordListener;
use crate::db::Db;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::oci::QuickMap;
use crate::oci::QuickSet;
use crate::ops::Presence;
use crate::ops::ResultId;

const LINKS: MultimapTableDefinition<'_, &[u8], &[u8]> = MultimapTableDefinition::new("key_link");
const LINKS_INTO: MultimapTableDefinition<'_, &[u8], &[u8]> = MultimapTableDefinition::new("key_link_into");
const RECORDS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("key_record");
const RESULTS: MultimapTableDefinition<'_, &str, &[u8]> = MultimapTableDefinition::new("key_result");
const SEQUENCE: TableDefinition<'_, &str, u64> = TableDefinition::new("key_sequence");
const LAST: &str = "last";

/// What a lookup asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// Where each of these leads.
    pub links: Vec<Link>,
    /// The records of each of these.
    pub keys: Vec<Key>,
}

impl Query {
    /// How many things are asked for.
    pub fn rows(&self) -> usize {
        self.links.len() + self.keys.len()
    }
}

impl Answer {
    /// To a query for things that are not known.
    pub fn nothing(query: &Query) -> Answer {
        Answer { links: vec![Vec::new(); query.links.len()], records: Vec::new() }
    }
}

/// What a lookup found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// In the order of the query.
    pub links: Vec<Vec<Key>>,
    pub records: Vec<Record>,
}

/// A result that is known under a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub key: EdgeKey,
    pub id: ResultId,
    /// Microseconds since the epoch.
    pub created: u64,
    /// As of the lookup.
    pub presence: Presence,
}

/// What is added after a run, or after a result was found under another key than expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub key: Key,
    pub links: Vec<Link>,
    /// By output.
    pub results: Vec<(u32, ResultId)>,
    /// Microseconds since the epoch.
    pub created: u64,
}

/// The durable index of keys. Clones share it.
#[derive(Clone)]
pub struct KeyIndex(Arc<Inner>);

struct Inner {
    db: Db,
    behind: Mutex<Behind>,
}

/// Additions that snapshots may not contain yet, oldest first.
#[derive(Default)]
struct Behind {
    last: u64,
    additions: VecDeque<(u64, Arc<Stored>)>,
    links: QuickMap<Link, Vec<(u64, Key)>>,
    records: QuickMap<Key, Vec<(u64, Arc<Stored>)>>,
}

impl fmt::Debug for KeyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyIndex({} behind)", self.behind().additions.len())
    }
}

impl KeyIndex {
    /// The index that lives in `db`.
    pub fn open(db: Db) -> Result<KeyIndex, DbError> {
        let last = db.read(sequence)?;
        let behind = Behind { last, ..Behind::default() };
        Ok(KeyIndex(Arc::new(Inner { db, behind: Mutex::new(behind) })))
    }

    /// Looks up links and records, on one snapshot for all of `queries`. The presence of records is left at
    /// [`Presence::Remote`].
    ///
    /// Blocks for a few disk reads per row at most; writes nothing.
    pub fn look<'q>(&self, queries: impl IntoIterator<Item = &'q Query>) -> Result<Vec<Answer>, DbError> {
        // What is behind is read before the snapshot: an addition is dropped there only once snapshots
        // contain it.
        let mut asked: Vec<(&Query, Answer)> = {
            let behind = self.behind();
            queries.into_iter().map(|query| (query, behind.look(query))).collect()
        };
        let seen = self.0.db.read(|tx| {
            look(tx, &mut asked)?;
            sequence(tx)
        })?;
        self.behind().settle(seen);
        Ok(asked.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Adds links and records: seen by the next lookup, durable within a second.
    pub fn add(&self, stored: Stored) {
        let stored = Arc::new(stored);
        let mut behind = self.behind();
        let number = behind.add(Arc::clone(&stored));
        // Queued under the lock, so that additions are committed in the order of their numbers.
        self.0.db.write_behind(move |tx| {
            add(tx, &stored)?;
            tx.table(SEQUENCE)?.insert(LAST, number)?;
            Ok(())
        });
    }

    /// Forgets results that are gone for good, and the keys that then lead nowhere.
    pub fn forget(&self, results: impl IntoIterator<Item = ResultId>) {
        let results: Vec<ResultId> = results.into_iter().collect();
        if !results.is_empty() {
            let mut behind = self.behind();
            behind.forget(&results);
            self.0.db.write_behind(move |tx| forget_rows(tx, &results));
        }
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.0.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a removed record leaves in the index goes with it.
impl RecordListener for KeyIndex {
    fn removed(&self, tx: &WriteTx, id: &RecordId) -> Result<(), DbError> {
        forget_rows(tx, &[ResultId(id.to_string())])
    }
}

impl Behind {
    fn add(&mut self, stored: Arc<Stored>) -> u64 {
        self.last += 1;
        let number = self.last;
        for link in &stored.links {
            self.links.entry(*link).or_default().push((number, stored.key));
        }
        if !stored.results.is_empty() {
            self.records.entry(stored.key).or_default().push((number, Arc::clone(&stored)));
        }
        self.additions.push_back((number, stored));
        number
    }

    fn look(&self, query: &Query) -> Answer {
        let mut answer = Answer::default();
        for link in &query.links {
            let keys = self.links.get(link).into_iter().flatten().map(|(_, key)| *key);
            answer.links.push(keys.collect());
        }
        for key in &query.keys {
            for (_, stored) in self.records.get(key).into_iter().flatten() {
                answer.records.extend(stored.results.iter().map(|(output, id)| Record {
                    key: EdgeKey { key: *key, output: *output },
                    id: id.clone(),
                    created: stored.created,
                    presence: Presence::Remote,
                }));
            }
        }
        answer
    }

    fn forget(&mut self, gone: &[ResultId]) {
        for (_, stored) in self.records.values_mut().flatten() {
            if stored.results.iter().any(|(_, id)| gone.contains(id)) {
                Arc::make_mut(stored).results.retain(|(_, id)| !gone.contains(id));
            }
        }
    }

    /// Drops the additions up to number `seen`.
    fn settle(&mut self, seen: u64) {
        while self.additions.front().is_some_and(|(number, _)| *number <= seen) {
            let Some((number, stored)) = self.additions.pop_front() else { return };
            for link in &stored.links {
                drop_number(&mut self.links, link, number);
            }
            drop_number(&mut self.records, &stored.key, number);
        }
    }
}

fn drop_number<K: std::hash::Hash + Eq, T>(map: &mut QuickMap<K, Vec<(u64, T)>>, key: &K, number: u64) {
    if let Some(list) = map.get_mut(key) {
        list.retain(|(n, _)| *n != number);
        if list.is_empty() {
            map.remove(key);
        }
    }
}

fn sequence(tx: &ReadTx) -> Result<u64, DbError> {
    let Some(table) = tx.table(SEQUENCE)? else { return Ok(0) };
    Ok(table.get(LAST)?.map_or(0, |row| row.value()))
}

/// Adds to each answer what the snapshot has. Opening a table costs more than a row of it.
fn look(tx: &ReadTx, asked: &mut [(&Query, Answer)]) -> Result<(), DbError> {
    if asked.iter().any(|(query, _)| !query.links.is_empty())
        && let Some(table) = tx.multimap(LINKS)?
    {
        for (query, answer) in asked.iter_mut() {
            for (link, found) in query.links.iter().zip(&mut answer.links) {
                // Rows are told apart by the table: thousands may lead from an input of many vertices.
                let behind: QuickSet<Key> = found.iter().copied().collect();
                for row in table.get(link.bytes().as_slice())? {
                    let key = key(row?.value())?;
                    if !behind.contains(&key) {
                        found.push(key);
                    }
                }
            }
        }
    }
    if asked.iter().any(|(query, _)| !query.keys.is_empty())
        && let Some(table) = tx.table(RECORDS)?
    {
        for (query, answer) in asked.iter_mut() {
            for key in &query.keys {
                let (low, high) = prefix(&key.0);
                for row in table.range(low.as_slice()..=high.as_slice())? {
                    let (row, created) = row?;
                    let (edge, id) = record(row.value())?;
                    if !answer.records.iter().any(|r| r.key == edge && r.id == id) {
                        let created = created.value();
                        answer.records.push(Record { key: edge, id, created, presence: Presence::Remote });
                    }
                }
            }
        }
    }
    Ok(())
}

fn add(tx: &WriteTx, stored: &Stored) -> Result<(), DbError> {
    let (mut links, mut into) = (tx.multimap(LINKS)?, tx.multimap(LINKS_INTO)?);
    for link in &stored.links {
        let link = link.bytes();
        links.insert(link.as_slice(), stored.key.0.as_slice())?;
        into.insert(stored.key.0.as_slice(), link.as_slice())?;
    }
    let (mut records, mut results) = (tx.table(RECORDS)?, tx.multimap(RESULTS)?);
    for (output, id) in &stored.results {
        let edge = EdgeKey { key: stored.key, output: *output }.bytes();
        let mut row = edge.to_vec();
        row.extend_from_slice(id.0.as_bytes());
        records.insert(row.as_slice(), stored.created)?;
        results.insert(id.0.as_str(), edge.as_slice())?;
    }
    Ok(())
}

/// Forgets results within a transaction of the row that owns them.
pub fn forget_rows(tx: &WriteTx, gone: &[ResultId]) -> Result<(), DbError> {
    let (mut records, mut results) = (tx.table(RECORDS)?, tx.multimap(RESULTS)?);
    let (mut links, mut into) = (tx.multimap(LINKS)?, tx.multimap(LINKS_INTO)?);
    let mut suspects = Vec::new();
    for id in gone {
        for edge in results.remove_all(id.0.as_str())? {
            let mut row = edge?.value().to_vec();
            suspects.push(key(&row[..32.min(row.len())])?);
            row.extend_from_slice(id.0.as_bytes());
            records.remove(row.as_slice())?;
        }
    }
    // Backwards through the links, each row removed once.
    while let Some(suspect) = suspects.pop() {
        let (low, high) = prefix(&suspect.0);
        let leads = records.range(low.as_slice()..=high.as_slice())?.next().is_some()
            || links.range(low.as_slice()..=high.as_slice())?.next().is_some();
        if leads {
            continue;
        }
        let mut sources = Vec::new();
        for link in into.remove_all(suspect.0.as_slice())? {
            sources.push(link?.value().to_vec());
        }
        for link in sources {
            links.remove(link.as_slice(), suspect.0.as_slice())?;
            suspects.push(key(&link[..32.min(link.len())])?);
        }
    }
    Ok(())
}

/// The range of rows that begin with `key`. No row is above the upper end.
fn prefix(key: &[u8; 32]) -> ([u8; 32], [u8; 96]) {
    let mut high = [0xff; 96];
    high[..32].copy_from_slice(key);
    (*key, high)
}

fn key(bytes: &[u8]) -> Result<Key, DbError> {
    bytes.try_into().map(Key).map_err(|_| invalid("a key is not 32 bytes"))
}

fn record(row: &[u8]) -> Result<(EdgeKey, ResultId), DbError> {
    let (Some(digest), Some(output), Some(id)) = (row.get(..32), row.get(32..36), row.get(36..)) else {
        return Err(invalid("a record's row is too short"));
    };
    let output = u32::from_be_bytes(output.try_into().map_err(|_| invalid("an output is not 4 bytes"))?);
    let id = str::from_utf8(id).map_err(|_| invalid("a result's name is not UTF-8"))?;
    Ok((EdgeKey { key: key(digest)?, output }, ResultId(id.to_owned())))
}

fn invalid(reason: &str) -> DbError {
    DbError::Row { key: "key index".to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
