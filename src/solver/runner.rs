//! [`Runner`]: the loop around the [`Scheduler`], and the tasks that its effects are.
//!
//! # Cancellation
//!
//! Each effect with a task number has a token of its own, below the one of the solver. It ends with
//! its event whether it was cancelled or not, and if it panicked as well: the scheduler never waits for
//! something that does not come.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::Cause;
use super::event::Effect;
use super::event::Ending;
use super::event::Event;
use super::event::RunOutputs;
use super::event::TaskNumber;
use super::index::Answer;
use super::index::KeyIndex;
use super::index::Query;
use super::index::Stored;
use super::scheduler::Scheduler;
use super::scheduler::Shell;
use crate::ctx::Ctx;
use crate::ops::CacheMap;
use crate::ops::CacheOptGetter;
use crate::ops::LoadError;
use crate::ops::OpError;
use crate::ops::Operate;
use crate::ops::Presence;
use crate::ops::ResultId;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// A lookup of more rows than this goes to a thread that may block.
const MANY_ROWS: usize = 64;

/// Runs the effects of a scheduler.
pub struct Runner<O: Operate> {
    scheduler: Scheduler<O::Output>,
    events: mpsc::UnboundedReceiver<Event<O::Output>>,
    running: HashMap<TaskNumber, CancellationToken>,
    hands: Hands<O>,
}

/// What an effect works with.
struct Hands<O: Operate> {
    operate: Arc<O>,
    index: KeyIndex,
    tasks: Tasks,
    /// Weak, so that the loop ends with the last handle of the solver.
    sender: mpsc::WeakUnboundedSender<Event<O::Output>>,
}

impl<O: Operate> Clone for Hands<O> {
    fn clone(&self) -> Self {
        Hands {
            operate: Arc::clone(&self.operate),
            index: self.index.clone(),
            tasks: self.tasks.clone(),
            sender: self.sender.clone(),
        }
    }
}

impl<O: Operate> Runner<O> {
    pub fn new(
        scheduler: Scheduler<O::Output>,
        events: mpsc::UnboundedReceiver<Event<O::Output>>,
        sender: mpsc::WeakUnboundedSender<Event<O::Output>>,
        operate: Arc<O>,
        index: KeyIndex,
        tasks: Tasks,
    ) -> Runner<O> {
        let hands = Hands { operate, index, tasks, sender };
        Runner { scheduler, events, running: HashMap::new(), hands }
    }

    /// The loop: ends with the solver's last handle, or its token.
    pub async fn run(mut self) {
        let token = self.hands.tasks.token().clone();
        while let Some(event) = token.run_until_cancelled(self.select()).await.flatten() {
            for effect in self.scheduler.apply(event) {
                self.perform(effect);
            }
        }
        // Those who wait learn from the channels that go with `self`; tasks end by the token.
        for token in self.running.values() {
            token.cancel();
        }
    }

    async fn select(&mut self) -> Option<Event<O::Output>> {
        let event = self.events.recv().await?;
        if let Event::Ended { task, .. } = &event {
            self.running.remove(task);
        }
        Some(event)
    }

    fn perform(&mut self, effect: Effect<O::Output>) {
        match effect {
            Effect::Map { task, shell, index } => self.start(task, |hands, token| async move {
                Ending::Mapped(hands.map(&shell, index, token).await)
            }),
            Effect::Look { task, query } => self.look(task, query),
            Effect::Hash { task, shell, hash, input } => self.start(task, |_, token| async move {
                let ctx = context(&shell, token.clone());
                let work = async { Ok(hash(ctx, input).await?) };
                let result = guard("content digest", work).await;
                if let Err(cause) = &result
                    && !token.is_cancelled()
                {
                    shell.progress.start();
                    shell.progress.complete(Some(cause.to_string()));
                }
                Ending::Hashed(result)
            }),
            Effect::Load { task, shell, id, opts } => self.start(task, |hands, token| async move {
                Ending::Loaded(hands.load(&shell, &id, &opts, token).await)
            }),
            Effect::Run { task, shell, inputs } => {
                self.start(
                    task,
                    |hands, token| async move { Ending::Ran(hands.run(&shell, inputs, token).await) },
                )
            }
            Effect::Cancel { task } => {
                if let Some(token) = self.running.get(&task) {
                    token.cancel();
                }
            }
            Effect::Store(stored) => self.hands.index.add(Stored { created: now(), ..stored }),
            Effect::Reply { reply, answer } => {
                // A caller that has just gone needs no answer.
                let _ = reply.send(answer);
            }
            Effect::Told { reply, given_up } => drop(reply.send(given_up)),
            Effect::Skipped(shell) => shell.progress.cached(),
            Effect::Joined { shell, ended } => match ended {
                None => shell.progress.start(),
                Some(Ok(())) => shell.progress.complete(None),
                Some(Err(error)) => shell.progress.complete(Some(error.cause.to_string())),
            },
        }
    }

