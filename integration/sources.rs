//! What a frontend was told of a source is what its build gets, asked for once: counted at the servers.

mod images;
mod web;

use thunk::proto::gateway;
use thunk::proto::gateway::llb_bridge_client::LlbBridgeClient;
use thunk::proto::pb;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::harness::Build;
use crate::harness::Client;
use crate::harness::client::BuildId;
use crate::harness::client::Running;
use crate::harness::llb::State;

type Bridge = LlbBridgeClient<InterceptedService<Channel, BuildId>>;

/// A frontend that is a test, with the build that it is the frontend of.
struct Frontend {
    running: Running,
    bridge: Bridge,
}

impl Frontend {
    async fn start(client: &Client) -> Self {
        let running = client.start(Build::gateway()).await;
        let bridge = client.bridge(&running.reference);
        Self { running, bridge }
    }

    /// What a source is.
    async fn resolve(
        &self,
        identifier: &str,
        attributes: &[(&str, &str)],
    ) -> Result<gateway::ResolveSourceMetaResponse, Status> {
        let attrs = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let source = pb::SourceOp { identifier: identifier.to_owned(), attrs };
        let request = gateway::ResolveSourceMetaRequest { source: Some(source), ..Default::default() };
        Ok(self.bridge.clone().resolve_source_meta(request).await?.into_inner())
    }

    /// The digest of a file of a web server.
    async fn resolve_file(&self, url: &str, attributes: &[(&str, &str)]) -> String {
        let resolved = self.resolve(url, attributes).await.expect("it resolves");
        resolved.http.expect("it is a file").checksum
    }

    /// Solves a state now; the name of its result.
    async fn solve(&self, state: &State) -> Result<String, Status> {
        let request = gateway::SolveRequest {
            definition: Some(state.definition()),
            evaluate: true,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let result = self.bridge.clone().solve(request).await?.into_inner().result.expect("a result");
        match result.result {
            Some(gateway::result::Result::Ref(solved)) => Ok(solved.id),
            other => panic!("a result with one ref: {other:?}"),
        }
    }

    /// Solves a state, and reads a file of it.
    async fn read(&self, state: &State, path: &str) -> String {
        let solved = self.solve(state).await.expect("it is solved");
        let request =
            gateway::ReadFileRequest { r#ref: solved, file_path: path.to_owned(), ..Default::default() };
        let read = self.bridge.clone().read_file(request).await.expect("a file").into_inner();
        String::from_utf8(read.data.to_vec()).expect("text")
    }

    /// Ends the build with no result.
    async fn finish(mut self) {
        let result = Some(gateway::Result::default());
        self.bridge.r#return(gateway::ReturnRequest { result, error: None }).await.expect("an answer");
        self.running.finish().await.success();
    }
}
