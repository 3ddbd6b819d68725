//! [`Frontend`]: turns a request of its own kind into solved definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::bridge::SolveReply;
use super::error::SolveError;
use super::job::Job;
use crate::ops::Operate;
use crate::ops::llb::Definition;

/// What a frontend is asked for.
#[derive(Clone, Debug, Default)]
pub struct FrontendRequest {
    pub options: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Arc<Definition>>,
}

/// A built-in frontend. It solves definitions on the bridge of the job that asks.
pub trait Frontend<O: Operate>: Send + Sync {
    /// Cancellation safe: what it solved stays lazy in the job.
    fn solve<'a>(
        &'a self,
        job: &'a Job<O>,
        request: FrontendRequest,
    ) -> BoxFuture<'a, Result<SolveReply<O>, SolveError>>;
}

/// The frontends by name.
pub type Frontends<O> = BTreeMap<String, Arc<dyn Frontend<O>>>;
