//! Where something waits until a test lets it go.

use std::time::Duration;

use tokio::sync::watch;

/// How long a wait for something that a test expects may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A gate that counts who comes to it. Once open it stays open.
pub struct Gate {
    arrived: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    pub fn closed() -> Self {
        Self { arrived: watch::Sender::new(0), open: watch::Sender::new(false) }
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        self.arrived.send_modify(|arrived| *arrived += 1);
        let mut open = self.open.subscribe();
        // The sender lives as long as `self`, so this ends only by opening.
        let _ = open.wait_for(|&open| open).await;
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// How many have come, gone on since or not.
    pub fn arrived(&self) -> usize {
        *self.arrived.borrow()
    }

    /// Waits until so many have come; panics after [`PATIENCE`].
    pub async fn reached_by(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let all = arrived.wait_for(|&arrived| arrived >= count);
        let timely = tokio::time::timeout(PATIENCE, all).await;
        assert!(timely.is_ok(), "{} of {count} reached the gate", self.arrived());
    }
}
