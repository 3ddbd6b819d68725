//! Archives to a client (`moby.filesync.v1.FileSend`).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::session::Session;
use crate::session::SessionError;

/// A file on its way to a client. Dropping it unfinished resets the transfer: the client must not
/// take a prefix for the whole.
pub struct FileSend {
    _session: Session,
}

/// How a transfer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Written,
    /// The client has the target already and took nothing.
    AlreadyThere,
}

impl Session {
    /// Opens a file of the client's exporter number `exporter`. `metadata` are response keys that the
    /// client learns before the first byte.
    pub async fn file_send(
        &self,
        _exporter: usize,
        _metadata: &BTreeMap<String, String>,
    ) -> Result<FileSend, SessionError> {
        todo!()
    }
}

impl FileSend {
    /// Appends bytes, in messages that the client accepts; waits while the client is slow.
    pub async fn append(&mut self, _bytes: Bytes) -> Result<(), SessionError> {
        todo!()
    }

    /// Ends the file and waits until the client has it.
    pub async fn finish(self) -> Result<Sent, SessionError> {
        todo!()
    }
}
