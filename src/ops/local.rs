//! `local://`: directories of clients, over their sessions.
//!
//! A transfer stands on the one before it, found by the name of the directory and the keys that the client
//! shares among its sessions, so that only what changed is sent and stored. A transfer that changes nothing
//! gives the state of the one before. States don't stand on each other without end: after [`GENERATIONS`] of
//! them the next one begins with a copy, and so does one that parts names of a file: what is written over a name and
//! has the bytes of before is no change to a state that stands on another. Who makes layers of a directory makes them
//! of [`ImmutableRef::alone`].
//!
//! # Crash consistency
//!
//! A state is found by others once it is committed; what a crash leaves of a transfer is removed at start.

use serde::Serialize;

use super::op::Differ;
use super::op::LocalSource;
use super::operate::OpError;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::MutableOptions;
use crate::cache::MutableRef;
use crate::cache::RecordType;
use crate::content::DescHandlers;
use crate::ctx::Cancelled;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::oci::Digest;
use crate::pattern::InvalidPattern;
use crate::pattern::Patterns;
use crate::progress::TransferProgress;
use crate::session::Code;
use crate::session::FileSyncRequest;
use crate::session::Session;
use crate::session::SessionError;
use crate::session::SessionId;
use crate::session::fsutil;
use crate::session::fsutil::DataFilter;
use crate::session::fsutil::Hold;
use crate::session::fsutil::ReceiveOptions;
use crate::session::fsutil::Received;
use crate::session::fsutil::TransferError;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// States of one directory that stand on each other at most.
const GENERATIONS: usize = 8;

/// A directory of a client can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LocalError {
    #[error("could not access local files without session")]
    NoSession,
    #[error("local directory {name:?}: {source}")]
    Transfer { name: String, source: TransferError },
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error("cancelled")]
    Cancelled,
}

impl LocalError {
    /// Another session may have the directory.
    fn is_about_session(&self) -> bool {
        let (LocalError::Session(error) | LocalError::Transfer { source: TransferError::Session(error), .. }) =
            self
        else {
            return false;
        };
        match error {
            SessionError::Refused { code, .. } => *code == Code::NotFound,
            SessionError::NotFound { .. } | SessionError::Unsupported { .. } => true,
            _ => false,
        }
    }
}

impl From<Cancelled> for LocalError {
    fn from(_: Cancelled) -> LocalError {
        LocalError::Cancelled
    }
}

impl From<LocalError> for OpError {
    fn from(error: LocalError) -> OpError {
        match error {
            LocalError::Cancelled | LocalError::Cache(CacheError::Cancelled) => OpError::Cancelled,
            error => OpError::failed(error),
        }
    }
}

/// Transfers directories. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Locals {
    cache: Cache,
    tasks: Tasks,
}

impl Locals {
    pub(super) fn new(cache: Cache, tasks: Tasks) -> Locals {
        Locals { cache, tasks }
    }

