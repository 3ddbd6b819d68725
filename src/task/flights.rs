//! [`Flights`]: one run of some work per key, whatever number of callers ask.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::TaskFailed;
use super::Tasks;

/// Work under way by key.
///
/// `S` is what the callers of one run share while it lasts (for a fetch: its candidates); `V` is the
/// result, given to every caller.
///
/// # Locking
///
/// One mutex over the map, held for look-ups and inserts only. `start` and `meet` are called under it,
/// so that a joiner's contribution can't miss the run it joins; they must not block.
pub struct Flights<K, S, V> {
    map: Arc<Mutex<Running<K, S, V>>>,
}

type Running<K, S, V> = HashMap<K, Arc<Flight<S, V>>>;

struct Flight<S, V> {
    shared: Arc<S>,
    token: CancellationToken,
    /// Callers that wait. Changed under the map's lock only.
    interest: Mutex<usize>,
    result: watch::Receiver<Option<Result<V, TaskFailed>>>,
}

impl<K, S, V> Clone for Flights<K, S, V> {
    fn clone(&self) -> Self {
        Flights { map: Arc::clone(&self.map) }
    }
}

impl<K, S, V> Default for Flights<K, S, V> {
    fn default() -> Self {
        Flights { map: Arc::default() }
    }
}

impl<K, S, V> fmt::Debug for Flights<K, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", lock(&self.map).len())
    }
}

impl<K, S, V> Flights<K, S, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    S: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new() -> Self {
        Self::default()
    }

    /// Keys with work under way.
    pub fn len(&self) -> usize {
        lock(&self.map).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the callers of a running flight share; `None` if nothing runs for `key`.
    pub fn shared(&self, key: &K) -> Option<Arc<S>> {
        let map = lock(&self.map);
        map.get(key).filter(|f| !f.token.is_cancelled()).map(|f| Arc::clone(&f.shared))
    }

    /// Joins the run for `key`, or starts one that `tasks` owns.
    ///
    /// `start` gets the token that is cancelled when the last caller has left (or `tasks` shuts down)
    /// and makes what is shared and the work. `meet` is called instead when there is a run to join.
    /// A run whose token is cancelled can't be joined: this waits until it has wound down and starts
    /// anew, so that two runs of one key never overlap.
    ///
    /// Cancellation safe: dropping the future gives up this caller's interest only.
    pub async fn join<Start, Work, Meet>(
        &self,
        tasks: &Tasks,
        key: K,
        start: Start,
        meet: Meet,
    ) -> Result<V, TaskFailed>
    where
        Start: FnOnce(CancellationToken) -> (Arc<S>, Work),
        Work: Future<Output = V> + Send + 'static,
        Meet: FnOnce(&S),
    {
        let (mut start, mut meet) = (Some(start), Some(meet));
        loop {
            match self.board(tasks, &key, &mut start, &mut meet) {
                Boarded::Joined(interest) => return interest.landed().await,
                Boarded::WindingDown(mut ended) => {
                    // An error means that the sender is gone, which is an end as well.
                    let _ = ended.wait_for(Option::is_some).await;
                }
            }
        }
    }

    fn board<Start, Work, Meet>(
        &self,
        tasks: &Tasks,
        key: &K,
        start: &mut Option<Start>,
        meet: &mut Option<Meet>,
    ) -> Boarded<K, S, V>
    where
        Start: FnOnce(CancellationToken) -> (Arc<S>, Work),
        Work: Future<Output = V> + Send + 'static,
        Meet: FnOnce(&S),
    {
        let mut map = lock(&self.map);
        if let Some(flight) = map.get(key) {
            if flight.token.is_cancelled() {
                return Boarded::WindingDown(flight.result.clone());
            }
            if let Some(meet) = meet.take() {
                meet(&flight.shared);
            }
            *lock(&flight.interest) += 1;
            return Boarded::Joined(self.interest(key, flight));
        }
        let token = tasks.token().child_token();
        let start = start.take().expect("a caller starts at most one run: then it has joined");
        let (shared, work) = start(token.clone());
        let (sender, result) = watch::channel(None);
        let flight = Arc::new(Flight { shared, token, interest: Mutex::new(1), result });
        map.insert(key.clone(), Arc::clone(&flight));
        let interest = self.interest(key, &flight);
        drop(map);
        // A task of its own, so that a panic of the work is a result and not a silence.
        let work = tasks.spawn("flight", work);
        let map = Arc::clone(&self.map);
        let key = key.clone();
        drop(tasks.spawn("flight landing", async move {
            let result = work.await;
            lock(&map).remove(&key);
            let _ = sender.send(Some(result));
        }));
        Boarded::Joined(interest)
    }

    fn interest(&self, key: &K, flight: &Arc<Flight<S, V>>) -> Interest<K, S, V> {
        Interest { map: Arc::clone(&self.map), key: key.clone(), flight: Arc::clone(flight) }
    }
}

