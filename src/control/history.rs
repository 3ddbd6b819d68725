//! [`History`]: the builds that run, and durable records of those that ran.
//!
//! # Invariants
//!
//! - A completed build's record and the lease rows of its blobs are one transaction.
//! - A listener gets every change after the moment it began, and before them what was there then.
//! - A record goes by itself only if it is not pinned, beyond the newest `max_entries`, and older than
//!   `max_age`. Which ones are is known without a look at the others: [`Ages`].
//!
//! # Locking
//!
//! One mutex over the running builds, held to change them and to send the event of that change, so
//! that a listener sees each running build either in its first look or as an event.
//!
//! # Crash consistency
//!
//! A build that ran when the daemon died leaves no record. Its blobs have no lease row and are
//! collected.

mod ages;
mod filter;
mod record;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use jiff::Timestamp;
use redb::ReadableTable as _;
use redb::TableDefinition;
use tokio::sync::broadcast;

use crate::content::BlobReader;
use crate::content::ContentError;
use crate::content::ContentStore;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::ctx::Ctx;
use crate::db;
use crate::db::Db;
use crate::db::DbError;
use crate::lease;
use crate::lease::Owner;
use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::task::TaskFailed;
use crate::task::Tasks;

use ages::Ages;

pub use filter::HistoryFilter;
pub use filter::InvalidHistoryFilter;
pub use record::Event;
pub use record::Record;
pub use record::RecordedError;
pub use record::RecordedExporter;
pub use record::State;
pub use record::Steps;

/// Records by the ref of their build.
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("history");

/// Events that a listener may be behind.
const EVENTS: usize = 1024;

/// Refs of deleted records that are remembered, so that whoever asks for one learns what became of it.
const DELETED: usize = 1024;

/// Records that one transaction deletes at most.
const BATCH: usize = 256;

/// How often old records are looked for, besides after each build.
const SWEEP: Duration = Duration::from_secs(120);

/// What the status of a build is stored as.
pub const LOGS_MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// What its error is stored as. The misspelling is the protocol's.
pub const ERROR_MEDIA_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// How long records stay by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryLimits {
    pub max_age: Duration,
    pub max_entries: usize,
    /// Builds are shown and recorded from now on.
    pub recorded: bool,
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits { max_age: Duration::from_secs(48 * 3600), max_entries: 50, recorded: true }
    }
}

/// The history can't be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("no build record of {build}")]
    NotFound { build: String },
    #[error("ref {build} is deleted")]
    Deleted { build: String },
    #[error("the listener is more than {EVENTS} events behind")]
    Behind,
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("the blobs of a build record could not be stored: {0}")]
    Content(#[from] ContentError),
    #[error("a blob of a build record could not be read: {0}")]
    Read(#[from] FetchError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
}

/// Which records a listener wants.
#[derive(Clone, Debug, Default)]
pub struct HistoryQuery {
    /// No records of builds that are over.
    pub active_only: bool,
    /// The build of this ref alone; empty for all.
    pub build: String,
    /// Ends after what is there now.
    pub early_exit: bool,
    /// For records of builds that are over. None matches all.
    pub filter: Option<HistoryFilter>,
    /// The newest ones of those; 0 for all.
    pub limit: usize,
}

/// What a build left, to be recorded.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    pub error: Option<RecordedError>,
    /// The error with its details, as it is stored.
    pub external_error: Option<Bytes>,
    /// The whole status, as it is stored.
    pub logs: Bytes,
    pub steps: Steps,
    pub exporter_response: BTreeMap<String, String>,
    pub results: BTreeMap<usize, Descriptor>,
}

#[derive(Debug, Default)]
struct Live {
    /// The builds that run, by ref.
    active: BTreeMap<String, Arc<Record>>,
    /// The last refs whose records were deleted.
    deleted: VecDeque<String>,
    /// Of the stored records, once they were read.
    ages: Ages,
}

/// The builds that run and ran. Clones are the same history.
#[derive(Clone, Debug)]
pub struct History(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    content: ContentStore,
    db: Db,
    limits: HistoryLimits,
    tasks: Tasks,
    live: Mutex<Live>,
    events: broadcast::Sender<Event>,
    /// Rows that were read in search of records.
    looked: AtomicU64,
}

