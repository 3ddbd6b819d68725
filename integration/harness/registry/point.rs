//! Which requests a fault or a hold is meant for.

use std::fmt::Display;

use super::journal::Listener;
use super::journal::Request;

/// What a request asks for; the unit of counting and of choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    Ping,
    Token,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    ManifestDelete,
    BlobHead,
    BlobGet,
    BlobDelete,
    /// `POST …/uploads/` without `mount`, with or without the blob in its body.
    UploadStart,
    UploadPatch,
    UploadPut,
    UploadStatus,
    UploadCancel,
    /// `POST …/uploads/?mount=…`
    Mount,
    Referrers,
    Tags,
    /// Nothing that the distribution specification knows.
    Unknown,
}

impl Op {
    /// Any read of a manifest or of a blob's bytes.
    pub const READS: [Self; 3] = [Self::ManifestHead, Self::ManifestGet, Self::BlobGet];
    /// Any request that moves a blob's bytes to the registry.
    pub const UPLOADS: [Self; 3] = [Self::UploadStart, Self::UploadPatch, Self::UploadPut];

    /// The requests of this kind for one digest, tag or upload id.
    pub fn of(self, reference: impl Display) -> Point {
        Point::from(self).of(reference)
    }

    pub fn in_repository(self, repository: &str) -> Point {
        Point::from(self).in_repository(repository)
    }

    pub fn by(self, user: &str) -> Point {
        Point::from(self).by(user)
    }

    /// The `nth` request of this kind, from 1, and those after it.
    pub fn nth(self, nth: usize) -> Point {
        Point::from(self).nth(nth)
    }

    pub fn times(self, times: usize) -> Point {
        Point::from(self).times(times)
    }

    pub fn once(self) -> Point {
        self.times(1)
    }
}

/// A pattern over requests. Without further words it means every request of its kinds, for ever.
#[derive(Clone, Debug)]
#[must_use]
pub struct Point {
    ops: Vec<Op>,
    reference: Option<String>,
    repository: Option<String>,
    user: Option<String>,
    listener: Option<Listener>,
    first: usize,
    times: usize,
}

impl Point {
    pub fn of(mut self, reference: impl Display) -> Self {
        self.reference = Some(reference.to_string());
        self
    }

    pub fn in_repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Requests that carry a credential of `user`; "" means those that carry none.
    pub fn by(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Only at the registry's own address, or only at the one it redirects blob reads to.
    pub fn at(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Leaves the first `nth - 1` matching requests alone.
    pub fn nth(mut self, nth: usize) -> Self {
        assert!(nth > 0, "requests are counted from 1");
        self.first = nth;
        self
    }

    /// At most this many requests.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn once(self) -> Self {
        self.times(1)
    }

    pub(super) fn matches(&self, request: &Request) -> bool {
        self.ops.contains(&request.op)
            && self.reference.as_ref().is_none_or(|wanted| *wanted == request.reference)
            && self.repository.as_ref().is_none_or(|wanted| *wanted == request.repository)
            && self.user.as_ref().is_none_or(|wanted| wanted == request.user.as_deref().unwrap_or_default())
            && self.listener.is_none_or(|wanted| wanted == request.listener)
    }

    /// Whether the `count`th match (from 1) is one that is meant.
    pub(super) fn selects(&self, count: usize) -> bool {
        count >= self.first && count - self.first < self.times
    }
}

impl From<Op> for Point {
    fn from(op: Op) -> Self {
        Self::from([op])
    }
}

impl<const N: usize> From<[Op; N]> for Point {
    fn from(ops: [Op; N]) -> Self {
        Self {
            ops: ops.to_vec(),
            reference: None,
            repository: None,
            user: None,
            listener: None,
            first: 1,
            times: usize::MAX,
        }
    }
}
