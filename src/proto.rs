//! Generated protobuf messages and gRPC services, under readable names.
//!
//! The sources are in `proto/`; `proto/build.rs` compiles them. Package and
//! service names are those of BuildKit, containerd and gRPC, since they are the
//! paths of the calls.
//!
//! - All `bytes` fields are [`bytes::Bytes`], so that a decoded message shares
//!   the buffer it came in.
//! - All maps are `BTreeMap`s, so that equal messages have equal encodings.
//! - Messages of [`pb`] and [`errdefs`] are also serde types, spelled as Go's
//!   `encoding/json` spells BuildKit's. `errdefs::Solve` alone travels as
//!   canonical protobuf JSON instead, which differs in oneofs, enums and 64-bit
//!   integers.
//!
//! Invariant: the types named here appear only in `service.rs`, `convert.rs`,
//! `llb.rs` and in `session/`; the rest of the crate has types of its own.

pub mod json;

mod packages {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        missing_docs,
        rustdoc::all,
        unreachable_pub,
        unused_qualifications,
        reason = "generated code keeps the style of its generator"
    )]

    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

mod content_package {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        missing_docs,
        rustdoc::all,
        unreachable_pub,
        unused_qualifications,
        reason = "generated code keeps the style of its generator"
    )]

    tonic::include_proto!("containerd.services.content.v1");
}

/// `moby.buildkit.v1`: the control plane, with workers in `types`.
pub mod control {
    pub use super::packages::moby::buildkit::v1::*;
}

/// `pb`: LLB definitions.
pub mod pb {
    pub use super::packages::pb::*;
}

/// `moby.buildkit.v1.frontend`: the LLB bridge.
pub mod gateway {
    pub use super::packages::moby::buildkit::v1::frontend::*;
}

/// `moby.buildkit.v1.types`: worker records.
pub mod worker {
    pub use super::packages::moby::buildkit::v1::types::*;
}

/// `moby.buildkit.v1.apicaps`: capabilities.
pub mod caps {
    pub use super::packages::moby::buildkit::v1::apicaps::*;
}

/// `moby.buildkit.v1.sourcepolicy`: source policies.
pub mod policy {
    pub use super::packages::moby::buildkit::v1::sourcepolicy::*;
}

/// `moby.buildkit.v1.sourcepolicy.policysession`: a client that judges sources.
pub mod policysession {
    pub use super::packages::moby::buildkit::v1::sourcepolicy::policysession::*;
}

/// `errdefs`: details of errors, JSON on the wire.
pub mod errdefs {
    pub use super::packages::errdefs::*;
}

/// `fsutil.types`: tree transfers.
pub mod fsutil {
    pub use super::packages::fsutil::types::*;
}

/// `moby.filesync.v1`, the part about credentials.
pub mod auth {
    pub use super::packages::moby::filesync::v1::CredentialsRequest;
    pub use super::packages::moby::filesync::v1::CredentialsResponse;
    pub use super::packages::moby::filesync::v1::FetchTokenRequest;
    pub use super::packages::moby::filesync::v1::FetchTokenResponse;
    pub use super::packages::moby::filesync::v1::GetTokenAuthorityRequest;
    pub use super::packages::moby::filesync::v1::GetTokenAuthorityResponse;
    pub use super::packages::moby::filesync::v1::VerifyTokenAuthorityRequest;
    pub use super::packages::moby::filesync::v1::VerifyTokenAuthorityResponse;
    pub use super::packages::moby::filesync::v1::auth_client;
    pub use super::packages::moby::filesync::v1::auth_server;
}

/// `moby.filesync.v1`, the part about files.
pub mod filesync {
    pub use super::packages::moby::filesync::v1::BytesMessage;
    pub use super::packages::moby::filesync::v1::file_send_client;
    pub use super::packages::moby::filesync::v1::file_send_server;
    pub use super::packages::moby::filesync::v1::file_sync_client;
    pub use super::packages::moby::filesync::v1::file_sync_server;
}

/// `moby.upload.v1`: byte streams under a URL.
pub mod upload {
    pub use super::packages::moby::upload::v1::*;
}

/// `moby.buildkit.secrets.v1`: secrets.
pub mod secrets {
    pub use super::packages::moby::buildkit::secrets::v1::*;
}

/// `moby.sshforward.v1`: SSH agents.
pub mod sshforward {
    pub use super::packages::moby::sshforward::v1::*;
}

/// `moby.exporter.v1`: a client that chooses its exporters late.
pub mod exporter {
    pub use super::packages::moby::exporter::v1::*;
}

/// `containerd.services.content.v1`: blobs by digest. Messages and client are
/// those of `containerd-client`.
pub mod content {
    pub use containerd_client::services::v1::AbortRequest;
    pub use containerd_client::services::v1::DeleteContentRequest;
    pub use containerd_client::services::v1::Info;
    pub use containerd_client::services::v1::InfoRequest;
    pub use containerd_client::services::v1::InfoResponse;
    pub use containerd_client::services::v1::ListContentRequest;
    pub use containerd_client::services::v1::ListContentResponse;
    pub use containerd_client::services::v1::ListStatusesRequest;
    pub use containerd_client::services::v1::ListStatusesResponse;
    pub use containerd_client::services::v1::ReadContentRequest;
    pub use containerd_client::services::v1::ReadContentResponse;
    pub use containerd_client::services::v1::Status;
    pub use containerd_client::services::v1::StatusRequest;
    pub use containerd_client::services::v1::StatusResponse;
    pub use containerd_client::services::v1::UpdateRequest;
    pub use containerd_client::services::v1::UpdateResponse;
    pub use containerd_client::services::v1::WriteAction;
    pub use containerd_client::services::v1::WriteContentRequest;
    pub use containerd_client::services::v1::WriteContentResponse;
    pub use containerd_client::services::v1::content_client;

    pub use super::content_package::content_server;
}

/// `grpc.health.v1`: health checks.
pub mod health {
    pub use super::packages::grpc::health::v1::*;
}

/// `google.rpc`: a status with typed details.
pub mod rpc {
    pub use super::packages::google::rpc::*;
}

#[cfg(test)]
mod tests;