impl History {
    /// Opens the history; `tasks` owns its sweeps.
    pub fn open(content: ContentStore, limits: HistoryLimits, tasks: &Tasks) -> History {
        let db = content.db().clone();
        let (events, _) = broadcast::channel(EVENTS);
        let tasks = tasks.clone();
        let history = History(Arc::new(Inner {
            content,
            db,
            limits,
            tasks,
            live: Mutex::default(),
            events,
            looked: AtomicU64::new(0),
        }));
        let sweeper = history.clone();
        let stop = history.0.tasks.token().clone();
        drop(history.0.tasks.spawn("history-sweep", async move {
            let sweeps = async {
                if let Err(error) = sweeper.learn_ages().await {
                    tracing::warn!(%error, "build records of earlier runs can't be read: they stay");
                }
                loop {
                    sweeper.sweep_and_log().await;
                    tokio::time::sleep(SWEEP).await;
                }
            };
            stop.run_until_cancelled(sweeps).await;
        }));
        history
    }

    /// Shows a build as running until the answer is completed or dropped. `None` if builds are not recorded.
    pub fn begin(&self, record: Record) -> Option<ActiveBuild> {
        if !self.0.limits.recorded {
            return None;
        }
        let record = Arc::new(record);
        let mut live = self.live();
        live.deleted.retain(|build| *build != record.build);
        live.active.insert(record.build.clone(), Arc::clone(&record));
        self.send(Event::Started(Arc::clone(&record)));
        drop(live);
        Some(ActiveBuild { history: self.clone(), record })
    }

