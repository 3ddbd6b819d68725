//! Faults and pauses, injected at chosen requests.

use std::sync::Arc;
use std::sync::Mutex;

use super::journal::Request;
use super::point::Point;
use crate::harness::gate::Gate;

/// What goes wrong with a request. Offsets are bytes of the body: the request's for uploads and
/// manifest PUTs, the reply's for everything else.
#[derive(Clone, Debug, PartialEq)]
pub enum How {
    /// The reply is this status with an error document; for 401 with a challenge. It comes after the
    /// request's body.
    Status(u16),
    /// The same without reading the request's body first, and the connection may close under it.
    EarlyStatus(u16),
    /// `Status` with a `Retry-After` of so many seconds.
    RetryAfter { status: u16, seconds: u64 },
    /// A TCP reset (an HTTP/2 stream error) instead of a reply.
    Reset,
    /// A TCP reset after that many bytes of body.
    ResetAfter(u64),
    /// No reply, until the client goes away or the fault is lifted.
    Stall,
    /// That many bytes of body, then silence.
    StallAfter(u64),
    /// An orderly end of the connection after that many bytes of the reply's body, though
    /// `Content-Length` promised more.
    Truncate(u64),
    /// The byte of the *blob* (or manifest) at this offset has one bit flipped, if the reply holds it.
    FlipByte(u64),
    /// 200 with the whole blob, whatever range was asked for.
    IgnoreRange,
    /// 206 with the right bytes under a `Content-Range` that is one byte off.
    WrongContentRange,
    /// A `Content-Length` that is wrong by so much; with more the connection ends early, with less
    /// the body is cut.
    WrongLength(i64),
    /// A well-formed `Docker-Content-Digest` of something else.
    WrongDigest,
    /// 307 to the same resource, for ever.
    RedirectLoop,
    /// 307 to anywhere.
    RedirectTo(String),
    /// The body at this speed.
    BytesPerSecond(u64),
    /// The request is carried out, and the connection reset instead of a reply.
    LoseReply,
    /// 200 with this body, whatever was asked for.
    Garbage(&'static [u8]),
}

/// A fault that was planted; it stays when this is dropped.
#[derive(Clone)]
pub struct Fault {
    rules: Arc<Rules>,
    number: usize,
}

impl Fault {
    /// How many requests it has hit.
    pub fn fired(&self) -> usize {
        self.rules.with(self.number, |rule| rule.fired)
    }

    /// Ends it; requests that stall because of it go on.
    pub fn lift(&self) {
        self.rules.lift(self.number);
    }
}

/// A pause that was planted; dropping it releases it.
#[must_use]
pub struct Hold {
    rules: Arc<Rules>,
    number: usize,
    gate: Arc<Gate>,
}

impl Hold {
    /// Waits until a request has come to this point and waits there.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until so many requests have come to this point, gone on since or not.
    pub async fn reached_by(&self, requests: usize) {
        self.gate.reached_by(requests).await;
    }

    /// How many requests have come to this point, gone on since or not.
    pub fn arrived(&self) -> usize {
        self.gate.arrived()
    }

    /// Lets all requests go on, those to come as well.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.rules.lift(self.number);
    }
}

/// What is to happen to one request.
#[derive(Clone, Default)]
pub(super) struct Plan {
    pub fault: Option<How>,
    /// Opened when the fault is lifted.
    pub lifted: Option<Arc<Gate>>,
    /// Pauses, by bytes of body that go before them; `None` is on arrival.
    pub holds: Vec<(Option<u64>, Arc<Gate>)>,
}

struct Rule {
    point: Point,
    action: Action,
    gate: Arc<Gate>,
    seen: usize,
    fired: usize,
    lifted: bool,
}

enum Action {
    Fail(How),
    Hold { after: Option<u64> },
}

/// All faults and holds of one registry, oldest first. At one request every hold applies, and the
/// first fault.
#[derive(Default)]
pub(super) struct Rules {
    rules: Mutex<Vec<Rule>>,
}

impl Rules {
    pub fn fail(self: &Arc<Self>, point: Point, how: How) -> Fault {
        let (number, _) = self.add(point, Action::Fail(how));
        Fault { rules: self.clone(), number }
    }

    pub fn hold(self: &Arc<Self>, point: Point, after: Option<u64>) -> Hold {
        let (number, gate) = self.add(point, Action::Hold { after });
        Hold { rules: self.clone(), number, gate }
    }

    pub fn plan(&self, request: &Request) -> Plan {
        let mut plan = Plan::default();
        for rule in self.rules.lock().expect("rules").iter_mut() {
            if rule.lifted || !rule.point.matches(request) {
                continue;
            }
            if matches!(rule.action, Action::Fail(_)) && plan.fault.is_some() {
                continue;
            }
            rule.seen += 1;
            if !rule.point.selects(rule.seen) {
                continue;
            }
            rule.fired += 1;
            match &rule.action {
                Action::Fail(how) => {
                    plan.fault = Some(how.clone());
                    plan.lifted = Some(rule.gate.clone());
                }
                Action::Hold { after } => plan.holds.push((*after, rule.gate.clone())),
            }
        }
        plan
    }

    /// Lifts all faults and releases all holds.
    pub fn clear(&self) {
        for rule in self.rules.lock().expect("rules").iter_mut() {
            rule.lift();
        }
    }

    fn add(&self, point: Point, action: Action) -> (usize, Arc<Gate>) {
        let gate = Arc::new(Gate::closed());
        let mut rules = self.rules.lock().expect("rules");
        rules.push(Rule { point, action, gate: gate.clone(), seen: 0, fired: 0, lifted: false });
        (rules.len() - 1, gate)
    }

    fn lift(&self, number: usize) {
        self.with(number, Rule::lift);
    }

    fn with<T>(&self, number: usize, look: impl FnOnce(&mut Rule) -> T) -> T {
        look(&mut self.rules.lock().expect("rules")[number])
    }
}

impl Rule {
    fn lift(&mut self) {
        self.lifted = true;
        self.gate.open();
    }
}
