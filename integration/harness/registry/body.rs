//! Bodies in both directions: counted, and broken where a fault says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::Version;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::connection::Connection;
use super::fault::How;
use super::fault::Plan;
use super::journal::Entry;
use super::reply::Reply;
use crate::harness::gate::Gate;

/// The connection (or HTTP/2 stream) ends here, on purpose or because the client left.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends here")]
pub(super) struct Aborted;

/// Something that happens when so many bytes of a body have passed.
struct Event {
    at: u64,
    what: What,
}

enum What {
    Wait(Arc<Gate>),
    Reset,
    /// An orderly end of the connection.
    End,
}

/// Events in order, and the speed.
struct Script {
    events: std::vec::IntoIter<Event>,
    next: Option<Event>,
    bytes_per_second: Option<u64>,
    connection: Arc<Connection>,
    version: Version,
}

impl Script {
    fn new(plan: &Plan, connection: Arc<Connection>, version: Version) -> Self {
        Self::until(None, plan, connection, version)
    }

    /// A script whose connection ends after `end` bytes.
    fn until(end: Option<u64>, plan: &Plan, connection: Arc<Connection>, version: Version) -> Self {
        let mut events: Vec<_> = end.map(|at| Event { at, what: What::End }).into_iter().collect();
        for (after, gate) in &plan.holds {
            if let Some(at) = *after {
                events.push(Event { at, what: What::Wait(gate.clone()) });
            }
        }
        match (&plan.fault, &plan.lifted) {
            (Some(How::ResetAfter(at)), _) => events.push(Event { at: *at, what: What::Reset }),
            (Some(How::Truncate(at)), _) => events.push(Event { at: *at, what: What::End }),
            (Some(How::StallAfter(at)), Some(gate)) => {
                events.push(Event { at: *at, what: What::Wait(gate.clone()) })
            }
            _ => {}
        }
        let bytes_per_second = match plan.fault {
            Some(How::BytesPerSecond(speed)) => Some(speed.max(1)),
            _ => None,
        };
        events.sort_by_key(|event| event.at);
        let mut events = events.into_iter();
        Self { next: events.next(), events, bytes_per_second, connection, version }
    }

    /// Plays what is due after `passed` bytes, and says how many more may pass until the next call.
    async fn play(&mut self, passed: u64) -> Result<usize, Aborted> {
        while let Some(event) = self.next.take_if(|event| event.at <= passed) {
            match event.what {
                What::Wait(gate) => gate.pass().await,
                What::Reset => {
                    self.connection.flushed().await;
                    self.connection.reset_on_close(self.version);
                    return Err(Aborted);
                }
                What::End => {
                    self.connection.flushed().await;
                    return Err(Aborted);
                }
            }
            self.next = self.events.next();
        }
        let until_next = self.next.as_ref().map_or(u64::MAX, |event| event.at - passed);
        let until_pause = self.bytes_per_second.map_or(u64::MAX, |speed| (speed / 50).max(1));
        Ok(usize::try_from(until_next.min(until_pause)).unwrap_or(usize::MAX))
    }

    async fn pace(&self, passed: usize) {
        if let Some(speed) = self.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(passed as f64 / speed as f64)).await;
        }
    }
}

/// A request's body.
pub(super) struct RequestBody {
    incoming: Incoming,
    entry: Arc<Entry>,
    script: Script,
    passed: u64,
    rest: Bytes,
}

impl RequestBody {
    pub fn new(
        incoming: Incoming,
        entry: Arc<Entry>,
        plan: &Plan,
        connection: Arc<Connection>,
        version: Version,
    ) -> Self {
        let script = Script::new(plan, connection, version);
        Self { incoming, entry, script, passed: 0, rest: Bytes::new() }
    }

    /// The next piece; `None` at the end of a body that came whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Aborted> {
        let limit = self.script.play(self.passed).await?;
        while self.rest.is_empty() {
            match self.incoming.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(Aborted),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let piece = self.rest.split_to(limit.min(self.rest.len()));
        self.passed += piece.len() as u64;
        self.entry.update(|request| request.bytes_in += piece.len() as u64);
        self.script.pace(piece.len()).await;
        Ok(Some(piece))
    }

    /// The whole body; `None` if it is longer than `limit`.
    pub async fn collect(&mut self, limit: usize) -> Result<Option<Bytes>, Aborted> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
            if all.len() > limit {
                return Ok(None);
            }
        }
        Ok(Some(all.into()))
    }
}

/// A reply's body, cut and bent by `plan`. The request ends in the journal when it is dropped.
pub(super) fn reply_body(
    reply: Reply,
    entry: Arc<Entry>,
    plan: &Plan,
    connection: Arc<Connection>,
    version: Version,
) -> impl Stream<Item = Result<Frame<Bytes>, Aborted>> + Send + use<> {
    // Where more was promised than there is, the end of the body is the end of the connection.
    let short = matches!(plan.fault, Some(How::WrongLength(by)) if by > 0);
    let end = short.then_some(reply.end - reply.start);
    let mut script = Script::until(end, plan, connection, version);
    let flip = match plan.fault {
        Some(How::FlipByte(at)) => at.checked_sub(reply.start),
        _ => None,
    };
    async_stream::try_stream! {
        let mut sent = 0;
        for mut chunk in reply.body.read(reply.start, reply.end) {
            while !chunk.is_empty() {
                let limit = script.play(sent).await?;
                let mut piece = chunk.split_to(limit.min(chunk.len()));
                if let Some(at) = flip.and_then(|at| at.checked_sub(sent)).filter(|&at| at < piece.len() as u64) {
                    let mut bent = piece.to_vec();
                    bent[at as usize] ^= 0x10;
                    piece = bent.into();
                }
                let len = piece.len();
                sent += len as u64;
                entry.update(|request| request.bytes_out += len as u64);
                yield Frame::data(piece);
                script.pace(len).await;
            }
        }
        // An event at the very end still counts: a hold there says that all was sent.
        script.play(sent).await?;
    }
}