    /// What is there now, and unless the query ends early every change from now on.
    pub async fn listen(
        &self,
        query: HistoryQuery,
    ) -> Result<impl Stream<Item = Result<Event, HistoryError>> + Send + use<>, HistoryError> {
        let wanted = |build: &str| query.build.is_empty() || query.build == build;
        let (running, live) = {
            let live = self.live();
            if live.deleted.contains(&query.build) {
                return Err(HistoryError::Deleted { build: query.build });
            }
            let running: Vec<Event> = live
                .active
                .values()
                .filter(|record| wanted(&record.build))
                .map(|record| Event::Started(Arc::clone(record)))
                .collect();
            (running, self.0.events.subscribe())
        };
        let mut first = running;
        // What completes between the two looks is in both; its generation tells.
        let mut told = HashMap::new();
        if !query.active_only {
            let stored = self.stored(query.build.clone(), query.filter, query.limit).await?;
            told.extend(stored.iter().map(|record| (record.build.clone(), record.generation)));
            first.extend(stored.into_iter().map(Event::Complete));
        }
        let live = (!query.early_exit).then_some(live);
        let state = (first.into_iter(), live, told, query.build);
        Ok(stream::try_unfold(state, |(mut first, mut live, mut told, build)| async move {
            if let Some(event) = first.next() {
                return Ok(Some((event, (first, live, told, build))));
            }
            loop {
                let Some(events) = &mut live else { return Ok(None) };
                let event = match events.recv().await {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Closed) => return Ok(None),
                    Err(broadcast::error::RecvError::Lagged(_)) => return Err(HistoryError::Behind),
                };
                let known = match &event {
                    Event::Complete(record) => {
                        told.remove(&record.build).is_some_and(|generation| generation >= record.generation)
                    }
                    Event::Started(_) | Event::Deleted(_) => {
                        told.remove(event.build());
                        false
                    }
                };
                if !known && (build.is_empty() || build == event.build()) {
                    return Ok(Some((event, (first, live, told, build))));
                }
            }
        }))
    }

    /// The record of a build that is over.
    pub fn get(&self, build: &str) -> Result<Option<Record>, HistoryError> {
        Ok(self.0.db.read(|tx| {
            let Some(table) = tx.table(RECORDS)? else { return Ok(None) };
            let Some(row) = table.get(build)? else { return Ok(None) };
            db::decode(build, row.value()).map(Some)
        })?)
    }

    /// The status of a build that is over, as it was stored; none if there is no such build, or it has
    /// no status.
    pub async fn logs(&self, build: &str) -> Result<Option<BlobReader>, HistoryError> {
        let Some(logs) = self.get(build)?.and_then(|record| record.logs) else { return Ok(None) };
        Ok(Some(self.0.content.reader(&Ctx::background(), &logs, &DescHandlers::default()).await?))
    }

    /// The blob `digest`, if some record has it.
    pub async fn blob(&self, digest: Digest) -> Result<Option<BlobReader>, HistoryError> {
        let all = self.stored(String::new(), None, 0).await?;
        let descriptor = all.iter().find_map(|record| {
            let own = record.logs.iter().chain(&record.external_error).chain(record.results.values());
            own.clone().find(|descriptor| descriptor.digest == digest).cloned()
        });
        match descriptor {
            // Results may have been pushed without a trace of them here.
            Some(descriptor) if self.0.content.is_resident(&descriptor) => {
                let handlers = DescHandlers::default();
                Ok(Some(self.0.content.reader(&Ctx::background(), &descriptor, &handlers).await?))
            }
            _ => Ok(None),
        }
    }

    /// Pins the record of a build that is over, or lets it go again.
    ///
    /// Cancellation safe: it happens or it does not.
    pub async fn pin(&self, build: &str, pinned: bool) -> Result<(), HistoryError> {
        let name = build.to_owned();
        let changed = self.0.db.write(move |tx| {
            let mut table = tx.table(RECORDS)?;
            let Some(row) = table.get(name.as_str())?.map(|row| row.value().to_vec()) else {
                return Ok(None);
            };
            let mut record: Record = db::decode(&name, &row)?;
            record.pinned = pinned;
            record.generation = record.generation.saturating_add(1);
            table.insert(name.as_str(), db::encode(&record)?.as_slice())?;
            Ok(Some(record))
        });
        match changed.await? {
            Some(record) => {
                let mut live = self.live();
                live.ages.note(&record);
                self.send(Event::Complete(Arc::new(record)));
                Ok(())
            }
            None => Err(HistoryError::NotFound { build: build.to_owned() }),
        }
    }

    /// Deletes the record of a build that is over. None is no error.
    ///
    /// Cancellation safe: it happens or it does not.
    pub async fn delete(&self, build: &str) -> Result<(), HistoryError> {
        self.remove(vec![build.to_owned()], |_| true).await
    }

    /// Deletes those of `builds` whose records are there and `may` go.
    async fn remove(
        &self,
        builds: Vec<String>,
        may: impl Fn(&Record) -> bool + Send + 'static,
    ) -> Result<(), HistoryError> {
        let removed = self.0.db.write(move |tx| {
            let mut removed = Vec::new();
            let mut table = tx.table(RECORDS)?;
            for build in &builds {
                let Some(row) = table.get(build.as_str())?.map(|row| row.value().to_vec()) else { continue };
                // One that can't be read may go.
                let record = db::decode::<Record>(build, &row).ok();
                if record.as_ref().is_none_or(&may) {
                    table.remove(build.as_str())?;
                    lease::release_rows(tx, &Owner::History(build.clone()))?;
                    removed.push((build.clone(), record.map_or(Timestamp::MAX, |r| ages::completed(&r))));
                }
            }
            Ok(removed)
        });
        for (build, completed) in removed.await? {
            let mut live = self.live();
            if live.deleted.len() == DELETED {
                live.deleted.pop_front();
            }
            live.deleted.push_back(build.clone());
            live.ages.forget(&build, completed);
            self.send(Event::Deleted(build));
        }
        Ok(())
    }

    /// Records of builds that are over and match, the newest first if there is a limit.
    async fn stored(
        &self,
        build: String,
        filter: Option<HistoryFilter>,
        limit: usize,
    ) -> Result<Vec<Arc<Record>>, HistoryError> {
        let history = self.clone();
        let scan = self.0.tasks.spawn_blocking("history-scan", move || {
            history.0.db.read(|tx| {
                let Some(table) = tx.table(RECORDS)? else { return Ok(Vec::new()) };
                let mut found: Vec<Arc<Record>> = Vec::new();
                let rows = if build.is_empty() {
                    table.iter()?
                } else {
                    table.range(build.as_str()..=build.as_str())?
                };
                for row in rows {
                    let (key, value) = row?;
                    let record: Record = db::decode(key.value(), value.value())?;
                    history.0.looked.fetch_add(1, Ordering::Relaxed);
                    if filter.as_ref().is_none_or(|filter| filter.matches(&record)) {
                        found.push(Arc::new(record));
                    }
                }
                Ok(found)
            })
        });
        let mut found = scan.await??;
        if limit > 0 {
            found.sort_by_key(|record| std::cmp::Reverse(record.created));
            found.truncate(limit);
        }
        Ok(found)
    }

    async fn sweep_and_log(&self) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "old build records could not be deleted");
        }
    }

    /// Notes the records that are there.
    async fn learn_ages(&self) -> Result<(), HistoryError> {
        let stored = self.stored(String::new(), None, 0).await?;
        let mut live = self.live();
        stored.iter().for_each(|record| live.ages.note(record));
        Ok(())
    }

    /// Deletes records that have outlived both limits. Looks at no other ones.
    async fn sweep(&self) -> Result<(), HistoryError> {
        let HistoryLimits { max_age, max_entries, .. } = self.0.limits;
        let oldest = Timestamp::now().checked_sub(max_age).unwrap_or(Timestamp::MIN);
        let old = self.live().ages.beyond(max_entries, oldest);
        for batch in old.chunks(BATCH) {
            let is_old = move |record: &Record| !record.pinned && ages::completed(record) < oldest;
            self.remove(batch.to_vec(), is_old).await?;
            // One that was deleted while it was noted is not there to be removed.
            let mut live = self.live();
            batch.iter().for_each(|build| live.ages.forget(build, oldest));
        }
        Ok(())
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: Event) {
        // Nobody need listen.
        let _ = self.0.events.send(event);
    }
}