    /// What the transfer counts as: a session sends a directory once. Whoever uses the files counts them by
    /// their content.
    pub(super) fn cache_key(ctx: &Ctx, source: &LocalSource) -> Result<Digest, LocalError> {
        #[derive(Serialize)]
        struct Key<'s> {
            name: &'s str,
            session: String,
            include: &'s [String],
            exclude: &'s [String],
            follow: &'s [String],
            metadata_only: Option<&'s [String]>,
        }
        let session = match &source.session {
            Some(session) => SessionId::new(session),
            None => ctx.sessions().ids().into_iter().next().ok_or(LocalError::NoSession)?,
        };
        let key = Key {
            name: &source.name,
            session: session.as_str().to_owned(),
            include: &source.include,
            exclude: &source.exclude,
            follow: &source.follow,
            metadata_only: source.metadata_only.as_ref().map(|only| only.except.as_slice()),
        };
        // Texts and lists of texts can always be written.
        Ok(Digest::sha256(format!("session:{}", serde_json::to_string(&key).unwrap_or_default())))
    }

    /// The files of the directory, from the session that the source names, or any session of the build.
    ///
    /// Cancellation safe: what was begun is removed.
    pub(super) async fn run(&self, ctx: &Ctx, source: &LocalSource) -> Result<ImmutableRef, LocalError> {
        let transfer = async {
            if let Some(named) = &source.session {
                let found = ctx.sessions().find(&SessionId::new(named)).await;
                let taken = match found {
                    Ok(session) => self.transfer(ctx, &session, source).await,
                    Err(error) => Err(error.into()),
                };
                match taken {
                    Err(error) if error.is_about_session() => {
                        tracing::debug!(session = named, %error, "another session is asked");
                    }
                    taken => return taken,
                }
            }
            ctx.sessions().any(async |session: Session| self.transfer(ctx, &session, source).await).await
        };
        ctx.run(Box::pin(transfer)).await?
    }

    async fn transfer(
        &self,
        ctx: &Ctx,
        session: &Session,
        source: &LocalSource,
    ) -> Result<ImmutableRef, LocalError> {
        let metadata = if source.metadata_only.is_some() { ":metadata" } else { "" };
        let key =
            format!("local:{}:{}:{}{metadata}", source.name, source.shared_key_hint, session.shared_key());
        let previous = self.previous(&key)?;
        let options = MutableOptions {
            description: format!("local source for {}", source.name),
            record_type: RecordType::SourceLocal,
            keys: vec![key],
            ..MutableOptions::default()
        };
        let below = previous.as_ref().filter(|previous| previous.depth() < GENERATIONS);
        let mutable = match (&previous, below) {
            (Some(previous), None) => self.cache.create_copy(ctx, previous, options.clone()).await?,
            (_, below) => self.cache.create(ctx, below, options.clone()).await?,
        };
        let received = self.receive(ctx, session, source, &mutable).await?;
        match (&previous, below) {
            (Some(previous), _) if received.is_unchanged() => Ok(previous.clone()),
            (_, Some(below)) if received.parted > 0 => {
                drop(mutable);
                let mutable = self.cache.create_copy(ctx, below, options).await?;
                self.receive(ctx, session, source, &mutable).await?;
                Ok(mutable.commit().await?)
            }
            _ => Ok(mutable.commit().await?),
        }
    }

    /// Makes what is in `mutable` what the client has.
    async fn receive(
        &self,
        ctx: &Ctx,
        session: &Session,
        source: &LocalSource,
        mutable: &MutableRef,
    ) -> Result<Received, LocalError> {
        let tree = mutable.mount().await?;
        let item = ctx.progress().map(|p| p.item(format!("transferring {}:", source.name), "transferring"));
        if let Some(item) = &item {
            item.start(0);
        }
        let request = FileSyncRequest {
            name: source.name.clone(),
            include: source.include.clone(),
            exclude: source.exclude.clone(),
            follow: source.follow.clone(),
        };
        let options = ReceiveOptions {
            differ: match source.differ {
                Differ::Metadata => fsutil::Differ::Metadata,
                Differ::None => fsutil::Differ::None,
            },
            metadata_only: match &source.metadata_only {
                None => None,
                Some(only) => {
                    let except = Patterns::new(&only.except)?;
                    Some(DataFilter::new(move |stat| except.matches(&stat.path)))
                }
            },
            hold: Some(Hold::new(tree.clone())),
            ..ReceiveOptions::default()
        };
        let progress = |bytes| {
            if let Some(item) = &item {
                item.update(bytes);
            }
        };
        let received = session.file_sync(&self.tasks, &request, tree.path(), options, progress).await;
        if let Some(item) = &item {
            item.complete();
        }
        let received =
            received.map_err(|source| LocalError::Transfer { name: request.name.clone(), source })?;
        tracing::debug!(name = request.name, ?received, "transferred");
        Ok(received)
    }

    /// The state of the transfer before this one.
    fn previous(&self, key: &str) -> Result<Option<ImmutableRef>, LocalError> {
        for id in self.cache.find_by_key(key)? {
            match self.cache.get(&id, &DescHandlers::new()) {
                Ok(found) => return Ok(Some(found)),
                Err(error) => tracing::debug!(%id, %error, "a transfer before this one can't be used"),
            }
        }
        Ok(None)
    }
}
