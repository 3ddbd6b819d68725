//! [`Route`]: which endpoint is asked next, and when.
//!
//! ```text
//!   mirror 1 ──► mirror 2 ──► host ──► pause ──► mirror 1 ──► …
//!      └────────────┴───────────┴── each on a transient failure; a final answer takes a mirror off
//!                                   the route, and the host's own ends it
//! ```
//!
//! A name that stands for no address is final. So is, after one quick try more, a round in which nobody but strangers
//! was asked and each of them refused the connection: that is what a typo gives, and a registry that restarts has
//! answered before.

use std::sync::Arc;
use std::time::Duration;

use super::Place;
use super::RegistryError;
use super::RetryPolicy;
use super::endpoint::Endpoint;
use super::transport::Breach;
use super::transport::Broken;
use crate::ctx::Ctx;

/// Bytes that count as progress: what delivers them may fail again and be tried again.
const PROGRESS: u64 = 1 << 20;

/// The pause before strangers are tried once more.
const QUICK: Duration = Duration::from_millis(250);

/// One operation's way over the endpoints of a host.
#[derive(Debug)]
pub(super) struct Route {
    policy: RetryPolicy,
    /// Those still worth asking, in order.
    endpoints: Vec<Arc<Endpoint>>,
    /// The next one's place in `endpoints`; its length if the round is over.
    next: usize,
    /// Rounds that ended without progress.
    rounds: u32,
    /// The longest `Retry-After` of this round.
    retry_after: Option<Duration>,
    /// All that failed in this round was the connection to somebody unknown.
    strangers: bool,
    /// What to fail with, and whether the host itself said it: its word counts more than a mirror's.
    error: Option<(bool, RegistryError)>,
    /// Bytes since the last failure.
    progress: u64,
    /// Whether mirrors that failed for the moment are asked again when the host has given up.
    outlives_host: bool,
}

impl Route {
    pub fn new(policy: RetryPolicy, endpoints: Vec<Arc<Endpoint>>) -> Route {
        Route {
            policy,
            endpoints,
            next: 0,
            rounds: 0,
            retry_after: None,
            strangers: true,
            error: None,
            progress: 0,
            outlives_host: false,
        }
    }

    /// A final answer of the host does not end this route while a mirror may still deliver: for content
    /// that is known to exist.
    pub fn outliving_the_host(mut self) -> Route {
        self.outlives_host = true;
        self
    }

    /// The endpoint to ask now; waits before a new round. Fails when there is no other try.
    ///
    /// Cancellation safe.
    pub async fn next(&mut self, ctx: &Ctx, place: &Arc<Place>) -> Result<Arc<Endpoint>, RegistryError> {
        let cancelled = |_| RegistryError::Cancelled { place: Arc::clone(place) };
        ctx.check().map_err(cancelled)?;
        if self.next >= self.endpoints.len() {
            let pause = self.pause(place)?;
            ctx.run(tokio::time::sleep(pause)).await.map_err(cancelled)?;
            self.rounds += 1;
            self.next = 0;
            self.retry_after = None;
            self.strangers = true;
        }
        Ok(Arc::clone(&self.endpoints[self.next]))
    }