/// A build that is shown as running. Dropping it without a completion leaves no record.
#[must_use = "the build is shown as running while this lives"]
#[derive(Debug)]
pub struct ActiveBuild {
    history: History,
    record: Arc<Record>,
}

impl ActiveBuild {
    /// Records what the build left, and shows it as completed.
    ///
    /// Not cancellation safe: a dropped call may leave the build without a record.
    pub async fn complete(self, completion: Completion) -> Result<(), HistoryError> {
        let inner = &self.history.0;
        let Completion { error, external_error, logs, steps, exporter_response, results } = completion;
        // The leases keep the blobs until the rows do.
        let mut leases = Vec::new();
        let mut store = async |media_type: &str, bytes: Bytes| {
            let (descriptor, lease) = inner.content.write(media_type, bytes).await?;
            leases.push(lease);
            Ok::<_, ContentError>(descriptor)
        };
        let logs = store(LOGS_MEDIA_TYPE, logs).await?;
        let external_error = match external_error {
            Some(bytes) => Some(store(ERROR_MEDIA_TYPE, bytes).await?),
            None => None,
        };
        let record = Record {
            completed: Some(Timestamp::now()),
            error,
            logs: Some(logs),
            external_error,
            exporter_response,
            results,
            steps,
            ..(*self.record).clone()
        };
        let row = record.clone();
        let written = inner.db.write(move |tx| {
            let owner = Owner::History(row.build.clone());
            // An earlier build may have had the same ref.
            lease::release_rows(tx, &owner)?;
            let blobs: Vec<Digest> = row.blobs().collect();
            lease::hold_rows(tx, &owner, &blobs)?;
            tx.table(RECORDS)?.insert(row.build.as_str(), db::encode(&row)?.as_slice())?;
            Ok(())
        });
        written.await?;
        {
            let mut live = self.history.live();
            self.leave(&mut live.active);
            live.ages.note(&record);
            self.history.send(Event::Complete(Arc::new(record)));
        }
        let history = self.history.clone();
        drop(inner.tasks.spawn("history-sweep", async move { history.sweep_and_log().await }));
        Ok(())
    }

    /// True if the build was still the one that is shown under its ref.
    fn leave(&self, active: &mut BTreeMap<String, Arc<Record>>) -> bool {
        let own = active.get(&self.record.build).is_some_and(|record| Arc::ptr_eq(record, &self.record));
        if own {
            active.remove(&self.record.build);
        }
        own
    }
}

impl Drop for ActiveBuild {
    fn drop(&mut self) {
        let mut live = self.history.live();
        if self.leave(&mut live.active) {
            self.history.send(Event::Deleted(self.record.build.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
