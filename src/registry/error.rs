//! [`RegistryError`] and [`PushError`]: what went wrong, where, and what to do about it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::CredentialError;
use crate::oci::Digest;

/// An error that several askers can hold.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// What a request was about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The registry as image names spell it.
    pub host: String,
    pub repository: String,
    /// `@digest`, `:tag` or nothing.
    pub subject: String,
    /// The address that was asked; empty if it is the host itself or none was asked yet.
    pub mirror: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.repository, self.subject)?;
        if self.mirror.is_empty() { Ok(()) } else { write!(f, " (at mirror {})", self.mirror) }
    }
}

/// A request to a registry failed for good: retries and other endpoints are behind it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{place} was not found{reason}: check the name, and that it was not deleted")]
    NotFound { place: Arc<Place>, reason: Reason },
    #[error("{place} needs other credentials{reason}: log in to {} with an account that may use it", place.host)]
    Unauthorized { place: Arc<Place>, reason: Reason },
    #[error("access to {place} was denied{reason}: ask for the right, or log in with another account")]
    Forbidden { place: Arc<Place>, reason: Reason },
    #[error("{place}: too many requests{reason}{}", wait(*retry_after))]
    RateLimited { place: Arc<Place>, retry_after: Option<Duration>, reason: Reason },
    #[error("{place}: the registry failed with status {status}{reason}: try again later")]
    Server { place: Arc<Place>, status: u16, retry_after: Option<Duration>, reason: Reason },
    #[error("{place}: {address} can't be reached: {cause}")]
    Unreachable {
        place: Arc<Place>,
        address: String,
        #[source]
        cause: Cause,
    },
    #[error("{place}: {address} was silent for {after:?}")]
    Stalled { place: Arc<Place>, address: String, after: Duration },
    #[error("{place}: the connection to {address} broke after {got} of {expected} bytes: {cause}")]
    Truncated {
        place: Arc<Place>,
        address: String,
        got: u64,
        expected: u64,
        #[source]
        cause: Cause,
    },
    #[error(
        "{place}: the registry has {got} bytes instead of {expected}: the content is not what its descriptor says"
    )]
    WrongLength { place: Arc<Place>, expected: u64, got: u64 },
    #[error("{place}: asked for bytes from {offset}, the registry answered with {answered:?}")]
    BadRange { place: Arc<Place>, offset: u64, answered: String },
    #[error("{place}: the bytes have digest {got}: the registry or something on the way damaged them")]
    Corrupt { place: Arc<Place>, got: Digest },
    #[error("{place}: an answer was damaged: {problem}")]
    Garbled { place: Arc<Place>, problem: String },
    #[error("{place} has {size} bytes, more than the limit of {limit}")]
    TooLarge { place: Arc<Place>, size: u64, limit: u64 },
    #[error("{place}: redirected in a loop or more than {limit} times, last to {address}")]
    RedirectLoop { place: Arc<Place>, address: String, limit: usize },
    #[error("{place}: the registry's answer can't be used: {problem}")]
    Protocol { place: Arc<Place>, problem: String },
    #[error("{place}: no credentials could be had: {cause}")]
    Credentials {
        place: Arc<Place>,
        #[source]
        cause: CredentialError,
    },
    #[error("{place}: the TLS configuration can't be used: {cause}")]
    Tls {
        place: Arc<Place>,
        #[source]
        cause: super::TlsError,
    },
    #[error("{place}: cancelled")]
    Cancelled { place: Arc<Place> },
}

/// What a registry said about a refusal, clipped; may be empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

fn wait(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(after) => format!(": try again in {} s", after.as_secs()),
        None => ": try again later".to_owned(),
    }
}

impl RegistryError {
    pub fn place(&self) -> &Arc<Place> {
        match self {
            RegistryError::NotFound { place, .. }
            | RegistryError::Unauthorized { place, .. }
            | RegistryError::Forbidden { place, .. }
            | RegistryError::RateLimited { place, .. }
            | RegistryError::Server { place, .. }
            | RegistryError::Unreachable { place, .. }
            | RegistryError::Stalled { place, .. }
            | RegistryError::Truncated { place, .. }
            | RegistryError::WrongLength { place, .. }
            | RegistryError::BadRange { place, .. }
            | RegistryError::Corrupt { place, .. }
            | RegistryError::Garbled { place, .. }
            | RegistryError::TooLarge { place, .. }
            | RegistryError::RedirectLoop { place, .. }
            | RegistryError::Protocol { place, .. }
            | RegistryError::Credentials { place, .. }
            | RegistryError::Tls { place, .. }
            | RegistryError::Cancelled { place } => place,
        }
    }

    /// True if the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            RegistryError::RateLimited { .. }
                | RegistryError::Server { .. }
                | RegistryError::Unreachable { .. }
                | RegistryError::Stalled { .. }
                | RegistryError::Truncated { .. }
                | RegistryError::WrongLength { .. }
                | RegistryError::BadRange { .. }
                | RegistryError::Corrupt { .. }
                | RegistryError::Garbled { .. }
        )
    }

    /// When the registry wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::RateLimited { retry_after, .. } | RegistryError::Server { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

/// A blob or manifest did not get to its target.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The bytes to push could not be read; `cause` is the error of the body's own stream.
    #[error("push of {place}: the bytes could not be read: {cause}")]
    Body {
        place: Arc<Place>,
        #[source]
        cause: Cause,
    },
    #[error("push of {place}: the body has {got} bytes instead of {expected}")]
    BodyLength { place: Arc<Place>, expected: u64, got: u64 },
    #[error("push of {place}: the registry refused the content{reason}")]
    Refused { place: Arc<Place>, status: u16, reason: Reason },
}

impl PushError {
    pub fn is_cancelled(&self) -> bool {
        matches!(self, PushError::Registry(RegistryError::Cancelled { .. }))
    }
}