    /// True once anything failed on this route.
    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// The endpoint that [`Route::next`] gave failed with `error`. Gives the error back if it is final.
    pub fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Cancelled { .. }) {
            return Err(error);
        }
        if self.progress >= PROGRESS {
            self.rounds = 0;
        }
        self.progress = 0;
        let is_host = !self.endpoints[self.next].is_mirror();
        let kind = Broken::kind_of(&error);
        if error.is_transient() && kind != Breach::NoSuchName {
            self.strangers &= kind == Breach::Refused && !self.endpoints[self.next].is_known();
            self.retry_after = self.retry_after.max(error.retry_after());
            self.next += 1;
        } else {
            if is_host && !self.outlives_host {
                return Err(error);
            }
            self.endpoints.remove(self.next);
        }
        if is_host || self.error.as_ref().is_none_or(|(by_host, _)| !by_host) {
            self.error = Some((is_host, error));
        }
        if self.endpoints.is_empty() { Err(self.take_error()) } else { Ok(()) }
    }

    /// `bytes` arrived from the endpoint that [`Route::next`] gave.
    pub fn progressed(&mut self, bytes: u64) {
        self.progress = self.progress.saturating_add(bytes);
    }

    fn take_error(&mut self) -> RegistryError {
        let (_, error) = self.error.take().expect("a route ends with an error that it was told");
        error
    }

    /// How long to wait for the next round, or the error that ends it.
    fn pause(&mut self, place: &Arc<Place>) -> Result<Duration, RegistryError> {
        if self.error.is_none() {
            let problem = "the host has no endpoint".to_owned();
            return Err(RegistryError::Protocol { place: Arc::clone(place), problem });
        }
        let asked = self.retry_after.unwrap_or_default();
        let retries = if self.strangers { self.policy.retries.min(1) } else { self.policy.retries };
        if self.rounds >= retries || asked > self.policy.longest_wait {
            return Err(self.take_error());
        }
        if self.strangers {
            return Ok(self.policy.base.min(QUICK));
        }
        Ok(self.policy.base.saturating_mul(1 << self.rounds.min(16)).max(asked))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::Reason;
    use super::*;

    fn place() -> Arc<Place> {
        Arc::new(Place {
            host: "r".into(),
            repository: "a".into(),
            subject: String::new(),
            mirror: String::new(),
        })
    }

    fn route(mirrors: &[&str]) -> Route {
        let mirrors = mirrors.iter().map(|m| Endpoint::for_test(m, true));
        Route::new(RetryPolicy::default(), mirrors.chain([Endpoint::for_test("host", false)]).collect())
    }

    fn busy(retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Server { place: place(), status: 503, retry_after, reason: Reason::default() }
    }

    fn gone() -> RegistryError {
        RegistryError::NotFound { place: place(), reason: Reason::default() }
    }

    /// Runs the route with `answer` at every stop; what was asked, after how many seconds.
    async fn run(
        mut route: Route,
        mut answer: impl FnMut(&str, usize) -> RegistryError,
    ) -> (Vec<(String, u64)>, RegistryError) {
        let (ctx, place, start) = (Ctx::background(), place(), Instant::now());
        let mut asked = Vec::new();
        loop {
            let endpoint = match route.next(&ctx, &place).await {
                Ok(endpoint) => endpoint,
                Err(error) => return (asked, error),
            };
            asked.push((endpoint.authority().to_owned(), start.elapsed().as_secs()));
            if let Err(error) = route.failed(answer(endpoint.authority(), asked.len())) {
                return (asked, error);
            }
        }
    }

    fn list(asked: &[(String, u64)]) -> Vec<(&str, u64)> {
        asked.iter().map(|(name, at)| (name.as_str(), *at)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_tried_again_after_1_2_and_4_seconds() {
        let (asked, error) = run(route(&[]), |_, _| busy(None)).await;
        assert_eq!(list(&asked), [("host", 0), ("host", 1), ("host", 3), ("host", 7)]);
        assert!(matches!(error, RegistryError::Server { .. }));
    }

    fn unreachable(kind: Breach) -> RegistryError {
        let cause = Arc::new(Broken::for_test(kind));
        RegistryError::Unreachable { place: place(), address: "r".into(), cause }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_does_not_exist_is_final_and_a_stranger_that_refuses_is_asked_once_more() {
        let tries = async |route: Route, kind| run(route, |_, _| unreachable(kind)).await.0.len();
        assert_eq!(tries(route(&[]), Breach::NoSuchName).await, 1);
        assert_eq!(
            tries(route(&["m1", "m2"]), Breach::NoSuchName).await,
            3,
            "a mirror's name is not the host's"
        );
        let begun = Instant::now();
        assert_eq!(tries(route(&[]), Breach::Refused).await, 2);
        assert!(begun.elapsed() <= QUICK);
        assert_eq!(tries(route(&["m"]), Breach::Refused).await, 4);
        assert_eq!(tries(route(&[]), Breach::Other).await, 4);
        let known = route(&[]);
        known.endpoints[0].answered();
        assert_eq!(tries(known, Breach::Refused).await, 4, "it was there");
        let one_busy = |name: &str, _| if name == "m" { busy(None) } else { unreachable(Breach::Refused) };
        assert_eq!(run(route(&["m"]), one_busy).await.0.len(), 8, "somebody is there");
    }

    #[tokio::test(start_paused = true)]
    async fn mirrors_are_asked_first_and_without_a_pause_in_between() {
        let (asked, _) = run(route(&["m1", "m2"]), |_, _| busy(None)).await;
        assert_eq!(list(&asked)[..4], [("m1", 0), ("m2", 0), ("host", 0), ("m1", 1)],);
        assert_eq!(asked.len(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_answer_of_a_mirror_goes_on_and_one_of_the_host_ends() {
        let (asked, error) =
            run(route(&["m1", "m2"]), |name, _| if name == "m2" { busy(None) } else { gone() }).await;
        assert_eq!(list(&asked), [("m1", 0), ("m2", 0), ("host", 0)]);
        assert!(matches!(error, RegistryError::NotFound { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn content_gone_from_its_host_is_asked_again_of_a_mirror_that_was_busy() {
        let answer = |name: &str, _| if name == "host" { gone() } else { busy(None) };
        let (asked, error) = run(route(&["m"]).outliving_the_host(), answer).await;
        assert_eq!(list(&asked), [("m", 0), ("host", 0), ("m", 1), ("m", 3), ("m", 7)]);
        assert!(matches!(error, RegistryError::NotFound { .. }), "the host's word counts");
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_obeyed_up_to_the_cap() {
        let (asked, _) = run(route(&[]), |_, nth| busy((nth == 1).then_some(20))).await;
        assert_eq!(list(&asked)[..3], [("host", 0), ("host", 20), ("host", 22)]);
        let (asked, error) = run(route(&[]), |_, _| busy(Some(31))).await;
        assert_eq!(asked.len(), 1);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(31)));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_starts_the_count_anew_and_a_trickle_does_not() {
        for (bytes, tries) in [(PROGRESS, 23), (PROGRESS - 1, 4)] {
            let (ctx, place) = (Ctx::background(), place());
            let mut route = route(&[]);
            let mut asked = 0;
            while asked < 20 && route.next(&ctx, &place).await.is_ok() {
                asked += 1;
                route.progressed(bytes);
                route.failed(busy(None)).unwrap();
            }
            while route.next(&ctx, &place).await.is_ok() {
                asked += 1;
                route.failed(busy(None)).unwrap();
            }
            assert_eq!(asked, tries);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_with_its_request() {
        let ctx = Ctx::background().child();
        let place = place();
        let mut route = route(&[]);
        route.next(&ctx, &place).await.unwrap();
        route.failed(busy(None)).unwrap();
        let mut wait = Box::pin(route.next(&ctx, &place));
        assert!(futures::poll!(&mut wait).is_pending());
        ctx.cancel().cancel();
        assert!(matches!(wait.await, Err(RegistryError::Cancelled { .. })));
    }
}
