//! Calls back into the build client, through the tunnel that it opened.
//!
//! A client opens `Control.Session` and serves gRPC inside that stream: it is the HTTP/2 *server* of
//! the tunnel, the daemon is its client. [`Sessions`] knows the sessions that are open, [`Session`] is
//! one of them with one method for each thing a client can be asked, and [`SessionGroup`] is the
//! ordered set of sessions that a request may ask.
//!
//! # Invariants
//!
//! - A session is registered only once its tunnel can carry a call, and leaves the registry before
//!   its [`Session::ended`] resolves.
//! - A call never outlives its session: it fails with [`SessionError::Lost`] the moment the session
//!   ends.
//! - A tunnel is never opened again. A client that reconnects comes with a new ID.
//! - No message to a client is larger than [`MESSAGE_LIMIT`]; clients refuse 4 MiB.
//! - Secrets appear in no `Debug` output.
//!
//! # Cancellation
//!
//! Every call is cancellation safe: dropping its future resets its stream in the tunnel.

mod auth;
mod call;
mod content;
mod error;
mod exporter;
mod filesync;
pub mod fsutil;
mod group;
mod health;
mod registry;
mod secrets;
mod send;
mod ssh;
mod tunnel;
mod upload;

pub use auth::Credentials;
pub use auth::FetchedToken;
pub use auth::Secret;
pub use auth::TokenAuthority;
pub use auth::TokenRequest;
pub use content::ClientBlob;
pub use content::ClientContent;
pub use content::ClientIngest;
pub use content::ClientIngestStatus;
pub use content::Ingested;
pub use error::SessionError;
pub use exporter::SessionExporter;
pub use filesync::DirectorySend;
pub use filesync::FileSyncRequest;
pub use group::SessionGroup;
pub use registry::OpenError;
pub use registry::Opening;
pub use registry::Session;
pub use registry::SessionId;
pub use registry::Sessions;
pub use secrets::MAX_SECRET;
pub use secrets::SecretBytes;
pub use send::FileSend;
pub use send::Sent;
pub use ssh::SshConnection;
pub use tonic::Code;

/// The largest payload of one message to a client, in bytes.
pub const MESSAGE_LIMIT: usize = 3 << 20;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
