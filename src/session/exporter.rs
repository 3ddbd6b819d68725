//! A client that chooses its exporters after the build (`moby.exporter.v1.Exporter`).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::session::Session;
use crate::session::SessionError;

/// An exporter that a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionExporter {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

impl Session {
    /// The exporters that the client wants for a result with this metadata and these refs.
    pub async fn find_exporters(
        &self,
        _metadata: BTreeMap<String, Bytes>,
        _refs: Vec<String>,
    ) -> Result<Vec<SessionExporter>, SessionError> {
        todo!()
    }

    /// Tells the client what its exporters answered.
    pub async fn finalize_export(&self, _response: BTreeMap<String, String>) -> Result<(), SessionError> {
        todo!()
    }
}
