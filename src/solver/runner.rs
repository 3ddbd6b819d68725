//! [`Runner`]: the loop around the [`Scheduler`], and the tasks that its effects are.
//!
//! What has come is applied together, and what that asks of the key index is one lookup: a graph of a
//! thousand vertices that is known takes a few turns of the loop and a few tasks. A cache map that follows from
//! a vertex alone takes no task; it is there in the next turn.
//!
//! # Cancellation
//!
//! Each effect with a task number has a token of its own, below the one of the solver. It ends with
//! its event whether it was cancelled or not, and if it panicked as well: the scheduler never waits for
//! something that does not come.

use std::any::Any;
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
use crate::db::DbError;
use crate::oci::QuickMap;
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
/// Rows that one task looks up, about: others wait for its end.
const ROWS_AT_ONCE: usize = 4096;
/// Events that are applied together, about: others wait for what they ask for.
const EVENTS_AT_ONCE: usize = 4096;

/// Events that came together, in their order.
pub type Events<R> = Vec<Event<R>>;

/// Runs the effects of a scheduler.
pub struct Runner<O: Operate> {
    scheduler: Scheduler<O::Output>,
    events: mpsc::UnboundedReceiver<Events<O::Output>>,
    running: QuickMap<TaskNumber, CancellationToken>,
    /// Ends of tasks that took no time.
    known: Events<O::Output>,
    /// What the effects of this turn ask of the index.
    looks: Vec<(TaskNumber, Query)>,
    hands: Hands<O>,
}

/// What an effect works with.
struct Hands<O: Operate> {
    operate: Arc<O>,
    index: KeyIndex,
    tasks: Tasks,
    /// Weak, so that the loop ends with the last handle of the solver.
    sender: mpsc::WeakUnboundedSender<Events<O::Output>>,
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
        events: mpsc::UnboundedReceiver<Events<O::Output>>,
        sender: mpsc::WeakUnboundedSender<Events<O::Output>>,
        operate: Arc<O>,
        index: KeyIndex,
        tasks: Tasks,
    ) -> Runner<O> {
        let hands = Hands { operate, index, tasks, sender };
        let (running, known, looks) = (QuickMap::default(), Vec::new(), Vec::new());
        Runner { scheduler, events, running, known, looks, hands }
    }

    /// The loop: ends with the solver's last handle, or its token.
    pub async fn run(mut self) {
        let token = self.hands.tasks.token().clone();
        while let Some(events) = token.run_until_cancelled(self.select()).await.flatten() {
            for effect in self.scheduler.apply(events) {
                self.perform(effect);
            }
            self.start_lookups();
        }
        // Those who wait learn from the channels that go with `self`; tasks end by the token.
        for token in self.running.values() {
            token.cancel();
        }
    }

    /// What has come since the last turn; waits while there is nothing.
    async fn select(&mut self) -> Option<Events<O::Output>> {
        // A turn that needs no wait is to be no reason for others to wait.
        tokio::task::consume_budget().await;
        let mut events = std::mem::take(&mut self.known);
        if events.is_empty() {
            events = self.events.recv().await?;
        }
        while events.len() < EVENTS_AT_ONCE
            && let Ok(more) = self.events.try_recv()
        {
            events.extend(more);
        }
        for event in &events {
            if let Event::Ended { task, .. } = event {
                self.running.remove(task);
            }
        }
        Some(events)
    }

    fn perform(&mut self, effect: Effect<O::Output>) {
        match effect {
            Effect::Map { task, shell, index } => match self.hands.own_map(&shell) {
                Some(map) => self.known.push(Event::Ended { task, ending: Ending::Mapped(map) }),
                None => self.start(task, |hands, token| async move {
                    Ending::Mapped(hands.map(&shell, index, token).await)
                }),
            },
            Effect::Look { task, query } => self.looks.push((task, query)),
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
            send(&sender, vec![Event::Ended { task, ending }]);
        }));
    }

    /// Starts the lookups of this turn.
    fn start_lookups(&mut self) {
        let mut looks = std::mem::take(&mut self.looks).into_iter().peekable();
        while looks.peek().is_some() {
            let mut rows = 0;
            let batch: Vec<_> = std::iter::from_fn(|| {
                let next = looks.next_if(|_| rows < ROWS_AT_ONCE)?;
                rows += next.1.rows();
                Some(next)
            })
            .collect();
            let (hands, sender) = (self.hands.clone(), self.hands.sender.clone());
            let look = move || send(&sender, hands.look(batch));
            match rows {
                ..=MANY_ROWS => drop(self.hands.tasks.spawn("key lookup", async move { look() })),
                _ => drop(self.hands.tasks.spawn_blocking("key lookup", look)),
            }
        }
    }
}

fn send<R>(sender: &mpsc::WeakUnboundedSender<Events<R>>, events: Events<R>) {
    if let Some(sender) = sender.upgrade() {
        // Fails only when the loop has ended.
        let _ = sender.send(events);
    }
}

impl<O: Operate> Hands<O> {
    /// The cache map of a vertex that needs nothing else for it. A root is reported, as by [`Hands::map`].
    fn own_map(&self, shell: &Shell) -> Option<Result<CacheMap<O::Output>, Cause>> {
        let computed = AssertUnwindSafe(|| self.operate.own_cache_map(&shell.vertex));
        let result = match std::panic::catch_unwind(computed) {
            Ok(map) => Ok(map?),
            Err(panic) => Err(panicked("cache map", &*panic)),
        };
        if shell.vertex.inputs.is_empty() {
            shell.progress.done(result.as_ref().err().map(reported));
        }
        Some(result)
    }

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

    /// Looks up each of `asked`, and gives the ends of the lookups. One that fails finds nothing: that costs a run.
    fn look(&self, asked: Vec<(TaskNumber, Query)>) -> Events<O::Output> {
        let queries = || asked.iter().map(|(_, query)| query);
        let looked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut answers = self.index.look(queries())?;
            self.see(&mut answers);
            Ok::<_, DbError>(answers)
        }));
        let answers = match looked {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the key index could not be read");
                queries().map(Answer::nothing).collect()
            }
            Err(_) => queries().map(Answer::nothing).collect(),
        };
        let ended = |((task, _), answer): ((TaskNumber, Query), Answer)| Event::Ended {
            task,
            ending: Ending::Looked(answer),
        };
        asked.into_iter().zip(answers).map(ended).collect()
    }

    /// Finds out which of the records are there, and forgets the others.
    fn see(&self, answers: &mut [Answer]) {
        // What is nearest is asked only where there is a choice: it takes a look at every layer.
        let is_choice = |answer: &Answer| answer.records.len() > 1;
        let single = || answers.iter().filter(|answer| !is_choice(answer)).flat_map(|a| &a.records);
        let ids: Vec<&ResultId> = single().map(|record| &record.id).collect();
        let mut have = self.operate.have(&ids).into_iter();
        let mut gone = Vec::new();
        for answer in answers {
            let is_choice = is_choice(answer);
            answer.records.retain_mut(|record| {
                record.presence = match is_choice {
                    true => self.operate.presence(&record.id),
                    false if have.next() == Some(true) => Presence::Remote,
                    false => Presence::Missing,
                };
                if record.presence == Presence::Missing {
                    gone.push(record.id.clone());
                }
                record.presence > Presence::Missing
            });
        }
        self.index.forget(gone);
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
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(name, &*panic)))
}

fn panicked(name: &'static str, panic: &(dyn Any + Send)) -> Cause {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&'static str>().copied());
    let reason = text.unwrap_or("panic without a message").to_owned();
    Cause::Panicked(TaskFailed { name, reason })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
