//! [`CacheMounts`]: file systems that are kept between builds.
//!
//! A cache mount is named by its ID and the input that it began as. Several may have the same name: who wants one
//! to himself while it is busy gets another, which is kept as well.
//!
//! A build that ignores the cache begins with new ones: those of its IDs are [forgotten](CacheMounts::forget) before
//! anything of it runs. Who has one in use keeps it to himself.
//!
//! # Locking
//!
//! One mutex over the maps, for look-ups. Who looks for a mount, or makes one, of a name holds the *gate* of the
//! name, a semaphore, so that two don't make one each. A mount itself is used by its holders alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;

use tokio::sync::Notify;
use tokio::sync::Semaphore;

use super::super::op::CacheSharing;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::MutableOptions;
use crate::cache::MutableRef;
use crate::cache::RecordId;
use crate::cache::RecordType;
use crate::ctx::Ctx;

/// What the key of a cache mount's record begins with; its name follows.
const KEY: &str = "cache-mount:";

/// Those of this daemon that are in use. Clones are the same.
#[derive(Clone, Debug)]
pub struct CacheMounts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    maps: Mutex<Maps>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Maps {
    /// Those that all may write at the same time.
    shared: HashMap<String, Weak<CacheMount>>,
    gates: HashMap<String, Weak<Semaphore>>,
}

/// One that is in use, by all who hold it.
#[derive(Debug)]
pub struct CacheMount {
    files: Option<MutableRef>,
    mounts: Arc<Inner>,
}

impl CacheMount {
    pub fn files(&self) -> Result<&MutableRef, CacheError> {
        self.files.as_ref().ok_or(CacheError::Empty)
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        // Free before those who wait for it look again.
        drop(self.files.take());
        self.mounts.released.notify_waiters();
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub id: &'a str,
    pub sharing: CacheSharing,
    /// What a new one begins as.
    pub initial: Option<&'a ImmutableRef>,
    /// Of a new one, for people.
    pub description: String,
}

impl Wanted<'_> {
    /// Names it among the cache mounts.
    pub fn name(&self) -> String {
        match self.initial {
            Some(initial) => format!("{}:{}", self.id, initial.id()),
            None => self.id.to_owned(),
        }
    }
}

/// True if this is what follows an ID in the name of a mount: nothing, or the record that it began as.
fn is_end_of_name(rest: &str, initial: bool) -> bool {
    match rest.strip_prefix(':') {
        Some(record) => initial && record.parse::<RecordId>().is_ok(),
        None => !initial && rest.is_empty(),
    }
}

impl CacheMounts {
    pub fn new(cache: Cache) -> CacheMounts {
        let (maps, released) = (Mutex::default(), Notify::new());
        CacheMounts(Arc::new(Inner { cache, maps, released }))
    }

    /// The mount that is wanted. Waits for it if it is to be locked and somebody has it.
    ///
    /// Cancellation safe.
    pub async fn get(&self, ctx: &Ctx, wanted: &Wanted<'_>) -> Result<Arc<CacheMount>, CacheError> {
        let name = wanted.name();
        loop {
            // Before the look: what is released after it wakes us.
            let mut released = std::pin::pin!(self.0.released.notified());
            released.as_mut().enable();
            if let Some(found) = self.find_or_make(ctx, wanted, &name).await? {
                return Ok(found);
            }
            ctx.run(released).await.map_err(|_| CacheError::Cancelled)?;
        }
    }

    /// Nobody finds the mounts of this ID any more, those that began with files (`initial`), whichever these are, or
    /// those that began empty: who wants one gets a new one. Those that nobody uses are removed.
    ///
    /// Cancellation safe.
    pub async fn forget(&self, id: &str, initial: bool) -> Result<(), CacheError> {
        let is_meant = move |rest: &str| is_end_of_name(rest, initial);
        self.maps().shared.retain(|name, _| !name.strip_prefix(id).is_some_and(is_meant));
        self.0.cache.forget_keys(&format!("{KEY}{id}"), is_meant).await?;
        // Who waits for one of them to be released gets a new one now.
        self.0.released.notify_waiters();
        Ok(())
    }

    /// `None` if all are busy and that is to be waited for.
    async fn find_or_make(
        &self,
        ctx: &Ctx,
        wanted: &Wanted<'_>,
        name: &str,
    ) -> Result<Option<Arc<CacheMount>>, CacheError> {
        let gate = self.gate(name);
        // The semaphore is never closed.
        let _open = ctx.run(gate.acquire()).await.map_err(|_| CacheError::Cancelled)?;
        if wanted.sharing == CacheSharing::Shared
            && let Some(shared) = self.maps().shared.get(name).and_then(Weak::upgrade)
        {
            return Ok(Some(shared));
        }
        let key = format!("{KEY}{name}");
        let mut busy = false;
        for id in self.0.cache.find_by_key(&key)? {
            match self.0.cache.get_mutable(ctx, &id).await {
                Ok(files) => return Ok(Some(self.hold(wanted, name, files))),
                Err(CacheError::Locked { .. }) => busy = true,
                Err(CacheError::NotFound { .. }) => {}
                Err(error @ CacheError::Cancelled) => return Err(error),
                Err(error) => tracing::warn!(%id, %error, "a cache mount can't be used"),
            }
        }
        if busy && wanted.sharing == CacheSharing::Locked {
            return Ok(None);
        }
        let options = MutableOptions {
            description: wanted.description.clone(),
            record_type: RecordType::ExecCacheMount,
            keys: vec![key],
            keep: true,
            ..MutableOptions::default()
        };
        let files = self.0.cache.create(ctx, wanted.initial, options).await?;
        Ok(Some(self.hold(wanted, name, files)))
    }

    fn hold(&self, wanted: &Wanted<'_>, name: &str, files: MutableRef) -> Arc<CacheMount> {
        let mount = Arc::new(CacheMount { files: Some(files), mounts: self.0.clone() });
        if wanted.sharing == CacheSharing::Shared {
            let mut maps = self.maps();
            maps.shared.retain(|_, shared| shared.strong_count() > 0);
            maps.shared.insert(name.to_owned(), Arc::downgrade(&mount));
        }
        mount
    }

    fn gate(&self, name: &str) -> Arc<Semaphore> {
        let mut maps = self.maps();
        if let Some(gate) = maps.gates.get(name).and_then(Weak::upgrade) {
            return gate;
        }
        maps.gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Semaphore::new(1));
        maps.gates.insert(name.to_owned(), Arc::downgrade(&gate));
        gate
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_not_taken_for_a_longer_one() {
        let record = "0123456789abcdef0123456789abcdef";
        let named = |name: &str, initial| name.strip_prefix("id").is_some_and(|r| is_end_of_name(r, initial));
        assert!(named("id", false) && !named("id", true));
        assert!(named(&format!("id:{record}"), true) && !named(&format!("id:{record}"), false));
        for other in ["id2", "id:2", "i", &format!("id2:{record}"), &format!("id:2:{record}")] {
            assert!(!named(other, false) && !named(other, true), "{other}");
        }
    }
}
