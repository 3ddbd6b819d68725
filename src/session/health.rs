//! When a session that is still connected counts as lost.
//!
//! A loaded client or a thin line answers late, so a check is patient and one failure is forgiven.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

/// Limits of the checks of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Policy {
    interval: Duration,
    /// A check may take at least this long.
    limit: Duration,
    /// Failures in a row that end the session.
    failures: u32,
}

impl Policy {
    const USUAL: Policy =
        Policy { interval: Duration::from_secs(5), limit: Duration::from_secs(15), failures: 2 };

    /// The least that a client can ask for.
    const LEAST: Duration = Duration::from_secs(1);

    /// `custom` is what the client asked for, if it did: it replaces both times, and one failure ends
    /// the session.
    pub(super) fn new(custom: Option<Duration>) -> Policy {
        match custom {
            Some(custom) => {
                let time = custom.max(Policy::LEAST);
                Policy { interval: time, limit: time, failures: 1 }
            }
            None => Policy::USUAL,
        }
    }
}

/// Checks until the session counts as lost; the answer says why. Each check may take half as long
/// again as the one before, if that is more than the policy's limit.
pub(super) async fn watch<E, C, F>(policy: Policy, mut check: C) -> String
where
    E: fmt::Display,
    C: FnMut() -> F,
    F: Future<Output = Result<(), E>>,
{
    let mut ticks = tokio::time::interval_at(Instant::now() + policy.interval, policy.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = 0;
    let mut last = Duration::ZERO;
    loop {
        ticks.tick().await;
        let limit = policy.limit.max(last * 3 / 2);
        let begun = Instant::now();
        let problem = match tokio::time::timeout(limit, check()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {limit:?}")),
        };
        last = begun.elapsed();
        match problem {
            None => failed = 0,
            Some(problem) => {
                failed += 1;
                if failed >= policy.failures {
                    return format!("{failed} health checks in a row failed: {problem}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// How one check goes: how long it takes, and whether it succeeds.
    type Step = (u64, bool);

    /// Runs a script of checks (the last one repeats) and gives when each began and when it was over,
    /// in seconds.
    async fn run(policy: Policy, script: &[Step]) -> (Vec<u64>, u64) {
        let begun = Instant::now();
        let starts = Mutex::new(Vec::new());
        watch(policy, || {
            let mut starts = starts.lock().unwrap();
            let (seconds, healthy) = script[starts.len().min(script.len() - 1)];
            starts.push(begun.elapsed().as_secs());
            async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                if healthy { Ok(()) } else { Err("unhealthy") }
            }
        })
        .await;
        (starts.into_inner().unwrap(), begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn two_failures_in_a_row_end_a_session() {
        assert_eq!(run(Policy::new(None), &[(0, false), (0, false)]).await, (vec![5, 10], 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_forgives_a_failure() {
        let script = [(0, false), (0, true), (0, false), (0, true), (0, false)];
        assert_eq!(run(Policy::new(None), &script).await, (vec![5, 10, 15, 20, 25, 30], 30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_lost_after_two_limits() {
        // The first check begins at 5 s and takes 15 s at most, the second 1.5 times as long.
        let (starts, end) = run(Policy::new(None), &[(3600, true)]).await;
        assert_eq!((starts, end), (vec![5, 20], 42));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_check_makes_the_next_one_more_patient() {
        // 14 s pass the limit of 15; then 21 s are allowed, so 20 s pass as well; then 30 s.
        let script = [(14, true), (20, true), (29, true), (0, false), (0, false)];
        let (starts, _) = run(Policy::new(None), &script).await;
        assert_eq!(starts.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_ask_for_its_own_times_but_not_below_a_second() {
        assert_eq!(run(Policy::new(Some(Duration::from_secs(3))), &[(60, true)]).await, (vec![3], 6));
        assert_eq!(run(Policy::new(Some(Duration::from_millis(1))), &[(60, true)]).await, (vec![1], 2));
    }
}