enum Boarded<K, S, V>
where
    K: Eq + Hash,
{
    Joined(Interest<K, S, V>),
    WindingDown(watch::Receiver<Option<Result<V, TaskFailed>>>),
}

/// One caller's share in a flight.
struct Interest<K, S, V>
where
    K: Eq + Hash,
{
    map: Arc<Mutex<Running<K, S, V>>>,
    key: K,
    flight: Arc<Flight<S, V>>,
}

impl<K, S, V> Interest<K, S, V>
where
    K: Eq + Hash,
    V: Clone,
{
    async fn landed(self) -> Result<V, TaskFailed> {
        let mut result = self.flight.result.clone();
        match result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("the wait was for a result"),
            Err(_) => Err(TaskFailed { name: "flight", reason: "the runtime stopped".to_owned() }),
        }
    }
}

impl<K, S, V> Drop for Interest<K, S, V>
where
    K: Eq + Hash,
{
    fn drop(&mut self) {
        // Under the map's lock, so that nobody joins between the count and the cancellation.
        let map = lock(&self.map);
        let mut interest = lock(&self.flight.interest);
        *interest -= 1;
        if *interest == 0 && map.get(&self.key).is_some_and(|f| Arc::ptr_eq(f, &self.flight)) {
            self.flight.token.cancel();
        }
    }
}

/// A poisoned lock only says that some caller panicked; the maps here stay whole at every step.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn callers_of_one_key_share_one_run_and_its_result() {
        let (tasks, flights) = (Tasks::new(), Flights::<u8, Mutex<Vec<u8>>, usize>::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let release = Arc::new(Semaphore::new(0));
        let callers = (0..32u8).map(|caller| {
            let (runs, release) = (Arc::clone(&runs), Arc::clone(&release));
            flights.join(
                &tasks,
                7,
                move |_| {
                    let work = async move {
                        release.acquire().await.unwrap().forget();
                        runs.fetch_add(1, Ordering::SeqCst)
                    };
                    (Arc::new(Mutex::new(vec![caller])), work)
                },
                move |shared: &Mutex<Vec<u8>>| shared.lock().unwrap().push(caller),
            )
        });
        let all = join_all(callers);
        let watch = async {
            tokio::task::yield_now().await;
            assert_eq!(flights.shared(&7).unwrap().lock().unwrap().len(), 32);
            release.add_permits(1);
        };
        let (results, ()) = tokio::join!(all, watch);
        assert!(results.iter().all(|r| *r == Ok(0)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn the_work_ends_with_the_last_interest_and_the_next_caller_starts_after_it() {
        let (tasks, flights) = (Tasks::new(), Flights::<u8, (), &str>::new());
        let wound_down = Arc::new(Semaphore::new(0));
        let stuck = |token: CancellationToken| {
            let wound_down = Arc::clone(&wound_down);
            (Arc::new(()), async move {
                token.cancelled().await;
                wound_down.acquire().await.unwrap().forget();
                "cancelled"
            })
        };
        let mut first = Box::pin(flights.join(&tasks, 1, stuck, |_| ()));
        let mut second = Box::pin(flights.join(&tasks, 1, stuck, |_| ()));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(flights.shared(&1).is_some(), "one interest is left");
        drop(second);
        assert!(flights.shared(&1).is_none(), "nobody is left");
        let mut third = Box::pin(flights.join(&tasks, 1, |_| (Arc::new(()), async { "anew" }), |_| ()));
        assert!(futures::poll!(&mut third).is_pending(), "the old run has not wound down");
        wound_down.add_permits(1);
        assert_eq!(third.await, Ok("anew"));
    }

    #[tokio::test]
    async fn a_panic_reaches_every_caller_and_the_next_one_starts_anew() {
        let (tasks, flights) = (Tasks::new(), Flights::<u8, (), u8>::new());
        let bad = |_| (Arc::new(()), async { panic!("boom") });
        let (a, b) = tokio::join!(flights.join(&tasks, 1, bad, |_| ()), flights.join(&tasks, 1, bad, |_| ()));
        assert_eq!(a.unwrap_err().reason, "boom");
        assert_eq!(b.unwrap_err().reason, "boom");
        assert_eq!(flights.join(&tasks, 1, |_| (Arc::new(()), async { 5 }), |_| ()).await, Ok(5));
    }
}
