//! What a client asks about the daemon's store, besides builds.

use thunk::proto::control::BuildHistoryEventType;
use thunk::proto::control::BuildHistoryRecord;
use thunk::proto::control::BuildHistoryRequest;
use thunk::proto::control::DiskUsageRequest;
use thunk::proto::control::PruneRequest;
use thunk::proto::control::UpdateBuildHistoryRequest;
use thunk::proto::control::UsageRecord;
use tonic::Status;

use super::Client;

impl Client {
    /// All records of the cache.
    pub async fn usage(&self) -> Vec<UsageRecord> {
        let usage = self.control().disk_usage(DiskUsageRequest::default()).await;
        usage.expect("disk usage").into_inner().record
    }

    /// Prunes everything that nobody uses. Returns what went.
    pub async fn prune_all(&self) -> Result<Vec<UsageRecord>, Status> {
        let request = PruneRequest { all: true, ..PruneRequest::default() };
        let mut stream = self.control().prune(request).await?.into_inner();
        let mut gone = Vec::new();
        while let Some(record) = stream.message().await? {
            gone.push(record);
        }
        Ok(gone)
    }

    /// The records of all builds that are over.
    pub async fn history(&self) -> Vec<BuildHistoryRecord> {
        let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let mut stream = self.control().listen_build_history(request).await.expect("history").into_inner();
        let mut records = Vec::new();
        while let Some(event) = stream.message().await.expect("history") {
            if event.r#type() == BuildHistoryEventType::Complete {
                records.extend(event.record);
            }
        }
        records
    }

    /// The refs of builds that run.
    pub async fn active_builds(&self) -> Vec<String> {
        let request =
            BuildHistoryRequest { early_exit: true, active_only: true, ..BuildHistoryRequest::default() };
        let mut stream = self.control().listen_build_history(request).await.expect("history").into_inner();
        let mut builds = Vec::new();
        while let Some(event) = stream.message().await.expect("history") {
            builds.extend(event.record.map(|record| record.r#ref));
        }
        builds
    }

    /// Deletes the record of a build that is over.
    pub async fn forget_build(&self, reference: &str) {
        let request = UpdateBuildHistoryRequest {
            r#ref: reference.to_owned(),
            delete: true,
            ..UpdateBuildHistoryRequest::default()
        };
        self.control().update_build_history(request).await.expect("delete a build record");
    }
}
