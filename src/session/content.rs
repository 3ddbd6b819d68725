//! A client's content stores (`containerd.services.content.v1.Content` inside the session).

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::oci::Digest;
use crate::session::Session;
use crate::session::SessionError;

/// One content store of a client, by its name: `oci:<store>` for an OCI layout, `export` for the
/// target of an archive without tar, `local:<path>` for a cache directory.
#[derive(Clone)]
pub struct ClientContent {
    session: Session,
    store: String,
}

/// A blob that a client has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientBlob {
    pub digest: Digest,
    pub size: u64,
}

/// Where an interrupted write to a client stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientIngestStatus {
    pub reference: String,
    pub offset: u64,
    pub total: u64,
}

/// What came of opening or committing a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingested {
    Written,
    /// The client had the blob already.
    AlreadyThere,
}

/// A write to a client's content store under way. Dropping it leaves what was written for a resume.
pub struct ClientIngest {
    _session: Session,
}

impl Session {
    /// The client's content store of this name. Makes no call.
    pub fn content(&self, store: &str) -> ClientContent {
        ClientContent { session: self.clone(), store: store.to_owned() }
    }
}

impl ClientContent {
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn store(&self) -> &str {
        &self.store
    }

    /// Size of a blob; none if the client does not have it.
    pub async fn info(&self, _digest: &Digest) -> Result<Option<ClientBlob>, SessionError> {
        todo!()
    }

    /// The bytes of a blob from `offset` to its end. They are not verified.
    pub async fn read(
        &self,
        _digest: &Digest,
        _offset: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, SessionError>>, SessionError> {
        todo!()
    }

    /// Opens a write under the name `reference`; none if the client has the blob already. A name that
    /// was written to before goes on at [`ClientIngest::offset`].
    pub async fn write(
        &self,
        _reference: &str,
        _digest: &Digest,
        _size: u64,
    ) -> Result<Option<ClientIngest>, SessionError> {
        todo!()
    }

    /// Writes of this store that were not committed.
    pub async fn statuses(&self) -> Result<Vec<ClientIngestStatus>, SessionError> {
        todo!()
    }
}

impl ClientIngest {
    /// How many bytes the client has.
    pub fn offset(&self) -> u64 {
        todo!()
    }

    /// Appends bytes, in messages that the client accepts.
    pub async fn append(&mut self, _bytes: Bytes) -> Result<(), SessionError> {
        todo!()
    }

    /// Makes the blob visible, after the client verified it.
    pub async fn commit(self) -> Result<Ingested, SessionError> {
        todo!()
    }
}
