//! What the daemon asked a client for: counted, held and refused.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use tokio::sync::watch;
use tonic::Code;
use tonic::Status;

use crate::harness::gate::Gate;
use crate::harness::gate::PATIENCE;

/// A method that a client serves in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Callback {
    Credentials,
    FetchToken,
    GetTokenAuthority,
    VerifyTokenAuthority,
    ContentInfo,
    ContentRead,
    ContentWrite,
    FileSend,
    Health,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub callback: Callback,
    /// The host, digest, reference or exporter that it was about.
    pub about: String,
}

struct Rule {
    callback: Callback,
    gate: Option<Arc<Gate>>,
    refuse: Option<(Code, usize)>,
}

/// All calls of one session, and what is to happen to them.
#[derive(Default)]
pub(super) struct Calls {
    calls: Mutex<Vec<Call>>,
    rules: Mutex<Vec<Rule>>,
    changed: watch::Sender<()>,
}

impl Calls {
    /// Every callback begins with this.
    pub async fn enter(&self, callback: Callback, about: impl Into<String>) -> Result<(), Status> {
        self.lock().push(Call { callback, about: about.into() });
        self.changed.send_replace(());
        let gates: Vec<_> = {
            let rules = self.rules.lock().expect("rules");
            rules
                .iter()
                .filter(|rule| rule.callback == callback)
                .filter_map(|rule| rule.gate.clone())
                .collect()
        };
        for gate in gates {
            gate.pass().await;
        }
        for rule in self.rules.lock().expect("rules").iter_mut() {
            if let (true, Some((code, left @ 1..))) = (rule.callback == callback, &mut rule.refuse) {
                *left -= 1;
                return Err(Status::new(*code, "the test's client refuses"));
            }
        }
        Ok(())
    }

    pub fn all(&self) -> Vec<Call> {
        self.lock().clone()
    }

    pub fn hold(&self, callback: Callback) -> CallbackHold {
        let gate = Arc::new(Gate::closed());
        self.rules.lock().expect("rules").push(Rule { callback, gate: Some(gate.clone()), refuse: None });
        CallbackHold { gate }
    }

    pub fn refuse(&self, callback: Callback, code: Code, times: usize) {
        let refuse = Some((code, times));
        self.rules.lock().expect("rules").push(Rule { callback, gate: None, refuse });
    }

    /// Waits until so many calls have come; panics with those that did after [`PATIENCE`].
    pub async fn until(&self, callback: Callback, count: usize) {
        let mut changed = self.changed.subscribe();
        let enough = |calls: &[Call]| calls.iter().filter(|call| call.callback == callback).count() >= count;
        let all = async {
            while !enough(&self.lock()) {
                changed.changed().await.expect("the sender lives as long as the calls");
            }
        };
        let timely = tokio::time::timeout(PATIENCE, all).await;
        assert!(timely.is_ok(), "{count} calls of {callback:?} never came: {:?}", self.all());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("calls")
    }
}

/// Callbacks that wait; dropping it lets them go, those to come as well.
#[must_use]
pub struct CallbackHold {
    gate: Arc<Gate>,
}

impl CallbackHold {
    pub async fn reached(&self) {
        self.gate.reached_by(1).await;
    }

    pub async fn reached_by(&self, calls: usize) {
        self.gate.reached_by(calls).await;
    }

    pub fn release(self) {}
}

impl Drop for CallbackHold {
    fn drop(&mut self) {
        self.gate.open();
    }
}
