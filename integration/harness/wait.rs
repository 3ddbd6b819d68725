//! Waiting for what gives no event: another process.

use std::time::Duration;
use std::time::Instant;

const STEP: Duration = Duration::from_millis(2);

/// Asks `done` until it says yes; whether it did within `limit`.
#[expect(clippy::disallowed_methods, reason = "it waits on the test's own thread for another process")]
pub fn poll(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}
