//! [`Bridge`]: what a frontend may ask of its job, in plain types.
//!
//! # Invariants
//!
//! A ref lives as long as its job and is lazy: solving a definition decodes it and runs nothing. A
//! result is returned once; a second return is an error and changes nothing.
//!
//! # Locking
//!
//! One mutex over the refs and one over what failed ops left, held for look-ups and inserts.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::future::try_join_all;
use tokio::sync::watch;

use super::error::Rejected;
use super::error::SolveError;
use super::error::SourceLocation;
use super::frontend::FrontendRequest;
use super::job::Job;
use super::job::LazyResult;
use crate::export::Attestation;
use crate::ops::LeftFiles;
use crate::ops::Operate;
use crate::ops::VertexDigest;
use crate::ops::llb::Definition;
use crate::progress::Sink;
use crate::progress::Update;
use crate::progress::Warning;

/// What a frontend wants solved: a definition, or a request for another frontend, or neither, which is
/// the empty result.
#[derive(Clone, Debug, Default)]
pub struct SolveRequest {
    pub definition: Option<Arc<Definition>>,
    /// Empty for none.
    pub frontend: String,
    pub options: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Arc<Definition>>,
    /// Whether the refs are evaluated before the answer.
    pub evaluate: bool,
}

/// Names a lazy result within its job. Random, so that it can't be guessed from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RefId(String);

