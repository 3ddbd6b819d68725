//! [`Backoff`]: pauses between tries of something that fails for a reason which goes away by itself.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(20);

/// Pauses that double up to a limit.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn new() -> Backoff {
        Backoff { next: FIRST }
    }

    /// Waits longer than the last time, up to 20 seconds.
    ///
    /// Cancellation safe.
    pub async fn pause(&mut self) {
        let pause = self.next;
        self.next = (pause * 2).min(LAST);
        tokio::time::sleep(pause).await;
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_limit() {
        let mut backoff = Backoff::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let begun = Instant::now();
            backoff.pause().await;
            pauses.push(begun.elapsed());
        }
        assert_eq!(pauses[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(pauses[10..], [LAST, LAST]);
    }
}