    /// Starts a task that ends with an event.
    fn start<F, W>(&mut self, task: TaskNumber, work: F)
    where
        F: FnOnce(Hands<O>, CancellationToken) -> W,
        W: Future<Output = Ending<O::Output>> + Send + 'static,
    {
        let token = self.hands.tasks.token().child_token();
        self.running.insert(task, token.clone());
        let work = work(self.hands.clone(), token);
        let sender = self.hands.sender.clone();
        drop(self.hands.tasks.spawn("solver effect", async move {
            let ending = work.await;
            send(&sender, Event::Ended { task, ending });
        }));
    }

    fn look(&mut self, task: TaskNumber, query: Query) {
        if query.links.len() + query.keys.len() <= MANY_ROWS {
            return self.start(task, |hands, _| async move { Ending::Looked(hands.look(&query)) });
        }
        let hands = self.hands.clone();
        drop(self.hands.tasks.spawn_blocking("key lookup", move || {
            let ending = Ending::Looked(hands.look(&query));
            send(&hands.sender, Event::Ended { task, ending });
        }));
    }
}

fn send<R>(sender: &mpsc::WeakUnboundedSender<Event<R>>, event: Event<R>) {
    if let Some(sender) = sender.upgrade() {
        // Fails only when the loop has ended.
        let _ = sender.send(event);
    }
}

impl<O: Operate> Hands<O> {
    /// Only a root is reported while it is asked: for it that is work.
    async fn map(
        &self,
        shell: &Shell,
        index: usize,
        token: CancellationToken,
    ) -> Result<CacheMap<O::Output>, Cause> {
        let is_root = shell.vertex.inputs.is_empty();
        if is_root {
            shell.progress.start();
        }
        let ctx = context(shell, token);
        let work = async { Ok(Box::pin(self.operate.cache_map(&ctx, &shell.vertex, index)).await?) };
        let result = guard("cache map", work).await;
        if is_root {
            shell.progress.complete(result.as_ref().err().map(reported));
        }
        result
    }

    async fn load(
        &self,
        shell: &Shell,
        id: &ResultId,
        opts: &CacheOptGetter,
        token: CancellationToken,
    ) -> Result<Option<O::Output>, LoadError> {
        let ctx = context(shell, token);
        let work = async { Ok(Box::pin(self.operate.load(&ctx, id, opts)).await) };
        let result = guard("load", work).await.unwrap_or_else(|cause| {
            Err(LoadError::Failed(match cause {
                Cause::Op(error) => error,
                other => OpError::failed(other),
            }))
        });
        match &result {
            Ok(_) => shell.progress.cached(),
            Err(LoadError::Missing) => self.index.forget([id.clone()]),
            Err(error) => {
                tracing::debug!(vertex = %shell.vertex.digest, record = %id, %error, "record not loaded");
            }
        }
        result
    }

    async fn run(
        &self,
        shell: &Shell,
        inputs: Vec<Option<O::Output>>,
        token: CancellationToken,
    ) -> Result<RunOutputs<O::Output>, Cause> {
        shell.progress.start();
        let ctx = context(shell, token);
        let work = async { Ok(Box::pin(self.operate.run(&ctx, &shell.vertex, &inputs)).await?) };
        let result = guard("run", work).await;
        shell.progress.complete(result.as_ref().err().map(reported));
        let name = |output: Option<O::Output>| {
            let name = self.operate.result_id(&output);
            (output, name)
        };
        result.map(|outputs| outputs.into_iter().map(name).collect())
    }

    /// A lookup that fails finds nothing: that costs a run.
    fn look(&self, query: &Query) -> Answer {
        let looked = std::panic::catch_unwind(AssertUnwindSafe(|| self.index.look(query)));
        let mut answer = match looked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the key index could not be read");
                Answer::default()
            }
            Err(_) => Answer::default(),
        };
        let mut gone = Vec::new();
        // What is nearest is asked only where there is a choice: it takes a look at every layer.
        let choice = answer.records.len() > 1;
        answer.records.retain_mut(|record| {
            record.presence = match choice {
                true => self.operate.presence(&record.id),
                false if self.operate.has(&record.id) => Presence::Remote,
                false => Presence::Missing,
            };
            if record.presence == Presence::Missing {
                gone.push(record.id.clone());
            }
            record.presence > Presence::Missing
        });
        self.index.forget(gone);
        answer
    }
}

/// What a vertex is shown to have failed with.
fn reported(cause: &Cause) -> String {
    match cause {
        Cause::Op(error) if error.is_cancelled() => "context canceled".to_owned(),
        cause => cause.to_string(),
    }
}

fn context(shell: &Shell, token: CancellationToken) -> Ctx {
    Ctx::new(shell.sessions.clone(), token).with_progress(shell.progress.clone())
}

/// Turns a panic of `work` into an error.
async fn guard<T>(name: &'static str, work: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&'static str>().copied());
        let reason = text.unwrap_or("panic without a message").to_owned();
        Err(Cause::Panicked(TaskFailed { name, reason }))
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
