//! A client that chooses its exporters after the build (`moby.exporter.v1.Exporter`).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::call::DECODE_LIMIT;
use super::call::origin;
use super::tunnel::Wire;
use crate::proto::exporter::FinalizeExportRequest;
use crate::proto::exporter::FindExportersRequest;
use crate::proto::exporter::exporter_client::ExporterClient;
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
        metadata: BTreeMap<String, Bytes>,
        refs: Vec<String>,
    ) -> Result<Vec<SessionExporter>, SessionError> {
        const METHOD: &str = "/moby.exporter.v1.Exporter/FindExporters";
        let mut client = self.exporter();
        let request = FindExportersRequest { metadata, refs };
        let answer = self.call(METHOD, None, client.find_exporters(request)).await?;
        let exporters = answer.exporters.into_iter();
        Ok(exporters.map(|e| SessionExporter { kind: e.r#type, attributes: e.attrs }).collect())
    }

    /// Tells the client what its exporters answered.
    pub async fn finalize_export(&self, response: BTreeMap<String, String>) -> Result<(), SessionError> {
        const METHOD: &str = "/moby.exporter.v1.Exporter/FinalizeExport";
        let mut client = self.exporter();
        let request = FinalizeExportRequest { exporter_response: response };
        self.call(METHOD, None, client.finalize_export(request)).await.map(drop)
    }

    fn exporter(&self) -> ExporterClient<Wire> {
        ExporterClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT)
    }
}