impl RefId {
    fn random() -> RefId {
        RefId(HEXLOWER.encode(&rand::random::<[u8; 16]>()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lazy result with a name.
pub struct Ref<O: Operate> {
    pub id: RefId,
    pub result: LazyResult<O>,
}

impl<O: Operate> Clone for Ref<O> {
    fn clone(&self) -> Self {
        Ref { id: self.id.clone(), result: self.result.clone() }
    }
}

impl<O: Operate> fmt::Debug for Ref<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref({})", self.id)
    }
}

/// The refs of a result. `None` is the empty file system.
#[derive(Debug)]
pub enum Refs<O: Operate> {
    Single(Option<Ref<O>>),
    /// By the ID that the metadata's `refs.platforms` gives to each platform.
    Many(BTreeMap<String, Option<Ref<O>>>),
}

impl<O: Operate> Refs<O> {
    /// Those that are there, in the order of their platforms.
    pub fn iter(&self) -> impl Iterator<Item = &Ref<O>> {
        let (single, many) = match self {
            Refs::Single(single) => (single.as_ref(), None),
            Refs::Many(many) => (None, Some(many)),
        };
        single.into_iter().chain(many.into_iter().flat_map(|many| many.values().flatten()))
    }
}

impl<O: Operate> Clone for Refs<O> {
    fn clone(&self) -> Self {
        match self {
            Refs::Single(single) => Refs::Single(single.clone()),
            Refs::Many(many) => Refs::Many(many.clone()),
        }
    }
}

/// A solved request: refs, and what the frontend says of them.
#[derive(Debug)]
pub struct SolveReply<O: Operate> {
    pub refs: Refs<O>,
    pub metadata: BTreeMap<String, Bytes>,
    /// What the frontend states of each platform, by its ID.
    pub attestations: BTreeMap<String, Vec<Attestation<Ref<O>>>>,
}

impl<O: Operate> Clone for SolveReply<O> {
    fn clone(&self) -> Self {
        SolveReply {
            refs: self.refs.clone(),
            metadata: self.metadata.clone(),
            attestations: self.attestations.clone(),
        }
    }
}

impl<O: Operate> SolveReply<O> {
    /// The empty result.
    pub fn empty() -> SolveReply<O> {
        SolveReply::of(Refs::Single(None))
    }

    /// A result that nothing is said of.
    pub fn of(refs: Refs<O>) -> SolveReply<O> {
        SolveReply { refs, metadata: BTreeMap::new(), attestations: BTreeMap::new() }
    }

    /// The refs that are there, in the order of their platforms, and then those of what is stated of them.
    pub fn refs(&self) -> impl Iterator<Item = &Ref<O>> {
        let stated = self.attestations.values().flatten().filter_map(|one| one.files.as_ref());
        self.refs.iter().chain(stated)
    }

    /// Evaluates all refs at the same time; the first error ends it.
    ///
    /// Cancellation safe: dropping it gives up the interest in what is not there yet.
    pub async fn evaluate(&self) -> Result<(), SolveError> {
        try_join_all(self.refs().map(|r| r.result.evaluate())).await.map(|_| ())
    }
}

/// How a job ended as its frontend sees it.
pub type Outcome<O> = Result<SolveReply<O>, Rejected>;

/// The part of a job that its frontend talks to. Kept by the job.
pub(super) struct BridgeState<O: Operate> {
    refs: Mutex<HashMap<RefId, Ref<O>>>,
    /// What failed ops left, which nothing is the definition of.
    left: Mutex<HashMap<RefId, LeftFiles>>,
    outcome: watch::Sender<Option<Outcome<O>>>,
}

impl<O: Operate> Default for BridgeState<O> {
    fn default() -> Self {
        BridgeState { refs: Mutex::default(), left: Mutex::default(), outcome: watch::Sender::new(None) }
    }
}

/// What a frontend may ask of its job. Borrowed from the [`Job`].
pub struct Bridge<'a, O: Operate> {
    pub(super) job: &'a Job<O>,
    pub(super) state: &'a BridgeState<O>,
}

impl<O: Operate> Bridge<'_, O> {
    /// Solves lazily: errors of vertices come when a ref is evaluated, or now if the request says so.
    ///
    /// Cancellation safe: refs that were made stay in the job, and nothing runs for them.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveReply<O>, SolveError> {
        let reply = match (request.definition, request.frontend.as_str()) {
            (Some(_), name) if !name.is_empty() => return Err(SolveError::DefinitionAndFrontend),
            (Some(definition), _) => {
                let result = self.job.solve(&definition).await?;
                SolveReply::of(Refs::Single(result.map(|result| self.keep(result))))
            }
            (None, "") => SolveReply::empty(),
            (None, name) => {
                let frontend = self.job.frontend(name, &request.options)?;
                let ask = FrontendRequest { options: request.options, inputs: request.inputs };
                frontend.solve(self.job, ask).await?
            }
        };
        if request.evaluate {
            reply.evaluate().await?;
        }
        Ok(reply)
    }

    /// Gives a result a name in this job.
    pub fn keep(&self, result: LazyResult<O>) -> Ref<O> {
        let named = Ref { id: RefId::random(), result };
        let mut refs = self.state.refs.lock().unwrap_or_else(PoisonError::into_inner);
        refs.insert(named.id.clone(), named.clone());
        named
    }

    /// The ref of that name. The empty name is the empty file system.
    pub fn reference(&self, id: &str) -> Result<Option<Ref<O>>, SolveError> {
        if id.is_empty() {
            return Ok(None);
        }
        let refs = self.state.refs.lock().unwrap_or_else(PoisonError::into_inner);
        match refs.get(&RefId(id.to_owned())) {
            Some(found) => Ok(Some(found.clone())),
            None => Err(SolveError::NoSuchRef { id: id.chars().take(160).collect() }),
        }
    }

    /// Gives something that a failed op had or left a name in this job, where it stays to the end.
    pub fn keep_left(&self, files: LeftFiles) -> RefId {
        let id = RefId::random();
        self.state.left.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), files);
        id
    }

    /// What a failed op had or left.
    pub fn left(&self, id: &str) -> Option<LeftFiles> {
        let left = self.state.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.get(&RefId(id.to_owned())).cloned()
    }

    /// The definitions that the job's client gave to its frontend.
    pub fn inputs(&self) -> &BTreeMap<String, Arc<Definition>> {
        self.job.inputs()
    }

    /// Ends the frontend's part of the job.
    pub fn return_(&self, outcome: Outcome<O>) -> Result<(), SolveError> {
        let mut outcome = Some(outcome);
        self.state.outcome.send_if_modified(|kept| {
            let first = kept.is_none();
            if first {
                *kept = outcome.take();
            }
            first
        });
        if outcome.is_some() { Err(SolveError::Returned) } else { Ok(()) }
    }

    /// Waits until the frontend returns, or the job is cancelled.
    ///
    /// Cancellation safe: an outcome stays and is given again.
    pub async fn returned(&self) -> Result<Outcome<O>, SolveError> {
        let mut outcome = self.state.outcome.subscribe();
        let wait = self.job.cancel().run_until_cancelled(outcome.wait_for(Option::is_some)).await;
        match wait {
            Some(Ok(outcome)) => Ok(outcome.clone().expect("the wait was for an outcome")),
            Some(Err(_)) | None => Err(SolveError::Cancelled),
        }
    }

    /// Shows a warning to whoever follows the job.
    pub fn warn(&self, warning: Warning) {
        self.job.journal().send(Update::Warning(warning));
    }
}

/// The places that `vertex` comes from.
pub(super) fn locations(definition: &Definition, vertex: &VertexDigest) -> Vec<SourceLocation> {
    let places = definition.places(vertex).into_iter();
    places.map(|(file, ranges)| SourceLocation { file, ranges }).collect()
}
